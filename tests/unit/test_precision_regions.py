"""Boxes where a line is present and less certain than was asked for: there, nowhere else, and by how much."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inscan.models.precision_regions import precision_regions, present_lines

SHAPE = (2, 60, 64)


def estimate(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two lines: one everywhere, one in two squares; counts, values and sigma as from a good denoiser."""
    mean = np.full(SHAPE, 40.0)
    mean[1] = 0.05
    mean[1, 10:20, 12:22] = 9.0
    mean[1, 40:50, 40:52] = 100.0
    counts = np.random.default_rng(seed).poisson(mean)
    return counts, mean, 0.6 * np.sqrt(mean)


def covered(found: list, shape: tuple[int, int]) -> np.ndarray:
    cover = np.zeros(shape, dtype=int)
    for one in found:
        r0, r1, c0, c1 = one.region.box
        cover[r0:r1, c0:c1] += 1
    return cover


def test_boxes_cover_just_what_misses_what_was_asked_for() -> None:
    counts, values, sigma = estimate()
    present = present_lines(values, sigma, counts=counts)
    # 0.2 of 9 counts, 0.06 of 100, and 12 where the line is absent.
    found = precision_regions(values, sigma, {1: 0.1}, present=present, pad_px=0)
    assert [one.region.box for one in found] == [(10, 20, 12, 22)]
    (one,) = found
    assert one.wanted == {1: 0.1} and one.relative_sigma[1] == pytest.approx(0.2)
    assert one.longer == pytest.approx(3.0)  # (0.2 / 0.1)^2 - 1
    assert one.region.score == pytest.approx(100 * np.log(2), rel=1e-3)
    assert one.region.element == 1 and "20 %" in one.region.reason and "10 %" in one.region.reason
    both = precision_regions(values, sigma, {1: 0.05}, present=present, pad_px=0)
    assert {one.region.box for one in both} == {(10, 20, 12, 22), (40, 50, 40, 52)}
    assert precision_regions(values, sigma, {1: 0.25}, present=present) == []
    assert precision_regions(values, sigma, {}, present=present) == []


def test_an_absent_line_is_not_present_for_its_noise() -> None:
    rng = np.random.default_rng(1)
    wrong = 0
    for level in (0.0, 0.02, 0.05):
        counts = rng.poisson(level, (1, 64, 64)).astype(float)
        values, sigma = counts + 1e-3, np.sqrt(counts + 0.1)
        present = present_lines(values, sigma, counts=counts)
        wrong += len(precision_regions(values, sigma, {0: 0.1}, present=present))
    assert wrong == 0


def test_faint_places_count_as_present_though_no_pixel_alone_does() -> None:
    for seed in range(3):
        rng = np.random.default_rng(seed)
        mean = np.full((1, 40, 40), 0.05)
        mean[0, 10:30, 12:28] = 3.0
        present = present_lines(mean, 0.7 * np.sqrt(mean), counts=rng.poisson(mean))
        assert present[0, 12:28, 14:26].mean() > 0.95 and present[0, :8].mean() < 0.01


def test_a_uniform_film_is_present_everywhere() -> None:
    counts = np.random.default_rng(2).poisson(20.0, (1, 11, 11))
    values = np.full(counts.shape, 20.0)
    assert present_lines(values, 0.2 * values, counts=counts).all()
    assert present_lines(values, 0.2 * values).all()
    assert not present_lines(values, 0.6 * values).any()  # without counts its own sigma decides


def test_scatter_under_a_line_is_not_the_line() -> None:
    rng = np.random.default_rng(3)
    scatter = np.full((1, 40, 40), 30.0)
    counts = rng.poisson(scatter)
    net = counts - scatter
    present = present_lines(np.abs(net), np.full(net.shape, 5.5), counts=counts, background=scatter)
    assert present.mean() < 0.01
    scatter_free = present_lines(counts.astype(float), np.full(net.shape, 5.5), counts=counts)
    assert scatter_free.mean() > 0.95


def test_a_place_that_is_dark_for_want_of_light_is_present_all_the_same() -> None:
    light = np.ones((40, 40))
    light[:, 20:] = 0.02
    counts = np.random.default_rng(4).poisson(200 * light)[None]
    values = np.full(counts.shape, 200.0)
    with_light = present_lines(values, 10.0 + 0 * values, counts=counts, exposure=light)
    without = present_lines(values, 10.0 + 0 * values, counts=counts)
    assert with_light.mean() > 0.95 and without[0, :, 24:].mean() < 0.2


def test_what_was_not_measured_needs_no_precision() -> None:
    counts, values, sigma = estimate()
    measured = np.ones(SHAPE[1:], bool)
    measured[:, :30] = False
    present = present_lines(values, sigma, counts=counts, measured=measured)
    assert not present[:, :, :30].any()
    values[:, 45] = np.nan
    found = precision_regions(values, sigma, {1: 0.05}, present=present, pad_px=0)
    assert {one.region.box for one in found} == {(40, 45, 40, 52), (46, 50, 40, 52)}


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 40),
    cols=st.integers(1, 40),
    share=st.floats(0, 1),
    pad=st.integers(0, 3),
    seed=st.integers(0, 999),
)
def test_boxes_stay_apart_small_and_in_the_field(
    rows: int, cols: int, share: float, pad: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    values, sigma = rng.exponential(1, (2, 2, rows, cols))
    present = rng.random((2, rows, cols)) < share
    found = precision_regions(
        values, sigma, {0: 0.3, 1: 0.8}, present=present, pad_px=pad, max_regions=99
    )
    cover = covered(found, (rows, cols))
    assert cover.max(initial=0) <= 1
    for one in found:
        r0, r1, c0, c1 = one.region.box
        row, col = one.region.peak
        assert 0 <= r0 <= row < r1 <= rows and 0 <= c0 <= col < c1 <= cols
        assert (r1 - r0) * (c1 - c0) <= max(0.05 * rows * cols, 64)
        k = one.region.element
        assert present[k, row, col] and sigma[k, row, col] > one.wanted[k] * values[k, row, col]
        assert one.longer > 0 and one.region.score > 0
    scores = [one.region.score for one in found]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("wanted", "present", "message"),
    [
        ({5: 0.1}, np.ones(SHAPE, bool), "element 5"),
        ({0: 0.0}, np.ones(SHAPE, bool), "above 0"),
        ({0: 0.1}, np.ones((2, 3, 3), bool), "present has shape"),
    ],
)
def test_what_cannot_be_meant_is_refused(wanted: dict, present: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        precision_regions(np.ones(SHAPE), np.ones(SHAPE), wanted, present=present)
    with pytest.raises(ValueError, match="sigma has shape"):
        present_lines(np.ones(SHAPE), np.ones((2, 3, 3)))
    with pytest.raises(ValueError, match="exposure has shape"):
        present_lines(np.ones(SHAPE), np.ones(SHAPE), counts=np.ones(SHAPE), exposure=np.ones(3))
