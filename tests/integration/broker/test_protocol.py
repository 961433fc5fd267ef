"""What the broker and the spool server say to peers that are late, lying, outdated or mad."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inscan.callbacks import wire
from inscan.callbacks.link import Link, host_id
from inscan.callbacks.wire import Message, encode_message, pack, unpack
from inscan.service import transfer
from inscan.service.host import boot_id
from inscan.service.messages import PROTOCOL, InferenceJob
from inscan.service.processed import Processed, ResultArray
from inscan.service.result_file import write_result
from inscan.service.transfer import TransferError


class Peer:
    """One end of the wire, spoken by hand."""

    def __init__(self, address: str, wait_until: Any, name: str = "by-hand") -> None:
        self.link = Link()
        self.link.connect(address)
        self.name = name
        self.wait_until = wait_until
        self.heard: list[Message] = []

    def send(self, kind: str, header: dict[str, Any], *chunks: bytes) -> None:
        self.wait_until(lambda: self.link.send(kind, header, *chunks), f"{kind} is sent")

    def hear(self, kind: str) -> Message:
        """The next message of a kind; others are left."""

        def found() -> Message | None:
            self.link.wait(0.05)
            self.heard += self.link.messages()
            for message in self.heard:
                if message.kind == kind:
                    self.heard.remove(message)
                    return message
            return None

        return self.wait_until(found, f"a {kind}")

    def hello(self, protocol: tuple[int, int] = PROTOCOL) -> None:
        self.send(
            "HELLO",
            {
                "protocol": list(protocol),
                "worker": self.name,
                "host_id": host_id(),
                "boot_id": boot_id(),
                "pid": 1,
                "device": "hand",
                "memory": 1,
                "version": "0.0.1",
                "credit": 1,
            },
        )

    def job(self) -> InferenceJob:
        return InferenceJob.model_validate(unpack(self.hear("JOB").chunks[0]))

    def beat(self, job: InferenceJob | None, fence: int | None = None) -> None:
        header = {"worker": self.name, "key": job.key if job else None, "progress": 0.0, "rss": 0}
        number = 0 if job is None else job.fence if fence is None else fence
        self.send("HB", {**header, "fence": number, "steps": 0, "credit": int(job is None)})

    def done(self, job: InferenceJob, **changes: Any) -> None:
        result = {
            "key": job.key,
            "fence": job.fence,
            "result_path": job.result_path,
            "digest": "sha256:0",
            "report": {},
            "regions": [],
            "timings": {},
            **changes,
        }
        self.send("DONE", {"key": job.key, "fence": job.fence}, pack(result))


@pytest.fixture
def peer(rig, wait_until) -> Iterator[Peer]:
    made = Peer(rig.address, wait_until)
    yield made
    made.link.close()


def write(job: InferenceJob, value: float = 1.0) -> None:
    array = ResultArray("values", ("row",), "", np.full(3, value, "f4"))
    write_result(Path(job.result_path), Processed([array], {}), {})


def test_a_result_told_twice_is_taken_once_and_acknowledged_twice(rig, peer):
    peer.hello()
    assert peer.hear("WELCOME").header["hb_s"] == rig.settings.hb_s
    key = rig.submit("run-1")
    job = peer.job()
    write(job)
    for _ in range(2):
        peer.done(job)
        assert peer.hear("ACK").header["key"] == key
    counts = rig.broker.status()["counts"]
    assert (counts["accepted"], counts["again"]) == (1, 1)
    assert [path.name for path in rig.settings.results_dir.iterdir()] == [f"{key}.h5"]


def test_an_older_dispatch_that_reports_late_is_recorded_and_changes_nothing(rig, peer):
    peer.hello()
    key = rig.submit("run-1")
    first = peer.job()
    rig.journal.leases.crashed(key, first.fence, "as if its lease had ended")
    peer.beat(first)
    assert peer.hear("CANCEL").header["key"] == key
    peer.send(
        "FAIL", {"key": key, "fence": 1, "code": "cancelled", "message": "", "retryable": True}
    )
    peer.hear("ACK")
    second = peer.job()
    assert second.fence == 2 and second.result_path != first.result_path
    write(second, 2.0)
    peer.done(second, digest="sha256:2")
    peer.hear("ACK")
    write(first, 1.0)
    peer.done(first, digest="sha256:1")
    peer.hear("ACK")
    assert rig.journal.job(key)["digest"] == "sha256:2"
    assert [repeat["same"] for repeat in rig.journal.repeats(key)] == [False]
    assert [path.name for path in rig.settings.results_dir.iterdir()] == [f"{key}.h5"]


def test_a_result_elsewhere_is_neither_read_nor_removed(rig, peer, tmp_path):
    peer.hello()
    key = rig.submit("run-1")
    precious = tmp_path / "precious.h5"
    precious.write_text("mine")
    peer.done(peer.job(), result_path=str(precious))
    peer.hear("ACK")
    assert precious.read_text() == "mine"
    assert rig.journal.job(key)["code"] == "no_result"
    assert "misplaced" in rig.journal.job(key)["reason"]


def test_a_result_that_was_never_written_is_tried_again(rig, peer):
    peer.hello()
    rig.submit("run-1")
    job = peer.job()
    peer.done(job)
    peer.hear("ACK")
    assert peer.job().fence == job.fence + 1


def test_another_major_version_is_refused_in_words(rig, peer):
    peer.hello((PROTOCOL[0] + 1, 0))
    told = peer.hear("ERR").header
    assert told["code"] == "protocol"
    assert "0.0.1" in told["message"] and "install the same version" in told["message"]
    assert rig.broker.status()["workers"] == []


def test_another_wire_version_is_answered_in_its_own(rig, peer, monkeypatch):
    monkeypatch.setattr(wire, "PROTOCOL", (wire.PROTOCOL[0] + 1, 0))
    frames = encode_message("HELLO", {})
    monkeypatch.undo()
    assert peer.link._socket is not None
    peer.wait_until(lambda: peer.link.send("HB", {}), "connected")
    peer.hear("ERR")
    peer.link._socket.send_multipart(frames)
    answer = peer.wait_until(
        lambda: peer.link._socket.poll(50) and peer.link._socket.recv_multipart(), "an answer"
    )
    assert bytes(answer[1]) == bytes(frames[1])
    assert unpack(answer[3])["code"] == "protocol"


def test_a_worker_nobody_knows_is_asked_for_its_name(rig, peer):
    peer.beat(None)
    assert peer.hear("ERR").header["code"] == "hello"


@pytest.mark.parametrize(
    ("kind", "header", "chunks"),
    [
        ("HB", {}, ()),
        ("HB", {"worker": 3}, ()),
        ("DONE", {"key": "x", "fence": 1}, ()),
        ("DONE", {"key": "x", "fence": 1}, (b"junk",)),
        ("FAIL", {"key": "x"}, ()),
        ("DANCE", {}, ()),
        ("HELLO", {"protocol": "one"}, ()),
    ],
)
def test_what_cannot_be_read_is_counted_and_answered(rig, peer, kind, header, chunks):
    peer.hello()
    peer.hear("WELCOME")
    peer.send(kind, header, *chunks)
    assert peer.hear("ERR").header["code"] == "malformed"
    assert rig.broker.status()["counts"]["garbage"] == 1
    peer.beat(None)
    rig.submit("run-1")
    assert peer.job().run_uid == "run-1", "the broker goes on"


def test_a_done_for_a_dispatch_that_never_was_changes_nothing(rig, peer):
    peer.hello()
    key = rig.submit("run-1")
    job = peer.job()
    ahead = job.model_copy(
        update={"fence": 7, "result_path": job.result_path.replace(".1.h5", ".7.h5")}
    )
    write(ahead)
    peer.done(ahead)
    peer.hear("ACK")
    assert rig.state_of(key) == "leased"


@pytest.fixture
def far(rig, wait_until) -> Iterator[Peer]:
    rig.job("run-1")
    made = Peer(rig.spool_address, wait_until)
    yield made
    made.link.close()


@pytest.mark.parametrize(
    ("kind", "header", "words"),
    [
        (
            "FETCH",
            {"run": "nobody", "file": "counts.npy", "offset": 0, "size": 4},
            "no spool folder",
        ),
        ("FETCH", {"run": "..", "file": "journal.npy", "offset": 0, "size": 4}, "no spool folder"),
        (
            "FETCH",
            {"run": "run-1", "file": "other.npy", "offset": 0, "size": 4},
            "cannot be served",
        ),
        ("FETCH", {"run": "run-1", "file": "counts.npy", "offset": 1 << 40, "size": 4}, "bytes"),
        ("FINISH", {"key": "a" * 64, "fence": 1, "size": 3}, "has begun"),
    ],
)
def test_the_spool_server_refuses_by_name(far, kind, header, words):
    far.send(kind, header)
    assert words in far.hear("ERR").header["message"]


def test_a_result_of_no_dispatch_is_not_taken(rig, far):
    header = {"key": "a" * 64, "fence": 1, "offset": 0, "size": 3}
    far.send("PUT", header, b"abc")
    assert "no longer" in far.hear("ERR").header["message"]
    assert list(rig.settings.results_dir.iterdir()) == []


@pytest.mark.parametrize(
    "header",
    [
        {"run": "run-1", "file": "../journal.db", "offset": 0, "size": 4},
        {"run": "run-1", "file": "counts.npy", "offset": 0, "size": 1 << 30},
        {"run": "run-1", "file": "counts.npy", "offset": -4, "size": 4},
    ],
)
def test_what_the_spool_server_cannot_mean_is_counted(rig, far, header):
    far.send("FETCH", header)
    far.send("FETCH", {"run": "run-1", "file": "counts.npy", "offset": 0, "size": 8})
    assert len(far.hear("CHUNK").chunks[0]) == 8
    assert rig.spool_server.counts["garbage"] == 1


def test_large_arrays_cross_in_chunks_and_arrive_whole(rig, peer, tmp_path):
    rng = np.random.default_rng(0)
    values = rng.random((3, 1000, 1117))  # 27 MB, no multiple of a chunk
    run = rig.spool.run("run-9")
    spec = run.store("values", values)
    job = rig.job("run-9").model_copy(update={"arrays": {"values": spec}})
    moves: list[int] = []
    fetched = transfer.fetch(rig.spool_address, job, lambda: moves.append(1))
    np.testing.assert_array_equal(fetched["values"], values)
    assert len(moves) == -(-values.nbytes // transfer.CHUNK)
    peer.hello()
    rig.submit("run-9")
    given = peer.job()
    path = tmp_path / "result.h5"
    write_result(path, Processed([ResultArray("v", ("a", "b", "c"), "", values)], {}), {})
    transfer.put(rig.spool_address, given, path, lambda: None)
    assert Path(given.result_path).read_bytes() == path.read_bytes()


def test_giving_up_a_transfer_is_felt_at_once(rig):
    job = rig.job("run-1")

    def enough() -> None:
        raise InterruptedError("not wanted any more")

    with pytest.raises(InterruptedError):
        transfer.fetch(rig.spool_address, job, enough)
    gone = job.model_copy(update={"spool": "/spool/gone"})
    with pytest.raises(TransferError, match="no spool folder"):
        transfer.fetch(rig.spool_address, gone, lambda: None)
