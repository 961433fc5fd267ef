"""Energies are added in rounds, each confirmed right before; without the service's word nothing moves."""

from typing import Any

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import pytest
from bluesky.suspenders import SuspendBoolLow
from bluesky.utils import FailedStatus, RunEngineInterrupted
from ophyd import Signal
from ophyd.status import Status

from inscan.callbacks import plan_waiting
from inscan.callbacks.composite_uid import composite_uid
from inscan.callbacks.plans import Check, SurveyThenEnergies, survey_then_energies


def proposal(name: str = "p1", number: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "id": name,
        "kind": "energies",
        "state": "approved",
        "mode": "auto",
        "round": number,
        "regions": [],
        "energies_ev": [8345.0, 8350.0 + number],
        "exposure_factor": 1.0,
        "reason": "2 of 4 energies",
        "dropped": [],
        **more,
    }


def done(*proposals: dict[str, Any]) -> dict[str, Any]:
    return {"status": "done", "result_uid": "r", "verdict": "pass", "proposals": list(proposals)}


PRECISE = proposal(
    "p9",
    3,
    state="refused",
    energies_ev=[],
    dropped=[{"rule": "energies.precision_ev", "text": "the error is 0.08 eV"}],
)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(plan_waiting, "SLICE", 0.1)
    monkeypatch.setattr(plan_waiting, "ANSWER", 5.0)


