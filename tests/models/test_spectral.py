"""Spectrum images: every recipe gains over the raw counts, and says what it did and doubts."""

import numpy as np
import pytest
import torch

from inscan.models import spectral
from inscan.models.spectral_phantoms import spectrum_phantom
from inscan.models.spectral_trust import compare


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _cube(size=32, bins=48, counts=20.0):
    """Three phases with lines of their own on a common continuum; rows, columns, bins."""
    r, c = np.indices((size, size)) / size
    disc = ((r - 0.35) ** 2 + (c - 0.4) ** 2 < 0.06).astype(float)
    stripe = (np.abs(r + c - 1.35) < 0.12) * 0.8
    phases = np.stack([1 - 0.6 * disc, disc, stripe])
    e = np.arange(bins)
    lines = [(8, 22), (15, 30), (12, 38)]
    spectra = np.stack(
        [sum(np.exp(-(((e - at) / 1.6) ** 2)) for at in pair) + 0.1 for pair in lines]
    )
    mean = np.einsum("prc,pe->rce", phases, spectra)
    return mean * counts / mean.sum(axis=2).mean()


@pytest.fixture(scope="module")
def cube():
    mean = _cube()
    return mean, np.random.default_rng(0).poisson(mean)


def _gain_db(estimate, mean, counts):
    error = ((estimate.values - mean) ** 2).mean()
    return 10 * np.log10(((counts - mean) ** 2).mean() / error)


@pytest.fixture(scope="module")
def best(cube):
    return spectral.denoise(cube[1])


def test_the_default_gains_over_ten_decibels(cube, best):
    mean, counts = cube
    assert _gain_db(best, mean, counts) > 10
    assert best.values.shape == counts.shape and (best.values >= 0).all()
    assert abs(best.values.sum() / counts.sum() - 1) < 1e-3
    assert best.report["verdict"] == "pass", best.report["reasons"]
    assert best.report["doubt"]["share"] == 0 and not best.doubtful.any()


def test_intervals_hold_the_truth_as_often_as_they_say(cube, best):
    mean, _ = cube
    z = (best.values - mean) / best.sigma
    assert 0.5 < np.sqrt(np.mean(z**2)) < 1.6
    for level in (0.6827, 0.9):
        low, high = best.interval(level)
        assert (low <= best.values).all() and (best.values <= high).all()
        assert abs(((low <= mean) & (mean <= high)).mean() - level) < 0.09


def test_same_seed_same_bytes(cube, best):
    again = spectral.denoise(cube[1])
    assert np.array_equal(again.values, best.values)
    assert np.array_equal(again.sigma, best.sigma)


def test_integers_floats_and_huge_counts_are_the_same_method(cube, best):
    as_bytes = spectral.denoise(cube[1].astype(np.uint16))
    assert np.allclose(as_bytes.values, best.values, rtol=1e-4, atol=1e-6)
    huge = spectral.denoise(cube[1].astype(np.float64) * 1e6)
    assert np.isfinite(huge.values).all() and np.isfinite(huge.sigma).all()
    assert huge.report["verdict"] != "pass"  # a million counts never scatter like that


def test_results_go_where_the_caller_wants_them(cube, best, tmp_path):
    mapped = np.lib.format.open_memmap(
        tmp_path / "cube.npy", mode="w+", dtype=np.uint16, shape=cube[1].shape
    )
    mapped[:] = cube[1]
    out = (np.empty(cube[1].shape, np.float32), np.empty(cube[1].shape, np.float32))
    estimate = spectral.denoise(mapped, out=out)
    assert estimate.values is out[0] and estimate.sigma is out[1]
    assert np.allclose(out[0], best.values, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="out must be"):
        spectral.denoise(cube[1], out=(out[0][:2], out[1]))


def test_weak_components_of_alike_elements_are_found():
    phantom = spectrum_phantom("battery particles", 0, counts=400.0)
    counts = np.random.default_rng(0).poisson(phantom.mean)
    estimate = spectral.denoise(counts)
    assert estimate.report["figures"]["rank"] >= 5
    for window in phantom.windows:  # no line map is worse than what was counted
        true = phantom.mean[..., window].sum(axis=2)
        raw = ((counts[..., window].sum(axis=2) - true) ** 2).mean()
        assert ((estimate.values[..., window].sum(axis=2) - true) ** 2).mean() < 0.6 * raw


def test_noise_alone_has_one_spectrum():
    mean = np.ones((40, 40, 1)) * np.linspace(0.1, 2, 60)
    counts = np.random.default_rng(3).poisson(mean)
    estimate = spectral.denoise(counts)
    assert estimate.report["figures"]["components_significant"] <= 2
    assert _gain_db(estimate, mean, counts) > 15


def test_both_autoencoders_learn_from_the_cube_itself():
    mean = _cube(size=16, bins=40)
    counts = np.random.default_rng(0).poisson(mean)
    seen = []
    gains = {}
    for recipe in ("autoencoder", "paper"):
        estimate = spectral.denoise(counts, recipe=recipe, fit_steps=80, progress=seen.append)
        gains[recipe] = _gain_db(estimate, mean, counts)
        assert estimate.report["figures"]["fit_steps"] == 80
        assert any("uncalibrated" in reason for reason in estimate.report["reasons"])
    assert min(gains.values()) > 5, gains
    assert len(seen) == 2 * 81 and seen[:81] == sorted(seen[:81])


