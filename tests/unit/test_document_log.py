"""The log of a run on disk: whole, owned by one, with marked gaps where the disk failed."""

import errno
import logging
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import event_model
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inscan.callbacks import document_log
from inscan.callbacks.document_log import DocumentLog
from inscan.callbacks.log_file import LogError, LogFile, file_name
from inscan.callbacks.routes import Routes
from inscan.callbacks.wire import pack_parts, unpack

Document = tuple[str, dict[str, Any]]


def documents(points: int = 3, uid: str | None = None) -> list[Document]:
    """A run with every kind of document that can point to it, in the order a RunEngine emits."""
    model: Any = event_model
    run = model.compose_run(uid=uid)
    keys = {
        "a": {"dtype": "array", "shape": [4], "source": "x", "external": "OLD:"},
        "b": {"dtype": "number", "shape": [], "source": "x"},
    }
    stream = run.compose_descriptor(name="primary", data_keys=keys)
    resource = run.compose_resource(
        spec="S", root="/", resource_path="f", resource_kwargs={}, path_semantics="posix"
    )
    fly = run.compose_stream_resource(
        mimetype="application/x-hdf5", uri="file://localhost/f", data_key="c", parameters={}
    )
    found: list[Document] = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
    found += [("resource", resource.resource_doc), ("stream_resource", fly.stream_resource_doc)]
    for point in range(points):
        datum = resource.compose_datum(datum_kwargs={"point": point})
        event = stream.compose_event(
            data={"a": datum["datum_id"], "b": np.float64(point)},
            timestamps={"a": 0.0, "b": 0.0},
            filled={"a": False},
        )
        indices: Any = {"start": point, "stop": point + 1}
        index = fly.compose_stream_datum(indices, {"start": 1, "stop": 2}, stream.descriptor_doc)
        found += [("datum", datum), ("event", event), ("stream_datum", index)]
    pages = [("event_page", model.pack_event_page(e)) for n, e in found if n == "event"]
    found += [(name, dict(page)) for name, page in pages]
    found.append(
        ("datum_page", dict(model.pack_datum_page(*[d for n, d in found if n == "datum"])))
    )
    found.append(("stop", run.compose_stop()))
    return [(name, dict(doc)) for name, doc in found]


def records(log: LogFile) -> Iterator[Any]:
    offset = 0
    while (record := log.read(offset)) is not None:
        assert record.offset == offset
        yield unpack(record.payload)
        offset = record.next


def plain(docs: Iterable[Document]) -> list[Any]:
    return [[name, unpack(b"".join(pack_parts(doc)))] for name, doc in docs]


def stored(directory: Path, uid: str) -> list[Any]:
    """Documents in a run's log, without its first record."""
    log = LogFile.adopt(directory / file_name(uid))
    assert log is not None, "somebody still owns the log"
    try:
        first, *others = records(log)
        assert first[0] == "log" and first[1]["run_uid"] == uid == log.run_uid
        return others
    finally:
        log.close()


def close(log: DocumentLog) -> None:
    for file in log.take_new():
        file.close()


# Routing


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False))
def test_runs_that_interleave_are_told_apart_and_forgotten(random):
    runs = [documents() for _ in range(3)]
    queues = [list(run) for run in runs]
    routes, found = Routes(), {run[0][1]["uid"]: [] for run in runs}
    while any(queues):
        queue = random.choice([queue for queue in queues if queue])
        name, doc = queue.pop(0)
        (uid,) = routes.of(name, doc)
        found[uid].append((name, doc))
        if name == "stop":
            routes.close(uid)
    for run in runs:
        assert found[run[0][1]["uid"]] == run
    assert len(routes) == 0


def test_resources_without_a_run_go_to_every_open_run():
    first, second = documents(), documents()
    routes = Routes()
    for name, doc in (*first[:2], *second[:2]):
        routes.of(name, doc)
    uids = (first[0][1]["uid"], second[0][1]["uid"])
    for name, key in (("resource", "resource"), ("stream_resource", "stream_resource")):
        doc = {"uid": f"{name} uid"}
        assert set(routes.of(name, doc)) == set(uids)
        datum = "datum" if name == "resource" else "stream_datum"
        assert set(routes.of(datum, {key: doc["uid"]})) == set(uids)
    routes.close(uids[0])
    assert routes.of("datum", {"resource": "resource uid"}) == (uids[1],)
    routes.close(uids[1])
    assert len(routes) == 0


