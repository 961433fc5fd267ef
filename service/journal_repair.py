"""A damaged journal is moved aside and another one made of what can be read: of the file itself, and of its last copy.

What was known to have ended stays so. A run of which a job is lost is open again: its documents, its spool folder or
its result file bring the job back, and whatever Tiled has already is met there under the same uid.
"""

import json
import logging
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from inscan.service.journal_file import (
    TABLES,
    TABLES_2,
    TABLES_3,
    UNREADABLE,
    VERSION,
    Database,
    JournalDamaged,
    JournalError,
)
from inscan.service.journal_salvage import ENDED, Found, Row, lost_end, read_damaged
from inscan.service.journal_salvage import TABLES as NAMES
from inscan.service.result_file import sync_path

FENCE_STEP = 1000
"""Dispatches of an earlier life stay below those of the next one by this."""
_ALIVE = ("approved", "queued", "running")
_log = logging.getLogger(__name__)


def copy_path(path: Path) -> Path:
    """Where the copy of a journal lies."""
    return path.with_name(f"{path.stem}.backup{path.suffix}")


def first_page_path(path: Path) -> Path:
    """Where the copy of a journal's first page lies."""
    return path.with_name(f"{path.stem}.page1")


def damaged_files(path: Path) -> list[Path]:
    """Damaged journals that were moved aside, oldest first."""
    found = path.parent.glob(f"{path.name}.damaged-*")
    return sorted(one for one in found if not one.name.endswith("-wal"))


def open_journal(path: Path) -> Database:
    """Open a journal, after repairing it where it is damaged, or has vanished beside its copy.

    Raises
    ------
    JournalError
        When it is of a newer version or of something else, cannot be written, or there is no room to repair it.
    """
    if _mended_path(path).exists():
        _put_in_place(path)  # a repair was whole and did not get to its end
    gone = not path.exists() or path.stat().st_size == 0
    if gone and (copy_path(path).exists() or damaged_files(path)):
        _repair(path, f"journal {path} is gone, or empty")
    _copy_before_upgrade(path)
    try:
        database = Database(path)
    except JournalDamaged as error:
        _repair(path, str(error))
        database = Database(path)
    _keep_first_page(path, database)
    return database


def _copy_before_upgrade(path: Path) -> None:
    """A journal of an older version stays beside the newer one: with it the older inscan can go on, if it must."""
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if 0 < version < VERSION:
                copy_journal(connection, copy_path(path))
                _log.info(
                    "journal of schema %d copied to %s, and upgraded", version, copy_path(path)
                )
    except (OSError, *UNREADABLE) as error:
        # What is wrong with the file is found, and named, when it is opened.
        _log.warning("journal %s cannot be copied: %s", path, error)


def copy_journal(connection: sqlite3.Connection, target: Path) -> None:
    """Copy a journal as it is at one moment; whoever writes to it meanwhile waits for nothing.

    Raises
    ------
    OSError, sqlite3.Error
        When it cannot be read or written; an older copy stays as it is.
    """
    temporary = target.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    try:
        connection.execute("VACUUM INTO ?", (str(temporary),))
        sync_path(temporary)
        os.replace(temporary, target)
        sync_path(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _repair(path: Path, why: str) -> None:
    _log.error("%s; it is moved aside, and what can be read goes into a new one", why)
    try:
        with tempfile.TemporaryDirectory(prefix=".journal-", dir=path.parent) as scratch:
            there = Path(scratch)
            own = read_damaged(path, first_page_path(path), there)
            copy = read_damaged(copy_path(path), first_page_path(path), there)
            fresh = there / "journal.db"
            date = time.strftime("%Y%m%d-%H%M%S")
            aside = path.with_name(f"{path.name}.damaged-{date}")
            step = FENCE_STEP * (len(damaged_files(path)) + 1)
            rows, told = _merged(own, copy, step, _age(copy_path(path)))
            told |= {"why": why, "at": time.time(), "moved_to": str(aside) if path.exists() else ""}
            rows["facts"] = [
                {"name": "fence_base", "value": str(step)},
                {"name": "mended", "value": json.dumps(told)},
            ]
            _write(fresh, rows)
            os.replace(fresh, _mended_path(path))
            sync_path(path.parent)
    except (OSError, *UNREADABLE) as error:
        raise JournalError(
            f"{why}; and it cannot be repaired: {error}. Make room on the disk of {path.parent}, or move the file aside"
        ) from error
    _log.error("journal: %s", said(told))
    _put_in_place(path)


def said(told: dict[str, Any]) -> str:
    """What a repair found, in words."""
    kept = ", ".join(f"{count} {name}" for name, count in told["kept"].items())
    lost = "; ".join(told["lost"]) or "nothing that is known of"
    where = f"; the damaged file is {told['moved_to']}" if told["moved_to"] else ""
    date = time.strftime("%Y-%m-%d %H:%M", time.localtime(told["at"]))
    return f"repaired on {date} ({told['why']}): kept {kept}; lost {lost}{where}"


def _mended_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}.mended{path.suffix}")


