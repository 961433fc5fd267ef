"""What strangers at ingest's door may take from those at work: nothing."""

import logging

import pytest

from inscan.callbacks.wire import Message, pack, unpack
from inscan.service import answers, clients
from inscan.service.answers import Answers
from inscan.service.clients import Clients
from inscan.service.complaints import Complaints

HELLO = {"client": "c" * 32, "host_id": "h", "pid": 7}


@pytest.fixture
def few(monkeypatch) -> Clients:
    monkeypatch.setattr(clients, "MAX_CLIENTS", 3)
    return Clients()


def test_strangers_push_out_strangers_only(few):
    few.introduce(b"host", HELLO, 0.0)
    for n in range(10):
        few.heard(b"%d" % n, 1.0 + n)
    assert few.silence(b"host", 10.0) == 10.0
    assert few.silence(b"6", 20.0) == float("inf") and few.silence(b"7", 20.0) == 12.0


def test_clients_at_work_make_no_room_and_silent_ones_do(few):
    for n in range(3):
        few.introduce(b"host %d" % n, HELLO, 0.0)
    assert few.introduce(b"late", HELLO, 5.0).name == "", "it may try again"
    few.heard(b"host 0", 50.0)
    assert few.introduce(b"late", HELLO, 60.0).name == HELLO["client"]
    assert few.silence(b"host 1", 60.0) == float("inf"), "the longest silent went"
    assert few.silence(b"host 0", 60.0) == 10.0


def test_nobody_was_silent_while_nobody_listened(few):
    few.introduce(b"host", HELLO, 0.0)
    few.excuse(100.0)
    assert few.silence(b"host", 101.0) == 1.0


def test_what_clients_call_themselves_is_kept_short(few):
    kept = few.introduce(b"host", {**HELLO, "client": "x" * 50_000}, 0.0)
    assert len(kept.name) == 200


def test_a_few_words_a_minute_and_then_how_many_more(caplog):
    now = [0.0]
    complaints = Complaints(logging.getLogger("test"), lambda: now[0])
    with caplog.at_level(logging.WARNING):
        for n in range(1000):
            complaints.say(logging.WARNING, "malformed %d", n)
        assert len(caplog.records) == 20
        now[0] = 61.0
        complaints.say(logging.WARNING, "malformed again")
    assert [record.getMessage() for record in caplog.records[20:]] == [
        "and 980 more like these in 61 s",
        "malformed again",
    ]


def request(name: str) -> Message:
    return Message("REQUEST", {"id": name, "op": "count"}, (memoryview(pack({})),))


def test_answers_are_kept_for_who_asks_again_within_bounds(monkeypatch):
    monkeypatch.setattr(answers, "_KEPT", 2)
    done: list[str] = []

    def handle(op: str, fields: dict, identity: bytes) -> dict:
        done.append(op)
        return {"n": len(done)}

    ask = Answers(handle, Complaints(logging.getLogger("test")))
    assert unpack(ask(b"x", request("a"))[1])["n"] == 1
    assert unpack(ask(b"y", request("a"))[1])["n"] == 1
    for name in ("b", "c"):
        ask(b"x", request(name))
    assert unpack(ask(b"x", request("c"))[1])["n"] == 3
    assert unpack(ask(b"x", request("a"))[1])["n"] == 4, "the oldest was forgotten"
