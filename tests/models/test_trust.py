"""Calibration and verdict: intervals cover what they promise, and trouble is named."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from inscan.models.estimate import Calibration, Estimate, gaussian_calibration
from inscan.models.trust import (
    CountTable,
    brightness,
    calibrate_counts,
    heldout_figures,
    judge,
    residual_figures,
    run_factors,
)

EVERYWHERE = np.ones((80, 90), dtype=bool)


def predictions(seed, number=150_000):
    """Skewed errors whose size the prediction gets wrong by a factor that depends on intensity."""
    rng = np.random.default_rng(seed)
    counts = np.exp(rng.uniform(-3, 6, number))
    spread = rng.uniform(0.05, 0.5, number)
    sigma = spread * np.sqrt(counts + 0.4)
    wrong = np.where(counts < 4, 2.0, 0.7)
    truth = counts + sigma * wrong * (rng.gamma(4.0, 0.5, number) - 2.0)
    return truth, counts, sigma, spread, rng.uniform(0, 1.1, number)


@pytest.fixture(scope="module")
def table():
    return calibrate_counts(*predictions(0))


def estimate_of(table, truth, counts, sigma, spread, bright):
    bins = table.bins(counts, spread, bright)
    scaled = (sigma * table.scale[bins]).astype(np.float32)
    calibration = table.calibration(bins, None)
    return Estimate(counts.astype(np.float32), scaled, {}, calibration), truth


def test_coverage_overall_and_in_every_intensity_bin(table):
    estimate, truth = estimate_of(table, *predictions(1))
    for level in (0.5, 0.75, 0.9, 0.99):
        low, high = estimate.interval(level)
        inside = (low <= truth) & (truth <= high)
        assert inside.mean() == pytest.approx(level, abs=0.01)
        for edge in (0.1, 1.0, 5.5, 40.0):
            near = (estimate.values > edge) & (estimate.values < 2 * edge)
            assert inside[near].mean() == pytest.approx(level, abs=0.05)


def test_sigma_is_the_size_of_the_error(table):
    estimate, truth = estimate_of(table, *predictions(2))
    for low, high in ((0.1, 1.0), (10.0, 100.0)):
        part = (estimate.values > low) & (estimate.values < high)
        z = (truth - estimate.values)[part] / estimate.sigma[part]
        assert np.sqrt(np.mean(z**2)) == pytest.approx(1, abs=0.1)


def test_table_survives_the_card(table):
    again = CountTable.from_card({"name": "x", "calibration": table.to_card()})
    for name in ("count_edges", "bright_edges", "spread_edges", "scale", "below", "above"):
        np.testing.assert_allclose(getattr(again, name), getattr(table, name), atol=1e-4)


def test_cards_of_another_calibration_are_refused(table):
    card = table.to_card()
    del card["bright_edges"]
    with pytest.raises(ValueError, match="bright_edges"):
        CountTable.from_card({"name": "x", "calibration": card})


def test_second_pass_keeps_the_scale_and_moves_the_ends(table):
    truth, counts, sigma, spread, bright = predictions(3)
    scaled = 2.0 * sigma * table.scale[table.bins(counts, spread, bright)]
    again = calibrate_counts(truth, counts, scaled, spread, bright, scale=table.scale, between=0.5)
    np.testing.assert_array_equal(again.scale, table.scale)
    assert float(again.between) == 0.5
    np.testing.assert_allclose(np.median(again.above[3] / table.above[3]), 0.5, rtol=0.05)


def test_the_brightest_places_have_bins_of_their_own(table):
    counts = np.array([[[1.0, 2.0], [4.0, 10.0]]])
    bright = brightness(counts)
    assert bright.shape == counts.shape and 0 < bright.min() < 0.2 < 0.9 < bright.max()
    bins = table.bins(np.full(2, 5.0), np.full(2, 0.2), np.array([0.1, 0.9]))
    assert len(np.unique(bins)) == 2


def held_out(factor, elements=4, level=2.0, seed=0):
    """Predictions whose errors are `factor` times what sigma says, and counts they never saw."""
    rng = np.random.default_rng(seed)
    mean = np.full((elements, 100, 100), level)
    sigma = 0.3 * np.sqrt(mean)
    truth = np.maximum(mean + factor * sigma * rng.standard_normal(mean.shape), 0)
    return rng.poisson(truth), mean, sigma, np.ones(mean.shape, dtype=bool)


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.6])
def test_a_runs_own_counts_rescale_sigma(factor):
    found = run_factors(*held_out(factor), 0.6)
    np.testing.assert_allclose(found, factor, rtol=0.2)


def test_few_counts_say_nothing_about_sigma():
    np.testing.assert_allclose(run_factors(*held_out(1.0, 1, 0.1), 0.1), 1.0, atol=0.06)
    held, mean, sigma, seen = held_out(1.6)
    np.testing.assert_array_equal(run_factors(held, mean, sigma, seen & False, 0.5), 1.0)


def test_gaussian_intervals_and_floor():
    values, sigma = np.full(4, 1.0, np.float32), np.full(4, 2.0, np.float32)
    low, high = Estimate(values, sigma, {}, gaussian_calibration()).interval(0.9)
    assert high[0] - 1 == pytest.approx(1.645 * 2, rel=0.01)
    assert low[0] == pytest.approx(1 - 1.645 * 2, rel=0.01)
    assert Estimate(values, sigma, {}, gaussian_calibration(0.0)).interval(0.9)[0].min() == 0


def test_one_bin_serves_all_shapes():
    calibration = Calibration(
        np.array([0.5, 0.9]),
        np.array([[0.5], [1.0]]),
        np.array([[0.7], [2.0]]),
        np.zeros((), np.uint8),
    )
    values = np.zeros((2, 3), np.float32)
    low, high = Estimate(values, values + 1, {}, calibration).interval(0.9)
    np.testing.assert_allclose(low, -1.0)
    np.testing.assert_allclose(high, 2.0)


def scene(peak):
    y, x = np.mgrid[:80, :90]
    return peak * (0.05 + ((y // 10 + x // 10) % 2))


@pytest.mark.parametrize("peak", [0.5, 5.0, 200.0])
def test_perfect_answers_pass(peak):
    mean = scene(peak)
    rng = np.random.default_rng(0)
    figures = {
        "counts": mean.sum(),
        "flux_factor": 1.0,
        **residual_figures(rng.poisson(mean), mean, EVERYWHERE),
        **heldout_figures(rng.poisson(mean / 4), mean / 4, EVERYWHERE),
    }
    assert figures["residual_variance"] == pytest.approx(1, abs=0.05)
    assert figures["heldout_chi2"] == pytest.approx(1, abs=0.08)
    assert judge(["Fe_K"], [figures]).level == "pass"


def test_structure_smoothed_away_is_blocked():
    mean = scene(50.0)
    rng = np.random.default_rng(0)
    figures = residual_figures(rng.poisson(mean), gaussian_filter(mean, 6), EVERYWHERE)
    verdict = judge(["Fe_K"], [figures])
    assert verdict.level == "block"
    assert "Fe_K" in verdict.reasons[0] and "smoothed away" in verdict.reasons[0]


def test_wrong_answers_fail_on_counts_they_never_saw():
    mean = scene(50.0)
    held = np.random.default_rng(0).poisson(mean / 4)
    figures = heldout_figures(held, np.full(mean.shape, mean.mean() / 4), EVERYWHERE)
    assert judge(["a"], [figures]).level == "block"


def test_smoothed_input_and_lost_flux_and_few_counts_are_warned_of():
    mean = scene(50.0)
    soft = gaussian_filter(np.random.default_rng(0).poisson(mean).astype(float), 1.0)
    figures = residual_figures(soft, gaussian_filter(mean, 1.0), EVERYWHERE)
    assert any("scatter less" in reason for reason in judge(["a"], [figures]).reasons)
    verdict = judge(["a"], [{"counts": 1e5, "flux_factor": 1.05}])
    assert verdict.level == "warn" and "flux" in verdict.reasons[0]
    assert "only 7 counts" in judge(["a"], [{"counts": 7}]).reasons[0]
    assert judge(["a"], [{}], ["channel 2 left out"]).level == "warn"


def test_small_effects_in_few_pixels_are_not_reasons():
    assert judge(["a"], [{"residual_correlation": 0.5, "residual_z": 2.0}]).level == "pass"
    assert judge(["a"], [{"residual_correlation": 0.03, "residual_z": 20.0}]).level == "pass"


def test_figures_of_almost_nothing():
    tiny = np.ones((1, 2), dtype=bool)
    assert residual_figures(np.ones((1, 2)), np.ones((1, 2)), tiny)["residual_z"] == 0
    none = np.zeros((3, 3), dtype=bool)
    assert heldout_figures(np.ones((3, 3)), np.ones((3, 3)), none)["heldout_chi2"] == 1
