"""Score `subspace` on battery particles, which no network has seen, beside simpler methods.

    python -m inscan.models.evaluate_subspace

Stacks of 120 energies. "gaussian": optical density scaled to 255 with noise of 10, 50, 150 of it.
"poisson": transmission of a few hundred counts a pixel, its variance known.
"""

import argparse
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, median_filter

from inscan.models import subspace
from inscan.models.gram import GramAccumulator
from inscan.models.infer import load_denoiser
from inscan.models.lowrank import denoise_coefficients, plain_basis
from inscan.models.scores import ScoreRow, score_table, summarise
from inscan.models.xanes import edge_energy, fit_references, optical_density
from inscan.profiles.samples import battery_xanes, ni_energies_ev

__all__ = ["evaluate_gaussian", "evaluate_poisson"]

_ENERGIES = 120
_SIZE = 160
_SOLID = 0.25  # edge jump of pixels whose chemistry is scored, of the strongest pixel's
_BASELINE = (0.0, 2.0, 2.0)  # sigma along energy, rows and columns
_RANK = 3


def evaluate_gaussian(
    seeds: Sequence[int] = range(3),
    sigmas: Sequence[float] = (10.0, 50.0, 150.0),
    chemistry: str = "smooth",
    energies: int = _ENERGIES,
) -> list[ScoreRow]:
    """Noise of the same strength everywhere, in units in which the brightest value is 255.

    Parameters
    ----------
    seeds : sequence of int
    sigmas : sequence of float
    chemistry : {"smooth", "fine", "random"}
    energies : int

    Returns
    -------
    list of ScoreRow
        Figures: FPSNR (mean PSNR of frames) and pooled PSNR in dB; r, slope and rmse (eV) of the
        edge energy against the truth; r of the mean state from a fit of references; seconds.
    """
    rows = []
    grid = ni_energies_ev(energies)
    for sigma in sigmas:
        scores: dict[str, list[dict[str, float]]] = {}
        for seed in seeds:
            sample = battery_xanes(seed, chemistry=chemistry, size=_SIZE)  # type: ignore[arg-type]
            density = sample.optical_density(grid)
            scale = 255.0 / float(density.max())
            clean = density * scale
            rng = np.random.default_rng([seed, int(sigma)])
            noise = rng.standard_normal(clean.shape).astype(np.float32)
            noisy = clean + np.float32(sigma) * noise
            methods: dict[str, Callable[[], NDArray[np.floating]]] = {
                "noisy": lambda y=noisy: y,
                "median 3 x 3 x 3": lambda y=noisy: median_filter(y, 3),
                "gaussian": lambda y=noisy: gaussian_filter(y, _BASELINE),
                "SVD, rank 3": lambda y=noisy: _truncated(y, y),
                "inscan": lambda y=noisy: subspace.denoise(y).values,
                "inscan paper": lambda y=noisy: subspace.denoise(y, recipe="paper").values,
                "true basis": lambda y=noisy, x=clean, s=sigma: _oracle(y, x, s),
            }
            for name, method in methods.items():
                began = time.perf_counter()
                values = method()
                took = time.perf_counter() - began
                error = np.square(values - clean).mean(axis=(1, 2))
                score = {
                    "FPSNR": float(np.mean(10 * np.log10(255**2 / np.maximum(error, 1e-12)))),
                    "PSNR": float(10 * np.log10(255**2 / max(float(error.mean()), 1e-12))),
                    **_chemistry(values / scale, grid, sample),
                    "s": took,
                }
                scores.setdefault(name, []).append(score)
        case = f"{chemistry} chemistry, {energies} energies, sigma {sigma:g} of 255"
        rows += [summarise(case, name, several) for name, several in scores.items()]
    return rows


