"""What can still be read in a damaged journal: row by row, each table on its own, and what its indexes know besides."""

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from inscan.service.journal_file import JOB_STATES, UNREADABLE
from inscan.service.messages import InferenceJob, InferenceResult, derived_uid, job_key

Row = dict[str, Any]

TABLES = {
    "boot": ("id",),
    "runs": ("run_uid",),
    "jobs": ("key",),
    "repeats": (),
    "proposals": ("id",),
    "proposal_history": (),
    "proposal_notes": ("id", "kind", "name"),
    "job_history": (),
    "facts": ("name",),
}
"""Tables, and what makes two rows of each the same; without a name, all of it."""
ENDED = ("committed", "failed")
LOST_REQUEST = {"stream": "?", "recipe": "?", "parameters": {}, "lost": True}
"""In place of a request of which only the end is known."""
_RUN_STATES = ("open", "complete", "incomplete", "failed", "passed_by")
_MOST_LOOKS = 1_000_000
_PAGE = 100  # a SQLite file's own header


@dataclass
class Found:
    """What was read.

    Attributes
    ----------
    rows : dict
        Table -> its rows, in the order in which they were written.
    lost : dict
        Table -> rows that are there and cannot be read; 0 where none is.
    runs_with_lost_jobs : set of str
        As far as an index names them.
    ends : dict
        Key -> (state, run uid) of jobs whose row is lost and of which the indexes know how they ended.
    """

    rows: dict[str, list[Row]] = field(default_factory=lambda: {name: [] for name in TABLES})
    lost: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TABLES, 0))
    runs_with_lost_jobs: set[str] = field(default_factory=set)
    ends: dict[str, tuple[str, str]] = field(default_factory=dict)


def read_damaged(path: Path, first_page: Path, scratch: Path) -> Found:
    """Read what can be read of a journal. Never raises for what is in the file.

    Parameters
    ----------
    path : Path
        The file; a write-ahead log beside it is used. Neither is changed: copies are read.
    first_page : Path
        Copy of the first page, for a file that has lost its own: without it nothing of the rest is found.
    scratch : Path
        Where the copies go, and are removed again.

    Raises
    ------
    OSError
        When there is no room for the copies.
    """
    found = Found()
    log = path.with_name(f"{path.name}-wal")
    copy = scratch / "salvage.db"
    try:
        for source, target in ((path, copy), (log, scratch / "salvage.db-wal")):
            if source.exists():
                shutil.copyfile(source, target)
        if not copy.exists():
            return found
        if not _read_file(copy, found):
            mended = _mend_first_page(copy, first_page) and _read_file(copy, found)
            if not mended:
                found.lost["jobs"] = found.lost["runs"] = 1
    finally:
        for left in scratch.glob("salvage.db*"):
            left.unlink()
    return found


def _read_file(path: Path, found: Found) -> bool:
    """Whether it is known where the tables are; then they are read."""
    try:
        with _opened(path) as connection:
            there = bool(_tables(connection))
            if there:
                _read(connection, found)
            return there
    except UNREADABLE:
        return False


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
        # A file that is shorter than it says is otherwise refused as a whole.
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute("PRAGMA cell_size_check=ON")
        yield connection


def _tables(connection: sqlite3.Connection) -> set[str]:
    try:
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    except UNREADABLE:
        return set()
    return {name for (name,) in rows} & set(TABLES)


