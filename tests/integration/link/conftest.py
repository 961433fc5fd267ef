"""A real ingest on a loopback socket, with stores in memory behind it that outlive its restarts."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bluesky.plans as bp
import pytest
from bluesky import RunEngine
from ophyd.sim import SynAxis, SynGauss

from inscan.callbacks import outbox, shipper
from inscan.callbacks.connection import Connection, connect
from inscan.callbacks.updates import NotUnderstood, Update
from inscan.service import ingest as ingest_module
from inscan.service.ingest import Ingest
from inscan.service.intake import Uses
from inscan.service.mailbox import Mailbox

DEADLINE_S = 30.0


@pytest.fixture
def wait_until() -> Callable[..., Any]:
    """Return the condition's first true value; fail when it stays false."""

    def wait(condition: Callable[[], Any], what: str = "the condition") -> Any:
        deadline = time.monotonic() + DEADLINE_S
        while not (value := condition()):
            assert time.monotonic() < deadline, f"still waiting for {what}"
            threading.Event().wait(0.005)
        return value

    return wait


@dataclass
class Tape:
    """An assembler that keeps the documents it was given and hands them on at the end."""

    store: "Store"
    uid: str
    documents: list[tuple[str, dict[str, Any]]]

    def __call__(self, name: str, doc: Mapping[str, Any], /) -> list[Update]:
        self.store.gate.wait(DEADLINE_S)
        self.documents.append((name, dict(doc)))
        if name == "stop":
            return self._end(doc["exit_status"])
        if name == "event" and doc["seq_num"] == self.store.reject_at:
            return [Update("rejected", self.uid, "primary", {"reason": "no energies"}, {})]
        if name == "event" and doc["seq_num"] % 5 == 0:
            return [Update("snapshot", self.uid, "primary", {"rows": doc["seq_num"]}, {})]
        return []

    def finish(self, reason: str, /) -> list[Update]:
        return self._end(f"incomplete: {reason}")

    def _end(self, status: str) -> list[Update]:
        return [Update("final", self.uid, "primary", {"exit_status": status}, {})]

    def close(self) -> None:
        self.store.closings += 1


@dataclass
class Store:
    """What the service would keep durably, and what it would decide."""

    tapes: list[Tape] = field(default_factory=list)
    updates: list[Update] = field(default_factory=list)
    closed: set[str] = field(default_factory=set)
    passed_by: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    incomplete: dict[str, str] = field(default_factory=dict)
    outcomes: dict[str, dict[str, Any]] = field(default_factory=dict)
    coming: list[dict[str, Any]] = field(default_factory=list)
    """Outcomes of the next runs that are closed."""
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    answers: dict[str, Callable[[dict[str, Any]], Mapping[str, Any]]] = field(default_factory=dict)
    update_errors: list[Exception] = field(default_factory=list)
    """Raised one after the other by the next finals."""
    reject_at: int = 0
    """seq_num of the event at which assemblers reject their run."""
    closings: int = 0
    gate: threading.Event = field(default_factory=threading.Event)
    """While not set, assemblers hang."""

    def __post_init__(self) -> None:
        self.gate.set()

    def open_run(self, start: Mapping[str, Any]) -> Tape:
        if start.get("nobody"):
            raise NotUnderstood("run matches no profile")
        tape = Tape(self, start["uid"], [("start", dict(start))])
        self.tapes.append(tape)
        return tape

    def on_update(self, update: Update) -> None:
        if update.kind == "final" and self.update_errors:
            raise self.update_errors.pop(0)
        self.updates.append(update)

    def on_closed(self, run_uid: str) -> None:
        if self.coming:
            self.outcomes[run_uid] = self.coming.pop(0)
        self.closed.add(run_uid)

    def outcome(self, run_uid: str) -> dict[str, Any] | None:
        """As the journal tells it, also to who asks late."""
        if run_uid in self.passed_by:
            return {"status": "passed_by", "reason": self.passed_by[run_uid]}
        return self.outcomes.get(run_uid)

    def handle_request(self, op: str, fields: dict[str, Any], peer: bytes) -> Mapping[str, Any]:
        self.requests.append((op, fields))
        if op not in self.answers:
            raise LookupError(f"no operation {op!r}")
        return self.answers[op](fields)

    def documents(self, run_uid: str) -> list[tuple[str, dict[str, Any]]]:
        """Documents of a run as the latest assembler got them."""
        return [tape for tape in self.tapes if tape.uid == run_uid][-1].documents

    def finals(self, run_uid: str) -> list[Update]:
        return [u for u in self.updates if u.run_uid == run_uid and u.kind == "final"]


