"""Documents over 0MQ: a real proxy, real RunEngines, and everything that should not be there."""

import json
import os
import pickle  # noqa: TID251 - to send what must not be read
import socket
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import msgpack
import msgpack_numpy  # noqa: TID251 - the encoder other programs use; only its decoder is dangerous
import numpy as np
import pytest
import zmq
from bluesky import RunEngine
from bluesky.callbacks.zmq import Publisher, RemoteDispatcher
from bluesky.plans import grid_scan
from ophyd.sim import SynAxis, SynGauss

from inscan.callbacks.sources.bluesky_0mq import ZMQSource, serialize
from inscan.callbacks.sources.decode import decode_document
from inscan.callbacks.sources.interface import SourceError


def to_json(doc: Any) -> bytes:
    return json.dumps(doc, default=lambda value: value.tolist()).encode()


def to_msgpack(doc: Any) -> bytes:
    packed: Any = msgpack.packb(doc, default=msgpack_numpy.encode)
    return packed


@pytest.mark.parametrize("serializer", [to_json, to_msgpack, serialize])
def test_a_run_engine_publishes_through_the_proxy(proxy, running, until, serializer):
    source = ZMQSource(proxy.out, probe_address=proxy.into)
    seen: list[tuple[str, Any]] = []
    slow, fast = SynAxis(name="slow"), SynAxis(name="fast")
    detector = SynGauss("det", fast, "fast", center=0, Imax=1)
    RE = RunEngine({}, context_managers=[])
    RE.subscribe(lambda name, doc: seen.append((name, doc)))
    with running(source) as documents, closing(publisher(proxy, serializer)) as publish:
        assert source.ready.wait(20)
        linked(publish, source, until)
        RE.subscribe(publish)
        readable: Any = detector
        RE(grid_scan([readable], slow, -1, 1, 4, fast, -1, 1, 5, False))
        until(lambda: len(documents) == len(seen))
    assert [name for name, _ in documents] == [name for name, _ in seen]
    assert json.loads(to_json(documents)) == json.loads(to_json(seen))
    assert source.counts["documents"] == len(seen) == 23 and not source.counts["garbage"]


def publisher(proxy, serializer=to_json, prefix: bytes = b"") -> Publisher:
    return Publisher(proxy.into, serializer=serializer, prefix=prefix)


def linked(publish: Publisher, source: ZMQSource, until) -> None:
    """A publisher's own connection is proved by a probe that comes through it."""
    before = source.counts["probes"]

    def came() -> bool:
        publish("bulk_events", {})
        return source.counts["probes"] > before

    until(came)


def test_nothing_of_the_first_run_is_lost_once_the_source_is_ready(
    own_proxy, running, until, documents
):
    """A slow joiner: the proxy and the publisher come long after the source."""
    source = ZMQSource(own_proxy.out, probe_address=own_proxy.into)
    with running(source) as found:
        assert not source.ready.wait(0.3)
        own_proxy.start()
        with closing(publisher(own_proxy)) as publish:
            assert source.ready.wait(20)
            linked(publish, source, until)
            run = documents(50)
            for name, doc in run:
                publish(name, doc)
            until(lambda: len(found) == len(run))
    assert found == run


