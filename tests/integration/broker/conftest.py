"""A broker with journal, spool and real worker processes, for tests."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from zmq.utils.garbage import gc

from inscan.callbacks.link import host_id
from inscan.service.broker import Broker
from inscan.service.digest import digest_arrays
from inscan.service.events import Submit
from inscan.service.journal import Journal
from inscan.service.mailbox import Mailbox
from inscan.service.messages import InferenceJob, job_key
from inscan.service.settings import Settings
from inscan.service.spool import Spool
from inscan.service.spool_server import SpoolServer

RECIPES = Path(__file__).with_name("small_recipes.py")
ANY = "tcp://127.0.0.1:0"


def until(condition: Callable[[], Any], what: str, deadline_s: float = 20.0) -> Any:
    """Wait for a condition and return what it returned; fail by name when it does not come."""
    end = time.monotonic() + deadline_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s:g} s: {what}")
        threading.Event().wait(0.01)


class Rig:
    """What `inscan serve` wires together around the broker, in one object."""

    def __init__(self, state: Path, broker: str = ANY, **settings: Any) -> None:
        given = {"lease_s": 1.5, "hb_s": 0.1, **settings}
        self.state = state
        self.stopped = False
        self.settings = Settings(state_dir=state, ingest=ANY, broker=broker, spool=ANY, **given)
        for folder in (self.settings.results_dir, self.settings.live_dir):
            folder.mkdir(parents=True, exist_ok=True)
        self.spool = Spool(self.settings.spool_dir, budget=1 << 30, min_free=0)
        self.journal = Journal(self.settings.journal_path, backoff_s=0.05)
        self.writer, self.ingest = Mailbox(), Mailbox()
        self.workers: list[subprocess.Popen[bytes]] = []
        self.broker = Broker(
            self.settings, self.journal, version="test", writer=self.writer, ingest=self.ingest
        )
        self.address = self.broker.bind()
        self.spool_server = SpoolServer(ANY, self.spool, self.broker.place_for)
        self.spool_address = self.spool_server.bind()
        self.broker.start(self.spool_address)
        self.spool_server.start()

    def close(self) -> None:
        """End everything, workers by force."""
        for worker in self.workers:
            if worker.poll() is None:
                worker.kill()
            worker.wait()
        self.stop()

    def stop(self) -> None:
        """End the service's side; workers run on."""
        if self.stopped:
            return
        self.stopped = True
        self.broker.stop()
        self.spool_server.stop()
        self.journal.close()
        self.writer.close()
        self.ingest.close()

    def worker(self, recipe: str, *options: str) -> subprocess.Popen[bytes]:
        """Start a worker process."""
        command = [sys.executable, str(RECIPES), recipe, self.address, str(self.state), *options]
        with (self.state / "workers.log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        self.workers.append(process)
        return process

    def job(self, run_uid: str, kind: str = "final", rows: int = 4, seed: int = 0) -> InferenceJob:
        """A run's counts in the spool, and a job on them."""
        rng = np.random.default_rng(seed)
        values = rng.poisson(5.0, (2, 40, 50)).astype("f4")
        run = self.spool.run(run_uid)
        counts = run.allocate("counts", values.shape, values.dtype)
        counts[...] = values
        final = kind == "final"
        key = job_key(run_uid, "primary", "n2n", {}, snapshot=None if final else rows)
        folder = self.settings.results_dir if final else self.settings.live_dir
        return InferenceJob(
            key=key,
            run_uid=run_uid,
            stream="primary",
            kind="final" if final else "snapshot",
            recipe="n2n",
            parameters={},
            meta={"rows_done": rows},
            spool=str(run.folder),
            arrays={"counts": run.spec("counts", counts)},
            input_digest="",
            result_path=str(folder / (f"{key}.h5" if final else f"{run_uid}.h5")),
            host_id=host_id(),
        )

    def submit(self, run_uid: str, kind: str = "final", rows: int = 4, seed: int = 0) -> str:
        """Journal (finals) and submit a job; its key."""
        job = self.job(run_uid, kind, rows, seed)
        if kind == "final":
            self.journal.record_run(run_uid, 1, "test", {"uid": run_uid})
            self.journal.add_job(job)
            self.journal.synced(job.key, digest_arrays({}))
            self.journal.finish_run(run_uid, "complete")
        self.broker.mailbox.post(Submit(job))
        return job.key

    def state_of(self, key: str) -> str:
        found = self.journal.job(key)
        return "none" if found is None else found["state"]

    def reaches(self, key: str, state: str, deadline_s: float = 20.0) -> dict[str, Any]:
        """Wait until a job is in a state."""
        until(lambda: self.state_of(key) == state, f"job {state}", deadline_s)
        found = self.journal.job(key)
        assert found is not None
        return found

    def until_state(self, process: subprocess.Popen[bytes], state: str) -> None:
        """Wait until the broker sees a worker in a state."""

        def seen() -> bool:
            workers = self.broker.status()["workers"]
            return any(w["pid"] == process.pid and w["state"] == state for w in workers)

        until(seen, f"worker {process.pid} {state}")

    def settle(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until a worker is known and idle: everything it had to say has been said."""
        self.until_state(process, "idle")

    def begun(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until a worker is inside its recipe."""
        until((self.state / f"begun-{process.pid}").exists, f"worker {process.pid} begins")


@pytest.fixture
def rig_in(tmp_path) -> Iterator[Callable[..., Rig]]:
    """Make a rig: `rig_in(**settings)`; everything of it is stopped at the end."""
    rigs: list[Rig] = []

    def make(state: Path = tmp_path, **settings: Any) -> Rig:
        rigs.append(Rig(state, **settings))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()


@pytest.fixture
def rig(rig_in) -> Rig:
    return rig_in()


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., Any]:
    """`until`, for tests: a conftest cannot be imported."""
    return until


@pytest.fixture(scope="session", autouse=True)
def zero_copy_thread() -> None:
    """pyzmq starts a thread at the first zero-copy send and keeps it: have it before threads are counted."""
    if not gc.is_alive():
        gc.start()
