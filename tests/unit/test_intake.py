"""Whatever the order, repetition and loss of documents on the way, a run is placed once, in order."""

import threading
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inscan.callbacks.missing import Missing
from inscan.callbacks.sources.interface import SourceError
from inscan.callbacks.updates import NotUnderstood, Update
from inscan.callbacks.wire import pack
from inscan.service import intake
from inscan.service.intake import RunIntake, Uses
from inscan.service.repair import Catalog, Mending, Repairs


class Books:
    """Records what becomes of one run, and lets a test make any of it fail."""

    def __init__(self) -> None:
        self.placed: list[str] = []
        self.said: list[tuple[str, str]] = []
        self.updates: list[Update] = []
        self.errors: dict[str, Exception] = {}
        self.closings = 0
        self.uses = Uses(
            self.open_run, self.on_update, self.note("closed"), *map(self.note2, _WORDS)
        )

    def fail(self, place: str) -> None:
        if place in self.errors:
            raise self.errors[place]

    def note(self, word: str) -> Any:
        def take(run_uid: str) -> None:
            self.fail(word)
            self.said.append((word, ""))

        return take

    def note2(self, word: str) -> Any:
        def take(run_uid: str, reason: str) -> None:
            self.fail(word)
            self.said.append((word, reason))

        return take

    def open_run(self, start: Any) -> Any:
        self.fail("open")
        self.placed.append("start")
        return self

    def __call__(self, name: str, doc: Any, /) -> list[Update]:
        self.fail(name)
        self.placed.append(f"{name} {doc.get('n', '')}".strip())
        if name == "stop":
            return [Update("final", "run", "primary", {}, {})]
        return [Update("snapshot", "run", "primary", {}, {})] if name == "event" else []

    def finish(self, reason: str, /) -> list[Update]:
        return [Update("final", "run", "primary", {"exit_status": reason}, {})]

    def close(self) -> None:
        self.fail("close")
        self.closings += 1

    def on_update(self, update: Update) -> None:
        self.fail(f"on {update.kind}")
        self.updates.append(update)


_WORDS = ("passed_by", "failed")
_DOCUMENTS = [("start", {"uid": "run"}), *[("event", {"n": n}) for n in range(8)], ("stop", {})]


def nothing() -> None:
    return


def take(run: RunIntake, *numbers: int, documents: Any = None) -> list[str]:
    """Offer documents by number; document n lies at offset 10 n."""
    answers = []
    for number in numbers:
        payload = pack((documents or _DOCUMENTS)[number])
        answers.append(run.offer(10 * number, 10 * number + 10, payload))
        if run.claim():
            run.work(nothing)
    return answers


def whole() -> range:
    return range(len(_DOCUMENTS))


@pytest.fixture
def books() -> Books:
    return Books()


@pytest.fixture
def run(books) -> RunIntake:
    return RunIntake("run", b"client", books.uses)


