"""Spots in images: found where they are, counted as made up where they are not."""

import numpy as np
import pytest

from inscan.models.structures import blob_strengths, false_share, froc


def _spots(places, height=0.5, size=64):
    row, col = np.mgrid[:size, :size]
    image = np.full((size, size), 0.1)
    for r, c in places:
        image += height * np.exp(-((row - r) ** 2 + (col - c) ** 2) / 4)
    return image


REAL = [(10, 10), (10, 40), (40, 12), (50, 50)]


def test_spots_are_found_where_they_are():
    at, strength = blob_strengths(_spots(REAL))
    strong = at[strength > 0.03]
    assert sorted(map(tuple, strong.tolist())) == sorted(REAL)


def test_a_perfect_image_makes_nothing_up():
    truth = _spots(REAL)
    curve = froc(truth, truth)
    assert curve[0][-1] == 1
    assert false_share(curve, 1.0) == 0


def test_made_up_spots_count_from_where_they_rank():
    truth = _spots(REAL)
    image = _spots(REAL, 0.5) + _spots([(30, 30), (25, 55)], 0.8) - 0.1
    # The two false ones are the strongest: two of three are false when one true one is found.
    assert false_share(froc(image, truth), 0.25) == pytest.approx(2 / 3)
    assert false_share(froc(image, truth), 1.0) == pytest.approx(2 / 6)
    weak = _spots(REAL, 0.5) + _spots([(30, 30)], 0.2) - 0.1
    assert false_share(froc(weak, truth), 1.0) == 0


def test_what_is_not_trusted_is_not_seen():
    truth = _spots(REAL)
    image = truth + _spots([(30, 30)], 0.8) - 0.1
    trusted = np.ones(truth.shape, dtype=bool)
    trusted[25:36, 25:36] = False
    assert false_share(froc(image, truth), 1.0) == pytest.approx(1 / 5)
    assert false_share(froc(image, truth, trusted=trusted), 1.0) == 0


def test_recall_that_is_not_reached_is_nothing():
    upper = np.zeros((64, 64), dtype=bool)
    upper[:20] = True
    curve = froc(_spots(REAL), _spots(REAL), trusted=upper)
    assert curve[0][-1] == pytest.approx(0.5)
    assert np.isnan(false_share(curve, 0.6))
    flat = np.full((32, 32), 0.3)
    assert froc(flat, flat)[0].size == 0 and np.isnan(false_share(froc(flat, flat), 0.1))
