"""Channels against each other: what is left out, what is modelled, what is only said."""

import numpy as np
import pytest

from inscan.models.channel_health import gain_field, misfit, scatter
from inscan.models.channels import sum_channels
from inscan.models.map_input import checked_input, counting_unit, read_off_scatter

SHAPE = (96, 80)
ROW = np.linspace(0, 1, SHAPE[0])[:, None] * np.ones(SHAPE)


def sample(level=40.0):
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    one = 0.2 + np.exp(-((y - 40) ** 2 + (x - 30) ** 2) / 300)
    return level * np.stack([one, 0.3 + 0.5 * (np.hypot(y - 60, x - 50) < 15)])


def measured(views, seed=0):
    """Counts of channels with given mean images, shape (channel, element, row, col)."""
    return np.random.default_rng(seed).poisson(np.asarray(views)).astype(np.float32)


def add(counts, exposure=None):
    light = np.ones_like(counts) if exposure is None else np.asarray(exposure, np.float32)
    return sum_channels(counts, np.broadcast_to(light, counts.shape))


def alike(number=4, level=40.0):
    return np.repeat(sample(level)[None] / number, number, axis=0)


@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("level", [0.3, 40.0])
def test_healthy_channels_are_all_used_without_remark(number, level):
    found = add(measured(alike(number, level)))
    assert found.used.all() and found.notes == ()
    assert (found.unevenness == 1).all()
    if number > 1:
        assert found.scatter == pytest.approx(1, abs=4 * found.scatter_error)


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda y, rng: y * 0, "dead"),
        (lambda y, rng: y * 100, "100 times"),
        (lambda y, rng: y * rng.poisson(1.0, SHAPE), "noisy"),
        (lambda y, rng: rng.poisson(np.maximum(y * (1.9 - 1.8 * ROW), 0)), "drifts"),
        (lambda y, rng: np.where(ROW > 0.6, 0, y), "over the map"),
        (lambda y, rng: rng.poisson(10 + 8 * np.sin(np.arange(80) / 4) + 0 * y), "the"),
    ],
)
def test_sick_channels_are_left_out_and_named(spoil, word):
    counts = measured(alike(5))
    counts[2] = spoil(counts[2], np.random.default_rng(5))
    found = add(counts)
    assert found.used.tolist() == [True, True, False, True, True]
    assert len(found.notes) == 1 and "channel 3" in found.notes[0] and word in found.notes[0]
    np.testing.assert_array_equal(found.counts, counts[[0, 1, 3, 4]].sum(axis=0))


def test_two_detectors_that_see_the_sample_from_two_sides():
    """Gains that change in opposite ways over the field: modelled, kept, and said."""
    tilt = 0.7 + 0.6 * ROW
    views = np.stack([sample(60.0) * tilt, sample(60.0) * (2 - tilt)])
    found = add(measured(views))
    assert found.used.all()
    np.testing.assert_allclose(found.unevenness, 1.3 / 0.7, rtol=0.1)
    assert any("modelled" in note for note in found.notes)
    np.testing.assert_allclose(found.exposure, 1.0, atol=1e-6)  # nothing to make up for
    # With one of them off on one side the field tells how much is missing there.
    light = np.ones((2, 1, *SHAPE), dtype=np.float32)
    light[0, :, 70:] = 0.1
    found = add(measured(views * light), light)
    rate = found.counts.sum(axis=0) / found.exposure.mean(axis=0)
    expected = views.sum(axis=(0, 1))
    assert rate[75:].sum() == pytest.approx(expected[75:].sum(), rel=0.08)
    naive = (1 + 0.1) / 2
    assert abs(found.exposure[:, 75:].mean() - naive) > 0.05


def test_topography_that_no_smooth_gain_explains_is_said():
    ripple = 1 + 0.4 * np.sin(np.arange(SHAPE[1]) / 3)
    found = add(measured(np.stack([sample(60.0) * ripple, sample(60.0) * (2 - ripple)])))
    assert found.used.all()
    assert any("do not see one mean image" in note for note in found.notes)


def test_field_needs_evidence():
    few = np.random.default_rng(0).poisson(2.0, (12, 10)).astype(float)
    assert gain_field(few, few * 3, np.ones((12, 10)), SHAPE) is None
    nothing = np.zeros((12, 10))
    assert misfit(nothing, nothing, np.ones((12, 10))).relative == 0
    assert scatter(nothing, nothing, np.ones((12, 10)))[1] == np.inf


@pytest.mark.parametrize("unit", [0.125, 1 / 7, 1.0371, 25.0])
def test_unit_of_scaled_counts_is_read_off(unit):
    counts = np.random.default_rng(0).poisson(20.0, 5000).astype(np.float32)
    found = counting_unit((counts * np.float32(unit)).astype(np.float32))
    assert found == pytest.approx(unit, rel=1e-4)


def test_no_unit_where_there_is_none():
    rng = np.random.default_rng(0)
    assert counting_unit(rng.normal(20, 4, 5000)) is None
    assert counting_unit(rng.poisson(20, 5000) * rng.uniform(1, 1.2, 5000)) is None
    assert counting_unit(np.zeros(10)) is None
    assert counting_unit(np.array([0.0, 3.7, 3.7])) is None


def test_scatter_of_one_channel_counts_only_when_too_small():
    rng = np.random.default_rng(0)
    mean = sample(60.0)
    for factor, found in ((0.2, 0.2), (1.0, 1.0), (3.0, 1.0)):
        counts = np.maximum(mean + np.sqrt(factor * mean) * rng.standard_normal(mean.shape), 0)
        ratio, why = read_off_scatter(add(counts[None].astype(np.float32)), whole=False)
        assert ratio == pytest.approx(found, rel=0.15)
        assert (why is None) == (found == 1.0)


def test_correction_goes_into_the_exposure():
    counts = measured(alike(2))
    factor = (1 + ROW).astype(np.float32)
    data = checked_input(counts * factor, None, None, np.repeat(factor[None], 2, axis=0))
    np.testing.assert_array_equal(data.counts, counts)
    np.testing.assert_allclose(data.exposure, np.broadcast_to(1 / factor, counts.shape), rtol=1e-6)
    assert data.whole and data.unit == 1.0


@pytest.mark.parametrize("shape", [(15, 15), (96, 80)])
def test_views_that_differ_are_not_taken_for_noise(shape):
    """Two detectors, high counts, topography of a few percent: noise is still counting noise."""
    rng = np.random.default_rng(0)
    mean = 10 ** rng.uniform(1.5, 4, (3, *shape))
    tilt = rng.normal(0, 0.05, shape)
    counts = measured(np.stack([mean * (1 + tilt), mean * (1 - tilt)]))
    found = add(counts)
    ratio, _ = read_off_scatter(found, whole=True)
    assert found.used.all() and ratio == 1.0
    # Differences from pixel to pixel average out over the blocks of a larger map.
    assert any("do not see one mean image" in note for note in found.notes) == (shape == (15, 15))


@pytest.mark.parametrize("factor", [0.25, 1.8])
def test_noise_is_told_from_views(factor):
    rng = np.random.default_rng(0)
    mean = 10 ** rng.uniform(1.5, 3, (2, 64, 64))
    views = np.stack([mean * 1.02, mean * 0.98])
    noisy = views + np.sqrt(factor * views) * rng.standard_normal(views.shape)
    found = add(np.maximum(noisy, 0).astype(np.float32))
    assert found.scatter == pytest.approx(factor, rel=0.12)
    assert found.scatter == pytest.approx(factor, abs=5 * found.scatter_error)
