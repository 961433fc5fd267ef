"""Fuzz decoders: mutate what is valid, and what was told apart by the words of its refusal.

Each decoder has a process of its own, whose memory is limited; an input that takes too long ends it, and the input at
hand lies in a file, so that whatever kills the interpreter is known. With ``--guided``, where atheris is installed,
libFuzzer chooses the inputs by the code that they reach.
"""

import argparse
import importlib
import json
import logging
import os
import re
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

PATIENCE_S = 30
"""Longest time for one input, on a machine that does other things too."""
MEMORY = 6 * 2**30
_LONGEST = 1 << 16
_MOST_CORPUS = 400
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
_TOKENS = (
    b"null",
    b"NaN",
    b"Infinity",
    b"-1",
    b"1e999",
    b"1e308",
    b"9" * 400,
    b'""',
    b"[]",
    b"{}",
    b"[" * 70,
    b'{"a":' * 70,
    b"\x00",
    b"\xff\xfe",
    b"\xdc\xff\xff",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\x7f\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x01",
    b"\x91" * 80,
    b"\xc7\x00\x01",
    b"<f8",
    b"|O",
    b"../../etc/passwd",
    b"&a [*a, *a]",
    b"!!python/object:x",
    b"\x1f\x8b",
    b"PK\x03\x04",
    b"- " * 90,
    b'{"__proto__": 1}',
    b"\xc4\x00",
    b"true",
    b"nd",
    b"%s%n",
    b"uid",
    b"shape",
    b"\n",
    b",",
    b": ",
    b"0x10",
    b"1_000",
    b"\xcb\x7f\xf8" + bytes(6),
)


def mutated(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    """Spoil bytes in one to eight ways."""
    found = bytearray(data[:_LONGEST])
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at = rng.randrange(len(found) + 1)
        match rng.randrange(9):
            case 0 if found:
                found[at % len(found)] ^= 1 << rng.randrange(8)
            case 1 if found:
                found[at % len(found)] = rng.randrange(256)
            case 2:
                del found[at : at + rng.choice((1, 2, 4, 16, 200))]
            case 3:
                found[at:at] = rng.randbytes(rng.choice((1, 2, 8, 40)))
            case 4:
                end = at + rng.choice((1, 4, 30, 300))
                found[at:at] = found[at:end] * rng.choice((1, 2, 50))
            case 5:
                width = rng.choice((1, 2, 4, 8))
                number = rng.choice(_NUMBERS) % (1 << 8 * width)
                found[at : at + width] = number.to_bytes(width, rng.choice(("little", "big")))
            case 6:
                found[at : at + rng.choice((0, 0, 4, 20))] = rng.choice(_TOKENS)
            case 7:
                other = rng.choice(others)
                start = rng.randrange(len(other) + 1)
                found[at : at + rng.choice((0, 50))] = other[start : start + rng.randrange(1, 300)]
            case _:
                del found[at:]
        del found[_LONGEST:]
    return bytes(found)


def attempt(
    decode: Callable[[bytes], object], raises: tuple[type[Exception], ...], data: bytes
) -> tuple[str, str]:
    """Decode once: ("read" or "refused" or "defect", what was said)."""
    try:
        decode(data)
    except raises as error:
        return "refused", f"{type(error).__name__} {_words(error)}"
    except Exception as error:  # noqa: BLE001 - what leaks is what is looked for
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        line = (
            ""
            if where is None
            else f"{Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno}"
        )
        return "defect", f"{type(error).__name__} at {line}: {str(error)[:200]}"
    return "read", ""


def _words(error: Exception) -> str:
    return re.sub(r"[\d.]+|'[^']*'|/\S+", "*", str(error))[:80]


def fuzz(decoder: Any, seed: int, seconds: float, folder: Path) -> dict[str, Any]:
    """Spoil, decode and look, for so many seconds."""
    rng = Random(f"{decoder.name}/{seed}")
    corpus, known, defects = list(decoder.seeds), set[str](), dict[str, str]()
    counts = {"read": 0, "refused": 0, "defect": 0}
    last, until, longest = folder / "input", time.monotonic() + seconds, 0.0
    while (begun := time.monotonic()) < until:
        data = mutated(rng.choice(corpus), decoder.seeds, rng)
        last.write_bytes(data)
        signal.alarm(PATIENCE_S)  # its default action ends the process, wherever it hangs
        how, what = attempt(decoder.decode, decoder.raises, data)
        signal.alarm(0)
        longest = max(longest, time.monotonic() - begun)
        counts[how] += 1
        if how == "defect":
            defects.setdefault(re.sub(r"\d+", "*", what), data.hex())
        elif what not in known and len(corpus) < _MOST_CORPUS:
            # Words that were not heard before come from code that was not reached before.
            known.add(what)
            corpus.append(data)
    return {
        "decoder": decoder.name,
        "inputs": sum(counts.values()),
        **counts,
        "refusals": len(known),
        "longest_s": round(longest, 2),
        "defects": defects,
    }


def guided(decoder: Any, seconds: float, folder: Path) -> None:
    """Have libFuzzer do it; never returns."""
    atheris = importlib.import_module("atheris")
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, one in enumerate(decoder.seeds):
        (corpus / f"seed{number}").write_bytes(one)

    def once(data: bytes) -> None:
        how, what = attempt(decoder.decode, decoder.raises, data)
        if how == "defect":
            raise RuntimeError(what)

    options = [
        f"-max_total_time={int(seconds)}",
        f"-timeout={PATIENCE_S}",
        "-rss_limit_mb=6144",
        "-max_len=65536",
        "-verbosity=0",
        "-print_final_stats=1",
        f"-artifact_prefix={folder}/",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], once)
    atheris.Fuzz()


