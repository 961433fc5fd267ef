"""Whatever documents hold, each run ends once, as a result or as a failure that says why, and nothing false is data."""

import importlib
import re
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

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
HEAVY = ("100 000 data keys", "megabyte", "10 000 deep")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {run.kind: run for run in taken.take_runs(tmp_path_factory.mktemp("runs"))}


@pytest.fixture(scope="module")
def whole(runs: dict[str, Any]) -> dict[str, Any]:
    """How each run ends when nothing is wrong."""
    return {kind: trial.try_run(run, run.copied()) for kind, run in runs.items()}


def cases() -> list[Any]:
    return [
        pytest.param(fault, kind, id=f"{fault.name} - {kind}")
        for fault in FAULTS
        for kind in (fault.kinds[:1] if any(word in fault.name for word in HEAVY) else fault.kinds)
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
        max_examples=25,
        stateful_step_count=25,
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