class Rules:
    """What the service would say."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.refuse = ""
        self.composites: list[dict[str, Any]] = [done(PRECISE)]
        """Outcomes of the stacks of all energies so far, in their order."""
        self.survey = ""
        self.runs: list[str] = []
        store.answers["rescan_update"] = self.update

    def update(self, fields: dict[str, Any]) -> dict[str, Any]:
        if self.refuse and fields["state"] == "running":
            raise PermissionError(self.refuse)
        new = [uid for uid in fields["runs"] if uid not in self.runs]
        self.runs += new
        if new:
            uid = composite_uid(self.store.survey, self.runs)
            self.store.outcomes[uid] = self.composites.pop(0)
        return {}

    @property
    def told(self) -> list[tuple[str, str, int]]:
        """(proposal, state, number of runs) of each word to the service."""
        return [
            (fields["proposal"], fields["state"], len(fields["runs"]))
            for op, fields in self.store.requests
            if op == "rescan_update"
        ]


@pytest.fixture
def rules(store, beamline) -> Rules:
    beamline.engine.subscribe(
        lambda name, doc: setattr(store, "survey", getattr(store, "survey", doc["uid"])), "start"
    )
    return Rules(store)


@pytest.fixture
def connected(serve, link, beamline, wait_until):
    connection = link(serve().address)
    beamline.engine.subscribe(connection)
    wait_until(lambda: connection.connected)
    return connection


def survey(beamline) -> Any:
    return bp.scan([beamline.detector], beamline.fast, 8300, 8400, 3)


def more(beamline) -> Any:
    """The motor plays the monochromator."""
    return lambda energies, _: bp.list_scan([beamline.detector], beamline.fast, energies)


def run(beamline, connection, **options: Any) -> SurveyThenEnergies:
    found: list[Any] = []
    plan = survey_then_energies(
        survey(beamline), connection, options.pop("plan", more(beamline)), timeout=20, **options
    )

    def whole():
        found.append((yield from plan))

    beamline.engine(whole())
    return found[0]


def test_rounds_go_on_until_the_energies_suffice(connected, beamline, store, rules, wait_until):
    store.coming = [done(proposal())]
    rules.composites = [done(proposal("p2", 2)), done(PRECISE)]
    found = run(beamline, connected)
    assert (found.ended, found.reason) == ("precise", "the error is 0.08 eV")
    assert (found.rounds, found.energies_ev) == (2, [8345.0, 8351.0, 8345.0, 8352.0])
    assert [start["purpose"] for start in beamline.starts] == ["survey", "fine", "fine"]
    first, second = beamline.starts[1:]
    assert found.fine_uids == [first["uid"], second["uid"]]
    assert (first["parent_uid"], first["rescan_proposal"], first["region"]) == (
        found.survey_uid,
        "p1",
        "energies-1",
    )
    assert (second["parent_uid"], second["rescan_proposal"]) == (found.survey_uid, "p2")
    assert [out["run"] for out in found.outcomes] == [
        found.survey_uid,
        composite_uid(found.survey_uid, found.fine_uids[:1]),
        composite_uid(found.survey_uid, found.fine_uids),
    ]
    wait_until(lambda: len(rules.told) == 6)
    assert rules.told[:3] == [("p1", "running", 0), ("p1", "running", 1), ("p1", "done", 1)]


def test_motion_needs_the_services_word(connected, beamline, store, rules):
    store.coming = [done(proposal())]
    rules.refuse = "state_changed: sample was 'a'"
    found = run(beamline, connected, context=lambda: {"sample": "b"})
    assert found.ended == "refused" and "state_changed" in found.reason
    assert len(beamline.starts) == 1 and found.rounds == 0
    assert store.requests[0][1]["context"] == {"sample": "b"}
    # It was never ours: nothing is reported of it.
    assert len(rules.told) == 1


def test_no_answer_is_no_motion(connected, beamline, store, rules, monkeypatch):
    monkeypatch.setattr(plan_waiting, "ANSWER", 0.3)
    store.coming = [done(proposal())]
    del store.answers["rescan_update"]
    found = run(beamline, connected)
    assert found.ended == "refused"
    assert len(beamline.starts) == 1


@pytest.mark.parametrize(
    ("coming", "ended"),
    [
        (done(), "nothing"),
        (done(proposal(kind="map")), "nothing"),
        (done(PRECISE), "precise"),
        (done(proposal(state="suggested", mode="suggest")), "refused"),
        (done(proposal(state="refused", reason="max_time: too long")), "refused"),
        ({"status": "failed", "reason": "no edge", "proposals": []}, "failed"),
        (done(proposal(energies_ev=[])), "refused"),
    ],
)
def test_without_an_approved_proposal_the_survey_is_all(
    connected, beamline, store, rules, coming, ended
):
    store.coming = [coming]
    found = run(beamline, connected)
    assert found.ended == ended and found.reason in found.notes
    assert len(beamline.starts) == 1 and found.fine_uids == []


def test_no_outcome_in_time_moves_nothing(connected, beamline, store, rules, wait_until):
    store.gate.clear()  # the survey is never assembled
    found: list[Any] = []

    def whole():
        plan = survey_then_energies(survey(beamline), connected, more(beamline), timeout=0.3)
        found.append((yield from plan))

    beamline.engine(whole())
    assert found[0].ended == "timeout" and len(beamline.starts) == 1


def test_checks_hold_before_each_round_and_suspenders_during(connected, beamline, store, rules):
    shutter, installed = Signal(name="shutter", value=1), []
    suspender = SuspendBoolLow(shutter)
    store.coming = [done(proposal())]
    rules.composites = [done(proposal("p2", 2))]

    def plan(energies, _):
        installed.append(len(beamline.engine.suspenders))
        yield from more(beamline)(energies, {})
        shutter._readback = 0  # closed without a word: only a reading tells

    found = run(
        beamline,
        connected,
        plan=plan,
        checks=[Check(shutter, equals=1, words="the shutter is open")],
        suspenders=[suspender],
    )
    assert found.ended == "refused" and "the shutter is open" in found.reason
    assert found.rounds == 1 and installed == [1] and not beamline.engine.suspenders


def test_max_rounds_is_the_callers_word(connected, beamline, store, rules):
    store.coming = [done(proposal())]
    rules.composites = [done(proposal("p2", 2))]
    found = run(beamline, connected, max_rounds=1)
    assert (found.ended, found.rounds, len(beamline.starts)) == ("rounds", 1, 2)
    with pytest.raises(ValueError, match="max_rounds"):
        run(beamline, connected, max_rounds=0)


@pytest.mark.parametrize("retries", [0, 1])
def test_a_device_that_fails_is_told_and_taken_again(
    connected, beamline, store, rules, wait_until, retries
):
    store.coming = [done(proposal(retries=retries))]
    rules.composites = [done(PRECISE), done(PRECISE)]
    tries = []

    @bpp.run_decorator()
    def broken():
        yield from bps.null()
        raise FailedStatus(Status()) from RuntimeError("the monochromator is stuck")

    def plan(energies, _):
        tries.append(energies)
        if len(tries) == 1:
            yield from broken()
        yield from more(beamline)(energies, {})

    found = run(beamline, connected, plan=plan)
    assert any("stuck" in note for note in found.notes)
    if retries:
        assert (found.ended, len(found.fine_uids)) == ("precise", 2)
    else:
        assert (found.ended, len(found.fine_uids)) == ("failed", 1)
        wait_until(lambda: rules.told[-1] == ("p1", "failed", 1))


def test_an_abort_reaches_the_service_and_is_never_held_up(
    connected, beamline, store, rules, wait_until
):
    store.coming = [done(proposal())]

    def plan(energies, _):
        yield from bps.open_run()
        yield from bps.checkpoint()
        yield from bps.pause()

    with pytest.raises(RunEngineInterrupted):
        run(beamline, connected, plan=plan)
    beamline.engine.abort()
    assert beamline.engine.state == "idle" and beamline.stops[-1]["exit_status"] == "abort"
    wait_until(lambda: rules.told[-1] == ("p1", "failed", 1))
