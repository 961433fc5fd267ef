"""Energy stacks: better chemistry, true sigma, honest verdicts, any input."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from inscan.models import gram as gram_module
from inscan.models import stack_resample, subspace
from inscan.models.gram import GramAccumulator
from inscan.models.infer import load_denoiser
from inscan.models.stack_cases import counted, noisy_stack
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


@pytest.mark.parametrize(("counts", "read"), [(200.0, 0.0), (60.0, 6.0)])
def test_counting_and_mixed_noise_by_their_variance(counts, read):
    case = counted(1, counts, read_noise=read, chemistry="smooth", count=40, size=80)
    estimate = subspace.denoise(case.noisy, variance=case.variance)
    assert _rms(estimate.values - case.clean) < 0.3 * _rms(case.noisy - case.clean)
    assert estimate.report["figures"]["noise_ratio"] == pytest.approx(1, abs=0.1)
    low, high = estimate.interval(0.9)
    assert 0.8 < np.mean((low <= case.clean) & (case.clean <= high)) < 0.99


def test_weak_components_are_not_left_shrunk():
    case = noisy_stack(2, 40.0, chemistry="fine", energies=ENERGIES, size=112)
    estimate = subspace.denoise(case.noisy)
    figures = estimate.report["figures"]
    assert figures["rank"] >= 2 and figures["unshrunk"][0] == 1
    assert 1 < max(figures["unshrunk"]) < 1.41
    v = np.linalg.svd(case.clean.reshape(len(ENERGIES), -1), full_matrices=False)[0][:, 1]
    truth = np.tensordot(v, case.clean, axes=1)
    found = np.tensordot(v, estimate.values, axes=1)
    assert np.polyfit(truth.ravel(), found.ravel(), 1)[0] > 0.85


def test_a_stack_larger_than_memory_leaves_little_in_it(monkeypatch, tmp_path):
    for module in (subspace, gram_module):
        monkeypatch.setattr(module, "_BLOCK_BYTES", 2**18)
    monkeypatch.setattr(stack_resample, "_SCRATCH", 0)
    shape = (80, 160, 160)
    path = tmp_path / "stack.npy"
    stack = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    rng = np.random.default_rng(0)
    amount = np.sin(np.arange(160) / 7)[:, None] * np.cos(np.arange(160) / 9)
    for index in range(shape[0]):
        level = 0.5 + index / shape[0] * amount
        stack[index] = level + 0.05 * rng.standard_normal(shape[1:])
    out = tuple(
        np.lib.format.open_memmap(tmp_path / name, "w+", np.float32, shape)
        for name in ("values.npy", "sigma.npy")
    )
    denoiser = load_denoiser("cpu")
    tracemalloc.start()
    gram = GramAccumulator(stack)
    for frames in range(20, 81, 20):
        gram.advance(frames)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.35 * stack.nbytes
    estimate = subspace.denoise(
        stack, gram=gram, register="never", out=(out[0], out[1]), denoiser=denoiser
    )
    assert estimate.values is out[0]
    assert np.isfinite(out[0]).all()


def test_doubts_what_noise_does_not_explain(transmission, result):
    _, estimate = result
    assert estimate.doubtful is not None and estimate.doubtful.shape == estimate.values.shape
    assert estimate.report["doubt"]["share"] < 0.02
    odd = _noisy(transmission, 0.02)
    # A speck that flickers from pixel to pixel as noise would, ten times as strong.
    odd[:, 40:50, 40:50] += 0.3 * np.random.default_rng(9).standard_normal((1, 10, 10))
    doubted = subspace.denoise(odd, variance=0.02**2)
    assert doubted.doubtful is not None
    inside, rest = doubted.doubtful[:, 42:48, 42:48], doubted.doubtful[:, :30]
    assert inside.mean() > 5 * rest.mean()
    assert doubted.report["doubt"]["reasons"] or not doubted.doubtful.any()


def test_the_noise_of_a_measured_stack_is_not_called_white():
    path = Path(__file__).parents[3] / "shared" / "data" / "stxm_als_FeL_123x150x150.npz"
    if not path.is_file():
        pytest.skip(f"measured data are not here: {path.name}")
    with np.load(path, allow_pickle=False) as file:
        frames = next(file[name] for name in file.files if file[name].ndim == 3)
    estimate = subspace.denoise(frames[20:80, 30:110, 30:110], register="never")
    assert estimate.report["verdict"] == "warn"
    assert "not white" in " ".join(estimate.report["reasons"])
