"""The journal: leases and fences on a clock of the test, and what any order of events comes to."""

import json
import sqlite3
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from inscan.service.journal import Journal, JournalError
from inscan.service.journal_file import TABLES
from inscan.service.leases import MAX_CRASHED_WORKERS, MAX_CRASHES, MAX_FAILURES
from inscan.service.messages import ArraySpec, InferenceJob, InferenceResult, job_key


class Clock:
    """A monotonic clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def journal(tmp_path, clock):
    journal = Journal(tmp_path / "journal.db", clock=clock, boot_id="boot-1")
    yield journal
    journal.close()


def job_of(run_uid: str = "run-1") -> InferenceJob:
    return InferenceJob(
        key=job_key(run_uid, "primary", "n2n", {}),
        run_uid=run_uid,
        stream="primary",
        kind="final",
        recipe="n2n",
        parameters={},
        meta={"profile": "test"},
        spool=f"/spool/{run_uid}",
        arrays={"counts": ArraySpec(file="counts.npy", shape=(1,), dtype="<f4", nbytes=4)},
        input_digest="",
        result_path="/results/x.h5",
        host_id="here",
    )


def result_of(key: str, fence: int, digest: str = "sha256:1") -> InferenceResult:
    return InferenceResult(
        key=key,
        fence=fence,
        result_path=f"/results/{fence}.h5",
        digest=digest,
        report={"verdict": "warn"},
        regions=[],
        timings={},
    )


def leased(journal: Journal, worker: str = "w1", lease_s: float = 10.0) -> InferenceJob:
    found = journal.leases.lease(worker, lease_s)
    assert found is not None
    return found[0]


def state_of(journal: Journal, key: str) -> str:
    found = journal.job(key)
    assert found is not None
    return found["state"]


def test_a_job_goes_through_its_states(journal):
    job = job_of()
    assert journal.add_job(job) and not journal.add_job(job)
    given = leased(journal)
    assert given.fence == 1 and given.key == job.key
    assert journal.leases.lease("w2", 10.0) is None
    assert journal.computed(job.key, 1, result_of(job.key, 1)) == "accepted"
    assert journal.uncommitted() == [], "its input is not known to be on the disk"
    journal.synced(job.key, "sha256:in")
    ((ready, result),) = journal.uncommitted()
    assert ready.input_digest == "sha256:in" and result.fence == 1
    assert journal.committed(job.key, "uid-1")
    assert not journal.committed(job.key, "uid-2")
    assert not journal.fail(job.key, "late", "too late")
    found = journal.job(job.key)
    assert found is not None
    assert (found["state"], found["result_uid"], found["verdict"]) == ("committed", "uid-1", "warn")
    assert found["timings"]["registered"] >= 0


def test_jobs_are_given_out_in_the_order_they_came(journal):
    keys = []
    for n in range(5):
        job = job_of(f"run-{n}")
        journal.add_job(job)
        keys.append(job.key)
    assert [leased(journal).key for _ in keys] == keys


def test_a_lease_ends_when_it_is_not_renewed(journal, clock):
    journal.add_job(job_of())
    given = leased(journal)
    clock.now += 9
    assert journal.leases.renew(given.key, 1, 10.0)
    clock.now += 9
    assert journal.leases.expire() == []
    clock.now += 2
    assert journal.leases.expire() == [(given.key, 1)]
    assert not journal.leases.renew(given.key, 1, 10.0)
    clock.now += 100
    assert leased(journal, "w2").fence == 2


def test_leases_do_not_follow_the_date(journal, clock, monkeypatch):
    journal.add_job(job_of())
    leased(journal)
    monkeypatch.setattr("time.time", lambda: 4e9)
    assert journal.leases.expire() == []
    clock.now += 11
    monkeypatch.setattr("time.time", lambda: 0.0)
    assert len(journal.leases.expire()) == 1


def test_a_job_that_takes_two_workers_down_is_quarantined(journal, clock):
    journal.add_job(job_of())
    for number in range(MAX_CRASHED_WORKERS):
        clock.now += 100
        given = leased(journal, f"w{number}")
        assert journal.leases.crashed(given.key, given.fence, "killed")
    found = journal.job(job_of().key)
    assert found["state"] == "failed" and found["code"] == "quarantined"
    assert found["lost_on"] == ["w0", "w1"] and "killed" in found["reason"]
    clock.now += 1000
    assert journal.leases.lease("w9", 10.0) is None


def test_one_worker_that_is_lost_every_time_does_not_try_for_ever(journal, clock):
    journal.add_job(job_of())
    for _ in range(MAX_CRASHES):
        clock.now += 100
        given = leased(journal, "always the same")
        journal.leases.crashed(given.key, given.fence, "hung")
    assert state_of(journal, job_of().key) == "failed"


def test_what_may_pass_is_tried_again_after_longer_and_longer_pauses(journal, clock):
    journal.add_job(job_of())
    pauses = []
    for _ in range(MAX_FAILURES - 1):
        given = leased(journal)
        assert journal.leases.retry(given.key, given.fence, "io", "disk away")
        assert journal.leases.lease("w", 1.0) is None
        before = clock.now
        while True:
            clock.now += 0.05
            found = journal.leases.lease("w", 1.0)
            if found is not None:
                journal.leases.release(found[0].key, found[0].fence)
                break
        pauses.append(clock.now - before)
    for number, pause in enumerate(pauses):
        assert 0.5 * 2**number <= pause <= 1.5 * 2**number + 0.1
    given = leased(journal)
    journal.leases.retry(given.key, given.fence, "io", "disk away")
    found = journal.job(given.key)
    assert found["state"] == "failed" and "gave up after 4 tries" in found["reason"]


def test_what_will_not_pass_ends_the_job_at_once_if_the_dispatch_still_holds_it(journal, clock):
    journal.add_job(job_of())
    first = leased(journal)
    clock.now += 11
    journal.leases.expire()
    clock.now += 100
    second = leased(journal, "w2")
    assert not journal.leases.refuse(first.key, first.fence, "bad_input", "says a zombie")
    assert state_of(journal, first.key) == "leased"
    assert journal.leases.refuse(second.key, second.fence, "bad_input", "negative counts")
    assert state_of(journal, first.key) == "failed"


def test_a_job_handed_back_counts_for_nothing(journal):
    journal.add_job(job_of())
    for _ in range(20):
        given = leased(journal)
        assert journal.leases.release(given.key, given.fence)
    found = journal.job(job_of().key)
    assert (found["state"], found["failures"], found["lost_on"]) == ("queued", 0, [])


def test_workers_of_an_earlier_service_are_known_to_be_gone(journal):
    for n, worker in enumerate(("child-1", "child-2", "host-3")):
        journal.add_job(job_of(f"run-{n}"))
        leased(journal, worker)
    assert journal.leases.release_workers("child-") == 2
    assert journal.status()["jobs"] == {"leased": 1, "queued": 2}


def test_the_first_result_stands(journal, clock):
    journal.add_job(job_of())
    zombie = leased(journal)
    clock.now += 11
    journal.leases.expire()
    clock.now += 100
    second = leased(journal, "w2")
    key = second.key
    assert (
        journal.computed(key, second.fence, result_of(key, second.fence, "sha256:2")) == "accepted"
    )
    assert journal.computed(key, second.fence, result_of(key, second.fence, "sha256:2")) == "again"
    assert journal.computed(key, zombie.fence, result_of(key, zombie.fence, "sha256:2")) == "same"
    assert (
        journal.computed(key, zombie.fence, result_of(key, zombie.fence, "sha256:9")) == "differs"
    )
    assert journal.computed(key, 99, result_of(key, 99)) == "unknown"
    assert journal.computed("f" * 64, 1, result_of("f" * 64, 1)) == "unknown"
    assert journal.job(key)["digest"] == "sha256:2"
    assert [repeat["same"] for repeat in journal.repeats(key)] == [True, False]


def test_a_zombie_that_is_first_is_as_good_as_any(journal, clock):
    journal.add_job(job_of())
    zombie = leased(journal)
    clock.now += 11
    journal.leases.expire()
    clock.now += 100
    second = leased(journal, "w2")
    assert journal.computed(zombie.key, 1, result_of(zombie.key, 1)) == "accepted"
    assert not journal.leases.renew(second.key, second.fence, 10.0), "the other may stop"


def test_a_failed_job_takes_no_late_result(journal):
    journal.add_job(job_of())
    given = leased(journal)
    journal.leases.refuse(given.key, 1, "bad_input", "negative")
    assert journal.computed(given.key, 1, result_of(given.key, 1)) == "late"
    assert state_of(journal, given.key) == "failed"


def test_a_restart_keeps_leases_and_a_reboot_voids_them(tmp_path, clock):
    path = tmp_path / "journal.db"
    first = Journal(path, clock=clock, boot_id="boot-1")
    job = job_of()
    first.add_job(job)
    first.synced(job.key, "sha256:in")
    leased(first)
    first.close()
    again = Journal(path, clock=clock, boot_id="boot-1")
    assert again.leases.renew(job.key, 1, 10.0)
    again.close()
    clock.now = 3.0  # the clock of another boot begins anew
    after = Journal(path, clock=clock, boot_id="boot-2")
    assert leased(after, "w2").fence == 2
    after.close()


def test_a_job_that_was_not_synced_does_not_survive_a_power_cut(tmp_path, clock):
    path = tmp_path / "journal.db"
    first = Journal(path, clock=clock, boot_id="boot-1")
    first.record_run("run-1", 7, "test", {"uid": "run-1"})
    first.add_job(job_of())
    first.finish_run("run-1", "complete")
    assert not first.released("run-1"), "documents are still needed"
    first.close()
    again = Journal(path, clock=clock, boot_id="boot-1")
    assert [job.run_uid for job in again.unsynced()] == ["run-1"], "a mere restart loses nothing"
    again.close()
    after = Journal(path, clock=clock, boot_id="boot-2")
    assert after.jobs() == [] and [run["state"] for run in after.runs()] == ["open"]
    assert not after.released("run-1"), "so the documents come again"
    assert after.add_job(job_of())
    after.close()


def test_runs_end_once_except_that_incomplete_is_provisional(journal):
    assert journal.record_run("run-1", 7, "test", {"uid": "run-1"})
    assert not journal.record_run("run-1", 7, "test", {"uid": "run-1"})
    journal.finish_run("run-1", "incomplete", "no word")
    assert journal.outcome("run-1")["status"] == "failed"
    assert not journal.released("run-1")
    journal.record_run("run-1", 7, "test", {"uid": "run-1"})
    assert journal.run("run-1")["state"] == "open" and journal.outcome("run-1") is None
    journal.finish_run("run-1", "failed", "no energies")
    journal.finish_run("run-1", "complete")
    assert journal.run("run-1")["reason"] == "no energies"
    journal.finish_run("run-2", "passed_by", "no start document")
    assert journal.outcome("run-2")["status"] == "passed_by"


def test_an_outcome_is_the_first_result_and_settled_when_all_have_ended(journal):
    journal.record_run("run-1", 7, "test", {"uid": "run-1"})
    quick = job_of()
    slow = quick.model_copy(update={"key": "b" * 64, "parameters": {"fit_steps": 100}})
    for job in (quick, slow):
        journal.add_job(job)
        journal.synced(job.key, "sha256:in")
    journal.finish_run("run-1", "complete")
    assert journal.outcome("run-1") is None
    leased(journal)
    leased(journal)
    journal.computed(quick.key, 1, result_of(quick.key, 1))
    proposal = {"id": "p1", "run_uid": "run-1", "state": "suggested", "regions": []}
    journal.committed(quick.key, "uid-1", (proposal,))
    first = journal.outcome("run-1")
    assert (first["status"], first["result_uid"]) == ("done", "uid-1")
    assert [p["id"] for p in first["proposals"]] == ["p1"]
    assert journal.outcome("run-1", settled=True) is None
    journal.computed(slow.key, 1, result_of(slow.key, 1))
    journal.committed(slow.key, "uid-2")
    assert journal.outcome("run-1", settled=True)["result_uid"] == "uid-2"


def test_a_run_of_several_stacks_has_an_outcome_when_each_of_them_has(journal):
    first = job_of()
    second = first.model_copy(update={"key": "b" * 64, "stream": "primary@2"})
    finer = first.model_copy(update={"key": "c" * 64, "refines": first.key})
    journal.record_run("run-1", 7, "test", {"uid": "run-1"})
    for job in (first, finer, second):
        journal.add_job(job)
        journal.synced(job.key, "sha256:in")
    journal.finish_run("run-1", "complete")
    # Those that refine nothing come first; here the second stack is done before the first one.
    assert [leased(journal).key for _ in range(3)] == [first.key, second.key, finer.key]
    journal.computed(second.key, 1, result_of(second.key, 1))
    journal.committed(second.key, "uid-of-2")
    assert journal.outcome("run-1") is None, "the first stack may still get a result"
    journal.computed(first.key, 1, result_of(first.key, 1))
    journal.committed(first.key, "uid-of-1")
    found = journal.outcome("run-1")
    assert (found["status"], found["result_uid"]) == ("done", "uid-of-1")
    assert journal.outcome("run-1", settled=True) is None
    journal.fail(finer.key, "too_slow", "took longer")
    found = journal.outcome("run-1", settled=True)
    assert (found["status"], found["result_uid"]) == ("done", "uid-of-1"), "each has a result"
    assert found["reason"] == "primary: took longer"


@pytest.mark.parametrize("lost", [0, 1])
def test_a_run_of_several_stacks_of_which_one_has_none_has_failed(journal, lost):
    jobs = [job_of()]
    jobs.append(jobs[0].model_copy(update={"key": "b" * 64, "stream": "primary@2"}))
    journal.record_run("run-1", 7, "test", {"uid": "run-1"})
    for job in jobs:
        journal.add_job(job)
        journal.synced(job.key, "sha256:in")
    journal.finish_run("run-1", "complete")
    good = jobs[1 - lost]
    for _ in jobs:
        leased(journal)
    journal.fail(jobs[lost].key, "no_memory", "too large")
    assert journal.outcome("run-1") is None
    journal.computed(good.key, 1, result_of(good.key, 1))
    journal.committed(good.key, "uid-good")
    found = journal.outcome("run-1")
    assert (found["status"], found["result_uid"]) == ("failed", "uid-good")
    assert found["reason"] == f"{jobs[lost].stream}: too large"
    assert {one["stream"]: one["state"] for one in found["results"]} == {
        jobs[lost].stream: "failed",
        good.stream: "committed",
    }


def test_first_results_come_before_those_that_refine_one(journal):
    first, second = job_of("run-1"), job_of("run-2")
    finer = first.model_copy(update={"key": "b" * 64, "refines": first.key})
    for job in (first, finer, second):
        journal.add_job(job)
    assert [leased(journal).key for _ in range(3)] == [first.key, second.key, finer.key]


def test_a_job_is_kept_as_it_was_asked_for(journal):
    job = job_of()
    assert journal.request(job.key) is None
    journal.add_job(job)
    journal.synced(job.key, "sha256:in")
    assert journal.request(job.key) == job.model_copy(update={"input_digest": "sha256:in"})


def test_a_proposal_is_taken_by_one(journal):
    proposal = {"id": "p1", "run_uid": "run-1", "state": "approved", "regions": [1]}
    assert journal.add_proposal(proposal) and not journal.add_proposal(proposal)
    wins = []

    def take(who: str) -> None:
        if journal.set_proposal("p1", "running", who, expected=("approved",)):
            wins.append(who)

    threads = [threading.Thread(target=take, args=(f"plan {n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (found,) = journal.proposals(run_uid="run-1", state="running")
    assert wins == [found["who"]] and found["regions"] == [1]
    assert [step["state"] for step in found["history"]] == ["approved", "running"]
    with pytest.raises(LookupError, match="p9"):
        journal.set_proposal("p9", "approved", "me")
    with pytest.raises(ValueError, match="run_uid"):
        journal.add_proposal({"id": "p2", "state": "suggested"})


def test_a_journal_of_a_newer_version_or_of_others_is_refused(tmp_path):
    path = tmp_path / "journal.db"
    Journal(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(JournalError, match="newer"):
        Journal(path)
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE holidays (day TEXT)")
    connection.close()
    with pytest.raises(JournalError, match="something else"):
        Journal(other)


def test_a_journal_of_the_version_before_is_brought_up_and_keeps_everything(tmp_path):
    path = tmp_path / "journal.db"
    with sqlite3.connect(path) as connection:
        connection.executescript(f"{TABLES} PRAGMA user_version = 1;")
        body = json.dumps({"id": "p1", "run_uid": "run-1", "state": "suggested", "regions": []})
        connection.execute(
            "INSERT INTO proposals VALUES ('p1', 'run-1', ?, 'done', 'ada', '', 1.0, 2.0)", (body,)
        )
        connection.execute(
            "INSERT INTO proposal_history VALUES ('p1', 'running', 'plan one', '', 1.5)"
        )
    connection.close()
    journal = Journal(path)
    assert journal.add_proposal(
        {"id": "p2", "run_uid": "c", "survey_uid": "run-1", "state": "done"}
    )
    old, new = journal.proposals(survey_uid="run-1")
    assert (old["id"], old["state"], old["attempts"], old["begun"]) == ("p1", "done", 1, [])
    assert new["id"] == "p2"
    journal.close()
    again = Journal(path)  # once is enough
    assert [one["id"] for one in again.proposals()] == ["p1", "p2"]
    again.close()


def test_notes_of_a_proposal_stay(tmp_path):
    path = tmp_path / "journal.db"
    journal = Journal(path)
    journal.add_proposal({"id": "p1", "run_uid": "run-1", "state": "approved", "regions": []})
    assert journal.note_proposal("p1", "begun", "x/1", {"region": "1"}, 10.0)
    assert not journal.note_proposal("p1", "begun", "x/1", {"region": "1"}, 11.0)
    assert journal.note_proposal("p1", "run", "fine-1", {}, 12.0)
    assert journal.note_proposal("p1", "measured", "1/fine-1", {"profile": "a"}, 13.0)
    with pytest.raises(LookupError, match="p9"):
        journal.note_proposal("p9", "run", "fine-1", {}, 1.0)
    journal.close()
    journal = Journal(path)
    (found,) = journal.proposals(prefix="p")
    assert [(one["name"], one["at"]) for one in found["begun"]] == [("x/1", 11.0)]
    assert (found["fine_uids"], found["heard"]) == (["fine-1"], 13.0)
    assert journal.records("a") == [{"profile": "a"}] and journal.records("b") == []
    journal.close()


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order, a job ends once, and its record does not change any more."""

    jobs = Bundle("jobs")
    dispatches = Bundle("dispatches")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "journal.db"
        self.journal = Journal(self.path, clock=self.clock, boot_id="boot-0", backoff_s=1.0)
        self.submitted: set[str] = set()
        self.ended: dict[str, tuple] = {}
        self.fences: dict[str, int] = {}
        self.accepted: dict[str, str] = {}

    def teardown(self) -> None:
        # Whoever works on gets every job to an end: nothing waits for ever.
        for _ in range(2 * len(self.submitted)):
            self.clock.now += 1000.0
            self.journal.leases.expire()
            self.clock.now += 1000.0
            found = self.journal.leases.lease("last", 10.0)
            if found is None:
                break
            self.journal.computed(
                found[0].key, found[0].fence, result_of(found[0].key, found[0].fence)
            )
        for key in self.submitted:
            self.journal.synced(key, "sha256:in")
        for job, _ in self.journal.uncommitted():
            self.journal.committed(job.key, "uid")
        assert {job["key"] for job in self.journal.jobs()} == self.submitted
        assert {job["state"] for job in self.journal.jobs()} <= {"committed", "failed"}
        self.journal.close()
        self.folder.cleanup()

    @rule(target=jobs, number=st.integers(0, 3))
    def submit(self, number: int) -> str:
        job = job_of(f"run-{number}")
        assert self.journal.add_job(job) == (job.key not in self.submitted)
        self.submitted.add(job.key)
        return job.key

    @rule(key=jobs)
    def sync(self, key: str) -> None:
        self.journal.synced(key, "sha256:in")

    @rule(target=dispatches, worker=st.sampled_from(["w1", "w2", "w3"]))
    def lease(self, worker: str) -> tuple[str, int] | None:
        found = self.journal.leases.lease(worker, 10.0)
        if found is None:
            return None
        job = found[0]
        assert job.fence == self.fences.get(job.key, 0) + 1, "fences rise by one"
        self.fences[job.key] = job.fence
        return job.key, job.fence

    @rule(seconds=st.floats(0, 30))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def expire(self) -> None:
        self.journal.leases.expire()

    @rule(
        dispatch=dispatches, act=st.sampled_from(["renew", "release", "crash", "retry", "refuse"])
    )
    def speak_of(self, dispatch: tuple[str, int] | None, act: str) -> None:
        if dispatch is None:
            return
        leases, before = self.journal.leases, self.journal.job(dispatch[0])
        changed = {
            "renew": lambda: leases.renew(*dispatch, 10.0),
            "release": lambda: leases.release(*dispatch),
            "crash": lambda: leases.crashed(*dispatch, "killed"),
            "retry": lambda: leases.retry(*dispatch, "io", "away"),
            "refuse": lambda: leases.refuse(*dispatch, "bad_input", "no"),
        }[act]()
        assert before is not None
        holds = before["state"] == "leased" and before["dispatches"] == dispatch[1]
        assert changed == holds, "only the dispatch that holds the job may speak of it"

    @rule(dispatch=dispatches, digest=st.sampled_from(["sha256:1", "sha256:2"]))
    def done(self, dispatch: tuple[str, int] | None, digest: str) -> None:
        if dispatch is None:
            return
        key, fence = dispatch
        taken = self.journal.computed(key, fence, result_of(key, fence, digest))
        if taken == "accepted":
            assert key not in self.accepted and key not in self.ended
            self.accepted[key] = digest
        elif taken == "differs":
            assert self.accepted[key] != digest
        elif taken == "late":
            assert self.ended[key][0] == "failed"

    @rule()
    def commit(self) -> None:
        for job, result in self.journal.uncommitted():
            assert result.digest == self.accepted[job.key]
            assert self.journal.committed(job.key, f"uid-{job.run_uid}")

    @rule(key=jobs)
    def give_up(self, key: str) -> None:
        assert self.journal.fail(key, "tiled", "rejected") == (key not in self.ended)

    @rule()
    def restart(self) -> None:
        self.journal.close()
        self.journal = Journal(self.path, clock=self.clock, boot_id="boot-0", backoff_s=1.0)

    @invariant()
    def ends_are_final(self) -> None:
        for job in self.journal.jobs():
            record = (job["state"], job["digest"], job["result_uid"], job["code"], job["reason"])
            if job["key"] in self.ended:
                assert record == self.ended[job["key"]]
            elif job["state"] in ("committed", "failed"):
                self.ended[job["key"]] = record

    @invariant()
    def none_is_lost(self) -> None:
        assert {job["key"] for job in self.journal.jobs()} == self.submitted


AnyOrder.TestCase.settings = hypothesis_settings(
    max_examples=25, stateful_step_count=40, deadline=None
)
TestAnyOrder = AnyOrder.TestCase


def test_start_documents_of_any_kind_are_kept(journal):
    journal.record_run("run-1", None, "test", {"uid": "run-1", "odd": {1, 2}.__class__})
    assert json.dumps(journal.run("run-1")["start"])
