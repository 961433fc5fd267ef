"""Score n2n against the truth on sample families no network has seen, beside simpler methods.

    inscan evaluate n2n

Every figure is over several noise and sample seeds, with its 95 % interval. GAT + BM3D joins in
when the optional package `bm3d` is installed (non-commercial licence: never a dependency).
"""

import importlib
import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, median_filter

from inscan.models import n2n
from inscan.models.infer import Denoiser
from inscan.models.noise import anscombe, inverse_anscombe
from inscan.profiles.samples import battery_particles, cells, siemens_star

__all__ = ["N2N_CASES", "N2NCase", "Row", "evaluate_n2n", "table"]

_BIN = 5  # fine-grid pixels of the sample to a pixel of the scan, on each axis
_SAMPLES: Mapping[str, Callable] = {
    "cells": cells,
    "siemens": siemens_star,
    "particles": battery_particles,
}


@dataclass(frozen=True)
class N2NCase:
    """What is measured: a sample, the detector's channels, the brightest pixel's counts."""

    sample: str
    channels: int
    peak: float

    @property
    def name(self) -> str:
        return f"{self.sample}, {self.channels} channels, peak {self.peak:g}"


N2N_CASES = (
    N2NCase("cells", 16, 10.0),
    N2NCase("siemens", 16, 10.0),
    N2NCase("cells", 2, 50.0),
    N2NCase("particles", 4, 10.0),
)


@dataclass(frozen=True)
class Row:
    """One method on one case.

    Attributes
    ----------
    case, method : str
    dwell : float
        Mean squared error of the channel sum over that of the method, geometric mean over
        elements and seeds: how many times longer a plain scan would have to count.
    dwell_low, dwell_high : float
        95 % interval over seeds.
    worst_element : float
        Lowest element's factor over the geometric mean.
    flux_bias, flux_bias_bright : float
        Mean relative error of the total, and of the total over the brightest 5 % of pixels.
    coverage, coverage_worst, width : float
        Of the 90 % intervals: overall, in the worst of five bins of true intensity, and mean width
        over that of raw Poisson intervals. NaN for methods without intervals.
    seconds : float
        For each map of all elements.
    """

    case: str
    method: str
    dwell: float
    dwell_low: float
    dwell_high: float
    worst_element: float
    flux_bias: float
    flux_bias_bright: float
    coverage: float
    coverage_worst: float
    width: float
    seconds: float


def evaluate_n2n(
    seeds: Sequence[int] = range(10),
    *,
    cases: Sequence[N2NCase] = N2N_CASES,
    fit_steps: int = 0,
    device: str | torch.device | None = None,
    denoiser: Denoiser | None = None,
    baselines: bool = True,
    progress: Callable[[str], None] | None = None,
) -> list[Row]:
    """Run the cases.

    Parameters
    ----------
    seeds : sequence of int
        Each draws another sample, other channel gains (0.6 to 1.4) and other noise.
    cases : sequence of N2NCase
    fit_steps : int
        Fine-tuning steps for a further row; 0 leaves it out.
    device : str or torch.device, optional
    denoiser : Denoiser, optional
        Other weights than the shipped ones.
    baselines : bool
        Median, Gaussian with the width that the truth likes best, and BM3D where installed.
    progress : callable (text), optional

    Returns
    -------
    list of Row
    """
    methods: dict[str, Callable] = {}
    if baselines:
        methods["median 3 x 3"] = lambda y, mean: median_filter(y.sum(axis=0), (1, 3, 3))
        methods["Gaussian (oracle)"] = _best_gaussian
        if importlib.util.find_spec("bm3d"):
            methods["GAT + BM3D"] = _bm3d
    methods["inscan n2n"] = lambda y, mean: n2n.denoise(y, device=device, denoiser=denoiser)
    if fit_steps:
        methods[f"inscan n2n, {fit_steps} steps"] = lambda y, mean: n2n.denoise(
            y, fit_steps=fit_steps, device=device, denoiser=denoiser
        )
    rows = []
    for case in cases:
        scores: dict[str, list[_Score]] = {name: [] for name in methods}
        for seed in seeds:
            counts, mean = _measure(case, seed)
            for name, method in methods.items():
                began = time.monotonic()
                found = method(counts, mean)
                scores[name].append(_score(counts, mean, found, time.monotonic() - began))
            if progress:
                progress(f"{case.name}, seed {seed}")
        rows.extend(_row(case.name, name, several) for name, several in scores.items())
    return rows


def table(rows: Sequence[Row]) -> str:
    """Rows as text, one line each."""
    lines = [
        f"{'case':32} {'method':24} {'dwell x':>8} {'95 %':>13} {'worst':>6} {'flux':>7} "
        f"{'top 5 %':>8} {'cover':>6} {'worst':>6} {'width':>6} {'s':>6}"
    ]
    lines += [
        f"{r.case:32} {r.method:24} {r.dwell:8.2f} {r.dwell_low:6.2f}-{r.dwell_high:<6.2f} "
        f"{r.worst_element:6.2f} {100 * r.flux_bias:+6.2f}% {100 * r.flux_bias_bright:+7.2f}% "
        f"{r.coverage:6.3f} {r.coverage_worst:6.3f} {r.width:6.2f} {r.seconds:6.2f}"
        for r in rows
    ]
    return "\n".join(lines)