def _mend_first_page(copy: Path, first_page: Path) -> bool:
    """Put the page that says where the tables are in its place again."""
    if not first_page.exists():
        return False
    page = bytearray(first_page.read_bytes())
    size = int.from_bytes(page[16:18], "big") if len(page) >= _PAGE else 0
    if size < 512 or len(page) != size or copy.stat().st_size < size:
        return False
    page[28:32] = (copy.stat().st_size // size).to_bytes(4, "big")
    page[32:40] = bytes(8)  # which pages are free is not known any more
    page[92:96] = page[24:28]  # the number of pages holds for this count of changes
    with copy.open("r+b") as file:
        file.write(page)
    return True


def _read(connection: sqlite3.Connection, found: Found) -> None:
    for name in sorted(_tables(connection)):
        numbered, lost = _rows(connection, name)
        found.lost[name] = lost
        keep = _CHECKS.get(name, _any)
        believed = {number: kept for number, row in numbered.items() if (kept := keep(row))}
        found.lost[name] += len(numbered) - len(believed)
        found.rows[name] = [believed[number] for number in sorted(believed)]
        if name == "jobs":
            _ask_indexes(connection, believed, found)


def _rows(connection: sqlite3.Connection, name: str) -> tuple[dict[int, Row], int]:
    """All rows by number, and how many are known to be there and cannot be read."""
    try:
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({name})")]
    except UNREADABLE:
        return {}, 1
    wanted = f"SELECT rowid, {', '.join(columns)} FROM {name}"  # noqa: S608 - our own names
    found: dict[int, Row] = {}
    reached: list[int | None] = [None, None]
    for end, order in enumerate(("ASC", "DESC")):
        try:
            for number, *values in connection.execute(f"{wanted} ORDER BY rowid {order}"):
                at = reached[end]
                if at is not None and (number <= at if end == 0 else number >= at):
                    break  # the tree leads in a circle
                reached[end] = number
                found.setdefault(number, dict(zip(columns, values, strict=True)))
            else:
                return found, 0
        except UNREADABLE:
            continue
    # Both ways end at a page that cannot be read: what lies between is looked up one by one.
    first = 0 if reached[0] is None else reached[0]
    last = (
        _last_number(connection, name, max(found, default=0)) if reached[1] is None else reached[1]
    )
    lost = 0
    for number in range(first + 1, min(last, first + _MOST_LOOKS) + 1):
        if number in found:
            continue
        try:
            row = connection.execute(f"{wanted} WHERE rowid = ?", (number,)).fetchone()
        except UNREADABLE:
            lost += 1
            continue
        if row is not None:
            found[number] = dict(zip(columns, row[1:], strict=True))
    return found, max(1, lost)


def _last_number(connection: sqlite3.Connection, name: str, known: int) -> int:
    try:
        row = connection.execute(
            "SELECT seq FROM sqlite_sequence WHERE name = ?", (name,)
        ).fetchone()
    except UNREADABLE:
        row = None
    return max(known, int(row[0])) if row else known


def _ask_indexes(connection: sqlite3.Connection, have: dict[int, Row], found: Found) -> None:
    """Whose rows are lost: the indexes have key, state and run of each job in pages of their own."""
    told: list[dict[int, str]] = []
    for column, index in (
        ("key", "sqlite_autoindex_jobs_1"),
        ("state", "jobs_by_state"),
        ("run_uid", "jobs_by_run"),
    ):
        one: dict[int, str] = {}
        try:
            for number, value in connection.execute(
                f"SELECT seq, {column} FROM jobs INDEXED BY {index} ORDER BY {column}"  # noqa: S608 - our own names
            ):
                one[number] = value
        except UNREADABLE:
            pass  # what came before the damage is of use
        told.append(one)
    keys, states, runs = told
    for number, row in list(have.items()):
        if _bare(row) and keys.get(number, row["key"]) != row["key"]:
            # Nothing else says what its key is, and there are two.
            found.rows["jobs"].remove(row)
            found.lost["jobs"] += 1
            found.runs_with_lost_jobs.add(row["run_uid"])
    for number in (keys.keys() | states.keys() | runs.keys()) - have.keys():
        key, state, run_uid = keys.get(number), states.get(number), runs.get(number, "")
        if key is not None and state in ENDED and _is_key(key):
            found.ends[key] = (state, run_uid)
        elif run_uid:
            found.runs_with_lost_jobs.add(run_uid)


def _bare(row: Row) -> bool:
    return bool(row.get("thin")) and row.get("result") is None and '"lost"' in row["job"]


def _is_key(text: object) -> bool:
    return isinstance(text, str) and len(text) == 64 and set(text) <= set("0123456789abcdef")


def lost_end(key: str, state: str, run_uid: str) -> Row:
    """A row for a job of which only key and end are known."""
    return {
        "key": key,
        "run_uid": run_uid,
        "job": json.dumps(LOST_REQUEST),
        "state": state,
        "synced": 1,
        "fence": 1,
        "thin": 1,
        "result_uid": derived_uid(key) if state == "committed" else None,
        "code": "" if state == "committed" else "journal_damaged",
        "reason": ""
        if state == "committed"
        else "its reason was lost when the journal was damaged",
    }


def _any(row: Row) -> Row | None:
    return row


def _job(row: Row) -> Row | None:
    key, state = row.get("key"), row.get("state")
    if not _is_key(key) or state not in JOB_STATES or not _is_list(row.get("crashes")):
        return None
    assert isinstance(key, str)
    row = _plain(row)
    try:
        request = json.loads(row["job"])
        if not (row.get("thin") and request.get("lost")):
            job = InferenceJob.model_validate(request)
            if job.key != key:
                # One of both has a bit that fell over; what was asked for says which.
                named = job_key(job.run_uid, job.stream, job.recipe, job.parameters)
                if named not in (key, job.key):
                    return None
                key = named
                row = {
                    **row,
                    "key": key,
                    "job": job.model_copy(update={"key": key}).model_dump_json(),
                }
            row = {**row, "run_uid": job.run_uid}
        if row.get("result") is not None:
            if InferenceResult.model_validate_json(row["result"]).key != key:
                raise ValueError("another job's")
        elif state in ("computed", "committed") and not row.get("thin"):
            raise ValueError("no result")
    except (ValidationError, ValueError, TypeError, KeyError, AttributeError):
        if state not in ENDED:
            return None
        # How it ended stands, whatever else is lost.
        end = lost_end(key, state, str(row.get("run_uid") or ""))
        return {**row, **end, "result": None, "reason": row.get("reason") or end["reason"]}
    # It follows from the key, whatever became of its letters.
    return {**row, "result_uid": derived_uid(key)} if state == "committed" else row


def _plain(row: Row) -> Row:
    """With a number where a number belongs, and a text where a text does: a bit makes one of the other, or nothing."""
    made = dict(row)
    for names, kinds, otherwise in (
        (("synced", "fence", "failures", "thin", "recorded"), int, 0),
        (("lease_until", "not_before", "created", "updated", "since"), int | float, 0.0),
        (("worker", "boot_id", "code", "reason", "run_uid"), str, ""),
    ):
        for name in names:
            if name in made and not isinstance(made[name], kinds):
                made[name] = otherwise
    return made


def _is_list(text: object) -> bool:
    try:
        return isinstance(json.loads(text), list) if isinstance(text, str) else False
    except ValueError:
        return False


def _run(row: Row) -> Row | None:
    return row if row.get("state") in _RUN_STATES and _is_mapping(row.get("start")) else None


def _body(row: Row) -> Row | None:
    return row if _is_mapping(row.get("body")) else None


def _is_mapping(text: object) -> bool:
    try:
        return isinstance(json.loads(text), dict) if isinstance(text, str) else False
    except ValueError:
        return False


_CHECKS: dict[str, Callable[[Row], Row | None]] = {
    "jobs": _job,
    "runs": _run,
    "proposals": _body,
    "proposal_notes": _body,
}