def test_arrays_come_through(proxy, running, until):
    source = ZMQSource(proxy.out, probe_address=proxy.into)
    spectrum = np.arange(8 * 4096, dtype="<u4").reshape(8, 4096)
    keys = {"a": {"dtype": "array", "shape": [8, 4096], "source": "s", "dtype_numpy": "<u4"}}
    for serializer in (to_json, to_msgpack, serialize):
        with running(source) as found, closing(publisher(proxy, serializer)) as publish:
            assert source.ready.wait(20)
            linked(publish, source, until)
            publish("descriptor", {"uid": "d", "run_start": "u", "data_keys": keys})
            publish("event", {"descriptor": "d", "seq_num": 1, "data": {"a": spectrum}})
            until(lambda found=found: len(found) == 2)
        array = found[1][1]["data"]["a"]
        assert array.dtype == np.dtype("<u4") and np.array_equal(array, spectrum)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickle_and_garbage_are_counted_and_do_nothing(
    proxy, running, until, documents, tmp_path, caplog
):
    """bluesky's default serializer is among the garbage."""
    source = ZMQSource(proxy.out, probe_address=proxy.into)
    run = documents()
    context = zmq.Context()
    garbage = [
        b" start " + pickle.dumps(Bomb(tmp_path / "boom")),
        b" start " + pickle.dumps({"uid": "u", "time": 1.0}),
        b" event \xff\xfe",
        b"",
        b"no spaces",
        b" start",
        b" start {",
        b" start " + b"[" * 100_000,
        b" start " + to_json({"uid": 7}),
        b" \xff\xfe {}",
        b" spam {}",
        b" start " + bytes(1000),
    ]
    objects = np.array([Bomb(tmp_path / "boom")], dtype=object)
    try:
        raw = context.socket(zmq.PUB)
        raw.connect(f"tcp://{proxy.into}")
        with running(source) as found, closing(publisher(proxy)) as publish:
            assert source.ready.wait(20)
            linked(publish, source, until)
            until(lambda: raw.send(b" bulk_events {}") or source.counts["probes"] > 5)
            for name, doc in run[:2]:
                publish(name, doc)
            for message in garbage:
                raw.send(message)
            raw.send_multipart([b" start ", b"{}"])
            raw.send(b" event " + to_msgpack({"descriptor": "d", "data": {"a": objects}}))
            until(lambda: source.counts["object arrays"] == 1)
            for name, doc in run[2:]:
                publish(name, doc)
            until(lambda: len(found) == len(run) + 1)
    finally:
        context.destroy(linger=0)
    assert source.counts["garbage"] == len(garbage) + 1
    assert not (tmp_path / "boom").exists()
    assert [doc for doc in found if doc[1].get("data", {}).get("a") is None] == run
    assert len([r for r in caplog.records if "no document" in r.message]) == 1


def test_a_prefix_keeps_other_beamlines_out(proxy, running, until, documents):
    source = ZMQSource(proxy.out, prefix=b"xf05", probe_address=proxy.into)
    ours, theirs = documents(), documents()
    with (
        running(source) as found,
        closing(publisher(proxy, prefix=b"xf05")) as publish,
        closing(publisher(proxy, prefix=b"xf05id")) as other,
    ):
        assert source.ready.wait(20)
        linked(publish, source, until)
        for (name, doc), (their_name, their_doc) in zip(ours, theirs, strict=True):
            other(their_name, their_doc)
            publish(name, doc)
        until(lambda: len(found) == len(ours))
    assert found == ours


def test_a_restart_of_the_proxy_is_survived(own_proxy, running, until, documents):
    own_proxy.start()
    source = ZMQSource(own_proxy.out, probe_address=own_proxy.into)
    first, second = documents(), documents()
    with running(source) as found:
        for run in (first, second):
            assert source.ready.wait(20)
            with closing(publisher(own_proxy)) as publish:
                linked(publish, source, until)
                for name, doc in run:
                    publish(name, doc)
                until(lambda run=run: found[-1:] == run[-1:])
            if run is first:
                own_proxy.stop()
                until(lambda: not source.ready.is_set())
                own_proxy.start()
    assert found == [*first, *second] and source.counts["disconnects"] >= 1


def test_without_a_probe_it_is_ready_when_the_proxy_shakes_hands(proxy, running):
    source = ZMQSource(proxy.out)
    with running(source):
        assert source.ready.wait(20)
    assert not source.ready.is_set()


