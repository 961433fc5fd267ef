"""What people, disks and other threads do to the log of documents must cost documents at most, never the scan."""

import collections
import datetime
import enum
import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inscan.callbacks import document_log, log_pace
from inscan.callbacks.document_log import DocumentLog
from inscan.callbacks.legible import legible
from inscan.callbacks.log_file import LogFile, file_name
from inscan.callbacks.outbox import Outbox
from inscan.callbacks.wire import pack, unpack


def start(uid: str = "run", **md: Any) -> tuple[str, dict[str, Any]]:
    return "start", {"uid": uid, "time": 0.0, **md}


def descriptor(uid: str = "run") -> tuple[str, dict[str, Any]]:
    return "descriptor", {"uid": f"{uid} stream", "run_start": uid, "time": 0.0}


def event(number: int, uid: str = "run", **data: Any) -> tuple[str, dict[str, Any]]:
    return "event", {"descriptor": f"{uid} stream", "seq_num": number, "data": data}


def stop(uid: str = "run") -> tuple[str, dict[str, Any]]:
    return "stop", {"uid": f"{uid} stop", "run_start": uid}


def read(path: Path) -> list[Any]:
    """Documents of a log that nobody owns, without its first record."""
    log = LogFile.adopt(path)
    assert log is not None, "somebody still owns the log"
    found, offset = [], 0
    while (record := log.read(offset)) is not None:
        found.append(unpack(record.payload))
        offset = record.next
    assert offset == log.size, "the log ends in the middle of a record"
    log.close()
    return found[1:]


def stored(log: DocumentLog, uid: str = "run") -> list[Any]:
    for file in log.take_new():
        file.close()
    return read(log.directory / file_name(uid))


class Hostile:
    """Something in a document whose text must not be asked for."""

    asked = 0

    def __repr__(self) -> str:
        Hostile.asked += 1
        raise RuntimeError("a request to a server that does not answer")

    __str__ = __repr__


class Failing(np.ndarray):
    """An array that cannot be looked at."""

    def __array_finalize__(self, obj: Any) -> None:
        if obj is not None and getattr(obj, "armed", False):
            raise ZeroDivisionError("conversion")

    def reshape(self, *shape: Any, **more: Any) -> Any:
        raise ZeroDivisionError("conversion")

    @property
    def dtype(self) -> Any:
        raise ZeroDivisionError("no dtype")


class Colour(enum.Enum):
    RED = 1


