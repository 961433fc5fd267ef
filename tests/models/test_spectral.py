"""Spectrum images: both recipes gain over the raw counts, and say what they did."""

import numpy as np
import pytest
import torch

from inscan.models import spectral


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
    assert abs(best.values.sum() / counts.sum() - 1) < 0.01
    assert best.report["verdict"] == "pass", best.report["reasons"]
    z = (best.values - mean) / best.sigma
    assert 0.5 < np.sqrt(np.mean(z**2)) < 1.6


def test_same_seed_same_bytes(cube, best):
    again = spectral.denoise(cube[1])
    assert np.array_equal(again.values, best.values)
    assert np.array_equal(again.sigma, best.sigma)


def test_the_published_recipe_learns_from_the_cube_itself():
    mean = _cube(size=16, bins=40)
    counts = np.random.default_rng(0).poisson(mean)
    seen = []
    estimate = spectral.denoise(counts, recipe="paper", fit_steps=100, progress=seen.append)
    assert _gain_db(estimate, mean, counts) > 5
    assert estimate.report["figures"]["fit_steps"] == 100
    assert seen == sorted(seen) and len(seen) == 100


def test_a_contrast_image_guides(cube):
    mean, counts = cube
    contrast = np.random.default_rng(1).normal(mean.sum(axis=2), 0.02)
    for estimate in (
        spectral.denoise(counts, contrast=contrast),
        spectral.denoise(counts, contrast=contrast, recipe="paper", fit_steps=3),
    ):
        assert estimate.report["figures"]["guided"]
        assert np.isfinite(estimate.values).all()


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
    rest = np.isfinite(holed)
    assert np.isfinite(estimate.values[rest]).all()
    gain = ((counts - mean)[rest] ** 2).mean() / ((estimate.values - mean)[rest] ** 2).mean()
    assert gain > 8


@pytest.mark.parametrize("shape", [(1, 20, 12), (16, 16, 1), (4, 4, 30)])
def test_small_cubes(shape):
    counts = np.random.default_rng(0).poisson(2.0, shape)
    for estimate in (
        spectral.denoise(counts),
        spectral.denoise(counts, recipe="paper", fit_steps=2),
    ):
        assert estimate.values.shape == shape
        assert np.isfinite(estimate.values).all() and np.isfinite(estimate.sigma).all()


def test_says_what_is_wrong():
    good = np.ones((4, 4, 8))
    with pytest.raises(ValueError, match="fits nothing"):
        spectral.denoise(good, fit_steps=10)
    with pytest.raises(ValueError, match=">= 0"):
        spectral.denoise(-good)
    with pytest.raises(ValueError, match="no counts"):
        spectral.denoise(np.zeros((4, 4, 8)))
    with pytest.raises(ValueError, match="contrast has shape"):
        spectral.denoise(good, contrast=np.ones((3, 3)))
