"""Score deconvolution of a known probe beside filters that know the truth."""

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from inscan.models.deconvolution import deconvolve, richardson_lucy, wiener
from inscan.models.edges import EdgeRuler, edge_ruler
from inscan.models.scores import ScoreRow, summarise
from inscan.models.superres_cases import fine_truth
from inscan.models.superres_input import ForwardModel

__all__ = ["evaluate_deconvolution"]

_ELEMENTS = 3  # of the sample: the oracles are slow
_STEPS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
_EDGES = 50  # fewer pixels are no edge to measure
_RATIOS = np.geomspace(1e-3, 1.0, 10)


def evaluate_deconvolution(
    seeds: Sequence[int],
    *,
    sample: str = "cells",
    peak: float = 200.0,
    width: float = 3.0,
    progress: Callable[[str], None] | None = None,
) -> list[ScoreRow]:
    """Maps blurred by a gaussian probe and counted, against the sample itself.

    Parameters
    ----------
    seeds : sequence of int
    sample : {"cells", "siemens", "particles"}
    peak : float
        Counts of each element's brightest pixel.
    width : float
        Full width at half maximum of the probe in pixels.
    progress : callable (text), optional

    Returns
    -------
    list of ScoreRow
        ``gain dB`` over the counts, ``edge FWHM`` over the truth's, ``coverage`` of the 90 %
        intervals, seconds. Wiener's noise ratio and the steps of the oracle's Richardson-Lucy
        are chosen with the truth, for each element.
    """
    scores: dict[str, list[dict[str, float]]] = {}
    for seed in seeds:
        truth = fine_truth(sample, seed)[:_ELEMENTS].astype(np.float64)
        rulers = [edge_ruler(true) for true in truth]
        forward = ForwardModel(1, width, "point")
        rng = np.random.default_rng([seed, int(peak), 50])
        counts = rng.poisson(forward.apply(truth) * peak).astype(np.float32)
        reference = _psnr(counts / peak, truth)
        for method in ("counts", "Wiener (oracle)", "Richardson-Lucy (oracle)", "inscan"):
            began = time.perf_counter()
            coverage = np.nan
            if method == "inscan":
                found = deconvolve(counts, probe=width)
                low, high = found.interval(0.9)
                coverage = float(np.mean((low <= truth * peak) & (truth * peak <= high)))
                values = found.values / peak
            elif method == "counts":
                values = counts / peak
            elif method == "Wiener (oracle)":
                values = _best([wiener(counts, forward, r) / peak for r in _RATIOS], truth)
            else:
                values = _best(_iterates(counts, forward, peak), truth)
            scores.setdefault(method, []).append(
                {
                    "gain dB": float((_psnr(values, truth) - reference).mean()),
                    "edge FWHM": _edges(values, rulers),
                    "coverage": coverage,
                    "s": time.perf_counter() - began,
                }
            )
        if progress:
            progress(f"deconvolution of {sample}, seed {seed}")
    case = f"{sample}, probe of {width:g} pixels, peak {peak:g}"
    return [summarise(case, method, several) for method, several in scores.items()]


def _iterates(
    counts: NDArray[np.float32], forward: ForwardModel, peak: float
) -> list[NDArray[np.float64]]:
    found, done, x = [], 0, None
    for steps in _STEPS:
        x = richardson_lucy(counts, forward, steps - done, x)
        done = steps
        found.append(x / peak)
    return found


def _best(candidates: Sequence[NDArray[np.floating]], truth: NDArray) -> NDArray[np.floating]:
    scores = np.stack([_psnr(values, truth) for values in candidates])
    best = scores.argmax(axis=0)
    return np.stack([candidates[k][e] for e, k in enumerate(best)])


def _psnr(values: NDArray, truth: NDArray) -> NDArray[np.float64]:
    return -10 * np.log10(np.square(values - truth).mean(axis=(1, 2)))


def _edges(values: NDArray, rulers: Sequence[EdgeRuler]) -> float:
    ratios = [
        ruler.ratio(image)
        for image, ruler in zip(values, rulers, strict=True)
        if len(ruler.places) >= _EDGES
    ]
    return float(np.mean(ratios)) if ratios else np.nan
