"""The journal over the years: older versions of it, its size, what people do with its jobs, what the spool keeps."""

import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inscan.callbacks.updates import Update
from inscan.callbacks.wire import pack
from inscan.service.acceptance import accept, fenced_path
from inscan.service.digest import digest_arrays
from inscan.service.events import Submit, TakenOut
from inscan.service.intake import RunIntake, Uses
from inscan.service.janitor import look_after_journal, sweep, tidy_dispatches
from inscan.service.job_requests import JobRequests
from inscan.service.journal import Journal
from inscan.service.journal_repair import copy_path
from inscan.service.journal_takeup import take_up, write_end, write_request
from inscan.service.mailbox import Mailbox
from inscan.service.messages import InferenceJob, InferenceResult, derived_uid, job_key
from inscan.service.processed import Processed, ResultArray
from inscan.service.result_file import write_result
from inscan.service.spool import Spool

# As the versions 1 and 2 made their files; never to be changed.
TABLES_OF_1 = """
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
TABLES_OF_2 = """
ALTER TABLE proposals ADD COLUMN survey_uid TEXT NOT NULL DEFAULT '';
UPDATE proposals SET survey_uid = run_uid;
CREATE INDEX proposals_by_survey ON proposals (survey_uid);
CREATE INDEX proposals_by_state ON proposals (state);
CREATE INDEX proposal_history_by_id ON proposal_history (id);
CREATE TABLE proposal_notes (
  id TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, body TEXT NOT NULL, at REAL NOT NULL,
  PRIMARY KEY (id, kind, name));
"""
BOOT = "boot-1"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def opened(tmp_path: Path, clock: Clock) -> Iterator[Callable[[], Journal]]:
    """Open the journal of the test's folder, again and again; the last one is closed at the end."""
    made: list[Journal] = []

    def open_(boot: str = BOOT) -> Journal:
        for old in made:
            old.close()
        made.append(Journal(tmp_path / "journal.db", clock=clock, boot_id=boot))
        return made[-1]

    yield open_
    for old in made:
        old.close()


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", budget=1 << 20, min_free=0)


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    mailbox = Mailbox()
    yield mailbox
    mailbox.close()


def assembled(spool: Spool, run_uid: str, *, stream: str = "primary") -> InferenceJob:
    """A job on arrays that lie in the spool."""
    run = spool.run(run_uid)
    counts = run.allocate("counts", (4, 8, 8), np.dtype("f4"))
    counts[...] = len(run_uid)
    key = job_key(run_uid, stream, "n2n", {})
    return InferenceJob(
        key=key,
        run_uid=run_uid,
        stream=stream,
        kind="final",
        recipe="n2n",
        parameters={},
        meta={"profile": "test", "start_time": 5.0, "warnings": ["w" * 2000]},
        spool=str(run.folder),
        arrays={"counts": run.spec("counts", counts)},
        input_digest="",
        result_path=f"/elsewhere/{key}.h5",
        host_id="here",
    )


def queued(journal: Journal, job: InferenceJob, scan_id: int = 7) -> InferenceJob:
    start = {"uid": job.run_uid, "scan_id": scan_id, "data_session": "pass-1", "long": "x" * 3000}
    journal.record_run(job.run_uid, scan_id, "test", start)
    journal.add_job(job)
    journal.synced(job.key, "sha256:in")
    journal.finish_run(job.run_uid, "complete")
    return job


def result_of(key: str, fence: int, digest: str = "sha256:1") -> InferenceResult:
    return InferenceResult(
        key=key,
        fence=fence,
        result_path=f"/results/{key}.h5",
        digest=digest,
        report={"verdict": "warn", "long": "r" * 3000},
        regions=[{"box": [0, 1, 2, 3]}],
        timings={"inference": 1.0},
    )


def leased(journal: Journal, worker: str = "w1") -> InferenceJob:
    found = journal.leases.lease(worker, 10.0)
    assert found is not None
    return found[0]


