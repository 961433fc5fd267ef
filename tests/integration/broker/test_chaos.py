"""Whatever is killed, frozen or started anew, and when: every job ends once, and what is right stays right."""

import os
import random
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from inscan.service.result_file import read_result

JOBS = 16
BLOWS = 14


@pytest.mark.parametrize("seed", [1, 2])
def test_no_job_is_lost_or_done_wrong(rig_in, wait_until, seed):
    random_ = random.Random(seed)
    rig = rig_in(lease_s=1.0, hb_s=0.1)
    workers = [rig.worker("slowly") for _ in range(3)]
    wait_until(lambda: len(rig.broker.status()["workers"]) == 3, "all workers")
    keys = {rig.submit(f"run-{n}", seed=n): f"run-{n}" for n in range(JOBS)}
    frozen: list[int] = []
    for _ in range(BLOWS):
        threading.Event().wait(random_.uniform(0.0, 0.3))  # the moment is what is random here
        index = random_.randrange(len(workers))
        match random_.choice(["kill", "kill", "freeze", "thaw", "service"]):
            case "kill":
                workers[index].kill()
                workers[index].wait()
                workers[index] = rig.worker("slowly")
            case "freeze" if len(frozen) < 2:
                os.kill(workers[index].pid, signal.SIGSTOP)
                frozen.append(workers[index].pid)
            case "service":
                rig.stop()
                others, rig = rig.workers, rig_in(broker=rig.address, lease_s=1.0, hb_s=0.1)
                rig.workers += others
            case _:
                thaw(frozen)
    thaw(frozen)
    wait_until(
        lambda: all(rig.state_of(key) in ("computed", "failed") for key in keys), "the end", 60.0
    )
    for key, run_uid in keys.items():
        job = rig.journal.job(key)
        if job["state"] == "failed":
            # Two workers were killed while they had this very job: that is what quarantine is for.
            assert job["code"] == "quarantined" and len(set(job["lost_on"])) == 2
            continue
        counts = np.load(rig.settings.spool_dir / run_uid / "counts.npy")
        (values,) = read_result(Path(job["result_path"])).processed.arrays
        np.testing.assert_array_equal(values.values, 2 * counts)
        assert all(repeat["same"] for repeat in rig.journal.repeats(key))
    assert len(rig.journal.jobs()) == JOBS
    assert sum(job["state"] == "computed" for job in rig.journal.jobs()) > JOBS // 2


def thaw(pids: list[int]) -> None:
    while pids:
        try:
            os.kill(pids.pop(), signal.SIGCONT)
        except ProcessLookupError:
            continue
