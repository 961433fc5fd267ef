"""A RunEngine with inscan subscribed scans as if it were not there, whatever happens to inscan."""

import logging
import threading
from concurrent.futures import Future
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import numpy as np
import pytest
from bluesky import RunEngine
from bluesky.utils import RunEngineInterrupted
from ophyd.sim import SynAxis, SynGauss, SynSignal

import inscan.callbacks
from inscan.callbacks import connect
from inscan.callbacks.document_log import DocumentLog
from inscan.callbacks.wire import pack, unpack


@pytest.fixture
def motor() -> SynAxis:
    return SynAxis(name="motor", labels={"motors"})


@pytest.fixture
def detectors(motor) -> list[Any]:
    gauss = SynGauss("det", motor, "motor", center=0, Imax=1, noise=None)
    image = SynSignal(name="image", func=lambda: np.full((5, 3), motor.position, dtype=">f4"))
    return [gauss, image]


@pytest.fixture
def engine() -> RunEngine:
    return RunEngine({"beamline_id": "test"}, context_managers=[])


class Witness:
    """What another subscriber of the same RunEngine sees."""

    def __init__(self, engine: RunEngine) -> None:
        self.documents: list[Any] = []
        engine.subscribe(self)

    def __call__(self, name: str, doc: Any) -> None:
        self.documents.append([name, repr(unpack(pack(doc)))])

    def of(self, uid: str) -> list[Any]:
        """Documents of one run in a process that runs one after the other."""
        starts = [i for i, (name, _) in enumerate(self.documents) if name == "start"]
        for first, last in zip(starts, [*starts[1:], len(self.documents)], strict=True):
            if uid in self.documents[first][1]:
                return self.documents[first:last]
        raise LookupError(uid)


def received(store: Any, uid: str) -> list[Any]:
    return [[name, repr(doc)] for name, doc in store.documents(uid)]


def test_the_public_names():
    assert inscan.callbacks.__all__ == ["Connection", "connect"]


def test_scans_arrive_identical(serve, link, store, engine, motor, detectors, wait_until):
    connection = link(serve().address)
    witness = Witness(engine)
    engine.subscribe(connection)
    other = SynAxis(name="other")
    uids = [
        *engine(bp.scan(detectors, motor, -1, 1, 25)),
        *engine(bp.grid_scan(detectors, other, 0, 1, 4, motor, 0, 1, 5, snake_axes=True)),
        *engine(bp.count(detectors, num=3)),
    ]
    for uid in uids:
        wait_until(lambda uid=uid: uid in store.closed)
        assert received(store, uid) == witness.of(uid)
    assert connection.close() and (connection.defects, connection.lost) == (0, 0)


def test_the_service_dies_during_a_scan(serve, link, store, engine, motor, detectors, wait_until):
    service = serve()
    connection = link(service.address)
    witness = Witness(engine)
    engine.subscribe(connection)

    def kill_at_ten(name: str, doc: Any) -> None:
        if doc["seq_num"] == 10:
            service.stop()

    engine.subscribe(kill_at_ten, "event")
    (uid,) = engine(bp.scan(detectors, motor, -1, 1, 30))
    assert service.stopped and uid not in store.closed
    serve(service.address)
    wait_until(lambda: uid in store.closed)
    assert received(store, uid) == witness.of(uid)


def test_an_aborted_scan_arrives_with_its_stop(
    serve, link, store, engine, motor, detectors, wait_until
):
    connection = link(serve().address)
    engine.subscribe(connection)

    def plan():
        yield from bps.open_run()
        yield from bps.trigger_and_read([*detectors, motor])
        yield from bps.pause()
        yield from bps.close_run()

    with pytest.raises(RunEngineInterrupted):
        engine(plan())
    (uid,) = engine.abort("no beam")
    wait_until(lambda: uid in store.closed)
    name, stop = store.documents(uid)[-1]
    assert (name, stop["exit_status"], stop["reason"]) == ("stop", "abort", "no beam")


def test_without_a_service_the_scan_is_logged(link, engine, motor, detectors, tmp_path):
    connection = link("tcp://127.0.0.1:1")
    engine.subscribe(connection)
    (uid,) = engine(bp.scan(detectors, motor, -1, 1, 5))
    assert connection.close() is False
    assert (tmp_path / "log" / f"{uid}.log").stat().st_size > 1000
    assert connection.written == 8  # start, descriptor, five events, stop


@pytest.mark.parametrize("address", ["tcp://nonsense", "tcp://no.such.host.invalid:5", "x://y"])
def test_an_address_that_is_none_does_not_stop_the_scan(
    link, engine, motor, detectors, address, tmp_path
):
    engine.subscribe(link(address))
    (uid,) = engine(bp.scan(detectors, motor, -1, 1, 3))
    assert (tmp_path / "log" / f"{uid}.log").exists()


def test_a_folder_that_cannot_be_written_does_not_stop_the_scan(
    link, engine, motor, detectors, tmp_path, caplog
):
    (tmp_path / "file").write_text("in the way")
    connection = link("tcp://127.0.0.1:1", tmp_path / "file" / "state")
    engine.subscribe(connection)
    with caplog.at_level(logging.WARNING, "inscan"):
        engine(bp.scan(detectors, motor, -1, 1, 20))
    assert connection.lost == 20 and connection.defects == 0
    assert sum("cannot be written" in r.message for r in caplog.records) == 1


def test_a_defect_of_ours_does_not_stop_the_scan(
    link, engine, motor, detectors, monkeypatch, caplog
):
    def fail(*_: Any) -> None:
        raise RuntimeError("defect")

    connection = link("tcp://127.0.0.1:1")
    monkeypatch.setattr(DocumentLog, "append", fail)
    engine.subscribe(connection)
    engine(bp.scan(detectors, motor, -1, 1, 5))
    assert connection.defects == 8
    assert sum("was not recorded" in r.message for r in caplog.records) == 1


def test_documents_after_close_are_counted(link, engine, motor, detectors, tmp_path):
    connection = link("tcp://127.0.0.1:1")
    engine.subscribe(connection)
    connection.close()
    connection.close()
    engine(bp.scan(detectors, motor, -1, 1, 3))
    assert connection.defects == 6 and not list(tmp_path.rglob("*.log"))
    assert isinstance(connection.future("run"), Future)
    with pytest.raises(ConnectionError):
        connection.request("status").result(30)


def test_closing_does_not_wait_for_a_frozen_service(serve, link, store, engine, motor, detectors):
    connection = link(serve().address)
    engine.subscribe(connection)
    store.gate.clear()
    engine(bp.scan(detectors, motor, -1, 1, 100))
    assert connection.close(0.5) is False
    store.gate.set()


def test_two_run_engines_share_a_connection(serve, link, store, wait_until):
    connection = link(serve().address)
    uids: list[str] = []

    def scan() -> None:
        engine: Any = RunEngine({}, context_managers=[])
        engine.subscribe(connection)
        axis: Any = SynAxis(name="axis")
        uids.extend(engine(bp.scan([axis], axis, 0, 1, 50)))

    threads = [threading.Thread(target=scan) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for uid in uids:
        wait_until(lambda uid=uid: uid in store.closed)
        names = [name for name, _ in store.documents(uid)]
        assert names == ["start", "descriptor", *["event"] * 50, "stop"]


def test_a_profile_that_does_not_exist_is_an_error_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        connect(tmp_path / "nowhere.yaml", state_dir=tmp_path)