def done(journal: Journal, key: str) -> None:
    given = leased(journal)
    assert given.key == key
    journal.computed(key, given.fence, result_of(key, given.fence))
    journal.committed(key, derived_uid(key))


# Upgrade in place


@pytest.mark.parametrize("version", [1, 2])
def test_a_journal_of_an_older_version_goes_on_where_it_was(tmp_path, opened, clock, version):
    path = tmp_path / "journal.db"
    states = ["queued", "leased", "computed", "committed", "failed"]
    connection = sqlite3.connect(path)
    tables = TABLES_OF_1 + (TABLES_OF_2 if version == 2 else "")
    connection.executescript(f"{tables} PRAGMA user_version = {version};")
    connection.execute("INSERT INTO boot VALUES (?)", (BOOT,))
    jobs = {}
    for n, state in enumerate([*states, "queued"]):
        job = InferenceJob(
            key=job_key(f"run-{n}", "primary", "n2n", {}),
            run_uid=f"run-{n}",
            stream="primary",
            kind="final",
            recipe="n2n",
            parameters={},
            meta={},
            spool=f"/spool/run-{n}",
            arrays={},
            input_digest="",
            result_path="/results/x.h5",
            host_id="here",
        )
        # Version 1 did not know that results refine each other.
        text = json.dumps({k: v for k, v in job.model_dump(mode="json").items() if k != "refines"})
        result = result_of(job.key, 2).model_dump_json() if state in states[2:4] else None
        connection.execute(
            "INSERT INTO runs VALUES (?, ?, 'test', '{}', 'complete', '', 1.0, 1.0)",
            (job.run_uid, n),
        )
        connection.execute(
            "INSERT INTO jobs (key, run_uid, job, state, synced, fence, failures, crashes, worker, boot_id,"
            " lease_until, not_before, result, result_uid, code, reason, created, updated)"
            " VALUES (?, ?, ?, ?, ?, 2, 0, '[]', ?, ?, 1005.0, 0, ?, ?, '', '', 1.0, 1.0)",
            (
                job.key,
                job.run_uid,
                text,
                state,
                int(n < 5),
                "w1" if state == "leased" else "",
                BOOT,
                result,
                "uid-3" if state == "committed" else None,
            ),
        )
        jobs[n] = job.key
    body = json.dumps({"id": "p1", "run_uid": "run-3", "regions": []})
    proposal = ("p1", "run-3", body, "approved", "ada", "", 1.0, 2.0)
    holes = ", ".join("?" * (len(proposal) + version - 1))
    connection.execute(
        f"INSERT INTO proposals VALUES ({holes})",  # noqa: S608 - question marks
        proposal if version == 1 else (*proposal, "run-3"),
    )
    connection.commit()
    connection.close()
    journal = opened()
    assert [one["state"] for one in journal.jobs()] == [*states, "queued"]
    assert [one["id"] for one in journal.proposals(survey_uid="run-3")] == ["p1"]
    assert journal.leases.renew(jobs[1], 2, 10.0), "who worked on goes on"
    assert [job.key for job, _ in journal.uncommitted()] == [jobs[2]]
    assert [job.run_uid for job in journal.unsynced()] == ["run-5"]
    assert leased(journal).fence == 3
    assert journal.committed(jobs[2], "uid-2")
    assert [one["key"] for one in journal.unrecorded()] == [jobs[4]], "said once more"
    assert journal.retry(jobs[4], "ada")
    assert "warning" not in journal.health()
    journal = opened()  # once is enough
    assert journal.job(jobs[3])["result_uid"] == "uid-3"
    # The way back: the file as the older version left it.
    with sqlite3.connect(copy_path(path)) as old:
        assert old.execute("PRAGMA user_version").fetchone() == (version,)
        assert old.execute("SELECT count(*) FROM jobs").fetchone() == (6,)
    old.close()


# Size


