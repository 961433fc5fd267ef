"""Frames that moved are noticed, found to a fraction of a pixel, and put back; others stay."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from inscan.models import stack_resample, subspace
from inscan.models.gram import GramAccumulator
from inscan.models.infer import load_denoiser
from inscan.models.stack_cases import jittered
from inscan.models.stack_motion import detect_motion, find_motion
from inscan.models.stack_resample import moved, noise_kept, put_back

COUNT, SIZE = 30, 80


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def jitter():
    return jittered(3, 20.0, 4.0, count=COUNT, size=SIZE)


@pytest.fixture(scope="module")
def registered(jitter):
    return subspace.denoise(jitter[0].noisy)


def _rms(x):
    return float(np.sqrt(np.nanmean(np.square(x))))


def test_looking_elsewhere_is_exact_for_whole_pixels_and_nearly_so_between():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((40, 50))
    there = moved(noise, (3, -2), fill=np.nan)
    assert np.allclose(there[:-3, 2:], noise[3:, :-2], atol=1e-5)
    assert np.isnan(there[-3:]).all() and np.isnan(there[:, :2]).all()
    smooth = gaussian_filter(rng.standard_normal((70, 60)), 2.0)
    back = moved(moved(smooth, (0.4, 0.3)), (-0.4, -0.3))
    assert np.abs(back - smooth)[20:-20, 20:-20].max() < 0.01 * smooth.std()
    y, x = np.mgrid[:40, :50].astype(float)
    larger = moved(y + 10 * x, (1.0, 0.5), 1.1)
    expected = (19.5 + 1.1 * (y - 19.5) + 1.0) + 10 * (24.5 + 1.1 * (x - 24.5) + 0.5)
    assert np.abs(larger - expected)[8:-8, 8:-8].max() < 0.05


def test_noise_stays_nearly_white_and_its_loss_is_known():
    rng = np.random.default_rng(1)
    shifts = rng.uniform(-3, 3, (30, 2))
    noise = rng.standard_normal((30, 64, 64))
    there = np.stack([moved(n, s) for n, s in zip(noise, shifts, strict=True)])[:, 16:-16, 16:-16]
    assert there.std() == pytest.approx(noise_kept(shifts), abs=0.01)
    assert noise_kept(shifts) > 0.9
    assert abs(np.mean(there[:, 1:] * there[:, :-1])) < 0.1
    power = moved(np.ones((64, 64)), (0.5, 0.5), variance=True)
    assert power[32, 32] == pytest.approx(noise_kept(np.array([[0.5, 0.5]])) ** 2, rel=1e-4)


def test_frames_are_found_as_well_as_is_said(jitter):
    case, _, shifts = jitter
    motion = find_motion(case.noisy, np.full(COUNT, 1 / case.sigma), load_denoiser("cpu"))
    error = motion.shift - shifts
    error -= error.mean(axis=0)
    assert motion.moving
    assert _rms(error) < 0.35
    assert _rms(error) < 2 * _rms(motion.sigma)


def test_a_stack_that_moved_is_registered_and_says_so(jitter, registered):
    case, _, _ = jitter
    figures = registered.report["figures"]["motion"]
    assert figures["registered"] and figures["rms_px"] > 2
    assert "moved" in " ".join(registered.report["reasons"])
    blurred = subspace.denoise(case.noisy, register="never")
    assert blurred.report["verdict"] == "warn"
    assert "not registered" in " ".join(blurred.report["reasons"])
    still = subspace.denoise(jitter[1]).values
    inside = (slice(None), slice(10, -10), slice(10, -10))
    # The result lies where the median frame was thought to be, a fraction of a pixel away.
    away = np.asarray(figures["shifts_px"]) - jitter[2]
    placed = np.stack([moved(v, -away.mean(axis=0)) for v in np.nan_to_num(registered.values)])
    lost = _rms((blurred.values - case.clean)[inside]) - _rms((still - case.clean)[inside])
    left = _rms((placed - case.clean)[inside]) - _rms((still - case.clean)[inside])
    assert left < 0.3 * lost


def test_borders_that_some_frames_lack_are_doubtful(registered):
    assert registered.doubtful is not None
    assert registered.doubtful[:, 0].any()
    assert not registered.doubtful[:, 20:-20, 20:-20].all(axis=0).any()
    assert 0 < registered.report["doubt"]["share"] < 0.3
    assert registered.report["doubt"]["reasons"]


def test_a_stack_that_did_not_move_is_not_touched(jitter):
    still = jitter[1]
    free = subspace.denoise(still)
    kept = subspace.denoise(still, register="never")
    assert not free.report["figures"]["motion"]["registered"]
    assert np.array_equal(free.values, kept.values)
    assert np.array_equal(free.sigma, kept.sigma)


def test_the_magnification_of_a_zone_plate_is_found():
    case, _, _ = jittered(1, 10.0, 1.0, zone_plate=True, count=24, size=128)
    motion = find_motion(
        case.noisy, np.full(24, 1 / case.sigma), load_denoiser("cpu"), case.energies
    )
    assert motion.slope == pytest.approx(-1.0, abs=0.15)


def test_frames_too_small_or_too_few_to_tell():
    data = np.random.default_rng(0).standard_normal((6, 12, 40)).astype(np.float32)
    gram = GramAccumulator(data)
    gram.advance(6)
    assert detect_motion(data, gram, np.ones(6)) is None


def test_what_is_put_back_lies_in_a_file_when_it_is_large(monkeypatch, jitter):
    monkeypatch.setattr(stack_resample, "_SCRATCH", 0)
    case, _, shifts = jitter
    there = np.ones(case.noisy.shape, dtype=bool)
    there[:, 40, 40] = False
    aligned, inside = put_back(case.noisy, there, shifts, np.ones(COUNT))
    assert isinstance(aligned, np.memmap)
    assert np.isfinite(aligned).all()
    # A dead pixel is dead wherever it was moved to, and its neighbours are not trusted.
    assert (~inside[:, 30:50, 30:50]).sum(axis=(1, 2)).min() >= 1
    aligned_whole = put_back(case.noisy, None, np.zeros((COUNT, 2)), np.ones(COUNT))[0]
    assert np.allclose(aligned_whole, case.noisy, atol=1e-3)


def test_says_what_is_wrong():
    with pytest.raises(ValueError, match="register"):
        subspace.denoise(np.ones((4, 8, 8)), register="always")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="energies"):
        subspace.denoise(np.ones((4, 8, 8)), energies=[1.0, 2.0])