def _put_in_place(path: Path) -> None:
    """The damaged file aside, the new one in its place; begun anew where it was cut short."""
    mended = _mended_path(path)
    with closing(sqlite3.connect(mended)) as connection:
        row = connection.execute("SELECT value FROM facts WHERE name = 'mended'").fetchone()
    aside = json.loads(row[0])["moved_to"]
    log = path.with_name(f"{path.name}-wal")
    if aside:
        for source, target in ((path, Path(aside)), (log, Path(f"{aside}-wal"))):
            if source.exists() and not target.exists():
                os.link(source, target)
    # The log first: beside another file it would be taken for that one's.
    for left in (log, path.with_name(f"{path.name}-shm")):
        left.unlink(missing_ok=True)
    sync_path(path.parent)
    os.replace(mended, path)
    sync_path(path.parent)


def _age(copy: Path) -> str:
    if not copy.exists():
        return ""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(copy.stat().st_mtime))


def _merged(
    own: Found, copy: Found, step: int, copied: str
) -> tuple[dict[str, list[Row]], dict[str, Any]]:
    """Rows of the new file, and what is to be told of them. What the file says itself is newer than what its copy
    does."""
    rows: dict[str, list[Row]] = {}
    for name, same in NAMES.items():
        rows[name] = list(_once((*own.rows[name], *copy.rows[name]), same))
    rows["boot"] = rows["boot"][:1]
    rows["jobs"] = _jobs(own, copy, step)
    reopened = _reopen(rows, own, copy)
    stopped = _stop_proposals(rows, own, copied)
    jobs = {row["key"]: row for row in rows["jobs"]}
    lost = [f"{n} rows of {name}" for name, n in own.lost.items() if n and name != "facts"]
    if not any(own.rows.values()):
        lost = ["all of the file"]
    if lost and copied:
        lost.append(
            f"what was not in the copy of {copied} is taken from documents, spool and Tiled"
        )
    if reopened:
        lost.append(f"{reopened} runs of which a job may be lost are open again")
    if stopped:
        lost.append(
            f"{stopped} approved rescans were ended, for they might have been measured already"
        )
    bare = sum(1 for one in jobs.values() if _bare(one))
    if bare:
        lost.append(f"of {bare} jobs only their end is known")
    kept = {name: len(rows[name]) for name in ("runs", "jobs", "proposals")}
    kept["jobs that had ended"] = sum(one["state"] in ENDED for one in jobs.values())
    return rows, {"kept": kept, "lost": lost}


def _once(rows: Iterable[Row], same: tuple[str, ...]) -> Iterable[Row]:
    """Each row once, the first of those that are the same."""
    seen: set[tuple[Any, ...]] = set()
    for row in rows:
        name = tuple(row.get(one) for one in same) if same else tuple(sorted(row.items()))
        if name not in seen:
            seen.add(name)
            yield row


def _jobs(own: Found, copy: Found, step: int) -> list[Row]:
    merged = {row["key"]: row for row in own.rows["jobs"]}
    copied: dict[str, set[str]] = {}
    for old in copy.rows["jobs"]:
        copied.setdefault(old["run_uid"], set()).add(old["key"])
    for key, (state, run_uid) in own.ends.items():
        # Of a key in an index nothing says that it is right, but the copy may say that it is not.
        if key in copied.get(run_uid, {key}):
            merged.setdefault(key, lost_end(key, state, run_uid))
    for old in copy.rows["jobs"]:
        now = merged.get(old["key"])
        if now is None or (old["state"] == "committed" and now["state"] != "committed"):
            merged[old["key"]] = old
        elif _bare(now) and not _bare(old):
            # What it was is in the copy, how it ended in the file.
            ended = {name: now[name] for name in ("state", "result_uid")}
            reason = {} if old["state"] == now["state"] else {n: now[n] for n in ("code", "reason")}
            merged[old["key"]] = {**old, **ended, **reason, "thin": 1}
    result = []
    for number, row in enumerate(sorted(merged.values(), key=lambda one: one.get("seq") or 0), 1):
        if row["state"] not in ENDED:
            row = {**row, "fence": int(row["fence"]) + step, "worker": "", "not_before": 0.0}
            if row["state"] == "leased":
                row["state"] = "queued"
        result.append({**row, "seq": number})
    return result


