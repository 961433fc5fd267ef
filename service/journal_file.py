"""The journal's file: its tables, how it is opened and checked, transactions on it."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

VERSION = 3

TABLES = """
CREATE TABLE boot (id TEXT NOT NULL);
CREATE TABLE runs (
  run_uid TEXT PRIMARY KEY, scan_id INTEGER, profile TEXT NOT NULL, start TEXT NOT NULL,
  state TEXT NOT NULL, reason TEXT NOT NULL, created REAL NOT NULL, updated REAL NOT NULL);
CREATE TABLE jobs (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, run_uid TEXT NOT NULL,
  job TEXT NOT NULL, state TEXT NOT NULL, synced INTEGER NOT NULL, fence INTEGER NOT NULL,
  failures INTEGER NOT NULL, crashes TEXT NOT NULL, worker TEXT NOT NULL, boot_id TEXT NOT NULL,
  lease_until REAL NOT NULL, not_before REAL NOT NULL, result TEXT, result_uid TEXT,
  code TEXT NOT NULL, reason TEXT NOT NULL, created REAL NOT NULL, updated REAL NOT NULL);
CREATE INDEX jobs_by_state ON jobs (state, seq);
CREATE INDEX jobs_by_run ON jobs (run_uid);
CREATE TABLE repeats (
  key TEXT NOT NULL, fence INTEGER NOT NULL, digest TEXT NOT NULL, same INTEGER NOT NULL,
  at REAL NOT NULL);
CREATE TABLE proposals (
  id TEXT PRIMARY KEY, run_uid TEXT NOT NULL, body TEXT NOT NULL, state TEXT NOT NULL,
  who TEXT NOT NULL, reason TEXT NOT NULL, created REAL NOT NULL, updated REAL NOT NULL);
CREATE TABLE proposal_history (
  id TEXT NOT NULL, state TEXT NOT NULL, who TEXT NOT NULL, reason TEXT NOT NULL, at REAL NOT NULL);
"""
TABLES_2 = """
ALTER TABLE proposals ADD COLUMN survey_uid TEXT NOT NULL DEFAULT '';
UPDATE proposals SET survey_uid = run_uid;
CREATE INDEX proposals_by_survey ON proposals (survey_uid);
CREATE INDEX proposals_by_state ON proposals (state);
CREATE INDEX proposal_history_by_id ON proposal_history (id);
CREATE TABLE proposal_notes (
  id TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, body TEXT NOT NULL, at REAL NOT NULL,
  PRIMARY KEY (id, kind, name));
"""
"""What version 2 adds: rescans that belong to one survey, and notes of what became of each region."""
TABLES_3 = """
ALTER TABLE jobs ADD COLUMN since REAL NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN recorded INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN thin INTEGER NOT NULL DEFAULT 0;
CREATE INDEX jobs_to_thin ON jobs (seq) WHERE thin = 0 AND state IN ('committed', 'failed');
CREATE TABLE job_history (
  key TEXT NOT NULL, what TEXT NOT NULL, who TEXT NOT NULL, reason TEXT NOT NULL, at REAL NOT NULL);
CREATE INDEX job_history_by_key ON job_history (key);
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
"""What version 3 adds: when a job came into its state (the clock since boot), whether its failure is in Tiled and its
row was thinned; what people did with jobs; facts of the file itself."""
_INDEXES = """
CREATE INDEX IF NOT EXISTS runs_by_state ON runs (state, created);
CREATE INDEX IF NOT EXISTS runs_by_time ON runs (created);
CREATE INDEX IF NOT EXISTS runs_of_composites ON runs (created)
  WHERE json_extract(start, '$.purpose') = 'composite';
CREATE INDEX IF NOT EXISTS proposals_by_run ON proposals (run_uid);
"""
"""Answers to people are given in ingest's thread, which must not read through all runs of years for one of them."""
JOB_STATES = ("queued", "leased", "computed", "committed", "failed")
_CHECKS = (
    "SELECT key FROM jobs WHERE NOT json_valid(job)"
    " OR state NOT IN ('queued', 'leased', 'computed', 'committed', 'failed')"
    " OR NOT json_valid(crashes) OR (result IS NOT NULL AND NOT json_valid(result))",
    "SELECT run_uid FROM runs WHERE NOT json_valid(start)",
    "SELECT id FROM proposals WHERE NOT json_valid(body)",
    "SELECT id FROM proposal_notes WHERE NOT json_valid(body)",
)
_TABLE_NAMES = (
    "boot",
    "runs",
    "jobs",
    "repeats",
    "proposals",
    "proposal_history",
    "proposal_notes",
    "job_history",
    "facts",
)
_SIZE_OF_LOG = 64 << 20
UNREADABLE = (sqlite3.Error, UnicodeDecodeError)
"""What Python's sqlite3 raises for a damaged file: also for its own message, where that quotes what is no text."""
# The last for statements of ours that fail on what they find: as they stand they are right.
_NOT_A_JOURNAL = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)


