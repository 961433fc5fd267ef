"""Energy stacks: better chemistry, true sigma, honest verdicts, any input."""

import numpy as np
import pytest
import torch

from inscan.models import subspace
from inscan.models.gram import GramAccumulator
from inscan.models.xanes import edge_energy, optical_density
from inscan.profiles.samples import battery_xanes, ni_energies_ev

ENERGIES = ni_energies_ev(41)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def sample():
    return battery_xanes(3, chemistry="smooth", size=96)


@pytest.fixture(scope="module")
def transmission(sample):
    return np.exp(-sample.optical_density(ENERGIES))


def _noisy(clean, sigma, seed=0):
    noise = np.random.default_rng(seed).standard_normal(clean.shape)
    return (clean + sigma * noise).astype(np.float32)


def _rms(x):
    return float(np.sqrt(np.mean(np.square(x))))


@pytest.fixture(scope="module")
def result(transmission):
    noisy = _noisy(transmission, 0.05)
    return noisy, subspace.denoise(noisy)


def test_removes_most_of_the_noise_and_finds_its_level(transmission, result):
    noisy, estimate = result
    assert estimate.values.shape == noisy.shape
    assert _rms(estimate.values - transmission) < 0.2 * _rms(noisy - transmission)
    figures = estimate.report["figures"]
    assert figures["noise_median"] == pytest.approx(0.05, rel=0.05)
    assert 2 <= figures["rank"] <= 4
    assert estimate.report["verdict"] == "pass", estimate.report["reasons"]
    assert len(estimate.report["weights_sha256"]) == 64


def test_sigma_and_intervals_hold_what_they_say(transmission, result):
    _, estimate = result
    z = (estimate.values - transmission) / estimate.sigma
    assert 0.6 < _rms(z) < 1.4
    low, high = estimate.interval(0.9)
    assert 0.82 < np.mean((transmission >= low) & (transmission <= high)) < 0.99


def test_the_chemistry_comes_out(sample, result):
    noisy, estimate = result
    truth = sample.edge_energy()
    solid = sample.jump > 0.3
    seen = edge_energy(optical_density(estimate.values)[0], ENERGIES, min_jump=0.05).energy
    raw = edge_energy(optical_density(noisy)[0], ENERGIES, min_jump=0.05).energy
    good = solid & np.isfinite(seen)
    assert good.sum() > 0.95 * solid.sum()
    assert np.corrcoef(seen[good], truth[good])[0, 1] > 0.8
    both = good & np.isfinite(raw)
    assert _rms((seen - truth)[both]) < 0.4 * _rms((raw - truth)[both])


def test_noise_that_differs_between_pixels_and_energies(transmission):
    rows = np.linspace(0.3, 1.7, transmission.shape[1])[None, :, None]
    energies = np.linspace(0.5, 1.5, len(ENERGIES))[:, None, None]
    sigma = 0.04 * rows * energies
    noisy = _noisy(transmission, sigma)
    told = subspace.denoise(noisy, variance=np.broadcast_to(sigma**2, noisy.shape))
    untold = subspace.denoise(noisy, recipe="paper")
    assert _rms(told.values - transmission) < 0.9 * _rms(untold.values - transmission)
    assert told.report["figures"]["noise_ratio"] == pytest.approx(1, abs=0.05)
    z = (told.values - transmission) / told.sigma
    assert 0.5 < _rms(z[:, :30]) < 1.6
    assert 0.5 < _rms(z[:, -30:]) < 1.6
    # Not told, the noise of energies and pixels is measured.
    measured = subspace.denoise(noisy)
    assert _rms(measured.values - transmission) < 1.15 * _rms(told.values - transmission)


def test_a_wrong_variance_is_noticed(transmission):
    estimate = subspace.denoise(_noisy(transmission, 0.05), variance=0.02**2)
    assert estimate.report["verdict"] == "warn"
    assert "given variance" in " ".join(estimate.report["reasons"])
    assert _rms(estimate.values - transmission) < 0.25 * 0.05


def test_correlated_noise_is_called_by_its_name(transmission):
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(np.random.default_rng(0).standard_normal(transmission.shape), (0, 1, 1))
    estimate = subspace.denoise((transmission + 0.1 * noise).astype(np.float32))
    assert estimate.report["verdict"] == "warn"
    assert "not white" in " ".join(estimate.report["reasons"])


