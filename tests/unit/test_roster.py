import pytest

from inscan.service.messages import Hello, InferenceJob, job_key
from inscan.service.roster import Roster, SnapshotQueue


def snapshot(run_uid: str, rows: int, in_all: int | None = 100) -> InferenceJob:
    geometry = {"shape": [in_all, 5]} if in_all else None
    return InferenceJob(
        key=job_key(run_uid, "primary", "n2n", {}, snapshot=rows),
        run_uid=run_uid,
        stream="primary",
        kind="snapshot",
        recipe="n2n",
        parameters={},
        meta={"rows_done": rows, "geometry": geometry},
        spool="/spool",
        arrays={},
        input_digest="",
        result_path="/live/x.h5",
        host_id="h",
    )


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("inscan.service.roster.time.monotonic", lambda: now[0])
    return now


def test_of_each_run_the_newest_waits_and_runs_take_turns():
    queue = SnapshotQueue()
    assert queue.put(snapshot("a", 4)) is None
    queue.put(snapshot("b", 4))
    assert queue.put(snapshot("a", 8)) == snapshot("a", 4)
    taken = [queue.take(), queue.take(), queue.take()]
    assert [found and (found[0].run_uid, found[0].meta["rows_done"]) for found in taken] == [
        ("a", 8),
        ("b", 4),
        None,
    ]


def test_a_snapshot_that_would_hold_up_its_final_is_left_out(clock):
    queue = SnapshotQueue()
    for rows in (8, 16, 24):
        queue.put(snapshot("a", rows))
        clock[0] += 8.0  # a row a second
    assert queue.drop_late({"n2n": 60.0}) == []
    late = snapshot("a", 90)
    clock[0] = 82.0
    queue.put(late)
    assert queue.drop_late({}) == [], "nobody knows yet how long one takes"
    assert queue.drop_late({"n2n": 5.0}) == [], "ten rows are left, ten seconds"
    assert queue.drop_late({"n2n": 11.0}) == [late]
    assert len(queue) == 0


def test_the_first_snapshot_goes_by_the_time_since_the_start(clock, monkeypatch):
    monkeypatch.setattr("inscan.service.roster.time.time", lambda: 5000.0 + clock[0])
    queue, clock[0] = SnapshotQueue(), 50.0
    first = snapshot("a", 50)
    first.meta["start_time"] = 5000.0  # a row a second, fifty are left
    queue.put(first)
    assert queue.drop_late({"n2n": 49.0}) == []
    assert queue.drop_late({"n2n": 51.0}) == [first]


def test_a_run_that_does_not_say_how_long_it_is_keeps_its_snapshots(clock):
    queue = SnapshotQueue()
    for rows in (8, 16):
        queue.put(snapshot("a", rows, in_all=None))
        clock[0] += 1.0
    assert queue.drop_late({"n2n": 1e9}) == []


def test_a_run_that_has_ended_is_forgotten_and_many_are_bounded():
    queue = SnapshotQueue()
    queue.put(snapshot("a", 4))
    assert queue.end("a") == snapshot("a", 4) and queue.end("a") is None
    for number in range(1000):
        queue.put(snapshot(f"run-{number}", 4))
        queue.take()
    assert len(queue._paces) <= 256


def test_a_worker_under_a_new_connection_keeps_its_job():
    roster = Roster()
    hello = Hello(
        protocol=(1, 0),
        worker="w",
        host_id="h",
        boot_id="b",
        pid=1,
        device="cpu",
        memory=1,
        version="0",
        credit=0,
    )
    old = roster.welcome(b"one", hello)
    old.work = work = object()  # type: ignore[assignment]
    assert roster.welcome(b"two", hello).work is work
    assert list(roster.peers) == [b"two"]
