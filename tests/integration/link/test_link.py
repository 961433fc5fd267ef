"""Documents reach the service whole and in order, whoever is gone, late, slow or hostile."""

import json
import logging
import os
import select
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import event_model
import numpy as np
import pytest
import zmq

from inscan.callbacks import outbox
from inscan.callbacks.request import NoServiceError, RequestRefusedError, request
from inscan.callbacks.wire import PROTOCOL, decode_message, encode_message, pack, unpack
from inscan.service.mailbox import Outcome, SnapshotDone

Document = tuple[str, dict[str, Any]]


def run_documents(points: int = 10, size: int = 8, **metadata: Any) -> list[Document]:
    run: Any = event_model.compose_run(metadata=metadata)
    keys: Any = {
        "image": {"dtype": "array", "shape": [size, 7], "source": "x"},
        "x": {"dtype": "number", "shape": [], "source": "x"},
    }
    stream = run.compose_descriptor(name="primary", data_keys=keys)
    found: list[Document] = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
    for point in range(points):
        data = {"image": np.full((size, 7), point, ">u2"), "x": point / 3}
        found.append(
            ("event", stream.compose_event(data=data, timestamps=dict.fromkeys(keys, 0.0)))
        )
    found.append(("stop", run.compose_stop()))
    return [(name, dict(doc)) for name, doc in found]


def uid(docs: list[Document]) -> str:
    return docs[0][1]["uid"]


def send(connection: Any, docs: list[Document]) -> None:
    for name, doc in docs:
        connection(name, doc)


def as_received(docs: list[Document]) -> list[Any]:
    return [[name, repr(unpack(pack(doc)))] for name, doc in docs]


def received(store: Any, docs: list[Document]) -> list[Any]:
    return [[name, repr(doc)] for name, doc in store.documents(uid(docs))]


def logs(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "log").glob("*"))


def test_a_run_arrives_identical_and_its_log_goes(serve, link, store, tmp_path, wait_until):
    connection = link(serve().address)
    docs = run_documents(200)
    send(connection, docs)
    wait_until(lambda: uid(docs) in store.closed)
    assert received(store, docs) == as_received(docs)
    assert len(store.finals(uid(docs))) == 1
    image = store.documents(uid(docs))[-2][1]["data"]["image"]
    assert image.dtype == np.dtype(">u2") and image.shape == (8, 7) and (image == 199).all()
    wait_until(lambda: logs(tmp_path) == [], "log released")
    assert connection.close() is True
    assert (connection.defects, connection.lost) == (0, 0)


def test_runs_that_interleave(serve, link, store, wait_until):
    connection = link(serve().address)
    first, second = run_documents(40), run_documents(40)
    for one, other in zip(first, second, strict=True):
        connection(*one)
        connection(*other)
    for docs in (first, second):
        wait_until(lambda docs=docs: uid(docs) in store.closed)
        assert received(store, docs) == as_received(docs)


def test_a_service_that_starts_later_gets_everything(
    serve, link, store, tmp_path, caplog, wait_until
):
    docs, more = run_documents(), run_documents()
    with caplog.at_level(logging.WARNING):
        connection = link()
        send(connection, docs)
        send(connection, more[:5])
        wait_until(lambda: caplog.records, "a word about the missing service")
        service = serve()
        (tmp_path / "service.json").write_text(json.dumps({"ingest": service.address}))
        wait_until(lambda: uid(docs) in store.closed)
        send(connection, more[5:])
        wait_until(lambda: uid(more) in store.closed)
    assert received(store, docs) == as_received(docs)
    assert received(store, more) == as_received(more)
    assert len(caplog.records) == 1
    assert "no service at" in caplog.text and "inscan serve" in caplog.text


@pytest.mark.parametrize("same_port", [True, False])
def test_a_service_restarted_in_the_middle_gets_the_run_again(
    serve, link, store, tmp_path, same_port, wait_until
):
    file = tmp_path / "service.json"
    service = serve()
    file.write_text(json.dumps({"ingest": service.address}))
    connection = link()
    docs = run_documents(60)
    send(connection, docs[:30])
    wait_until(lambda: store.tapes and len(store.tapes[0].documents) == 30)
    service.stop()
    send(connection, docs[30:45])
    again = serve(service.address if same_port else "tcp://127.0.0.1:0")
    file.write_text(json.dumps({"ingest": again.address}))
    send(connection, docs[45:])
    wait_until(lambda: uid(docs) in store.closed)
    assert len(store.tapes) == 2, "the second service assembled from the start"
    assert received(store, docs) == as_received(docs)
    assert len(store.finals(uid(docs))) == 1


