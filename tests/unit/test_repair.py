"""What a run lacks is known exactly, whatever came and in whatever order."""

import random
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inscan.callbacks.missing import Missing, Spans
from inscan.callbacks.received import Received
from inscan.service.readers import Reader
from inscan.service.repair import Catalog, Mending, Repairs

_NUMBER = {"dtype": "number", "shape": []}
_STREAMED = {"dtype": "array", "shape": [3], "external": "STREAM:"}


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 6))), st.lists(st.integers(1, 45)))
def test_spans_are_the_set_of_what_was_added(added, discarded):
    spans, wanted = Spans(), set()
    for start, length in added:
        spans.add(start, start + length)
        wanted |= set(range(start, start + length))
    for number in discarded:
        spans.discard(number)
        wanted.discard(number)
    holes = {n for start, stop in spans.holes(50) for n in range(start, stop)}
    assert holes == set(range(1, 50)) - wanted
    assert spans.stop == max(wanted, default=0) + 1
    copied = spans.copy()
    copied.add(1, 50)
    assert {n for a, b in spans.holes(50) for n in range(a, b)} == holes and not copied.holes(50)


def received(matters: bool = True) -> Received:
    found = Received(lambda stream: stream in ("primary", "flat"), lambda stream, key: matters)
    found.descriptor("primary", {"data_keys": {"x": _NUMBER}})
    return found


def event(seq: int, **data: Any) -> dict[str, Any]:
    return {"seq_num": seq, "data": data}


@given(st.sets(st.integers(1, 12)), st.randoms(use_true_random=False))
def test_events_that_did_not_come(came: set[int], shuffle: random.Random):
    book, order = received(), [*came, *came]
    shuffle.shuffle(order)
    for seq in order:
        book.event("primary", event(seq, x=1.0), ())
    lacking = book.missing({"primary": 12, "baseline": 2}, {})
    assert {n for n in range(1, 14) if lacking.wants("primary", n)} == set(range(1, 13)) - came
    assert lacking.n_events == 12 - len(came) and bool(lacking) == (len(came) < 12)
    # Without a count nothing is known of what follows the last.
    last = max(came, default=0)
    assert received().missing({}, {}).n_events == 0
    assert book.missing({}, {}).n_events == last - len(came)


def test_rows_that_nothing_announced():
    book = Received(lambda stream: True, lambda stream, key: key == "fluor")
    book.descriptor("primary", {"data_keys": {"fluor": _STREAMED, "other": _STREAMED}})
    book.reference("stream_resource", {"uid": "r", "data_key": "fluor"})
    for start, stop, first in ((0, 3, 1), (6, 8, 0)):
        seqs = {"start": first, "stop": first + stop - start} if first else {"start": 0, "stop": 0}
        indices = {"start": start, "stop": stop}
        book.rows("primary", {"stream_resource": "r", "indices": indices, "seq_nums": seqs})
    lacking = book.missing({"primary": 10}, {})
    assert lacking.rows == {("primary", "fluor"): ((4, 7), (9, 11))} and not lacking.events
    assert lacking.rows_of("primary", "fluor") == ((4, 7), (9, 11))
    assert lacking.rows_of("primary", "other") == () and lacking.n_events == 5
    assert "5 rows of fluor in primary (seq_num 4 to 6, 9 to 10)" in str(lacking)
    assert book.resource_of("fluor") == "r" and book.resource_of("other") is None
    assert book.missing({}, {}).rows == {("primary", "fluor"): ((4, 7),)}


def test_streams_that_nobody_described():
    lacking = received().missing({"flat": 3, "baseline": 2, "primary": 0}, {"d": {"event"}})
    assert lacking.streams == {"flat": 3} and lacking.references == {"descriptor": 1}
    assert lacking.wants("flat", 7) and lacking.rows_of("flat", "x") is None
    assert str(lacking) == "the descriptor and 3 events of flat; 1 descriptor document"
    # A stream_datum that waits for its resource is told as the row that it is.
    assert not received().missing({}, {"r": {"stream_datum"}})


