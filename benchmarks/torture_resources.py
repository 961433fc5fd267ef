"""Whatever a machine can run out of, and workers at their worst: what becomes of every run."""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fault_row
import resource_disks as disks
import resource_workers as workers
from fault_row import FaultRow
from rich.console import Console

Scenario = Callable[[Path, int], FaultRow]


def run(seed: int, only: str) -> Iterator[FaultRow]:
    """Do everything; one row each."""
    said = Console(stderr=True)
    for name, scenario in _SCENARIOS.items():
        if only and only not in name:
            continue
        with tempfile.TemporaryDirectory(prefix="inscan-resources-") as folder:
            row = scenario(Path(folder), seed)
        said.print(
            f"{time.strftime('%H:%M:%S')} {row.fault}: {row.runs} runs, {row.results} results,"
            f" {row.failures} failures, {row.lost} lost, {row.duplicated} twice, {row.seconds:g} s"
        )
        for problem in row.figures.get("problems", []):
            said.print(f"  {problem}", style="red", markup=False)
        yield row


_SCENARIOS: dict[str, Scenario] = {
    one.__name__: one
    for one in (
        disks.spool_full,
        disks.results_full,
        disks.everything_full,
        disks.document_log_full,
        disks.no_inodes,
        disks.read_only,
        disks.read_only_at_start,
        disks.unmounted,
        disks.failing_disk,
        disks.no_open_files,
        workers.too_large,
        workers.killed_for_memory,
        workers.raising,
        workers.dying,
        workers.never_ready,
        workers.clock_jumps,
    )
}

if __name__ == "__main__":
    sys.exit(
        fault_row.main("resources", run, only=(str, "", "only scenarios with this in their name"))
    )