def test_a_contrast_image_that_knows_helps(cube, best):
    mean, counts = cube
    noise = np.random.default_rng(1).normal(0, 0.02, mean.shape[:2])
    contrast = mean[..., 30] / mean[..., 30].max() + noise
    estimate = spectral.denoise(counts, contrast=contrast)
    assert estimate.report["figures"]["guided"]
    assert len(estimate.report["figures"]["components_guided"]) > 0
    assert _gain_db(estimate, mean, counts) > _gain_db(best, mean, counts)


def test_an_unrelated_contrast_image_leaves_no_trace(cube, best):
    mean, counts = cube
    r, c = np.indices(mean.shape[:2])
    stripes = (r // 4 % 2).astype(float)
    estimate = spectral.denoise(counts, contrast=stripes)
    change = (estimate.values - best.values).sum(axis=2)
    trace = np.corrcoef(change.ravel() + 1e-9 * c.ravel(), stripes.ravel())[0, 1]
    assert abs(trace) < 0.1
    assert _gain_db(estimate, mean, counts) > _gain_db(best, mean, counts) - 0.2


def test_a_line_that_the_result_lost_is_doubted(cube, best):
    """Counts of a small place that no component explains are pointed at."""
    counts = cube[1].copy()
    counts[8:16, 8:16, 44] += 3
    fit = compare(counts, np.ones(counts.shape[:2], dtype=bool), best.values)
    marked = fit.doubtful(counts.shape)
    assert marked[8:16, 8:16, 44].all()
    assert marked.sum() == 64
    assert not compare(cube[1], np.ones(counts.shape[:2], bool), best.values).far.any()


@pytest.mark.parametrize(
    ("change", "says"),
    [(lambda y: y * 0.3, "whole numbers"), (lambda y: y * 4, "times as much around")],
)
def test_counts_that_are_no_counts_are_recognised(cube, change, says):
    estimate = spectral.denoise(change(cube[1].astype(float)))
    assert estimate.report["verdict"] == "warn"
    assert any(says in reason for reason in estimate.report["reasons"])


def test_many_bins_keep_their_resolution():
    mean = _cube(size=24, bins=400, counts=200.0)
    counts = np.random.default_rng(2).poisson(mean)
    estimate = spectral.denoise(counts)
    assert _gain_db(estimate, mean, counts) > 12
    line = estimate.values.sum(axis=(0, 1))
    assert np.corrcoef(line, mean.sum(axis=(0, 1)))[0, 1] > 0.99


def test_pixels_not_measured_stay_empty(cube):
    mean, counts = cube
    holed = counts.astype(float)
    holed[5:9, 20:24] = np.nan
    estimate = spectral.denoise(holed)
    assert np.isnan(estimate.values[5:9, 20:24]).all()
    assert estimate.doubtful is not None and not estimate.doubtful[5:9, 20:24].any()
    assert estimate.report["figures"]["pixels_not_measured"] == 16
    rest = np.isfinite(holed)
    assert np.isfinite(estimate.values[rest]).all()
    gain = ((counts - mean)[rest] ** 2).mean() / ((estimate.values - mean)[rest] ** 2).mean()
    assert gain > 8


@pytest.mark.parametrize("shape", [(1, 20, 12), (16, 16, 1), (4, 4, 30), (1, 1, 7), (3, 40, 2)])
def test_small_cubes(shape):
    counts = np.random.default_rng(0).poisson(2.0, shape)
    for estimate in (
        spectral.denoise(counts),
        spectral.denoise(counts, recipe="paper", fit_steps=2),
    ):
        assert estimate.values.shape == shape
        assert np.isfinite(estimate.values).all() and np.isfinite(estimate.sigma).all()
        low, high = estimate.interval(0.9)
        assert (low <= high).all()


def test_repeats_of_one_spectrum_are_averaged_not_copied():
    mean = np.linspace(0.5, 20, 200)
    counts = np.random.default_rng(0).poisson(mean, (4, 4, 200))
    estimate = spectral.denoise(counts)
    assert _gain_db(estimate, mean, counts) > 8


def test_one_count_in_the_whole_cube():
    counts = np.zeros((12, 12, 20))
    counts[3, 4, 5] = 1
    estimate = spectral.denoise(counts)
    assert np.isfinite(estimate.values).all()
    assert estimate.report["verdict"] == "warn"


def test_says_what_is_wrong():
    good = np.ones((4, 4, 8))
    with pytest.raises(ValueError, match="fits nothing"):
        spectral.denoise(good, fit_steps=10)
    with pytest.raises(ValueError, match="recipe must be"):
        spectral.denoise(good, recipe="other")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=">= 0"):
        spectral.denoise(-good)
    with pytest.raises(ValueError, match="no counts"):
        spectral.denoise(np.zeros((4, 4, 8)))
    with pytest.raises(ValueError, match="no counts"):
        spectral.denoise(np.full((4, 4, 8), np.nan))
    with pytest.raises(ValueError, match="real numbers"):
        spectral.denoise(good.astype(complex))
    with pytest.raises(ValueError, match="contrast has shape"):
        spectral.denoise(good, contrast=np.ones((3, 3)))
    with pytest.raises(ValueError, match="no finite value"):
        spectral.denoise(good, contrast=np.full((4, 4), np.nan))
