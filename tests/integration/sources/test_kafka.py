"""Documents over Kafka's protocol, against the mock cluster that librdkafka brings: real sockets, no broker."""

import json
import os
import pickle  # noqa: TID251 - to send what must not be read
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import msgpack_numpy  # noqa: TID251 - the encoder bluesky-kafka uses; only its decoder is dangerous
import numpy as np
import pytest

from inscan.callbacks.sources.interface import SourceError
from inscan.callbacks.sources.kafka import KafkaSource, read_config

kafka = pytest.importorskip("confluent_kafka")

# The mock cluster holds a group's place for a whole session, even of a consumer that has left.
QUICK = {"session.timeout.ms": 4000, "heartbeat.interval.ms": 400}


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[str, Any]]:
    """Bootstrap servers of a mock cluster, and a producer that owns it."""
    producer = kafka.Producer({"test.mock.num.brokers": 2, "bootstrap.servers": ""})
    brokers = producer.list_topics(timeout=20).brokers.values()
    yield ",".join(f"{broker.host}:{broker.port}" for broker in brokers), producer
    producer.flush(5)


@pytest.fixture
def topic(request, cluster) -> str:
    name = f"{request.node.originalname}.{os.urandom(4).hex()}"
    cluster[1].list_topics(name, timeout=20)  # the mock cluster makes it
    return name


@pytest.fixture
def publish(cluster, topic) -> Callable[..., None]:
    def send(*messages: Any) -> None:
        for message in messages:
            data = message if isinstance(message, bytes) else packed(message)
            cluster[1].produce(topic, data, key=b"k", partition=0)
        assert cluster[1].flush(20) == 0

    return send


def packed(pair: Any) -> bytes:
    """As bluesky-kafka does it."""
    data: Any = msgpack.packb(pair, default=msgpack_numpy.encode)
    return data


def test_documents_come_in_order_from_now_on(cluster, topic, publish, running, until, documents):
    publish(*documents())  # before the source: not wanted
    run = documents(20)
    source = KafkaSource(cluster[0], [topic])
    with running(source) as found:
        assert source.ready.wait(30)
        publish(*run[:5])
        publish(*[json.dumps(pair).encode() for pair in run[5:]])
        until(lambda: len(found) == len(run))
    assert found == run and source.counts["garbage"] == 0


def test_arrays_come_through(cluster, topic, publish, running, until):
    spectrum = np.arange(8 * 512, dtype="<u4").reshape(8, 512)
    event = {"descriptor": "d", "seq_num": 1, "data": {"a": spectrum, "n": np.float32(1.5)}}
    source = KafkaSource(cluster[0], [topic])
    with running(source) as found:
        assert source.ready.wait(30)
        publish(("event", event))
        until(lambda: len(found) == 1)
    data = found[0][1]["data"]
    assert np.array_equal(data["a"], spectrum) and data["a"].dtype == spectrum.dtype
    assert data["n"] == 1.5


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickle_and_garbage_are_counted_and_do_nothing(
    cluster, topic, publish, running, until, documents, tmp_path
):
    run = documents()
    bomb = Bomb(tmp_path / "boom")
    objects = np.array([bomb], dtype=object)
    source = KafkaSource(cluster[0], [topic])
    with running(source) as found:
        assert source.ready.wait(30)
        publish(
            run[0], pickle.dumps(("start", bomb)), b"", b"spam", packed(["start", {}]), packed(7)
        )
        publish(("event", {"descriptor": "d", "data": {"a": objects}}), *run[1:])
        until(lambda: len(found) == len(run) + 1)
    assert source.counts["garbage"] == 5 and source.counts["object arrays"] == 1
    assert not (tmp_path / "boom").exists()
    assert [found[0], *found[2:]] == run


def test_a_group_goes_on_behind_what_is_in_the_log(
    cluster, topic, publish, running, until, documents
):
    """The broker is told how far a source got when the documents are in the log, not before."""
    run = documents()
    group, stop = f"group-{topic}", threading.Event()
    source = KafkaSource(cluster[0], [topic], group=group, config=QUICK)
    logged: list[Any] = []
    failed: list[Exception] = []

    def log(name: str, doc: Any) -> None:
        if name == "event":
            raise OSError("no space left on device")
        logged.append((name, doc))

    def work() -> None:
        try:
            source.run(log, stop)
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert source.ready.wait(30)
        publish(*run[:2])
        until(lambda: source.counts["commits"] == 1)
        publish(*run[2:])
    finally:
        thread.join(30)
        stop.set()
        thread.join()
    assert logged == run[:2] and len(failed) == 1
    with running(KafkaSource(cluster[0], [topic], group=group, config=QUICK)) as found:
        until(lambda: len(found) == len(run) - 2, 40)
    assert found == run[2:]


def test_two_topics_at_once(cluster, topic, publish, running, until, documents):
    other = f"{topic}.other"
    cluster[1].list_topics(other, timeout=20)
    run = documents()
    source = KafkaSource(cluster[0], [topic, other])
    with running(source) as found:
        assert source.ready.wait(30)
        publish(run[0])
        cluster[1].produce(other, packed(run[1]))
        assert cluster[1].flush(20) == 0
        until(lambda: len(found) == 2)
    assert sorted(name for name, _ in found) == ["descriptor", "start"]


def test_a_broker_that_is_not_there_is_one_line(monkeypatch, running):
    from inscan.callbacks.sources import kafka as module

    monkeypatch.setattr(module, "_FIRST_ANSWER_S", 0.5)
    with pytest.raises(SourceError, match="no broker answers"):
        with running(KafkaSource("127.0.0.1:9", ["x"])):
            pass


def test_without_the_library_the_extra_is_named(monkeypatch, running):
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(SourceError, match=r'pip install "inscan\[kafka\]"'):
        with running(KafkaSource("127.0.0.1:9", ["x"])):
            pass


def test_settings_that_are_not_free_or_make_no_sense(tmp_path, running):
    with pytest.raises(ValueError, match="group.id"):
        KafkaSource("x:1", ["t"], config={"group.id": "a"})
    with pytest.raises(ValueError, match="at least one"):
        KafkaSource("x:1", [])
    with pytest.raises(SourceError, match="refuses its settings"):
        with running(KafkaSource("x:1", ["t"], config={"spam": "eggs"})):
            pass
    path = tmp_path / "kafka.yaml"
    path.write_text("security.protocol: SASL_SSL\nsocket.timeout.ms: 5000\n")
    assert read_config(path) == {"security.protocol": "SASL_SSL", "socket.timeout.ms": 5000}
    for text in ("- a", "a: [1]", "a: {", "!!python/object/apply:os.getcwd []"):
        path.write_text(text)
        with pytest.raises(SourceError):
            read_config(path)