def evaluate_poisson(
    seeds: Sequence[int] = range(3),
    counts: Sequence[float] = (30.0, 300.0),
    chemistry: str = "fine",
    energies: int = _ENERGIES,
) -> list[ScoreRow]:
    """Transmission from counts, denoised with its variance, optical density only afterwards.

    Parameters
    ----------
    seeds : sequence of int
    counts : sequence of float
        Of the open beam, per pixel and frame.
    chemistry, energies
        As for `evaluate_gaussian`.

    Returns
    -------
    list of ScoreRow
        Figures of the edge energy, and coverage of the 90 % intervals of transmission.
    """
    rows = []
    grid = ni_energies_ev(energies)
    for open_beam in counts:
        scores: dict[str, list[dict[str, float]]] = {}
        for seed in seeds:
            sample = battery_xanes(seed, chemistry=chemistry, size=_SIZE)  # type: ignore[arg-type]
            clean = np.exp(-sample.optical_density(grid))
            rng = np.random.default_rng([seed, int(open_beam), 1])
            noisy = (rng.poisson(clean * open_beam) / open_beam).astype(np.float32)
            # The variance people have: from the counts seen, kept above that of one count.
            variance = np.maximum(noisy, 1 / open_beam) / open_beam
            estimate = subspace.denoise(noisy, variance=variance)
            low, high = estimate.interval(0.9)
            inside = float(np.mean((low <= clean) & (clean <= high)))
            smooth = gaussian_filter(noisy, _BASELINE)
            for name, values, covered in (
                ("noisy", noisy, np.nan),
                ("gaussian", smooth, np.nan),
                ("inscan", estimate.values, inside),
            ):
                density = optical_density(np.maximum(values, 1e-3))[0]
                score = _chemistry(density, grid, sample)
                scores.setdefault(name, []).append({**score, "coverage": covered})
        case = f"{chemistry} chemistry, transmission of {open_beam:g} counts"
        rows += [summarise(case, name, several) for name, several in scores.items()]
    return rows


def _chemistry(density: NDArray, grid: NDArray[np.float64], sample) -> dict[str, float]:
    solid = sample.jump > _SOLID * sample.jump.max()
    middle = float(np.nanmean(sample.edge_energy()[solid]))
    truth = sample.edge_energy()[solid].astype(np.float64) - middle
    seen = edge_energy(density, grid, min_jump=0.0).energy[solid] - middle
    # No edge found counts as the mean edge: leaving such pixels out would flatter noisy methods.
    seen = np.where(np.isfinite(seen), seen, np.nanmean(seen) if np.isfinite(seen).any() else 0)
    references = np.stack([state(grid) for state in sample.spectra])
    fit = fit_references(density, grid, references, min_amount=0.0).fractions[:, solid]
    state = np.tensordot(np.arange(len(references)), np.nan_to_num(fit, nan=1 / 3), axes=1)
    true_state = np.tensordot(np.arange(len(references)), sample.fractions[:, solid], axes=1)
    return {
        "r": float(np.corrcoef(seen, truth)[0, 1]),
        "slope": float(np.polyfit(truth, seen, 1)[0]),
        "rmse eV": float(np.sqrt(np.mean((seen - truth) ** 2))),
        "r LCF": float(np.corrcoef(state, true_state)[0, 1]),
    }


def _basis(stack: NDArray) -> NDArray[np.float64]:
    gram = GramAccumulator(stack)
    gram.advance(len(stack))
    return plain_basis(gram.plain(), _RANK).vectors


def _truncated(stack: NDArray, of: NDArray) -> NDArray:
    v = _basis(of)
    return np.tensordot(v @ v.T, stack, axes=1)


def _oracle(stack: NDArray, clean: NDArray, sigma: float) -> NDArray:
    """The limit of any better basis: the true one, with the same network."""
    v = _basis(clean)
    images = np.tensordot(v.T, stack, axes=1).astype(np.float32)
    kept = denoise_coefficients(
        images / np.float32(sigma),
        np.ones(images.shape[1:], dtype=np.float32),
        load_denoiser(),
        rng=np.random.default_rng(0),
        least=_RANK,
        contiguous=True,
        tta=8,
    )
    return np.tensordot(v[:, kept.kept], kept.images * sigma, axes=1)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(parser.parse_args().seeds)
    print(score_table(evaluate_gaussian(seeds)), flush=True)
    print(score_table(evaluate_gaussian(seeds, (50.0,), "fine")), flush=True)
    print(score_table(evaluate_poisson(seeds)), flush=True)


if __name__ == "__main__":
    main()
