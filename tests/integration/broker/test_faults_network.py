"""Messages between broker, spool server and workers are lost, come twice, overtake others; ends freeze and return."""

import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import zmq

from inscan.service import transfer, worker_loop
from inscan.service.host import boot_id
from inscan.service.leases import MAX_TRIES, Leases
from inscan.service.messages import PROTOCOL
from inscan.service.processed import Processed, ResultArray
from inscan.service.result_file import read_result, write_result


def _bench(name: str) -> ModuleType:
    """A module of benchmarks/, which is no package."""
    path = Path(__file__).parents[3] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MessageRelay: Any = _bench("message_relay").MessageRelay
TcpProxy: Any = _bench("tcp_proxy").TcpProxy
DEEDS = ["drop", "twice", "pass", "swap"]


@pytest.fixture
def relay() -> Iterator[Callable[..., Any]]:
    relays: list[Any] = []

    def start(target: str, *kinds: str) -> Any:
        """Do to the first messages of these kinds what `DEEDS` says."""

        def judge(direction: str, kind: str, before: int) -> Any:
            return DEEDS[before] if kind in kinds and before < len(DEEDS) else "pass"

        relays.append(MessageRelay(target, judge))
        return relays[-1]

    yield start
    for one in relays:
        one.stop()


def right(rig: Any, key: str, run_uid: str) -> bool:
    job = rig.journal.job(key)
    (values,) = read_result(Path(job["result_path"])).processed.arrays
    counts = np.load(rig.settings.spool_dir / run_uid / "counts.npy")
    return bool(np.array_equal(values.values, 2 * counts))


def test_no_kind_of_message_of_a_worker_is_needed_twice(rig, relay):
    kinds = ("HELLO", "WELCOME", "JOB", "HB", "PARTIAL", "DONE", "ACK")
    between = relay(rig.address, *kinds)
    rig.address = between.address
    rig.worker("double")
    for n in range(5):
        key = rig.submit(f"run-{n}", seed=n)
        rig.reaches(key, "computed")
        assert right(rig, key, f"run-{n}")
        assert rig.journal.job(key)["lost_on"] == [] and rig.journal.repeats(key) == []
    assert {kind for _, kind, deed in between.done if deed == "drop"} == set(kinds)


def test_a_cancellation_and_a_failure_that_are_lost_are_told_again(rig_in, relay, wait_until):
    rig = rig_in(budgets={"n2n": 0.3})
    between = relay(rig.address, "CANCEL", "FAIL")
    rig.address = between.address
    rig.worker("wait")
    assert rig.reaches(rig.submit("run-1"), "failed")["code"] == "too_slow"
    wait_until(lambda: rig.broker.status()["workers"][0]["state"] == "idle", "let go")
    happened = {kind for _, kind, deed in between.done if deed == "drop"}
    assert happened == {"CANCEL", "FAIL"}


def test_a_worker_that_leaves_hands_its_job_back_though_its_goodbye_is_lost(rig_in, relay):
    rig = rig_in(lease_s=30.0)
    between = relay(rig.address, "BYE", "DRAIN", "FAIL")
    rig.address = between.address
    leaving = rig.worker("wait", "--grace", "0.2")
    key = rig.submit("run-1")
    rig.begun(leaving)
    leaving.terminate()
    assert leaving.wait(10) == 0
    assert rig.reaches(key, "queued", 5.0)["lost_on"] == []


@pytest.fixture
def large(rig) -> Any:
    """A job with arrays of several chunks each."""
    rng = np.random.default_rng(0)
    run = rig.spool.run("run-1")
    arrays = {name: rng.random((3, 300, 1117)) for name in ("one", "other")}
    specs = {name: run.store(name, values) for name, values in arrays.items()}
    return rig.job("run-1").model_copy(update={"arrays": specs}), arrays


def test_chunks_that_are_lost_or_come_twice_are_asked_for_again(rig, large, relay, monkeypatch):
    monkeypatch.setattr(transfer, "ASK_AGAIN_S", 0.2)
    job, arrays = large
    between = relay(rig.spool_address, "FETCH", "CHUNK")
    fetched = transfer.fetch(between.address, job, lambda: None)
    for name, values in arrays.items():
        np.testing.assert_array_equal(fetched[name], values)
    assert {kind for _, kind, deed in between.done if deed == "drop"} == {"FETCH", "CHUNK"}


def bring(rig: Any, address: str, folder: Path, values: np.ndarray) -> None:
    """Bring a result of a dispatch that is under way."""
    key = rig.submit("run-9")
    rig.worker("wait")
    rig.begun(rig.workers[-1])
    job = next(p for p in rig.broker._rules._roster).work.job
    path = folder / "result.h5"
    write_result(path, Processed([ResultArray("v", ("a", "b", "c"), "", values)], {}), {})
    transfer.put(address, job, path, lambda: None)
    assert job.key == key and Path(job.result_path).read_bytes() == path.read_bytes()
    left = [one.name for one in rig.settings.results_dir.iterdir() if one.name.endswith(".put")]
    assert left == []


