"""Regions are confirmed one by one, follow the drift, are taken again within limits, and end with the beam."""

from typing import Any

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import pytest
from bluesky.suspenders import SuspendBoolLow
from bluesky.utils import FailedStatus, RunEngineInterrupted
from ophyd import Signal
from ophyd.status import Status

from inscan.callbacks import plan_waiting
from inscan.callbacks.composite_uid import composite_uid
from inscan.callbacks.plans import Check, adaptive_dwell, measure_proposal


def region(label: str, slow: float = 0.2, **more: Any) -> dict[str, Any]:
    return {
        "label": label,
        "slow_range": [slow, slow + 0.2],
        "fast_range": [0.1, 0.3],
        "extents": [[slow, slow + 0.2], [0.1, 0.3]],
        "reason": "counts unlike the rest",
        **more,
    }


PROPOSAL = {
    "id": "p1",
    "state": "approved",
    "kind": "map",
    "run_uid": "survey",
    "survey_uid": "survey",
    "regions": [region("A"), region("B", 0.6)],
    "follow_drift": True,
    "max_shift": [0.5, 0.5],
    "margin": [0.1, 0.1],
    "retries": 0,
}


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(plan_waiting, "SLICE", 0.1)
    monkeypatch.setattr(plan_waiting, "ANSWER", 5.0)


