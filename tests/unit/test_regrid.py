"""Points on a grid: nothing is lost, nothing is added, and the step is said."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inscan.callbacks.regrid import GridError, choose_grid, regrid_mean, regrid_sum
from inscan.profiles.bluesky_starts import grid, list_grid, spiral

few = settings(max_examples=40, deadline=None, derandomize=True)


@st.composite
def clouds(draw):
    n = draw(st.integers(2, 60))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 16)))
    spread = draw(st.sampled_from([1e-3, 1.0, 50.0]))
    points = rng.normal(0, spread, (2, n)) + draw(st.sampled_from([-100.0, 0.0, 7.5]))
    # Some places are visited twice.
    again = rng.integers(0, n, n // 4)
    return np.concatenate([points, points[:, again]], axis=1), rng


@few
@given(clouds())
def test_sums_conserve_every_count_and_every_exposure(case):
    points, rng = case
    grid = choose_grid(points)
    pixels = grid.pixels(points)
    size = grid.shape[0] * grid.shape[1]
    counts = rng.integers(0, 1 << 20, (2, 3, points.shape[1]))
    exposure = rng.integers(0, 1 << 12, (2, points.shape[1])) / 64
    gridded = regrid_sum(counts, pixels, size)
    assert (gridded.sum(axis=-1) == counts.sum(axis=-1)).all()
    assert (regrid_sum(exposure, pixels, size).sum(axis=-1) == exposure.sum(axis=-1)).all()
    # Pixel by pixel, by the definition.
    for pixel in np.unique(pixels):
        assert (gridded[..., pixel] == counts[..., pixels == pixel].sum(axis=-1)).all()
    assert not gridded[..., np.bincount(pixels, minlength=size) == 0].any()


@few
@given(clouds())
def test_every_point_is_within_half_a_step_of_its_pixel(case):
    points, _ = case
    grid = choose_grid(points)
    rows, cols = np.divmod(grid.pixels(points), grid.shape[1])
    for axis, index in enumerate((rows, cols)):
        centre = grid.first[axis] + index * grid.step[axis]
        assert (np.abs(points[axis] - centre) <= grid.step[axis] * 0.5 * (1 + 1e-6)).all()
        assert index.min() == 0
        assert index.max() == grid.shape[axis] - 1
    means = regrid_mean(points, grid.pixels(points), grid.shape[0] * grid.shape[1])
    assert np.isfinite(means[:, grid.pixels(points)]).all()


@few
@given(
    st.tuples(st.integers(2, 9), st.integers(2, 9)),
    st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)),
    st.integers(0, 1000),
)
def test_a_lattice_is_found_in_any_order_with_noise_and_gaps(shape, steps, seed):
    rng = np.random.default_rng(seed)
    (rows, cols), (slow, fast) = shape, steps
    exact = grid(shape, (3, 3 + (rows - 1) * slow), (-2, -2 + (cols - 1) * fast)).positions
    order = rng.permutation(rows * cols)
    noise = rng.uniform(-0.05, 0.05, exact.shape) * np.array([[slow], [fast]])
    found = choose_grid((exact + noise)[:, order])
    assert found.shape == shape
    np.testing.assert_allclose(found.step, steps, rtol=0.11)
    assert (found.pixels((exact + noise)[:, order]) == order).all()
    assert "lattice" in found.said


def test_the_step_is_taken_from_who_says_it_and_said():
    points = spiral(5, 1, 6).positions
    assert choose_grid(points, step=(2, 1), step_from="the profile").said.startswith(
        "2 x 1 (slow x fast) from the profile"
    )
    found = choose_grid(points)
    assert "median distance of neighbour 4" in found.said
    assert 0.8 < found.step[0] == found.step[1] < 1.2


def test_axes_in_other_units_are_measured_in_one():
    points = np.random.default_rng(0).uniform(0, 10, (2, 200))
    plain = choose_grid(points)
    in_mm = choose_grid(points * [[1e-3], [1]], fast_per_slow=1e3)
    np.testing.assert_allclose(in_mm.step, [plain.step[0] * 1e-3, plain.step[1]])
    assert in_mm.shape == plain.shape


def test_uneven_lists_are_no_even_lattice():
    assert "lattice" not in choose_grid(list_grid([0, 1, 5], [4, 3, 5, 0]).positions).said


def test_clusters_do_not_make_a_grid_of_billions():
    rng = np.random.default_rng(1)
    clusters = np.repeat(rng.uniform(0, 1e4, (2, 100)), 6, axis=1)
    clusters += rng.uniform(0, 1e-3, clusters.shape)
    found = choose_grid(clusters)
    assert found.shape[0] * found.shape[1] <= 1 << 16
    assert "widened" in found.said


def test_points_of_chance_fill_most_of_their_pixels():
    points = np.random.default_rng(2).uniform(0, 10, (2, 2000))
    found = choose_grid(points)
    filled = len(np.unique(found.pixels(points))) / (found.shape[0] * found.shape[1])
    assert 0.6 < filled < 0.75


def test_what_cannot_be_a_grid():
    with pytest.raises(GridError, match="no point"):
        choose_grid(np.empty((2, 0)))
    with pytest.raises(GridError, match="one place.*geometry.grid_step"):
        choose_grid(np.ones((2, 5)))
    assert choose_grid(np.ones((2, 5)), step=(1, 1)).shape == (1, 1)
    far = np.array([[0.0, 1e6], [0.0, 1e6]])
    with pytest.raises(GridError, match="1000001 x 1000001 pixels.*geometry.grid_step"):
        choose_grid(far, step=(1, 1), step_from="the profile")


def test_a_line_is_one_row():
    line = np.stack([np.full(5, 2.0), np.arange(5.0)])
    found = choose_grid(line)
    assert found.shape == (1, 5)
    assert found.step == (1.0, 1.0)
    slanted = choose_grid(np.stack([np.arange(9.0), 2 * np.arange(9.0)]))
    np.testing.assert_allclose(slanted.step, 5**0.5)


@few
@given(clouds(), st.randoms(use_true_random=False))
def test_the_order_of_points_does_not_matter(case, random):
    points, _ = case
    order = list(range(points.shape[1]))
    random.shuffle(order)
    one, other = choose_grid(points), choose_grid(points[:, order])
    assert one.shape == other.shape
    np.testing.assert_allclose(one.first, other.first, rtol=1e-9, atol=1e-9)
    assert (one.pixels(points)[order] == other.pixels(points[:, order])).all()
