"""Score `superres` on samples no network has seen, beside interpolation and published recipes."""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from inscan.models import n2n, superres
from inscan.models.edges import EdgeRuler, edge_ruler
from inscan.models.estimate import Estimate
from inscan.models.evaluate_deconvolution import evaluate_deconvolution
from inscan.models.evaluate_superres_doubt import evaluate_flat, evaluate_paired
from inscan.models.scores import ScoreRow, summarise
from inscan.models.srcnn import load_srcnn, srcnn_upscale
from inscan.models.structures import false_share, froc
from inscan.models.superres_cases import aligned_bicubic, fine_truth
from inscan.models.superres_input import ForwardModel
from inscan.models.weights import SHIPPED

__all__ = ["evaluate_all", "evaluate_superres"]

_CASES = (("cells", 200.0), ("cells", 5000.0), ("particles", 200.0))
_RECALL = 0.4
_LEVEL = 0.9
_EDGES = 50  # fewer pixels are no edge to measure
_QUANTILES = (0.25, 0.5, 0.75, 0.95)
_BINS = ("0-25 %", "25-50 %", "50-75 %", "75-95 %", "95-100 %")

Progress = Callable[[str], None]
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


def evaluate_all(seeds: Sequence[int], progress: Progress | None = None) -> list[ScoreRow]:
    """Every case: held-out families, paired phantoms, flat fields, deconvolution.

    Parameters
    ----------
    seeds : sequence of int
    progress : callable (text), optional

    Returns
    -------
    list of ScoreRow
    """
    return [
        *evaluate_superres(seeds, progress=progress),
        *evaluate_paired(seeds, progress=progress),
        *evaluate_flat(seeds, progress=progress),
        *evaluate_deconvolution(seeds, progress=progress),
    ]


def evaluate_superres(
    seeds: Sequence[int],
    *,
    factors: Sequence[int] = (2, 4),
    cases: Sequence[tuple[str, float]] = _CASES,
    progress: Progress | None = None,
) -> list[ScoreRow]:
    """Coarse maps of a box probe, Poisson counts, against the fine truth.

    Parameters
    ----------
    seeds : sequence of int
    factors : sequence of {2, 4}
    cases : sequence of (sample, peak)
        Sample "cells", "siemens" or "particles"; counts of each element's brightest coarse pixel.
    progress : callable (text), optional

    Returns
    -------
    list of ScoreRow
        ``PSNR`` in dB and ``SSIM``, means over elements; ``gain dB`` over aligned bicubic and
        ``over denoised dB`` over denoise-then-bicubic; ``edge FWHM`` over the truth's;
        ``false share``: of the spots seen, those that are none, where as many true spots are found
        as bicubic and the network both find, at most 40 %; ``coverage`` of the 90 % intervals, overall,
        by bin of true intensity and in the ``worst bin``, and their ``width`` over that of raw
        counts; ``chi2`` of the result folded back, for our own reduced by the noise it follows;
        ``doubtful %``; seconds.
    """
    rows = []
    for name, peak in cases:
        for factor in factors:
            scores: dict[str, list[dict[str, float]]] = {}
            for seed in seeds:
                for method, score in _score_one(name, factor, peak, seed).items():
                    scores.setdefault(method, []).append(score)
                if progress:
                    progress(f"{name}, {factor}x, peak {peak:g}, seed {seed}")
            case = f"{name}, {factor}x, peak {peak:g}"
            rows += [_row(case, method, several) for method, several in scores.items()]
    return rows