@dataclass(frozen=True)
class _Score:
    log_dwell: NDArray[np.float64]  # (element,)
    flux: float
    flux_bright: float
    coverage: float
    by_bin: NDArray[np.float64]  # (bin,)
    width: float
    seconds: float


def _measure(case: N2NCase, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Counts (channel, element, row, col) and the true mean of their channel sum."""
    rng = np.random.default_rng([seed, 77])
    fine = np.asarray(_SAMPLES[case.sample](seed).maps, dtype=np.float64)
    rows, cols = (side // _BIN for side in fine.shape[1:])
    cut = fine[:, : rows * _BIN, : cols * _BIN]
    coarse = cut.reshape(len(fine), rows, _BIN, cols, _BIN).mean(axis=(2, 4))
    mean = case.peak * coarse / coarse.max(axis=(1, 2), keepdims=True)
    gains = rng.uniform(0.6, 1.4, case.channels)
    gains /= gains.sum()
    counts = rng.poisson(gains[:, None, None, None] * mean)
    return counts.astype(np.float32), mean


def _score(counts: NDArray, mean: NDArray, found, seconds: float) -> _Score:
    raw = counts.sum(axis=0, dtype=np.float64)
    values = np.asarray(getattr(found, "values", found), dtype=np.float64)
    squares = [np.square(z - mean).mean(axis=(1, 2)) for z in (raw, values)]
    bright = mean >= np.quantile(mean, 0.95, axis=(1, 2), keepdims=True)
    # Flux against the data's own total: what the method adds or takes, not the noise of the total.
    flux = values.sum(axis=(1, 2)) / np.maximum(raw.sum(axis=(1, 2)), 1) - 1
    over = np.where(bright, values, 0).sum() / np.where(bright, mean, 0).sum() - 1
    coverage, by_bin, width = np.nan, np.full(5, np.nan), np.nan
    if hasattr(found, "interval"):
        low, high = found.interval(0.9)
        inside = (low <= mean) & (mean <= high)
        coverage = float(inside.mean())
        edges = np.quantile(mean, (0.25, 0.5, 0.75, 0.95))
        bins = np.searchsorted(edges, mean)
        by_bin = np.array(
            [inside[bins == k].mean() if (bins == k).any() else np.nan for k in range(5)]
        )
        width = float((high - low).mean() / (2 * 1.645 * np.sqrt(np.maximum(raw, 1))).mean())
    return _Score(
        np.log(squares[0] / np.maximum(squares[1], 1e-12)),
        float(flux.mean()),
        float(over),
        coverage,
        by_bin,
        width,
        seconds,
    )


def _row(case: str, method: str, scores: list[_Score]) -> Row:
    logs = np.stack([s.log_dwell for s in scores])
    by_seed = logs.mean(axis=1)
    error = 1.96 * by_seed.std(ddof=1) / np.sqrt(len(by_seed)) if len(by_seed) > 1 else np.nan
    by_bin = np.stack([s.by_bin for s in scores])
    # Samples of few levels leave bins empty.
    bins = by_bin[:, np.isfinite(by_bin).any(axis=0)]
    worst = float(np.nanmean(bins, axis=0).min()) if bins.size else np.nan
    return Row(
        case=case,
        method=method,
        dwell=float(np.exp(by_seed.mean())),
        dwell_low=float(np.exp(by_seed.mean() - error)),
        dwell_high=float(np.exp(by_seed.mean() + error)),
        worst_element=float(np.exp(logs.mean(axis=0).min() - logs.mean())),
        flux_bias=float(np.mean([s.flux for s in scores])),
        flux_bias_bright=float(np.mean([s.flux_bright for s in scores])),
        coverage=float(np.mean([s.coverage for s in scores])),
        coverage_worst=worst,
        width=float(np.mean([s.width for s in scores])),
        seconds=float(np.mean([s.seconds for s in scores])),
    )


def _best_gaussian(counts: NDArray, mean: NDArray) -> NDArray:
    """For each element the width with the least error against the truth: unfair to the others."""
    out = []
    for raw, true in zip(counts.sum(axis=0), mean, strict=True):
        soft = [gaussian_filter(raw, width) for width in np.arange(0.3, 4.0, 0.2)]
        out.append(min(soft, key=lambda image: float(np.square(image - true).mean())))
    return np.stack(out)


def _bm3d(counts: NDArray, mean: NDArray) -> NDArray:
    module = importlib.import_module("bm3d")
    return np.stack([inverse_anscombe(module.bm3d(anscombe(y), 1.0)) for y in counts.sum(axis=0)])
