"""Messages of every kind as inscan sends them, and what becomes of them in the hands of somebody who means harm.

Mutations carry a right checksum, or nothing behind the checksum would ever be reached.
"""

import random
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inscan.callbacks.wire import PROTOCOL, pack

Frames = list[bytes]
_ZEROS = "0" * 64


@dataclass(frozen=True)
class Sample:
    """One message: kind, header, chunks."""

    kind: str
    header: dict[str, Any]
    chunks: tuple[bytes, ...] = ()


def _job() -> dict[str, Any]:
    return {
        "key": "a" * 64,
        "run_uid": "run",
        "stream": "primary",
        "kind": "final",
        "recipe": "n2n",
        "parameters": {"fit_seconds": 1.0},
        "meta": {"rows_done": 4},
        "spool": "/nowhere/run",
        "arrays": {"counts": {"file": "counts.npy", "shape": [2, 3], "dtype": "<f4", "nbytes": 24}},
        "input_digest": "",
        "result_path": "/nowhere/result.h5",
        "refines": "",
        "fence": 1,
        "host_id": "elsewhere",
    }


def _result() -> dict[str, Any]:
    return {
        "key": "a" * 64,
        "fence": 1,
        "result_path": "/nowhere/x.h5",
        "digest": "sha256:0",
        "report": {"verdict": "pass"},
        "regions": [],
        "timings": {},
    }


_DOC = {"run": "junk", "offset": 0, "next": 40}
_TICKET = {"key": "a" * 64, "fence": 1}

TO_INGEST = (
    Sample("HELLO", {"client": "c" * 32, "host_id": "h", "pid": 7, "protocol": list(PROTOCOL)}),
    Sample("PING", {}),
    Sample("DOC", _DOC, (pack(["start", {"uid": "junk", "time": 0.0}]),)),
    Sample("DOC", {**_DOC, "offset": 40, "next": 80}, (pack(["event", {"data": {}}]),)),
    Sample("DOC", {**_DOC, "offset": 80, "next": 90}, (pack(["stop", {"run_start": "junk"}]),)),
    Sample("SYNC", {"run": "junk", "offset": 0, "ended": True}),
    Sample("WATCH", {"run": "junk"}),
    Sample("REQUEST", {"id": "i", "op": "status"}, (pack({}),)),
    Sample("REQUEST", {"id": "i", "op": "jobs"}, (pack({"state": "failed"}),)),
    Sample("REQUEST", {"id": "i", "op": "approve"}, (pack({"proposal": "p", "who": "me"}),)),
    Sample("REQUEST", {"id": "i", "op": "propose_places"}, (pack({"run_uid": "r"}),)),
    Sample("REQUEST", {"id": "i", "op": "known_runs"}, (pack({"uids": ["a", "b"]}),)),
    Sample("REQUEST", {"id": "i", "op": "source_report"}, (pack({"name": "s"}),)),
)
TO_BROKER = (
    Sample(
        "HELLO",
        {
            "protocol": [1, 1],
            "worker": "fuzz",
            "host_id": "h",
            "boot_id": "b",
            "pid": 1,
            "device": "cpu",
            "memory": 1,
            "version": "0",
            "credit": 0,
        },
    ),
    Sample(
        "HB",
        {
            "worker": "fuzz",
            "key": "a" * 64,
            "fence": 1,
            "progress": 0.5,
            "steps": 3,
            "rss": 0,
            "credit": 0,
        },
    ),
    Sample("PARTIAL", {**_TICKET, "progress": 0.5, "steps": 9}),
    Sample("DONE", _TICKET, (pack(_result()),)),
    Sample("FAIL", {**_TICKET, "code": "error", "message": "m", "retryable": True}),
    Sample("DRAIN", {"code": "drain", "message": ""}),
    Sample("BYE", {"code": "bye", "message": ""}),
)
TO_SPOOL = (
    Sample("FETCH", {"run": "junk", "file": "counts.npy", "offset": 0, "size": 4}),
    Sample("PUT", {**_TICKET, "offset": 0, "size": 3}, (b"abc",)),
    Sample("FINISH", {**_TICKET, "size": 3}),
)
TO_CLIENT = (
    Sample("WELCOME", {"service": "inscan", "boot": "b", "known": True}),
    Sample("ACK", {"run": "run", "offset": 40}),
    Sample("RESUME", {"run": "run", "offset": 0, "placed": 0}),
    Sample("OUTCOME", {"run": "other"}, (pack({"status": "done", "proposals": []}),)),
    Sample("SNAPSHOT", {"run": "other", "rows": 3, "path": "/x"}),
    Sample("REPLY", {"id": "i"}, (pack({"ok": True}),)),
    Sample("ERR", {"code": "busy", "message": "wait"}),
)
TO_WORKER = (
    Sample(
        "WELCOME",
        {
            "protocol": [1, 1],
            "version": "0",
            "host_id": "h",
            "hb_s": 0.5,
            "lease_s": 6.0,
            "spool": "tcp://127.0.0.1:9",
        },
    ),
    Sample("JOB", _TICKET, (pack(_job()),)),
    Sample("ACK", {**_TICKET, "reason": ""}),
    Sample("CANCEL", {**_TICKET, "reason": "no"}),
    Sample("ERR", {"code": "hello", "message": "who?"}),
)


