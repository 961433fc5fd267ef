"""The journal's part on itself: its copy, its size, and what is wrong with it."""

import json
import logging
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

from inscan.service.derived import ACCESS_KEYS, COPIED_KEYS
from inscan.service.journal_file import Database, JournalError
from inscan.service.journal_repair import copy_journal, copy_path, damaged_files, said

_DAY_S = 86400.0
_AT_ONCE = 32
_PAGES = 256
_START = (
    "uid",
    "time",
    "plan_name",
    "raw_uids",
    *COPIED_KEYS,
    *ACCESS_KEYS,
)
_META = ("profile", "technique", "start_time", "stop_time")
_log = logging.getLogger(__name__)


class UpkeepJournal:
    """What keeps the journal small and safe; a part of `inscan.service.journal.Journal`, safe to use from any thread.

    Parameters
    ----------
    file : Database
    clock : callable
        Seconds since boot.
    """

    _file: Database
    _clock: Callable[[], float]
    _copied_at: float | None = None
    _copied_changes: int = -1
    _trouble: str = ""
    _over: int = 0

    def keep_copy(self, *, every_s: float = _DAY_S) -> bool:
        """Copy the journal beside itself, unless nothing has changed or the last copy is younger than `every_s`.

        Whether there is a new one. One that cannot be made is told in `health`, and tried again in a day.
        """
        now, changes = self._clock(), self._file.changes()
        if self._copied_at is not None and now - self._copied_at < every_s:
            return False
        if changes == self._copied_changes:
            return False
        target = copy_path(self._file.path)
        if self._copied_at is None and every_s and target.exists():
            # Of an earlier life of the service. A date that jumped makes one copy more, or one less.
            age = time.time() - target.stat().st_mtime
            if 0 <= age < every_s:
                self._copied_at = now - age
                return False
        self._copied_at, self._copied_changes = now, changes
        try:
            with closing(sqlite3.connect(self._file.path, isolation_level=None)) as connection:
                copy_journal(connection, target)
        except (OSError, sqlite3.Error) as error:
            self._trouble = f"it cannot be copied to {target}: {error}"
            _log.error("the journal: %s", self._trouble)
            return False
        self._trouble = ""
        return True

    def size(self) -> int:
        """Bytes that its rows take."""
        pages, free, each = (
            int(self._file.rows(f"PRAGMA {name}")[0][0])
            for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * each

    def health(self) -> dict[str, Any]:
        """Its size, the age of its copy, and a `warning`: of a repair, for as long as the damaged file lies there."""
        path = self._file.path
        copy = copy_path(path)
        found: dict[str, Any] = {"bytes": self.size()}
        if copy.exists():
            found["copy_age_s"] = round(max(0.0, time.time() - copy.stat().st_mtime))
        warnings = [self._trouble] if self._trouble else []
        if self._over:
            warnings.append(
                f"it holds {self._over} bytes more than journal_budget, and nothing more can be thinned out"
            )
        row = self._file.rows("SELECT value FROM facts WHERE name = 'mended'")
        if row:
            told = json.loads(row[0][0])
            if not told["moved_to"] or damaged_files(path):
                warnings.append(said(told))
        if warnings:
            found["warning"] = "; ".join(warnings)
        return found

    def thin(self, budget: int, needed: Callable[[str], bool]) -> int:
        """Take what is only of use while a run is young out of the oldest ended jobs, while the journal is too large.

        Key, end, uid of the result, digest and verdict stay for ever: a document sent again, or asked for again, finds
        them. What is taken out (the report, the request's own particulars, most of the start document) is in Tiled,
        which has confirmed it: a result is committed, a failure recorded.

        Parameters
        ----------
        budget : int
            Bytes.
        needed : callable
            Whether a run's particulars are still needed.

        Returns
        -------
        int
            Jobs that were thinned; a few at a time, so that nobody waits for it.
        """
        over = self.size() - budget
        if over <= 0:
            self._over = 0
            return 0
        rows = self._file.rows(
            "SELECT key, run_uid FROM jobs WHERE thin = 0 AND state IN ('committed', 'failed')"
            " AND (state = 'committed' OR recorded = 1)"
            " AND NOT EXISTS (SELECT 1 FROM jobs other WHERE other.run_uid = jobs.run_uid"
            " AND other.state NOT IN ('committed', 'failed'))"
            " ORDER BY seq LIMIT ?",
            (_AT_ONCE * 8,),
        )
        keys = [(key, run_uid) for key, run_uid in rows if not needed(run_uid)][:_AT_ONCE]
        with self._file.transaction() as c:
            for key, run_uid in keys:
                _thin_job(c, key)
                _thin_run(c, run_uid)
        if keys:
            self._give_back()
        self._over = 0 if keys else over
        return len(keys)

    def _give_back(self) -> None:
        """Free pages go back to the disk some at a time: of a file of an older version they are only used again."""
        try:
            self._file.rows(f"PRAGMA incremental_vacuum({_PAGES})")
        except JournalError as error:
            _log.warning("the journal gives no space back: %s", error)


def _thin_job(c: sqlite3.Connection, key: str) -> None:
    text, made = c.execute("SELECT job, result FROM jobs WHERE key = ?", (key,)).fetchone()
    job = json.loads(text)
    meta = {name: job["meta"][name] for name in _META if name in job.get("meta", {})}
    job |= {"arrays": {}, "meta": meta}
    if made is not None:
        result = json.loads(made)
        report = result["report"]
        fitted = (report.get("fine_tuned") or {}).get("text")
        kept = {name: report[name] for name in ("verdict", "composite") if name in report}
        if fitted:
            kept["fine_tuned"] = {"text": fitted}
        made = json.dumps({**result, "report": kept, "regions": []})
    c.execute(
        "UPDATE jobs SET job = ?, result = ?, thin = 1 WHERE key = ?", (json.dumps(job), made, key)
    )


def _thin_run(c: sqlite3.Connection, run_uid: str) -> None:
    row = c.execute("SELECT start FROM runs WHERE run_uid = ?", (run_uid,)).fetchone()
    if row is not None:
        start = json.loads(row[0])
        kept = {name: start[name] for name in _START if name in start}
        c.execute("UPDATE runs SET start = ? WHERE run_uid = ?", (json.dumps(kept), run_uid))