def test_a_stream_datum_is_routed_by_its_descriptor_when_its_resource_is_unknown():
    docs = documents()
    routes = Routes()
    for name, doc in docs[:2]:
        routes.of(name, doc)
    datum = {"stream_resource": "elsewhere", "descriptor": docs[1][1]["uid"]}
    assert routes.of("stream_datum", datum) == (docs[0][1]["uid"],)
    assert routes.of("event", {"descriptor": "elsewhere"}) == ()
    assert routes.of("bulk_events", {}) == ()


# Files


@given(st.lists(st.binary(min_size=1, max_size=200), max_size=20), st.integers(0, 30), st.data())
@settings(max_examples=50, deadline=None)
def test_a_torn_tail_ends_the_log_before_the_torn_record(tmp_path_factory, payloads, cut, data):
    directory = tmp_path_factory.mktemp("log")
    log = LogFile.create(directory, "run")
    ends = [log.size]
    for payload in payloads:
        log.append([payload])
        ends.append(log.size)
    log.close()
    size = max(ends[0], ends[-1] - cut)
    os.truncate(log.path, size)
    adopted = LogFile.adopt(log.path)
    assert adopted is not None
    whole = sum(end <= size for end in ends) - 1
    offset, found = ends[0], []
    while (record := adopted.read(offset)) is not None:
        found.append(record.payload)
        offset = record.next
    assert found == payloads[:whole]
    adopted.close()


def test_a_damaged_record_is_reported_and_can_be_skipped(tmp_path):
    log = LogFile.create(tmp_path, "run")
    start = log.size
    for payload in (b"one" * 10, b"two" * 10, b"three" * 10):
        log.append([payload])
    damaged = log.read(start)
    assert damaged is not None
    with log.path.open("r+b") as file:
        file.seek(damaged.next + 12)
        file.write(b"X")
    with pytest.raises(LogError, match="damaged"):
        log.read(damaged.next)
    after = log.skip(damaged.next)
    assert after is not None
    third = log.read(after)
    assert third is not None and third.payload == b"three" * 10
    assert log.skip(third.offset) is None
    log.close()


def test_a_log_has_one_owner_until_it_is_closed(tmp_path):
    log = LogFile.create(tmp_path, "run")
    assert LogFile.adopt(log.path) is None
    with pytest.raises(FileExistsError):
        LogFile.create(tmp_path, "run")
    log.close()
    adopted = LogFile.adopt(log.path)
    assert adopted is not None and not adopted.live
    adopted.delete()
    assert LogFile.adopt(log.path) is None and not log.path.exists()


def test_files_that_are_no_logs_are_refused_and_left(tmp_path):
    path = tmp_path / "x.log"
    for content in (b"", b"text\n" * 40, bytes(500)):
        path.write_bytes(content)
        with pytest.raises(LogError, match=r"x\.log"):
            LogFile.adopt(path)
        assert path.read_bytes() == content


@pytest.mark.parametrize("uid", ["../../etc/passwd", "a/b", "", ".hidden", "x" * 300, "\ud800"])
def test_uids_that_are_no_file_names_stay_in_the_folder(tmp_path, uid):
    log = LogFile.create(tmp_path, uid) if uid != "\ud800" else None
    name = file_name(uid)
    assert "/" not in name and len(name) < 140 and not name.startswith(".")
    if log is not None:
        log.close()
        adopted = LogFile.adopt(tmp_path / name)
        assert adopted is not None and adopted.run_uid == uid
        adopted.close()


def test_a_deleted_log_swallows_what_still_comes(tmp_path):
    log = LogFile.create(tmp_path, "run")
    log.delete()
    log.append([b"late"])
    assert not log.path.exists()
    other = LogFile.create(tmp_path, "other")
    other.close()
    with pytest.raises(LogError):
        other.append([b"late"])


# The log of a process


def test_every_document_is_recorded_in_its_run(tmp_path):
    log = DocumentLog(tmp_path / "log")
    first, second = documents(5), documents(2)
    for name, doc in [*first[:9], *second[:9], *first[9:], *second[9:]]:
        log.append(name, doc)
    assert (log.lost, log.unrouted, log.written) == (0, 0, len(first) + len(second))
    files = log.take_new()
    assert [file.live for file in files] == [False, False]
    for file in files:
        file.close()
    for docs in (first, second):
        assert stored(tmp_path / "log", docs[0][1]["uid"]) == plain(docs)
    assert log.take_new() == []