class JournalError(OSError):
    """The journal cannot be opened, is damaged, or cannot be written."""


class JournalDamaged(JournalError):
    """What is in the file cannot be believed; `inscan.service.journal_repair` makes another of what can be read."""


class Database:
    """One SQLite connection behind one lock.

    Raises
    ------
    JournalError
        When the file is no journal, damaged, of a newer version, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._connection = _open(path)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, and on disk when it returns."""
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                except BaseException:
                    self._connection.execute("ROLLBACK")
                    raise
                self._connection.execute("COMMIT")
            except sqlite3.Error as error:
                raise JournalError(f"journal {self._path}: {error}") from error

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    def changes(self) -> int:
        """Rows that were changed so far."""
        with self._lock:
            return self._connection.total_changes

    def rows(self, sql: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """What a query finds."""
        with self._lock:
            try:
                return self._connection.execute(sql, parameters).fetchall()
            except sqlite3.Error as error:
                raise JournalError(f"journal {self._path}: {error}") from error


def _open(path: Path) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, timeout=10
        )
    except sqlite3.Error as error:
        raise JournalError(f"journal {path} cannot be opened: {error}") from error
    try:
        fresh = connection.execute("PRAGMA page_count").fetchone()[0] == 0
        if fresh:
            # Before the first table, or it takes no effect: rows that are thinned out give their place back.
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        # WAL with FULL: a commit that was answered survives a power cut; NORMAL would lose the last
        # ones.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA journal_size_limit={_SIZE_OF_LOG}")
        damage = connection.execute("PRAGMA integrity_check(3)").fetchall()
        if damage != [("ok",)]:
            raise JournalDamaged(f"journal {path} is damaged ({damage[0][0]})")
        _bring_to_version(connection, path)
        connection.executescript(_INDEXES)
        if not fresh:
            _check_rows(connection, path)
    except UNREADABLE as error:
        connection.close()
        raise _named(error, path) from error
    except JournalError:
        connection.close()
        raise
    return connection


def _named(error: Exception, path: Path) -> JournalError:
    code = getattr(error, "sqlite_errorcode", None)
    if isinstance(error, UnicodeDecodeError) or (code or 0) & 0xFF in _NOT_A_JOURNAL:
        return JournalDamaged(f"journal {path} is damaged: {error}")
    return JournalError(f"journal {path} cannot be used: {error}")


def _check_rows(connection: sqlite3.Connection, path: Path) -> None:
    """Look at what SQLite does not: a bit that fell over inside a value leaves the file in order.

    One row that cannot be read would be met again and again by whoever lists them.
    """
    try:
        for name in _TABLE_NAMES:
            for _ in connection.execute(f"SELECT * FROM {name}"):  # noqa: S608 - our own names
                pass
        wrong = [row[0] for check in _CHECKS for row in connection.execute(check)]
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", None) not in (None, sqlite3.SQLITE_ERROR):
            raise
        # A text that is none, or a table that is missing: no error of the file's to SQLite.
        raise JournalDamaged(f"journal {path} is damaged: {error}") from error
    if wrong:
        raise JournalDamaged(
            f"journal {path} is damaged: what it says of {wrong[0]!r} cannot be read"
        )


def _bring_to_version(connection: sqlite3.Connection, path: Path) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise JournalError(
            f"journal {path} was written by a newer inscan (schema {version}, this one knows "
            f"{VERSION}): "
            "upgrade inscan or choose another state directory"
        )
    if version == VERSION:
        return
    if version == 0:
        tables = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table'"
        ).fetchall()
        if ("runs",) in tables and ("jobs",) in tables:
            raise JournalDamaged(f"journal {path} is damaged: it has its tables and no version")
        if tables:
            raise JournalError(f"{path} is an SQLite file of something else: tables {tables}")
    parts = (TABLES, TABLES_2, TABLES_3)[version:]
    script = f"BEGIN; {' '.join(parts)} PRAGMA user_version = {VERSION}; COMMIT;"
    try:
        connection.executescript(script)
    except sqlite3.OperationalError as error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        if error.sqlite_errorcode == sqlite3.SQLITE_ERROR:
            raise JournalDamaged(
                f"journal {path} is damaged: it is not of the version {version} that it says ({error})"
            ) from error
        raise