# What is in documents


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Path("/data/x"), "/data/x"),
        (datetime.date(2026, 1, 2), "2026, 1, 2"),
        (Colour.RED, "RED"),
        (2**70, str(2**70)),
        (10**5000, "int"),  # Python itself refuses to write it out
        (Hostile(), "Hostile"),
        (collections.deque([Hostile()]), "deque"),
        (np.array([Hostile()], dtype=object), "Hostile"),
        ({Hostile(): 1, (Hostile(),): 2}, "Hostile"),
        (Failing((2,)), "Failing"),
        (object(), "object"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_foreign_objects_are_named_and_asked_for_their_text_only_where_that_is_harmless(
    value, text
):
    before = Hostile.asked
    found = unpack(pack(legible({"fine": [1, 2.5, "x"], "value": value})))
    assert found["fine"] == [1, 2.5, "x"] and text in str(found["value"])
    assert Hostile.asked == before


def test_cycles_and_floods_take_a_bounded_number_of_looks():
    wide: dict[str, Any] = {}
    for name in "abcdefgh":
        wide[name] = wide
    pack(legible(wide))
    flood = [*range(100_000), Hostile()]
    assert "100001 items" in legible({"flood": flood})["flood"]


def test_a_hostile_start_is_recorded_with_its_uid(tmp_path):
    log = DocumentLog(tmp_path)
    log.append(*start(sample=Hostile(), where={"nested": [Hostile(), 1]}, plan_args={"n": 5}))
    log.append(*stop())
    (_, first), (name, _) = stored(log)
    assert (first["uid"], first["plan_args"], name) == ("run", {"n": 5}, "stop")
    assert first["where"]["nested"][1] == 1


def test_a_document_that_cannot_be_packed_at_all_is_a_marked_gap(tmp_path, monkeypatch):
    log = DocumentLog(tmp_path)
    log.append(*start())
    log.append(*descriptor())

    def no_memory(obj: object) -> Any:
        raise MemoryError("no room for a frame")

    with monkeypatch.context() as patch:
        patch.setattr(document_log, "pack_parts", no_memory)
        log.append(*event(1))
        log.append(*event(2))
    log.append(*event(3))
    log.append(*stop())
    names = [(name, doc.get("documents")) for name, doc in stored(log)]
    expected = [("start", None), ("descriptor", None), ("gap", 2), ("event", None), ("stop", None)]
    assert names == expected and log.lost == 2


def test_a_stop_that_cannot_be_packed_ends_the_run(tmp_path, monkeypatch):
    def no_memory(obj: object) -> Any:
        raise MemoryError("no room for anything")

    log = DocumentLog(tmp_path)
    log.append(*start())
    (file,) = log.take_new()
    with monkeypatch.context() as patch:
        patch.setattr(document_log, "pack_parts", no_memory)
        log.append(*stop())
    assert not file.live and log.lost == 1
    file.close()


# Disks


class Disk:
    """What writing does: `room` bytes fit, each write takes `seconds`, and waits for `gate`."""

    def __init__(self) -> None:
        self.room = 10**12
        self.seconds = 0.0
        self.gate = threading.Event()
        self.gate.set()
        self.writing = threading.Event()
        self.clock = 0.0
        self._write = os.writev

    def writev(self, fd: int, buffers: Any) -> int:
        self.writing.set()
        assert self.gate.wait(30)
        size = sum(len(buffer) for buffer in buffers)
        if size > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= size
        self.clock += self.seconds
        return self._write(fd, buffers)

    def monotonic(self) -> float:
        return self.clock


@pytest.fixture
def disk(monkeypatch) -> Iterator[Disk]:
    """A disk whose time is counted, not waited for."""
    disk = Disk()
    monkeypatch.setattr(os, "writev", disk.writev)
    monkeypatch.setattr(log_pace, "time", disk)
    yield disk
    disk.gate.set()


def test_behind_a_slow_write_documents_go_through_the_memory(tmp_path, disk, caplog):
    log = DocumentLog(tmp_path)
    log.append(*start())
    log.append(*descriptor())
    disk.seconds = 0.2
    log.append(*event(0))
    assert not log.slow, "one may have been the processor"
    log.append(*event(1))
    assert log.slow and not log.waiting
    disk.gate.clear()  # whoever writes now does not come back
    for number in range(2, 200):
        log.append(*event(number, frame=np.full(100, number)))
    log.append(*stop())
    assert log.waiting and log.lost == 0 and log.kept_bytes > 198 * 800
    disk.gate.set()
    log.mend()
    assert not log.waiting and log.kept_bytes == 0
    found = stored(log)
    assert [doc["seq_num"] for name, doc in found if name == "event"] == list(range(200))
    assert found[-1][0] == "stop" and log.written == len(found)
    assert len([r for r in caplog.records if "does not wait for the disk" in r.message]) == 1
    disk.seconds, disk.clock = 0.0, disk.clock + 60.0
    log.append(*start("next"))
    assert not log.slow and not log.waiting
    log.take_new()[0].close()


def test_nobody_waits_for_who_mends(tmp_path, disk):
    log = DocumentLog(tmp_path)
    disk.room = 0
    log.append(*start())
    log.append(*descriptor())
    disk.room = 10**12
    disk.gate.clear()
    disk.writing.clear()
    mender = threading.Thread(target=log.mend)
    mender.start()
    assert disk.writing.wait(30)
    for number in range(1, 20):
        log.append(*event(number))  # returns, though the disk hangs
    log.append(*stop())
    assert mender.is_alive() and log.waiting
    disk.gate.set()
    mender.join(30)
    names = [name for name, _ in stored(log)]
    assert names == ["start", "descriptor", *["event"] * 19, "stop"] and log.lost == 0


def test_what_is_kept_in_memory_is_bounded_and_the_rest_counted(tmp_path, disk, monkeypatch):
    monkeypatch.setattr(document_log, "_MAX_KEPT_BYTES", 50_000)
    log = DocumentLog(tmp_path)
    log.append(*start())
    log.append(*descriptor())
    disk.seconds = 1.0
    log.append(*event(1))
    for number in range(2, 102):
        log.append(*event(number, frame=np.zeros(1000, "u1")))
    assert log.kept_bytes <= 50_000 and log.lost > 50
    log.mend()
    log.append(*stop())
    log.mend()
    found = stored(log)
    events = sum(name == "event" for name, _ in found)
    gaps = sum(doc["documents"] for name, doc in found if name == "gap")
    assert (events + gaps, gaps) == (101, log.lost)


def test_many_runs_without_a_disk_stay_bounded(tmp_path, disk, monkeypatch, caplog):
    monkeypatch.setattr(document_log, "_MAX_OPEN", 10)
    disk.room = 0
    log = DocumentLog(tmp_path)
    for number in range(200):
        uid = f"run {number}"
        for document in (start(uid), descriptor(uid), event(1, uid), stop(uid)):
            log.append(*document)
    kept = log.kept_bytes
    assert 0 < kept < 10 * 500 and log.lost + 3 * 10 == 200 * 4
    assert log.take_new() == [] and list(tmp_path.iterdir()) == []


def test_documents_that_wait_are_as_they_were_emitted(tmp_path, disk):
    log = DocumentLog(tmp_path)
    disk.room = 0
    name, doc = start(sample={"name": "gold"}, shape=[3, 4])
    log.append(name, doc)
    doc["sample"]["name"], doc["shape"][0] = "changed", 99
    disk.room = 10**12
    log.append(*stop())
    _, first = stored(log)[0]
    assert (first["sample"]["name"], first["shape"]) == ("gold", [3, 4])


def test_room_again_costs_the_scan_a_bounded_number_of_writes(tmp_path, disk):
    log = DocumentLog(tmp_path)
    disk.room = 0
    log.append(*start())
    for number in range(500):
        log.append("descriptor", {"uid": f"stream {number}", "run_start": "run"})
    disk.room = 10**12
    log.append(*stop())
    assert 0 < log.written <= document_log._CATCH_UP and log.waiting
    log.mend()
    names = [name for name, _ in stored(log)]
    assert names == ["start", *["descriptor"] * 500, "stop"]


# Interruptions and threads


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interruption_in_the_middle_of_a_write_leaves_whole_records(tmp_path, monkeypatch, when):
    log = DocumentLog(tmp_path)
    log.append(*start())
    log.append(*descriptor())
    real = os.writev

    def interrupted(fd: int, buffers: Any) -> int:
        if when == "after":
            real(fd, buffers)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", interrupted)
        with pytest.raises(KeyboardInterrupt):
            log.append(*event(1))
    log.append(*event(2))  # no lock is left held
    log.append(*stop())
    assert [name for name, _ in stored(log)] == ["start", "descriptor", "event", "stop"]


def test_many_threads_append_at_once(tmp_path):
    log = DocumentLog(tmp_path)
    for uid in ("a", "b"):
        log.append(*start(uid))
        log.append(*descriptor(uid))

    def emit(uid: str) -> None:
        for number in range(200):
            log.append(*event(number, uid))

    threads = [threading.Thread(target=emit, args=(uid,)) for uid in "abab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for uid in ("a", "b"):
        log.append(*stop(uid))
    for file in log.take_new():
        file.close()
    for uid in ("a", "b"):
        numbers = [
            doc["seq_num"] for name, doc in read(tmp_path / file_name(uid)) if name == "event"
        ]
        assert sorted(numbers) == sorted([*range(200), *range(200)])


def test_a_connection_that_is_subscribed_twice_records_twice_and_ends_once(tmp_path):
    log = DocumentLog(tmp_path)
    for document in (start(), descriptor(), event(1), stop()):
        log.append(*document)
        log.append(*document)
    names = [name for name, _ in stored(log)]
    assert names == ["start"] * 2 + ["descriptor"] * 2 + ["event"] * 2 + ["stop"]
    assert log.repeated == 1 and log.lost == 0


# Many logs


def test_logs_that_nobody_takes_do_not_use_up_the_files_of_the_process(tmp_path, monkeypatch):
    monkeypatch.setattr(document_log, "_MAX_FRESH", 5)
    log = DocumentLog(tmp_path)
    for number in range(30):
        log.append(*start(f"run{number}"))
        log.append(*stop(f"run{number}"))
    taken = log.take_new()
    assert len(taken) <= 5 and len(list(tmp_path.glob("*.log"))) == 30
    for file in taken:
        file.close()
    assert len(read(tmp_path / file_name("run0"))) == 2


def test_logs_that_wait_for_a_service_are_parked_unless_they_grow(tmp_path):
    outbox, log = Outbox(), DocumentLog(tmp_path)
    for number in range(30):
        log.append(*start(f"run{number}"))
        if number:
            log.append(*stop(f"run{number}"))
    for file in log.take_new():
        outbox.add(file)
    outbox.park(8)
    assert len(outbox) == 8 and "run0" in outbox
    assert len(read(tmp_path / file_name("run1"))) == 2  # whoever finds it may have it
    outbox.close()


def test_no_more_is_sent_at_once_than_asked_for_and_growing_runs_go_first(tmp_path):
    outbox, log = Outbox(), DocumentLog(tmp_path)
    for uid in ("ended", "growing"):
        for document in (start(uid), descriptor(uid), *(event(n, uid) for n in range(10))):
            log.append(*document)
    log.append(*stop("ended"))
    for file in log.take_new():
        outbox.add(file)
    sent: list[str] = []

    def send(kind: str, header: Any, *chunks: Any) -> bool:
        if kind == "DOC":
            sent.append(header["run"])
        return True

    for uid in ("ended", "growing"):
        outbox.resume(uid, 0, 0)
    outbox.pump(send, time.monotonic(), 1)
    assert sent == ["growing"]
    outbox.pump(send, time.monotonic(), 4)
    assert len(sent) == 5 and set(sent) == {"ended", "growing"}
    outbox.close()
