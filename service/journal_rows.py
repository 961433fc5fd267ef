"""The journal's rows as plain mappings, and its table of proposals."""

import json
import sqlite3
import time
from typing import Any

from inscan.service.messages import InferenceJob

RUNS = "SELECT run_uid, scan_id, profile, start, state, reason, created, updated FROM runs"
JOBS = (
    "SELECT jobs.key, jobs.run_uid, runs.scan_id, jobs.job, jobs.state, jobs.fence, jobs.failures, "
    "jobs.crashes,"
    " jobs.worker, jobs.result, jobs.result_uid, jobs.code, jobs.reason, jobs.created, jobs.updated"
    " FROM jobs LEFT JOIN runs ON runs.run_uid = jobs.run_uid"
)
_ENDED = ("committed", "failed")
ENERGIES = "energies"
"""What is begun and measured of a proposal of that kind, as a region is of others."""
NOTES = ("begun", "covered", "run", "measured")
"""Kinds of notes on a proposal: a region was about to be measured; it was measured; a fine run began; what a region
was to give and gave."""
_PROPOSALS = "SELECT id, run_uid, body, state, who, reason, created, updated FROM proposals"


def run(row: tuple[Any, ...]) -> dict[str, Any]:
    """A row of `RUNS`."""
    uid, scan_id, profile, start, state, reason, created, updated = row
    return {
        "run_uid": uid,
        "scan_id": scan_id,
        "profile": profile,
        "start": json.loads(start),
        "state": state,
        "reason": reason,
        "created": created,
        "updated": updated,
    }


def job(row: tuple[Any, ...]) -> dict[str, Any]:
    """A row of `JOBS`; the result's verdict and digest beside it, its report not."""
    (
        key,
        run_uid,
        scan_id,
        text,
        state,
        fence,
        failures,
        crashes,
        worker,
        result,
        result_uid,
        *rest,
    ) = row
    code, reason, created, updated = rest
    request = json.loads(text)
    made = (
        json.loads(result)
        if result
        else {"report": {}, "digest": None, "timings": {}, "result_path": None}
    )
    return {
        "key": key,
        "run_uid": run_uid,
        "scan_id": scan_id,
        "stream": request["stream"],
        "recipe": request["recipe"],
        "parameters": request["parameters"],
        "state": state,
        "dispatches": fence,
        "failures": failures,
        "lost_on": json.loads(crashes),
        "worker": worker,
        "result_uid": result_uid,
        "result_path": made["result_path"],
        "digest": made["digest"],
        "verdict": made["report"].get("verdict"),
        "fitted": (made["report"].get("fine_tuned") or {}).get("text", ""),
        "timings": made["timings"],
        "code": code,
        "reason": reason,
        "created": created,
        "updated": updated,
    }


def add_job(c: sqlite3.Connection, job: InferenceJob, boot: str, clock: float) -> bool:
    """Queue a job; False when its key is known, whatever became of it."""
    now = time.time()
    return bool(
        c.execute(
            "INSERT OR IGNORE INTO jobs (key, run_uid, job, state, synced, fence, failures, crashes,"
            " worker, boot_id, lease_until, not_before, code, reason, created, updated, since)"
            " VALUES (?, ?, ?, 'queued', 0,"
            " coalesce((SELECT CAST(value AS INTEGER) FROM facts WHERE name = 'fence_base'), 0),"
            " 0, '[]', '', ?, 0, 0, '', '', ?, ?, ?)",
            (job.key, job.run_uid, job.model_dump_json(), boot, now, now, clock),
        ).rowcount
    )


def outcome(
    ended: dict[str, Any],
    jobs: list[dict[str, Any]],
    found: list[dict[str, Any]],
    settled: bool,
) -> dict[str, Any] | None:
    """What became of a run that has ended; None while a stack or map of it has no result and may get one (`settled`:
    while any job is open). One that has none in the end makes the run a failed one."""
    streams: dict[str, list[dict[str, Any]]] = {}
    for one in jobs:
        streams.setdefault(one["stream"], []).append(one)
    results = {
        stream: done[-1]
        for stream, theirs in streams.items()
        if (done := [one for one in theirs if one["state"] == "committed"])
    }
    waited_for = [one for one in jobs if settled or one["stream"] not in results]
    if any(one["state"] not in _ENDED for one in waited_for):
        return None
    # The first stack's, as `inscan show` takes it; what refined a result comes after it.
    first = next(iter(results.values()), None)
    reasons = [ended["reason"]]
    for one in jobs:
        if one["state"] == "failed" and one["reason"]:
            reasons.append(
                f"{one['stream']}: {one['reason']}"
                if streams.keys() - {one["stream"]}
                else one["reason"]
            )
    whole = bool(results) and results.keys() == streams.keys()
    return {
        "run": ended["run_uid"],
        "status": "done" if whole else "passed_by" if ended["state"] == "passed_by" else "failed",
        "result_uid": first["result_uid"] if first else None,
        "verdict": first["verdict"] if first else None,
        "reason": "; ".join(reason for reason in reasons if reason),
        "results": [
            {
                name: one[name]
                for name in ("key", "recipe", "stream", "state", "result_uid", "verdict", "reason")
            }
            for one in jobs
        ],
        "proposals": found,
    }


