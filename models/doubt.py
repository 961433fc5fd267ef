"""Where an estimate of counts should not be trusted although it is finite, and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, distance_transform_edt, uniform_filter
from scipy.stats import norm

from inscan.models.restore import residual_significance

__all__ = ["Doubt", "doubt_map", "near_unmeasured"]

_EDGE = 2.0  # pixels from what was not measured
_DIM = 0.2  # of the typical exposure
_LOCAL = 9  # pixels, side of the squares in which the scatter is tested
_SLOW = (1.5, 4.0)  # pixels, scales of what should not be left in the residual
_FALSE_ALARM = 0.01  # of a whole map


@dataclass(frozen=True)
class Doubt:
    """A map of doubt.

    Attributes
    ----------
    doubtful : ndarray of bool, shape (element, row, col)
    report : dict
        `share` of the measured values in doubt, and `reasons`.
    """

    doubtful: NDArray[np.bool_]
    report: dict[str, Any]


def doubt_map(
    counts: NDArray[np.floating],
    mean: NDArray[np.floating],
    exposure: NDArray[np.floating],
    measured: NDArray[np.bool_],
    edges: NDArray[np.bool_],
    labels: Sequence[str],
    wholly: Sequence[str | None],
) -> Doubt:
    """Gather what speaks against the estimate, place by place.

    Parameters
    ----------
    counts, mean : ndarray of float, shape (element, row, col)
        Measured counts, and those the estimate expects.
    exposure : ndarray of float, shape (element, row, col)
    measured : ndarray of bool, shape (element, row, col)
    edges : ndarray of bool, shape (element, row, col)
        See `near_unmeasured`.
    labels : sequence of str
        Name of each element.
    wholly : sequence of str or None
        For each element why all of it is in doubt, if it is.

    Returns
    -------
    Doubt
    """
    doubtful = np.zeros(mean.shape, dtype=bool)
    reasons: list[str] = []
    for k, label in enumerate(labels):
        seen = measured[k]
        if not seen.any():
            continue
        here = {
            "the residual holds structure that noise does not explain": _structure(
                counts[k], mean[k], seen
            ),
            "counts scatter otherwise than counting noise does": _scatter(counts[k], mean[k], seen),
            "next to what was not measured": edges[k],
            "hardly any beam or live time": _dim(exposure[k], seen),
        }
        if wholly[k]:
            here[str(wholly[k])] = seen
        for why, place in here.items():
            place = place & seen
            if place.any():
                doubtful[k] |= place
                reasons.append(f"{label}: {why} ({100 * place.sum() / seen.sum():.2g} %)")
    share = float(doubtful.sum() / max(int(measured.sum()), 1))
    return Doubt(doubtful, {"share": round(share, 5), "reasons": reasons})


def _threshold(places: float) -> float:
    return float(norm.isf(_FALSE_ALARM / 2 / max(places, 1.0)))


def _structure(
    counts: NDArray[np.floating], mean: NDArray[np.floating], seen: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    found = np.zeros(seen.shape, dtype=bool)
    if min(seen.shape) < 3:
        return found
    filled = np.where(seen, counts, mean)
    threshold = _threshold(float(seen.sum()))
    for scale in _SLOW:
        z = np.abs(residual_significance(filled, mean, scale))
        found |= binary_dilation(z > threshold, iterations=max(1, round(scale)))
    return found


def _scatter(
    counts: NDArray[np.floating], mean: NDArray[np.floating], seen: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Squares in which the residual's power is not that of counting noise."""
    if min(seen.shape) < _LOCAL:
        return np.zeros(seen.shape, dtype=bool)
    level = np.where(seen, np.maximum(mean, 1e-3), 0.0)
    excess = np.where(seen, (counts - mean) ** 2, 0.0) - level
    area = _LOCAL**2
    total, power = uniform_filter(excess, _LOCAL) * area, uniform_filter(level, _LOCAL) * area
    noise = np.sqrt(np.maximum(uniform_filter(2 * level**2 + level, _LOCAL), 1e-12) * area)
    # Squares of few counts have long tails; there only a scatter several times too wide counts.
    wide = (total > _threshold(seen.sum() / area) * 1.5 * noise) & (total > 0.5 * power)
    calm = (total < -_threshold(seen.sum() / area) * noise) & (total < -0.5 * power)
    return (wide | calm) & (power > 20)


def near_unmeasured(measured: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels within reach of one that was not measured; shape (element, row, col).

    The border of the whole field is none: the scan was meant to end there.
    """
    return np.stack(
        [
            np.zeros(seen.shape, dtype=bool)
            if seen.all()
            else np.asarray(distance_transform_edt(seen)) <= _EDGE
            for seen in measured
        ]
    )


def _dim(exposure: NDArray[np.floating], seen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return seen & (exposure < _DIM * float(np.median(exposure[seen])))
