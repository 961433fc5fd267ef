"""A stored map exposed again: the statistics are those of a measurement, and nothing is made up."""

import numpy as np
import pytest

from inscan.profiles.stored_field import StoredField

DWELL = 0.4


def stored(mean: float = 400.0, rows: int = 6, cols: int = 6, seed: int = 0) -> StoredField:
    rng = np.random.default_rng(seed)
    return StoredField(
        counts=rng.poisson(mean, (2, 1, rows, cols)).astype(np.float32),
        live_time=np.full((2, rows, cols), 0.9 * DWELL),
        intensity=np.ones((rows, cols)),
        measured=np.ones((rows, cols), bool),
        dwell=DWELL,
        slow=10 + 2.0 * np.arange(rows),
        fast=-1.0 * np.arange(cols),
        seed=seed,
    )


def test_the_same_raster_at_the_same_dwell_gives_the_stored_photons_back() -> None:
    field = stored()
    for row, slow in enumerate(field.slow):
        for col, fast in enumerate(field.fast):
            shot = field.expose(slow, fast, DWELL)
            np.testing.assert_array_equal(shot.counts, field.counts[:, :, row, col])
            np.testing.assert_allclose(shot.live_time, 0.9 * DWELL)
    assert (field.masked, field.reused, field.extrapolated) == (0, 0, 0)


def test_a_shorter_dwell_is_poisson_and_independent_until_the_photons_are_used_up() -> None:
    rows = cols = 60
    field = stored(mean=50.0, rows=rows, cols=cols)
    quarter = np.array(
        [
            [
                field.expose(field.slow[r], field.fast[c], DWELL / 4).counts[0, 0]
                for r in range(rows)
                for c in range(cols)
            ]
            for _ in range(4)
        ],
        float,
    )
    n = rows * cols
    assert quarter.mean() == pytest.approx(12.5, abs=5 * np.sqrt(12.5 / (4 * n)))
    for one in quarter:
        assert one.var() / one.mean() == pytest.approx(1.0, abs=5 * np.sqrt(2 / n))
    for a in range(4):
        for b in range(a):
            correlation = np.corrcoef(quarter[a], quarter[b])[0, 1]
            assert abs(correlation) < 5 / np.sqrt(n)
    # All photons of the run were handed out, none twice.
    np.testing.assert_array_equal(quarter.sum(axis=0), field.counts[0, 0].ravel())
    assert field.reused == 0
    field.expose(field.slow[0], field.fast[0], DWELL / 4)
    assert field.reused == 1


def test_between_pixels_the_neighbours_contribute_and_no_more() -> None:
    field = stored(mean=1000.0)
    shot = field.expose(11.0, -0.5, DWELL)
    corner = field.counts[:, 0, :2, :2].mean(axis=(1, 2))
    # A quarter of each of four pixels: Poisson counts of their mean.
    np.testing.assert_allclose(shot.counts[:, 0], corner, atol=5 * np.sqrt(1000))
    np.testing.assert_allclose(shot.live_time, 0.9 * DWELL)


def test_outside_and_beside_holes_there_is_no_exposure() -> None:
    field = stored()
    field.measured[2, 2] = False
    for slow, fast in ((8.9, 0.0), (21.1, 0.0), (10.0, 0.6), (14.0, -2.0), (14.0, -2.4)):
        shot = field.expose(slow, fast, DWELL)
        assert not shot.live_time.any()
        assert not shot.counts.any()
    assert field.masked == 5
    assert field.expose(9.1, 0.4, DWELL).live_time.all()  # the outer half of the first pixel


def test_a_longer_dwell_is_marked() -> None:
    field = stored()
    shot = field.expose(10.0, 0.0, 3 * DWELL)
    assert field.extrapolated == 1
    assert shot.counts[0, 0] == pytest.approx(3 * field.counts[0, 0, 0, 0], rel=0.3)
    np.testing.assert_allclose(shot.live_time, 2.7 * DWELL)


def test_arrays_that_do_not_belong_together_are_refused() -> None:
    field = stored()
    with pytest.raises(ValueError, match="a field of"):
        StoredField(
            field.counts,
            field.live_time,
            field.intensity[:-1],
            field.measured,
            DWELL,
            field.slow,
            field.fast,
        )
