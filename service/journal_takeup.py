"""What a spool folder tells of its jobs, for a journal that has lost them.

Once the arrays of a job are on the disk its documents may be released, and from then on only the journal knows what is
to be done with them. So the request lies beside the arrays as well, written when they are safe.
"""

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from inscan.service.acceptance import adopt, final_path
from inscan.service.digest import digest_arrays
from inscan.service.journal import Journal
from inscan.service.messages import InferenceJob
from inscan.service.result_file import sync_path
from inscan.service.spool import Spool, SpoolError, load

_REQUEST = "job.{key}.json"
_ENDED = "ended.json"
_MOST_BYTES = 64 << 20
_STALE_S = 7 * 86400.0
_log = logging.getLogger(__name__)


def write_request(folder: Path, job: InferenceJob, run: Mapping[str, Any]) -> None:
    """Lay a job beside its arrays, which are on the disk.

    Parameters
    ----------
    job : InferenceJob
        With the digest of its input.
    run : mapping
        As `Journal.run`: start document, scan number and profile.
    """
    about = {name: run.get(name) for name in ("scan_id", "profile", "start")}
    _write(
        folder / _REQUEST.format(key=job.key[:16]),
        {"job": job.model_dump(mode="json"), "run": about},
    )


def write_end(folder: Path, reason: str) -> None:
    """Note that all jobs of the run are there: its documents may go."""
    _write(folder / _ENDED, {"reason": reason})


def _write(path: Path, content: Mapping[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, default=str), encoding="utf-8")
    sync_path(temporary)
    os.replace(temporary, path)
    sync_path(path.parent)


def take_up(journal: Journal, spool: Spool, results: Path, *, repaired: bool = False) -> list[str]:
    """Queue the jobs of the spool that the journal does not know.

    Parameters
    ----------
    repaired : bool
        The journal was damaged: what it says of waiting jobs may have a letter wrong, and the spool is believed.

    Returns
    -------
    list of str
        Their keys.
    """
    taken = []
    for run_uid in spool.runs():
        folder = spool.root / run_uid
        requests = sorted(folder.glob(_REQUEST.format(key="*")))
        for path in requests:
            try:
                key = _take(journal, folder, path, results, repaired)
            except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
                _log.warning("%s is of no use: %s", path, error)
                continue
            if key:
                taken.append(key)
        run = journal.run(run_uid)
        if run is not None and run["state"] == "open" and requests and (folder / _ENDED).exists():
            journal.finish_run(run_uid, "complete", _reason(folder))
        elif run is None and not requests and _stale(folder):
            _log.warning("spool folder %s belongs to no run that is known; it is removed", folder)
            spool.delete(run_uid)
    if taken:
        _log.error("%d jobs that the journal had lost are taken from the spool", len(taken))
    return taken


def adopt_results(journal: Journal, results: Path) -> int:
    """After a repair: take the result files of jobs that are queued as if there were none."""
    queued = [journal.request(one["key"]) for one in journal.jobs("queued")]
    return sum(adopt(journal, results, job) for job in queued if job is not None)


def _take(journal: Journal, folder: Path, path: Path, results: Path, repaired: bool) -> str:
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path.stat().st_size} bytes are no request")
    content = json.loads(path.read_text(encoding="utf-8"))
    job = InferenceJob.model_validate(content["job"])
    if job.run_uid != folder.name:
        raise ValueError(f"it is of run {job.run_uid!r}")
    # The state directory may have been moved since.
    job = job.model_copy(
        update={"spool": str(folder), "result_path": str(final_path(results, job.key))}
    )
    if journal.job(job.key) is not None:
        if repaired:
            journal.restate(job)
        return ""
    digest = digest_arrays(load(folder, job.arrays))
    if job.input_digest and digest != job.input_digest:
        raise SpoolError(f"its arrays hash to {digest}, not to {job.input_digest}")
    about = content["run"]
    scan_id = about["scan_id"]
    journal.record_run(
        job.run_uid,
        scan_id if isinstance(scan_id, int) else None,
        str(about["profile"] or ""),
        dict(about["start"] or {}),
    )
    if not journal.add_job(job):
        return ""
    journal.synced(job.key, digest)
    adopt(journal, results, job)
    return job.key


def _reason(folder: Path) -> str:
    try:
        return str(json.loads((folder / _ENDED).read_text(encoding="utf-8"))["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _stale(folder: Path) -> bool:
    """Whether nothing was written there for a week: neither a run under way nor documents to come need it."""
    times = [one.stat().st_mtime for one in (folder, *folder.iterdir())]
    return time.time() - max(times) > _STALE_S