def in_children(
    found: Sequence[Any],
    seed: int,
    seconds: float,
    folder: Path,
    tell: Callable[[dict[str, Any]], None],
) -> list[dict[str, Any]]:
    """Fuzz each decoder in a process forked from this one, so that what kills it is seen, and kills nothing else."""
    results = []
    for decoder in found:
        own = folder / re.sub(r"\W+", "_", decoder.name)
        own.mkdir(parents=True, exist_ok=True)
        answer = own / "answer.json"
        answer.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            try:
                logging.disable(logging.CRITICAL)
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
                answer.write_text(json.dumps(fuzz(decoder, seed, seconds, own)))
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        if answer.exists():
            results.append(json.loads(answer.read_text()))
        else:
            data = (own / "input").read_bytes().hex() if (own / "input").exists() else ""
            ended = f"ended by signal {status & 0x7F}" if status & 0x7F else "ended without a word"
            results.append({"decoder": decoder.name, "inputs": 0, "defects": {ended: data}})
        tell(results[-1])
    return results


def main() -> int:
    """Fuzz decoders by their names (all), each for so long; a line for each."""
    parser = argparse.ArgumentParser(prog="decoder_fuzz.py")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10, help="for each decoder (10)")
    parser.add_argument("--guided", action="store_true", help="by libFuzzer; one name")
    parser.add_argument("folder", type=Path, help="where files are written")
    parser.add_argument("names", nargs="*", help="decoders (all)")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    if given.guided:
        with importlib.import_module("atheris").instrument_imports(include=["inscan"]):
            import decoders
    else:
        import decoders
    found = [
        one
        for one in decoders.decoders(given.folder / "files")
        if not given.names or one.name in given.names
    ]
    if given.guided:
        guided(found[0], given.seconds, given.folder)
    results = in_children(
        found,
        given.seed,
        given.seconds,
        given.folder,
        lambda answer: print(json.dumps(answer), flush=True),
    )
    return int(any(one["defects"] for one in results))


if __name__ == "__main__":
    sys.exit(main())
