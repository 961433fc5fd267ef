"""The journal's file: its tables, how it is opened and checked, transactions on it."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

VERSION = 2

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


class JournalError(OSError):
    """The journal cannot be opened, is damaged, or cannot be written."""


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
        # WAL with FULL: a commit that was answered survives a power cut; NORMAL would lose the last
        # ones.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        damage = connection.execute("PRAGMA integrity_check(3)").fetchall()
        if damage != [("ok",)]:
            raise JournalError(
                f"journal {path} is damaged ({damage[0][0]}): move it aside and start again; "
                "runs whose document logs are still there will be taken up anew"
            )
        _bring_to_version(connection, path)
    except sqlite3.Error as error:
        connection.close()
        raise JournalError(f"journal {path} cannot be used: {error}") from error
    except JournalError:
        connection.close()
        raise
    return connection


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
    parts = [TABLES_2]
    if version == 0:
        tables = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table'"
        ).fetchall()
        if tables:
            raise JournalError(f"{path} is an SQLite file of something else: tables {tables}")
        parts = [TABLES, TABLES_2]
    script = f"BEGIN; {' '.join(parts)} PRAGMA user_version = {VERSION}; COMMIT;"
    try:
        connection.executescript(script)
    except sqlite3.Error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
