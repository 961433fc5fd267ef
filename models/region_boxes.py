"""Boxes on the survey's pixel grid: what a place worth measuring again is, and how places become boxes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects, label

__all__ = ["Box", "PixelRegion", "boxed_parts", "largest_box", "merged", "padded"]

Box = tuple[int, int, int, int]
"""(row start, row stop, column start, column stop), stops exclusive."""

_LARGEST = 0.05  # a merged box may cover this share of the field
_SMALLEST = 64.0  # pixels that a box may hold whatever the field
_WASTE = 1.3  # a merged box may be so much larger than those it is made of together


@dataclass(frozen=True)
class PixelRegion:
    """A box of pixels worth measuring again.

    Attributes
    ----------
    box : tuple of int
        (row start, row stop, column start, column stop), stops exclusive.
    score : float
        Log-likelihood ratio of the strongest excess in it; for doubt, the number of doubtful
        values; for precision, the nats by which the pixels together miss what is asked for.
    significance : float
        Standard deviations of the strongest excess or difference; 0 for doubt and precision.
    peak : tuple of int
        Pixel (row, column) of that excess; for doubt and precision, the worst pixel.
    element : int
        Index of the element it was seen in, most of all.
    scale : float
        Sigma of the best matching gaussian template, pixels; 0 for doubt and precision.
    reason : str
        Why, in words.
    """

    box: Box
    score: float
    significance: float
    peak: tuple[int, int]
    element: int
    scale: float
    reason: str


def largest_box(field: tuple[int, int]) -> float:
    """Pixels that a box made of several places may hold, for a field of (row, col) pixels."""
    return max(_LARGEST * field[0] * field[1], _SMALLEST)


def padded(box: Box, pad_px: int, field: tuple[int, int]) -> Box:
    """The box with so many pixels more on each side, clipped at the field's edge."""
    r0, r1, c0, c1 = box
    return (
        max(0, r0 - pad_px),
        min(field[0], r1 + pad_px),
        max(0, c0 - pad_px),
        min(field[1], c1 + pad_px),
    )


def boxed_parts(
    places: NDArray[np.bool_], *, min_pixels: int, pad_px: int
) -> Iterator[tuple[Box, tuple[slice, slice], NDArray[np.bool_]]]:
    """Contiguous places as boxes; a place larger than a box may be is cut into parts.

    Parameters
    ----------
    places : ndarray of bool, shape (row, col)
        Pixels that touch, corners included, are one place.
    min_pixels : int
        Parts with fewer pixels are passed over.
    pad_px : int
        Pixels added around each box, clipped at the field's edge.

    Yields
    ------
    box : tuple of int
        The part's pixels and the padding.
    part : tuple of slice
        Rows and columns that the part was cut from.
    inside : ndarray of bool
        Which pixels of these belong to it.
    """
    rows, cols = places.shape
    numbered, _ = label(places, structure=np.ones((3, 3)))  # type: ignore[misc]
    side = max(1, int(np.sqrt(largest_box((rows, cols)))) - 2 * pad_px)
    for number, place in enumerate(find_objects(numbered), start=1):
        for r in range(place[0].start, place[0].stop, side):
            for c in range(place[1].start, place[1].stop, side):
                part = (
                    slice(r, min(r + side, place[0].stop)),
                    slice(c, min(c + side, place[1].stop)),
                )
                inside = np.asarray(numbered[part] == number)
                if int(inside.sum()) < min_pixels:
                    continue
                at = np.argwhere(inside) + (r, c)
                (r0, c0), (r1, c1) = at.min(axis=0), at.max(axis=0)
                box = (int(r0), int(r1) + 1, int(c0), int(c1) + 1)
                yield padded(box, pad_px, (rows, cols)), part, inside


def merged(found: Sequence[PixelRegion], field: tuple[int, int]) -> list[PixelRegion]:
    """Boxes that do not overlap, strongest first.

    Overlapping boxes become one, with the score, peak and reason of the strongest, unless that
    would be a large part of the field or hold much that neither held: then the weaker one gives
    way, and goes if its peak does not survive that.
    """
    limit = largest_box(field)
    kept: list[tuple[PixelRegion, int]] = []
    for region in sorted(found, key=_rank):
        box, absorbed = region.box, []
        while True:  # what a union touches belongs to it too
            more = [k for k in kept if k not in absorbed and _overlaps(k[0].box, box)]
            if not more:
                break
            absorbed += more
            boxes = np.array([box, *(k[0].box for k in more)])
            low, high = boxes.min(axis=0), boxes.max(axis=0)
            box = (int(low[0]), int(high[1]), int(low[2]), int(high[3]))
        if not absorbed:
            kept.append((region, 0))
        elif _area(box) <= min(
            limit, _WASTE * (_area(region.box) + sum(_area(k[0].box) for k in absorbed))
        ):
            kept = [k for k in kept if k not in absorbed]
            joined = 1 + sum(k[1] for k in absorbed) + len(absorbed) - 1
            best = min([region, *(k[0] for k in absorbed)], key=_rank)
            kept.append((replace(best, box=box), joined))
        else:
            current: PixelRegion | None = region
            for other, _ in kept:
                if current is not None and _overlaps(other.box, current.box):
                    current = _trimmed(current, other.box)
            if current is not None:
                kept.append((current, 0))
    told = [
        region if not joined else replace(region, reason=f"{region.reason}; {_others(joined)}")
        for region, joined in kept
    ]
    return sorted(told, key=_rank)


def _area(box: Box) -> int:
    return (box[1] - box[0]) * (box[3] - box[2])


def _others(number: int) -> str:
    return f"{number} weaker finding{'s' if number > 1 else ''} joined to it"


def _rank(region: PixelRegion) -> tuple[float, int, tuple[int, int]]:
    return -region.score, region.element, region.peak


def _trimmed(region: PixelRegion, taken: Box) -> PixelRegion | None:
    """The largest part of a region's box outside `taken` that still holds its peak."""
    (r0, r1, c0, c1), (t0, t1, s0, s1) = region.box, taken
    row, col = region.peak
    parts = [(r0, min(r1, t0), c0, c1), (max(r0, t1), r1, c0, c1)]
    parts += [(r0, r1, c0, min(c1, s0)), (r0, r1, max(c0, s1), c1)]
    holding = [p for p in parts if p[0] <= row < p[1] and p[2] <= col < p[3]]
    if not holding:
        return None
    return replace(region, box=max(holding, key=lambda p: (p[1] - p[0]) * (p[3] - p[2])))


def _overlaps(a: Box, b: Box) -> bool:
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]
