"""The simpler methods are at their best, and made-up spots are counted as such."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from inscan.models.baselines import gaussian, median, oracle_gaussian, oracle_tv, oracle_widths
from inscan.models.hallucination import false_at_recall

ROW, COL = np.mgrid[:64, :64]
SMOOTH = 6 * np.exp(-((ROW - 30) ** 2 + (COL - 30) ** 2) / 200)
BLOCK = 1 + 8.0 * ((abs(ROW - 32) < 16) & (abs(COL - 32) < 16))


def error(image, truth):
    return float(np.square(image - truth).mean())


@pytest.fixture(scope="module")
def pair():
    truth = np.stack([SMOOTH, BLOCK])
    return np.random.default_rng(0).poisson(truth), truth


def test_the_oracles_width_is_the_best(pair):
    counts, truth = pair
    widths = oracle_widths(counts, truth)
    assert widths[0] > widths[1]  # edges forbid what slopes allow
    best = oracle_gaussian(counts, truth)
    for factor in (0.8, 1.25):
        other = gaussian(counts, factor * widths)
        for k in range(2):
            assert error(best[k], truth[k]) <= error(other[k], truth[k])


def test_total_variation_keeps_edges_that_a_gaussian_blurs(pair):
    counts, truth = pair
    assert error(oracle_tv(counts, truth)[1], truth[1]) < error(
        oracle_gaussian(counts, truth)[1], truth[1]
    )


def test_median_is_of_nine_pixels_of_one_element(pair):
    counts, _ = pair
    found = median(counts)
    assert found[1, 20, 30] == np.median(counts[1, 19:22, 29:32])


def phantom():
    spots = np.zeros((64, 64))
    spots[tuple(np.mgrid[8:64:12, 8:64:12].reshape(2, -1))] = 1
    return gaussian_filter(spots, 1.1) * 2 * np.pi * 1.1**2


def test_a_perfect_map_shows_all_spots_and_makes_up_none():
    spots, plain = phantom(), SMOOTH / 6
    assert false_at_recall(spots + plain, plain, spots + plain, plain, 0.7) == (0, 0.72)


def test_spots_that_are_not_there_are_counted():
    spots, plain = phantom(), SMOOTH / 6
    invented = plain + 2 * np.roll(spots, (6, 6), axis=(0, 1))
    false, recall = false_at_recall(spots + plain, invented, spots + plain, plain, 0.7)
    assert recall == pytest.approx(0.72) and 20 <= false <= 25


def test_weak_spots_cost_more_false_ones():
    spots, plain = phantom(), np.ones((64, 64))
    rng = np.random.default_rng(2)
    noise = [gaussian_filter(rng.normal(0, 0.2, plain.shape), 0.7) for _ in range(2)]
    few, _ = false_at_recall(
        2 * spots + plain + noise[0], plain + noise[1], 2 * spots + plain, plain, 0.7
    )
    many, _ = false_at_recall(
        0.2 * spots + plain + noise[0], plain + noise[1], 0.2 * spots + plain, plain, 0.7
    )
    assert few == 0 and many > 10


def test_a_map_that_lost_its_spots_says_so():
    spots, plain = phantom(), np.ones((64, 64))
    false, recall = false_at_recall(plain, plain, spots + plain, plain, 0.7)
    assert (false, recall) == (0, 0.0)
    with pytest.raises(ValueError, match="differ"):
        false_at_recall(plain, plain, plain, plain, 0.7)
