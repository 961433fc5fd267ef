"""How a worker's result becomes the result of its job: one name, one record, the first one
stands."""

import json
import logging
import os
from pathlib import Path
from typing import Any, Literal

import h5py

from inscan.service.journal import Journal, Taken
from inscan.service.messages import Fail, InferenceJob, InferenceResult
from inscan.service.result_file import ResultFileError, sync_path
from inscan.service.result_view import digest_of

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
    if journal.awaits_result(result.key, result.fence):
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


def adopt(journal: Journal, results: Path, job: InferenceJob) -> bool:
    """Take the result that lies there already for a job that has just been queued.

    A journal that was lost, or that is a copy of yesterday, does not know of it. Tiled may, and reads the very file:
    computed once more and put in its place, a result that people have seen would become another one.

    Returns
    -------
    bool
        Whether there was one that can be used.
    """
    path = final_path(results, job.key)
    if not path.exists():
        return False
    try:
        with h5py.File(path, "r") as file:
            report, regions, meta = (_json(file, name) for name in ("report", "regions", "meta"))
        if meta.get("key") != job.key:
            raise ResultFileError(f"{path} is the result of another job")
        result = InferenceResult(
            key=job.key,
            fence=0,
            result_path=str(path),
            digest=digest_of(path),
            report=report,
            regions=regions,
            timings={},
        )
    except (OSError, KeyError, ValueError, AttributeError) as error:
        _log.warning("job %s: its result of before cannot be used: %s", job.key[:12], error)
        return False
    if not journal.adopted(result):
        return False
    _log.info("job %s: its result is there already", job.key[:12])
    return True


def _json(file: h5py.File, name: str) -> Any:
    stored = file[f"entry/{name}"]
    if not isinstance(stored, h5py.Dataset):
        raise KeyError(name)
    return json.loads(str(stored.asstr()[()]))


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
