"""n2n.denoise as a user meets it: gains, exposure, gaps, odd maps, honesty."""

import json

import numpy as np
import pytest
from numpy.typing import ArrayLike

from inscan.models import n2n
from inscan.models.channels import sum_channels
from inscan.models.counting import ANSWERS, choose_weights, denoise_counts, only, principal_axes
from inscan.models.infer import load_denoiser
from inscan.models.n2n_paper import denoise_paper

SHAPE = (72, 80)


def truth(elements=3, peak=12.0, shape=SHAPE):
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    maps = [
        np.exp(-((y - 30) ** 2 + (x - 40) ** 2) / 400) + 0.7 * (np.hypot(y - 50, x - 20) < 12),
        0.5 * (np.hypot(y - 30, x - 40) < 18) + 0.3 * (np.sin(x / 5) > 0.5),
        np.exp(-((y - 20) ** 2 + (x - 60) ** 2) / 100),
    ]
    image = np.stack([maps[k % 3] for k in range(elements)]) + 0.05
    return peak * image / image.max(axis=(1, 2), keepdims=True)


def measure(mean, gains=(1.0, 1.0, 1.0, 1.0), seed=0, exposure: ArrayLike = 1.0):
    """(channel, element, row, col) counts whose channel sum has the given mean."""
    gains = np.asarray(gains) / np.sum(gains)
    light = np.broadcast_to(exposure, (len(gains), *mean.shape[1:]))
    return np.random.default_rng(seed).poisson(gains[:, None, None, None] * mean * light[:, None])


def error(estimate, mean):
    return np.nanmean((estimate.values - mean) ** 2)


@pytest.fixture(scope="module")
def plain():
    mean = truth()
    counts = measure(mean)
    return mean, counts, n2n.denoise(counts)


def test_better_than_a_longer_scan(plain):
    mean, counts, estimate = plain
    raw = np.mean((counts.sum(axis=0) - mean) ** 2)
    assert raw / error(estimate, mean) > 5  # as good as counting five times longer
    assert estimate.values.dtype == np.float32 and estimate.values.shape == mean.shape
    assert (estimate.values >= 0).all() and (estimate.sigma > 0).all()


def test_total_is_that_of_the_data(plain):
    _, counts, estimate = plain
    totals = counts.sum(axis=(0, 2, 3))
    np.testing.assert_allclose(estimate.values.sum(axis=(1, 2)), totals, rtol=1e-4)


def test_sigma_and_intervals_hold(plain):
    mean, _, estimate = plain
    z = (estimate.values - mean) / estimate.sigma
    assert 0.6 < np.sqrt(np.mean(z**2)) < 1.6
    for level in (0.5, 0.9):
        low, high = estimate.interval(level)
        assert (low <= high).all() and (low >= 0).all()
        assert abs(np.mean((low <= mean) & (mean <= high)) - level) < 0.12
    with pytest.raises(ValueError, match="calibrated"):
        estimate.interval(0.9999)


def test_report_says_how(plain):
    report = json.loads(json.dumps(plain[2].report))
    assert report["verdict"] == "pass", report["reasons"]
    assert report["channels_used"] == [1, 2, 3, 4]
    assert len(report["weights_sha256"]) == 64
    assert len(report["figures"]["elements"]) == 3
    assert report["wall_time_s"] > 0


def test_same_seed_same_bytes(plain):
    again = n2n.denoise(plain[1])
    assert again.values.tobytes() == plain[2].values.tobytes()
    assert again.sigma.tobytes() == plain[2].sigma.tobytes()


def test_uneven_rows_are_exposure_not_sample():
    mean = truth(2, 20.0)
    exposure = np.ones((4, *SHAPE))
    exposure[:, 1::2] = 0.5
    counts = measure(mean, exposure=exposure)
    estimate = n2n.denoise(counts, exposure=exposure)
    stripes = estimate.values[:, 1::2].sum() / estimate.values[:, ::2].sum()
    assert stripes == pytest.approx(mean[:, 1::2].sum() / mean[:, ::2].sum(), rel=0.03)
    assert error(estimate, mean) < 0.5 * error(n2n.denoise(counts), mean)


