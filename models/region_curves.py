"""Recall against area of an order of boxes, and what was missed and why."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inscan.models.region_cases import FIELD_UM, SIDE, Placed, Survey
from inscan.models.region_rankings import Box, needed_sigmas

__all__ = ["Curve", "covered", "follow", "missed"]

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Curve:
    """What an order of boxes has covered after each of them.

    Attributes
    ----------
    area : ndarray of float, shape (n,)
        Share of the field, rising to 1.
    recall : ndarray of float, shape (n,)
        Share of the inclusions that lie wholly in it.
    """

    area: NDArray[np.float64]
    recall: NDArray[np.float64]

    def area_for(self, recall: float) -> float:
        """Least share of the field that holds that share of the inclusions."""
        return float(self.area[int(np.argmax(self.recall >= recall - _ROUNDING))])

    def recall_at(self, area: float) -> float:
        """Share of the inclusions held by boxes that together cover no more than `area`."""
        return float(self.recall[int(np.searchsorted(self.area, area + _ROUNDING)) - 1])


def follow(boxes: Iterable[Box], survey: Survey) -> Curve:
    """Measure box after box, then what is left of the field row by row.

    Parameters
    ----------
    boxes : iterable of Box
    survey : Survey

    Returns
    -------
    Curve
        Begins at area 0.
    """
    cover = covered(())
    open_spots = [spot.pixels() for spot in survey.inclusions]
    total = max(1, len(open_spots))
    held, areas, recalls = 0, [0.0], [1.0 - len(open_spots) / total]
    rows, cols = SIDE, SIDE
    for box in (*boxes, *((r, r + 1, 0, cols) for r in range(rows))):
        here = cover[box[0] : box[1], box[2] : box[3]]
        new = here.size - int(np.count_nonzero(here))
        if not new:
            continue
        here[...] = True
        held += new
        open_spots = [px for px in open_spots if not cover[px[:, 0], px[:, 1]].all()]
        areas.append(held / cover.size)
        recalls.append(1.0 - len(open_spots) / total)
    return Curve(np.array(areas), np.array(recalls))


def covered(boxes: Sequence[Box]) -> NDArray[np.bool_]:
    """Survey pixels that boxes hold, shape (SIDE, SIDE)."""
    cover = np.zeros((SIDE, SIDE), dtype=bool)
    for r0, r1, c0, c1 in boxes:
        cover[r0:r1, c0:c1] = True
    return cover


def missed(survey: Survey, boxes: Sequence[Box]) -> list[dict[str, Any]]:
    """Inclusions that boxes do not hold wholly: which, how many counts, where, why.

    Parameters
    ----------
    survey : Survey
    boxes : sequence of Box

    Returns
    -------
    list of dict
        ``family``, ``seed``, ``peak``; ``element``; ``um``: centre from the field's corner, slow axis first;
        ``signal`` and ``base``: counts expected in the 3 x 3 pixels around it, its own and beneath; ``counts``: those
        that were drawn there; ``why``, in words.
    """
    cover = covered(boxes)
    return [
        {
            "family": survey.family,
            "seed": survey.seed,
            "peak": survey.peak,
            "element": survey.elements[spot.element],
            "um": [round(x * FIELD_UM / SIDE, 2) for x in (spot.row, spot.col)],
            "signal": round(spot.signal, 2),
            "base": round(spot.base, 2),
            "counts": int(_drawn(survey, spot)),
            "why": _why(survey, spot, cover),
        }
        for spot in survey.inclusions
        if not cover[tuple(spot.pixels().T)].all()
    ]


def _why(survey: Survey, spot: Placed, cover: NDArray[np.bool_]) -> str:
    """The first of these that holds; all but the last say that no method could do much about it."""
    if cover[spot.pixel]:
        return "its box is too small"
    needed = needed_sigmas(len(survey.traces))
    # What the element's map holds in most places: nothing worth a name lies there.
    plain = 9 * float(np.median(survey.counts[spot.element].astype(np.float64)))
    typical = min(spot.base, max(plain, 9 * float(survey.counts[spot.element].mean()) / 2))
    if _sigmas(spot.signal, typical) < needed:
        return "too few counts"
    if _sigmas(spot.signal, spot.base) < needed:
        return "hidden by what it lies on"
    if _sigmas(_drawn(survey, spot) - spot.base, spot.base) < needed:
        return "fewer counts than expected, by chance"
    return "not seen by the filter"


def _drawn(survey: Survey, spot: Placed) -> float:
    r, c = spot.pixel
    plane = survey.counts[spot.element]
    return float(plane[max(0, r - 1) : r + 2, max(0, c - 1) : c + 2].sum())


def _sigmas(signal: float, base: float) -> float:
    """Significance of an excess over a level that is known: square root of twice the log-likelihood ratio."""
    if signal <= 0:
        return 0.0
    level = max(base, 1e-3)
    return float(np.sqrt(2 * ((signal + level) * np.log1p(signal / level) - signal)))
