"""Outbox and ingest with anything between them: whatever is lost, repeated or overtaken, a run is placed once."""

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inscan.callbacks.log_file import LogFile
from inscan.callbacks.outbox import Outbox
from inscan.callbacks.updates import Update
from inscan.callbacks.wire import decode_message, encode_message, pack
from inscan.service.ingest import Ingest
from inscan.service.intake import Uses
from inscan.service.mailbox import Mailbox

CLIENT = b"client"
Frames = list[Any]


class AtOnce:
    """An executor without threads."""

    def submit(self, work: Callable[..., None], *given: Any) -> None:
        work(*given)

    def shutdown(self, **_: Any) -> None:
        return


class Tape:
    """An assembler that keeps what it was given."""

    def __init__(self, start: dict[str, Any], world: "World") -> None:
        self.uid, self.world = start["uid"], world
        self.documents = ["start"]

    def __call__(self, name: str, doc: Any, /) -> list[Update]:
        self.documents.append(f"{name} {doc.get('n', '')}".strip())
        return [Update("final", self.uid, "primary", {}, {})] if name == "stop" else []

    def finish(self, reason: str, /) -> list[Update]:
        self.documents.append("ended")
        return [Update("final", self.uid, "primary", {}, {})]

    def close(self) -> None:
        self.world.closed_tapes.append(self)


class World:
    """A host's outbox, a service that may start again, and the messages between them in two boxes."""

    def __init__(self, folder: Path, runs: dict[str, tuple[int, bool]]) -> None:
        self.up: list[Frames] = []
        self.down: list[Frames] = []
        self.now = time.monotonic()
        self.finals: list[str] = []
        self.closed: set[str] = set()
        self.failed: dict[str, str] = {}
        self.tapes: list[Tape] = []
        self.closed_tapes: list[Tape] = []
        self.outbox = Outbox()
        self.logs: dict[str, LogFile] = {}
        self.wanted: dict[str, list[str]] = {}
        self.to_write: dict[str, list[bytes]] = {}
        for uid, (events, stops) in runs.items():
            names = ["start", *(f"event {n}" for n in range(events)), *(["stop"] if stops else [])]
            self.wanted[uid] = names if stops else [*names, "ended"]
            docs = [("start", {"uid": uid}), *(("event", {"n": n}) for n in range(events))]
            docs += [("stop", {"run_start": uid})] if stops else []
            self.to_write[uid] = [pack([name, doc]) for name, doc in docs]
            self.logs[uid] = LogFile.create(folder, uid)
            self.outbox.add(self.logs[uid])
        self.ingest = self.serve()

    def serve(self) -> Ingest:
        """A new life of the service; what it has made durable stays."""
        uses = Uses(
            open_run=self.open,
            on_update=lambda update: self.finals.append(update.run_uid),
            on_closed=self.closed.add,
            on_passed_by=self.failed.__setitem__,
            on_failed=self.failed.__setitem__,
        )
        ingest = Ingest(
            "tcp://127.0.0.1:0",
            uses,
            is_closed=self.closed.__contains__,
            on_incomplete=self.failed.__setitem__,
            outcome_of=lambda uid: None,
            handle_request=lambda op, fields, identity: {},
            mailbox=Mailbox(),
        )
        for pool in (ingest._pool, ingest._menders):
            pool.shutdown()
        at_once: Any = AtOnce()
        ingest._pool = ingest._menders = at_once
        box: Any = self
        ingest._line.router = box
        hello = {"client": "c", "host_id": "h", "pid": 1}
        ingest._message([CLIENT, *map(bytes, encode_message("HELLO", hello))])
        return ingest

    def open(self, start: Any) -> Tape:
        self.tapes.append(Tape(start, self))
        return self.tapes[-1]

    def send(self, frames: Frames) -> None:
        """In the place of ingest's router."""
        self.down.append([bytes(frame) for frame in frames[1:]])

    def close(self) -> None:
        """In the place of ingest's router, too."""

    # Steps.

    def write(self, uid: str) -> None:
        """The RunEngine writes a document; after the last one the log grows no more."""
        if self.to_write[uid]:
            self.logs[uid].append([self.to_write[uid].pop(0)])
        self.logs[uid].live = bool(self.to_write[uid])

    def pump(self, seconds: float) -> None:
        self.now += seconds
        self.outbox.pump(self.take, self.now)

    def take(self, kind: str, header: Any, *chunks: Any) -> bool:
        self.up.append([bytes(frame) for frame in encode_message(kind, header, *chunks)])
        return True

    def deliver_up(self, frames: Frames) -> None:
        self.ingest._message([CLIENT, *frames])
        for run in list(self.ingest._runs.values()):
            self.ingest._report(run, time.monotonic())

    def deliver_down(self, frames: Frames) -> None:
        message = decode_message(frames)
        run, header = str(message.header.get("run")), message.header
        match message.kind:
            case "ACK":
                self.outbox.acknowledge(run, header["offset"])
            case "RESUME":
                self.outbox.resume(run, header["offset"], header["placed"])
            case "RELEASE":
                self.outbox.release(run)

    def restart(self) -> None:
        """The service dies; what it said is still under way, and what it is sent may be from before."""
        self.ingest._close()
        self.ingest = self.serve()
        self.outbox.reset()

    def end(self) -> None:
        self.ingest._close()
        self.outbox.close()


