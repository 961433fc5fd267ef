"""Calibrate the denoiser's spread on samples that took no part in training."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from inscan.models.counting import choose_weights, denoise_counts
from inscan.models.infer import Denoiser
from inscan.models.trust import CountTable, calibrate_counts

__all__ = ["calibrate_denoiser"]

_PIXELS = 1500  # of each map: neighbours repeat each other
_PEAK = (0.7, 1000.0)
_FLOOR = (0.002, 0.3)


def calibrate_denoiser(
    denoiser: Denoiser, pool: Sequence[NDArray[np.float32]], *, seed: int = 0
) -> CountTable:
    """Compare predictions with the truth over the range of counts met in practice.

    Parameters
    ----------
    denoiser : Denoiser
    pool : sequence of ndarray of float32, shape (element, row, col)
        Clean samples from other seeds than the training's.
    seed : int

    Returns
    -------
    CountTable
    """
    rng = np.random.default_rng(seed)
    gathered: list[NDArray[np.float64]] = []
    for maps in pool:
        clean = maps / np.maximum(maps.max(axis=(1, 2), keepdims=True), 1e-6)
        shape = (len(clean), 1, 1)
        floor = np.exp(rng.uniform(np.log(_FLOOR[0]), np.log(_FLOOR[1]), shape))
        peak = np.exp(rng.uniform(np.log(_PEAK[0]), np.log(_PEAK[1]), shape))
        mean = peak * (floor + (1 - floor) * clean)
        counts = rng.poisson(mean).astype(np.float32)
        light = np.ones_like(counts)
        weights = choose_weights(denoiser, counts, light, rng).weights
        prediction = denoise_counts(denoiser, counts, light, weights)
        predicted = prediction.counts
        total = predicted.sum(axis=(1, 2), keepdims=True)
        flux = counts.sum(axis=(1, 2), keepdims=True) / np.maximum(total, 1e-9)
        # An empty map teaches nothing about the size of errors.
        flux = np.where(counts.sum(axis=(1, 2), keepdims=True) > 0, flux, 1.0)
        fields = (mean, predicted * flux, prediction.sigma * flux, prediction.spread)
        flat = np.stack([np.asarray(f, dtype=np.float64).reshape(len(clean), -1) for f in fields])
        chosen = rng.integers(flat.shape[2], size=_PIXELS)
        gathered.append(flat[:, :, chosen].reshape(4, -1))
    truth, predicted, sigma, spread = np.concatenate(gathered, axis=1)
    return calibrate_counts(truth, predicted, sigma, spread)
