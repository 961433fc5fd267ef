"""Energies that may be added to a survey: never beyond a limit, and every refusal names its rule."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inscan.callbacks.profile import BeamlineProfile, load_profile
from inscan.callbacks.rescan_section import SoftLimit
from inscan.service.messages import InferenceJob, InferenceResult, job_key
from inscan.service.rescan import Known, propose
from inscan.service.rescan_limits import Spent

SURVEY = [8240.0, 8300.0, 8335.0, 8345.0, 8355.0, 8400.0, 8470.0]
NAMED = [8346.0, 8350.0, 8340.0, 8352.5, 8348.0, 8360.0, 8337.0, 8344.5, 8354.0, 8342.0]
START = {
    "uid": "survey",
    "beamline_id": "sim_txm",
    "purpose": "survey",
    "frames_per_energy": 4,
    "sample": {"name": "battery"},
}


def job(energies: list[float] = SURVEY, **meta: Any) -> InferenceJob:
    return InferenceJob(
        key=job_key("survey", "primary", "subspace", {}),
        run_uid="survey",
        stream="primary",
        kind="final",
        recipe="subspace",
        parameters={},
        meta={
            "profile": "sim_txm",
            "purpose": "survey",
            "energies_ev": energies,
            "dwell": 0.05,
            "geometry": None,
            **meta,
        },
        spool="/nowhere",
        arrays={},
        input_digest="",
        result_path="/nowhere.h5",
        host_id="here",
    )


def result(named_ev: list[float] = NAMED, regions: Any = (), **report: Any) -> InferenceResult:
    named = {
        "energies_ev": named_ev,
        "predicted": {"edge_sigma_ev": [0.5, 0.08], "reached": not named_ev},
        "text": "the error is 0.5 eV",
    }
    return InferenceResult(
        key="0" * 64,
        fence=1,
        result_path="/nowhere.h5",
        digest="sha256:0",
        report={"verdict": "pass", "energies": named, **report},
        regions=list(regions),
        timings={},
    )


def profile(energies: Any = (), **rules: Any) -> BeamlineProfile:
    shipped = load_profile("sim_txm")
    assert shipped.rescan.energies is not None
    if energies is not None:
        energies = shipped.rescan.energies.model_copy(update=dict(energies))
    rescan = shipped.rescan.model_copy(update={"energies": energies, **rules})
    return shipped.model_copy(update={"rescan": rescan})


def made(*, named: Any = NAMED, known: Known | None = None, energies: Any = (), **rules: Any):
    found = propose(job(), result(named), profile(energies, **rules), START, None, known)
    assert found is not None and found.kind == "energies"
    return found


def test_the_most_helpful_half_goes_into_the_first_round() -> None:
    proposal = made()
    assert (proposal.state, proposal.round, proposal.exposure_factor) == ("approved", 1, 1.0)
    assert proposal.energies_ev == tuple(sorted(NAMED[:5]))
    assert (proposal.motors[0], proposal.units[0]) == ("mono_energy", "eV")
    # Four frames of 0.05 s, and 0.2 s of the monochromator.
    told = proposal.to_dict()
    assert told["time_s"] == pytest.approx(5 * (4 * 0.05 + 0.2))
    assert told["exposure_s"] == pytest.approx(5 * 4 * 0.05)
    assert told["dose"] == pytest.approx(5 / 7)
    assert told["area_um2"] == 0
    assert told["context"] == {"sample": {"name": "battery"}}
    assert "mode auto" in proposal.reason
    last = made(known=Known(round=4, survey_uid="survey"))
    assert last.energies_ev == tuple(sorted(NAMED))


def test_longer_exposures_cost_more() -> None:
    proposal = made(dwell_factor=3.0)
    assert proposal.exposure_factor == 3.0
    assert proposal.to_dict()["exposure_s"] == pytest.approx(5 * 4 * 0.15)
    assert (proposal.dwell, proposal.dose) == (pytest.approx(0.15), pytest.approx(15 / 7))


@pytest.mark.parametrize(
    ("mode", "state"), [("suggest", "suggested"), ("approve", "suggested"), ("auto", "approved")]
)
def test_the_mode_decides_the_state(mode: Any, state: str) -> None:
    assert made(mode=mode).state == state


@pytest.mark.parametrize(
    ("rules", "rule"),
    [
        ({"soft_limits": {}}, "soft_limits"),
        ({"soft_limits": {"mono_energy": SoftLimit(low=8, high=9, units="um")}}, "soft_limits"),
        ({"soft_limits": {"mono_energy": SoftLimit(low=9, high=9.5, units="keV")}}, "soft_limits"),
        ({"max_time": 0.3}, "max_time"),
        ({"max_dose": 0.1}, "max_dose"),
        ({"max_exposure": 0.1}, "max_exposure"),
        ({"known": Known(round=5)}, "max_rounds"),
        ({"named": []}, "energies.precision_ev"),
    ],
)
def test_a_refusal_names_its_rule(rules: dict[str, Any], rule: str) -> None:
    proposal = made(**rules)
    assert proposal.state == "refused" and proposal.energies_ev == ()
    assert proposal.reason.startswith(f"{rule}: ") and proposal.dropped[0].rule == rule


def test_a_block_verdict_and_a_replay_propose_nothing() -> None:
    blocked = propose(job(), result(verdict="block"), profile(), START)
    assert blocked is not None and blocked.reason.startswith("verdict: ")
    replayed = propose(job(), result(), profile(), {**START, "replay_of": "x"})
    assert replayed is not None and replayed.reason.startswith("replay: ")
    assert replayed.state == "refused" and len(replayed.energies_ev) == 5


def test_what_is_no_survey_gets_no_energies() -> None:
    for other in (
        propose(job(purpose="scan"), result(), profile(), START),
        propose(job(), result(), profile(energies=None), START),
        propose(job(), result(), profile(mode="off"), START),
        propose(job(), result(), profile(), {**START, "purpose": "fine"}),
        propose(job(), result().model_copy(update={"report": {}}), profile(), START),
    ):
        assert other is None


def test_what_the_stack_holds_already_counts() -> None:
    """A composite's energies were paid for, whatever is noted of them."""
    survey = {"energies_ev": SURVEY, "dwell": 0.05}
    known = Known(round=2, survey_uid="survey", survey=survey)
    held = SURVEY + [8341.0 + k for k in range(9)]

    def proposed(**rules: Any) -> Any:
        found = result(energies_ev=held)
        return propose(job(purpose="composite"), found, profile(**rules), START, None, known)

    assert proposed().survey_uid == "survey" and proposed().round == 2
    assert len(proposed(energies={"most": 12}).energies_ev) == 3
    full = proposed(energies={"most": 9})
    assert full.reason.startswith("energies.most: 9 energies were added")
    # Nine of 0.4 s are in it, ten more would be 7.6 s.
    assert len(proposed(max_time=9 * 0.4 + 1.3).energies_ev) == 3
    assert proposed(max_dose=9 / 7).reason.startswith("max_dose: ")