def _answers(
    counts: NDArray[np.float32], factor: int
) -> Mapping[str, Callable[[], Estimate | NDArray[np.floating]]]:
    """What is compared, in counts of a coarse pixel; the first two are what gains are over."""
    answers: dict[str, Callable[[], Estimate | NDArray[np.floating]]] = {
        "bicubic": lambda: aligned_bicubic(counts, factor),
        "denoise, then bicubic": lambda: aligned_bicubic(n2n.denoise(counts[None]).values, factor),
        # What a half-pixel error in the alignment of a baseline would make of every gain.
        "bicubic, half a pixel off": lambda: np.roll(
            aligned_bicubic(counts, factor), (factor // 2, factor // 2), axis=(1, 2)
        ),
        "SRCNN": lambda: srcnn_upscale(load_srcnn(factor), counts, factor),
        "inscan": lambda: superres.upscale(counts, factor=factor),
    }
    # Where somebody trained it: benchmarks/superres_paper.py.
    if (SHIPPED / f"superres_paper_x{factor}.safetensors").is_file():
        answers["published recipe"] = lambda: superres.upscale(
            counts, factor=factor, recipe="paper"
        )
    return answers


def _score_one(name: str, factor: int, peak: float, seed: int) -> dict[str, dict[str, float]]:
    """Every method's figures on one sample and one draw of the counts."""
    truth = fine_truth(name, seed)
    rulers = [edge_ruler(true) for true in truth]
    rng = np.random.default_rng([seed, factor, int(peak)])
    counts = rng.poisson(ForwardModel(factor).apply(truth) * peak).astype(np.float32)
    scores: dict[str, dict[str, float]] = {}
    curves: dict[str, list[Curve]] = {}
    for method, run in _answers(counts, factor).items():
        began = time.perf_counter()
        found = run()
        took = time.perf_counter() - began
        values = (found.values if isinstance(found, Estimate) else found) / peak
        scores[method] = {
            "PSNR": _psnr(values, truth),
            "gain dB": np.nan,
            "over denoised dB": np.nan,
            "SSIM": _similarity(values, truth),
            "edge FWHM": _edges(values, rulers),
            "false share": np.nan,
            **_intervals(found, truth * peak, counts, factor),
            "chi2": _chi2(found, values * peak, counts, factor),
            "s": took,
        }
        curves[method] = [froc(v, t) for v, t in zip(values, truth, strict=True)]
        if method == "inscan" and isinstance(found, Estimate) and found.doubtful is not None:
            scores[method]["doubtful %"] = 100 * float(found.doubtful.mean())
            curves["inscan, without the doubtful"] = [
                froc(v, t, trusted=~doubted)
                for v, t, doubted in zip(values, truth, found.doubtful, strict=True)
            ]
    for method, share in _false_shares(curves).items():
        scores.setdefault(method, {})["false share"] = share
    _fill_gains(scores)
    return scores


def _fill_gains(scores: dict[str, dict[str, float]]) -> None:
    """PSNR over that of the two baselines, in place."""
    for score in scores.values():
        for figure, baseline in (
            ("gain dB", "bicubic"),
            ("over denoised dB", "denoise, then bicubic"),
        ):
            if "PSNR" in score and baseline in scores:
                score[figure] = score["PSNR"] - scores[baseline]["PSNR"]


def _false_shares(curves: Mapping[str, Sequence[Curve]]) -> dict[str, float]:
    """Share of made-up spots at equal recall: what bicubic and the network both find, at most 40 %.

    Mean over elements; those where a method finds fewer are left out of its mean.
    """
    shares: dict[str, list[float]] = {method: [] for method in curves}
    for element in range(len(curves["bicubic"])):
        reached = [_most(curves[method][element]) for method in ("bicubic", "inscan")]
        recall = min(_RECALL, *reached)
        if recall <= 0:
            continue
        for method, of in curves.items():
            shares[method].append(false_share(of[element], recall))
    return {
        method: float(np.nanmean(several)) if np.isfinite(several).any() else np.nan
        for method, several in shares.items()
    }


def _most(curve: Curve) -> float:
    return float(curve[0][-1]) if len(curve[0]) else 0.0


def _row(case: str, method: str, several: Sequence[Mapping[str, float]]) -> ScoreRow:
    """Means over seeds; the worst bin is the lowest mean, not the mean of the lowest."""
    row = summarise(case, method, several)
    bins = [row.figures[f"coverage {name}"] for name in _BINS if f"coverage {name}" in row.figures]
    known = [one for one in bins if np.isfinite(one.mean)]
    if not known:
        return row
    figures = dict(row.figures) | {"worst bin": min(known, key=lambda one: one.mean)}
    return ScoreRow(case, method, figures, row.seeds)


def _psnr(values: NDArray, truth: NDArray) -> float:
    return float(np.mean(-10 * np.log10(np.square(values - truth).mean(axis=(1, 2)))))


def _similarity(values: NDArray, truth: NDArray) -> float:
    return float(
        np.mean(
            [
                structural_similarity(v, t, data_range=1.0)
                for v, t in zip(values.astype(np.float32), truth, strict=True)
            ]
        )
    )


def _edges(values: NDArray, rulers: Sequence[EdgeRuler]) -> float:
    ratios = [
        ruler.ratio(image)
        for image, ruler in zip(values, rulers, strict=True)
        if len(ruler.places) >= _EDGES
    ]
    return float(np.mean(ratios)) if ratios else np.nan


def _intervals(
    found: Estimate | NDArray[np.floating], mean: NDArray, counts: NDArray, factor: int
) -> dict[str, float]:
    if not isinstance(found, Estimate):
        return {}
    low, high = found.interval(_LEVEL)
    inside = (low <= mean) & (mean <= high)
    raw = np.sqrt(np.maximum(counts, 1)).repeat(factor, axis=1).repeat(factor, axis=2)
    scores = {
        "coverage": float(inside.mean()),
        "worst bin": np.nan,
        "width": float((high - low).mean() / (2 * 1.645 * raw.mean())),
    }
    bins = np.searchsorted(np.quantile(mean, _QUANTILES), mean)
    for index, name in enumerate(_BINS):
        if (bins == index).any():
            scores[f"coverage {name}"] = float(inside[bins == index].mean())
    return scores


def _chi2(
    found: Estimate | NDArray[np.floating], values: NDArray, counts: NDArray, factor: int
) -> float:
    if isinstance(found, Estimate):
        return float(np.mean(found.report["figures"]["consistency_chi2"]))
    folded = np.maximum(ForwardModel(factor).apply(values), 0)
    return float(((folded - counts) ** 2).sum() / max(float(folded.sum()), 1e-9))