def test_old_jobs_are_thinned_to_what_must_be_known_of_them_for_ever(opened, spool, tmp_path):
    journal = opened()
    keys = [queued(journal, assembled(spool, f"run-{n}"), n).key for n in range(6)]
    for key in keys[:4]:
        done(journal, key)
    given = leased(journal)
    journal.leases.refuse(given.key, given.fence, "bad_input", "negative")
    kept_for = {"run-1"}
    before = journal.size()

    def look() -> None:
        look_after_journal(
            journal, tmp_path, budget=before - 30_000, needed=lambda uid: uid in kept_for
        )

    look_after_journal(journal, tmp_path, budget=before + 1, needed=lambda uid: False)
    assert not any(journal.lacks_request(key) for key in keys), "there is room"
    look()
    assert [journal.lacks_request(key) for key in keys] == [True, False, True, True, False, False]
    look()
    assert "journal_budget" in journal.health()["warning"], "nothing more can go"
    journal.recorded(given.key, journal.job(given.key)["updated"])
    look()
    assert journal.lacks_request(given.key), "its failure is in Tiled"
    assert journal.size() < before
    one = journal.job(keys[0])
    assert (one["state"], one["result_uid"]) == ("committed", derived_uid(keys[0]))
    assert (one["digest"], one["verdict"], one["timings"]["inference"]) == ("sha256:1", "warn", 1.0)
    assert journal.run("run-0")["start"] == {"uid": "run-0", "scan_id": 0, "data_session": "pass-1"}
    assert journal.outcome("run-0")["status"] == "done" and journal.released("run-0")
    again = journal.request(keys[0])
    assert not journal.add_job(again), "asked for once more it is found"
    assert journal.computed(keys[0], 1, result_of(keys[0], 1)) == "again"
    assert journal.job(keys[5])["state"] == "queued"


# The spool, and what it remembers


def test_jobs_of_a_journal_that_is_gone_come_back_from_the_spool(opened, spool, tmp_path):
    journal = opened()
    whole = queued(journal, assembled(spool, "run-whole"))
    part = queued(journal, assembled(spool, "run-part"))
    torn = queued(journal, assembled(spool, "run-torn"))
    for job in (whole, part, torn):
        folder = Path(job.spool)
        digest = digest_arrays({"counts": np.load(folder / "counts.npy")})
        write_request(
            folder,
            job.model_copy(update={"input_digest": digest}),
            journal.run(job.run_uid),
        )
    write_end(Path(whole.spool), "repaired")
    content = bytearray((Path(torn.spool) / "counts.npy").read_bytes())
    content[-3] ^= 8
    (Path(torn.spool) / "counts.npy").write_bytes(content)
    (Path(part.spool) / "job.0123456789abcdef.json").write_text("{")
    journal.close()
    for left in tmp_path.glob("journal*"):
        left.unlink()
    journal = opened()
    assert set(take_up(journal, spool, tmp_path)) == {whole.key, part.key}
    assert take_up(journal, spool, tmp_path) == []
    assert journal.run("run-whole")["start"]["data_session"] == "pass-1"
    assert journal.run("run-whole")["state"] == "complete" and journal.released("run-whole")
    assert journal.run("run-part")["state"] == "open", "its documents may bring more"
    wrong = journal.request(whole.key).model_copy(update={"spool": "/spool/run-whple"})
    assert journal.restate(wrong)
    take_up(journal, spool, tmp_path, repaired=True)
    assert journal.request(whole.key).spool == whole.spool, "the spool is believed"
    given = [leased(journal).key for _ in range(2)]
    assert set(given) == {whole.key, part.key}
    assert journal.job(torn.key) is None, "what was changed is not computed"
    assert spool.folder("run-torn") is not None