def test_a_result_is_brought_though_parts_of_it_are_lost(
    rig, large, relay, monkeypatch, tmp_path, wait_until
):
    monkeypatch.setattr(transfer, "ASK_AGAIN_S", 0.2)
    between = relay(rig.spool_address, "PUT", "STORED", "FINISH", "FINISHED")
    bring(rig, between.address, tmp_path, large[1]["one"])
    dropped = {kind for _, kind, deed in between.done if deed == "drop"}
    assert dropped == {"PUT", "STORED", "FINISH", "FINISHED"}


def test_damaged_chunks_never_enter_an_array(rig, large, monkeypatch, tmp_path):
    monkeypatch.setattr(transfer, "ASK_AGAIN_S", 0.3)
    job, arrays = large
    proxy = TcpProxy(rig.spool_address)
    try:
        proxy.line.flip_every = 3e6
        fetched = transfer.fetch(f"tcp://{proxy.address}", job, lambda: None)
        for name, values in arrays.items():
            np.testing.assert_array_equal(fetched[name], values)
        bring(rig, f"tcp://{proxy.address}", tmp_path, arrays["one"])
        assert proxy.counts["flipped"] >= 3
    finally:
        proxy.stop()


def test_a_broker_that_was_frozen_takes_no_worker_for_lost(rig_in, wait_until):
    rig = rig_in(lease_s=0.6)
    worker = rig.worker("wait")
    key = rig.submit("run-1")
    rig.begun(worker)
    with rig.broker._lock:  # its thread stands still, as if the process were stopped
        threading.Event().wait(rig.settings.lease_s + 0.3)
    (rig.state / "go").touch()
    found = rig.reaches(key, "computed")
    assert found["dispatches"] == 1 and found["lost_on"] == []


def test_a_worker_whose_line_was_cut_has_not_been_killed_by_its_job(rig_in, wait_until):
    rig = rig_in(lease_s=0.6)
    key = rig.submit("run-1")
    cut: list[bool] = []
    between = MessageRelay(rig.address, lambda *_: "drop" if cut else "pass")
    try:
        rig.address = between.address
        worker = rig.worker("wait")
        rig.begun(worker)
        cut.append(True)
        wait_until(lambda: rig.journal.job(key)["lost_on"], "its lease ends")
        cut.clear()
        wait_until(lambda: not rig.journal.job(key)["lost_on"], "it is back")
        (rig.state / "go").touch()
        assert rig.reaches(key, "computed")["failures"] == 1
    finally:
        between.stop()


def test_losses_of_workers_that_came_back_are_tries_and_end_as_well(rig):
    key = rig.submit("run-1")
    now = [0.0]
    leases = Leases(rig.journal._file, clock=lambda: now[0], boot=boot_id(), backoff_s=1.0)
    for n in range(MAX_TRIES):
        assert rig.state_of(key) != "failed"
        now[0] += 100.0
        given = leases.lease(f"worker-{n}", 60.0)
        assert given is not None
        job, _ = given
        leases.crashed(key, job.fence, "it was not heard of again")
        leases.came_back(f"worker-{n}")
    assert rig.journal.job(key)["code"] == "quarantined"


def test_a_service_that_was_away_longer_than_a_lease_takes_no_worker_for_lost(
    rig_in, tmp_path, wait_until
):
    lease_s = 3.0  # a worker dials again within two seconds
    first = rig_in(lease_s=lease_s)
    worker = first.worker("wait")
    key = first.submit("run-1")
    first.begun(worker)
    first.stop()
    threading.Event().wait(lease_s + 0.2)
    second = rig_in(broker=first.address, lease_s=lease_s)
    wait_until(lambda: second.broker.status()["workers"], "the worker says hello again")
    (tmp_path / "go").touch()
    found = second.reaches(key, "computed")
    assert found["dispatches"] == 1 and found["lost_on"] == []


def test_no_listening_socket_beats(rig):
    """With HEARTBEAT_IVL libzmq 4.3.5 aborts the process when a peer fills its queue and hangs up."""
    for router in (rig.broker.router, rig.spool_server.router):
        assert router.socket.getsockopt(zmq.HEARTBEAT_IVL) == 0
        assert router.socket.getsockopt(zmq.TCP_KEEPALIVE) == 1


def test_a_worker_of_another_major_version_is_refused_at_both_ends(rig, wait_until):
    worker = worker_loop.Worker(
        rig.address,
        lambda *_: pytest.fail("it was given a job"),
        name="old",
        described="cpu: test",
        grace_s=1.0,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_loop, "PROTOCOL", (PROTOCOL[0] + 1, 0))
        assert worker.run() == worker_loop.EXIT_REFUSED
    counts = rig.broker.status()["counts"]
    assert counts["refused"] >= 1 and rig.broker.status()["workers"] == []
