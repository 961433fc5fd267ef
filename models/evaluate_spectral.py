"""Score `spectral` on spectrum images of samples that no network has seen, beside other methods.

    inscan evaluate spectral

The oracles know what a user does not: the width or rank that the truth likes best, or the very
spectra. Whether a contrast image helps, and whether an unrelated one leaves a trace, is scored too.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from inscan.models import spectral
from inscan.models.estimate import Estimate
from inscan.models.scores import ScoreRow, summarise
from inscan.models.spectral_phantoms import SpectrumPhantom, spectrum_phantom

__all__ = [
    "CASES",
    "SpectralCase",
    "evaluate_all",
    "evaluate_spectral",
    "measured_cube",
    "score_cube",
]

_AUTOENCODER_SEEDS = 1  # minutes each on one core
_CONTRAST_NOISE = 0.02  # of the contrast image's range
_EDGES = (0.25, 0.5, 0.75, 0.95)
_MOST_RANK = 8
_ML_ROUNDS = 60


@dataclass(frozen=True)
class SpectralCase:
    """A sample, mean counts of a pixel over all bins, and whether every method is tried."""

    sample: Literal["cells", "siemens star", "battery particles"]
    counts: float
    every: bool = False

    @property
    def name(self) -> str:
        return f"{self.sample}, 96 bins, {self.counts:g} counts per pixel"


CASES = (
    SpectralCase("cells", 20.0, every=True),
    SpectralCase("cells", 5.0),
    SpectralCase("cells", 100.0),
    SpectralCase("siemens star", 20.0),
    SpectralCase("battery particles", 20.0),
    SpectralCase("battery particles", 100.0),
)


def evaluate_all(
    seeds: Sequence[int], progress: Callable[[str], None] | None = None
) -> list[ScoreRow]:
    """All cases; the autoencoders, which take minutes, on the first seeds of the first case only.

    Parameters
    ----------
    seeds : sequence of int
        Each draws another sample and other counts.
    progress : callable (text), optional

    Returns
    -------
    list of ScoreRow
        See `evaluate_spectral`.
    """
    return [row for case in CASES for row in evaluate_spectral(case, seeds, progress=progress)]


def measured_cube(case: SpectralCase, seed: int) -> tuple[SpectrumPhantom, NDArray[np.float32]]:
    """The phantom of a case and the counts of one measurement of it."""
    phantom = spectrum_phantom(case.sample, seed, counts=case.counts)
    noisy = np.random.default_rng([seed, 5]).poisson(phantom.mean)
    return phantom, noisy.astype(np.float32)


def evaluate_spectral(
    case: SpectralCase,
    seeds: Sequence[int] = range(3),
    *,
    fit_steps: int = 0,
    autoencoders: int = _AUTOENCODER_SEEDS,
    progress: Callable[[str], None] | None = None,
) -> list[ScoreRow]:
    """Cubes of 64 x 64 pixels and 96 bins.

    Parameters
    ----------
    case : SpectralCase
    seeds : sequence of int
    fit_steps : int
        For the autoencoders; 0 for their default.
    autoencoders : int
        Seeds that the autoencoders run on, where the case tries every method.
    progress : callable (text), optional

    Returns
    -------
    list of ScoreRow
        "gain dB": of the cube over the raw counts. "dwell": how many times longer the raw line
        maps would have to count for the same error, geometric mean over lines; "worst line" the
        least of them. "flux %", "bright flux %": of the total and of the brightest 5 % of
        voxels. "coverage", and in ranges of true intensity ("worst bin": the least of these), of the
        90 % intervals; "width" over
        that of raw Poisson intervals; "doubtful %"; seconds.
    """
    scores: dict[str, list[dict[str, float]]] = {}
    for number, seed in enumerate(seeds):
        phantom, noisy = measured_cube(case, seed)
        for name, method in _methods(
            case, phantom, noisy, seed, number < autoencoders, fit_steps
        ).items():
            began = time.perf_counter()
            found = method()
            took = time.perf_counter() - began
            scores.setdefault(name, []).append(score_cube(found, noisy, phantom, took))
        if progress is not None:
            progress(f"{case.name}, seed {seed}")
    return [_row(case, name, several) for name, several in scores.items()]


def _row(case: SpectralCase, name: str, scores: Sequence[dict[str, float]]) -> ScoreRow:
    """Over seeds; "worst bin" is the range of intensity whose mean coverage is least."""
    row = summarise(case.name, name, scores, geometric=("dwell", "worst line"))
    ranges = [figure for key, figure in row.figures.items() if key.startswith("coverage ")]
    if not ranges:
        return row
    figures = {"worst bin": min(ranges, key=lambda figure: figure.mean)}
    return replace(row, figures={**row.figures, **figures})


def _methods(
    case: SpectralCase,
    phantom: SpectrumPhantom,
    noisy: NDArray[np.float32],
    seed: int,
    slow: bool,
    fit_steps: int,
) -> dict[str, Callable[[], NDArray | Estimate]]:
    methods: dict[str, Callable[[], NDArray | Estimate]] = {
        "raw": lambda: noisy,
        "Gaussian 3-D (oracle)": lambda: _best_gaussian(noisy, phantom.mean),
        "inscan": lambda: spectral.denoise(noisy),
    }
    if not case.every:
        return methods
    rng = np.random.default_rng([seed, 6])
    other = spectrum_phantom("siemens star", seed + 100, counts=20.0).mass
    contrasts = {
        "inscan, contrast image": phantom.mass,
        "inscan, contrast of one element": phantom.maps[2],
        "inscan, unrelated contrast": other,
    }
    methods["weighted PCA (oracle rank)"] = lambda: _best_pca(noisy, phantom.mean)
    methods["true spectra, likelihood"] = lambda: _true_spectra(noisy, phantom.spectra)
    for name, image in contrasts.items():
        image = image + rng.normal(0, _CONTRAST_NOISE * float(np.ptp(image)), image.shape)
        methods[name] = lambda c=image: spectral.denoise(noisy, contrast=c)
    if slow:
        methods["autoencoder, likelihood"] = lambda: spectral.denoise(
            noisy, recipe="autoencoder", fit_steps=fit_steps
        )
        methods["autoencoder (paper)"] = lambda: spectral.denoise(
            noisy, recipe="paper", fit_steps=fit_steps
        )
    return methods


def _best_gaussian(noisy: NDArray, mean: NDArray) -> NDArray:
    """The width in space and energy that the truth likes best: unfair to the others."""
    tries = (
        gaussian_filter(noisy, (space, space, along))
        for along in (0.5, 1.0, 1.5)
        for space in (1.0, 1.5, 2.0, 3.0)
    )
    return min(tries, key=lambda z: float(np.square(z - mean).mean()))


def _best_pca(noisy: NDArray, mean: NDArray) -> NDArray:
    """Poisson-weighted PCA (Keenan and Kotula 2004) with the rank that the truth likes best."""
    rows, cols, bins = noisy.shape
    y = noisy.reshape(-1, bins).astype(np.float64)
    along, across = np.sqrt(y.mean(axis=0) + 1e-9), np.sqrt(y.mean(axis=1) + 1e-9)
    u, s, v = np.linalg.svd(y / along / across[:, None], full_matrices=False)
    best, least = noisy, np.inf
    for rank in range(1, _MOST_RANK + 1):
        z = (u[:, :rank] * s[:rank]) @ v[:rank] * along * across[:, None]
        z = z.reshape(rows, cols, bins)
        error = float(np.square(z - mean).mean())
        if error < least:
            best, least = z, error
    return best


def _true_spectra(noisy: NDArray, spectra: NDArray[np.float64]) -> NDArray:
    """Each pixel by itself, with the true spectra: Poisson likelihood (Richardson-Lucy steps)."""
    y = noisy.reshape(-1, noisy.shape[2]).astype(np.float64)
    amount = np.full((len(y), len(spectra)), 1.0) * y.sum(axis=1, keepdims=True)
    amount /= max(float(spectra.sum()), 1e-12)
    total = spectra.sum(axis=1)
    for _ in range(_ML_ROUNDS):
        expected = np.maximum(amount @ spectra, 1e-12)
        amount *= (y / expected) @ spectra.T / total
    return (amount @ spectra).reshape(noisy.shape)


def score_cube(
    found: NDArray | Estimate, noisy: NDArray, phantom: SpectrumPhantom, took: float
) -> dict[str, float]:
    """The figures of one result; see `evaluate_spectral`."""
    mean = phantom.mean
    values = np.asarray(found.values if isinstance(found, Estimate) else found, dtype=np.float64)
    raw, ours = (float(np.square(z - mean).mean()) for z in (noisy, values))
    dwell = []
    for window in phantom.windows:
        true = mean[..., window].sum(axis=2)
        before, after = (
            float(np.square(z[..., window].sum(axis=2, dtype=np.float64) - true).mean())
            for z in (noisy, values)
        )
        dwell.append(before / max(after, 1e-12))
    bright = mean >= np.quantile(mean, 0.95)
    figures = {
        "gain dB": float(10 * np.log10(raw / max(ours, 1e-12))),
        "dwell": float(np.exp(np.mean(np.log(dwell)))),
        "worst line": float(np.min(dwell)),
        "flux %": 100 * float(values.sum() / max(float(noisy.sum()), 1e-9) - 1),
        "bright flux %": 100 * float(values[bright].sum() / mean[bright].sum() - 1),
    }
    if isinstance(found, Estimate):
        low, high = found.interval(0.9)
        inside = (low <= mean) & (mean <= high)
        figures["coverage"] = float(inside.mean())
        bins = np.searchsorted(np.quantile(mean, _EDGES), mean)
        ends = [0, *(round(100 * edge) for edge in _EDGES), 100]
        for k in range(len(ends) - 1):
            figures[f"coverage {ends[k]}-{ends[k + 1]} %"] = float(inside[bins == k].mean())
        poisson = 2 * 1.645 * np.sqrt(mean)
        figures["width"] = float((high - low).mean() / poisson.mean())
        if found.doubtful is not None:
            figures["doubtful %"] = 100 * float(found.doubtful.mean())
    figures["s"] = took
    return figures