def add_proposal(c: sqlite3.Connection, proposal: dict[str, Any]) -> bool:
    """Insert a proposal; False when its id is known."""
    missing = [name for name in ("id", "run_uid", "state") if not proposal.get(name)]
    if missing:
        raise ValueError(f"proposal without {missing}: {sorted(proposal)}")
    now = time.time()
    who, reason = proposal.get("who", "inscan"), proposal.get("reason", "")
    row = (
        proposal["id"],
        proposal["run_uid"],
        json.dumps(proposal),
        proposal["state"],
        who,
        reason,
        now,
        now,
        proposal.get("survey_uid") or proposal["run_uid"],
    )
    if not c.execute(
        "INSERT OR IGNORE INTO proposals (id, run_uid, body, state, who, reason, created, updated,"
        " survey_uid) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        row,
    ).rowcount:
        return False
    _remember(c, proposal["id"], proposal["state"], who, reason)
    return True


def set_proposal(
    c: sqlite3.Connection,
    proposal_id: str,
    state: str,
    who: str,
    reason: str,
    expected: tuple[str, ...] | None,
) -> bool:
    """Compare and set the state of a proposal."""
    row = c.execute("SELECT state FROM proposals WHERE id = ?", (proposal_id,)).fetchone()
    if row is None:
        raise LookupError(f"no proposal {proposal_id!r}; `inscan proposals` lists them")
    if expected is not None and row[0] not in expected:
        return False
    c.execute(
        "UPDATE proposals SET state = ?, who = ?, reason = ?, updated = ? WHERE id = ?",
        (state, who, reason, time.time(), proposal_id),
    )
    _remember(c, proposal_id, state, who, reason)
    return True


def note_proposal(
    c: sqlite3.Connection,
    proposal_id: str,
    kind: str,
    name: str,
    body: dict[str, Any],
    at: float,
) -> bool:
    """Keep a note on a proposal, instead of one of the same kind and name; whether there was none."""
    if c.execute("SELECT 1 FROM proposals WHERE id = ?", (proposal_id,)).fetchone() is None:
        raise LookupError(f"no proposal {proposal_id!r}; `inscan proposals` lists them")
    known = c.execute(
        "SELECT 1 FROM proposal_notes WHERE id = ? AND kind = ? AND name = ?",
        (proposal_id, kind, name),
    ).fetchone()
    c.execute(
        "INSERT INTO proposal_notes VALUES (?, ?, ?, ?, ?) ON CONFLICT (id, kind, name)"
        " DO UPDATE SET body = excluded.body, at = excluded.at",
        (proposal_id, kind, name, json.dumps(body), at),
    )
    return known is None


def proposals(c: sqlite3.Connection, **wanted: str | None) -> list[dict[str, Any]]:
    """Proposals whose columns are what is wanted (None: anything), each with its history and notes.

    `prefix` is the beginning of an id.
    """
    prefix = wanted.pop("prefix", None)
    given = {name: value for name, value in wanted.items() if value is not None}
    where = [f"{name} = ?" for name in given]
    values: list[str] = list(given.values())
    if prefix is not None:
        where.append("substr(id, 1, ?) = ?")
        values += [str(len(prefix)), prefix]
    condition = f"WHERE {' AND '.join(where)}" if where else ""
    rows = c.execute(f"{_PROPOSALS} {condition} ORDER BY created, id", values).fetchall()
    return [_proposal(c, row) for row in rows]


def _proposal(c: sqlite3.Connection, row: tuple[Any, ...]) -> dict[str, Any]:
    history = c.execute(
        "SELECT state, who, reason, at FROM proposal_history WHERE id = ? ORDER BY rowid", (row[0],)
    ).fetchall()
    now = {"state": row[3], "who": row[4], "reason": row[5], "created": row[6], "updated": row[7]}
    steps = [dict(zip(("state", "who", "reason", "at"), step, strict=True)) for step in history]
    proposal = {
        **json.loads(row[2]),
        **now,
        "history": steps,
        "attempts": sum(step["state"] == "running" for step in steps),
        **_notes(c, row[0]),
    }
    return {**proposal, **_left(proposal)}


def _left(proposal: dict[str, Any]) -> dict[str, Any]:
    """Which regions are still to be measured; of a proposal that is taken again only those are its `regions`."""
    begun = [one["region"] for one in proposal["begun"]]
    regions = [one for one in proposal.get("regions") or () if isinstance(one, dict)]
    energies = proposal.get("kind") == "energies"
    labels = [ENERGIES] if energies else [str(one.get("label")) for one in regions]
    left = [
        label
        for label in labels
        if label not in proposal["covered"]
        and begun.count(label) <= int(proposal.get("retries") or 0)
    ]
    found: dict[str, Any] = {"left": left}
    if proposal["attempts"] and proposal["state"] in ("approved", "queued") and not energies:
        theirs = [one for one in regions if str(one.get("label")) in left]
        found |= {"regions": theirs, "all_regions": regions}
    return found


def _notes(c: sqlite3.Connection, proposal_id: str) -> dict[str, Any]:
    """What became of a proposal's regions, each kind in the order in which it was noted first."""
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in NOTES}
    heard = 0.0
    for kind, name, body, at in c.execute(
        "SELECT kind, name, body, at FROM proposal_notes WHERE id = ? ORDER BY rowid",
        (proposal_id,),
    ):
        heard = max(heard, at)
        if kind in found:
            found[kind].append({**json.loads(body), "name": name, "at": at})
    return {
        "begun": found["begun"],
        "covered": [one["name"] for one in found["covered"]],
        "fine_uids": [one["name"] for one in found["run"]],
        "measured": found["measured"],
        "heard": heard,
    }


def _remember(c: sqlite3.Connection, proposal_id: str, state: str, who: str, reason: str) -> None:
    c.execute(
        "INSERT INTO proposal_history VALUES (?, ?, ?, ?, ?)",
        (proposal_id, state, who, reason, time.time()),
    )
