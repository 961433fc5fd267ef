"""Counting noise: inverses, thinning and estimates against what is known exactly."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import poisson

from inscan.models import noise


@pytest.mark.parametrize("mean", [0.02, 0.1, 0.5, 1.0, 3.0, 10.0, 100.0, 1e4])
def test_inverse_of_the_mean_is_the_mean(mean):
    counts = np.arange(int(mean + 12 * np.sqrt(mean) + 20))
    stabilised = poisson.pmf(counts, mean) @ noise.anscombe(counts)
    assert noise.inverse_anscombe(stabilised) == pytest.approx(mean, rel=0.015, abs=1e-3)


def test_algebraic_inverse_would_be_biased():
    counts = np.arange(60)
    stabilised = poisson.pmf(counts, 5.0) @ noise.anscombe(counts)
    assert stabilised**2 / 4 - 0.375 < 4.8


def test_slope_is_the_derivative():
    d = np.linspace(1.3, 40, 200)
    step = 1e-5
    numeric = (noise.inverse_anscombe(d + step) - noise.inverse_anscombe(d - step)) / (2 * step)
    np.testing.assert_allclose(noise.anscombe_slope(d), numeric, rtol=1e-5)


def test_torch_inverse_agrees_and_keeps_its_gradient_below_zero():
    d = torch.linspace(0.2, 20, 100, dtype=torch.float64, requires_grad=True)
    counts, slope = noise.inverse_anscombe_torch(d)
    inside = d.detach().numpy() > 1.23
    expected = noise.inverse_anscombe(d.detach().numpy())
    np.testing.assert_allclose(counts.detach().numpy()[inside], expected[inside], rtol=1e-9)
    counts.sum().backward()
    assert d.grad is not None and (d.grad > 0.5).all()
    np.testing.assert_allclose(d.grad.numpy(), slope.numpy(), rtol=1e-6)


@pytest.mark.parametrize("mean", [0.05, 0.5, 2.0, 20.0])
def test_variance_of_stabilised_counts(mean):
    drawn = noise.anscombe(np.random.default_rng(3).poisson(mean, 200_000))
    assert noise.anscombe_variance(mean) == pytest.approx(drawn.var(), rel=0.02)


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.95))
@settings(max_examples=20, deadline=None)
def test_thinned_maps_add_up(seed, fraction):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(3.0, (2, 9, 7))
    kept, held = noise.thin(counts, fraction, rng)
    np.testing.assert_array_equal(kept + held, counts)
    assert kept.min() >= 0 and held.min() >= 0


def test_thinned_maps_are_independent_poisson():
    rng = np.random.default_rng(0)
    kept, held = noise.thin(rng.poisson(4.0, 400_000), 0.25, rng)
    assert kept.mean() == pytest.approx(1.0, rel=0.01)
    assert kept.var() == pytest.approx(1.0, rel=0.02)
    assert held.var() == pytest.approx(3.0, rel=0.02)
    assert abs(np.corrcoef(kept, held)[0, 1]) < 0.01


def test_thinning_keeps_the_mean_of_fractional_counts():
    kept, held = noise.thin(np.full(100_000, 2.3), 0.5, np.random.default_rng(0))
    assert (kept + held).mean() == pytest.approx(2.3, rel=0.01)
    with pytest.raises(ValueError, match="fraction"):
        noise.thin(np.ones(3), 1.0, np.random.default_rng(0))


def test_likelihood_is_best_at_the_truth_and_deviance_near_one():
    counts = np.random.default_rng(1).poisson(20.0, 50_000)
    losses = [noise.poisson_nll(counts, np.full(counts.shape, m)).mean() for m in (18, 20, 22)]
    assert losses[1] == min(losses)
    assert noise.poisson_deviance(counts, np.full(counts.shape, 20.0)).mean() == pytest.approx(
        1.0, rel=0.05
    )
    assert noise.poisson_deviance(np.zeros(2), np.zeros(2)).tolist() == pytest.approx(
        [0, 0], abs=1e-5
    )


def test_noise_of_an_image_with_structure():
    y, x = np.mgrid[:200, :200] / 30.0
    image = 50 * np.sin(x) * np.cos(y) + np.random.default_rng(0).normal(0, 3.0, (200, 200))
    assert noise.noise_sigma(image) == pytest.approx(3.0, rel=0.05)
    with pytest.raises(ValueError, match="2 x 2"):
        noise.noise_sigma(np.zeros((1, 5)))


@pytest.mark.parametrize("samples", [60, 400, 20_000])
def test_noise_from_the_tail_of_the_spectrum(samples):
    rng = np.random.default_rng(5)
    stack = rng.normal(0, 2.0, (samples, 80))
    stack += rng.normal(size=(samples, 2)) @ rng.normal(0, 20, (2, 80))
    eigenvalues = np.linalg.eigvalsh(stack.T @ stack)
    assert noise.tail_sigma(eigenvalues, samples, signal=2) == pytest.approx(2.0, rel=0.05)
