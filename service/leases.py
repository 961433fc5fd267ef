"""Who works on what until when: leases, fences, and what happens to jobs whose workers fail or
vanish."""

import json
import random
import sqlite3
import time
from collections.abc import Callable

from inscan.service.journal_file import Database
from inscan.service.messages import InferenceJob

MAX_FAILURES = 4
"""Tries of a job whose failures may pass by themselves."""
MAX_CRASHED_WORKERS = 2
"""A job that took down so many different workers is quarantined."""
MAX_CRASHES = 4
"""The same where one and the same worker was lost every time."""
MAX_TRIES = 10
"""Failures and lost dispatches together: so often may the network come between a job and its workers."""
MAX_BACKOFF_S = 60.0


def end_job(c: sqlite3.Connection, key: str, code: str, reason: str) -> bool:
    """Make a job failed, unless it has ended already."""
    return bool(
        c.execute(
            "UPDATE jobs SET state = 'failed', worker = '', code = ?, reason = ?, updated = ?"
            " WHERE key = ? AND state NOT IN ('committed', 'failed')",
            (code, reason, time.time(), key),
        ).rowcount
    )


class Leases:
    """The broker's side of the journal.

    A lease holds until the clock passes its end or the machine reboots, whatever happens to the
    date. The fence of a job rises with every dispatch; all calls name the dispatch they mean and do
    nothing for one that is over.

    Parameters
    ----------
    clock : callable
        A monotonic clock, in seconds.
    boot : str
        Name of this boot: times of another one mean nothing.
    backoff_s : float
        First pause before a failed job is tried again; doubles with each failure, with jitter.
    """

    def __init__(
        self, file: Database, *, clock: Callable[[], float], boot: str, backoff_s: float
    ) -> None:
        self._file = file
        self._clock = clock
        self._boot = boot
        self._backoff_s = backoff_s

    def lease(self, worker: str, lease_s: float) -> tuple[InferenceJob, float] | None:
        """Give the oldest queued job to a worker: composites first, for which a plan waits; those that refine a result
        after all others.

        Returns
        -------
        (InferenceJob, float) or None
            The job with its new fence, and the seconds it had waited; None when nothing is due.
        """
        now = self._clock()
        with self._file.transaction() as c:
            row = c.execute(
                "SELECT key, job, fence, boot_id, since FROM jobs WHERE state = 'queued'"
                " AND (not_before <= ? OR boot_id != ?)"
                " ORDER BY coalesce(json_extract(job, '$.refines'), '') != '',"
                " coalesce(json_extract(job, '$.recipe'), '') != 'composite', seq LIMIT 1",
                (now, self._boot),
            ).fetchone()
            if row is None:
                return None
            key, job, fence, boot, since = row
            c.execute(
                "UPDATE jobs SET state = 'leased', fence = ?, worker = ?, boot_id = ?, lease_until "
                "= ?,"
                " updated = ? WHERE key = ?",
                (fence + 1, worker, self._boot, now + lease_s, time.time(), key),
            )
        # By the clock since boot, for the date may jump; across a reboot nobody knows.
        waited = max(0.0, now - since) if boot == self._boot and since else 0.0
        return InferenceJob.model_validate_json(job).model_copy(update={"fence": fence + 1}), waited

    def renew(self, key: str, fence: int, lease_s: float) -> bool:
        """Prolong a lease; False when that dispatch no longer holds it, so that its worker may
        stop."""
        with self._file.transaction() as c:
            return bool(
                c.execute(
                    "UPDATE jobs SET lease_until = ?, boot_id = ? WHERE key = ? AND fence = ? AND "
                    "state = 'leased'",
                    (self._clock() + lease_s, self._boot, key, fence),
                ).rowcount
            )

    def excuse(self, lease_s: float) -> int:
        """Let every lease hold for at least so long from now: their workers could not be heard; how many."""
        until = self._clock() + lease_s
        with self._file.transaction() as c:
            return c.execute(
                "UPDATE jobs SET lease_until = ?"
                " WHERE state = 'leased' AND boot_id = ? AND lease_until < ?",
                (until, self._boot, until),
            ).rowcount

    def release(self, key: str, fence: int) -> bool:
        """Put a job back that its worker hands back; counts as no failure."""
        with self._file.transaction() as c:
            return bool(
                c.execute(
                    "UPDATE jobs SET state = 'queued', worker = '', not_before = 0, since = ?, updated = ?"
                    " WHERE key = ? AND fence = ? AND state = 'leased'",
                    (self._clock(), time.time(), key, fence),
                ).rowcount
            )

    def release_workers(self, prefix: str) -> int:
        """Put back what workers of such names held: they are known to be gone through no fault of
        the job."""
        with self._file.transaction() as c:
            return c.execute(
                "UPDATE jobs SET state = 'queued', worker = '', not_before = 0, since = ?"
                " WHERE state = 'leased' AND substr(worker, 1, ?) = ?",
                (self._clock(), len(prefix), prefix),
            ).rowcount

    def expire(self) -> list[tuple[str, int]]:
        """End the leases whose time is over; each counts as a crash of its worker.

        Returns
        -------
        list of (key, fence)
            The dispatches that lost their lease.
        """
        rows = self._file.rows(
            "SELECT key, fence FROM jobs WHERE state = 'leased' AND boot_id = ? AND lease_until < "
            "?",
            (self._boot, self._clock()),
        )
        return [
            (key, fence)
            for key, fence in rows
            if self.crashed(key, fence, "its worker was not heard of again")
        ]

    def crashed(self, key: str, fence: int, reason: str) -> bool:
        """A worker was lost while it held the job: queue it again, or quarantine it."""
        with self._file.transaction() as c:
            row = c.execute(
                "SELECT worker, crashes, failures FROM jobs"
                " WHERE key = ? AND fence = ? AND state = 'leased'",
                (key, fence),
            ).fetchone()
            if row is None:
                return False
            crashes = [*json.loads(row[1]), row[0]]
            c.execute("UPDATE jobs SET crashes = ? WHERE key = ?", (json.dumps(crashes), key))
            lost = len(set(crashes))
            tried = len(crashes) + row[2] >= MAX_TRIES
            if lost >= MAX_CRASHED_WORKERS or len(crashes) >= MAX_CRASHES or tried:
                text = (
                    f"quarantined after {len(crashes)} lost dispatches on {lost} workers; "
                    f"the last: {reason}"
                )
                end_job(c, key, "quarantined", text)
            else:
                self._requeue(c, key, len(crashes), "crash", reason)
        return True

    def came_back(self, worker: str) -> int:
        """A worker that had not been heard of lives: its jobs did not kill it. How many that concerned.

        Each such loss counts as a failed try instead, so that a job that silences workers time and again ends as well.
        """
        with self._file.transaction() as c:
            rows = c.execute(
                "SELECT key, crashes FROM jobs WHERE state IN ('queued', 'leased') AND crashes != '[]'"
            ).fetchall()
            rows = [(key, json.loads(crashes)) for key, crashes in rows]
            rows = [(key, crashes) for key, crashes in rows if worker in crashes]
            for key, crashes in rows:
                left = [name for name in crashes if name != worker]
                c.execute(
                    "UPDATE jobs SET crashes = ?, failures = failures + ? WHERE key = ?",
                    (json.dumps(left), len(crashes) - len(left), key),
                )
        return len(rows)

    def retry(self, key: str, fence: int, code: str, reason: str) -> bool:
        """A try failed in a way that may pass: queue the job again after a pause, or give up."""
        with self._file.transaction() as c:
            row = c.execute(
                "SELECT failures FROM jobs WHERE key = ? AND fence = ? AND state = 'leased'",
                (key, fence),
            ).fetchone()
            if row is None:
                return False
            self._again_or_end(c, key, row[0] + 1, code, reason)
        return True

    def lost_result(self, key: str, code: str, reason: str) -> bool:
        """What a job had computed cannot be used: queue it again after a pause, or give up."""
        with self._file.transaction() as c:
            row = c.execute(
                "SELECT failures FROM jobs WHERE key = ? AND state = 'computed'", (key,)
            ).fetchone()
            if row is None:
                return False
            c.execute("UPDATE jobs SET result = NULL WHERE key = ?", (key,))
            self._again_or_end(c, key, row[0] + 1, code, reason)
        return True

    def postpone(self, key: str, fence: int, code: str, reason: str) -> bool:
        """The machine stood in the way, not the job (a full disk): queue it again after a pause, however often."""
        with self._file.transaction() as c:
            held = c.execute(
                "SELECT 1 FROM jobs WHERE key = ? AND fence = ? AND state = 'leased'", (key, fence)
            ).fetchone()
            if held is not None:
                self._requeue(c, key, 3, code, reason)
        return held is not None

    def refuse(self, key: str, fence: int, code: str, reason: str) -> bool:
        """A try failed in a way that will not pass: end the job, if this dispatch still holds
        it."""
        with self._file.transaction() as c:
            held = c.execute(
                "SELECT 1 FROM jobs WHERE key = ? AND fence = ? AND state = 'leased'", (key, fence)
            ).fetchone()
            return held is not None and end_job(c, key, code, reason)

    def _again_or_end(
        self, c: sqlite3.Connection, key: str, failures: int, code: str, reason: str
    ) -> None:
        c.execute("UPDATE jobs SET failures = ? WHERE key = ?", (failures, key))
        if failures >= MAX_FAILURES:
            end_job(c, key, code, f"gave up after {failures} tries; the last: {reason}")
        else:
            self._requeue(c, key, failures, code, reason)

    def _requeue(self, c: sqlite3.Connection, key: str, count: int, code: str, reason: str) -> None:
        # Jitter keeps jobs that failed together from coming back together.
        pause = min(MAX_BACKOFF_S, self._backoff_s * 2.0 ** (count - 1)) * random.uniform(0.5, 1.5)
        now = self._clock()
        c.execute(
            "UPDATE jobs SET state = 'queued', worker = '', not_before = ?, boot_id = ?, code = ?, "
            "reason = ?, since = ?,"
            " updated = ? WHERE key = ?",
            (now + pause, self._boot, code, reason, now, time.time(), key),
        )
