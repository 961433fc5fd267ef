"""What one fault of the matrix did: a row of the table in docs/reliability.md."""

import argparse
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from machine import machine

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "reliability"


@dataclass(frozen=True)
class FaultRow:
    """One line of the table.

    Attributes
    ----------
    fault : str
        What was done, in a few words: ``kill -9 of a worker``.
    how : str
        By which means, and what the service was doing meanwhile.
    times : int
        How often it was done.
    runs : int
        Runs (or jobs) that were to end, each as one result or one failure record.
    results, failures : int
        How they ended.
    lost, duplicated : int
        Runs without an end, and ends beyond the first. Anything but zero is a defect.
    seconds : float
        How long it took altogether.
    remarks : str
        What else there is to know: counters, the longest recovery.
    figures : mapping
        Measured values, for the record; plain data.
    """

    fault: str
    how: str
    times: int
    runs: int
    results: int
    failures: int
    lost: int
    duplicated: int
    seconds: float
    remarks: str = ""
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """Nothing lost, nothing twice."""
        return not self.lost and not self.duplicated


def write(folder: Path, part: str, options: dict[str, Any], rows: Sequence[FaultRow]) -> Path:
    """Put the rows of a part into ``<folder>/<part>.json``; return the path."""
    path = folder / f"{part}.json"
    folder.mkdir(parents=True, exist_ok=True)
    head = {"part": part, "options": options, "date": time.strftime("%Y-%m-%d")}
    content = {**head, "machine": machine(), "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def read(path: Path) -> tuple[dict[str, Any], list[FaultRow]]:
    """Read what `write` wrote: the head, and the rows."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return content, [FaultRow(**row) for row in content.pop("rows")]


def main(
    part: str,
    run: Callable[..., Iterable[FaultRow]],
    **options: tuple[type, Any, str],
) -> int:
    """Command line of one part: run it, print its rows, write them, each as soon as it is there.

    With an option ``only`` that is not empty, the rows of other faults in the file stay as they are.

    Parameters
    ----------
    part : str
        Its name: ``torture_<part>.py`` writes ``<part>.json``.
    run : callable
        ``run(seed=..., <options>) -> rows``, at once or one by one; it may print its progress to stderr.
    **options : (type, default, help)
        What it takes besides ``--seed`` and ``--out``.

    Returns
    -------
    int
        Exit status: 0, or 1 when something was lost or came twice.
    """
    parser = argparse.ArgumentParser(prog=f"torture_{part}.py")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the JSON file")
    for name, (kind, default, text) in options.items():
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{text} ({default})")
    given = vars(parser.parse_args())
    out = given.pop("out")
    path, rows = out / f"{part}.json", dict[str, FaultRow]()
    done: list[FaultRow] = []
    if given.get("only") and path.exists():
        rows = {row.fault: row for row in read(path)[1]}
    options = {name: value for name, value in given.items() if name != "only"}
    for row in run(**given):
        done.append(row)
        rows[row.fault] = row
        write(out, part, options, list(rows.values()))
        print(
            f"{'ok ' if row.good else 'BAD'} {row.fault}: {row.times} times, {row.runs} runs -> "
            f"{row.results} results, {row.failures} failures, {row.lost} lost, "
            f"{row.duplicated} duplicated; {row.seconds:.0f} s. {row.remarks}",
            flush=True,
        )
    print(path)
    return 0 if all(row.good for row in done) else 1
