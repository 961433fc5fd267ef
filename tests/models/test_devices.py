"""The same answer on every device, and the same bytes from the same seed, for each method.

Stated tolerance between devices (networks run in bfloat16 on both, which rounds to 0.4 %, in another
order): the root mean square of the difference below 5 % of that of sigma, and no value further off than
one sigma and 2 % of the largest. Between numbers of threads the same holds.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from inscan.models import n2n, spectral, subspace, superres
from inscan.models.estimate import Estimate


def scene(side: int) -> np.ndarray:
    """Two maps, 0 to 1."""
    y, x = np.mgrid[:side, :side] / side
    disc = (np.hypot(y - 0.6, x - 0.4) < 0.25).astype(float)
    hill = np.exp(-((y - 0.4) ** 2 + (x - 0.6) ** 2) / 0.03)
    return np.stack([0.1 + 0.5 * disc + 0.4 * hill, 0.2 + 0.8 * hill])


def maps(device: str, seed: int) -> Estimate:
    counts = np.random.default_rng(1).poisson(np.broadcast_to(4 * scene(40), (2, 2, 40, 40)))
    return n2n.denoise(counts, seed=seed, device=device)


def finer(device: str, seed: int) -> Estimate:
    counts = np.random.default_rng(2).poisson(60 * scene(20))
    return superres.upscale(counts, factor=2, seed=seed, device=device)


def stack(device: str, seed: int) -> Estimate:
    energies = np.linspace(-1, 1, 10)[:, None, None]
    one, two = scene(32)
    step = 1 / (1 + np.exp(-4 * energies))
    frames = one * step + two * (0.3 + 0.2 * energies)
    noisy = frames + np.random.default_rng(3).normal(0, 0.15, frames.shape)
    return subspace.denoise(noisy, seed=seed, device=device)


def cube(device: str, seed: int) -> Estimate:
    lines = np.exp(-((np.arange(16) - np.array([[4], [11]])) ** 2) / 4)
    mean = np.tensordot(scene(20), lines, axes=(0, 0)) + 0.05
    return spectral.denoise(np.random.default_rng(4).poisson(mean), seed=seed, device=device)


METHODS = [maps, finer, stack, cube]


def assert_agree(one: Estimate, other: Estimate) -> None:
    a, b, sigma = (np.asarray(z, dtype=float) for z in (one.values, other.values, one.sigma))
    difference = a - b
    assert np.sqrt(np.mean(difference**2)) < 0.05 * np.sqrt(np.mean(sigma**2))
    assert (np.abs(difference) <= sigma + 0.02 * np.abs(a).max()).all()
    np.testing.assert_allclose(
        np.sqrt(np.mean(np.square(other.sigma))), np.sqrt(np.mean(sigma**2)), rtol=0.05
    )


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    yield lambda: torch.set_num_threads(1 if before > 1 else 2)
    torch.set_num_threads(before)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_same_seed_same_bytes_and_threads_agree(
    method: Callable[[str, int], Estimate], two_threads: Callable[[], None]
):
    first, again = method("cpu", 5), method("cpu", 5)
    assert first.values.tobytes() == again.values.tobytes()
    assert first.sigma.tobytes() == again.sigma.tobytes()
    two_threads()
    assert_agree(first, method("cpu", 5))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_cuda_agrees_with_the_cpu(method: Callable[[str, int], Estimate]):
    assert_agree(method("cpu", 5), method("cuda", 5))