def test_a_run_that_is_durable_is_released_and_not_opened_again(
    serve, link, store, tmp_path, wait_until
):
    docs = run_documents()
    store.closed.add(uid(docs))
    connection = link(serve().address)
    send(connection, docs)
    wait_until(lambda: logs(tmp_path) == [])
    assert store.tapes == [] and connection.close()


def test_a_slow_service_holds_a_bounded_number_of_documents(serve, link, store, wait_until):
    service = serve()
    connection = link(service.address)
    store.gate.clear()
    docs = run_documents(500)
    send(connection, docs)
    wait_until(lambda: service.ingest.counts["DOC"] >= outbox.WINDOW_DOCUMENTS)
    pings = service.ingest.counts["PING"]
    wait_until(lambda: service.ingest.counts["PING"] > pings + 3, "pings while it is slow")
    assert connection.connected
    # The start document needs no assembler, so its place in the window is free again.
    assert service.ingest.counts["DOC"] <= outbox.WINDOW_DOCUMENTS + 4
    store.gate.set()
    wait_until(lambda: uid(docs) in store.closed)
    assert received(store, docs) == as_received(docs)
    assert service.ingest.counts["repeated"] == service.ingest.counts["gaps"] == 0


def test_documents_larger_than_the_window_pass(serve, link, store, monkeypatch, wait_until):
    monkeypatch.setattr(outbox, "WINDOW_BYTES", 10_000)
    connection = link(serve().address)
    docs = run_documents(20, size=2000)
    send(connection, docs)
    wait_until(lambda: uid(docs) in store.closed)
    assert received(store, docs) == as_received(docs)


def test_garbage_is_counted_and_hurts_nobody(serve, link, store, wait_until):
    service = serve()
    connection = link(service.address)
    docs = run_documents(20)
    send(connection, docs[:10])
    host, port = service.address.removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(np.random.default_rng(1).bytes(5000))
    context = zmq.Context()
    hostile = context.socket(zmq.DEALER)
    hostile.setsockopt(zmq.LINGER, 0)
    hostile.connect(service.address)
    good = [bytes(frame) for frame in encode_message("PING", {})]
    doc = {"run": "r", "offset": 0, "next": 10}
    messages = [
        [b"junk"],
        [b"XI", bytes(PROTOCOL), b"doc", *encode_message("DOC", {})[3:]],
        encode_message("DOC", {}),
        encode_message("DOC", doc),  # no payload
        encode_message("DOC", {**doc, "offset": "x"}, b"p"),
        encode_message("DOC", {**doc, "run": "x" * 1000}, b"p"),
        encode_message("DOC", {**doc, "run": ["r"]}, b"p"),
        encode_message("NONSENSE", {}),
        encode_message("REQUEST", {"id": 1, "op": "x"}, b"not packed"),
        encode_message("HELLO", {}),
    ]
    for message in messages:
        hostile.send_multipart(message)
    damaged = encode_message("DOC", doc, b"payload")
    hostile.send_multipart([*damaged[:-1], b"Payload"])
    wait_until(lambda: service.ingest.counts["damaged"] == 2)  # that, and the kind in small letters
    wait_until(lambda: service.ingest.counts["garbage"] == len(messages) - 1)
    hostile.send_multipart([good[0], bytes([PROTOCOL[0] + 1, 0]), *good[2:]])
    assert hostile.poll(30_000)
    told = hostile.recv_multipart()
    assert told[1] == bytes([PROTOCOL[0] + 1, 0])  # in its own version, or it could not read it
    answer = decode_message([told[0], bytes(PROTOCOL), *told[2:]])
    assert answer.kind == "ERR" and "install the same inscan" in answer.header["message"]
    # A document of bytes that cannot be read is a gap of its own run.
    hostile.send_multipart(encode_message("DOC", {**doc, "run": "junk"}, b"not a document"))
    hostile.send_multipart(
        encode_message("DOC", {**doc, "run": "junk", "offset": 10, "next": 20}, pack(["event", {}]))
    )
    wait_until(lambda: "junk" in store.passed_by)
    hostile.close()
    context.term()
    send(connection, docs[10:])
    wait_until(lambda: uid(docs) in store.closed)
    assert received(store, docs) == as_received(docs)
    assert service.ingest.counts["defects"] == 0


