"""What survey and rescans cost beside a full raster, reckoned by hand."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inscan.models.rescan_cost import FLY, STEP_SCAN, ScanCosts, account, break_even

BY_HAND = ScanCosts(
    "by hand", dwell=0.1, point_overhead=0.05, row_overhead=2.0, region_overhead=7.0, wait=11.0
)
FIELD = {"side": 20, "step_um": 1.0, "ratio": 4}


def test_time_and_dose_add_up():
    spent = account(BY_HAND, [(0, 3, 0, 5), (4, 6, 4, 6)], **FIELD)
    assert spent.survey_s == pytest.approx(20 * (2 + 20 * 0.15))
    assert spent.wait_s == 11
    # 12 x 20 and 8 x 8 fine pixels.
    assert spent.regions_s == pytest.approx(7 + 12 * (2 + 20 * 0.15) + 7 + 8 * (2 + 8 * 0.15))
    assert spent.raster_s == pytest.approx(80 * (2 + 80 * 0.15))
    assert spent.total_s == pytest.approx(spent.survey_s + spent.wait_s + spent.regions_s)
    assert spent.time_saved == pytest.approx(spent.raster_s / spent.total_s)
    assert spent.exposed_s == pytest.approx((400 + 240 + 64) * 0.1)
    assert spent.dose_saved == pytest.approx(6400 / 704)
    # The survey's light falls on a sixteenth as much per area as the fine map's.
    assert spent.outside == pytest.approx(1 / 16) and spent.inside == pytest.approx(17 / 16)


def test_run_up_is_driven_at_the_speed_of_the_row():
    fly = replace(BY_HAND, run_up_um=1.0)
    # 0.25 um in 0.1 s: 0.4 s before and 0.4 s behind each row; four times as fast in the survey.
    assert fly.seconds(10, 5, 0.25) == pytest.approx(BY_HAND.seconds(10, 5, 0.25) + 10 * 0.8)
    assert fly.seconds(10, 5, 1.0) == pytest.approx(BY_HAND.seconds(10, 5, 1.0) + 10 * 0.2)


def test_one_region_of_the_whole_field_never_pays():
    for costs in (FLY, STEP_SCAN, BY_HAND):
        spent = account(costs, [(0, 20, 0, 20)], **FIELD)
        assert spent.regions_s == pytest.approx(spent.raster_s + costs.region_overhead)
        assert spent.time_saved < 1 and spent.dose_saved < 1


@settings(max_examples=20, derandomize=True, deadline=None)
@given(
    box=st.integers(1, 12),
    times=st.floats(1, 6),
    overhead=st.floats(0, 5),
    wait=st.floats(0, 30),
)
def test_break_even_is_where_that_much_is_saved(box, times, overhead, wait):
    costs = replace(BY_HAND, row_overhead=overhead, wait=wait)
    share = break_even(costs, box, times=times, **FIELD)
    regions = share * 20**2 / box**2
    none = account(costs, [], **FIELD)
    one = account(costs, [(0, box, 0, box)], **FIELD)
    total = none.survey_s + none.wait_s + regions * one.regions_s
    assert none.raster_s / total == pytest.approx(times)
