"""Whatever documents hold, each run ends once, as a result or as a failure that says why, and nothing false is data."""

import importlib
import json
import re
import sys
import tracemalloc
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from inscan.callbacks.assembly import NotUnderstood, open_assembler
from inscan.callbacks.geometry import GeometryError, ScanGeometry
from inscan.callbacks.legible import legible as carried
from inscan.callbacks.profile import load_profile
from inscan.callbacks.readings import moment, reading, readings
from inscan.callbacks.routes import Routes
from inscan.callbacks.run_meta import plain
from inscan.callbacks.updates import Notes
from inscan.service.journal import Journal

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
# The table is the policy: what is tried here, what the torture tries and what the page says are one.
taken: Any = importlib.import_module("document_runs")
table: Any = importlib.import_module("document_spoiling")
policy: Any = importlib.import_module("document_policy")
trial: Any = importlib.import_module("document_trial")
sys.path.remove(str(BENCHMARKS))

FAULTS = policy.faults()
# A document of megabytes says the same for every shape of run.
HEAVY = ("megabyte", "10 000 deep")
ENDLESS = "100 000 data keys in a descriptor"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {run.kind: run for run in taken.take_runs(tmp_path_factory.mktemp("runs"))}


@pytest.fixture(scope="module")
def whole(runs: dict[str, Any]) -> dict[str, Any]:
    """How each run ends when nothing is wrong."""
    return {kind: trial.try_run(run, run.copied()) for kind, run in runs.items()}


def cases() -> list[Any]:
    """Each fault in one shape of run, chosen by its name; the torture tries all, and the hundred thousand keys."""
    return [
        pytest.param(fault, kind, id=f"{fault.name} - {kind}")
        for fault in FAULTS
        if fault.name != ENDLESS
        for kind in (
            fault.kinds[:1]
            if any(word in fault.name for word in HEAVY)
            else [Random(fault.name).choice(fault.kinds)]
        )
    ]


def test_whole_runs_are_results(whole) -> None:
    assert {kind: ending.how for kind, ending in whole.items()} == dict.fromkeys(whole, "result")
    assert [trial.wrong_with(ending) for ending in whole.values()] == [[]] * len(whole)


@pytest.mark.parametrize(("fault", "kind"), cases())
def test_the_policy_is_what_happens(fault, kind, runs, whole) -> None:
    ending = trial.try_run(runs[kind], fault.of(runs[kind], 1))
    assert trial.wrong_with(ending) == []
    assert ending.how in fault.ends, ending.words
    assert re.search(fault.says, ending.words), ending.words
    if fault.compare and ending.how == "result":
        assert trial.differs(ending, whole[kind], part=fault.compare == "part") == []


def test_every_fault_has_a_name_of_its_own_and_is_in_the_page() -> None:
    names = [fault.name for fault in FAULTS]
    assert len(set(names)) == len(names)
    page = (BENCHMARKS.parent / "docs/reliability/documents-policy.md").read_text(encoding="utf-8")
    assert page == policy.policy_page()


class Documents(RuleBasedStateMachine):
    """A run's documents in any order, some twice, some lost, some spoiled, while the service starts anew."""

    runs: dict[str, Any]
    wholes: dict[str, Any]

    @initialize(kind=st.sampled_from(table.EVERY))
    def begin(self, kind: str) -> None:
        run = self.runs[kind]
        self.kind = kind
        self.trial = trial.Trial(run.uid, [run.profile], run.folder)
        self.coming = run.copied()
        self.held: list[Any] = []
        self.given: list[Any] = []
        self.lossless = self.clean = True
        # Events that carry references are counted by their order where files are not in SWMR mode.
        self.give(*self.coming.pop(0))

    def give(self, name: str, doc: Any) -> None:
        self.given.append((name, doc))
        self.trial.give(name, doc)

    @precondition(lambda self: len(self.coming) > 1)
    @rule(n=st.integers(1, 12))
    def next_documents(self, n: int) -> None:
        for _ in range(min(n, len(self.coming) - 1)):
            self.give(*self.coming.pop(0))

    @rule(at=st.integers(0, 10**6))
    def again(self, at: int) -> None:
        self.give(*self.given[at % len(self.given)])

    @precondition(lambda self: len(self.coming) > 1)
    @rule()
    def hold_back(self) -> None:
        self.held.append(self.coming.pop(0))

    @precondition(lambda self: self.held)
    @rule(at=st.integers(0, 10**6))
    def let_go(self, at: int) -> None:
        self.give(*self.held.pop(at % len(self.held)))

    @precondition(lambda self: len(self.coming) > 1)
    @rule()
    def lose(self) -> None:
        self.coming.pop(0)
        self.lossless = False

    @precondition(lambda self: len(self.coming) > 1)
    @rule(seed=st.integers(0, 10**6))
    def spoil(self, seed: int) -> None:
        name, doc = self.coming.pop(0)
        self.lossless = self.clean = False
        self.give(name, table.spoiled(doc, Random(seed)))

    @rule(seed=st.integers(0, 10**6))
    def of_another_run(self, seed: int) -> None:
        other = self.runs[Random(seed).choice(table.EVERY)]
        if other.kind != self.kind:
            self.give(*Random(seed).choice(other.documents[:-1]))

    @rule()
    def service_dies(self) -> None:
        self.trial.restart()

    def teardown(self) -> None:
        if not hasattr(self, "trial"):
            return
        while self.held:
            self.give(*self.held.pop())
        while self.coming:
            self.give(*self.coming.pop(0))
        ending = self.trial.end()
        assert trial.wrong_with(ending) == []
        if not self.clean:
            return
        assert not self.lossless or ending.how == "result", ending.words
        assert trial.differs(ending, self.wholes[self.kind], part=not self.lossless) == [], (
            ending.words
        )