def test_gains_and_exposures_of_channels_combine_as_counts():
    mean = truth(2, 400.0)
    gains = np.array([0.4, 1.0, 1.6])
    exposure = np.ones((3, *SHAPE), dtype=np.float32)
    exposure[2, :, :40] = 0.1  # the strongest channel was almost dead on one side
    counts = measure(mean, gains, exposure=exposure).astype(np.float32)
    summed = sum_channels(counts, np.broadcast_to(exposure[:, None], counts.shape))
    np.testing.assert_allclose(summed.gains[:, 0], gains / gains.mean(), rtol=0.03)
    rate = summed.counts / summed.exposure
    left, right = rate[:, :, :40].sum() / mean[:, :, :40].sum(), rate.sum() / mean.sum()
    assert left == pytest.approx(1, rel=0.03)
    assert right == pytest.approx(1, rel=0.03)


@pytest.mark.parametrize("fault", ["dead", "hot", "noise"])
def test_bad_channel_is_left_out_and_named(fault):
    mean = truth(2, 100.0)
    counts = measure(mean, [1] * 5)
    counts[1] = {
        "dead": 0,
        "hot": counts[1] * 100,
        "noise": np.random.default_rng(9).poisson(np.repeat(np.arange(80) % 20, 72).reshape(SHAPE)),
    }[fault]
    estimate = n2n.denoise(counts)
    assert estimate.report["channels_used"] == [1, 3, 4, 5]
    assert estimate.report["verdict"] == "warn"
    assert any("channel 2" in reason for reason in estimate.report["reasons"])
    assert estimate.values.sum() == pytest.approx(0.8 * mean.sum(), rel=0.03)


def test_channels_that_differ_a_little_all_stay():
    mean = truth(2, 100.0)
    counts = measure(mean, [0.5, 0.8, 1.2, 1.5])
    tilt = np.linspace(0.85, 1.15, SHAPE[1])  # geometry: one side sees a little more
    counts[0] = np.random.default_rng(4).poisson(0.125 * mean * tilt)
    assert n2n.denoise(counts).report["channels_used"] == [1, 2, 3, 4]


def test_unmeasured_stays_unmeasured():
    mean = truth()
    counts = measure(mean).astype(float)
    measured = np.ones(SHAPE, dtype=bool)
    measured[50:] = False
    measured[10, 20] = False
    counts[:, :, 5, 5] = np.nan
    counts[:, :, 60] = 1e6  # whatever stands there must not matter
    estimate = n2n.denoise(counts, measured=measured)
    measured[5, 5] = False
    assert (np.isnan(estimate.values) == ~measured).all()
    assert (np.isnan(estimate.sigma) == ~measured).all()
    assert np.nanmax(estimate.values) < 3 * mean.max()
    low, _ = estimate.interval(0.9)
    assert (np.isnan(low) == ~measured).all()


def test_nothing_measured_is_blocked():
    estimate = n2n.denoise(np.full((2, 1, 8, 8), np.nan))
    assert np.isnan(estimate.values).all()
    assert estimate.report["verdict"] == "block"


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (1, 1, 1, 40), (2, 3, 17, 1), (3, 1, 5, 33), (1, 2, 64, 31)]
)
def test_any_shape_and_all_zero(shape):
    for counts in (np.zeros(shape, dtype=np.uint16), np.random.default_rng(0).poisson(2.0, shape)):
        estimate = n2n.denoise(counts)
        assert estimate.values.shape == shape[1:]
        assert np.isfinite(estimate.values).all() and np.isfinite(estimate.sigma).all()
        total = counts.sum(axis=(0, 2, 3))
        np.testing.assert_allclose(estimate.values.sum(axis=(1, 2)), total, rtol=1e-4, atol=1e-6)


def test_huge_counts_stay_as_they_are():
    mean = truth(1, 1e7)
    estimate = n2n.denoise(measure(mean))
    assert np.abs(estimate.values / mean - 1).max() < 0.05


