"""Calibrate the denoiser's spread on samples that took no part in training.

    recalibrate("denoiser")          rewrites the card of shipped weights, in two minutes of one core

Each calibration sample is treated exactly as `inscan.models.n2n.denoise` treats a run: mixture by
held-out counts, total kept, errors rescaled by the run's own held-out counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
_SAMPLES = 128  # maps: pixels of one map err together, so that their number counts, not their size
_SIDE = 96
_LEVEL = 0.9  # at which the intervals' margins are set
_SAFETY = 0.005
_BRIGHT_LEVEL = 0.88  # of a map's brightest pixels, by the truth
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
    for index, maps in enumerate(pool):
        trial, counts = _trial(denoiser, maps, np.random.default_rng([seed, index]))
        trials.append(trial)
        mean = trial.prediction.counts * trial.flux
        seen = np.ones(counts.shape[1:], dtype=bool)
        known += [
            features(*parts, seen)
            for parts in zip(counts, mean, trial.prediction.spread, strict=True)
        ]
    chosen = [rng.integers(t.truth[0].size, size=_PIXELS) for t in trials]
    everything = _table(trials, chosen)
    # Pixels of one map err together: quantiles of few maps do not carry over to others. How much is
    # missing is seen by calibrating on half of the maps and trying the other half.
    halves = [_margins(trials, chosen, half) for half in (0, 1)]
    all_over, bright = (float(np.mean(part)) for part in zip(*halves, strict=True))
    return Calibrated(_widened(everything, all_over, bright), Familiar.learn(np.array(known)))


def _table(trials: Sequence[_Trial], chosen: Sequence[NDArray[np.integer]]) -> CountTable:
    """Scale first, then the ends of the intervals with each run's own factors in place."""
    first = calibrate_counts(*_gathered(trials, chosen, [np.ones(len(t.truth)) for t in trials]))
    between = _between(trials, first)
    factors = [_factors(t, first, between) for t in trials]
    truth, counts, sigma, spread, bright = _gathered(trials, chosen, factors)
    sigma = sigma * first.scale[first.bins(counts, spread, bright)]
    return calibrate_counts(
        truth, counts, sigma, spread, bright, scale=first.scale, between=between
    )


def _margins(
    trials: Sequence[_Trial], chosen: Sequence[NDArray[np.integer]], half: int
) -> tuple[float, float]:
    """By how much intervals must be wider to hold on maps that they were not calibrated on.

    Returns
    -------
    float, float
        Factor for all ends, and a further one for the upper ends of bright places: the brightest
        pixels of a map are those that an estimate of least squares lowers.
    """
    table = _table(trials[1 - half :: 2], chosen[1 - half :: 2])
    others, picked = trials[half::2], chosen[half::2]
    factors = [_factors(t, table, float(table.between)) for t in others]
    truth, counts, sigma, spread, bright = _gathered(others, picked, factors)
    bins = table.bins(counts, spread, bright)
    sigma = sigma * table.scale[bins]
    at = int(np.argmin(np.abs(table.levels - _LEVEL)))
    shining = bright > table.bright_edges[0]
    top, owner = [], []
    for index, (t, p) in enumerate(zip(others, picked, strict=True)):
        highest = np.quantile(t.truth, 0.95, axis=(1, 2), keepdims=True)
        top.append((t.truth >= highest).reshape(len(t.truth), -1)[:, p].ravel())
        owner.append(np.full(top[-1].size, index))
    lit, of = np.concatenate(top), np.concatenate(owner)

    def held(wider: float, up: float, which: NDArray[np.bool_]) -> float:
        """Share of the chosen pixels whose interval holds, every map counting alike."""
        low = np.maximum(counts - wider * table.below[at][bins] * sigma, 0.0)
        reach = wider * np.where(shining, up, 1.0) * table.above[at][bins]
        inside = (low <= truth) & (truth <= counts + reach * sigma)
        number = np.bincount(of[which], minlength=len(others))
        right = np.bincount(of[which], inside[which], minlength=len(others))
        return float((right[number > 0] / number[number > 0]).mean())

    everywhere = np.ones(lit.shape, dtype=bool)
    steps = np.arange(1.0, 2.01, 0.02)
    up = next((u for u in steps if held(1.0, u, lit) >= _BRIGHT_LEVEL), steps[-1])
    wider = next((w for w in steps if held(w, up, everywhere) >= _LEVEL + _SAFETY), steps[-1])
    return float(wider), float(up)


def _widened(table: CountTable, all_over: float, bright: float) -> CountTable:
    per_count = len(table.scale) // (len(table.count_edges) + 1)
    spreads = len(table.spread_edges) + 1
    shining = np.arange(len(table.scale)) % per_count >= spreads
    above = table.above * all_over * np.where(shining, bright, 1.0)
    return replace(table, below=table.below * all_over, above=above)


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
    found = calibrate_denoiser(denoiser, training_pool(samples, side=_SIDE, seed=_SEED), seed=1)
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
    trials: Sequence[_Trial],
    chosen: Sequence[NDArray[np.integer]],
    factors: Sequence[NDArray[np.float64]],
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


def _between(trials: Sequence[_Trial], table: CountTable) -> float:
    """How much maps differ in their mean squared error over the one expected: robust, about 0.5."""
    ratios = []
    for trial in trials:
        found = trial.prediction
        bins = table.bins(found.counts * trial.flux, found.spread, brightness(found.counts))
        expected = (found.error * trial.flux * table.scale[bins]) ** 2
        error = (found.counts * trial.flux - trial.truth) ** 2
        ratios += (error.mean(axis=(1, 2)) / np.maximum(expected.mean(axis=(1, 2)), 1e-12)).tolist()
    return float(np.clip(np.subtract(*np.quantile(ratios, (0.84, 0.16))) / 2, 0.1, 1.5))