@pytest.mark.parametrize("order", [("resource", "datum", "event"), ("event", "datum", "resource")])
def test_ids_of_data_are_missing_until_datum_and_resource_came(order: tuple[str, ...]):
    book = received()
    steps = {
        "resource": lambda: book.reference("resource", {"uid": "r"}),
        "datum": lambda: book.reference("datum", {"datum_id": "r/0", "resource": "r"}),
        "event": lambda: book.event("primary", event(1, image="r/0"), ["image"]),
    }
    for step in order[:-1]:
        steps[step]()
    assert book.missing({"primary": 1}, {}).events == {"primary": ((1, 2),)}
    steps[order[-1]]()
    assert not book.missing({"primary": 1}, {})
    book.event("primary", event(2, image="gone/0"), ["image"])
    book.reference("datum", {"datum_id": "gone/0", "resource": "gone"})
    book.event("primary", event(3, image="gone/1"), ["image"])
    lacking = book.missing({}, {})
    assert lacking.events == {"primary": ((2, 4),)}
    assert lacking.references == {"datum": 1, "resource": 1}
    for seq in (2, 3):
        book.event("primary", event(seq, image=[0.0]), ["image"])
    assert not book.missing({}, {})


@pytest.mark.parametrize("bad", [{"seq_num": "many", "data": {}}, {"data": {}}])
def test_nonsense_raises_what_an_assembler_counts(bad: Mapping[str, Any]):
    with pytest.raises((KeyError, ValueError)):
        received().event("primary", bad, ())


class Gaps:
    """An assembler that lacks what a test says."""

    def __init__(self, *lacking: Missing) -> None:
        self.lacking = list(lacking)
        self.forgotten = 0

    def missing(self, stop: Mapping[str, Any], /) -> Missing:
        return self.lacking.pop(0) if len(self.lacking) > 1 else self.lacking[0]

    def resource_of(self, key: str, /) -> str | None:
        return None

    def forget_waiting(self) -> None:
        self.forgotten += 1


_STOP = {"num_events": {"primary": 5}}
_TWO = Missing(events={"primary": ((2, 4),)})


def nowhere() -> Repairs:
    repairs = Repairs(60.0)
    repairs.use(Catalog("http://127.0.0.1:9"))
    return repairs


def test_nothing_is_looked_up_without_need_or_catalog():
    assert nowhere().fill("run", Gaps(Missing()), _STOP, gaps=False) is None
    assert nowhere().fill("run", Gaps(Missing()), _STOP, gaps=True) is None
    assert Repairs(1.0).fill("run", Gaps(_TWO), _STOP, gaps=False) is None
    assert Repairs(1.0).join("run", stop=None) is None
    assert nowhere().fill("run", object(), _STOP, gaps=True) is None
    assert isinstance(nowhere().fill("run", Gaps(Missing()), {}, gaps=True), Mending)


def test_whose_documents_are_taken():
    reader = Reader()
    reader.begin(b"1", "one", b"log one")
    assert reader.judge(b"1", "one", None, living=True) == "ours"
    assert reader.judge(b"1b", "one", None, living=True) == "ours", "over another line"
    assert reader.judge(b"2", "two", None, living=True) == "prove"
    assert reader.judge(b"2", "two", b"log two", living=True) == "tell"
    assert reader.judge(b"2", "two", b"log two", living=True) == "wait"
    assert reader.judge(b"2", "two", None, living=True) == "wait"
    assert reader.judge(b"2", "two", None, living=False) == "prove"
    assert reader.judge(b"2", "two", b"log two", living=False) == "replace"
    assert reader.judge(b"3", "three", b"log one", living=True) == "taken over"
    assert reader.judge(b"3", "three", None, living=True) == "ours"
    assert reader.judge(b"1", "one", None, living=True) == "prove", "the log is in other hands"