def test_a_strong_guide_does_not_imprint():
    """Structure in A, none in B: none may appear in B."""
    y, x = np.mgrid[:96, :96]
    strong = 400.0 * (np.sin(x / 4) * np.sin(y / 4) > 0) + 20
    prints = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        trace = rng.poisson(0.8, (96, 96))
        counts = np.stack([rng.poisson(strong), trace])[None]
        guided = n2n.denoise(counts).values[1]
        pattern = (strong > 100) - np.mean(strong > 100)
        prints.append((guided * pattern).sum() / (pattern**2).sum())
    # Contrast of the pattern in the trace map, against its mean of 0.8 counts.
    assert abs(np.mean(prints)) < 0.02


def test_elements_that_share_structure_share_counts():
    """Two elements with one shape are worth nearly twice the counts; strangers change nothing."""
    twin = np.repeat(truth(1, 6.0), 2, axis=0)
    rng = np.random.default_rng(0)
    light = np.ones(twin.shape, dtype=np.float32)
    counts = rng.poisson(twin).astype(np.float32)
    denoiser = load_denoiser("cpu")
    single = denoise_counts(denoiser, counts, light, only("alone", 2)).counts
    joint = denoise_counts(denoiser, counts, light, only("together", 2)).counts
    assert np.mean((joint - twin) ** 2) < 0.9 * np.mean((single - twin) ** 2)
    weights = choose_weights(denoiser, counts, light, rng).weights
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    shared = [way == "together" for way, _ in ANSWERS]
    assert weights[:, shared].sum(axis=1).min() > 0.3


def test_principal_axes_turn_without_stretching():
    maps = np.random.default_rng(0).normal(size=(4, 30, 30)).astype(np.float32)
    maps[1] = maps[0] * 2
    axes = principal_axes(maps)
    np.testing.assert_allclose(axes.T @ axes, np.eye(4), atol=1e-5)
    leading = np.abs(axes[:, -1])
    np.testing.assert_allclose(leading[:2] / leading[0], [1, 2], rtol=0.1)


def test_background_is_taken_off_without_bias():
    mean = truth(2, 30.0)
    under = 10.0 + 5 * mean[::-1] / mean.max()
    rng = np.random.default_rng(0)
    counts = measure(mean + under)
    sidebands = rng.poisson(under / 4 * np.ones((4, 1, 1, 1)))
    for variance in (None, sidebands.astype(float)):
        estimate = n2n.denoise(counts, background=sidebands, background_variance=variance)
        assert estimate.values.mean() == pytest.approx(mean.mean(), rel=0.05)
        raw = np.mean((counts.sum(0) - sidebands.sum(0) - mean) ** 2)
        assert raw / error(estimate, mean) > 5


def test_fine_tuning_never_scores_worse():
    mean = truth()
    estimate = n2n.denoise(measure(mean), fit_steps=6, seed=3)
    tuning = estimate.report["figures"]["fine_tuning"]
    assert tuning["heldout_nll"] <= tuning["heldout_nll_zero_shot"]
    assert 0 <= estimate.report["fit_steps"] <= 6
    again = n2n.denoise(measure(mean), fit_steps=6, seed=3)
    assert again.values.tobytes() == estimate.values.tobytes()
    shipped = load_denoiser("cpu")
    assert shipped.weights.sha256 == estimate.report["weights_sha256"]


def test_paper_recipe_learns():
    mean = truth(1, 60.0, (48, 48))
    counts = measure(mean, [1] * 6).astype(np.float32)
    light = np.ones_like(counts)
    summed = sum_channels(counts, light)
    few = denoise_paper(counts, light, summed, fit_steps=1, start=4, rate=3e-3, device="cpu")
    many = denoise_paper(counts, light, summed, fit_steps=60, start=4, rate=3e-3, device="cpu")
    raw = np.mean((counts.sum(0) - mean) ** 2)
    assert error(many, mean) < 0.7 * min(raw, error(few, mean))
    assert many.report["recipe"] == "paper" and many.report["verdict"] == "warn"
    assert (many.sigma > 0).any()