_CHILD = """
import os, sys
from inscan.callbacks import connect
import event_model
connection = connect("tcp://127.0.0.1:1", state_dir=sys.argv[1])
run = event_model.compose_run(uid=sys.argv[2])
connection("start", run.start_doc)
stream = run.compose_descriptor(name="primary", data_keys={"x": {"dtype": "number", "shape": [], "source": "s"}})
connection("descriptor", stream.descriptor_doc)
for x in range(3):
    connection("event", stream.compose_event(data={"x": x}, timestamps={"x": 0.0}))
if sys.argv[3] == "whole":
    connection("stop", run.compose_stop())
os.kill(os.getpid(), 9)
"""


def test_what_killed_processes_left_is_sent_by_the_next_one(
    serve, link, store, tmp_path, wait_until
):
    for name, end in (("whole-run", "whole"), ("torn-run", "torn")):
        command = [sys.executable, "-c", _CHILD, str(tmp_path), name, end]
        assert subprocess.run(command, timeout=60).returncode == -9
    torn = tmp_path / "log" / "torn-run.log"
    os.truncate(torn, torn.stat().st_size - 3)  # killed while writing its last event
    assert logs(tmp_path) == ["torn-run.log", "whole-run.log"]
    connection = link(serve().address)
    wait_until(lambda: {"whole-run", "torn-run"} <= store.closed)
    names = [name for name, _ in store.documents("whole-run")]
    assert names == ["start", "descriptor", "event", "event", "event", "stop"]
    assert [name for name, _ in store.documents("torn-run")] == names[:4]
    (final,) = store.finals("torn-run")
    assert final.meta["exit_status"].startswith("incomplete")
    wait_until(lambda: logs(tmp_path) == [])
    connection.close()


def test_a_log_is_sent_by_one_process_at_a_time(serve, link, store, tmp_path, wait_until):
    first = link("tcp://127.0.0.1:1")
    docs = run_documents()
    send(first, docs)
    service = serve()
    second = link(service.address)
    other = run_documents()
    send(second, other)
    wait_until(lambda: uid(other) in store.closed)
    assert uid(docs) not in store.closed, "the first process still owns its log"
    first.close(0.0)
    wait_until(lambda: uid(docs) in store.closed)
    assert received(store, docs) == as_received(docs)


def test_a_damaged_record_costs_one_document_and_is_said(serve, link, store, tmp_path, wait_until):
    docs = run_documents(10)
    first = link("tcp://127.0.0.1:1")
    send(first, docs)
    first.close(0.0)
    (path,) = (tmp_path / "log").glob("*.log")
    content = bytearray(path.read_bytes())
    place = content.find(pack(docs[5][1]["uid"])[5:])
    content[place] ^= 1
    path.write_bytes(content)
    link(serve().address)
    wait_until(lambda: uid(docs) in store.closed)
    whole = as_received(docs)
    assert received(store, docs) == whole[:5] + whole[6:]
    (final,) = store.finals(uid(docs))
    assert "1 documents were not recorded" in final.meta["warnings"][0]


def test_a_run_nobody_wants_is_not_logged_any_further(serve, link, store, tmp_path, wait_until):
    connection = link(serve().address)
    docs = run_documents(20, nobody=True)
    send(connection, docs[:5])
    future = connection.future(uid(docs))
    wait_until(lambda: logs(tmp_path) == [])
    send(connection, docs[5:])
    assert store.passed_by == {uid(docs): "run matches no profile"}
    outcome = future.result(30)
    assert outcome["status"] == "passed_by" and outcome["reason"] == "run matches no profile"
    assert logs(tmp_path) == [] and connection.lost == 0 and connection.close()


def test_a_run_that_cannot_be_processed_fails_alone(serve, link, store, tmp_path, wait_until):
    connection = link(serve().address)
    store.update_errors.append(ValueError("no such thing"))
    bad, good = run_documents(), run_documents()
    future = connection.future(uid(bad))
    send(connection, bad)
    wait_until(lambda: uid(bad) in store.failed)
    send(connection, good)
    wait_until(lambda: uid(good) in store.closed)
    assert store.failed == {uid(bad): "ValueError: no such thing"}
    assert future.result(30)["status"] == "failed"
    assert uid(bad) not in store.closed
    wait_until(lambda: logs(tmp_path) == [])


