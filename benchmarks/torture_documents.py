"""Spoil documents in every way of the table and at random, fuzz every decoder, and count how runs end."""

import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import fault_row
from document_policy import faults
from document_runs import Run, take_runs
from document_service import passage
from document_storm import Storm
from document_trial import Ending, differs, interleaved, try_run, wrong_with
from fault_row import FaultRow

_VARIANTS = 1
"""Times that each fault of the table is tried on each shape of run."""


def run(seed: int, minutes: float, service: int) -> Iterator[FaultRow]:
    """Half of the time for runs spoiled at random, half for decoders; the table and the service come first."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = take_runs(folder / "runs")
        wholes = {one.kind: try_run(one, one.copied()) for one in runs}
        parts = (
            lambda: _table(runs, wholes, seed),
            lambda: _burst(runs, wholes, seed, folder),
            lambda: _service(folder, seed, service),
            lambda: _storm(runs, wholes, seed, 30 * minutes),
            lambda: _decoders(folder, seed, 30 * minutes),
        )
        for part in parts:
            yield from part()


def _row(
    fault: str, how: str, ends: Counter[str], wrong: Sequence[str], begun: float, remarks: str
) -> FaultRow:
    """A row of runs that end in this process; whatever is not as promised counts as lost."""
    runs = sum(ends.values())
    return FaultRow(
        fault=fault,
        how=how,
        times=runs,
        runs=runs,
        results=ends["result"],
        failures=runs - ends["result"],
        lost=len(wrong),
        duplicated=0,
        seconds=round(time.monotonic() - begun, 1),
        remarks="; ".join([remarks, *wrong[:5]]),
        figures=dict(ends),
    )


def _table(runs: Sequence[Run], wholes: dict[str, Ending], seed: int) -> Iterator[FaultRow]:
    """Each fault on each shape of run: it ends as the policy says."""
    kinds = {one.kind: one for one in runs}
    groups: dict[str, tuple[Counter[str], list[str], float]] = {}
    for fault in faults():
        ends, wrong, begun = groups.setdefault(fault.group, (Counter(), [], time.monotonic()))
        for kind in fault.kinds:
            for variant in range(
                1 if "megabyte" in fault.name or "100 000" in fault.name else _VARIANTS
            ):
                ending = try_run(kinds[kind], fault.of(kinds[kind], seed + variant))
                found = wrong_with(ending)
                if ending.how not in fault.ends or not re.search(fault.says, ending.words):
                    found.append(f"ended {ending.how}: {ending.words[:200]}")
                if fault.compare and ending.how == "result":
                    found += differs(ending, wholes[kind], part=fault.compare == "part")
                ends[ending.how] += 1
                wrong += [f"{fault.name}, {kind}: {text}" for text in found]
        groups[fault.group] = (ends, wrong, begun)
    for group, (ends, wrong, begun) in groups.items():
        number = sum(one.group == group for one in faults())
        yield _row(
            group,
            "documents of runs of every shipped profile, through intake and assembler",
            ends,
            wrong,
            begun,
            f"{number} faults, see documents-policy.md",
        )


def _burst(
    runs: Sequence[Run], wholes: dict[str, Ending], seed: int, folder: Path
) -> Iterator[FaultRow]:
    """Runs of all shapes mixed into one stream of documents, again and again."""
    begun, ends, wrong = time.monotonic(), Counter[str](), list[str]()
    for turn in range(5):
        for kind, ending in interleaved(
            list(runs), Random(seed + turn), folder / f"mix{turn}"
        ).items():
            ends[ending.how] += 1
            wrong += wrong_with(ending) + differs(ending, wholes[kind])
    yield _row(
        "runs that interleave",
        "documents of seven runs at a time, mixed, through the document log",
        ends,
        wrong,
        begun,
        "each result is that of the run alone, to the bit",
    )


def _service(folder: Path, seed: int, most: int) -> Iterator[FaultRow]:
    """A share through everything: log, forwarder, service, real workers, Tiled."""
    if not most:
        return
    begun = time.monotonic()
    own = folder / "service"
    own.mkdir()
    found = passage(own, seed, most)
    if found.problems:
        kept = Path(tempfile.mkdtemp(prefix="torture-documents-"))
        shutil.copy(own / "service.log", kept)
        found.problems.append(f"the log is kept in {kept}")
    ends = found.ends
    yield FaultRow(
        fault="faults of the table in a burst",
        how="all at once and mixed, through connect(), the service, its real worker and Tiled",
        times=most,
        runs=ends.runs,
        results=ends.results,
        failures=ends.failures,
        lost=max(ends.lost, int(bool(found.problems))),
        duplicated=ends.duplicated,
        seconds=round(time.monotonic() - begun, 1),
        remarks="; ".join(["defects, garbage and damaged messages: 0", *found.problems[:5]]),
        figures=dict(found.kinds),
    )


def _storm(
    runs: Sequence[Run], wholes: dict[str, Ending], seed: int, seconds: float
) -> Iterator[FaultRow]:
    """Several faults and junk at once, with restarts of the service in between."""
    begun = time.monotonic()
    tally = Storm(list(runs), wholes).blow(
        seed * 1_000_000, lambda _: time.monotonic() < begun + seconds
    )
    wrong = [f"run {number}: {'; '.join(words)[:300]}" for number, words in tally.wrong.items()]
    yield _row(
        "several faults at once, and junk anywhere",
        "documents lost, repeated, moved, renamed, one value replaced by junk, the service restarted in mid-run",
        tally.ends,
        wrong,
        begun,
        f"runs {seed * 1_000_000} and on",
    )


def _decoders(folder: Path, seed: int, seconds: float) -> Iterator[FaultRow]:
    """Every decoder, each in a process of its own."""
    import decoders
    from decoder_fuzz import in_children

    found = decoders.decoders(folder / "fuzz" / "files")
    begun = time.monotonic()
    answers = in_children(found, seed, seconds / len(found), folder / "fuzz", _said)
    inputs, defects = sum(one["inputs"] for one in answers), {}
    for one in answers:
        defects |= {
            f"{one['decoder']}: {words}": data[:20_000] for words, data in one["defects"].items()
        }
    figures: dict[str, Any] = {one["decoder"]: one["inputs"] for one in answers}
    yield FaultRow(
        fault="bytes that are no document, file or message",
        how=f"{len(found)} decoders, valid input mutated, memory limited to 6 GiB, 30 s an input",
        times=inputs,
        runs=inputs,
        results=sum(one.get("read", 0) for one in answers),
        failures=sum(one.get("refused", 0) for one in answers),
        lost=len(defects),
        duplicated=0,
        seconds=round(time.monotonic() - begun, 1),
        remarks="; ".join(["read, or refused with the documented exception", *defects]),
        figures={"inputs": figures, "defects": defects},
    )


def _said(answer: dict[str, Any]) -> None:
    print(
        f"{answer['decoder']}: {answer['inputs']} inputs {list(answer['defects'])}",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(
        fault_row.main(
            "documents",
            run,
            minutes=(float, 20.0, "for runs spoiled at random and for decoders, together"),
            service=(int, 60, "runs that go through a whole service"),
        )
    )
