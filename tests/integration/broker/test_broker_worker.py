"""Broker and workers: real sockets, real processes, and what becomes of jobs when those die."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from inscan.service.events import Look, WorkerLost
from inscan.service.mailbox import Outcome, SnapshotDone
from inscan.service.result_file import read_result
from inscan.service.result_view import digest_of
from inscan.service.writer import Prepare


def values_of(path: str) -> np.ndarray:
    return read_result(Path(path)).processed.arrays[0].values


def counts_of(rig, run_uid: str) -> np.ndarray:
    return np.load(rig.settings.spool_dir / run_uid / "counts.npy")


def results_in(rig) -> list[str]:
    return sorted(path.name for path in rig.settings.results_dir.iterdir())


def test_a_job_goes_to_a_worker_and_its_result_into_the_journal(rig, wait_until):
    rig.worker("double")
    key = rig.submit("run-1")
    rig.reaches(key, "computed")
    ((job, result),) = rig.journal.uncommitted()
    assert np.array_equal(values_of(result.result_path), 2 * counts_of(rig, "run-1"))
    assert result.result_path == job.result_path
    assert result.digest == digest_of(Path(result.result_path))
    assert result.report["verdict"] == "pass"
    assert result.report["sum"] == pytest.approx(2 * counts_of(rig, "run-1").sum())
    stages = {"queued", "mapped", "inference", "written", "synced"}
    assert stages <= set(result.timings) and all(t >= 0 for t in result.timings.values())
    assert results_in(rig) == [f"{key}.h5"]
    assert Look() in rig.writer.drain()
    wait_until(lambda: rig.broker.status()["workers"][0]["state"] == "idle", "credit back")


def test_many_jobs_are_shared_and_each_is_done_once(rig):
    for _ in range(2):
        rig.worker("double")
    keys = [rig.submit(f"run-{n}", seed=n) for n in range(12)]
    for n, key in enumerate(keys):
        found = rig.reaches(key, "computed")
        assert found["dispatches"] == 1
        assert np.array_equal(values_of(found["result_path"]), 2 * counts_of(rig, f"run-{n}"))
    assert results_in(rig) == sorted(f"{key}.h5" for key in keys)


def test_another_worker_finishes_what_a_killed_one_began(rig):
    first = rig.worker("wait")
    key = rig.submit("run-1")
    rig.begun(first)
    first.kill()
    first.wait()
    rig.worker("double")
    found = rig.reaches(key, "computed")
    assert found["dispatches"] == 2
    assert len(found["lost_on"]) == 1


def test_the_end_of_a_child_is_no_matter_of_waiting_for_its_lease(rig_in):
    rig = rig_in(lease_s=60.0)
    first = rig.worker("wait")
    key = rig.submit("run-1")
    rig.begun(first)
    first.kill()
    first.wait()
    rig.broker.mailbox.post(WorkerLost(first.pid, "killed"))
    rig.worker("double")
    assert rig.reaches(key, "computed", 10.0)["dispatches"] == 2


def test_a_job_that_kills_two_workers_is_quarantined(rig, wait_until):
    key = rig.submit("run-1")
    for _ in range(2):
        assert rig.worker("die").wait(20) == -signal.SIGKILL
    found = rig.reaches(key, "failed")
    assert found["code"] == "quarantined"
    assert len(set(found["lost_on"])) == 2
    # The state is in the journal a moment before the outcome is posted.
    told = wait_until(rig.ingest.drain, "an outcome")
    (outcome,) = (item for item in told if isinstance(item, Outcome))
    assert outcome.run_uid == "run-1" and outcome.payload["status"] == "failed"
    assert "quarantined" in outcome.payload["reason"]
    rig.worker("double")
    rig.reaches(rig.submit("run-2"), "computed")
    assert rig.state_of(key) == "failed"


def test_a_frozen_worker_loses_its_job_and_its_late_result_changes_nothing(rig):
    frozen = rig.worker("wait_noisy")
    key = rig.submit("run-1")
    rig.begun(frozen)
    os.kill(frozen.pid, signal.SIGSTOP)
    other = rig.worker("wait_noisy")
    rig.begun(other)
    (rig.state / "go").touch()
    found = rig.reaches(key, "computed")
    first = digest_of(Path(found["result_path"]))
    os.kill(frozen.pid, signal.SIGCONT)
    rig.settle(frozen)
    after = rig.journal.job(key)
    assert after["digest"] == found["digest"] == first == digest_of(Path(found["result_path"]))
    assert results_in(rig) == [f"{key}.h5"]


@pytest.mark.parametrize(
    ("recipe", "code", "words"),
    [
        ("refuse", "bad_input", "negative at row 3"),
        ("out_of_memory", "too_large", "3 TiB"),
        ("stumble", "error", "gave up after 4 tries"),
    ],
)
def test_a_failure_is_recorded_with_its_reason(rig, recipe, code, words):
    worker = rig.worker(recipe)
    key = rig.submit("run-1")
    found = rig.reaches(key, "failed")
    assert found["code"] == code
    assert words in found["reason"]
    assert found["dispatches"] == (4 if recipe == "stumble" else 1)
    assert worker.poll() is None, "the worker itself goes on"


def test_a_job_that_hangs_goes_elsewhere_and_its_worker_ends(rig_in):
    rig = rig_in(progress_s=0.5)
    stuck = rig.worker("hang", "--grace", "0.5")
    key = rig.submit("run-1")
    assert stuck.wait(20) == 75
    rig.worker("double")
    found = rig.reaches(key, "computed")
    assert len(found["lost_on"]) == 1


def test_a_job_beyond_its_budget_fails_by_name(rig_in):
    rig = rig_in(budgets={"n2n": 0.5})
    worker = rig.worker("wait")
    key = rig.submit("run-1")
    found = rig.reaches(key, "failed")
    assert found["code"] == "too_slow" and "budgets.n2n" in found["reason"]
    assert worker.poll() is None


def test_a_worker_told_to_stop_finishes_its_job(rig):
    worker = rig.worker("wait", "--grace", "20")
    key = rig.submit("run-1")
    rig.begun(worker)
    worker.terminate()
    rig.until_state(worker, "draining")
    (rig.state / "go").touch()
    rig.reaches(key, "computed")
    assert worker.wait(10) == 0


def test_a_worker_that_cannot_finish_in_time_hands_its_job_back_uncounted(rig):
    worker = rig.worker("wait", "--grace", "0.3")
    key = rig.submit("run-1")
    rig.begun(worker)
    worker.terminate()
    assert worker.wait(10) == 0
    rig.worker("double")
    found = rig.reaches(key, "computed")
    assert found["lost_on"] == [] and found["failures"] == 0


def test_a_worker_keeps_its_job_over_a_restart_of_the_service(rig_in, tmp_path, wait_until):
    first = rig_in(lease_s=20.0, hb_s=0.2)
    worker = first.worker("wait")
    key = first.submit("run-1")
    first.begun(worker)
    first.stop()
    second = rig_in(broker=first.address, lease_s=20.0, hb_s=0.2)
    wait_until(lambda: second.broker.status()["workers"], "the worker says hello again")
    (tmp_path / "go").touch()
    found = second.reaches(key, "computed")
    assert found["dispatches"] == 1, "nobody did it again"


def test_a_worker_without_the_files_fetches_and_brings_them(rig):
    rig.worker("double", "--elsewhere")
    key = rig.submit("run-1")
    found = rig.reaches(key, "computed")
    assert np.array_equal(values_of(found["result_path"]), 2 * counts_of(rig, "run-1"))
    assert found["digest"] == digest_of(Path(found["result_path"]))
    assert {"mapped", "sent"} <= set(found["timings"])
    assert rig.spool_server.counts["FETCH"] and rig.spool_server.counts["FINISH"]
    assert results_in(rig) == [f"{key}.h5"]


def test_the_newest_snapshot_wins_and_the_final_ends_them(rig, wait_until):
    worker = rig.worker("wait")
    rig.submit("run-1", "snapshot", rows=4)
    rig.begun(worker)
    for rows in (8, 12, 16):
        rig.submit("run-1", "snapshot", rows=rows)
    wait_until(lambda: rig.broker.status()["snapshots"] == 1, "only the newest waits")
    key = rig.submit("run-1")
    # The running snapshot is cancelled: the worker comes to the final though nobody let it go on.
    wait_until(lambda: (rig.state / f"begun-{worker.pid}").read_text() == key, "the final begins")
    (rig.state / "go").touch()
    rig.reaches(key, "computed")
    assert rig.broker.status()["snapshots"] == 0
    assert not any(isinstance(item, SnapshotDone) for item in rig.ingest.drain())


def test_a_snapshot_is_shown_live(rig, wait_until):
    rig.worker("double")
    rig.submit("run-1", "snapshot", rows=8)
    (done,) = wait_until(rig.ingest.drain, "a snapshot")
    assert done == SnapshotDone("run-1", 8, str(rig.settings.live_dir / "run-1.h5"))
    assert np.array_equal(values_of(done.path), 2 * counts_of(rig, "run-1"))
    assert any(isinstance(item, Prepare) for item in rig.writer.drain())
    assert rig.journal.jobs() == []