def frames(
    sample: Sample, packed: bytes | None = None, version: Sequence[int] = PROTOCOL
) -> Frames:
    """Frames of a message, with a right checksum whatever is in it."""
    kind = sample.kind.encode("utf-8", "replace")
    header = pack(sample.header) if packed is None else packed
    crc = zlib.crc32(kind)
    for part in (header, *sample.chunks):
        crc = zlib.crc32(part, crc)
    return [b"XI", bytes(version), kind, header, struct.pack("<I", crc), *sample.chunks]


def odd(rng: random.Random) -> Any:
    """A value that nobody expects."""
    deep: Any = 0
    for _ in range(rng.choice((3, 30, 50))):
        deep = [deep]
    return rng.choice(
        (
            None,
            True,
            -1,
            0,
            1,
            2**31,
            2**63 - 1,
            -(2**63),
            2**64 - 1,
            float("nan"),
            float("inf"),
            -1e308,
            "",
            "x" * rng.choice((1, 300, 20_000)),
            "../../etc/passwd",
            "\x00\ud7ff%s{}",
            "a" * 64,
            _ZEROS,
            b"\xff" * 9,
            [],
            {},
            {"": {}},
            [1, [2, [3]]],
            deep,
            {str(n): n for n in range(rng.choice((1, 500)))},
            complex(1, -1),
        )
    )


def mutated(sample: Sample, rng: random.Random) -> Frames:
    """One harmful variant of a message."""
    header, chunks = dict(sample.header), list(sample.chunks)
    match rng.randrange(12):
        case 0 | 1 | 2 if header:
            for _ in range(rng.choice((1, 1, 2))):
                header[rng.choice(list(header))] = odd(rng)
        case 3 if header:
            del header[rng.choice(list(header))]
        case 4:
            header["more"] = odd(rng)
        case 5:
            other = rng.choice(("HELLO", "DOC", "JOB", "X", "Ä", "", "A" * 30, "done"))
            return frames(Sample(other, header, tuple(chunks)))
        case 6:
            packed = bytearray(pack(header))
            for _ in range(rng.choice((1, 2, 8))):
                packed[rng.randrange(len(packed))] ^= 1 << rng.randrange(8)
            return frames(sample, bytes(packed))
        case 7:
            return frames(sample, rng.randbytes(rng.choice((0, 1, 4, 40, 70_000))))
        case 8 | 9:
            chunks = [_chunk(chunk, rng) for chunk in chunks] or [rng.randbytes(5)]
            if rng.random() < 0.3:
                chunks *= rng.choice((0, 2, 80))
        case 10:
            return frames(sample, version=(rng.randrange(256), rng.randrange(256)))
        case _:
            cut = frames(Sample(sample.kind, header, tuple(chunks)))
            return rng.choice(
                (cut[: rng.randrange(1, len(cut))], [*cut[:4], b"1234", *cut[5:]], cut)
            )
    try:
        return frames(Sample(sample.kind, header, tuple(chunks)))
    except ValueError:
        return frames(sample)


def _chunk(chunk: bytes, rng: random.Random) -> bytes:
    match rng.randrange(5):
        case 0:
            return rng.randbytes(rng.choice((0, 3, 200, 100_000)))
        case 1:
            return chunk[: rng.randrange(len(chunk) + 1)]
        case 2:
            return _packed({"op": odd(rng), "run": odd(rng)})
        case 3:
            return _packed(
                [rng.choice(("start", "event", "stop", "gap", "log", "resource")), odd(rng)]
            )
    changed = bytearray(chunk or b"\0")
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _packed(value: Any) -> bytes:
    try:
        return pack(value)
    except ValueError:
        return b"\xc1"