def _bare(row: Row) -> bool:
    return bool(row.get("thin")) and bool(json.loads(row["job"]).get("lost"))


def _reopen(rows: dict[str, list[Row]], own: Found, copy: Found) -> int:
    """Open the runs of which a job is lost, or may be."""
    if not own.lost["jobs"] and any(own.rows.values()):
        return 0
    with_jobs = {row["run_uid"] for row in rows["jobs"]}
    missed = own.runs_with_lost_jobs - {row["run_uid"] for row in copy.rows["jobs"]}
    count = 0
    for row in rows["runs"]:
        lost = row["run_uid"] in missed or row["run_uid"] not in with_jobs
        if row["state"] == "complete" and lost:
            row.update(state="open", reason="")
            count += 1
    return count


def _stop_proposals(rows: dict[str, list[Row]], own: Found, copied: str) -> int:
    """A rescan that may have been begun in the part that is lost must not move motors a second time."""
    names = ("proposals", "proposal_history", "proposal_notes")
    if any(own.rows.values()) and not any(own.lost[name] for name in names):
        return 0
    count, now = 0, time.time()
    reason = "the journal was damaged, and what became of it may be lost; " + (
        f"a copy of {copied} was used" if copied else "there was no copy"
    )
    for row in rows["proposals"]:
        if row["state"] in _ALIVE:
            row.update(state="expired", who="inscan", reason=reason, updated=now)
            step = {
                "id": row["id"],
                "state": "expired",
                "who": "inscan",
                "reason": reason,
                "at": now,
            }
            rows["proposal_history"].append(step)
            count += 1
    return count


_DEFAULTS: Row = {
    "synced": 1,
    "fence": 0,
    "failures": 0,
    "crashes": "[]",
    "worker": "",
    "boot_id": "",
    "lease_until": 0.0,
    "not_before": 0.0,
    "code": "",
    "reason": "",
}


def _write(path: Path, rows: dict[str, list[Row]]) -> None:
    now = time.time()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        connection.executescript(f"{TABLES} {TABLES_2} {TABLES_3} PRAGMA user_version = {VERSION};")
        connection.execute("BEGIN")
        for name, ours in rows.items():
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({name})")]
            for row in ours:
                full = (
                    {**_DEFAULTS, "created": now, "updated": now, **row} if name == "jobs" else row
                )
                if name == "proposals":
                    full = {"survey_uid": row["run_uid"], **row}
                given = [one for one in columns if one in full]
                holes = ", ".join("?" * len(given))
                connection.execute(
                    f"INSERT OR IGNORE INTO {name} ({', '.join(given)}) VALUES ({holes})",  # noqa: S608 - our own names
                    [full[one] for one in given],
                )
        connection.execute("COMMIT")
    sync_path(path)


def _keep_first_page(path: Path, database: Database) -> None:
    """Copy the page that says where the tables are, whenever that has changed."""
    target = first_page_path(path)
    database.rows("PRAGMA wal_checkpoint(PASSIVE)")
    size = int(database.rows("PRAGMA page_size")[0][0])
    with path.open("rb") as file:
        page = file.read(size)
    if len(page) != size or page[:16] != b"SQLite format 3\0":
        return
    # Beyond the header it changes with the tables alone.
    if target.exists() and target.read_bytes()[100:] == page[100:]:
        return
    temporary = target.with_suffix(".tmp")
    temporary.write_bytes(page)
    os.replace(temporary, target)


def examine(path: Path) -> tuple[bool, str]:
    """Look at a journal without changing it: whether it is in order, and what was found."""
    if not path.exists():
        return not copy_path(path).exists(), "none yet" if not copy_path(path).exists() else "gone"
    try:
        # Without a log beside it nobody writes: then nothing is made there either.
        log = path.with_name(f"{path.name}-wal")
        where = f"{path.resolve().as_uri()}?{'mode=ro' if log.exists() else 'immutable=1'}"
        with closing(sqlite3.connect(where, uri=True, timeout=2)) as connection:
            (damage,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            row = (
                connection.execute("SELECT value FROM facts WHERE name = 'mended'").fetchone()
                if version >= 3
                else None
            )
    except (OSError, *UNREADABLE) as error:
        return False, f"{path}: {error}"
    if damage != "ok":
        return False, f"{path}: {damage}"
    copy = _age(copy_path(path))
    if row is not None and damaged_files(path):
        return False, said(json.loads(row[0]))
    return True, f"{path.stat().st_size >> 20} MiB, schema {version}, " + (
        f"copied {copy}" if copy else "not copied yet"
    )
