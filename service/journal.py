"""The one queue: runs, jobs with leases and fences, and rescan proposals, in SQLite."""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from inscan.callbacks.run_meta import plain
from inscan.service import host, journal_rows, leases
from inscan.service.journal_composites import CompositeJournal
from inscan.service.journal_file import JournalError
from inscan.service.journal_hands import HandsJournal
from inscan.service.journal_proposals import ProposalJournal
from inscan.service.journal_repair import open_journal
from inscan.service.journal_upkeep import UpkeepJournal
from inscan.service.messages import InferenceJob, InferenceResult

__all__ = ["Journal", "JournalError"]

Taken = Literal["accepted", "again", "same", "differs", "late", "unknown"]
_log = logging.getLogger(__name__)


class Journal(ProposalJournal, CompositeJournal, HandsJournal, UpkeepJournal):
    """Durable state of the service, safe to use from any thread.

    A job goes queued -> leased -> computed -> committed, or ends as failed. Committed never changes; failed only
    when a person has it tried again. A damaged file is moved aside, and what can be read of it goes into a new one.

    Attributes
    ----------
    leases : Leases
        The broker's side: who works on what until when.

    Parameters
    ----------
    path : Path
        The SQLite file; made when missing.
    backoff_s : float
        First pause before a failed job is tried again; doubles with each failure, with jitter.
    clock, boot_id
        The monotonic clock in seconds and the name of this boot.

    Raises
    ------
    JournalError
        When the file is of a newer version, cannot be written, or is damaged and there is no room to repair it.
    """

    def __init__(
        self,
        path: Path,
        *,
        backoff_s: float = 1.0,
        clock: Callable[[], float] = host.boottime,
        boot_id: str | None = None,
    ) -> None:
        self._boot = host.boot_id() if boot_id is None else boot_id
        self._clock = clock
        super().__init__(open_journal(path))
        self.leases = leases.Leases(self._file, clock=clock, boot=self._boot, backoff_s=backoff_s)
        self._after_boot()

    def close(self) -> None:
        self._file.close()

    def _after_boot(self) -> None:
        with self._file.transaction() as c:
            known = c.execute("SELECT id FROM boot").fetchone()
            if known is not None and known[0] == self._boot:
                return
            c.execute("DELETE FROM boot")
            c.execute("INSERT INTO boot VALUES (?)", (self._boot,))
            # Arrays that were never synced may be torn by the power cut. Their documents were never
            # released, so the runs are assembled again and these jobs come back.
            torn = c.execute(
                "DELETE FROM jobs WHERE synced = 0 AND state NOT IN ('committed', 'failed') "
                "RETURNING run_uid"
            ).fetchall()
            c.executemany("UPDATE runs SET state = 'open' WHERE run_uid = ?", torn)
            c.execute(
                "UPDATE jobs SET state = 'queued', worker = '', since = 0 WHERE state = 'leased'"
            )
        if torn:
            _log.warning(
                "%d jobs were not synced before the reboot and wait for their documents", len(torn)
            )

    # Runs

    def record_run(
        self, run_uid: str, scan_id: int | None, profile: str, start: dict[str, Any]
    ) -> bool:
        """Note that a run began; False when it was known already. One given up as incomplete is
        open again."""
        now = time.time()
        with self._file.transaction() as c:
            c.execute(
                "UPDATE runs SET state = 'open', reason = '', updated = ?"
                " WHERE run_uid = ? AND state = 'incomplete'",
                (now, run_uid),
            )
            return bool(
                c.execute(
                    "INSERT OR IGNORE INTO runs VALUES (?, ?, ?, ?, 'open', '', ?, ?)",
                    (run_uid, scan_id, profile, json.dumps(plain(start)), now, now),
                ).rowcount
            )

    def finish_run(self, run_uid: str, state: str, reason: str = "") -> None:
        """Note how a run ended: the first word stands, except that `incomplete` is provisional.

        Parameters
        ----------
        state : str
            `complete`, `incomplete`, `failed` or `passed_by`.
        reason : str
            In words, for people.
        """
        now = time.time()
        with self._file.transaction() as c:
            c.execute(
                "INSERT INTO runs VALUES (?, NULL, '', '{}', ?, ?, ?, ?)"
                " ON CONFLICT (run_uid) DO UPDATE SET state = excluded.state,"
                " reason = excluded.reason, updated = excluded.updated"
                " WHERE runs.state IN ('open', 'incomplete')",
                (run_uid, state, reason, now, now),
            )

    def run(self, run_uid: str) -> dict[str, Any] | None:
        """One run with its start document, or None."""
        rows = self._file.rows(f"{journal_rows.RUNS} WHERE run_uid = ?", (run_uid,))
        return journal_rows.run(rows[0]) if rows else None

    def runs(self, state: str | None = None, limit: int = 200) -> list[dict[str, Any]]:
        """The latest runs, newest first."""
        where, values = ("WHERE state = ?", (state, limit)) if state else ("", (limit,))
        rows = self._file.rows(f"{journal_rows.RUNS} {where} ORDER BY created DESC LIMIT ?", values)
        return [journal_rows.run(row) for row in rows]

    def released(self, run_uid: str) -> bool:
        """Whether the documents of a run may go: it has ended, and what was made of it is on
        disk."""
        run = self._file.rows("SELECT state FROM runs WHERE run_uid = ?", (run_uid,))
        unsynced = self._file.rows(
            "SELECT 1 FROM jobs WHERE run_uid = ? AND synced = 0", (run_uid,)
        )
        return bool(run) and run[0][0] not in ("open", "incomplete") and not unsynced

    def outcome(self, run_uid: str, *, settled: bool = False) -> dict[str, Any] | None:
        """What became of a run, or None while that is open.

        Parameters
        ----------
        settled : bool
            Only once all its jobs have ended; by default it is an outcome when each of its maps or stacks has its first
            result, which another may supersede.

        Returns
        -------
        dict or None
            `run`, `status` (done, failed or passed_by; failed as well when only some of several maps or stacks have a
            result), `result_uid` and `verdict` of the latest result of the first map or stack that has one, `reason`,
            `results` (one entry for each job) and `proposals`; `composite` for one: `layers`, `sigma`, `text`.
        """
        run = self.run(run_uid)
        if run is None or run["state"] == "open":
            return None
        jobs = self.jobs(run_uid=run_uid)
        outcome = journal_rows.outcome(run, jobs, self.proposals(run_uid), settled)
        if outcome is not None and run["start"].get("purpose") == "composite":
            told = [self.report(one["key"]).get("composite") for one in jobs]
            outcome["composite"] = next(
                (one for one in told if one), {"layers": [], "text": outcome["reason"]}
            )
        return outcome

    # Jobs

    def add_job(self, job: InferenceJob) -> bool:
        """Queue a final; False when its key is known, whatever became of it."""
        with self._file.transaction() as c:
            return journal_rows.add_job(c, job, self._boot, self._clock())

    def synced(self, key: str, input_digest: str) -> None:
        """Note that a job's arrays are on disk, with their digest; only then may its result be
        committed."""
        with self._file.transaction() as c:
            row = c.execute("SELECT job FROM jobs WHERE key = ? AND synced = 0", (key,)).fetchone()
            if row is not None:
                job = InferenceJob.model_validate_json(row[0])
                job = job.model_copy(update={"input_digest": input_digest})
                c.execute(
                    "UPDATE jobs SET synced = 1, job = ? WHERE key = ?",
                    (job.model_dump_json(), key),
                )

    def unsynced(self) -> list[InferenceJob]:
        """Jobs whose arrays were not known to be on disk when the service last stopped."""
        rows = self._file.rows(
            "SELECT job FROM jobs WHERE synced = 0 AND state IN ('queued', 'leased', 'computed')"
        )
        return [InferenceJob.model_validate_json(row[0]) for row in rows]

    def leased(self, key: str, fence: int, worker: str | None = None) -> InferenceJob | None:
        """The job of a dispatch, if that dispatch still holds it, and was this worker's where one is named."""
        rows = self._file.rows(
            "SELECT job FROM jobs WHERE key = ? AND fence = ? AND state = 'leased'"
            " AND (? IS NULL OR worker = ?)",
            (key, fence, worker, worker),
        )
        if not rows:
            return None
        return InferenceJob.model_validate_json(rows[0][0]).model_copy(update={"fence": fence})

    def request(self, key: str) -> InferenceJob | None:
        """A job as it was asked for (less what was thinned out), or None when its key, or all but its end, is not
        known."""
        rows = self._file.rows(
            "SELECT job FROM jobs WHERE key = ? AND json_extract(job, '$.lost') IS NULL", (key,)
        )
        return InferenceJob.model_validate_json(rows[0][0]) if rows else None

    def fail(self, key: str, code: str, reason: str) -> bool:
        """End a job as failed, for good; False when it had ended already."""
        with self._file.transaction() as c:
            return leases.end_job(c, key, code, reason)

    def awaits_result(self, key: str, fence: int) -> bool:
        """Whether a result of that dispatch would be accepted."""
        return bool(
            self._file.rows(
                "SELECT 1 FROM jobs WHERE key = ? AND state IN ('queued', 'leased')"
                " AND ? BETWEEN 1 AND fence",
                (key, fence),
            )
        )

    def adopted(self, result: InferenceResult) -> bool:
        """Take a result that was there before its job was queued; False when the job is not waiting for one."""
        with self._file.transaction() as c:
            return bool(
                c.execute(
                    "UPDATE jobs SET state = 'computed', result = ?, code = '', reason = '', boot_id = ?, since = ?,"
                    " updated = ? WHERE key = ? AND state = 'queued'",
                    (result.model_dump_json(), self._boot, self._clock(), time.time(), result.key),
                ).rowcount
            )

    def computed(self, key: str, fence: int, result: InferenceResult) -> Taken:
        """Take a result: the first one stands.

        Returns
        -------
        str
            `accepted`; `again` for the same dispatch once more; `same` or `differs` for another
            dispatch, by its digest, which is recorded; `late` when the job had failed for good;
            `unknown` when no such job or dispatch was ever made.
        """
        with self._file.transaction() as c:
            row = c.execute(
                "SELECT state, fence, result FROM jobs WHERE key = ?", (key,)
            ).fetchone()
            if row is None or not 0 < fence <= row[1]:
                return "unknown"
            if row[0] == "failed":
                return "late"
            if row[0] in ("queued", "leased"):
                c.execute(
                    "UPDATE jobs SET state = 'computed', worker = '', result = ?, code = '', "
                    "reason = '', boot_id = ?, since = ?,"
                    " updated = ? WHERE key = ?",
                    (result.model_dump_json(), self._boot, self._clock(), time.time(), key),
                )
                return "accepted"
            if row[2] is None:
                return "late"  # only its end is known
            first = InferenceResult.model_validate_json(row[2])
            if first.fence == fence:
                return "again"  # the worker had not heard our acknowledgement
            same = first.digest == result.digest
            c.execute(
                "INSERT INTO repeats VALUES (?, ?, ?, ?, ?)",
                (key, fence, result.digest, same, time.time()),
            )
            return "same" if same else "differs"

    def uncommitted(self) -> list[tuple[InferenceJob, InferenceResult]]:
        """Computed jobs whose arrays are synced, oldest first: what the writer has to do."""
        rows = self._file.rows(
            "SELECT job, result FROM jobs WHERE state = 'computed' AND synced = 1 ORDER BY seq"
        )
        return [
            (InferenceJob.model_validate_json(job), InferenceResult.model_validate_json(result))
            for job, result in rows
        ]

    def uncommitted_keys(self) -> list[str]:
        """Keys of what `uncommitted` returns: after an hour without Tiled there may be thousands."""
        rows = self._file.rows(
            "SELECT key FROM jobs WHERE state = 'computed' AND synced = 1 ORDER BY seq"
        )
        return [key for (key,) in rows]

    def computed_result(self, key: str) -> tuple[InferenceJob, InferenceResult] | None:
        """A computed job that is not committed yet, with its result; None where it is not such a one (any more)."""
        rows = self._file.rows(
            "SELECT job, result FROM jobs WHERE key = ? AND state = 'computed' AND synced = 1",
            (key,),
        )
        if not rows:
            return None
        job, result = rows[0]
        return InferenceJob.model_validate_json(job), InferenceResult.model_validate_json(result)

    def compute_again(self, key: str, code: str, reason: str) -> bool:
        """The file of a computed result is gone or was changed before Tiled had it: queue the job again, or give up
        after as many tries as any failure gets. False when the job was not computed."""
        return self.leases.lost_result(key, code, reason)

    def committed(
        self, key: str, result_uid: str, proposals: tuple[dict[str, Any], ...] = ()
    ) -> bool:
        """End a job as committed, its proposals with it; False when it had ended already.

        Its timings get `registered`: seconds from the acceptance of the result to now.
        """
        now = time.time()
        with self._file.transaction() as c:
            row = c.execute(
                "SELECT result, boot_id, since FROM jobs WHERE key = ? AND state = 'computed'",
                (key,),
            ).fetchone()
            if row is None:
                return False
            result = InferenceResult.model_validate_json(row[0])
            # By the clock since boot: the date may jump.
            took = self._clock() - row[2] if row[1] == self._boot and row[2] else 0.0
            timings = {**result.timings, "registered": max(0.0, took)}
            c.execute(
                "UPDATE jobs SET state = 'committed', result_uid = ?, result = ?, updated = ? WHERE key = ?",
                (
                    result_uid,
                    result.model_copy(update={"timings": timings}).model_dump_json(),
                    now,
                    key,
                ),
            )
            for proposal in proposals:
                journal_rows.add_proposal(c, proposal)
        return True

    def job(self, key: str) -> dict[str, Any] | None:
        """One job as a plain mapping, or None."""
        rows = self._file.rows(f"{journal_rows.JOBS} WHERE key = ?", (key,))
        return journal_rows.job(rows[0]) if rows else None

    def jobs(
        self,
        state: str | None = None,
        run_uid: str | None = None,
        *,
        code: str | None = None,
        limit: int | None = None,
    ) -> list[dict[str, Any]]:
        """Jobs as plain mappings for people and programs, oldest first; the latest `limit` of them."""
        wanted = {"jobs.state": state, "jobs.run_uid": run_uid, "jobs.code": code}
        given = {name: value for name, value in wanted.items() if value is not None}
        # One condition for each that is given: an index serves no "is null or".
        where = f" WHERE {' AND '.join(f'{name} = ?' for name in given)}" if given else ""
        rows = self._file.rows(
            f"{journal_rows.JOBS}{where} ORDER BY seq DESC LIMIT ?",
            (*given.values(), -1 if limit is None else limit),
        )
        return [journal_rows.job(row) for row in reversed(rows)]

    def repeats(self, key: str) -> list[dict[str, Any]]:
        """Results that came after the first one, and whether they agreed with it."""
        rows = self._file.rows(
            "SELECT fence, digest, same FROM repeats WHERE key = ? ORDER BY at", (key,)
        )
        return [
            {"fence": fence, "digest": digest, "same": bool(same)} for fence, digest, same in rows
        ]

    def live_folders(self) -> set[str]:
        """Spool folders that a job still needs."""
        rows = self._file.rows(
            "SELECT job FROM jobs WHERE state IN ('queued', 'leased', 'computed')"
        )
        return {json.loads(row[0])["spool"] for row in rows}

    def status(self) -> dict[str, dict[str, int]]:
        """How many runs, jobs and proposals are in which state."""
        return {
            table: dict(self._file.rows(f"SELECT state, count(*) FROM {table} GROUP BY state"))
            for table in ("runs", "jobs", "proposals")
        }
