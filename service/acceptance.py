"""How a worker's result becomes the result of its job: one name, one record, the first one
stands."""

import logging
import os
from pathlib import Path
from typing import Literal

from inscan.service.journal import Journal, Taken
from inscan.service.messages import Fail, InferenceResult
from inscan.service.result_file import sync_path

OUR_TROUBLE = ("machine",)
"""Failures that are the machine's and not the job's: a full disk lasts longer than any number of tries, and then it has
room again."""
_log = logging.getLogger(__name__)


def fenced_path(results: Path, key: str, fence: int) -> Path:
    """Where a worker writes: a file for each dispatch, so that one that was given up cannot touch
    what was accepted."""
    return results / f"{key}.{fence}.h5"


def final_path(results: Path, key: str) -> Path:
    """Where the accepted result lies."""
    return results / f"{key}.h5"


def accept(
    journal: Journal, results: Path, result: InferenceResult
) -> Taken | Literal["missing", "misplaced"]:
    """Take over a result that a worker says it has written.

    Parameters
    ----------
    results : Path
        Folder of result files.

    Returns
    -------
    str
        What `Journal.computed` says; `missing` when there is no such file; `misplaced` when the
        worker names another one than it was given, which is neither read nor removed.
    """
    fenced = fenced_path(results, result.key, result.fence)
    if result.result_path != str(fenced):
        return "misplaced"
    path = final_path(results, result.key)
    if not fenced.is_file():
        known = journal.job(result.key)
        put_away = known is not None and known["state"] in ("computed", "committed")
        return "again" if put_away else "missing"
    if journal.awaits_result(result.key):
        # The name comes before the record: after a crash between the two the worker tells us again.
        path.unlink(missing_ok=True)
        os.link(fenced, path)
        sync_path(results)
    taken = journal.computed(
        result.key, result.fence, result.model_copy(update={"result_path": str(path)})
    )
    fenced.unlink()
    if taken == "differs":
        _log.warning("job %s: a second result differs; the first stands", result.key[:12])
    return taken


def settle_failure(journal: Journal, fail: Fail) -> bool:
    """Record what a worker says went wrong; False when that dispatch no longer held the job, and nothing changed."""
    leases, ticket = journal.leases, (fail.key, fail.fence)
    if fail.code in ("drained", "cancelled"):
        # Where we cancelled a final ourselves, its record has moved on and this changes nothing.
        return leases.release(*ticket)
    if fail.code == "stuck":
        return leases.crashed(*ticket, "its worker had to be ended")
    if fail.code in OUR_TROUBLE:
        return leases.postpone(*ticket, fail.code, fail.message)
    if fail.retryable:
        return leases.retry(*ticket, fail.code, fail.message)
    return leases.refuse(*ticket, fail.code, fail.message)
