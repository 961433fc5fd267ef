"""Small fine maps of a few grains, after a slip of the sample: found again where an earlier one lies, or not at all."""

from dataclasses import replace

import numpy as np
import pytest

from inscan.models.composite import Layer, compose
from inscan.models.composite_place import place

NAMES = ("Fe_K", "Ca_K")
CELLS = 8  # of the sample on the side of a survey pixel
# Survey pixels: what is added to a position of the stage to have the survey's.
SLIP = np.array([5, 13]) / CELLS
GRAINS = ((6.0, 10.0), (13.0, 28.0))
BLANK = (14.0, 10.0)
HALF = 3.5  # survey pixels from the centre of a fine map to its edge


def sample(rows: int = 20, cols: int = 40) -> np.ndarray:
    """Counts on a survey pixel, finely: grains on what is all but empty."""
    y, x = np.mgrid[: rows * CELLS, : cols * CELLS] / CELLS - 0.5
    iron, calcium = np.full(y.shape, 0.3), np.full(y.shape, 6.0)
    for row, col in GRAINS:
        away = (y - row) ** 2 + (x - col) ** 2
        iron += 30 * np.exp(-away / 2 / 0.8**2)
        calcium += 40 * np.exp(-away / 2 / 1.2**2)
    return np.stack([iron, calcium])


def survey(truth: np.ndarray, seed: int) -> Layer:
    shape = [n // CELLS for n in truth.shape[1:]]
    seen = truth.reshape(2, shape[0], CELLS, shape[1], CELLS).mean((2, 4))
    counts = np.random.default_rng([seed, 0]).poisson(seen).astype(float)
    rows, cols = (np.arange(n, dtype=np.float64) for n in shape)
    return Layer("survey", NAMES, counts, np.ones(shape), rows, cols)


def fine(
    truth: np.ndarray,
    seed: int,
    uid: str,
    centre: tuple[float, float],
    *,
    sent: np.ndarray | None = None,
    slip: np.ndarray = SLIP,
    dose: float = 0.5,
) -> Layer:
    """A map around `centre` of twice the survey's pixels, sent `sent` beside it, of a sample that slipped."""
    size, n = CELLS // 2, round(4 * HALF)
    beside = np.zeros(2) if sent is None else sent
    low = [round((c - HALF + s + 0.5) * CELLS) for c, s in zip(centre, beside, strict=True)]
    first = [at + round(s * CELLS) for at, s in zip(low, slip, strict=True)]
    part = truth[:, first[0] : first[0] + n * size, first[1] : first[1] + n * size]
    seen = part.reshape(2, n, size, n, size).mean((2, 4))
    number = float(ord(uid[0]))
    counts = np.random.default_rng([seed, int(number)]).poisson(seen * dose / 4).astype(float)
    rows, cols = (at / CELLS - 0.5 + (np.arange(n) + 0.5) / 2 for at in low)
    light = np.full((n, n), dose / 4)
    return Layer(uid, NAMES, counts, light, rows, cols, time=number, label=uid)


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return sample()


def test_a_missed_region_that_is_taken_again_is_found_near_the_first(truth: np.ndarray) -> None:
    alone = found = 0
    for seed in range(6):
        coarse = survey(truth, seed)
        again = fine(truth, seed, "b", GRAINS[0], sent=-SLIP)
        alone += place(coarse, again, max_shift=2.0).found
        made = place(coarse, again, max_shift=2.0, known=SLIP + [0.1, -0.1])
        found += made.found
        if made.found:
            assert np.abs(made.shift - SLIP).max() < 0.75, (seed, made.shift)
    assert found >= 5 and found > alone + 1, (found, alone)


def test_no_wrong_shift_is_ever_told_as_found(truth: np.ndarray) -> None:
    found = 0
    for seed in range(4):
        layers = [
            fine(truth, seed, "a", GRAINS[0], dose=2.0),
            fine(truth, seed, "b", GRAINS[0], sent=-SLIP),
            fine(truth, seed, "c", GRAINS[1], sent=-SLIP, dose=0.5),
        ]
        made = compose(survey(truth, seed), layers)
        if seed == 1:
            assert made.layers == compose(survey(truth, seed), layers[::-1]).layers
        for layer in made.layers:
            found += layer["found"]
            if layer["found"]:
                assert np.abs(np.add(layer["shift"], SLIP)).max() < 0.75, (seed, layer)
    assert found >= 10, found


def test_a_second_slip_is_not_taken_for_the_first(truth: np.ndarray) -> None:
    for seed in range(4):
        coarse = survey(truth, seed)
        moved = fine(truth, seed, "b", GRAINS[0], slip=np.array([-1.0, -1.0]), dose=4.0)
        made = place(coarse, moved, max_shift=2.0, known=SLIP)
        if made.found:
            assert np.abs(made.shift - [-1.0, -1.0]).max() < 0.75, (seed, made.shift)


def test_a_place_near_the_earlier_one_but_too_far_to_follow_is_refused(truth: np.ndarray) -> None:
    far = np.array([0.0, 2.5])
    for seed in range(3):
        moved = fine(truth, seed, "b", GRAINS[0], slip=far, sent=-far, dose=4.0)
        made = place(survey(truth, seed), moved, max_shift=2.0, known=np.array([0.0, 1.9]))
        assert not made.found, (seed, made.shift, made.reason)


def test_an_even_region_is_compared_where_an_earlier_map_lies(truth: np.ndarray) -> None:
    coarse = survey(truth, 0)
    even = fine(truth, 0, "b", BLANK, sent=-SLIP)
    made = place(coarse, even, max_shift=2.0, known=SLIP)
    assert made.used and made.agrees.all() and not made.found, made.reason
    np.testing.assert_array_equal(made.shift, SLIP)
    assert "where an earlier map lies" in made.reason
    # What the survey does not have there stays out.
    grain = fine(truth, 0, "b", GRAINS[0], sent=-SLIP)
    elsewhere = replace(grain, rows=grain.rows + 8, cols=grain.cols)
    assert not place(coarse, elsewhere, max_shift=2.0, known=SLIP).used