def test_a_result_that_is_there_is_taken_and_not_replaced(opened, spool, tmp_path):
    journal = opened()
    job = assembled(spool, "run-1")
    write_request(
        Path(job.spool), job, {"scan_id": 7, "profile": "test", "start": {"uid": "run-1"}}
    )
    path = tmp_path / f"{job.key}.h5"
    array = ResultArray("values", ("row",), "", np.ones(3, "f4"))
    digest = write_result(path, Processed([array], {"verdict": "pass"}), {"key": job.key})
    kept = path.read_bytes()
    assert take_up(journal, spool, tmp_path) == [job.key]
    ((_, result),) = journal.uncommitted()
    assert (result.digest, result.report, result.result_path) == (
        digest,
        {"verdict": "pass"},
        str(path),
    )
    # A worker of the life before comes with what it made: the first result stands, on the disk as well.
    fenced = fenced_path(tmp_path, job.key, 1)
    fenced.write_bytes(b"another")
    said = result_of(job.key, 1).model_copy(update={"result_path": str(fenced)})
    assert accept(journal, tmp_path, said) == "unknown"
    assert path.read_bytes() == kept


def test_a_run_without_room_waits_in_its_log_and_says_so(opened, tmp_path):
    journal = opened()
    spool = Spool(tmp_path / "spool", budget=450_000, min_free=0)
    old = queued(journal, assembled(spool, "old-run"))
    spool.run("old-run").allocate("frames", (200_000,), np.dtype("u1"))
    given = leased(journal)
    journal.leases.refuse(given.key, given.fence, "bad_input", "negative")
    assert sweep(journal, spool, tmp_path, keep_spool=False) == [], "kept to be tried again"
    said: list[str] = []

    class Big:
        """Takes more than half of the spool with its descriptor."""

        def __call__(self, name: str, doc: Any) -> list[Update]:
            if name == "descriptor":
                spool.run("run").allocate("frames", (260_000,), np.dtype("u1"))
            return []

        def finish(self, reason: str) -> list[Update]:
            return []

        def close(self) -> None:
            said.append("closed")

    def sent() -> RunIntake:
        """The documents from the log, from the beginning."""
        run = RunIntake(
            "run",
            b"client",
            Uses(
                open_run=lambda start: Big(),  # type: ignore[arg-type, return-value]
                on_update=lambda update: None,
                on_closed=lambda uid: said.append("over"),
                on_passed_by=lambda uid, reason: None,
                on_failed=lambda uid, reason: said.append(reason),
            ),
        )
        for n, name in enumerate(("start", "descriptor", "stop")):
            run.offer(n, n + 1, pack([name, {"uid": "run"}]))
        assert run.claim()
        run.work(lambda: None)
        return run

    held = sent()
    assert held.state == "held" and "no room in the spool" in held.reason
    assert said == ["closed"], "neither failed nor over"
    assert "1 runs wait for room" in spool.status()["warning"]
    assert sweep(journal, spool, tmp_path, keep_spool=False) == ["old-run"], "it makes room"
    assert sent().state == "closed" and said[-2:] == ["over", "closed"]
    assert "warning" not in spool.status()
    assert not JobRequestsOf(journal).can_retry(old.key)