def test_a_run_that_met_a_failing_machine_is_tried_again(serve, link, store, tmp_path, wait_until):
    connection = link(serve(retry_after=0.3).address)
    store.update_errors += [OSError(28, "No space left on device")] * 2
    docs = run_documents()
    send(connection, docs)
    wait_until(lambda: uid(docs) in store.closed)
    assert len(store.tapes) == 3 and store.failed == {}
    assert received(store, docs) == as_received(docs)
    assert len(store.finals(uid(docs))) == 1
    wait_until(lambda: logs(tmp_path) == [])


def test_runs_whose_client_is_gone_are_recorded_and_taken_in_again_when_it_is_back(
    serve, link, store, tmp_path, wait_until
):
    connection = link(serve(incomplete_after=0.5, unfinished=["from-before"]).address)
    docs = run_documents(10)
    send(connection, docs[:6])
    wait_until(lambda: store.tapes and len(store.tapes[0].documents) == 6)
    kept = (tmp_path / "log" / f"{uid(docs)}.log").read_bytes()
    assert connection.close(5.0) is False, "a run without stop is not taken over"
    wait_until(lambda: len(store.incomplete) == 2)
    assert set(store.incomplete) == {uid(docs), "from-before"}
    assert "no stop document" in store.incomplete[uid(docs)]
    assert store.closed == set() and store.updates == store.updates[:1]
    assert (tmp_path / "log" / f"{uid(docs)}.log").read_bytes() == kept
    link(serve().address)
    wait_until(lambda: uid(docs) in store.closed)
    assert received(store, docs) == as_received(docs[:6])


def test_outcomes_and_snapshots_reach_who_watches(serve, link, store, wait_until):
    service = serve()
    connection, other = link(service.address), link(service.address)
    early = connection.future("run")
    assert connection.future("run") is early
    wait_until(lambda: service.ingest.counts["WATCH"] == 1)
    service.mailbox.post(SnapshotDone("run", 7, "/x/run.h5"))
    snapshot = wait_until(lambda: connection.snapshot("run"))
    assert (snapshot["rows"], snapshot["path"]) == (7, "/x/run.h5")
    assert not early.done() and other.snapshot("run") is None
    payload = {"status": "done", "proposals": [{"id": "p", "x": list(range(30_000))}]}
    store.outcomes["run"] = payload
    service.mailbox.post(Outcome("run", payload))
    assert early.result(30) == {"run": "run", **payload}
    assert other.future("run").result(30)["status"] == "done"
    assert not early.cancel() and connection.snapshot("run") is None


def test_watches_survive_a_restart_of_the_service(serve, link, store, wait_until):
    service = serve()
    connection = link(service.address)
    future = connection.future("run")
    wait_until(lambda: service.ingest.counts["WATCH"] == 1)
    service.stop()
    again = serve(service.address)
    wait_until(lambda: again.ingest.counts["WATCH"] == 1)
    again.mailbox.post(Outcome("run", {"status": "failed", "reason": "r"}))
    assert future.result(30)["reason"] == "r"


def test_requests_are_answered_or_refused_with_the_reason(serve, link, store, tmp_path):
    service = serve()
    (tmp_path / "service.json").write_text(json.dumps({"ingest": service.address, "pid": 1}))
    store.answers["add"] = lambda fields: {"sum": fields["a"] + fields["b"]}
    store.answers["many"] = lambda fields: {"rows": [{"n": n} for n in range(20_000)]}
    assert request(tmp_path, "add", a=1, b=2) == {"sum": 3}
    assert len(request(service.address, "many")["rows"]) == 20_000
    with pytest.raises(RequestRefusedError, match="no operation 'fly'"):
        request(tmp_path, "fly")
    connection = link(service.address)
    assert connection.request("add", a=2, b=2).result(30) == {"ok": True, "sum": 4}
    assert connection.request("fly").result(30)["ok"] is False


def test_a_request_without_a_service_says_where_it_looked(tmp_path, link):
    with pytest.raises(NoServiceError, match=r"no .*service\.json.*inscan serve"):
        request(tmp_path, "status", timeout=0.1)
    child = subprocess.Popen(["true"])
    child.wait()
    file = {"ingest": "tcp://127.0.0.1:1", "pid": child.pid}
    (tmp_path / "service.json").write_text(json.dumps(file))
    with pytest.raises(NoServiceError, match=r"127\.0\.0\.1:1 .*left by a service that is gone"):
        request(tmp_path, "status", timeout=0.1)
    with pytest.raises(ValueError, match="no address"):
        request("tcp://nonsense", "status")
    pending = link("tcp://127.0.0.1:1").request("status", timeout=0.2)
    with pytest.raises(ConnectionError, match="did not answer in time"):
        pending.result(30)