@pytest.mark.parametrize("first", ["descriptor", "resource", "stream_resource", "stop"])
def test_a_run_joined_late_is_recorded_from_the_first_document_that_names_it(tmp_path, first):
    log = DocumentLog(tmp_path)
    docs = documents()
    known = [item for item in docs if item[0] == first][0]
    after = docs[docs.index(known) :]
    log.append("event", {"descriptor": "of an unknown run"})
    assert log.unrouted == 1 and list(tmp_path.iterdir()) == []
    for name, doc in after:
        log.append(name, doc)
    close(log)
    recorded = stored(tmp_path, docs[0][1]["uid"])
    assert recorded[0] == plain([known])[0] and recorded[-1][0] == "stop"
    assert len(recorded) + log.unrouted - 1 == len(after)


def test_a_source_that_repeats_itself_opens_nothing_again(tmp_path):
    log = DocumentLog(tmp_path)
    docs = documents()
    for name, doc in [*docs[:3], *docs[:-1], docs[-1], docs[-1], *docs]:
        log.append(name, doc)
    (file,) = log.take_new()
    file.close()
    recorded = stored(tmp_path, docs[0][1]["uid"])
    assert recorded == plain([*docs[:3], *docs])
    # start, descriptor, two resources and the stop say that their run is over; the others are nobody's.
    assert (log.repeated, log.unrouted) == (6, len(docs) - 5)


def test_a_run_that_another_process_records_is_left_to_it(tmp_path, caplog):
    docs = documents()
    first, second = DocumentLog(tmp_path), DocumentLog(tmp_path)
    with caplog.at_level(logging.WARNING):
        for name, doc in docs:
            first.append(name, doc)
            second.append(name, doc)
    assert second.take_new() == [] and (second.lost, second.repeated) == (0, len(docs))
    assert len([r for r in caplog.records if "not recorded twice" in r.message]) == 1
    assert not second.waiting
    close(first)


@pytest.mark.parametrize("torn", [0, 7])
def test_a_process_that_comes_back_goes_on_with_its_runs(tmp_path, torn):
    done, half = documents(uid="done"), documents(uid="half")
    log = DocumentLog(tmp_path)
    middle = len(half) // 2
    for name, doc in [*done, *half[:middle]]:
        log.append(name, doc)
    close(log)
    path = tmp_path / file_name("half")
    os.truncate(path, path.stat().st_size - torn)

    again = DocumentLog(tmp_path)
    assert again.resume() == 1
    whole, file = again.take_new()
    assert (whole.live, whole.run_uid, file.live, file.run_uid) == (False, "done", True, "half")
    whole.close()
    for name, doc in [*done, *half[middle - (torn > 0) :]]:
        again.append(name, doc)
    assert not file.live and again.repeated == 5 and again.take_new() == []
    file.close()
    assert stored(tmp_path, "half") == plain(half)
    assert stored(tmp_path, "done") == plain(done)


def test_what_is_damaged_or_owned_is_not_continued(tmp_path, caplog):
    owner = DocumentLog(tmp_path)
    owner.append(*documents(uid="owned")[0])
    (tmp_path / "text.log").write_text("hello" * 100)
    with caplog.at_level(logging.WARNING):
        assert DocumentLog(tmp_path).resume() == 0
    assert "text.log" in caplog.text and (tmp_path / "text.log").exists()
    close(owner)


def test_a_run_that_stays_quiet_is_ended(tmp_path):
    log = DocumentLog(tmp_path)
    docs = documents()
    for name, doc in docs[:5]:
        log.append(name, doc)
    assert log.end_quiet(60.0) == []
    assert log.end_quiet(0.0) == [docs[0][1]["uid"]]
    (file,) = log.take_new()
    assert not file.live
    log.append(*docs[-1])
    assert log.repeated == 1 and log.end_quiet(0.0) == []
    file.close()


def test_runs_that_never_stop_do_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(document_log, "_MAX_OPEN", 3)
    log = DocumentLog(tmp_path)
    for number in range(5):
        log.append("start", {"uid": f"run{number}"})
    files = log.take_new()
    assert [file.live for file in files] == [False, False, True, True, True]
    for file in files:
        file.close()