class Rules:
    """What the service would say: to every region, and of every composite."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.layers: list[dict[str, Any]] = []
        """What becomes of the layers, in the order in which runs are told of; then as the last."""
        self.outcomes: list[dict[str, Any]] = []
        """Outcomes of the next composites instead of done."""
        self.refuse: dict[str, str] = {}
        self.earlier: list[str] = []
        self.survey = ""
        store.answers["rescan_update"] = self.update

    def update(self, fields: dict[str, Any]) -> dict[str, Any]:
        if fields.get("region") in self.refuse:
            raise PermissionError(self.refuse[fields["region"]])
        runs = fields["runs"]
        uid = composite_uid("survey", [*self.earlier, *runs])
        if runs and uid not in self.store.outcomes:
            layers = [
                {"uid": run, **self.layers[min(i, len(self.layers) - 1)]}
                for i, run in enumerate(runs if self.layers else [])
            ]
            self.store.outcomes[uid] = {
                "status": "done",
                "proposals": [],
                "composite": {"layers": layers, "sigma": {}, "text": ""},
                **(self.outcomes.pop(0) if self.outcomes else {}),
            }
        return {}

    @property
    def told(self) -> list[tuple[Any, ...]]:
        """(state, region, attempt, shift) of each word to the service."""
        return [
            (fields["state"], fields.get("region"), fields.get("attempt"), fields.get("shift"))
            for op, fields in self.store.requests
            if op == "rescan_update"
        ]


@pytest.fixture
def rules(store) -> Rules:
    return Rules(store)


@pytest.fixture
def connected(serve, link, beamline, wait_until):
    connection = link(serve().address)
    beamline.engine.subscribe(connection)
    wait_until(lambda: connection.connected)
    return connection


def run(beamline: Any, plan: Any) -> Any:
    found: list[Any] = []

    def whole():
        found.append((yield from plan))

    beamline.engine(whole())
    return found[0]


def measure(beamline: Any, connection: Any, proposal: Any = PROPOSAL, **options: Any) -> Any:
    fine = options.pop("fine", beamline.fine)
    plan = measure_proposal(connection, proposal, fine, **{"timeout": 20.0, **options})
    return run(beamline, plan)


def found_at(slow: float, fast: float, **more: Any) -> dict[str, Any]:
    return {"found": True, "shift": [slow, fast], "agrees": True, "reason": "", **more}


def test_regions_follow_the_drift(connected, beamline, rules, wait_until):
    # Each layer says where the sample is against the survey, wherever the layer itself was sent.
    rules.layers = [found_at(0.05, -0.02), found_at(0.06, -0.02)]
    asked: list[dict[str, Any]] = []

    def fine(where: dict[str, Any], proposal: dict[str, Any]) -> Any:
        asked.append(where)
        return beamline.fine(where, proposal)

    three = {**PROPOSAL, "regions": [region("A"), region("B", 0.6), region("C", 0.8)]}
    done = measure(beamline, connected, three, fine=fine)
    assert done.state == "done" and list(done.regions) == ["A", "B", "C"] and done.notes == []
    assert asked[0] == region("A")
    assert asked[1]["slow_range"] == pytest.approx([0.65, 0.85])
    assert asked[1]["fast_range"] == asked[1]["extents"][1] == pytest.approx([0.08, 0.28])
    assert asked[2]["shift"] == pytest.approx([0.06, -0.02])
    assert asked[2]["slow_range"] == pytest.approx([0.86, 1.06])
    assert beamline.slow.position == pytest.approx(1.06)
    wait_until(lambda: len(rules.told) == 6)
    shifts = [shift for state, label, _, shift in rules.told if label]
    assert shifts == [None, pytest.approx([0.05, -0.02]), pytest.approx([0.06, -0.02])]
    assert rules.told[-1][0] == "done"
    assert {start["parent_uid"] for start in beamline.starts} == {"survey"}


@pytest.mark.parametrize(
    ("layer", "outcome", "reason"),
    [
        ({"found": False, "shift": None, "reason": "nothing to hold on to"}, {}, "nothing to hold"),
        (found_at(0.6, 0.0), {}, "at most 0.5, 0.5 are followed (rescan.max_shift)"),
        ({"uid": "another", **found_at(0, 0)}, {}, "does not have region A"),
        (found_at(0, 0), {"status": "failed", "reason": "disk full"}, "failed, disk full"),
        (None, {}, "no outcome of run"),
    ],
)
def test_the_rest_is_given_up_where_the_sample_is_lost(
    connected, beamline, rules, store, layer, outcome, reason
):
    if layer is None:
        store.answers["rescan_update"] = lambda fields: {}
    else:
        rules.layers, rules.outcomes = [layer], [outcome]
    done = measure(beamline, connected, timeout=0.4)
    assert len(beamline.starts) == 1 and list(done.regions) == ["A"]
    assert done.state == "failed" and reason in done.reason and reason in done.lost
    assert beamline.slow.position == 0.4


@pytest.mark.parametrize(
    ("layer", "goes_on"),
    [
        ({"shift": [0.05, -0.02], "agrees": True}, True),
        ({"shift": [0.05, -0.02], "agrees": False}, False),
        ({"shift": [0.4, 0.0], "agrees": True}, False),
        ({"shift": None, "agrees": True}, False),
    ],
)
def test_a_faint_region_that_agrees_is_taken_to_lie_as_the_ones_before(
    connected, beamline, rules, layer, goes_on
):
    rules.layers = [found_at(0.05, -0.02), {"found": False, "reason": "too faint", **layer}]
    three = {**PROPOSAL, "regions": [region("A"), region("B", 0.6), region("C", 0.8)]}
    done = measure(beamline, connected, three)
    assert list(done.regions) == (["A", "B", "C"] if goes_on else ["A", "B"])
    assert done.state == ("done" if goes_on else "failed") and "too faint" in done.notes[0]
    assert ("where the regions before it do" in done.notes[0]) == goes_on
    assert done.shift == (0.05, -0.02)


def test_a_faint_region_is_lost_where_no_earlier_one_says_where_it_lies(connected, beamline, rules):
    rules.layers = [{"found": False, "shift": [0.0, 0.0], "agrees": True, "reason": "too faint"}]
    done = measure(beamline, connected)
    assert done.state == "failed" and "too faint" in done.lost and len(beamline.starts) == 1


def test_where_nothing_follows_a_lost_region_is_only_noted(connected, beamline, rules):
    rules.layers = [{"found": False, "shift": None, "reason": "too faint"}]
    alone = {**PROPOSAL, "regions": [region("A")], "retries": 1}
    done = measure(beamline, connected, alone)
    assert done.state == "done" and len(done.notes) == 1 and "too faint" in done.notes[0]


@pytest.mark.parametrize(("retries", "runs"), [(0, 2), (1, 3)])
def test_a_missed_region_is_taken_again_where_that_is_allowed(
    connected, beamline, rules, retries, runs
):
    rules.layers = [found_at(0.2, 0.0)]
    done = measure(beamline, connected, {**PROPOSAL, "retries": retries})
    assert done.state == "done" and len(done.runs) == runs
    assert "missed by 0.2, 0, more than its margin" in done.notes[0]
    begun = [(label, attempt) for _, label, attempt, _ in rules.told if label]
    again = [("A", 1), ("A", 2), ("B", 1)] if retries else [("A", 1), ("B", 1)]
    assert begun == again
    assert len(done.notes) == (1 if retries else 2)
    assert done.regions["A"] == done.runs[retries]


def test_a_fine_map_that_disagrees_is_told(connected, beamline, rules):
    rules.layers = [found_at(0.0, 0.0, agrees=False, reason="Zn_K lost 20 %")]
    done = measure(beamline, connected)
    assert "does not agree with the survey: Zn_K lost 20 %" in done.notes[0]


class Stubborn:
    """A detector whose first triggers fail."""

    name = "stubborn"
    parent = None

    def __init__(self, failures: int) -> None:
        self.failures = failures

    def trigger(self) -> Status:
        status = Status(obj=self)
        if self.failures > 0:
            self.failures -= 1
            status.set_exception(RuntimeError("no frame came"))
        else:
            status.set_finished()
        return status


@pytest.mark.parametrize(
    ("failures", "retries", "begun"),
    [(1, 0, 1), (1, 1, 3), (2, 1, 2), (9, 99, 6)],
    ids=["never again", "once again", "in vain", "bounded"],
)
def test_a_failed_fine_scan_is_taken_again_as_often_as_allowed(
    connected, beamline, rules, wait_until, failures, retries, begun
):
    detector: Any = Stubborn(failures)

    def fine(where: dict[str, Any], proposal: dict[str, Any]) -> Any:
        yield from bps.open_run()
        try:
            yield from bps.trigger(detector, wait=True)
        finally:
            yield from bps.close_run()

    quiet = {**PROPOSAL, "follow_drift": False, "retries": retries}
    done = measure(beamline, connected, quiet, fine=fine)
    good = failures <= min(retries, 5)
    assert len(beamline.starts) == begun and done.state == ("done" if good else "failed")
    assert bool(done.failure) != good
    if not good:
        # What failed may fail elsewhere: no other region is begun.
        assert "the fine scan failed: RuntimeError: no frame came" in done.reason
        assert {start["region"] for start in beamline.starts} == {"A"}
    assert [attempt for _, label, attempt, _ in rules.told if label == "A"] == list(
        range(1, min(failures, min(retries, 5) + 1, 6) + 1 + (1 if good else 0))
    )[:begun]
    wait_until(lambda: rules.told[-1][0] == done.state)


def test_a_defect_of_the_fine_plan_is_raised_and_told(connected, beamline, rules, wait_until):
    def fine(where: dict[str, Any], proposal: dict[str, Any]) -> Any:
        yield from bps.null()
        raise KeyError("no such motor")

    with pytest.raises(KeyError, match="no such motor"):
        measure(beamline, connected, fine=fine)
    wait_until(lambda: rules.told[-1][0] == "refused")
    assert "KeyError" in rules.store.requests[-1][1]["reason"]


def test_checks_are_read_before_each_region(connected, beamline, rules, wait_until):
    shutter = Signal(name="shutter", value=0)
    current = Signal(name="ring_current", value=300.0)
    checks = [
        Check(shutter, equals=1, words="the shutter is open"),
        Check(current, low=100, high=500),
    ]
    proposal = {**PROPOSAL, "follow_drift": False}
    done = measure(beamline, connected, proposal, checks=checks)
    assert done.state == "refused" and beamline.starts == [] and rules.told == []
    assert done.reason == "check: shutter is 0, 1 is needed (the shutter is open)"
    shutter.put(1)

    def fine(where: dict[str, Any], proposal: dict[str, Any]) -> Any:
        yield from beamline.fine(where, proposal)
        current.put(20.0)

    done = measure(beamline, connected, proposal, checks=checks, fine=fine)
    assert done.reason == "check: ring_current is 20.0, 100 to 500 is needed"
    assert done.state == "failed" and len(beamline.starts) == 1
    wait_until(lambda: [word[0] for word in rules.told] == ["running", "failed"])


def test_the_context_may_be_devices_that_are_read(connected, beamline, rules, store):
    beamline.slow.set(0.5)
    measure(beamline, connected, context={"sample_z": beamline.slow, "scan.energy": beamline.fast})
    assert store.requests[0][1]["context"] == {"sample_z": 0.5, "scan.energy": 0.0}


@pytest.mark.parametrize("halt", [False, True])
def test_suspenders_hold_while_a_fine_plan_runs_and_only_then(connected, beamline, rules, halt):
    rules.layers = [found_at(0.0, 0.0)]
    beam = Signal(name="beam", value=1)
    suspender = SuspendBoolLow(beam)
    installed: list[tuple[str, bool]] = []
    engine = beamline.engine

    def watch(message: Any) -> None:
        if message.command in ("open_run", "wait_for", "close_run"):
            installed.append((message.command, suspender in engine.suspenders))
        if message.command == "open_run" and len(beamline.starts) == 0 and not halt:
            beam.put(0)
        if message.command == "wait_for" and not beam.get():
            beam.put(1)

    engine.msg_hook = watch

    def fine(where: dict[str, Any], proposal: dict[str, Any]) -> Any:
        if halt:
            yield from bps.pause()
        yield from beamline.fine(where, proposal)

    if halt:
        with pytest.raises(RunEngineInterrupted):
            measure(beamline, connected, fine=fine, suspenders=[suspender])
        assert suspender in engine.suspenders
        engine.halt()
    else:
        done = measure(beamline, connected, fine=fine, suspenders=[suspender])
        assert done.state == "done" and len(done.runs) == 2
        runs = [held for command, held in installed if command != "wait_for"]
        # One wait is the suspender's own; all others are for the service.
        waits = [held for command, held in installed if command == "wait_for"]
        assert all(runs) and sum(waits) == 1 and len(waits) > 3
    assert suspender not in engine.suspenders and suspender.RE is None


def test_a_proposal_is_asked_for_by_its_id(connected, beamline, rules, store):
    known = {"p1": {**PROPOSAL, "state": "queued", "follow_drift": False, "left": ["B"]}}
    store.answers["proposal"] = lambda fields: {"proposal": known[fields["proposal"]]}
    done = measure(beamline, connected, "p1")
    assert done.state == "done" and list(done.regions) == ["B"]  # A was measured before
    done = measure(beamline, connected, "p2")
    assert done.state == "refused" and "p2" in done.reason and len(beamline.starts) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kind": "energies"}, "of kind energies"),
        ({"state": "suggested"}, "suggested, not approved"),
        ({"regions": []}, "no region to be measured"),
    ],
)
def test_what_is_no_approved_map_is_not_measured(connected, beamline, rules, change, reason):
    done = measure(beamline, connected, {**PROPOSAL, **change})
    assert done.state == "refused" and reason in done.reason
    assert beamline.starts == [] and rules.told == []


def test_the_service_may_refuse_a_later_region(connected, beamline, rules, wait_until):
    rules.refuse["B"] = "soft_limits: slow would go to 2"
    done = measure(beamline, connected, {**PROPOSAL, "follow_drift": False})
    assert done.state == "failed" and done.reason == "soft_limits: slow would go to 2"
    assert list(done.regions) == ["A"]
    wait_until(lambda: rules.told[-1][0] == "failed")


# Until a map is precise


def precise(beamline: Any, connection: Any, rules: Rules, store: Any, **options: Any) -> Any:
    """Run `adaptive_dwell` on a survey whose composites follow it."""

    def survey() -> Any:
        yield from beamline.survey()
        rules.survey = beamline.starts[0]["uid"]

    defaults = {"precision": {"Fe_K": 0.1}, "budget_s": 100.0, "timeout": 20.0}
    plan = adaptive_dwell(survey(), connection, beamline.fine, **{**defaults, **options})
    return run(beamline, plan)


def wanting(name: str, number: int, **more: Any) -> dict[str, Any]:
    regions = [region("A", target="precision", time_s=10.0, dwell=0.5)]
    proposal = {**PROPOSAL, "id": name, "round": number, "regions": regions, **more}
    del proposal["survey_uid"]  # the first of a survey may leave it out
    return proposal


NOTHING = {
    "id": "last",
    "state": "refused",
    "reason": "regions: no place",
    "regions": [],
    "dropped": [{"rule": "regions"}],
}


class Rounds(Rules):
    """A service that proposes once more after each round, for so many rounds."""

    def __init__(self, store: Any, rounds: int) -> None:
        super().__init__(store)
        self.layers = [found_at(0.0, 0.0)]
        self.all: list[str] = []
        self._left = rounds
        store.coming.append({"status": "done", "proposals": [wanting("r1", 1)]})

    def update(self, fields: dict[str, Any]) -> dict[str, Any]:
        self.all = list(dict.fromkeys([*self.all, *fields["runs"]]))
        uid = composite_uid(self.survey, self.all)
        if fields["runs"] and uid not in self.store.outcomes:
            self._left -= 1
            more = wanting(f"r{len(self.all) + 1}", len(self.all) + 1) if self._left else NOTHING
            self.store.outcomes[uid] = {
                "status": "done",
                "proposals": [more],
                "composite": {
                    "layers": [{"uid": run, **self.layers[0]} for run in self.all],
                    "sigma": {"Fe_K": {"median": 0.1 / len(self.all), "share_above": 0.0}},
                },
            }
        return {}


def test_rounds_go_on_until_nothing_is_left(connected, beamline, store):
    rules = Rounds(store, rounds=3)
    done = precise(beamline, connected, rules, store)
    assert (done.ended, done.rounds) == ("precise", 3), done.reason
    assert done.reached == {"Fe_K": {"median": pytest.approx(0.1 / 3), "share_above": 0.0}}
    assert len(done.fine_uids) == 3 and done.spent_s >= 30.0
    assert beamline.starts[0]["inscan"] == {"precision": {"Fe_K": 0.1}}
    assert [start["rescan_proposal"] for start in beamline.fine_starts] == ["r1", "r2", "r3"]
    assert {start["parent_uid"] for start in beamline.fine_starts} == {done.survey_uid}


@pytest.mark.parametrize(
    ("options", "ended", "rounds", "reason"),
    [
        ({"budget_s": 25.0}, "budget", 2, "s are left of 25, 10 are needed"),
        ({"budget_s": 5.0}, "budget", 0, "s are left of 5, 10 are needed"),
        ({"max_rounds": 1}, "rounds", 1, "1 rounds are done"),
    ],
)
def test_rounds_end_with_the_budget_or_the_number(
    connected, beamline, store, options, ended, rounds, reason
):
    rules = Rounds(store, rounds=9)
    done = precise(beamline, connected, rules, store, **options)
    assert (done.ended, done.rounds) == (ended, rounds), done.reason
    assert len(beamline.fine_starts) == rounds
    assert reason in done.reason


@pytest.mark.parametrize(
    ("outcome", "ended", "reason"),
    [
        ({"status": "failed", "reason": "disk"}, "failed", "failed, disk"),
        ({"status": "done", "proposals": []}, "precise", "nothing that is worth it"),
        (
            {"status": "done", "proposals": [{**NOTHING, "dropped": [{"rule": "max_time"}]}]},
            "refused",
            "refused, regions",
        ),
        (
            {"status": "done", "proposals": [wanting("r", 1, state="suggested", mode="approve")]},
            "refused",
            "suggested, not approved (inscan approve r)",
        ),
        (None, "timeout", "no outcome"),
    ],
)
def test_without_an_approved_wish_nothing_moves(
    connected, beamline, store, rules, outcome, ended, reason
):
    if outcome is not None:
        store.coming.append(outcome)
    timeout = 20.0 if outcome else 0.3
    done = precise(beamline, connected, rules, store, timeout=timeout)
    assert (done.ended, done.rounds) == (ended, 0) and reason in done.reason
    assert beamline.fine_starts == []


@pytest.mark.parametrize("precision", [{}, {"Fe_K": 0.0}, {"Fe_K": 1.5}])
def test_a_precision_that_is_none_is_refused_before_the_survey(connected, beamline, precision):
    with pytest.raises(ValueError, match="precision"):
        run(
            beamline,
            adaptive_dwell(
                beamline.survey(),
                connected,
                beamline.fine,
                precision=precision,
                budget_s=1.0,
                timeout=1.0,
            ),
        )
    assert beamline.starts == []


def test_a_failure_that_is_none_of_a_device_passes_through(connected, beamline, rules):
    def fine(where: dict[str, Any], proposal: dict[str, Any]) -> Any:
        yield from bps.null()
        raise FailedStatus("stuck")

    done = measure(beamline, connected, fine=fine)
    assert done.state == "refused" and done.failure.endswith("stuck") and done.runs == []


def test_a_fine_run_of_another_state_is_not_opened(beamline, connected, rules, store):
    """What the fine plan itself says of its run is compared, also where nobody gave a context."""
    told: list[dict[str, Any]] = []

    def update(fields: dict[str, Any]) -> dict[str, Any]:
        told.append(fields.get("context") or {})
        if told[-1].get("scan.energy") == 7.0:
            raise PermissionError("state_changed: scan.energy was 12.0 and is 7.0 now")
        return rules.update(fields)

    store.answers["rescan_update"] = update

    def fine(where: dict[str, Any], proposal: dict[str, Any]) -> Any:
        energy = 12.0 if where["label"] == "A" else 7.0
        md = {"scan": {"energy": energy}}
        slow, fast = where["slow_range"], where["fast_range"]
        axes = (beamline.slow, *slow, 2, beamline.fast, *fast, 2)
        return bp.grid_scan([beamline.detector], *axes, md=md)

    rules.layers = [found_at(0.0, 0.0)]
    proposal = {**PROPOSAL, "context": {"scan.energy": 12.0, "theta": 0.0}}
    done = measure(beamline, connected, proposal, fine=fine)
    assert (done.state, list(done.regions), len(beamline.starts)) == ("failed", ["A"], 1)
    assert done.reason == "state_changed: scan.energy was 12.0 and is 7.0 now"
    assert [one for one in told if one] == [{"scan.energy": 12.0}, {"scan.energy": 7.0}]
    assert beamline.slow.position < 0.5, "region B lies above"
