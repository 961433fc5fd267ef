"""What may be deleted, and when: spool and snapshots of runs whose results are safe."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from inscan.service.journal import Journal
from inscan.service.spool import Spool

_OLD_S = 86400.0
_log = logging.getLogger(__name__)


def sweep(
    journal: Journal,
    spool: Spool,
    live: Path,
    *,
    keep_spool: bool,
    needed: Callable[[str], bool] = lambda run_uid: False,
) -> list[str]:
    """Delete what finished runs leave behind.

    A run is finished when its documents are released and no job of it is open: its results are in Tiled, or its failure
    is recorded. What is needed longer, for rescans or to try a failed job again, may take up half of the spool, the
    newest runs are kept; and it makes room for runs that have none.

    Parameters
    ----------
    live : Path
        Folder of snapshot results, `<run_uid>.h5`; a final supersedes them.
    keep_spool : bool
        Keep the assembled arrays.
    needed : callable
        Whether the arrays of a finished run are still needed.

    Returns
    -------
    list of str
        Runs whose arrays were deleted.
    """
    deleted = []
    finished = [] if keep_spool else [one for one in spool.runs() if _finished(journal, one)]
    failed = journal.runs_to_retry()
    kept = {one: spool.size(one) for one in finished if one in failed or needed(one)}
    room = spool.budget // 2
    missing = spool.take_shortage()
    if missing:
        room = min(room, sum(kept.values()) - missing)
    for run_uid in sorted(kept, key=lambda one: _created(journal, one), reverse=True):
        room -= kept[run_uid]
        if room < 0:
            _log.warning("the arrays of run %s are given up: spool_budget", run_uid)
            del kept[run_uid]
    for run_uid in finished:
        if run_uid not in kept:
            spool.delete(run_uid)
            deleted.append(run_uid)
    for path in live.glob("*.h5"):
        if _finished(journal, path.stem):
            path.unlink()
    if deleted:
        _log.debug("spool of %d finished runs deleted", len(deleted))
    return deleted


def _created(journal: Journal, run_uid: str) -> float:
    run = journal.run(run_uid)
    return 0.0 if run is None else run["created"]


def _finished(journal: Journal, run_uid: str) -> bool:
    return journal.released(run_uid) and journal.outcome(run_uid, settled=True) is not None


def look_after_journal(
    journal: Journal, results: Path, *, budget: int, needed: Callable[[str], bool]
) -> None:
    """Keep the journal small, and once a day copied; then look through the results as well.

    Parameters
    ----------
    budget : int
        Bytes that its rows may take.
    needed : callable
        Whether the particulars of an ended run are still needed.
    """
    thinned = journal.thin(budget, needed)
    if thinned:
        _log.info("the journal is over its budget: %d old jobs were thinned out", thinned)
    if journal.keep_copy():
        tidy_dispatches(journal, results)


def tidy_results(journal: Journal, results: Path) -> None:
    """Delete what a killed service or worker left half done among the results.

    Temporaries, and files of dispatches (`KEY.FENCE.h5`) whose job has a result or has failed; never an accepted
    result. Only while no worker writes.
    """
    for path in results.glob(".*.tmp"):
        path.unlink(missing_ok=True)
    for path in results.glob(".*.put"):
        path.unlink(missing_ok=True)
    tidy_dispatches(journal, results)


def tidy_dispatches(journal: Journal, results: Path) -> None:
    """Delete files of dispatches that nobody waits for any more, and what killed offline processing left a day ago."""
    for path in results.glob("*.*.h5"):
        key, fence, _ = path.name.split(".", 2)
        if fence.isdigit() and not journal.awaits_result(key, int(fence)):
            path.unlink(missing_ok=True)
        elif fence.startswith("offline-") and _old(path):
            path.unlink(missing_ok=True)


def _old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _OLD_S
    except FileNotFoundError:
        return False
