"""The end of a trial: every run against the journal, Tiled, the values it must have and the kills there were."""

from collections.abc import Iterable

import psutil
from torture_check import Ends, Expected, misfit
from torture_rig import Rig, until

from inscan.service.janitor import tidy_results
from inscan.service.journal import Journal

_LEFT = {
    "live": ("*",),
    "log": ("*",),
    "results": (".*.tmp", ".*.put", "*.[0-9]*.h5"),
}


def count(
    rig: Rig, wanted: Iterable[str], whole: set[str], expected: Expected, gone: set[int]
) -> Ends:
    """Count how runs ended, and what is not as it should be besides.

    Parameters
    ----------
    rig : Rig
        With a service that runs.
    wanted : iterable of str
        Runs whose start had reached a log.
    whole : set of str
        Runs whose stop had been recorded: nothing may be missing of them.
    expected : callable
        Values of a run's result.
    gone : set of int
        Processes that were killed.
    """
    ends = rig.ends(wanted)
    tiled = rig.tiled()
    try:
        for node in tiled.nodes():
            if node.status != "success":
                continue
            try:
                # All its arrays were read when it was first seen.
                right, values = expected(node.raw_uid), tiled.values(node.uid)
                if right is not None and right.size == values.size:
                    values = values.reshape(right.shape)
                wrong = misfit(node, {"values": values}, right)
            except ValueError as error:
                wrong = str(error)
            if not wrong and node.raw_uid in whole and not node.complete:
                wrong = "its stop was recorded, the result lacks something"
            if wrong:
                ends.lose(f"result {node.uid} of run {node.raw_uid}: {wrong}")
    finally:
        tiled.close()
    _explain(ends, rig, whole, {str(pid) for pid in gone})
    return ends


def _explain(ends: Ends, rig: Rig, whole: set[str], gone: set[str]) -> None:
    """A failure is as it should be where two workers of the job were killed, or the run's host was."""
    runs, jobs = rig.journal()
    for job in jobs:
        pids = {name.rsplit("-", 2)[1] for name in job.lost_on}
        by_kills = job.code == "quarantined" and len(pids) > 1 and pids <= gone
        if job.state == "failed" and not by_kills:
            ends.lose(
                f"job {job.key[:12]} failed for no kill: {job.code}, {job.reason} {job.lost_on}"
            )
    with_job = {job.run_uid for job in jobs}
    for run in runs:
        if run.run_uid in whole and run.run_uid not in with_job:
            ends.lose(f"run {run.run_uid} was whole and is {run.state}: {run.reason}")


def spool_to_clean(rig: Rig) -> set[str]:
    """Runs whose arrays are still there; those of failed jobs stay, so that they can be tried again."""
    failed = {row[0] for row in rig.rows("SELECT run_uid FROM jobs WHERE state = 'failed'")}
    return {path.name for path in (rig.state / "spool").iterdir()} - failed


def left_behind(rig: Rig) -> list[str]:
    """Files that should be gone when all has ended, and processes that still run.

    What killed workers left is cleaned up at each start of the service, so that is done first.
    """
    journal = Journal(rig.state / "journal.db")
    tidy_results(journal, rig.state / "results")
    journal.close()
    found = [
        str(path.relative_to(rig.state))
        for folder, patterns in _LEFT.items()
        for pattern in patterns
        for path in (rig.state / folder).glob(pattern)
    ]
    found += [f"spool/{uid}" for uid in spool_to_clean(rig)]
    own = psutil.Process().pid

    def running() -> list[str]:
        lines = {
            one.pid: " ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"])
        }
        return [
            f"{pid} {line}" for pid, line in lines.items() if str(rig.folder) in line and pid != own
        ]

    try:
        until(lambda: not running(), "all processes are gone", 15.0)
    except TimeoutError:
        found += running()
    return found