def travel(box: list[Frames], deliver: Callable[[Frames], None], deed: str, place: int) -> None:
    if not box:
        return
    place %= len(box)
    match deed:
        case "lose":
            del box[place]
        case "repeat":
            deliver(box[place])
        case "late":  # overtaken by all that come after it
            box.append(box.pop(place))
        case _:
            deliver(box.pop(0))


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 1), st.just(0)),
        st.tuples(st.just("pump"), st.sampled_from([0, 1, 3, 12]), st.just(0)),
        st.tuples(
            st.sampled_from(["up", "down"]),
            st.sampled_from(["pass", "pass", "pass", "lose", "repeat", "late"]),
            st.integers(0, 20),
        ),
        st.tuples(st.just("restart"), st.just(0), st.just(0)),
    ),
    max_size=80,
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(_STEPS, st.integers(0, 6), st.booleans())
def test_every_document_is_placed_once_in_order(steps, events, stops):
    folder = Path(tempfile.mkdtemp(prefix="inscan-outbox-"))
    runs = {"one": (events, stops), "other": (3, True)}
    world = World(folder, runs)
    try:
        for step, what, place in steps:
            match step:
                case "write":
                    world.write(list(runs)[int(what)])
                case "pump":
                    world.pump(float(what))
                case "up":
                    travel(world.up, world.deliver_up, str(what), place)
                case "down":
                    travel(world.down, world.deliver_down, str(what), place)
                case "restart":
                    world.restart()
        settle(world)
        for uid, wanted in world.wanted.items():
            (closed, *_) = [t for t in reversed(world.closed_tapes) if t.uid == uid and whole(t)]
            assert closed.documents == wanted
            assert world.finals.count(uid) == 1 and uid in world.closed
        assert world.failed == {} and list(folder.glob("*.log")) == []
    finally:
        world.end()
        shutil.rmtree(folder)


def whole(tape: Tape) -> bool:
    return tape.documents[-1] in ("stop", "ended")


def settle(world: World) -> None:
    """Write what is left to write, lose nothing any more, and wait until every log is taken over."""
    for uid, left in world.to_write.items():
        while left or world.logs[uid].live:
            world.write(uid)
    for _ in range(200):
        while world.up:
            world.deliver_up(world.up.pop(0))
        while world.down:
            world.deliver_down(world.down.pop(0))
        if not len(world.outbox):
            return
        world.pump(3.0)
    pytest.fail(f"not taken over: {world.outbox.file_names()}, {world.finals}")


def test_an_acknowledgement_of_an_earlier_life_ends_no_run_too_early(tmp_path):
    world = World(tmp_path, {"one": (4, False)})
    for _ in range(5):
        world.write("one")
    late: list[Frames] = []
    while not late:
        world.pump(3.0)
        while world.up:
            world.deliver_up(world.up.pop(0))
        late = [one for one in world.down if decode_message(one).kind == "ACK"]
        for frames in [] if late else world.down:
            world.deliver_down(frames)
        world.down.clear()
    world.restart()
    world.pump(3.0)
    world.deliver_up(world.up.pop(0))  # SYNC
    while world.down:
        world.deliver_down(world.down.pop(0))  # RESUME from the start
    world.pump(0.0)
    world.deliver_up(world.up.pop(0))  # the first document
    world.up.clear()
    world.deliver_down(late[-1])  # of all documents, to the life before
    settle(world)
    (tape,) = [tape for tape in world.tapes if whole(tape)]
    assert tape.documents == world.wanted["one"]
    world.end()