def test_any_course_of_a_run_is_sound(runs, whole) -> None:
    machine = type("Course", (Documents,), {"runs": runs, "wholes": whole})
    case = machine.TestCase
    case.settings = settings(
        max_examples=12,
        stateful_step_count=20,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    case("runTest").runTest()


def test_runs_that_interleave_do_not_mix(runs, whole, tmp_path) -> None:
    """Documents of all of them, mixed, through the document log that tells them apart."""
    endings = trial.interleaved(list(runs.values()), Random(5), tmp_path)
    for kind, ending in endings.items():
        assert trial.wrong_with(ending) == [] and ending.how == "result"
        assert trial.differs(ending, whole[kind]) == []


@pytest.mark.parametrize(
    "start",
    [
        {"uid": "run", "extents": [[float("nan"), float("inf")]]},
        {"uid": "run", "scan": {"a": np.arange(3), "b": b"\x00\xff", "c": 1 + 2j, "d": 10**400}},
    ],
)
def test_the_journal_takes_any_start_document(tmp_path, start) -> None:
    with closing(Journal(tmp_path / "journal.db")) as journal:
        journal.record_run("run", None, "", start)
        assert (found := journal.run("run")) is not None
        json.dumps(found["start"], allow_nan=False)


def test_numbers_of_documents_are_numbers() -> None:
    assert reading(np.array([2.5])) == 2.5 and np.isnan(reading(None)) and reading(True) == 1.0
    assert readings((1, np.float32(2), np.uint64(2**63))).tolist() == [1.0, 2.0, 2.0**63]
    assert np.isnan(readings((1.0, None))[1]) and readings(3).shape == ()
    assert (moment(float("nan")), moment(float("inf")), moment(5)) == (0.0, 0.0, 5.0)
    for bad in ("12", b"1", 1j, np.complex64(1), [1.0], {}, np.array(["a"])):
        with pytest.raises((TypeError, ValueError)):
            reading(bad)
        with pytest.raises((TypeError, ValueError)):
            readings((1.0, bad))
    with pytest.raises(OverflowError):
        reading(10**400)


@pytest.mark.parametrize(
    ("shape", "refusal"),
    [([2**14, 2**14], "bytes"), ([10**6, 10**6], "pixels"), ([2**32, 2**32], "pixels")],
)
def test_gigantic_shapes_are_refused_before_anything_is_allocated(shape, refusal) -> None:
    documents = taken.step_map()
    start = documents[0][1] | {"shape": shape}
    asked: list[Any] = []

    def allocate(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        asked.append((name, shape))
        return np.zeros(shape, dtype)

    tracemalloc.start()
    try:
        try:
            assembler = open_assembler(start, [load_profile("sim_xrf")], allocate)
            said = assembler(*documents[1])[0].meta["reason"]
        except NotUnderstood as error:
            said = str(error)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert refusal in said and not asked and peak < 8 << 20


@pytest.mark.parametrize("extents", [[-1e308, 1e308], [0.0, 5e-324], [0.0, 1e-30]])
def test_extents_whose_step_is_no_number_are_refused(extents) -> None:
    start = taken.step_map()[0][1] | {"extents": [extents, [0.0, 1.0]]}
    with pytest.raises(GeometryError, match="steps of"):
        ScanGeometry.from_start(start)


def test_what_is_told_of_an_object_never_raises_and_never_grows() -> None:
    deep = table.nested(10_000)
    assert json.dumps(plain({"a": deep, "n": 10**400, "f": float("nan")}), allow_nan=False)
    assert carried({"a": deep})["a"]
    notes = Notes()
    for number in range(1000):
        notes.add(f"kind {number} " + "x" * 10_000, "y" * 10_000)
    assert len(notes.lines()) <= 201 and max(map(len, notes.lines())) < 1100


@pytest.mark.parametrize("uid", ["", "x" * 257, 5, None, ["u"]])
def test_no_log_is_begun_for_a_run_without_a_name(uid) -> None:
    routes = Routes()
    with pytest.raises((ValueError, TypeError)):
        routes.of("start", {"uid": uid})
    assert len(routes) == 0