PLACE = {"target": "chemistry", "box": [3, 9, 20, 31], "reason": "edge 1.2 eV higher", "score": 9.0}
WHERE = {
    "shape": [7, 40, 50],
    "pixel_size_um": 0.5,
    "position": {"motors": {"zps_sy": 2.0, "zps_sx": -3.0}},
}


def placed(rules: BeamlineProfile, **where: Any) -> Any:
    proposal = propose(job(**{**WHERE, **where}), result(regions=[PLACE]), rules, START)
    assert proposal is not None and proposal.state == "approved"
    assert proposal.to_dict()["time_s"] == pytest.approx(5 * 0.4)
    return proposal


def test_places_of_other_chemistry_are_told_as_motor_positions() -> None:
    (region,) = placed(profile()).regions
    assert region.region.label == "chemistry-1" and region.region.score == 9.0
    # Row 3 is 17 pixels above the middle: the sample goes down by as much to be in the middle.
    assert region.region.slow_range == (2 - 0.5 * (9 - 20), 2 + 0.5 * (20 - 3))
    assert region.region.fast_range == (-3 - 0.5 * (31 - 25), -3 - 0.5 * (20 - 25))
    assert region.predicted == {"motors": ["zps_sy", "zps_sx"], "units": ["um", "um"]}
    (turned,) = placed(profile(energies={"image_motors": ("zps_sy", "-zps_sx")})).regions
    assert turned.region.slow_range == region.region.slow_range
    assert turned.region.fast_range == (-3 + 0.5 * (20 - 25), -3 + 0.5 * (31 - 25))


@pytest.mark.parametrize(
    ("energies", "where", "rule", "words"),
    [
        ({"image_motors": None}, {}, "geometry", "rows 3 to 9, columns 20 to 31"),
        ({"image_motors": ("zps_sy", "stage")}, {}, "geometry", "where stage was"),
        ({}, {"pixel_size_um": None}, "geometry", "pixel_size_um"),
        ({}, {"position": {}}, "geometry", "positions.motors"),
        ({}, {"position": {"motors": {"zps_sy": 19.0, "zps_sx": 0.0}}}, "soft_limits", "zps_sy"),
    ],
)
def test_places_whose_position_is_not_known_are_no_regions(energies, where, rule, words) -> None:
    proposal = placed(profile(energies=energies), **where)
    (dropped,) = proposal.dropped
    assert proposal.regions == () and dropped.rule == rule and words in dropped.text


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    named=st.lists(st.floats(8200, 8600), max_size=30, unique=True),
    low=st.floats(8.2, 8.4),
    width=st.floats(0.001, 0.3),
    max_time=st.floats(0, 20),
    max_dose=st.none() | st.floats(0.01, 4),
    factor=st.floats(0.1, 5),
    spent=st.floats(0, 20),
    number=st.integers(1, 5),
    most=st.integers(1, 24),
)
def test_nothing_proposed_is_outside_any_limit(
    named, low, width, max_time, max_dose, factor, spent, number, most
) -> None:
    limits = {"mono_energy": SoftLimit(low=low, high=low + width, units="keV", backlash=0.001)}
    known = Known(round=number, spent=Spent(time_s=spent, dose=spent / 10))
    proposal = made(
        named=named,
        known=known,
        energies={"most": most},
        soft_limits=limits,
        max_time=max_time,
        max_dose=max_dose,
        dwell_factor=factor,
    )
    if proposal.state == "refused":
        assert proposal.energies_ev == () and proposal.dropped
        return
    assert number <= 4 and 0 < len(proposal.energies_ev) <= most
    for energy in proposal.energies_ev:
        assert 1000 * low <= energy - 1.0 + 1e-6 and energy + 1.0 - 1e-6 <= 1000 * (low + width)
    assert spent + proposal.time_s <= max_time
    assert max_dose is None or spent / 10 + proposal.dose <= max_dose
