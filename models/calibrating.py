"""Calibrate the denoiser's spread on samples that took no part in training.

    recalibrate("denoiser")          rewrites the card of shipped weights, in two minutes of one core

Each calibration sample is treated exactly as `inscan.models.n2n.denoise` treats a run: mixture by
held-out counts, total kept, errors rescaled by the run's own held-out counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inscan.models.counting import CountPrediction, HeldOut, choose_weights, denoise_counts
from inscan.models.infer import Denoiser, choose_device, network_of
from inscan.models.novelty import Familiar, features
from inscan.models.pool import training_pool
from inscan.models.trust import CountTable, brightness, calibrate_counts, run_factors
from inscan.models.weights import SHIPPED, Weights, load_weights, save_weights

__all__ = ["Calibrated", "calibrate_denoiser", "heldout_sigma", "recalibrate"]

_PIXELS = 1500  # of each map: neighbours repeat each other
_PEAK = (0.7, 1000.0)
_FLOOR = (0.002, 0.3)
_SPREAD = 0.8  # of the logarithm of the elements' brightness around their common one
_SAMPLES = 90
_SEED = 900_001  # never one of the training's


@dataclass(frozen=True)
class Calibrated:
    """What calibration adds to a model card.

    Attributes
    ----------
    table : CountTable
    familiar : Familiar
    """

    table: CountTable
    familiar: Familiar

    def to_card(self) -> dict[str, Any]:
        """JSON-able form, read back by `CountTable.from_card` and `Familiar.from_card`."""
        return {**self.table.to_card(), "familiar": self.familiar.to_card()}


@dataclass(frozen=True)
class _Trial:
    truth: NDArray[np.float64]  # (element, row, col)
    prediction: CountPrediction
    flux: NDArray[np.float64]  # (element, 1, 1)
    held: HeldOut


def calibrate_denoiser(
    denoiser: Denoiser, pool: Sequence[NDArray[np.float32]], *, seed: int = 0
) -> Calibrated:
    """Compare predictions with the truth over the range of counts met in practice.

    Parameters
    ----------
    denoiser : Denoiser
    pool : sequence of ndarray of float32, shape (element, row, col)
        Clean samples from other seeds than the training's.
    seed : int

    Returns
    -------
    Calibrated
    """
    rng = np.random.default_rng(seed)
    trials, known = [], []
    for maps in pool:
        trial, counts = _trial(denoiser, maps, rng)
        trials.append(trial)
        mean = trial.prediction.counts * trial.flux
        seen = np.ones(counts.shape[1:], dtype=bool)
        known += [
            features(*parts, seen)
            for parts in zip(counts, mean, trial.prediction.spread, strict=True)
        ]
    chosen = [rng.integers(t.truth[0].size, size=_PIXELS) for t in trials]
    first = calibrate_counts(*_gathered(trials, chosen, [np.ones(len(t.truth)) for t in trials]))
    between = _between(trials, first)
    factors = [_factors(t, first, between) for t in trials]
    truth, counts, sigma, spread, bright = _gathered(trials, chosen, factors)
    sigma = sigma * first.scale[first.bins(counts, spread, bright)]
    table = calibrate_counts(
        truth, counts, sigma, spread, bright, scale=first.scale, between=between
    )
    return Calibrated(table, Familiar.learn(np.array(known)))


def heldout_sigma(held: HeldOut, table: CountTable) -> NDArray[np.float64]:
    """Calibrated standard deviation of the error of `held.mean`, shape (element, row, col)."""
    found = held.prediction
    bins = table.bins(found.counts, found.spread, brightness(found.counts))
    return found.error * table.scale[bins] * held.mean / np.maximum(found.counts, 1e-9)


def recalibrate(
    name: str = "denoiser",
    folder: Path = SHIPPED,
    *,
    samples: int = _SAMPLES,
    device: str | torch.device | None = None,
) -> Weights:
    """Calibrate weights that are there, and write the result into their card.

    Parameters
    ----------
    name, folder
        As `inscan.models.weights.load_weights` takes them.
    samples : int
        Number of samples to calibrate on.
    device : str or torch.device, optional

    Returns
    -------
    Weights
    """
    weights = load_weights(name, folder)
    denoiser = Denoiser(network_of(weights), weights, choose_device(device))
    found = calibrate_denoiser(denoiser, training_pool(samples, seed=_SEED), seed=1)
    card = {**weights.card, "calibration": found.to_card()}
    return save_weights(folder, name, weights.tensors, card)


def _trial(
    denoiser: Denoiser, maps: NDArray[np.float32], rng: np.random.Generator
) -> tuple[_Trial, NDArray[np.float32]]:
    clean = maps / np.maximum(maps.max(axis=(1, 2), keepdims=True), 1e-6)
    shape = (len(clean), 1, 1)
    floor = np.exp(rng.uniform(np.log(_FLOOR[0]), np.log(_FLOOR[1]), shape))
    common = np.exp(rng.uniform(np.log(_PEAK[0]), np.log(_PEAK[1])))
    peak = np.clip(common * np.exp(rng.normal(0, _SPREAD, shape)), *_PEAK)
    truth = peak * (floor + (1 - floor) * clean.astype(np.float64))
    counts = rng.poisson(truth).astype(np.float32)
    light = np.ones_like(counts)
    held = choose_weights(denoiser, counts, light, rng)
    prediction = denoise_counts(denoiser, counts, light, held.weights)
    observed = counts.sum(axis=(1, 2), keepdims=True)
    total = prediction.counts.sum(axis=(1, 2), keepdims=True)
    # An empty map teaches nothing about the size of errors.
    flux = np.where(observed > 0, observed / np.maximum(total, 1e-9), 1.0)
    return _Trial(truth, prediction, flux, held), counts


def _gathered(
    trials: list[_Trial], chosen: Sequence[NDArray[np.integer]], factors: list[NDArray[np.float64]]
) -> tuple[NDArray[np.float64], ...]:
    """Truth, predicted counts, sigma, spread and brightness of the chosen pixels, flat."""
    parts = []
    for trial, at, factor in zip(trials, chosen, factors, strict=True):
        found = trial.prediction
        maps = (
            trial.truth,
            found.counts * trial.flux,
            found.error * trial.flux * factor[:, None, None],
            found.spread,
            brightness(found.counts),
        )
        parts.append(
            np.stack([np.asarray(m, np.float64).reshape(len(m), -1)[:, at].ravel() for m in maps])
        )
    return tuple(np.concatenate(parts, axis=1))


def _factors(trial: _Trial, table: CountTable, between: float) -> NDArray[np.float64]:
    held = trial.held
    seen = np.ones(held.counts.shape, dtype=bool)
    return run_factors(held.counts, held.mean, heldout_sigma(held, table), seen, between)


def _between(trials: list[_Trial], table: CountTable) -> float:
    """How much maps differ in their mean squared error over the one expected: robust, about 0.5."""
    ratios = []
    for trial in trials:
        found = trial.prediction
        bins = table.bins(found.counts * trial.flux, found.spread, brightness(found.counts))
        expected = (found.error * trial.flux * table.scale[bins]) ** 2
        error = (found.counts * trial.flux - trial.truth) ** 2
        ratios += (error.mean(axis=(1, 2)) / np.maximum(expected.mean(axis=(1, 2)), 1e-12)).tolist()
    return float(np.clip(np.subtract(*np.quantile(ratios, (0.84, 0.16))) / 2, 0.1, 1.5))
