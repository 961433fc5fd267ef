"""Running the denoiser: seams, symmetries, sizes, memory, noise it should remove."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from inscan.models.infer import load_denoiser
from inscan.models.unet import UNet


@pytest.fixture(scope="module")
def denoiser():
    return load_denoiser("cpu")


def scene(rows=96, cols=120):
    y, x = np.mgrid[:rows, :cols].astype(float)
    image = np.sin(x / 9) * np.cos(y / 13) + 1.5 * (np.hypot(y - 40, x - 60) < 20)
    return (image - image.min()) / np.ptp(image)


@pytest.mark.parametrize("sigma", [0.03, 0.1, 0.4])
def test_removes_gaussian_noise(denoiser, sigma):
    clean = scene()
    noisy = clean + np.random.default_rng(0).normal(0, sigma, clean.shape)
    found, spread = denoiser.denoise_with_spread(noisy[None], sigma)
    error = np.sqrt(np.mean((found[0] - clean) ** 2))
    assert error < 0.45 * sigma
    assert 0.3 < np.sqrt(np.mean(spread**2)) / error < 3


def test_units_do_not_matter(denoiser):
    noisy = scene() + np.random.default_rng(0).normal(0, 0.2, scene().shape)
    one = denoiser.denoise_gaussian(noisy[None], 0.2)
    other = denoiser.denoise_gaussian(noisy[None] * 1e6, 0.2e6) / 1e6
    np.testing.assert_allclose(one, other, atol=0.01)


def test_a_guide_helps(denoiser):
    rng = np.random.default_rng(1)
    clean = scene()
    noisy = clean + rng.normal(0, 0.5, clean.shape)
    guide = 3 - clean + rng.normal(0, 0.03, clean.shape)
    alone = denoiser.denoise_gaussian(noisy[None], 0.5)
    guided = denoiser.denoise_gaussian(noisy[None], 0.5, guide[None], 0.03)
    assert np.mean((guided[0] - clean) ** 2) < 0.6 * np.mean((alone[0] - clean) ** 2)


def test_a_guide_without_the_structure_does_no_harm(denoiser):
    rng = np.random.default_rng(1)
    clean = scene()
    noisy = clean + rng.normal(0, 0.3, clean.shape)
    stranger = np.sin(np.mgrid[:96, :120][0] / 3.0)
    alone = denoiser.denoise_gaussian(noisy[None], 0.3)
    guided = denoiser.denoise_gaussian(noisy[None], 0.3, stranger, 0.01)
    assert np.mean((guided[0] - clean) ** 2) < 1.3 * np.mean((alone[0] - clean) ** 2)


def test_tiles_leave_no_seam(denoiser):
    clean = scene(300, 210)
    noisy = clean + np.random.default_rng(0).normal(0, 0.3, clean.shape)
    whole = denoiser.denoise_gaussian(noisy[None], 0.3, tta=1)
    tiled = replace(denoiser, tile=128).denoise_gaussian(noisy[None], 0.3, tta=1)
    # 0.3 is the noise that was removed; a seam would show as a step of that order.
    assert np.abs(whole - tiled).max() < 0.03
    assert np.sqrt(np.mean((whole - tiled) ** 2)) < 0.003


class Small(UNet):
    """A network on a machine that holds only pieces of up to `limit` pixels."""

    limit = 100 * 100

    def forward(self, planes):
        if planes.shape[0] * planes.shape[2] * planes.shape[3] > self.limit:
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(planes)


def test_out_of_memory_falls_back_to_smaller_tiles(denoiser):
    clean = scene(180, 200)
    noisy = clean + np.random.default_rng(0).normal(0, 0.3, clean.shape)
    net = Small(denoiser.net.config).eval()
    net.load_state_dict(denoiser.net.state_dict())
    found = replace(denoiser, net=net).denoise_gaussian(noisy[None], 0.3, tta=1)
    np.testing.assert_allclose(found, denoiser.denoise_gaussian(noisy[None], 0.3, tta=1), atol=0.05)
    net.limit = 10
    with pytest.raises(torch.OutOfMemoryError):
        replace(denoiser, net=net).denoise_gaussian(noisy[None], 0.3, tta=1)


def test_other_errors_are_not_taken_for_lack_of_memory(denoiser):
    class Broken(UNet):
        def forward(self, planes):
            raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        replace(denoiser, net=Broken()).denoise_gaussian(np.ones((1, 9, 9)), 1.0)


def test_symmetries_turn_back(denoiser):
    net = UNet().eval()  # the identity for the first plane, whatever the turn
    planes = np.random.default_rng(0).random((2, 2, 21, 34), dtype=np.float32)
    for count in (1, 2, 4, 8):
        out = replace(denoiser, net=net).run(planes, count)
        np.testing.assert_allclose(out[:, 0], planes[:, 0], rtol=1e-5)
    with pytest.raises(ValueError, match="tta"):
        denoiser.run(planes, 3)


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (37, 3), (65, 129)])
def test_odd_sizes(denoiser, shape):
    out = denoiser.denoise_gaussian(np.ones((2, *shape)), [0.1, 0.2])
    assert out.shape == (2, *shape)
    assert np.isfinite(out).all()


def test_same_bytes_again(denoiser):
    noisy = np.random.default_rng(0).normal(size=(1, 40, 40))
    first = denoiser.denoise_gaussian(noisy, 1.0)
    assert first.tobytes() == denoiser.denoise_gaussian(noisy, 1.0).tobytes()


def test_bad_input_is_named(denoiser):
    with pytest.raises(ValueError, match="images"):
        denoiser.denoise_gaussian(np.ones((3, 3)), 1.0)
    with pytest.raises(ValueError, match="finite"):
        denoiser.denoise_gaussian(np.full((1, 3, 3), np.nan), 1.0)
    with pytest.raises(ValueError, match="sigma"):
        denoiser.denoise_gaussian(np.ones((1, 3, 3)), -1.0)
    with pytest.raises(ValueError, match="sigma"):
        denoiser.denoise_gaussian(np.ones((2, 3, 3)), np.ones((3, 3, 3)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_the_cpu(denoiser):
    noisy = scene() + np.random.default_rng(0).normal(0, 0.3, scene().shape)
    cpu = denoiser.denoise_gaussian(noisy[None], 0.3)
    cuda = load_denoiser("cuda").denoise_gaussian(noisy[None], 0.3)
    np.testing.assert_allclose(cpu, cuda, atol=0.02)
