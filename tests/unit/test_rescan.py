"""Limits of rescans: nothing that is proposed may pass any of them, and every refusal names its rule."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inscan.callbacks.geometry import ScanGeometry
from inscan.callbacks.profile import BeamlineProfile, load_profile
from inscan.callbacks.rescan_section import Rescan, SoftLimit
from inscan.service.journal import Journal
from inscan.service.messages import InferenceJob, InferenceResult, job_key
from inscan.service.proposal import RescanProposal
from inscan.service.rescan import propose
from inscan.service.rescan_limits import RUN_UP_STEPS
from inscan.service.rescan_states import NotAllowed, Rescans

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
        soft[motor] = SoftLimit(low=low, high=low + draw(spans), units="um")
    return Rescan(
        mode="auto",
        soft_limits=soft,
        max_area=draw(st.floats(0, 1e6)),
        max_time=draw(st.floats(0, 1e5)),
        max_dose=draw(st.none() | st.floats(0.1, 1e4)),
        max_regions=draw(st.integers(0, 6)),
        step_factor=draw(st.floats(0.05, 1)),
        dwell_factor=draw(st.floats(0.1, 10)),
        margin=draw(st.floats(0, 5)),
        row_overhead=draw(st.floats(0, 1)),
        region_overhead=draw(st.floats(0, 10)),
    )


@settings(max_examples=300, deadline=None)
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
    area = time_s = 0.0
    assert len(proposal.regions) <= rules.max_regions
    assert len(proposal.regions) + len(proposal.dropped) >= (1 if not proposal.regions else 0)
    for one in proposal.regions:
        for motor, units, (first, last), step in (
            ("sample_y", geometry["slow_units"], one.extents[0], proposal.step[0]),
            ("sample_x", geometry["fast_units"], one.extents[1], proposal.step[1]),
        ):
            soft = rules.soft_limits[motor]
            reach = RUN_UP_STEPS * step
            slack = 1e-9 * (abs(soft.low) + abs(soft.high) + 1)
            assert (first - reach) * um[units] >= soft.low - slack
            assert (last + reach) * um[units] <= soft.high + slack
        rows, cols = one.shape
        area += one.area_um2
        time_s += rules.region_overhead + rows * (rules.row_overhead + cols * proposal.dwell)
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


# States


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.db")
    journal.record_run("survey", 1, "sim_xrf", START)
    yield journal
    journal.close()


def rescans(journal: Journal, clock: Clock | None = None, **rules: Any) -> Rescans:
    return Rescans(journal, [profile(**rules)], now=clock or Clock())


def suggested(journal: Journal, found: Rescans) -> str:
    (proposal,) = found.propose(job(), result())
    assert journal.add_proposal(proposal)
    return proposal["id"]


def test_a_person_approves_and_a_plan_takes_it_once(journal: Journal) -> None:
    ours = rescans(journal, mode="approve")
    name = suggested(journal, ours)
    refused = ours.update(name, "one", "running")
    assert not refused["ok"]
    assert "suggested" in refused["reason"]
    assert ours.approve(name[:8], "ada", "worth it")["state"] == "approved"
    assert ours.update(name, "one", "running")["ok"]
    assert ours.update(name, "one", "running")["ok"], "the answer may have been lost"
    late = ours.update(name, "two", "running")
    assert not late["ok"]
    assert "is running" in late["reason"]
    assert not ours.update(name, "two", "done")["ok"]
    assert ours.update(name, "one", "done", ["fine-1", "fine-2"])["ok"]
    assert ours.update(name, "one", "done", ["fine-1", "fine-2"])["ok"]
    found = ours.find(name)
    assert "fine-1, fine-2" in found["reason"]
    assert [(step["state"], step["who"]) for step in found["history"]] == [
        ("suggested", "inscan"),
        ("approved", "ada"),
        ("running", "plan one"),
        ("done", "plan one"),
    ]
    with pytest.raises(NotAllowed, match="is done"):
        ours.refuse(name, "ada")


def test_in_mode_suggest_nobody_can_approve(journal: Journal) -> None:
    ours = rescans(journal, mode="suggest")
    with pytest.raises(NotAllowed, match=r"mode: rescan\.mode is suggest"):
        ours.approve(suggested(journal, ours), "ada")


def test_a_refusal_sticks(journal: Journal) -> None:
    ours = rescans(journal, mode="auto")
    name = suggested(journal, ours)
    assert ours.refuse(name, "ada", "radiation damage")["state"] == "refused"
    answer = ours.update(name, "one", "running")
    assert not answer["ok"]
    assert "radiation damage" in answer["reason"]
    assert ours.propose(job(), result()) == []


def test_a_changed_beamline_refuses_also_after_approval(journal: Journal) -> None:
    ours = rescans(journal, mode="approve")
    name = suggested(journal, ours)
    ours.approve(name, "ada")
    answer = ours.update(name, "one", "running", context={"scan.energy": 7.2})
    assert answer == {
        "ok": False,
        "reason": "state_changed: scan.energy was 12.0 when this was proposed and is 7.2 now",
    }
    other = {**START, "uid": "next", "sample": {"name": "another"}}
    journal.record_run("next", 2, "sim_xrf", other)
    answer = ours.update(name, "one", "running")
    assert not answer["ok"]
    assert answer["reason"].startswith("state_changed: sample was")
    assert ours.find(name)["state"] == "approved"


def test_runs_of_other_beamlines_change_nothing(journal: Journal) -> None:
    ours = rescans(journal)
    name = suggested(journal, ours)
    journal.record_run("x", 2, "sim_txm", {"beamline_id": "sim_txm", "sample": "other"})
    assert ours.update(name, "one", "running")["ok"]


def test_old_proposals_expire(journal: Journal) -> None:
    clock = Clock()
    ours = rescans(journal, clock)
    name = suggested(journal, ours)
    assert ours.expire() == 0
    clock.now += Rescan().expires + 1
    answer = ours.update(name, "one", "running")
    assert not answer["ok"]
    assert "expired" in answer["reason"]
    assert ours.find(name)["state"] == "expired"
    assert ours.expire() == 0


def test_a_plan_that_was_stopped_says_so(journal: Journal) -> None:
    ours = rescans(journal)
    name = suggested(journal, ours)
    assert ours.update(name, "one", "running")["ok"]
    assert ours.update(name, "one", "refused", ["fine-1"], "Ctrl-C")["ok"]
    assert ours.find(name)["reason"] == "Ctrl-C; fine runs: fine-1"
    assert not ours.update(name, "one", "bogus")["ok"]


def test_ids_are_found_by_their_beginning_or_not_at_all(journal: Journal) -> None:
    ours = rescans(journal)
    name = suggested(journal, ours)
    assert ours.find(name[:6])["id"] == name
    with pytest.raises(LookupError, match="no proposal 'zzz'"):
        ours.find("zzz")
    with pytest.raises(LookupError, match="no proposal ''"):
        ours.find("")
