"""Regions come from counts: found where there is an excess, quiet where there is only noise."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from inscan.models.matched_filter import significance_threshold
from inscan.models.regions import doubtful_regions, find_regions


def _spot(shape, row, col, sigma, height):
    r, c = np.indices(shape)
    return height * np.exp(-((r - row) ** 2 + (c - col) ** 2) / (2 * sigma**2))


def _inside(region, row, col):
    r0, r1, c0, c1 = region.box
    return r0 <= row < r1 and c0 <= col < c1


@pytest.mark.parametrize("level", [0.05, 0.5, 3.0, 40.0])
def test_noise_alone_gives_regions_no_more_often_than_stated(level):
    hits = sum(
        bool(find_regions(np.random.default_rng(s).poisson(level, (2, 48, 48)), false_alarm=0.1))
        for s in range(60)
    )
    # 6 expected of 60; 14 or more has a probability of 0.2 %.
    assert hits < 14


def test_threshold_rises_with_the_number_of_places_looked_at():
    few = significance_threshold(1000, [1.0], 1, 0.01)
    assert significance_threshold(100_000, [1.0], 1, 0.01) > few
    assert significance_threshold(1000, [1.0, 2.0], 6, 0.01) > few
    assert significance_threshold(1000, [1.0], 1, 0.0001) > few


def test_finds_weak_inclusions_of_one_element_and_says_why():
    rng = np.random.default_rng(3)
    mean = np.full((3, 64, 64), 0.4)
    mean[1] += _spot((64, 64), 20, 45, 1.3, 4.0) + _spot((64, 64), 50, 12, 1.3, 4.0)
    counts = rng.poisson(mean)
    found = find_regions(counts, names=["K_K", "Fe_K", "Zn_K"])
    assert len(found) == 2
    assert all(region.element == 1 for region in found)
    assert any(_inside(region, 20, 45) for region in found)
    assert any(_inside(region, 50, 12) for region in found)
    assert found[0].score >= found[1].score
    assert "Fe_K" in found[0].reason and "sigma" in found[0].reason
    assert find_regions(counts, element=0) == []


def test_a_bright_edge_is_no_inclusion():
    rng = np.random.default_rng(0)
    mean = np.where(np.indices((64, 64))[1] > 30, 60.0, 2.0)[None]
    assert find_regions(rng.poisson(mean)) == []


def test_unlike_passes_over_spots_that_the_other_elements_share():
    rng = np.random.default_rng(1)
    shared = 1 + _spot((64, 64), 16, 16, 1.5, 60.0) + _spot((64, 64), 40, 48, 1.5, 60.0)
    mean = np.stack([10 * shared, 6 * shared, 0.5 + 0.2 * shared])
    mean[2] += _spot((64, 64), 48, 16, 1.5, 8.0)
    counts = rng.poisson(mean)
    assert len(find_regions(counts)) == 3
    found = find_regions(counts, element="unlike")
    assert [region.element for region in found] == [2]
    assert _inside(found[0], 48, 16)


def _nuclei_with_a_planted_inclusion(light: np.ndarray | float = 1.0):
    """Counts of a bright element and a trace of it in the same two nuclei; more of the trace on one of them."""
    nuclei = _spot((64, 64), 20, 20, 2.0, 1.0) + _spot((64, 64), 44, 40, 2.0, 1.0)
    trace = 0.5 + 12 * nuclei + _spot((64, 64), 45, 41, 0.8, 40.0)
    return np.random.default_rng(6).poisson(light * np.stack([2 + 150 * nuclei, trace]))


def test_a_nucleus_with_a_little_trace_is_no_inclusion_beside_others_but_what_lies_on_it_is():
    counts = _nuclei_with_a_planted_inclusion()
    asked = {"element": 1, "scale_px": 0.75, "names": ["K_K", "Fe_K"]}
    plain = find_regions(counts, **asked)
    assert any(_inside(region, 20, 20) for region in plain)
    assert all("where the surroundings predict" in region.reason for region in plain)
    (found,) = find_regions(counts, beside_others=True, **asked)
    assert _inside(found, 45, 41) and not _inside(found, 20, 20)
    assert found.element == 1 and "the other elements and the surroundings" in found.reason


def test_what_others_predict_goes_with_the_exposure():
    """An inclusion in rows that had a tenth of the light is not hidden by the light of the rows beside them."""
    light = np.ones((64, 64))
    light[44:47] = 0.1
    counts = _nuclei_with_a_planted_inclusion(light)
    (found,) = find_regions(counts, element=1, beside_others=True, exposure=light, scale_px=0.75)
    assert _inside(found, 45, 41)


def test_the_higher_of_a_known_background_and_what_others_predict_counts():
    counts = _nuclei_with_a_planted_inclusion()
    known = np.zeros(counts.shape)
    known[1] = _spot((64, 64), 45, 41, 0.8, 40.0) + _spot((64, 64), 44, 40, 2.0, 12.0) + 0.5
    asked = {"element": 1, "scale_px": 0.75, "background": known}
    assert [_inside(r, 20, 20) for r in find_regions(counts, **asked)] == [True]
    assert find_regions(counts, beside_others=True, **asked) == []


def test_beside_others_changes_nothing_where_there_are_none():
    counts = _nuclei_with_a_planted_inclusion()[1]
    ours = find_regions(counts, beside_others=True)
    assert [r.box for r in ours] == [r.box for r in find_regions(counts)] != []


def test_masked_pixels_take_no_part():
    rng = np.random.default_rng(2)
    counts = rng.poisson(2.0, (1, 40, 40)).astype(float)
    counts[0, 10:12, 10:12] = 500
    measured = np.ones((40, 40), dtype=bool)
    measured[8:14, 8:14] = False
    assert find_regions(counts) != []
    assert find_regions(counts, measured=measured) == []
    counts[0, 8:14, 8:14] = np.nan
    assert find_regions(counts) == []
    assert find_regions(counts, measured=np.zeros((40, 40), dtype=bool)) == []


def test_known_background_is_not_an_excess():
    rng = np.random.default_rng(4)
    bump = _spot((48, 48), 24, 24, 1.5, 30.0)
    counts = rng.poisson(2 + bump)[None]
    assert len(find_regions(counts)) == 1
    assert find_regions(counts, background=(2 + bump)[None]) == []


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), pad=st.integers(0, 6))
def test_boxes_lie_in_the_field_do_not_overlap_and_hold_their_peak(seed, pad):
    rng = np.random.default_rng(seed)
    mean = np.full((2, 40, 50), 0.5)
    for _ in range(12):
        row, col = rng.uniform(0, 45, 2)
        mean[rng.integers(2)] += _spot((40, 50), row, col, 1.2, 15.0)
    found = find_regions(rng.poisson(mean), pad_px=pad, max_regions=20)
    taken = np.zeros((40, 50), dtype=int)
    for region in found:
        r0, r1, c0, c1 = region.box
        assert 0 <= r0 < r1 <= 40 and 0 <= c0 < c1 <= 50
        assert _inside(region, *region.peak)
        taken[r0:r1, c0:c1] += 1
    assert taken.max() <= 1
    assert [r.score for r in found] == sorted((r.score for r in found), reverse=True)


def test_refuses_what_it_cannot_search():
    with pytest.raises(ValueError, match="raw counts"):
        find_regions(np.full((1, 8, 8), -1.0))
    with pytest.raises(ValueError, match="element 3 does not exist"):
        find_regions(np.ones((2, 8, 8)), element=3)
    with pytest.raises(ValueError, match="measured has shape"):
        find_regions(np.ones((2, 8, 8)), measured=np.ones((4, 4), dtype=bool))
    assert find_regions(np.zeros((1, 1, 5))) == []


def test_touching_pixels_in_doubt_become_one_box_with_its_reason():
    doubt = np.zeros((2, 40, 50), bool)
    doubt[1, 10:13, 20:24] = True
    doubt[0, 11, 21] = True
    doubt[0, 30, 5:8] = True  # three pixels are too few
    (found,) = doubtful_regions(doubt, names=["Ca_K", "Fe_K"])
    assert found.box == (9, 14, 19, 25) and found.element == 1 and found.peak == (11, 21)
    assert found.score == 13 and "not to be trusted" in found.reason and "Fe_K" in found.reason
    assert doubtful_regions(doubt[1], min_pixels=13) == []


def test_doubt_where_nothing_was_measured_is_no_reason_to_measure_again():
    doubt, measured = np.ones((1, 20, 20), bool), np.zeros((20, 20), bool)
    assert doubtful_regions(doubt, measured=measured) == []
    measured[3:6, 3:6] = True
    (found,) = doubtful_regions(doubt, measured=measured)
    assert found.box == (2, 7, 2, 7)


@given(
    st.integers(1, 3), st.integers(1, 30), st.integers(1, 30), st.floats(0, 1), st.integers(0, 99)
)
@example(2, 24, 27, 0.125, 13)
@settings(max_examples=40, deadline=None)
def test_boxes_of_doubt_stay_small_apart_and_in_the_field(elements, rows, cols, share, seed):
    doubt = np.random.default_rng(seed).random((elements, rows, cols)) < share
    found = doubtful_regions(doubt, max_regions=50)
    taken = np.zeros((rows, cols), int)
    for region in found:
        r0, r1, c0, c1 = region.box
        assert 0 <= r0 < r1 <= rows and 0 <= c0 < c1 <= cols
        assert (r1 - r0) * (c1 - c0) <= max(0.05 * rows * cols, 64)
        assert doubt[region.element, r0:r1, c0:c1].any()
        taken[r0:r1, c0:c1] += 1
    assert taken.max(initial=0) <= 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"doubtful": np.zeros(3, bool)},
        {"doubtful": np.zeros((2, 4, 4), bool), "measured": np.ones((3, 3), bool)},
        {"doubtful": np.zeros((2, 4, 4), bool), "names": ["Fe_K"]},
    ],
)
def test_doubt_of_the_wrong_shape_is_refused(arguments):
    with pytest.raises(ValueError, match="shape|names"):
        doubtful_regions(**arguments)
