"""Limits of rescans, one by one: positions over all that a motor does, and what one survey may cost altogether."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inscan.callbacks.rescan_section import Rescan, SoftLimit
from inscan.service.rescan_limits import (
    Placed,
    Spent,
    budget_refusal,
    range_refusal,
    round_refusal,
    shift_refusal,
    spent_by,
)

METRES = {"nm": 1e-9, "um": 1e-6, "mm": 1e-3}
numbers = st.floats(-1000, 1000)


def rules(**limits: Any) -> Rescan:
    return Rescan.model_validate({"max_area": 1e9, "max_time": 1e9, "max_regions": 99, **limits})


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    low=numbers,
    span=st.floats(1e-3, 1000),
    run_up=st.none() | st.floats(0, 50),
    backlash=st.floats(0, 50),
    units=st.sampled_from(sorted(METRES)),
    motor_units=st.sampled_from(sorted(METRES)),
    edges=st.tuples(numbers, numbers),
    step=st.floats(0, 10),
    position=st.none() | numbers,
)
def test_everything_a_motor_does_lies_within_its_limits(
    low, span, run_up, backlash, units, motor_units, edges, step, position
) -> None:
    soft = SoftLimit(low=low, high=low + span, units=units, run_up=run_up, backlash=backlash)
    refusal = range_refusal(
        rules(soft_limits={"x": soft}),
        "x",
        motor_units,
        edges[0],
        edges[1],
        step,
        "1",
        position=position,
    )
    here, there = METRES[units], METRES[motor_units]
    beyond = (2 * step * there if run_up is None else run_up * here) + backlash * here
    reach = [min(edges) * there - beyond, max(edges) * there + beyond]
    if position is not None:
        reach = [min(reach[0], position * there), max(reach[1], position * there)]
    slack = 1e-9 * max(here, there) * 1000
    if refusal is None:
        assert reach[0] >= low * here - slack and reach[1] <= (low + span) * here + slack
    else:
        assert reach[0] <= low * here + slack or reach[1] >= (low + span) * here - slack
        assert (refusal.rule, refusal.region) == ("soft_limits", "1")
        assert refusal.limit is not None and refusal.value is not None


@pytest.mark.parametrize(
    ("motor", "units", "edges", "said"),
    [
        ("y", "um", (0, 1), "no soft limits"),
        ("x", "deg", (0, 1), "cannot be compared"),
        ("x", "um", (0, math.nan), "would go to nan"),
        ("x", "um", (0, math.inf), "would go to inf"),
    ],
)
def test_what_cannot_be_compared_is_refused(motor, units, edges, said) -> None:
    limits = rules(soft_limits={"x": SoftLimit(low=-10, high=10, units="um")})
    refusal = range_refusal(limits, motor, units, edges[0], edges[1], 0.1)
    assert refusal is not None
    assert said in refusal.text


def test_a_monochromator_has_limits_in_its_own_units() -> None:
    limits = rules(soft_limits={"mono": SoftLimit(low=7.0, high=7.2, units="keV", backlash=0.005)})
    assert range_refusal(limits, "mono", "eV", 7100, 7150, 1.0) is None
    refusal = range_refusal(limits, "mono", "eV", 7100, 7196, 0.0)
    assert refusal is not None
    assert (refusal.value, refusal.limit, refusal.units) == (7201.0, 7200.0, "eV")


@pytest.mark.parametrize(
    ("limits", "rule", "limit", "value"),
    [
        ({"max_regions": 2}, "max_regions", 2, 3),
        ({"max_dose": 12.0}, "max_dose", 12, 13),
        ({"max_exposure": 69.0}, "max_exposure", 69, 70),
        ({"max_area": 99.0}, "max_area", 99, 100),
        ({"max_time": 139.0}, "max_time", 139, 140),
    ],
)
def test_what_one_survey_may_cost_is_counted_over_all_its_regions(
    limits, rule, limit, value
) -> None:
    spent = Spent().plus(
        time_s=100,
        exposure_s=50,
        area_um2=60,
        regions=2,
        placed=[Placed((0, 10), (0, 10), 5.0, "1"), Placed((5, 15), (5, 15), 4.0, "2")],
    )
    more = {"time_s": 40, "exposure_s": 20, "area_um2": 40, "dose": 4.0, "label": "3"}
    place = ((8.0, 12.0), (8.0, 12.0))
    refusal = budget_refusal(rules(**limits), spent, **more, place=place)
    assert refusal is not None
    assert (refusal.rule, refusal.limit, refusal.value) == (rule, limit, value)
    assert refusal.region == "3"
    looser = {name: number + 1 for name, number in limits.items()}
    assert budget_refusal(rules(**looser), spent, **more, place=place) is None


def test_a_number_that_is_none_passes_no_limit() -> None:
    refusal = budget_refusal(rules(), Spent(), time_s=math.nan, exposure_s=1, area_um2=1, dose=1)
    assert refusal is not None and refusal.rule == "max_time"


boxes = st.tuples(st.integers(0, 8), st.integers(1, 6), st.integers(0, 8), st.integers(1, 6))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(boxes, st.integers(1, 5)), max_size=6), boxes)
def test_doses_add_up_where_regions_lie_on_top_of_each_other(taken, where) -> None:
    field = np.zeros((16, 16))
    placed = []
    for (row, rows, col, cols), dose in taken:
        field[row : row + rows, col : col + cols] += dose
        placed.append(Placed((row, row + rows), (col, col + cols), dose))
    row, rows, col, cols = where
    spent = Spent(placed=tuple(placed), dose=0.5)
    expected = field[row : row + rows, col : col + cols].max() + 0.5
    assert spent.dose_at((row, row + rows), (col, col + cols)) == expected


def region(label: str, at: float = 0.0) -> dict[str, Any]:
    return {
        "label": label,
        "slow_range": [at, at + 1],
        "fast_range": [0.0, 1.0],
        "time_s": 10.0,
        "exposure_s": 5.0,
        "area_um2": 1.0,
        "dose": 2.0,
    }


def test_what_was_begun_and_what_may_be_begun_is_spent() -> None:
    regions = [region("1"), region("2", 5.0)]
    begun = [{"region": "1"}, {"region": "1"}]
    for state, times in (
        ("suggested", 0),
        ("refused", 0),
        ("approved", 2),
        ("queued", 2),
        ("running", 2),
        ("done", 0),
    ):
        spent = spent_by([{"state": state, "regions": regions, "begun": []}])
        assert (spent.regions, spent.time_s) == (times, 10.0 * times), state
    failed = spent_by([{"state": "failed", "regions": regions, "begun": begun}])
    assert (failed.regions, failed.exposure_s) == (2, 10.0), "a region counts as often as begun"
    again = {"state": "approved", "regions": regions[1:], "all_regions": regions, "begun": begun}
    assert spent_by([again]).regions == 3
    energies = {"state": "done", "kind": "energies", "regions": [], "time_s": 7.0, "dose": 0.5}
    assert spent_by([{**energies, "begun": []}]).time_s == 0
    spent = spent_by([{**energies, "begun": [{"region": "energies"}]}])
    assert (spent.time_s, spent.dose, spent.regions) == (7.0, 0.5, 0)


def test_rounds_and_drifts_are_bounded() -> None:
    limits = rules(max_rounds=2, max_shift=1.5)
    assert round_refusal(limits, 2) is None
    refusal = round_refusal(limits, 3)
    assert refusal is not None and (refusal.rule, refusal.limit, refusal.value) == (
        "max_rounds",
        2,
        3,
    )
    assert shift_refusal(limits, (-3.0, 0.7), (2.0, 0.5)) is None
    for shift in ((3.1, 0.0), (0.0, -0.8), (math.nan, 0.0), (math.inf, 0.0)):
        found = shift_refusal(limits, shift, (2.0, 0.5), "1")
        assert found is not None and (found.rule, found.limit) == ("max_shift", 1.5)
    still = rules(follow_drift=False)
    assert shift_refusal(still, (0.0, 0.0), (2.0, 0.5)) is None
    found = shift_refusal(still, (0.1, 0.0), (2.0, 0.5))
    assert found is not None and found.rule == "follow_drift"
