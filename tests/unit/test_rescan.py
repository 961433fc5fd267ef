"""Limits of rescans: nothing that is proposed may pass any of them, and every refusal names its rule."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inscan.callbacks.geometry import ScanGeometry
from inscan.callbacks.profile import BeamlineProfile, load_profile
from inscan.callbacks.rescan_section import Rescan, SoftLimit
from inscan.service.messages import InferenceJob, InferenceResult, job_key
from inscan.service.proposal import RescanProposal
from inscan.service.rescan import Known, propose
from inscan.service.rescan_limits import RUN_UP_STEPS

START = {
    "uid": "survey",
    "beamline_id": "sim_xrf",
    "sample": {"name": "cells"},
    "scan": {"energy": 12.0},
}
GEOMETRY = {
    "shape": [40, 50],
    "slow_motor": "sample_y",
    "fast_motor": "sample_x",
    "slow_units": "um",
    "fast_units": "um",
    "slow_first": -20.0,
    "slow_last": 19.0,
    "fast_first": 0.0,
    "fast_last": 49.0,
    "snaking": True,
}
BOXES = [
    {"box": [10, 14, 20, 24], "score": 30.0, "reason": "Fe_K excess", "element_name": "Fe_K"},
    {"box": [30, 33, 5, 9], "score": 50.0, "reason": "Ca_K excess", "element_name": "Ca_K"},
]


def job(
    uid: str = "survey", geometry: dict[str, Any] | None = None, dwell: float = 0.01
) -> InferenceJob:
    return InferenceJob(
        key=job_key(uid, "primary", "n2n", {}),
        run_uid=uid,
        stream="primary",
        kind="final",
        recipe="n2n",
        parameters={},
        meta={"profile": "sim_xrf", "geometry": geometry or GEOMETRY, "dwell": dwell},
        spool="/nowhere",
        arrays={},
        input_digest="",
        result_path="/nowhere.h5",
        host_id="here",
    )


def result(
    boxes: list[dict[str, Any]] | None = None, verdict: str = "pass", **report: Any
) -> InferenceResult:
    return InferenceResult(
        key="0" * 64,
        fence=1,
        result_path="/nowhere.h5",
        digest="sha256:0",
        report={"verdict": verdict, **report},
        regions=BOXES if boxes is None else boxes,
        timings={},
    )


def profile(**rules: Any) -> BeamlineProfile:
    shipped = load_profile("sim_xrf")
    return shipped.model_copy(update={"rescan": shipped.rescan.model_copy(update=rules)})


def made(**rules: Any) -> RescanProposal:
    proposal = propose(job(), result(), profile(**rules), START)
    assert proposal is not None
    return proposal


def test_a_region_becomes_a_scan_in_motor_units() -> None:
    proposal = made(step_factor=0.25, dwell_factor=2.0, margin=1.0)
    assert (proposal.state, proposal.step, proposal.dwell) == ("approved", (0.25, 0.25), 0.02)
    best = proposal.regions[0].to_dict()
    assert best["label"] == "1-Ca_K"
    assert best["slow_range"] == [-20 + 29 - 0.5, -20 + 33 + 0.5]
    assert best["shape"] == [20, 24]
    assert best["extents"] == [[8.625, 13.375], [3.625, 9.375]]
    assert best["time_s"] == pytest.approx(0.5 + 20 * (0.05 + 24 * 0.02))
    assert proposal.dose == 2.0 / 0.25**2


def test_targets_come_in_the_order_of_the_profile_whatever_their_scores() -> None:
    doubt = {"box": [20, 24, 40, 44], "score": 900.0, "target": "doubt", "element_name": "doubt"}
    boxes = [*({**box, "target": "spots"} for box in BOXES), doubt]
    for targets, labels in (
        (("spots", "doubt"), ["1-Ca_K", "2-Fe_K", "3-doubt"]),
        (("doubt", "spots"), ["1-doubt", "2-Ca_K", "3-Fe_K"]),
    ):
        proposal = propose(job(), result(boxes), profile(targets=targets), START)
        assert proposal is not None
        assert [one.region.label for one in proposal.regions] == labels


def test_that_nothing_was_found_is_said_of_what_was_looked_for() -> None:
    proposal = propose(job(), result([]), profile(targets=("spots", "doubt")), START)
    assert proposal is not None and proposal.state == "refused"
    assert "stands out from its surroundings or is in doubt" in proposal.reason


@pytest.mark.parametrize(
    ("mode", "state"), [("suggest", "suggested"), ("approve", "suggested"), ("auto", "approved")]
)
def test_the_mode_decides_the_state(mode: Any, state: str) -> None:
    assert made(mode=mode).state == state


def test_nothing_is_proposed_where_rescans_are_off_or_the_run_is_one() -> None:
    assert propose(job(), result(), profile(mode="off"), START) is None
    assert propose(job(), result(), profile(), START, "off") is None
    assert propose(job(), result(), profile(), {**START, "purpose": "fine"}) is None
    stack = job().model_copy(update={"meta": {"profile": "sim_txm", "energies_ev": [8333.0]}})
    assert propose(stack, result(), profile(), START) is None


@pytest.mark.parametrize(
    ("rules", "rule"),
    [
        ({"soft_limits": {}}, "soft_limits"),
        ({"soft_limits": {"sample_x": SoftLimit(low=-500, high=500, units="um")}}, "soft_limits"),
        ({"max_area": 0.0}, "max_area"),
        ({"max_time": 1.0}, "max_time"),
        ({"max_regions": 0}, "max_regions"),
        ({"max_dose": 3.0}, "max_dose"),
        ({"max_exposure": 0.1}, "max_exposure"),
    ],
)
def test_a_refusal_names_its_rule(rules: dict[str, Any], rule: str) -> None:
    proposal = made(**rules)
    assert (proposal.state, proposal.regions) == ("refused", ())
    assert proposal.reason.startswith(f"{rule}: ")
    assert {refusal.rule for refusal in proposal.dropped} == {rule}


def test_a_blocked_result_proposes_nothing() -> None:
    blocked = result(verdict="block", reasons=["flux not conserved"])
    proposal = propose(job(), blocked, profile(), START)
    assert proposal is not None
    assert (proposal.state, proposal.regions) == ("refused", ())
    assert proposal.reason == "verdict: the result's verdict is block (flux not conserved)"


def test_the_best_regions_that_fit_are_kept() -> None:
    only = made(max_area=31.0, margin=1.0)
    assert [region.region.label for region in only.regions] == ["1-Ca_K"]
    (dropped,) = only.dropped
    assert (dropped.rule, dropped.region, dropped.limit) == ("max_area", "2-Fe_K", 31.0)
    assert dropped.value is not None
    assert dropped.value > 31.0
    assert "31 are allowed" in dropped.text


def test_a_replay_shows_its_regions_and_moves_nothing() -> None:
    start = {**START, "replay_of": "the run itself"}
    for mode in ("suggest", "approve", "auto"):
        proposal = propose(job(), result(), profile(), start, mode)
        assert proposal is not None
        assert (proposal.state, len(proposal.regions)) == ("refused", len(made().regions))
        assert proposal.reason.startswith("replay: this run is a replay")


def test_limits_hold_for_the_run_up_too() -> None:
    edge = [{"box": [0, 4, 10, 14], "score": 9.0}]
    limits = {
        "sample_x": SoftLimit(low=-500, high=500, units="um"),
        "sample_y": SoftLimit(low=-0.0206, high=0.5, units="mm"),
    }
    near = propose(job(), result(edge), profile(soft_limits=limits), START)
    assert near is not None
    assert near.state == "refused"
    assert near.dropped[0].value == pytest.approx(-20.5 - RUN_UP_STEPS * 0.25)
    assert near.dropped[0].limit == pytest.approx(-20.6)
    limits["sample_y"] = SoftLimit(low=-0.0211, high=0.5, units="mm")
    wide = propose(job(), result(edge), profile(soft_limits=limits), START)
    assert wide is not None
    assert wide.state == "approved"


def test_the_same_place_is_not_measured_twice() -> None:
    boxes = [
        {"box": [10, 20, 10, 20], "score": 30.0},
        {"box": [12, 18, 12, 18], "score": 20.0},
    ]
    proposal = propose(job(), result(boxes), profile(), START)
    assert proposal is not None
    assert len(proposal.regions) == 1
    assert proposal.dropped[0].rule == "overlap"


def test_motors_without_units_of_length_are_not_moved() -> None:
    proposal = propose(job(geometry={**GEOMETRY, "slow_units": ""}), result(), profile(), START)
    assert proposal is not None
    assert proposal.reason.startswith("units: motor sample_y")


def test_an_unknown_dwell_is_no_free_dwell() -> None:
    proposal = propose(job(dwell=0.0), result(), profile(), START)
    assert proposal is not None
    assert proposal.reason.startswith("dwell: ")


def bright(box: list[int], signal: float, background: float = 2.0, **more: Any) -> dict[str, Any]:
    light = {"light": {"Fe_K": signal + background}, "background": {"Fe_K": background}}
    return {"box": box, "score": 20.0, "target": "spots", "element_name": "Fe_K", **light, **more}


def test_of_a_target_the_worthiest_come_first() -> None:
    boxes = [bright([10, 14, 10, 14], 3.0, score=99.0), bright([30, 34, 10, 14], 30.0)]
    proposal = propose(job(), result(boxes), profile(), START)
    assert proposal is not None
    first, second = proposal.regions
    assert (first.region.box[0], second.region.box[0]) == (30, 10)
    assert first.worth > second.worth > 0
    for one in proposal.regions:
        assert one.worth == pytest.approx(one.information / one.time_s / (1 + one.dose))


def test_a_region_must_be_worth_a_share_of_the_best_that_waits() -> None:
    boxes = [bright([10, 14, 10, 14], 0.05), bright([30, 34, 10, 14], 30.0)]
    proposal = propose(job(), result(boxes), profile(least_worth=0.3), START)
    assert proposal is not None and len(proposal.regions) == 1
    (dropped,) = proposal.dropped
    assert (dropped.rule, dropped.region) == ("least_worth", "2-Fe_K")
    assert dropped.limit == pytest.approx(0.3 * proposal.regions[0].worth)
    free = propose(job(), result(boxes), profile(least_worth=0.0), START)
    assert free is not None and len(free.regions) == 2
    waits = Known(best_worth=10 * proposal.regions[0].worth)
    beaten = propose(job(), result(boxes), profile(least_worth=0.3), START, known=waits)
    assert beaten is not None and beaten.reason.startswith("least_worth: ")


def asking(share: float) -> InferenceJob:
    plain = job()
    meta = {**plain.meta, "rescan": {"precision": {"Fe_K": share}}}
    return plain.model_copy(update={"meta": meta})


def test_a_line_that_the_run_does_not_have_is_not_called_precise() -> None:
    asked = asking(0.1)
    missing = asked.model_copy(update={"meta": {**asked.meta, "elements": ["Ca_K", "Zn_K"]}})
    proposal = propose(missing, result([]), profile(targets=("precision",)), START)
    assert proposal is not None and proposal.dropped[0].rule == "elements"
    assert "of Fe_K, the run has Ca_K, Zn_K" in proposal.reason


def test_where_a_precision_is_asked_for_the_dwell_is_what_it_takes() -> None:
    # 20 counts on 5: 16 survey doses tell to 1/sqrt(16 * 16) = 6.25 %.
    box = bright([10, 14, 10, 14], 20.0, 5.0)
    ours = profile(dwell_factor=4.0, step_factor=0.5)
    dwells = {}
    for share in (0.2, 0.125, 0.0625, 0.01):
        proposal = propose(asking(share), result([box]), ours, START)
        assert proposal is not None
        (one,) = proposal.regions
        dwells[share] = one.dwell
        reached = one.predicted["relative_sigma"]
        assert one.dwell <= 0.04
        assert reached == pytest.approx(share) or (one.dwell == 0.04 and reached > share)
    assert dwells[0.2] < dwells[0.125] < dwells[0.0625] < dwells[0.01] == 0.04
    zinc = {**box, "element_name": "Zn_K", "light": {"Zn_K": 25.0}, "background": {"Zn_K": 5.0}}
    other = propose(asking(0.2), result([zinc]), ours, START)
    assert other is not None and other.dwell == 0.04, "nothing is asked of that line"


def test_what_is_precise_enough_is_not_measured_again() -> None:
    box = bright([10, 14, 10, 14], 20.0, 5.0, relative_sigma={"Fe_K": 0.08}, target="precision")
    proposal = propose(asking(0.1), result([box]), profile(), START)
    assert proposal is not None
    assert proposal.reason == "precision: Fe_K is known to 0.08 of its value, 0.1 is asked for"


def test_regions_of_one_proposal_never_get_more_dwell_than_each_needs() -> None:
    boxes = [bright([10, 14, 10, 14], 20.0), bright([30, 34, 10, 14], 9.0)]
    proposal = propose(asking(0.1), result(boxes), profile(), START)
    assert proposal is not None
    dwells = [one.dwell for one in proposal.regions]
    assert len(set(dwells)) == 2 and proposal.dwell == min(dwells)


def test_the_fine_map_is_predicted() -> None:
    box = bright([10, 14, 10, 14], 20.0, 5.0, relative_sigma={"Fe_K": 0.3})
    ours = profile(dwell_factor=2.0, step_factor=0.5, region_overhead=7.0, point_overhead=0.01)
    proposal = propose(job(), result([box]), ours, START)
    assert proposal is not None
    (one,) = proposal.regions
    predicted = one.to_dict()["predicted"]
    assert predicted["line"] == "Fe_K"
    assert predicted["share"] == pytest.approx(16 / 36)
    assert predicted["counts"] == pytest.approx((20.0 * 16 / 36 + 5.0) * 2)
    assert predicted["background"] == pytest.approx(5.0 * 2)
    assert predicted["relative_sigma"] == pytest.approx((0.3**-2 + 0.3**-2 * 8) ** -0.5)
    assert predicted["information"] == one.information > 0
    rows, cols = one.shape
    scan = rows * (ours.rescan.row_overhead + cols * (0.01 + 0.02))
    assert (predicted["scan_s"], predicted["time_s"]) == (pytest.approx(scan), one.time_s)
    assert one.time_s == pytest.approx(7.0 + scan)
    slow = propose(job(), result([box]), ours, START, known=Known(pace=2.5))
    assert slow is not None and slow.time_s == pytest.approx(7.0 + 2.5 * scan)
    assert slow.regions[0].predicted["scan_s"] == pytest.approx(scan), "the model's own"


def test_a_later_round_measures_as_finely_as_the_survey_said() -> None:
    box = bright([20, 28, 20, 28], 20.0, relative_sigma={"Fe_K": 0.3}, target="precision")
    grid = {**GEOMETRY, "shape": [80, 100], "slow_last": 19.5, "fast_last": 49.5}
    composite = job("composite", geometry=grid, dwell=99.0)
    known = Known(survey_uid="survey", survey=job().meta, round=2)
    proposal = propose(composite, result([box]), profile(), START, known=known)
    assert proposal is not None
    assert (proposal.survey_uid, proposal.run_uid, proposal.round) == ("survey", "composite", 2)
    assert (proposal.step, proposal.survey_step) == ((0.25, 0.25), (1.0, 1.0))
    assert proposal.dose == pytest.approx(2 / 0.25**2)
    late = propose(composite, result([box]), profile(max_rounds=1), START, known=known)
    assert late is not None and late.reason.startswith("max_rounds: this would be round 2")


def test_positions_that_nobody_knows_are_no_goal() -> None:
    proposal = propose(job(geometry={**GEOMETRY, "planned": False}), result(), profile(), START)
    assert proposal is not None
    assert proposal.reason.startswith("geometry: where the survey's points lay is not known")


positions = st.floats(-1000, 1000, allow_nan=False)
spans = st.floats(0.01, 2000)


@st.composite
def surveys(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    rows, cols = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    slow, fast = draw(positions), draw(positions)
    geometry = {
        **GEOMETRY,
        "shape": [rows, cols],
        "slow_first": slow,
        "slow_last": slow + draw(spans) * draw(st.sampled_from([-1, 1])) if rows > 1 else slow,
        "fast_first": fast,
        "fast_last": fast + draw(spans) * draw(st.sampled_from([-1, 1])) if cols > 1 else fast,
        "slow_units": draw(st.sampled_from(["um", "mm", "nm"])),
        "fast_units": draw(st.sampled_from(["um", "mm"])),
    }
    boxes = []
    for _ in range(draw(st.integers(0, 8))):
        row, col = draw(st.integers(0, rows - 1)), draw(st.integers(0, cols - 1))
        stop = draw(st.integers(row + 1, rows)), draw(st.integers(col + 1, cols))
        boxes.append({"box": [row, stop[0], col, stop[1]], "score": draw(st.floats(0, 1e6))})
    return geometry, boxes


@st.composite
def limits(draw: st.DrawFn) -> Rescan:
    soft = {}
    for motor in ("sample_x", "sample_y"):
        low = draw(positions)
        soft[motor] = SoftLimit(
            low=low,
            high=low + draw(spans),
            units="um",
            run_up=draw(st.none() | st.floats(0, 20)),
            backlash=draw(st.floats(0, 20)),
        )
    return Rescan(
        mode="auto",
        soft_limits=soft,
        max_area=draw(st.floats(0, 1e6)),
        max_time=draw(st.floats(0, 1e5)),
        max_dose=draw(st.none() | st.floats(0.1, 1e4)),
        max_exposure=draw(st.none() | st.floats(0.01, 1e5)),
        least_worth=draw(st.floats(0, 1)),
        max_regions=draw(st.integers(0, 6)),
        step_factor=draw(st.floats(0.05, 1)),
        dwell_factor=draw(st.floats(0.1, 10)),
        margin=draw(st.floats(0, 5)),
        point_overhead=draw(st.floats(0, 0.1)),
        row_overhead=draw(st.floats(0, 1)),
        region_overhead=draw(st.floats(0, 10)),
    )


@settings(max_examples=120, deadline=None, derandomize=True)
@given(surveys(), limits())
def test_no_proposal_ever_exceeds_a_limit(
    survey: tuple[dict[str, Any], list[dict[str, Any]]], rules: Rescan
) -> None:
    geometry, boxes = survey
    shipped = load_profile("sim_xrf").model_copy(update={"rescan": rules})
    proposal = propose(job(geometry=geometry), result(boxes), shipped, START)
    assert proposal is not None
    raster = ScanGeometry.from_dict(geometry)
    um = {"um": 1.0, "mm": 1000.0, "nm": 1e-3}
    area = time_s = exposure_s = 0.0
    assert len(proposal.regions) <= rules.max_regions
    assert len(proposal.regions) + len(proposal.dropped) >= (1 if not proposal.regions else 0)
    for one in proposal.regions:
        for motor, units, (first, last), step in (
            ("sample_y", geometry["slow_units"], one.extents[0], proposal.step[0]),
            ("sample_x", geometry["fast_units"], one.extents[1], proposal.step[1]),
        ):
            soft = rules.soft_limits[motor]
            beyond = RUN_UP_STEPS * step * um[units] if soft.run_up is None else soft.run_up
            beyond += soft.backlash
            slack = 1e-9 * (abs(soft.low) + abs(soft.high) + 1)
            assert first * um[units] - beyond >= soft.low - slack
            assert last * um[units] + beyond <= soft.high + slack
        rows, cols = one.shape
        area += one.area_um2
        pixel = rules.point_overhead + proposal.dwell
        time_s += rules.region_overhead + rows * (rules.row_overhead + cols * pixel)
        exposure_s += rows * cols * proposal.dwell
        # Pixels fill the region exactly.
        edges = [
            (last - first) / (count - 1) * count
            for (first, last), count in zip(one.extents, one.shape, strict=True)
            if count > 1
        ]
        ranges = [
            high - low
            for (low, high), count in zip(
                (one.region.slow_range, one.region.fast_range), one.shape, strict=True
            )
            if count > 1
        ]
        assert edges == pytest.approx(ranges)
        if rules.max_dose is not None:
            coarse = abs(raster.slow_step * raster.fast_step) / 0.01
            assert rows * cols * proposal.dwell / one.region.area * coarse <= rules.max_dose * (
                1 + 1e-9
            )
    assert area <= rules.max_area
    assert time_s <= rules.max_time * (1 + 1e-9)
    assert rules.max_exposure is None or exposure_s <= rules.max_exposure * (1 + 1e-9)
    best = max((one.worth for one in proposal.regions), default=0.0)
    assert all(one.worth >= rules.least_worth * best for one in proposal.regions)
