"""Every kind of message between host and ingest is lost once, comes twice, and overtakes another; nothing is missed."""

import importlib.util
import json
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import event_model
import numpy as np
import pytest

from inscan.callbacks import outbox, shipper
from inscan.callbacks import request as request_module
from inscan.callbacks.link import Link
from inscan.callbacks.request import request
from inscan.service import clients
from inscan.service.mailbox import Outcome

Document = tuple[str, dict[str, Any]]


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


class Script:
    """A judge: what is done to the n-th message of each kind; everything else passes."""

    def __init__(self, deeds: dict[tuple[str, str], list[str]]) -> None:
        self.deeds = deeds

    def __call__(self, direction: str, kind: str, before: int) -> Any:
        deeds = self.deeds.get((direction, kind), [])
        return deeds[before] if before < len(deeds) else "pass"


@pytest.fixture
def impatient(quick, monkeypatch) -> None:
    """Shorter intervals still: each loss costs one of them."""
    monkeypatch.setattr(shipper, "ASK_INTERVAL", 0.2)
    monkeypatch.setattr(request_module, "ASK_INTERVAL", 0.2)
    monkeypatch.setattr(outbox, "STALL", 0.5)


@pytest.fixture
def relay() -> Iterator[Callable[..., Any]]:
    relays: list[Any] = []

    def start(target: str, deeds: dict[tuple[str, str], list[str]]) -> Any:
        relays.append(MessageRelay(target, Script(deeds)))
        return relays[-1]

    yield start
    for one in relays:
        one.stop()


def run_documents(points: int = 10) -> list[Document]:
    run: Any = event_model.compose_run()
    keys: Any = {"image": {"dtype": "array", "shape": [8, 7], "source": "x"}}
    stream = run.compose_descriptor(name="primary", data_keys=keys)
    found: list[Document] = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
    for point in range(points):
        data = {"image": np.full((8, 7), point, "u2")}
        found.append(("event", stream.compose_event(data=data, timestamps={"image": 0.0})))
    found.append(("stop", run.compose_stop()))
    return [(name, dict(doc)) for name, doc in found]


def names(store: Any, uid: str) -> list[str]:
    """The documents of a run as its one assembler got them."""
    (tape,) = [tape for tape in store.tapes if tape.uid == uid]
    return [name for name, _ in tape.documents]


def test_no_kind_of_message_is_needed_twice(
    impatient, serve, link, store, relay, tmp_path, wait_until
):
    service = serve()
    deeds = ["drop", "twice", "pass", "swap"]
    up = dict.fromkeys([("up", kind) for kind in ("HELLO", "DOC", "SYNC", "WATCH")], deeds)
    down = [("down", kind) for kind in ("WELCOME", "ACK", "RESUME", "RELEASE", "OUTCOME")]
    between = relay(service.address, up | dict.fromkeys(down, deeds))
    connection = link(between.address)
    for _ in range(5):
        docs = run_documents()
        uid = docs[0][1]["uid"]
        future = connection.future(uid)
        store.coming.append({"status": "done", "uid": uid})
        for name, doc in docs:
            connection(name, doc)
        assert future.result(30)["uid"] == uid
        wait_until(lambda: list((tmp_path / "log").glob("*")) == [], "the log is released")
        assert names(store, uid) == [name for name, _ in docs]
        assert len(store.finals(uid)) == 1
    happened = {(direction, kind) for direction, kind, deed in between.done if deed == "drop"}
    assert happened == {*up, *down}


def test_a_request_whose_answer_is_lost_is_answered_and_done_once(
    impatient, serve, link, store, relay, tmp_path
):
    service = serve()
    done: Counter[int] = Counter()

    def count(fields: dict[str, Any]) -> dict[str, Any]:
        done[fields["n"]] += 1
        return {"n": fields["n"], "times": done[fields["n"]]}

    store.answers["count"] = count
    lost = {("up", "REQUEST"): ["drop"], ("down", "REPLY"): ["drop", "drop", "pass", "drop"]}
    between = relay(service.address, lost)
    assert request(between.address, "count", n=1) == {"n": 1, "times": 1}
    connection = link(between.address)
    assert connection.request("count", n=2).result(30) == {"ok": True, "n": 2, "times": 1}
    assert done == {1: 1, 2: 1}


