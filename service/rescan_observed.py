"""What a fine map saw of the place it was sent to, to be compared with what was predicted of it. In a worker."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inscan.models.composite import Coarse, Layer
from inscan.models.regions import find_regions

_EDGE = 0.2  # share of a side that counts as surroundings
_PRESENT = 2.0  # standard deviations from which a line is there
_FAINT = 0.1  # of the strongest: what has less is surroundings


def note_observed(
    reports: Iterable[dict[str, Any]],
    survey: Layer,
    fine: Iterable[Layer],
    coarse: Coarse,
    *,
    scale: float,
) -> None:
    """Add `observed` to what a composite says of its layers.

    Parameters
    ----------
    reports : iterable of dict
        `report["composite"]["layers"]`, each with the `uid` of its run; changed.
    survey : Layer
    fine : iterable of Layer
        Of the same elements.
    coarse : Coarse
        The composite on the survey's grid.
    scale : float
        Expected radius of a spot, survey pixels.
    """
    layers = {one.uid: one for one in fine}
    for report in reports:
        layer = layers.get(str(report.get("uid")))
        if layer is None:
            continue
        finer = math.sqrt(abs(math.prod(survey.steps)) / abs(math.prod(layer.steps)))
        found = observed(
            np.asarray(layer.counts), layer.elements, measured=layer.seen(), scale_px=scale * finer
        )
        inside = np.ix_(
            _within(survey.rows, layer.rows, layer.steps[0]),
            _within(survey.cols, layer.cols, layer.steps[1]),
        )
        for k, name in enumerate(layer.elements):
            values, sigma = coarse.values[k][inside], coarse.sigma[k][inside]
            strong = np.nanmax(values, initial=0.0)
            there = values > np.maximum(_PRESENT * sigma, _FAINT * strong)
            if name in found and there.any():
                found[name]["relative_sigma"] = float(np.median(sigma[there] / values[there]))
        report["observed"] = found


def _within(
    centres: NDArray[np.float64], fine: NDArray[np.float64], step: float
) -> NDArray[np.bool_]:
    """Which survey pixels have their centres inside a fine map."""
    edge = abs(step) / 2
    return np.asarray((centres >= fine.min() - edge) & (centres <= fine.max() + edge))


def observed(
    counts: NDArray[np.floating],
    names: Sequence[str],
    *,
    measured: NDArray[np.bool_] | None = None,
    scale_px: float = 1.5,
    lines: Sequence[str] = (),
) -> dict[str, dict[str, float]]:
    """Counts of each line in a fine map, and how likely there is a spot.

    Parameters
    ----------
    counts : ndarray of float, shape (element, row, col)
        Raw counts of the channel sum, background kept.
    names : sequence of str
        Lines of the elements.
    measured : ndarray of bool, shape (row, col), optional
    scale_px : float
        Expected radius of a spot, fine pixels.
    lines : sequence of str
        Names that are wanted: a line, or several joined by `+`, whose counts are added up. Empty: each line.

    Returns
    -------
    dict
        Line to `counts` (mean per pixel), `background` (the same along the map's edge, from the median of its four
        sides) and `likelihood_ratio` (of the best compact excess, nats; 0 where there is none).

    Raises
    ------
    ValueError
        On shapes that do not fit.
    """
    maps = np.asarray(counts, dtype=np.float32)
    if maps.ndim != 3 or len(maps) != len(names):
        raise ValueError(f"counts of shape {maps.shape} for {len(names)} lines")
    seen = np.asarray(np.isfinite(maps).all(axis=0))
    if measured is not None:
        seen &= np.asarray(measured, dtype=bool)
    found = {}
    for line in lines or names:
        parts = [list(names).index(part) for part in line.split("+") if part in names]
        if len(parts) != line.count("+") + 1 or not seen.any():
            continue
        total = np.where(seen, maps[parts].sum(axis=0), 0)
        best = find_regions(
            total[None],
            measured=seen,
            scale_px=(0.7 * scale_px, scale_px, 1.6 * scale_px),
            max_regions=1,
            min_score=0.5,
            names=[line],
        )
        found[line] = {
            "counts": float(total[seen].mean()),
            "background": _background(total, seen),
            "likelihood_ratio": float(best[0].score) if best else 0.0,
        }
    return found


def _background(total: NDArray[np.floating], seen: NDArray[np.bool_]) -> float:
    """Mean counts along the sides; the median of the four, so that a neighbour at one of them does not count."""
    rows, cols = (max(1, round(_EDGE * side / 2)) for side in total.shape)
    sides = (np.s_[:rows], np.s_[-rows:], np.s_[:, :cols], np.s_[:, -cols:])
    means = [float(total[side][seen[side]].mean()) for side in sides if seen[side].any()]
    return float(np.median(means)) if means else 0.0
