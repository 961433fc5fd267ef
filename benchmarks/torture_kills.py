"""Kill -9 at random moments, and count what became of every run: `python torture_kills.py --kills 520 --seed 1`.

While hundreds of maps and stacks are sent, processes are killed one after another, or all at once. What nobody starts
again by himself is started again. Then all is let end and counted, from the journal and from Tiled.
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fault_row
from fault_row import FaultRow
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from torture_setup import PHASES, Setup
from torture_trial import Trial

FEW = 20
"""With fewer kills there is one trial with all victims in turn."""

TRIALS: tuple[tuple[float, str, str, Setup], ...] = (
    (
        0.645,
        "kill -9 of a worker",
        "one of the service's own or of three others, often in the middle of a job",
        Setup(("worker",), gap_s=0.8, workers=3),
    ),
    (
        0.215,
        "kill -9 of a beamline host",
        "three processes that play documents at full speed; their logs are left to the next process",
        Setup(("host",), gap_s=0.8, plays=3),
    ),
    (
        0.032,
        "kill -9 of the service",
        "ingest, broker and writer are in it, its own worker ends with it; Tiled and two other"
        " workers go on; one in seven while it was just starting",
        Setup(("service",), gap_s=2.5, workers=2, foreign=True),
    ),
    (
        0.008,
        "kill -9 of the service and of its Tiled",
        "Tiled is its child and ends with it",
        Setup(("service",), gap_s=4.0),
    ),
    (
        0.01,
        "kill -9 of Tiled, child of the service",
        "the service starts it again",
        Setup(("tiled",), gap_s=2.0),
    ),
    (
        0.01,
        "kill -9 of a Tiled of its own",
        "started again within two seconds, at the same address",
        Setup(("tiled",), gap_s=2.0, foreign=True),
    ),
    (
        0.012,
        "kill -9 of everything at once",
        "service, workers, Tiled and hosts, in one go",
        Setup(("all",), gap_s=4.0),
    ),
    (
        0.024,
        "kill -9 of any of them",
        "worker, host, service, Tiled, or all, in random order",
        Setup(
            ("worker", "host", "service", "tiled", "worker", "host", "all"),
            gap_s=2.0,
            engines=1,
            foreign=True,
        ),
    ),
    (
        0.016,
        "kill -9 of a RunEngine's process",
        "step scans of the simulated beamline (sim_xrf), in the middle of a plan",
        Setup(("host",), gap_s=3.0, plays=0, engines=2),
    ),
    (
        0.016,
        "kill -9 of a worker with torch",
        "the real recipes (n2n, subspace); results equal those of undisturbed workers",
        Setup(("worker",), gap_s=4.0, real=True),
    ),
)
SMALL = Setup(("worker", "host", "service", "worker"), gap_s=0.2, plays=1, foreign=True)


def run(seed: int, kills: int, folder: str, only: str) -> Iterator[FaultRow]:
    """Do the trials, one row each."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True)) as said:
        for number, (times, fault, how, setup) in enumerate(_plan(kills)):
            if only not in fault:
                continue
            bar = said.add_task(fault, total=times)
            place = Path(tempfile.mkdtemp(prefix="inscan-kills-", dir=folder or None))
            trial = Trial(
                place, setup, times, 1000 * seed + number, lambda _, b=bar: said.advance(b)
            )
            row = _row(trial, fault, how)
            for problem in row.figures["problems"]:
                said.console.print(f"  {problem}", style="red", markup=False, soft_wrap=True)
            if row.figures["problems"]:
                said.console.print(f"  the files of that trial are kept in {place}")
            else:
                shutil.rmtree(place)
            yield row


def _plan(kills: int) -> list[tuple[int, str, str, Setup]]:
    if kills < FEW:
        victims = tuple((SMALL.victims * kills)[:kills])
        words = "kill -9 of worker, host and service in turn"
        return [(kills, words, "beside a Tiled of its own", replace(SMALL, victims=victims))]
    return [
        (max(1, round(share * kills)), fault, how, setup) for share, fault, how, setup in TRIALS
    ]


def _row(trial: Trial, fault: str, how: str) -> FaultRow:
    """Do a trial, and say how it went."""
    started = time.monotonic()
    trial.run()
    ends, hits = trial.ends, trial.hits()
    problems = [*ends.problems, *trial.problems, *(f"left behind: {one}" for one in trial.left)]
    figures = {
        "longest_pause_s": round(trial.longest_pause(), 1),
        "phases": {phase: hits[phase] for phase in PHASES},
        "quarantined": trial.quarantined(),
        "cut_short": ends.runs - len(trial.stopped),
        "checked_at_first_sight": trial.watch.checked,
        "values_known": trial.watch.exact,
        "plans_hurt": len(trial.problems),
        "left_behind": len(trial.left),
        "service_starts": trial.rig.starts,
        "seed": trial.seed,
        "problems": problems,
    }
    met = ", ".join(f"{phase} {hits[phase]}" for phase in PHASES)
    remarks = (
        f"met {met}; {figures['quarantined']} jobs quarantined, {figures['cut_short']} runs cut short;"
        f" longest pause of results {figures['longest_pause_s']:.0f} s; {trial.watch.checked} results"
        f" whole when first seen, {trial.watch.exact} known to the last bit"
    )
    return FaultRow(
        fault=fault,
        how=how,
        times=len(trial.log),
        runs=ends.runs,
        results=ends.results,
        failures=ends.failures,
        lost=ends.lost,
        duplicated=ends.duplicated,
        seconds=round(time.monotonic() - started, 1),
        remarks=remarks,
        figures=figures,
    )


def main() -> int:
    """Exit status 1 when anything was lost, came twice, hurt a plan or was left behind."""
    troubles: list[str] = []

    def noting(**given: Any) -> Iterator[FaultRow]:
        for row in run(**given):
            troubles.extend(row.figures["problems"])
            yield row

    status = fault_row.main(
        "kills",
        noting,
        kills=(int, 520, "how many altogether"),
        folder=(str, "", "where the trials' files go, by default where the system's do"),
        only=(str, "", "only trials whose name has this in it"),
    )
    return status or bool(troubles)


if __name__ == "__main__":
    sys.exit(main())