@dataclass
class Service:
    ingest: Ingest
    address: str
    mailbox: Mailbox
    stopped: bool = False

    def stop(self) -> None:
        if not self.stopped:
            self.stopped = True
            assert self.ingest.stop(DEADLINE_S), "ingest did not stop"
            self.mailbox.close()


@pytest.fixture
def quick(monkeypatch) -> None:
    """Intervals of people's patience, cut to what a test has."""
    monkeypatch.setattr(shipper, "PING_INTERVAL", 0.1)
    monkeypatch.setattr(shipper, "SILENCE", 1.5)
    monkeypatch.setattr(shipper, "SCAN_INTERVAL", 0.2)
    monkeypatch.setattr(shipper, "FIRST_WORD", 0.3)
    monkeypatch.setattr(outbox, "SYNC_INTERVAL", 0.3)
    monkeypatch.setattr(outbox, "RELEASE_INTERVAL", 0.3)
    monkeypatch.setattr(ingest_module, "_POLL_MS", 50)
    monkeypatch.setattr(ingest_module, "_RESUME_INTERVAL", 0.1)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def serve(quick, store) -> Iterator[Callable[..., Service]]:
    """Start an ingest: ``serve(address="tcp://127.0.0.1:0", **options)``."""
    services: list[Service] = []

    def start(address: str = "tcp://127.0.0.1:0", **options: Any) -> Service:
        mailbox = Mailbox()
        uses = Uses(
            open_run=store.open_run,
            on_update=store.on_update,
            on_closed=store.on_closed,
            on_passed_by=store.passed_by.__setitem__,
            on_failed=store.failed.__setitem__,
        )
        over = (store.closed, store.passed_by, store.failed)
        ingest = Ingest(
            address,
            uses,
            is_closed=lambda uid: any(uid in kept for kept in over),
            on_incomplete=store.incomplete.__setitem__,
            outcome_of=store.outcome,
            handle_request=store.handle_request,
            mailbox=mailbox,
            **options,
        )
        service = Service(ingest, ingest.bind(), mailbox)
        ingest.start()
        services.append(service)
        return service

    yield start
    store.gate.set()
    for service in services:
        service.stop()


@pytest.fixture
def link(quick, tmp_path) -> Iterator[Callable[..., Connection]]:
    """Connect: ``link(address=None, state_dir=tmp_path)``."""
    connections: list[Connection] = []

    def start(address: str | None = None, state_dir: Path = tmp_path) -> Connection:
        connections.append(connect(address, state_dir=state_dir))
        return connections[-1]

    yield start
    for connection in connections:
        connection.close(0.0)


class Beamline:
    """A RunEngine, two motors, a detector, and the record of where the motors went."""

    def __init__(self) -> None:
        self.engine = RunEngine({}, context_managers=[])
        self.slow: Any = SynAxis(name="slow")
        self.fast: Any = SynAxis(name="fast")
        # ophyd's devices are Bluesky's by what they do, not by their declared types.
        self.detector: Any = SynGauss("det", self.fast, "fast", center=0, Imax=1, noise=None)
        self.starts: list[dict[str, Any]] = []
        self.stops: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.engine.subscribe(lambda name, doc: self.starts.append(doc), "start")
        self.engine.subscribe(lambda name, doc: self.stops.append(doc), "stop")
        self.engine.subscribe(lambda name, doc: self.events.append(doc), "event")

    def survey(self) -> Any:
        return bp.grid_scan([self.detector], self.slow, 0, 1, 3, self.fast, 0, 1, 3)

    def fine(self, region: dict[str, Any], proposal: dict[str, Any]) -> Any:
        slow, fast = region["slow_range"], region["fast_range"]
        return bp.grid_scan([self.detector], self.slow, *slow, 2, self.fast, *fast, 2)

    @property
    def fine_starts(self) -> list[dict[str, Any]]:
        return self.starts[1:]


@pytest.fixture
def beamline() -> Beamline:
    return Beamline()
