"""Deconvolution: sharper than the counts, told where to stop by the counts, honest about the rest."""

import numpy as np
import pytest
import torch

from inscan.models import superres
from inscan.models.deconvolution import (
    deconvolve,
    kept_counts,
    plug_and_play,
    richardson_lucy,
    stop_by_held_out,
    wiener,
)
from inscan.models.infer import load_denoiser
from inscan.models.superres_input import ForwardModel
from inscan.profiles.samples import cells

PEAK = 500.0


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def scene():
    """Truth, and counts behind a probe of 3 pixels; cells, which nothing was trained on."""
    maps = cells(1, width=24.0, pixel_size=0.125).maps[:2, 64:128, 64:128]
    truth = maps / maps.max(axis=(1, 2), keepdims=True)
    forward = ForwardModel(1, 3.0, "point")
    counts = np.random.default_rng(0).poisson(forward.apply(truth) * PEAK).astype(np.float32)
    return truth, forward, counts


@pytest.fixture(scope="module")
def estimate(scene):
    return deconvolve(scene[2], probe=3.0)


def _error(values, truth):
    return float(((values - truth * PEAK) ** 2).mean())


def test_sharper_than_the_counts_and_than_wiener(scene, estimate):
    truth, forward, counts = scene
    ours = _error(estimate.values, truth)
    assert ours < 0.8 * _error(counts, truth)
    best = min(_error(wiener(counts, forward, r), truth) for r in np.geomspace(1e-3, 1, 7))
    assert ours < best
    assert np.allclose(estimate.values.sum((1, 2)), counts.sum((1, 2)), rtol=0.01)


def test_sigma_and_report(scene, estimate):
    truth = scene[0] * PEAK
    low, high = estimate.interval(0.9)
    assert 0.75 < np.mean((low <= truth) & (truth <= high)) < 0.99
    report = estimate.report
    assert report["verdict"] in ("pass", "warn")
    assert set(report["solver"]) <= {"network", "richardson_lucy"} and len(report["solver"]) == 2
    assert all(0.7 < chi2 < 1.6 for chi2 in report["figures"]["consistency_chi2"])
    assert estimate.doubtful is not None and estimate.doubtful.shape == truth.shape
    assert 0 <= report["doubt"]["share"] < 0.3


def test_steps_stop_where_held_out_counts_do(scene):
    truth, forward, counts = scene
    steps, deviance = stop_by_held_out(counts, forward, np.random.default_rng(0))
    assert steps.shape == (2,) and (steps > 2).all() and np.isfinite(deviance).all()
    stopped = _error(richardson_lucy(counts, forward, steps), truth)
    assert stopped < _error(richardson_lucy(counts, forward, 1), truth)
    assert stopped < _error(richardson_lucy(counts, forward, 400), truth)


def test_richardson_lucy_climbs_the_likelihood_and_keeps_the_total(scene):
    _, forward, counts = scene

    def likelihood(x):
        folded = forward.apply(x)
        return float((counts * np.log(folded) - folded).sum())

    few, more = (richardson_lucy(counts, forward, n) for n in (2, 6))
    assert likelihood(more) > likelihood(few)
    assert more.sum() == pytest.approx(counts.sum(), rel=0.02) and more.min() >= 0


def test_thinning_keeps_four_fifths(scene):
    kept = kept_counts(scene[2], np.random.default_rng(0))
    assert kept.sum() / scene[2].sum() == pytest.approx(0.8, abs=0.01)
    assert (kept <= scene[2]).all()


def test_same_seed_same_bytes_and_a_measured_probe(scene):
    counts = scene[2][:1, :32, :32]
    width = 3.0 / 2.354820045
    at = np.arange(-6, 7)
    kernel = np.exp(-0.5 * (at[:, None] ** 2 + at[None] ** 2) / width**2)
    first, again = (deconvolve(counts, probe=kernel, seed=4) for _ in range(2))
    assert np.array_equal(first.values, again.values)
    assert np.array_equal(first.sigma, again.sigma)
    gaussian = deconvolve(counts, probe=3.0, seed=4).values
    inner = (slice(None), slice(6, -6), slice(6, -6))
    assert np.abs(first.values - gaussian)[inner].mean() < 0.1 * gaussian[inner].mean()


def test_one_name_for_both_variants():
    assert superres.deconvolve is deconvolve


def test_gaps_blocks_and_odd_maps(scene):
    counts = scene[2][:, :24, :24].astype(float).copy()
    counts[:, 3:6, 4:9] = np.nan
    found = deconvolve(counts, probe=2.0, method="richardson_lucy")
    assert np.isnan(found.values[:, 3:6, 4:9]).all() and np.isfinite(found.values[:, 10:]).all()
    assert found.report["figures"]["pixels_not_measured"] == 15
    sharp = deconvolve(counts, probe=0.5)
    assert sharp.report["verdict"] == "block" and np.isnan(sharp.values).all()
    nothing = deconvolve(np.full((1, 8, 8), np.nan), probe=2.0)
    assert nothing.report["verdict"] == "block"
    empty = deconvolve(np.zeros((1, 16, 16)), probe=2.0)
    assert np.isfinite(empty.values).all() and empty.values.max() < 0.5
    line = deconvolve(np.full((1, 1, 20), 9), probe=2.0)
    assert np.allclose(line.values, 9, rtol=0.3)


def test_says_what_is_wrong(scene):
    counts = scene[2]
    with pytest.raises(ValueError, match="method"):
        deconvolve(counts, probe=2.0, method="other")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=">= 0"):
        deconvolve(-counts, probe=2.0)
    with pytest.raises(ValueError, match="probe"):
        deconvolve(counts, probe=-1.0)
    with pytest.raises(ValueError, match="probe"):
        wiener(counts, ForwardModel(1, None, "box"), 0.1)


def test_the_network_alone_keeps_totals(scene):
    _, forward, counts = scene
    found = plug_and_play(counts, forward, load_denoiser("cpu"))
    assert np.allclose(found.sum((1, 2)), counts.sum((1, 2)), rtol=1e-6) and found.min() >= 0