class JobRequestsOf:
    """Whether a job could be tried again, as people are told."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def can_retry(self, key: str) -> bool:
        with_mail = Mailbox()
        try:
            return bool(JobRequests(self._journal, with_mail).retry("ada", key)["retried"])
        finally:
            with_mail.close()


def test_only_what_is_over_leaves_the_spool_and_the_results(opened, spool, tmp_path):
    journal = opened()
    jobs = [queued(journal, assembled(spool, f"run-{n}"), n) for n in range(3)]
    done(journal, jobs[0].key)
    given = leased(journal)
    journal.computed(given.key, given.fence, result_of(given.key, given.fence))
    assert sweep(journal, spool, tmp_path, keep_spool=False) == ["run-0"]
    assert spool.runs() == ["run-1", "run-2"], "Tiled has not confirmed them"
    names = [f"{jobs[0].key}.1.h5", f"{jobs[2].key}.1.h5", f"{jobs[0].key}.h5"]
    names.append(f"{jobs[0].key}.offline-0123456789ab.h5")
    for name in names:
        (tmp_path / name).write_bytes(b"")
    leased(journal)
    tidy_dispatches(journal, tmp_path)
    assert {path.name for path in tmp_path.glob("*.h5")} == set(names[1:])


# What people do


def test_a_failed_job_is_tried_again_by_name_and_the_journal_knows_by_whom(opened, spool, mailbox):
    journal = opened()
    people = JobRequests(journal, mailbox)
    jobs = [queued(journal, assembled(spool, f"run-{n}"), 40 + n) for n in range(3)]
    for _ in range(2):
        given = leased(journal)
        journal.leases.refuse(given.key, given.fence, "bad_input", "negative")
    with pytest.raises(LookupError, match="means several: .*run-0.*run-1.*run-2"):
        people.retry("ada", "run-")
    with pytest.raises(LookupError, match="no job is meant"):
        people.retry("ada", "nobody")
    with pytest.raises(LookupError, match="too little"):
        people.quarantine("ada", "r", "why")
    with pytest.raises(ValueError, match="is queued: only a failed job"):
        people.retry("ada", "42")
    answer = people.retry("ada (key: local)", "40", reason="the detector is mended")
    assert [one["run_uid"] for one in answer["retried"]] == ["run-0"]
    assert [type(one) for one in mailbox.drain()] == [Submit]
    (step,) = people.jobs("queued", "run-0")["jobs"][0]["history"]
    assert (step["what"], step["who"]) == ("retry", "ada (key: local)")
    assert step["reason"] == "the detector is mended; it had failed: bad_input: negative"
    assert leased(journal).fence == 2, "dispatches of before stay older"
    assert people.retry("ada", jobs[1].key[:12])["retried"]
    given = leased(journal)
    journal.leases.refuse(given.key, given.fence, "bad_input", "again")
    spool.delete("run-1")
    (refused,) = people.retry("ada", all_failed=True)["refused"]
    assert "its input is gone" in refused["reason"] and "inscan process run-1" in refused["reason"]
    assert journal.job(jobs[1].key)["state"] == "failed"


def test_a_job_is_taken_out_of_the_queue_with_a_reason_even_from_its_worker(opened, spool, mailbox):
    journal = opened()
    people = JobRequests(journal, mailbox)
    jobs = [queued(journal, assembled(spool, f"run-{n}"), n) for n in range(3)]
    given = leased(journal)
    with pytest.raises(ValueError, match="say why"):
        people.quarantine("ada", "run-0", " ")
    for number in (0, 1):
        people.quarantine("ada", f"run-{number}", "it blocks the others")
    assert [one.key for one in mailbox.drain() if isinstance(one, TakenOut)] == [
        jobs[0].key,
        jobs[1].key,
    ]
    assert not journal.leases.renew(given.key, given.fence, 10.0)
    taken = people.jobs(code="quarantined")["jobs"]
    assert [one["reason"] for one in taken] == [
        "taken out of the queue by ada: it blocks the others"
    ] * 2
    assert journal.computed(given.key, given.fence, result_of(given.key, given.fence)) == "late"
    done(journal, jobs[2].key)
    with pytest.raises(ValueError, match="is committed: only one that waits"):
        people.quarantine("ada", "run-2", "too late")


def test_neither_waiting_nor_registering_is_told_by_the_date(opened, spool, clock, monkeypatch):
    journal = opened()
    job = queued(journal, assembled(spool, "run-1"))
    monkeypatch.setattr("time.time", lambda: 4e9)
    clock.now += 3.0
    found = journal.leases.lease("w1", 10.0)
    assert found is not None and found[1] == 3.0
    journal.computed(job.key, 1, result_of(job.key, 1))
    monkeypatch.setattr("time.time", lambda: 5.0)
    clock.now += 2.0
    journal.committed(job.key, "uid")
    assert journal.job(job.key)["timings"]["registered"] == 2.0
