"""What the tortures of resources share: a row, and what must not be in it."""

from typing import Any

from fault_row import FaultRow
from tiled_bench import Bench
from torture_check import Ends


def row_of(
    bench: Bench, fault: str, how: str, times: int, ends: Ends, remarks: str = "", **figures: Any
) -> FaultRow:
    """A row of the table, with what went wrong among its figures."""
    counted = (ends.runs, ends.results, ends.failures, ends.lost, ends.duplicated)
    figures = {**figures, "problems": ends.problems[:20]}
    return FaultRow(fault, how, times, *counted, bench.seconds, remarks, figures)


def no_failure(bench: Bench, ends: Ends) -> None:
    """What only had to wait must end as a result."""
    rows = bench.rig.rows("SELECT run_uid, code, reason FROM jobs WHERE state = 'failed'")
    for uid, code, reason in rows:
        ends.lose(f"run {uid} ended as a failure: {code}, {reason}")
    for uid, reason in bench.rig.rows("SELECT run_uid, reason FROM runs WHERE state = 'failed'"):
        ends.lose(f"run {uid} failed: {reason}")


def ended(bench: Bench, uids: list[str]) -> list[str]:
    """Those of the runs that have ended, one way or the other."""
    runs, jobs = bench.rig.journal()
    waiting = {job.run_uid for job in jobs if job.state not in ("committed", "failed")}
    ended = {run.run_uid for run in runs if run.state != "open"} - waiting
    return [uid for uid in uids if uid in ended]