def test_values_that_are_not_plain_are_recorded_as_text_with_one_warning(tmp_path, caplog):
    log = DocumentLog(tmp_path)
    start, *_, stop = documents()
    start[1]["path"] = Path("/data")
    start[1]["object"] = np.array([None])
    with caplog.at_level(logging.WARNING):
        log.append(*start)
        log.append(*stop)
    close(log)
    recorded = stored(tmp_path, start[1]["uid"])[0][1]
    assert "/data" in recorded["path"] and recorded["object"] == [None]
    assert recorded["uid"] == start[1]["uid"] and len(caplog.records) == 1


@pytest.fixture
def small_disk(monkeypatch):
    """Room for so many bytes in log files; ``room[0]`` may be changed."""
    room = [10**9]
    real = os.writev

    def writev(fd: int, buffers: Any) -> int:
        total = sum(len(buffer) for buffer in buffers)
        if total <= room[0]:
            room[0] -= total
            return real(fd, buffers)
        part = b"".join(bytes(buffer) for buffer in buffers)[: room[0]]
        room[0] = 0
        if not part:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, [part])

    monkeypatch.setattr(os, "writev", writev)
    return room


def test_a_full_disk_leaves_one_marked_gap_and_one_warning(tmp_path, small_disk, caplog):
    log = DocumentLog(tmp_path)
    docs = documents(6)
    events = [index for index, (name, _) in enumerate(docs) if name == "event"]
    with caplog.at_level(logging.WARNING):
        for index, (name, doc) in enumerate(docs):
            if index == events[1]:
                small_disk[0] = 50  # a part of the event fits
            if index == events[4]:
                small_disk[0] = 10**9
            log.append(name, doc)
    close(log)
    found = stored(tmp_path, docs[0][1]["uid"])
    lost = [doc for name, doc in docs[events[1] : events[4]] if name == "event"]
    assert log.lost == len(lost) == 3
    expected = plain(docs)
    kept = [
        item
        for item in expected
        if item[1] not in [doc for _, doc in plain([("event", e) for e in lost])]
    ]
    gaps = [doc for name, doc in found if name == "gap"]
    assert [gap["documents"] for gap in gaps] == [3] and "space" in gaps[0]["reason"]
    assert [item for item in found if item[0] != "gap"] == kept
    assert len([r for r in caplog.records if "cannot be written" in r.message]) == 1


def test_start_and_stop_that_did_not_fit_are_written_when_there_is_room_again(tmp_path, small_disk):
    log = DocumentLog(tmp_path)
    docs = documents(2)
    small_disk[0] = 0
    for name, doc in docs[:6]:
        log.append(name, doc)
    assert log.waiting and list(tmp_path.iterdir()) == []
    small_disk[0] = 10**9
    for name, doc in docs[6:-1]:
        log.append(name, doc)
    small_disk[0] = 0
    log.append(*docs[-1])
    (file,) = log.take_new()
    assert log.waiting and file.live
    log.mend()
    assert log.waiting
    small_disk[0] = 10**9
    log.mend()
    assert not log.waiting and not file.live
    file.close()
    names = [name for name, _ in stored(tmp_path, docs[0][1]["uid"])]
    assert names[:3] == ["gap", "start", "descriptor"] and names[-1] == "stop"


def test_a_folder_that_cannot_be_made_costs_documents_not_the_scan(tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    log = DocumentLog(blocked / "log")
    docs = documents(4)
    for name, doc in docs:
        log.append(name, doc)
    assert log.lost == sum(name in ("event", "event_page") for name, _ in docs)
    assert log.written == 0 and log.waiting and log.take_new() == []
    assert len(caplog.records) == 1


def test_appending_and_reading_at_the_same_time(tmp_path):
    log = LogFile.create(tmp_path, "run")
    payloads = [bytes([i % 256]) * (1 + i % 997) for i in range(2000)]
    offset, found = log.size, []

    def write() -> None:
        for payload in payloads:
            log.append([payload])

    writer = threading.Thread(target=write)
    writer.start()
    while len(found) < len(payloads):
        record = log.read(offset)
        if record is None:
            assert writer.is_alive() or offset < log.size
            continue
        found.append(record.payload)
        offset = record.next
    writer.join()
    assert found == payloads
    log.close()
