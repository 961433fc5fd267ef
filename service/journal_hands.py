"""The journal's part on what people do with jobs: look one up, try a failed one again, take one out of the queue."""

import json
import sqlite3
import time
from collections.abc import Callable
from typing import Any

from inscan.service import journal_rows, leases
from inscan.service.journal_file import Database
from inscan.service.messages import InferenceJob


class HandsJournal:
    """What people do with jobs; a part of `inscan.service.journal.Journal`, safe to use from any thread.

    Parameters
    ----------
    file : Database
    boot : str
        Name of this boot.
    clock : callable
        Seconds since boot.
    """

    _file: Database
    _boot: str
    _clock: Callable[[], float]

    def find_jobs(self, wanted: str) -> list[dict[str, Any]]:
        """Jobs that a person means: by the beginning of a key or of a run's uid, or by a scan number; oldest first."""
        number = int(wanted) if wanted.isdigit() and len(wanted) < 16 else None
        rows = self._file.rows(
            f"{journal_rows.JOBS} WHERE substr(jobs.key, 1, ?) = ? OR substr(jobs.run_uid, 1, ?) = ?"  # noqa: S608 - a query of ours
            " OR runs.scan_id = ? ORDER BY seq",
            (len(wanted), wanted, len(wanted), wanted, number),
        )
        found = [journal_rows.job(row) for row in rows]
        scans = [one for one in found if number is not None and one["scan_id"] == number]
        return scans or found

    def retry(self, key: str, who: str, reason: str = "") -> bool:
        """Queue a failed job again, with all its tries; False when it has not failed.

        Its fence goes on rising, and a result takes the place of the failure in Tiled.
        """
        now = time.time()
        with self._file.transaction() as c:
            row = c.execute(
                "SELECT code, reason FROM jobs WHERE key = ? AND state = 'failed'", (key,)
            ).fetchone()
            if row is None:
                return False
            c.execute(
                "UPDATE jobs SET state = 'queued', worker = '', failures = 0, crashes = '[]', not_before = 0,"
                " result = NULL, result_uid = NULL, code = '', reason = '', recorded = 0, boot_id = ?, since = ?,"
                " updated = ? WHERE key = ?",
                (self._boot, self._clock(), now, key),
            )
            text = f"{reason}; it had failed: {row[0]}: {row[1]}".lstrip("; ")
            _remember(c, key, "retry", who, text)
        return True

    def quarantine(self, key: str, who: str, reason: str) -> bool:
        """Take a job out of the queue, also one that a worker has; False when it has a result or has ended."""
        with self._file.transaction() as c:
            row = c.execute(
                "SELECT 1 FROM jobs WHERE key = ? AND state IN ('queued', 'leased')", (key,)
            ).fetchone()
            if row is None:
                return False
            leases.end_job(c, key, "quarantined", f"taken out of the queue by {who}: {reason}")
            _remember(c, key, "quarantine", who, reason)
        return True

    def history(self) -> dict[str, list[dict[str, Any]]]:
        """What people did, by key, each with `what`, `who`, `reason` and `at`."""
        found: dict[str, list[dict[str, Any]]] = {}
        for key, what, who, reason, at in self._file.rows(
            "SELECT key, what, who, reason, at FROM job_history ORDER BY rowid"
        ):
            step = {"what": what, "who": who, "reason": reason, "at": at}
            found.setdefault(key, []).append(step)
        return found

    def runs_to_retry(self, most: int = 200) -> set[str]:
        """The latest runs with a failed job, which could be tried again if its arrays are kept."""
        rows = self._file.rows(
            "SELECT run_uid FROM jobs WHERE state = 'failed' AND thin = 0 ORDER BY seq DESC LIMIT ?",
            (most,),
        )
        return {run_uid for (run_uid,) in rows}

    def unrecorded(self) -> list[dict[str, Any]]:
        """Failed jobs whose failure is not known to be in Tiled, oldest first."""
        rows = self._file.rows(
            f"{journal_rows.JOBS} WHERE jobs.state = 'failed' AND jobs.recorded = 0 ORDER BY seq"  # noqa: S608 - a query of ours
        )
        return [journal_rows.job(row) for row in rows]

    def recorded(self, key: str, updated: float) -> None:
        """The failure of a job, as it was when `updated` was said of it, is in Tiled (or Tiled will not have it)."""
        with self._file.transaction() as c:
            c.execute(
                "UPDATE jobs SET recorded = 1 WHERE key = ? AND state = 'failed' AND updated = ?",
                (key, updated),
            )

    def restate(self, job: InferenceJob) -> bool:
        """Say anew what is asked for by a job that waits for a worker; False when none such waits."""
        with self._file.transaction() as c:
            return bool(
                c.execute(
                    "UPDATE jobs SET job = ?, run_uid = ? WHERE key = ? AND state = 'queued'",
                    (job.model_dump_json(), job.run_uid, job.key),
                ).rowcount
            )

    def is_synced(self, key: str) -> bool:
        """Whether the arrays of a job are known to be on the disk."""
        return bool(self._file.rows("SELECT 1 FROM jobs WHERE key = ? AND synced = 1", (key,)))

    def lacks_request(self, key: str) -> bool:
        """Whether of a job only its end is known, or its particulars were thinned out."""
        rows = self._file.rows("SELECT job, thin FROM jobs WHERE key = ?", (key,))
        return bool(rows) and (bool(rows[0][1]) or bool(json.loads(rows[0][0]).get("lost")))


def _remember(c: sqlite3.Connection, key: str, what: str, who: str, reason: str) -> None:
    c.execute(
        "INSERT INTO job_history VALUES (?, ?, ?, ?, ?)", (key, what, who, reason, time.time())
    )