def test_a_port_in_use_is_named(serve):
    service = serve()
    with pytest.raises(OSError, match=f"{service.address}: another program listens there"):
        serve(service.address)
    with pytest.raises(OSError, match="tcp://no.such.host.invalid:5 can be reached from other"):
        serve("tcp://no.such.host.invalid:5")


class Proxy(threading.Thread):
    """A TCP proxy whose connections can be cut, or frozen without a word."""

    def __init__(self, target: str) -> None:
        super().__init__(name="proxy")
        host, port = target.removeprefix("tcp://").split(":")
        self.target = (host, int(port))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self.listener.getsockname()[1]}"
        self.passed = 0
        self.frozen = False
        self.ending = False
        self.cutting = False
        self.start()

    def run(self) -> None:
        pairs: dict[socket.socket, socket.socket] = {}
        while not self.ending:
            if self.cutting:
                self.cutting = False
                for end in pairs:
                    end.close()
                pairs.clear()
            ready, _, _ = select.select([self.listener, *pairs], [], [], 0.01)
            for end in ready:
                if end is self.listener:
                    client, _ = self.listener.accept()
                    try:
                        server = socket.create_connection(self.target, timeout=5)
                    except OSError:
                        client.close()
                        continue
                    pairs |= {client: server, server: client}
                elif end in pairs:
                    self._forward(pairs, end)
        for end in [self.listener, *pairs]:
            end.close()

    def _forward(self, pairs: dict[socket.socket, socket.socket], end: socket.socket) -> None:
        try:
            data = end.recv(4096)
            if data and not self.frozen:
                pairs[end].sendall(data)
            self.passed += len(data)
        except OSError:
            data = b""
        if not data:
            other = pairs.pop(end)
            pairs.pop(other, None)
            end.close()
            other.close()

    def stop(self) -> None:
        self.ending = True
        self.join()


@pytest.fixture
def proxy():
    started: list[Proxy] = []

    def start(target: str) -> Proxy:
        started.append(Proxy(target))
        return started[-1]

    yield start
    for one in started:
        one.stop()


def test_a_run_survives_a_line_that_is_cut_again_and_again(serve, link, store, proxy, wait_until):
    service = serve()
    line = proxy(service.address)
    connection = link(line.address)
    docs = run_documents(400, size=40)
    whole = sum(len(pack(doc)) for _, doc in docs)
    send(connection, docs[:-1])
    for cut in range(1, 6):
        # Somewhere inside a frame, whatever happens to be under way.
        wait_until(lambda cut=cut: line.passed > cut * whole // 8)
        line.cutting = True
    send(connection, docs[-1:])
    wait_until(lambda: uid(docs) in store.closed)
    assert received(store, docs) == as_received(docs)
    assert len(store.tapes) == 1 and len(store.finals(uid(docs))) == 1


def test_a_line_that_swallows_everything_is_noticed_and_left(
    serve, link, store, proxy, wait_until, tmp_path
):
    service = serve()
    line = proxy(service.address)
    file = tmp_path / "service.json"
    file.write_text(json.dumps({"ingest": line.address}))
    connection = link()
    docs = run_documents(50)
    send(connection, docs[:20])
    wait_until(lambda: store.tapes and len(store.tapes[0].documents) == 20)
    line.frozen = True
    send(connection, docs[20:])
    wait_until(lambda: not connection.connected)
    file.write_text(json.dumps({"ingest": service.address}))
    wait_until(lambda: uid(docs) in store.closed)
    assert received(store, docs) == as_received(docs)


def test_a_rejected_run_is_released_at_once_and_not_closed(
    serve, link, store, tmp_path, wait_until
):
    connection = link(serve().address)
    store.reject_at = 3
    docs = run_documents(10)
    future = connection.future(uid(docs))
    send(connection, docs[:6])
    wait_until(lambda: logs(tmp_path) == [])
    send(connection, docs[6:])
    assert future.result(30)["status"] == "failed" and future.result()["reason"] == "no energies"
    assert store.closed == set() and [u.kind for u in store.updates] == ["rejected"]
    assert connection.close()
