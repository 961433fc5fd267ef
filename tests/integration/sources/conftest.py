"""A real proxy of bluesky in its own process, and documents to send through it."""

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import event_model
import pytest

from inscan.callbacks.sources.interface import Source
from inscan.callbacks.updates import Update
from inscan.service.ingest import Ingest
from inscan.service.intake import Uses
from inscan.service.mailbox import Mailbox
from inscan.service.source_table import SourceTable


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Proxy:
    """`bluesky-0MQ-proxy` between two ports that stay the same when it is started again."""

    def __init__(self) -> None:
        self.into, self.out = (f"127.0.0.1:{free_port()}" for _ in range(2))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        code = "from bluesky.commandline.zmq_proxy import main; main()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, "--in-address", self.into, "--out-address", self.out],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture(scope="session")
def proxy() -> Iterator[Proxy]:
    """A proxy that stays up."""
    running = Proxy()
    running.start()
    yield running
    running.stop()


@pytest.fixture
def own_proxy() -> Iterator[Proxy]:
    """A proxy that the test may stop and start."""
    running = Proxy()
    yield running
    running.stop()


class Collected(list[tuple[str, dict[str, Any]]]):
    """A sink that keeps what it gets."""

    def __call__(self, name: str, doc: Any) -> None:
        self.append((name, doc))


@pytest.fixture
def running() -> Callable[..., Any]:
    """``with running(source) as documents``: the source at work in a thread."""

    @contextmanager
    def run(source: Source) -> Iterator[Collected]:
        sink, stop = Collected(), threading.Event()
        failures: list[Exception] = []

        def work() -> None:
            try:
                source.run(sink, stop)
            except Exception as error:  # noqa: BLE001 - told in the test's thread
                failures.append(error)

        thread = threading.Thread(target=work, name="source")
        thread.start()
        try:
            yield sink
        finally:
            stop.set()
            thread.join(20)
        assert not thread.is_alive(), "the source did not end"
        if failures:
            raise failures[0]

    return run


@pytest.fixture
def documents() -> Callable[..., list[tuple[str, dict[str, Any]]]]:
    """``documents(points)``: a run of plain documents."""

    def make(points: int = 3, **metadata: Any) -> list[tuple[str, dict[str, Any]]]:
        model: Any = event_model
        run = model.compose_run(metadata=metadata)
        keys = {"x": {"dtype": "number", "shape": [], "source": "s"}}
        stream = run.compose_descriptor(name="primary", data_keys=keys)
        found = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
        for point in range(points):
            event = stream.compose_event(data={"x": float(point)}, timestamps={"x": 0.0})
            found.append(("event", event))
        found.append(("stop", run.compose_stop()))
        return [(name, dict(doc)) for name, doc in found]

    return make


class Store:
    """What a service would make of runs: it keeps their documents."""

    def __init__(self) -> None:
        self.runs: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        self.opened: list[str] = []
        self.over: set[str] = set()
        self.reasons: dict[str, str] = {}
        self.table = SourceTable()

    def open_run(self, start: Mapping[str, Any]) -> "Tape":
        self.opened.append(start["uid"])
        self.runs[start["uid"]] = [("start", dict(start))]
        return Tape(start["uid"], self.runs[start["uid"]])

    def end(self, uid: str, reason: str = "") -> None:
        self.reasons[uid] = reason
        self.over.add(uid)

    def answer(self, op: str, fields: dict[str, Any], peer: bytes) -> Mapping[str, Any]:
        known = {"source_report": self.table.report, "sources": self._sources}
        return known[op](**fields)

    def _sources(self) -> Mapping[str, Any]:
        return {"sources": self.table.rows()}


class Tape:
    def __init__(self, uid: str, documents: list[tuple[str, dict[str, Any]]]) -> None:
        self.uid = uid
        self.documents = documents

    def __call__(self, name: str, doc: Mapping[str, Any], /) -> list[Update]:
        self.documents.append((name, dict(doc)))
        return [Update("final", self.uid, "primary", {}, {})] if name == "stop" else []

    def finish(self, reason: str, /) -> list[Update]:
        return [Update("final", self.uid, "primary", {"exit_status": reason}, {})]

    def close(self) -> None:
        return


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def ingest(store: Store) -> Iterator[Callable[..., str]]:
    """Start a real ingest: ``ingest(address="tcp://127.0.0.1:0")`` gives its address."""
    running: list[tuple[Ingest, Mailbox]] = []

    def start(address: str = "tcp://127.0.0.1:0") -> str:
        mailbox = Mailbox()
        uses = Uses(
            open_run=store.open_run,
            on_update=lambda update: None,
            on_closed=store.end,
            on_passed_by=store.end,
            on_failed=store.end,
        )
        one = Ingest(
            address,
            uses,
            is_closed=store.over.__contains__,
            on_incomplete=store.reasons.__setitem__,
            outcome_of=lambda uid: None,
            handle_request=store.answer,
            mailbox=mailbox,
        )
        bound = one.bind()
        one.start()
        running.append((one, mailbox))
        return bound

    yield start
    for one, mailbox in running:
        assert one.stop(20)
        mailbox.close()
