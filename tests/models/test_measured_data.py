"""The methods on measured data, where it lies beside the project: held-out counts, and honesty."""

from pathlib import Path

import numpy as np
import pytest
import torch

from inscan.models import n2n, spectral, subspace

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

pytestmark = [
    pytest.mark.measured,
    pytest.mark.skipif(not DATA.is_dir(), reason="the measured data (../shared/data) are not here"),
]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _file(name: str) -> Path:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"{name} is not among the measured data")
    return path


def _unbiased_error(values, held, scale):
    return float(((values * scale - held) ** 2 - held).mean())


def test_three_detector_elements_predict_the_fourth():
    with np.load(_file("aps2ide_axo_std_11x11_4det.npz")) as stored:
        spectra = stored["spectra"]
    # Ca, Fe and Cu at 9.6 eV a channel.
    lines = [slice(368, 403), slice(648, 685), slice(820, 859)]
    counts = np.stack([spectra[..., line].sum(axis=-1) for line in lines], axis=-1)
    counts = counts.transpose(2, 3, 0, 1)
    estimate = n2n.denoise(counts[:3])
    raw, held = counts[:3].sum(axis=0), counts[3].astype(float)
    scale = held.sum(axis=(1, 2), keepdims=True) / raw.sum(axis=(1, 2), keepdims=True)
    # The film is uniform: nearly all that differs between pixels is counting noise.
    assert _unbiased_error(estimate.values, held, scale) < 0.5 * float((raw * scale**2).mean())


def test_a_spectrum_image_predicts_its_held_out_counts():
    with np.load(_file("eds_fept_core_shell_64x64.npz")) as stored:
        cube = np.zeros(int(np.prod(stored["shape"])), dtype=np.uint16)
        cube[stored["idx"]] = stored["val"]
        cube = cube.reshape(stored["shape"])
    cube = cube[..., :512].reshape(64, 64, 256, 2).sum(axis=3, dtype=np.int64)
    seen = np.random.default_rng(0).binomial(cube, 0.5)
    held = cube - seen
    estimate = spectral.denoise(seen)
    scale = held.sum() / seen.sum()
    assert _unbiased_error(estimate.values, held, scale) < 0.1 * float(seen.mean()) * scale**2
    assert estimate.report["verdict"] == "pass", estimate.report["reasons"]


def test_corrected_floats_are_not_taken_for_counts():
    h5py = pytest.importorskip("h5py")
    with h5py.File(_file("dls_i18_fluo_18x18x512.nxs")) as file:
        cube = np.asarray(file["entry1/fluo_entry/data/data"])
    estimate = spectral.denoise(cube)
    assert estimate.report["verdict"] != "pass"
    assert any("whole numbers" in reason for reason in estimate.report["reasons"])


def test_correlated_noise_of_an_aligned_stack_is_said():
    with np.load(_file("stxm_als_FeL_123x150x150.npz")) as stored:
        stack = stored["counts"][:, 30:110, 30:110]
    estimate = subspace.denoise(stack)
    assert estimate.report["verdict"] != "pass"
    assert any("not white" in reason for reason in estimate.report["reasons"])