def test_the_published_recipe_works_too(transmission):
    noisy = _noisy(transmission, 0.02)
    estimate = subspace.denoise(noisy, recipe="paper")
    assert estimate.report["recipe"] == "paper"
    assert _rms(estimate.values - transmission) < 0.4 * 0.02


def test_streamed_gram_matrices_give_the_same_result(result):
    noisy, estimate = result
    gram = GramAccumulator(noisy)
    for frames in (1, 7, 8, 30, len(noisy)):
        gram.advance(frames)
    streamed = subspace.denoise(noisy, gram=gram)
    # Sums in another order: the last bits differ, no more.
    assert np.abs(streamed.values - estimate.values).max() < 1e-3
    again = subspace.denoise(noisy)
    assert np.array_equal(again.values, estimate.values)
    assert np.array_equal(again.sigma, estimate.sigma)


def test_writes_into_mapped_files(tmp_path, result):
    noisy, estimate = result
    source = tmp_path / "stack.npy"
    np.save(source, noisy)
    out = tuple(
        np.lib.format.open_memmap(tmp_path / name, "w+", np.float32, noisy.shape)
        for name in ("values.npy", "sigma.npy")
    )
    mapped = np.load(source, mmap_mode="r", allow_pickle=False)
    subspace.denoise(mapped, out=(out[0], out[1]))
    assert np.array_equal(out[0], estimate.values)
    assert np.array_equal(out[1], estimate.sigma)


def test_what_was_not_measured_stays_so(transmission, result):
    noisy = result[0].copy()
    measured = np.ones(noisy.shape, dtype=bool)
    measured[:, :4, :10] = False  # pixels never seen
    measured[11] = False  # a frame that was lost
    measured[20:, 50:56, 50:56] = False  # pixels seen at half of the energies
    noisy[~measured] = 1e6
    estimate = subspace.denoise(noisy, measured=measured)
    assert np.isnan(estimate.values[:, :4, :10]).all()
    assert np.isnan(estimate.sigma[11]).all()
    rest = np.ones(noisy.shape, dtype=bool)
    rest[:, :4, :10], rest[11] = False, False
    assert np.isfinite(estimate.values[rest]).all()
    error = np.abs(estimate.values - transmission)
    assert error[rest].mean() < 0.02
    assert error[30:, 50:56, 50:56].mean() < 0.06
    holed = np.where(measured, noisy, np.nan)
    assert np.array_equal(subspace.denoise(holed).values, estimate.values, equal_nan=True)


@pytest.mark.parametrize("shape", [(2, 24, 24), (1, 16, 16), (12, 1, 30), (5, 3, 3), (30, 1, 1)])
def test_small_stacks(shape):
    clean = np.ones(shape) * np.linspace(1, 2, shape[0])[:, None, None]
    estimate = subspace.denoise(_noisy(clean, 0.1))
    assert estimate.values.shape == shape
    assert np.isfinite(estimate.values).all() and np.isfinite(estimate.sigma).all()
    assert _rms(estimate.values - clean) < 0.2


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5])
def test_constant_stacks_stay_as_they_are(value):
    estimate = subspace.denoise(np.full((20, 16, 16), value, dtype=np.float32))
    assert np.allclose(estimate.values, value, atol=1e-4)
    assert np.allclose(estimate.sigma, 0, atol=1e-3)


def test_says_what_is_wrong():
    good = np.ones((3, 4, 4), dtype=np.float32)
    with pytest.raises(ValueError, match=r"\(energy, row, col\)"):
        subspace.denoise(good[0])
    with pytest.raises(ValueError, match="measured has shape"):
        subspace.denoise(good, measured=np.ones((5, 5), dtype=bool))
    with pytest.raises(ValueError, match="nothing of the stack"):
        subspace.denoise(np.full((3, 4, 4), np.nan))
    with pytest.raises(ValueError, match="above 0"):
        subspace.denoise(good, variance=np.zeros((3, 4, 4)))
    with pytest.raises(ValueError, match="recipe"):
        subspace.denoise(good, recipe="other")  # type: ignore[arg-type]
