"""Score a denoised set of maps against its truth: error, flux, edges, intervals."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from inscan.models.edges import EdgeRuler, edge_ruler
from inscan.models.estimate import Estimate
from inscan.models.n2n_cases import Measured
from inscan.models.scores import Figure, ScoreRow, figure, summarise

__all__ = ["COLUMNS", "edge_rulers", "map_row", "score_maps"]

COLUMNS = (
    "dwell",
    "worst/mean",
    "flux %",
    "bright flux %",
    "spot flux %",
    "edge FWHM",
    "coverage",
    "worst bin",
    "width",
    "SSIM",
    "s",
)
"""The figures of a row that are printed; rows hold each element's and each bin's as well."""

_LEVEL = 0.9
_EDGES = 50
_QUANTILES = (0.25, 0.5, 0.75, 0.95)
_BINS = ("0-25 %", "25-50 %", "50-75 %", "75-95 %", "95-100 %")


def score_maps(
    measured: Measured,
    found: Estimate | NDArray[np.floating],
    seconds: float,
    rulers: Sequence[EdgeRuler] | None = None,
) -> dict[str, float]:
    """Score one answer.

    Parameters
    ----------
    measured : Measured
    found : Estimate or ndarray, shape (element, row, col)
        Expected counts of the channel sum; arrays have no intervals.
    seconds : float
        What it took.
    rulers : sequence of EdgeRuler, optional
        `edge_rulers(measured)`, where several answers are scored.

    Returns
    -------
    dict of str to float
        ``dwell ELEMENT``: squared error of the channel sum over that of the answer, so many times
        longer would the scan have to count for raw maps as good; ``dwell``: their geometric mean.
        ``flux %``: error of the total against the counts', which is unbiased and shares the
        noise; ``bright flux %`` and ``spot flux %``: error of the total over each element's
        brightest 5 % of pixels and over the inclusions' half-maximum pixels, against the truth.
        ``edge FWHM``: see `inscan.models.edges`, mean over elements with edges.
        ``coverage`` of the 90 % intervals, overall and by bin of true intensity
        (``coverage 0-25 %``…), and ``width``: their mean over that of raw ±1.645 √counts (of at
        least 1 count). ``SSIM``: mean over elements. ``s``: seconds. NaN where there is none.
    """
    mean = measured.mean
    raw = measured.counts.sum(axis=0, dtype=np.float64)
    values = np.asarray(found.values if isinstance(found, Estimate) else found, dtype=np.float64)
    before, after = (np.square(z - mean).mean(axis=(1, 2)) for z in (raw, values))
    gain = before / np.maximum(after, 1e-12)
    bright = mean >= np.quantile(mean, 0.95, axis=(1, 2), keepdims=True)
    scores = {
        "dwell": float(np.exp(np.log(gain).mean())),
        "flux %": 100 * float((values.sum() - raw.sum()) / mean.sum()),
        "bright flux %": _bias(values, mean, bright),
        "spot flux %": _bias(values, mean, measured.spots),
        "edge FWHM": _edges(values, edge_rulers(measured) if rulers is None else rulers),
        **_intervals(found, mean, raw),
        "SSIM": _similarity(values, mean),
        "s": seconds,
    }
    return scores | {
        f"dwell {name}": float(factor) for name, factor in zip(measured.elements, gain, strict=True)
    }


def edge_rulers(measured: Measured) -> list[EdgeRuler]:
    """One for each element."""
    return [edge_ruler(true) for true in measured.mean]


def map_row(case: str, method: str, scores: Sequence[Mapping[str, float]]) -> ScoreRow:
    """Scores over seeds, with the worst element's factor and the worst bin's coverage.

    ``worst/mean`` is the lowest element's factor over the geometric mean of all, ``worst bin`` the
    lowest coverage of the five bins of intensity: means over seeds first, then the lowest.
    """
    factors = [name for name in scores[0] if name.startswith("dwell")]
    row = summarise(case, method, scores, geometric=factors)
    figures = dict(row.figures)
    elements = [name for name in factors if name != "dwell"]
    worst = min(elements, key=lambda name: figures[name].mean)
    figures["worst/mean"] = figure(
        [score[worst] / score["dwell"] for score in scores], geometric=True
    )
    bins = [figures[f"coverage {name}"] for name in _BINS]
    known = [f for f in bins if np.isfinite(f.mean)]
    none = Figure(float("nan"), float("nan"))
    figures["worst bin"] = min(known, key=lambda f: f.mean) if known else none
    return ScoreRow(case, method, figures, row.seeds)


def _bias(values: NDArray, mean: NDArray, inside: NDArray[np.bool_]) -> float:
    """Relative error of the total over some pixels, in percent."""
    if not inside.any():
        return float("nan")
    return 100 * float(values[inside].sum() / mean[inside].sum() - 1)


def _edges(values: NDArray, rulers: Sequence[EdgeRuler]) -> float:
    ratios = [
        ruler.ratio(image)
        for image, ruler in zip(values, rulers, strict=True)
        # A handful of pixels is no edge to measure at a few counts.
        if len(ruler.places) >= _EDGES
    ]
    return float(np.mean(ratios)) if ratios else float("nan")


def _intervals(
    found: Estimate | NDArray[np.floating], mean: NDArray, raw: NDArray
) -> dict[str, float]:
    names = ("coverage", "width", *(f"coverage {name}" for name in _BINS))
    scores = dict.fromkeys(names, float("nan"))
    if not isinstance(found, Estimate):
        return scores
    low, high = found.interval(_LEVEL)
    inside = (low <= mean) & (mean <= high)
    scores["coverage"] = float(inside.mean())
    plain = 2 * 1.645 * np.sqrt(np.maximum(raw, 1))
    scores["width"] = float((high - low).mean() / plain.mean())
    # A few levels only, as on a star: bins may be empty.
    bins = np.searchsorted(np.quantile(mean, _QUANTILES), mean)
    for index, name in enumerate(_BINS):
        if (bins == index).any():
            scores[f"coverage {name}"] = float(inside[bins == index].mean())
    return scores


def _similarity(values: NDArray, mean: NDArray) -> float:
    if min(mean.shape[1:]) < 7:
        return float("nan")
    return float(
        np.mean(
            [
                structural_similarity(image, true, data_range=float(np.ptp(true)) or 1.0)
                for image, true in zip(values, mean, strict=True)
            ]
        )
    )
