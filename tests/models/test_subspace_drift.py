"""What the beam did between flat and frame is taken out, and nothing else."""

import numpy as np
import pytest
import torch

from inscan.models import subspace
from inscan.models.flat_drift import divided, empty_pixels, find_drift
from inscan.models.stack_cases import drifting, noisy_stack


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def case():
    return drifting(1, 2000.0, count=30, size=96)


def _rms(x):
    return float(np.sqrt(np.mean(np.square(x))))


def test_empty_pixels_are_those_without_sample(case):
    empty = empty_pixels(case.noisy)
    assert empty.mean() > 0.2
    assert (case.sample.jump[empty] > 0).mean() < 0.02
    assert not empty_pixels(100 * case.noisy).any()
    assert not empty_pixels(np.full((5, 20, 20), 0.3)).any()


def test_drift_is_taken_out_and_the_intervals_know_the_rest(case):
    left = subspace.denoise(case.noisy, variance=case.variance, drift="never")
    found = subspace.denoise(case.noisy, variance=case.variance, flats=case.flats)
    empty = case.sample.jump == 0
    before, after = left.values - case.clean, found.values - case.clean
    assert _rms(after) < 0.75 * _rms(before)
    assert _rms(after[:, empty]) < 0.6 * _rms(before[:, empty])
    low, high = found.interval(0.9)
    assert 0.8 < np.mean((low <= case.clean) & (case.clean <= high)) < 0.99
    figures = found.report["figures"]["drift"]
    assert figures["rms"] > 0.002 and figures["from_flats"] >= 1
    assert "drifted" in " ".join(found.report["reasons"])


def test_without_flats_flux_and_slopes_still_go():
    rng = np.random.default_rng(0)
    clean = drifting(2, 1e6, drift=0.0, count=24, size=64).clean
    flux = 1 + 0.02 * np.cumsum(rng.standard_normal(24)) / 5
    slope = 1 + 0.02 * rng.standard_normal(24)[:, None, None] * np.linspace(-1, 1, 64)
    noisy = clean * flux[:, None, None] * slope + 0.01 * rng.standard_normal(clean.shape)
    drift = find_drift(noisy, empty_pixels(noisy))
    assert drift is not None and drift.found
    assert _rms(divided(noisy, drift) - clean) < 1.1 * 0.01
    assert _rms(noisy - clean) > 1.5 * 0.01


def test_a_steady_beam_is_left_alone():
    clean = drifting(1, 1e6, drift=0.0, count=24, size=64).clean
    noisy = clean + 0.02 * np.random.default_rng(3).standard_normal(clean.shape)
    free = subspace.denoise(noisy.astype(np.float32))
    kept = subspace.denoise(noisy.astype(np.float32), drift="never")
    assert np.array_equal(free.values, kept.values)
    assert not free.report["figures"]["drift"]["fields"]


def test_a_stack_that_is_no_transmission_is_left_alone():
    case = noisy_stack(0, 20.0, energies=np.linspace(8280, 8450, 20), size=48)
    free = subspace.denoise(case.noisy)
    assert "drift" not in free.report["figures"]
    assert np.array_equal(free.values, subspace.denoise(case.noisy, drift="never").values)


def test_says_what_is_wrong_with_flats(case):
    with pytest.raises(ValueError, match="flats must"):
        subspace.denoise(case.noisy, flats=case.flats[:, :10])
    with pytest.raises(ValueError, match="drift"):
        subspace.denoise(case.noisy, drift="yes")  # type: ignore[arg-type]
    few = find_drift(case.noisy, empty_pixels(case.noisy), flats=case.flats[:2])
    assert few is not None and few.flats == 0