def test_an_outcome_comes_though_it_was_told_to_a_line_that_had_just_been_cut(
    impatient, serve, link, store, relay, wait_until
):
    service = serve()
    between = relay(service.address, {("down", "OUTCOME"): ["drop"]})
    future = link(between.address).future("run")
    wait_until(lambda: service.ingest.counts["WATCH"], "the watch")
    store.outcomes["run"] = {"status": "done"}
    service.mailbox.post(Outcome("run", {"status": "done"}))
    assert future.result(30)["status"] == "done"


def test_damaged_bytes_are_counted_and_sent_again(
    impatient, serve, link, store, tmp_path, wait_until
):
    service = serve()
    proxy = TcpProxy(service.address)
    try:
        connection = link(f"tcp://{proxy.address}")
        wait_until(lambda: connection.connected, "the first contact")
        proxy.line.flip_every, proxy.line.truncate = 20_000, 0.01
        runs = [run_documents(60) for _ in range(6)]
        for docs in runs:
            for name, doc in docs:
                connection(name, doc)
        wait_until(lambda: proxy.counts["flipped"] > 3, "some damage")
        wait_until(lambda: len(store.closed) == len(runs) or proxy.counts["flipped"] > 30, "more")
        proxy.line.flip_every, proxy.line.truncate = None, 0.0
        proxy.cut()
        for docs in runs:
            uid = docs[0][1]["uid"]
            wait_until(lambda uid=uid: uid in store.closed, f"run {uid}")
            found = [one for name, one in store.documents(uid) if name == "event"]
            sent = [doc for name, doc in docs if name == "event"]
            assert len(found) == len(sent) and len(store.finals(uid)) == 1
            for one, other in zip(found, sent, strict=True):
                np.testing.assert_array_equal(one["data"]["image"], other["data"]["image"])
        assert json.dumps(store.failed) == "{}"
    finally:
        proxy.stop()


def test_numbers_that_are_none_are_garbage_and_no_defect(serve, wait_until):
    service = serve()
    hostile = Link()
    try:
        hostile.connect(service.address)
        doc = {"run": "r", "offset": 0, "next": 10}
        wrong = (float("inf"), float("nan"), -1, 1 << 63, 0.5, "0", None, [0])
        for number in wrong:
            wait_until(lambda n=number: hostile.send("DOC", {**doc, "offset": n}, b"x"), "sent")
            wait_until(lambda n=number: hostile.send("SYNC", {**doc, "offset": n, "ended": 1}))
        hello = {"client": "c", "host_id": "h", "pid": float("inf")}
        wait_until(lambda: hostile.send("HELLO", hello), "sent")
        wait_until(lambda: service.ingest.counts["garbage"] == 2 * len(wrong) + 1, "all counted")
        assert service.ingest.counts["defects"] == 0
    finally:
        hostile.close()


def test_a_storm_of_strangers_does_not_push_out_who_is_at_work(
    impatient, serve, link, store, monkeypatch, wait_until
):
    monkeypatch.setattr(clients, "MAX_CLIENTS", 4)
    service = serve(incomplete_after=60.0)
    connection = link(service.address)
    docs = run_documents()
    uid = docs[0][1]["uid"]
    for name, doc in docs[:6]:
        connection(name, doc)
    wait_until(lambda: store.tapes and len(store.documents(uid)) == 6, "half a run")
    store.answers["hear"] = lambda fields: {}
    for _ in range(12):
        request(service.address, "hear")
    threading.Event().wait(0.2)
    assert store.incomplete == {}
    for name, doc in docs[6:]:
        connection(name, doc)
    wait_until(lambda: uid in store.closed, "the whole run")
    assert names(store, uid) == [name for name, _ in docs]