def test_paper_recipe_says_what_it_needs():
    counts = np.ones((4, 1, 40, 40))
    with pytest.raises(ValueError, match="fit_steps"):
        n2n.denoise(counts, recipe="paper")
    with pytest.raises(ValueError, match="2 or more"):
        n2n.denoise(counts[:1], recipe="paper", fit_steps=1)
    with pytest.raises(ValueError, match="32 x 32"):
        n2n.denoise(counts[..., :20], recipe="paper", fit_steps=1)


def test_scaled_counts_are_counts_of_another_unit(plain):
    _, counts, straight = plain
    scaled = n2n.denoise(counts * 1.0371)
    assert any("whole multiples of 1.037" in reason for reason in scaled.report["reasons"])
    np.testing.assert_allclose(scaled.values, 1.0371 * straight.values, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(scaled.sigma, 1.0371 * straight.sigma, rtol=1e-3, atol=1e-3)


def test_dead_time_correction_is_undone():
    mean = truth(2, 40.0)
    lost = 1 / (1 + 0.6 * mean.sum(axis=0) / mean.sum(axis=0).max())  # of each pixel's time
    counts = measure(mean, exposure=lost)
    correction = np.repeat((1 / lost)[None], 4, axis=0)
    estimate = n2n.denoise(counts * correction[:, None], correction=correction)
    plain = n2n.denoise(counts, exposure=lost)
    np.testing.assert_allclose(estimate.values, plain.values, rtol=1e-3, atol=1e-3)
    bright = mean > 0.6 * mean.max(axis=(1, 2), keepdims=True)
    assert estimate.values[bright].sum() == pytest.approx(mean[bright].sum(), rel=0.03)
    said = " ".join(n2n.denoise(counts * correction[:, None]).report["reasons"])
    assert "whole numbers" in said or "scatter" in said


@pytest.mark.parametrize("factor", [0.3, 2.5])
def test_noise_that_is_not_poisson_is_measured_between_channels(factor):
    """Gaussian noise of a variance that is a multiple of the mean, as corrections leave it."""
    mean = truth(2, 200.0) + 100.0
    rng = np.random.default_rng(0)
    share = np.repeat(mean[None] / 4, 4, axis=0)
    counts = np.maximum(share + np.sqrt(factor * share) * rng.standard_normal(share.shape), 0)
    estimate = n2n.denoise(counts)
    assert estimate.report["figures"]["variance_over_mean"] == pytest.approx(factor, rel=0.1)
    assert estimate.report["verdict"] == "warn"
    z = (estimate.values - mean) / estimate.sigma
    assert 0.6 < np.sqrt(np.mean(z**2)) < 1.6


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        (np.ones((3, 4, 4)), {}, "channel, element, row, col"),
        (np.ones((0, 1, 4, 4)), {}, "channel, element, row, col"),
        (-np.ones((1, 1, 4, 4)), {}, "negative"),
        (np.full((1, 1, 4, 4), np.inf), {}, "infinite"),
        (np.ones((2, 1, 4, 4)), {"exposure": np.ones((3, 4, 4))}, "exposure"),
        (np.ones((2, 1, 4, 4)), {"exposure": -np.ones((2, 4, 4))}, "exposure"),
        (np.ones((2, 1, 4, 4)), {"measured": np.ones((5, 4))}, "measured"),
        (np.ones((2, 1, 4, 4)), {"background": np.ones((1, 4, 4))}, "background"),
        (np.ones((2, 1, 4, 4)), {"correction": np.ones((3, 4, 4))}, "correction"),
        (np.ones((2, 1, 4, 4)), {"correction": -np.ones((2, 4, 4))}, "above 0"),
        (np.ones((2, 1, 4, 4)), {"fit_steps": -1}, "fit_steps"),
        (np.ones((2, 1, 4, 4)), {"recipe": "worst"}, "recipe"),
    ],
)
def test_bad_input_is_named(counts, options, message):
    with pytest.raises(ValueError, match=message):
        n2n.denoise(counts, **options)