def test_in_the_place_of_the_proxy_it_bears_port_scanners(running, until, documents):
    source = ZMQSource("tcp://127.0.0.1:0", bind=True)
    run = documents()
    with running(source) as found:
        assert source.ready.wait(20)
        host, port = source.address.removeprefix("tcp://").split(":")
        scans = [
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
            b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03\x00NULL" + bytes(200),
            b"\x00" * 4096,
            b"",
        ]
        for scan in scans:
            with socket.create_connection((host, int(port))) as sock:
                sock.sendall(scan)
        with closing(Publisher(f"{host}:{port}", serializer=to_json)) as publish:
            linked(publish, source, until)
            for name, doc in run:
                publish(name, doc)
            until(lambda: len(found) == len(run))
    assert found == run and source.counts["refused peers"] >= 1


def test_a_probe_hurts_no_other_subscriber(proxy, running, until, documents):
    """The strictest subscriber there is: bluesky's own dispatcher, which ends at what it cannot read."""
    dispatcher = RemoteDispatcher(proxy.out, deserializer=json.loads, strict=True)
    seen: list[str] = []
    dispatcher.subscribe(lambda name, doc: seen.append(name))

    def dispatch() -> None:
        try:
            dispatcher.start()
        except BaseException as error:  # noqa: BLE001 - its end is what is tested
            seen.append(f"ended: {error!r}")

    thread = threading.Thread(target=dispatch, name="ThreadPoolExecutor-dispatcher", daemon=True)
    thread.start()
    source = ZMQSource(proxy.out, probe_address=proxy.into)
    with running(source), closing(publisher(proxy)) as publish:
        assert source.ready.wait(20)
        until(lambda: publish("bulk_events", {}) or "bulk_events" in seen)
        publish(*documents()[0])
        until(lambda: "start" in seen)
    assert not [name for name in seen if name.startswith("ended")]
    dispatcher.loop.call_soon_threadsafe(dispatcher._task.cancel)  # type: ignore[union-attr]
    thread.join(10)


def test_an_address_that_is_taken_is_an_error_of_one_line(running, until):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SourceError, match="cannot listen"):
            ZMQSource(address, bind=True).run(lambda name, doc: None, threading.Event())


@pytest.mark.parametrize("address", ["", "nowhere", "tcp://x:y", "pgm://a:1", "ipc://", "tcp://:1"])
def test_addresses_that_are_none(address):
    with pytest.raises(ValueError, match="no 0MQ address"):
        ZMQSource(address)


def test_what_comes_faster_than_it_is_written_is_counted(until, monkeypatch):
    from inscan.callbacks.sources import bluesky_0mq

    monkeypatch.setattr(bluesky_0mq, "_WAITING_BYTES", 2000)
    source = ZMQSource("tcp://127.0.0.1:0", bind=True)
    gate, handed = threading.Event(), []

    def slow(name: str, doc: Any) -> None:
        gate.wait(20)
        handed.append(doc["seq_num"])

    stop = threading.Event()
    thread = threading.Thread(target=source.run, args=(slow, stop))
    thread.start()
    try:
        assert source.ready.wait(20)
        with closing(Publisher(source.address, serializer=to_json)) as publish:
            linked(publish, source, until)
            for number in range(100):
                publish("event", {"descriptor": "d", "seq_num": number, "data": "x" * 100})
            until(lambda: source.counts["overrun"] > 0)
            gate.set()
            until(lambda: len(handed) + source.counts["overrun"] == 100)
    finally:
        gate.set()
        stop.set()
        thread.join()
    assert handed == sorted(handed)


def test_the_serializer_takes_whatever_a_scan_has():
    doc = {
        "uid": "u",
        "path": Path("/data"),
        "odd": {1, 2},
        "a": np.arange(3),
        "o": np.array([None]),
    }
    back = decode_document(serialize(doc))
    assert (
        back["a"].tolist() == [0, 1, 2]
        and "/data" in back["path"]
        and sorted(back["odd"]) == [1, 2]
    )


def test_the_source_alone_brings_no_torch_and_no_tiled():
    code = (
        "import sys, inscan.callbacks.sources.bluesky_0mq\n"
        "assert not {'torch', 'tiled', 'bluesky', 'databroker'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