@given(st.lists(st.integers(0, len(_DOCUMENTS) - 1), max_size=60))
def test_any_order_ends_in_the_same_run(numbers):
    books = Books()
    run = RunIntake("run", b"client", books.uses)
    for number in numbers:
        before = run.expected
        (answer,) = take(run, number)
        expected = "next" if 10 * number == before else "old" if 10 * number < before else "gap"
        assert answer == expected and run.placed == run.expected
    take(run, *range(run.expected // 10, len(_DOCUMENTS)))
    assert books.placed == ["start", *[f"event {n}" for n in range(8)], "stop"]
    assert [u.kind for u in books.updates].count("final") == 1
    assert books.said == [("closed", "")] and books.closings == 1 and run.state == "closed"


def test_too_many_waiting_documents_are_a_gap(books, run, monkeypatch):
    monkeypatch.setattr(intake, "_MAX_QUEUE", 3)
    answers = [run.offer(10 * n, 10 * n + 10, pack(_DOCUMENTS[n])) for n in range(5)]
    assert answers == ["next", "next", "next", "gap", "gap"] and run.expected == 30
    assert run.claim() and not run.claim()
    run.work(nothing)
    assert run.placed == 30 and take(run, 3, 4) == ["next", "next"]
    assert run.offer(50, 50, b"") == "gap", "a document of no length"


def test_a_lost_snapshot_does_not_matter(books, run):
    books.errors["on snapshot"] = OSError(28, "full")
    take(run, *whole())
    assert run.state == "closed" and [u.kind for u in books.updates] == ["final"]


@pytest.mark.parametrize("place", ["open", "event", "stop", "on final", "closed"])
@pytest.mark.parametrize(
    ("error", "state"), [(ValueError("wrong"), "failed"), (OSError(28, "full"), "held")]
)
def test_errors_fail_the_run_or_hold_it_when_the_machine_is_to_blame(
    books, run, place, error, state
):
    books.errors[place] = error
    take(run, *whole())
    assert run.state == state and run.idle and run.placed == 100
    assert [word for word, _ in books.said] == (["failed"] if state == "failed" else [])
    assert str(error) in run.reason


def test_a_failure_that_cannot_be_recorded_holds_the_run(books, run):
    books.errors |= {
        "event": ValueError("wrong"),
        "failed": RuntimeError("journal"),
        "close": OSError(),
    }
    take(run, *whole())
    assert run.state == "held" and books.said == []


def test_runs_that_are_nobodys_or_have_no_start_are_passed_by(books, run):
    books.errors["open"] = NotUnderstood("no profile")
    take(run, *whole())
    assert books.said == [("passed_by", "no profile")]
    for documents in ([("event", {})], [("start", {"uid": "other"})]):
        other = Books()
        passed = RunIntake("run", b"client", other.uses)
        take(passed, 0, documents=documents)
        assert [word for word, _ in other.said] == ["passed_by"] and other.placed == []


def test_gaps_and_unreadable_documents_are_warnings_of_the_result(books, run):
    documents: list[Any] = list(_DOCUMENTS)
    documents[2] = ["gap", {"documents": 4, "reason": "disk full"}]
    documents[3] = "not a document"
    documents[0:1] = [["log", {"run_uid": "run"}], documents[0]]
    take(run, *range(len(documents)), documents=documents)
    final = books.updates[-1]
    assert final.kind == "final" and len(final.meta["warnings"]) == 2
    assert "4 documents were not recorded (disk full)" in final.meta["warnings"]


def test_an_end_without_a_stop(books, run):
    take(run, 0, 1, 2)
    run.end("killed")
    run.end("killed")
    assert run.claim()
    run.work(nothing)
    assert run.state == "closed" and books.updates[-1].meta["exit_status"] == "killed"
    empty = RunIntake("run", b"client", Books().uses)
    empty.end("killed")
    assert empty.claim()
    empty.work(nothing)
    assert (empty.state, empty.reason) == ("failed", "killed")


def test_one_thread_at_a_time_however_many_offer(books, run):
    done = threading.Event()

    def work() -> None:
        run.work(nothing)
        done.set()

    for number in whole():
        run.offer(10 * number, 10 * number + 10, pack(_DOCUMENTS[number]))
    assert run.claim()
    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    assert done.is_set() and run.idle and books.placed[-1] == "stop"


def test_what_waits_is_forgotten_when_the_service_stops(books, run):
    run.offer(0, 10, pack(_DOCUMENTS[0]))
    run.abandon()
    assert run.idle and not run.claim() and books.placed == []


class Kept(Repairs):
    """Repairs out of a catalog in memory, which has the run after so many looks."""

    def __init__(
        self, documents: list[tuple[str, Any]], looks: int = 1, wait: float = 60.0
    ) -> None:
        super().__init__(wait)
        self.use(Catalog("http://memory"))
        self.documents, self.looks = documents, looks

    def _fetch(self, mending: Mending, assembler: Any, place: Any) -> bool:
        self.looks -= 1
        if self.looks > 0:
            raise SourceError("it is not there")
        for name, doc in self.documents:
            if name != "stop":
                place(name, doc)
        return True


class Gappy(Books):
    """An assembler that knows that it lacks events."""

    def missing(self, stop: Any, /) -> Missing:
        seen = {int(text[6:]) for text in self.placed if text.startswith("event")}
        holes = tuple((n, n + 1) for n in range(8) if n not in seen)
        return Missing(events={"primary": holes} if holes else {})

    def resource_of(self, key: str, /) -> str | None:
        return None

    def forget_waiting(self) -> None:
        self.placed.append("forget")


def repaired(books: Books, repairs: Repairs) -> RunIntake:
    return RunIntake("run", b"client", replace(books.uses, repair=repairs))


def test_a_gap_is_filled_before_the_final_is_made():
    books = Gappy()
    run = repaired(books, Kept(_DOCUMENTS, looks=2))
    lossy = [*_DOCUMENTS[:4], ("gap", {"documents": 2, "reason": "disk full"}), *_DOCUMENTS[6:-1]]
    lossy.append(("stop", {"num_events": {"primary": 8}}))
    take(run, *range(len(lossy)), documents=lossy)
    assert run.mending and not run.idle and not run.claim() and books.updates[-1].kind != "final"
    assert run.placed == 10 * (len(lossy) - 1), "the stop is not placed, so its log is kept"
    assert run.claim_mending(0.0) and not run.claim_mending(0.0)
    assert run.mend(nothing) == 0 and run.mending
    assert not run.claim_mending(0.0), "it is not due yet"
    assert run.claim_mending(1e12) and run.mend(nothing) == 2
    assert run.claim() and not run.mending
    run.work(nothing)
    assert run.state == "closed" and run.idle and run.placed == 10 * len(lossy)
    final = books.updates[-1]
    assert final.kind == "final" and {f"event {n}" for n in range(8)} <= set(books.placed)
    assert final.meta["warnings"] == [
        "2 documents were not recorded (disk full); what they held is in Tiled",
        "2 events repaired from Tiled http://memory",
    ]


def test_a_run_without_its_start_begins_in_the_catalog():
    books = Gappy()
    run = repaired(books, Kept(_DOCUMENTS[:5]))
    take(run, 0, documents=[_DOCUMENTS[5]])
    assert run.mending and run.claim_mending(0.0) and run.mend(nothing) == 4
    assert run.claim()
    run.work(nothing)
    assert books.placed == ["start", *[f"event {n}" for n in range(5)]] and run.state == "open"


@pytest.mark.parametrize("there", [True, False])
def test_a_run_without_its_start_is_looked_up_again_at_its_stop(there):
    books = Gappy()
    run = repaired(books, Kept(_DOCUMENTS, looks=2 if there else 99, wait=60.0 if there else 0.0))
    late = _DOCUMENTS[4:]
    for number in range(len(late)):
        run.offer(10 * number, 10 * number + 10, pack(late[number]))
    while run.claim():
        run.work(nothing)
        while run.claim_mending(1e12):
            run.mend(nothing)
    assert run.idle and run.placed == 10 * len(late)
    if there:
        assert run.state == "closed" and books.said == [("closed", "")]
        assert "joined late" in books.updates[-1].meta["warnings"][0]
    else:
        assert run.state == "passed_by" and "it is not there" in run.reason


def test_a_lost_stop_is_taken_from_the_catalog():
    class Stopped(Kept):
        def _fetch(self, mending: Mending, assembler: Any, place: Any) -> bool:
            mending.found_stop = {"exit_status": "success"}
            return super()._fetch(mending, assembler, place)

    books = Gappy()
    run = repaired(books, Stopped(_DOCUMENTS))
    take(run, *range(len(_DOCUMENTS) - 1))
    run.end("killed")
    assert run.claim()
    run.work(nothing)
    assert run.claim_mending(0.0)
    run.mend(nothing)
    assert run.claim()
    run.work(nothing)
    assert run.state == "closed" and books.placed[-1] == "stop"


def test_a_repair_ends_when_the_service_stops():
    books = Gappy()
    run = repaired(books, Kept(_DOCUMENTS))
    take(run, 0, 1, len(_DOCUMENTS) - 1)  # the last is beyond a gap of the log
    run.offer(20, 30, pack(_DOCUMENTS[-1]))
    assert run.claim()
    run.work(nothing)
    assert run.claim_mending(0.0)
    before = list(books.placed)
    run.abandon()
    run._mending = Mending("run", 0.0, {})
    run.mend(nothing)
    assert run.idle and run.state == "open" and books.placed == before


def test_a_run_that_is_nobodys_is_not_read_to_its_end():
    books = Gappy()
    books.errors["open"] = NotUnderstood("no profile")
    run = repaired(books, Kept(_DOCUMENTS))
    take(run, 0, documents=[_DOCUMENTS[5]])
    assert run.claim_mending(0.0) and run.mend(nothing) == 0
    assert run.claim()
    run.work(nothing)
    assert run.state == "passed_by" and books.placed == [] and run.idle
    assert books.said == [("passed_by", "no profile")]
