"""Which places of a coarse map are worth measuring again.

Regions are ranked by the log-likelihood ratio of a matched filter on the raw counts: is there a
compact excess here that Poisson noise on the local surroundings does not explain? On the same
maps this found weak inclusions in less area than peak intensity or any ranking of denoised maps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import find_objects, label, maximum_filter

from inscan.models.matched_filter import (
    Floor,
    Integrals,
    excess,
    predicted_by_others,
    significance_threshold,
)

__all__ = ["PixelRegion", "doubtful_regions", "find_regions", "significance_map"]

_LARGEST = 0.05  # a merged box may cover this share of the field
_SMALLEST = 64.0  # pixels that a box may hold whatever the field


@dataclass(frozen=True)
class PixelRegion:
    """A box of pixels worth measuring again.

    Attributes
    ----------
    box : tuple of int
        (row start, row stop, column start, column stop), stops exclusive.
    score : float
        Log-likelihood ratio of the strongest excess in it; for doubt, the number of doubtful values.
    significance : float
        The same as a number of standard deviations, sqrt(2 score); 0 for doubt.
    peak : tuple of int
        Pixel (row, column) of that excess; for doubt, that in doubt for most elements.
    element : int
        Index of the element it was seen in, most of all.
    scale : float
        Sigma of the best matching gaussian template, pixels; 0 for doubt.
    reason : str
        Why, in words.
    """

    box: tuple[int, int, int, int]
    score: float
    significance: float
    peak: tuple[int, int]
    element: int
    scale: float
    reason: str


def find_regions(
    counts: ArrayLike,
    *,
    element: int | Literal["any", "unlike"] | None = None,
    measured: ArrayLike | None = None,
    background: ArrayLike | None = None,
    scale_px: float | Sequence[float] = (0.7, 1.2, 2.0, 3.3),
    max_regions: int = 8,
    min_score: float | None = None,
    false_alarm: float = 0.01,
    pad_px: int = 1,
    names: Sequence[str] | None = None,
) -> list[PixelRegion]:
    """Find compact excesses and box them.

    Parameters
    ----------
    counts : array of shape (element, row, col) or (row, col)
        Raw counts (the channel sum), >= 0. Pixels that are not finite count as not measured.
    element : int, "any", "unlike" or None
        Search one element, all ("any" or None), or all for excesses that the other elements'
        maps do not predict ("unlike"): an inclusion of a trace element, not every bright spot.
    measured : array of bool, shape (row, col), optional
        Which pixels were measured.
    background : array like `counts`, optional
        Counts known not to come from the element (continuum, overlapping lines). The local
        surroundings are taken as background where they are higher.
    scale_px : float or sequence of float
        Sigma of the gaussian templates, pixels.
    max_regions : int
        At most so many, the strongest first.
    min_score : float, optional
        Least log-likelihood ratio; by default what `false_alarm` demands.
    false_alarm : float
        Probability that a map of noise alone, all its elements, pixels and scales together,
        gives any region.
    pad_px : int
        Pixels added around each box, clipped at the field's edge.
    names : sequence of str, optional
        Element names for the reasons.

    Returns
    -------
    list of PixelRegion
        Strongest first; boxes do not overlap.

    Raises
    ------
    ValueError
        On wrong shapes, negative counts or an element that does not exist.
    """
    maps, mask = _checked(counts, measured)
    n_elements, rows, cols = maps.shape
    if isinstance(element, int) and not 0 <= element < n_elements:
        raise ValueError(f"element {element} does not exist; the map has {n_elements}")
    if not (isinstance(element, int) or element in (None, "any", "unlike")):
        raise ValueError(f"element must be an index, 'any' or 'unlike', got {element!r}")
    if names is not None and len(names) != n_elements:
        raise ValueError(f"{len(names)} names for {n_elements} elements")
    floor = None
    if background is not None:
        known = np.asarray(background, dtype=np.float32).reshape(maps.shape)
        known = np.where(mask & np.isfinite(known), known, np.float32(0))
        floor = Floor(known, np.zeros_like(known))
    if element == "unlike":
        other = predicted_by_others(maps, mask)
        if floor is not None:
            lower = other.mean < floor.mean
            other.mean[lower], other.variance[lower] = floor.mean[lower], 0
        floor = other
    searched = [element] if isinstance(element, int) else list(range(n_elements))
    scales = [float(s) for s in np.atleast_1d(np.asarray(scale_px, dtype=float))]
    if not scales or min(scales) <= 0:
        raise ValueError(f"scale_px must be > 0, got {scale_px}")
    if not mask.any():
        return []
    threshold = (
        significance_threshold(int(mask.sum()), scales, len(searched), false_alarm)
        if min_score is None
        else float(np.sqrt(2 * max(min_score, 0.0)))
    )
    part = maps[searched]
    part_floor = None
    if floor is not None:
        part_floor = Floor(floor.mean[searched], floor.variance[searched])
    found: list[PixelRegion] = []
    sums = Integrals(part, mask)
    for scale in sorted(scales):
        here = excess(part, mask, sums, part_floor, scale)
        z = here.significance
        width = 2 * int(np.ceil(2 * scale)) + 1
        peaks = (z >= threshold) & (z == maximum_filter(z, size=(1, width, width)))
        for e, r, c in np.argwhere(peaks):
            which = searched[e]
            # A wide template also answers to narrow spots: the narrow ones say where they are.
            if any(_explains(finer, which, int(r), int(c), scale) for finer in found):
                continue
            half = int(np.ceil(2 * scale)) + pad_px
            box = (
                max(0, int(r) - half),
                min(rows, int(r) + half + 1),
                max(0, int(c) - half),
                min(cols, int(c) + half + 1),
            )
            strength = float(z[e, r, c])
            label = names[which] if names is not None else f"element {which}"
            reason = (
                f"{label}: {here.on[e, r, c]:.3g} counts within {2 * scale:.2g} pixels of row "
                f"{r}, column {c} where "
                + ("the other elements and " if element == "unlike" else "")
                + f"the surroundings predict {here.expected[e, r, c]:.3g} "
                f"({strength:.1f} sigma; {threshold:.1f} needed)"
            )
            found.append(
                PixelRegion(box, strength**2 / 2, strength, (int(r), int(c)), which, scale, reason)
            )
    return _merge(found, (rows, cols))[:max_regions]


def doubtful_regions(
    doubtful: ArrayLike,
    *,
    measured: ArrayLike | None = None,
    max_regions: int = 8,
    min_pixels: int = 4,
    pad_px: int = 1,
    names: Sequence[str] | None = None,
) -> list[PixelRegion]:
    """Box contiguous places where a result is not to be trusted.

    Parameters
    ----------
    doubtful : array of bool, shape (element, row, col) or (row, col)
        As `Estimate.doubtful`.
    measured : array of bool, shape (row, col), optional
        Which pixels were measured; doubt elsewhere is no reason to measure again.
    max_regions : int
        At most so many, those with most doubtful values first.
    min_pixels : int
        Least number of touching pixels, corners included, in doubt for one element or more.
    pad_px : int
        Pixels added around each box, clipped at the field's edge.
    names : sequence of str, optional
        Element names for the reasons.

    Returns
    -------
    list of PixelRegion
        Boxes do not overlap. A place larger than a twentieth of the field is cut into parts.

    Raises
    ------
    ValueError
        On wrong shapes.
    """
    doubt = np.asarray(doubtful, dtype=bool)
    if doubt.ndim == 2:
        doubt = doubt[None]
    if doubt.ndim != 3 or doubt.size == 0:
        raise ValueError(f"doubtful must have shape (element, row, col), got {doubt.shape}")
    if measured is not None:
        given = np.asarray(measured, dtype=bool)
        if given.shape != doubt.shape[1:]:
            raise ValueError(f"measured has shape {given.shape}, the map {doubt.shape[1:]}")
        doubt = doubt & given
    if names is not None and len(names) != len(doubt):
        raise ValueError(f"{len(names)} names for {len(doubt)} elements")
    _, rows, cols = doubt.shape
    places, _ = label(doubt.any(axis=0), structure=np.ones((3, 3)))  # type: ignore[misc]
    side = max(1, int(np.sqrt(max(_LARGEST * rows * cols, _SMALLEST))) - 2 * pad_px)
    found: list[PixelRegion] = []
    for number, place in enumerate(find_objects(places), start=1):
        for r in range(place[0].start, place[0].stop, side):
            for c in range(place[1].start, place[1].stop, side):
                part = (
                    slice(r, min(r + side, place[0].stop)),
                    slice(c, min(c + side, place[1].stop)),
                )
                here = doubt[:, *part] & (places[part] == number)
                by_pixel = here.sum(axis=0)
                pixels = int((by_pixel > 0).sum())
                if pixels < min_pixels:
                    continue
                by_element = here.sum(axis=(1, 2))
                which = int(by_element.argmax())
                # A box that gives way to another keeps its peak: it must be one of that element.
                at = np.where(here[which], by_pixel, 0)
                row, col = np.unravel_index(int(at.argmax()), at.shape)
                inside = np.argwhere(by_pixel > 0) + (r, c)
                (r0, c0), (r1, c1) = inside.min(axis=0), inside.max(axis=0)
                box = (
                    max(0, int(r0) - pad_px),
                    min(rows, int(r1) + 1 + pad_px),
                    max(0, int(c0) - pad_px),
                    min(cols, int(c1) + 1 + pad_px),
                )
                who = names[which] if names is not None else f"element {which}"
                reason = (
                    f"the result is not to be trusted here: {pixels} pixels in doubt, most of "
                    f"them ({int(by_element[which])}) for {who}"
                )
                score = float(by_element.sum())
                peak = (r + int(row), c + int(col))
                found.append(PixelRegion(box, score, 0.0, peak, which, 0.0, reason))
    return _merge(found, (rows, cols))[:max_regions]


def significance_map(
    counts: ArrayLike,
    *,
    measured: ArrayLike | None = None,
    scale_px: float | Sequence[float] = (0.7, 1.2, 2.0, 3.3),
) -> NDArray[np.float32]:
    """Significance of a compact excess at every pixel, the best over the template scales.

    Parameters
    ----------
    counts, measured, scale_px
        As for `find_regions`.

    Returns
    -------
    ndarray of float32, shape (element, row, col)
        Standard deviations; 0 where nothing was measured.
    """
    maps, mask = _checked(counts, measured)
    sums = Integrals(maps, mask)
    best = np.zeros(maps.shape, dtype=np.float32)
    for scale in np.atleast_1d(np.asarray(scale_px, dtype=float)):
        np.maximum(best, excess(maps, mask, sums, None, float(scale)).significance, out=best)
    return best


def _checked(
    counts: ArrayLike, measured: ArrayLike | None
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    maps = np.asarray(counts, dtype=np.float32)
    if maps.ndim == 2:
        maps = maps[None]
    if maps.ndim != 3 or maps.size == 0:
        raise ValueError(f"counts must have shape (element, row, col), got {maps.shape}")
    mask = np.asarray(np.isfinite(maps).all(axis=0))
    if measured is not None:
        given = np.asarray(measured, dtype=bool)
        if given.shape != maps.shape[1:]:
            raise ValueError(f"measured has shape {given.shape}, the map {maps.shape[1:]}")
        mask &= given
    maps = np.where(mask, maps, 0)
    if maps.min() < 0:
        raise ValueError(
            f"counts must be >= 0, the least is {maps.min():g}; give raw counts, not values with "
            "background subtracted (that goes in `background`)"
        )
    return maps, mask


def _merge(found: list[PixelRegion], field: tuple[int, int]) -> list[PixelRegion]:
    """Strongest first. Overlapping boxes become one, unless that would be a large part of the
    field: then the weaker one gives way, and goes if its peak does not survive that."""
    limit = max(_LARGEST * field[0] * field[1], _SMALLEST)
    kept: list[PixelRegion] = []
    for region in sorted(found, key=lambda r: (-r.score, r.element, r.peak)):
        current: PixelRegion | None = region
        while current is not None:
            overlap = next((k for k in kept if _overlaps(k.box, current.box)), None)
            if overlap is None:
                kept.append(current)
                break
            a, b = overlap.box, current.box
            box = (min(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), max(a[3], b[3]))
            if (box[1] - box[0]) * (box[3] - box[2]) <= limit:
                kept.remove(overlap)
                best = overlap if overlap.score >= current.score else current
                current = replace(best, box=box)
            else:
                current = _trimmed(current, overlap.box)
    return sorted(kept, key=lambda r: (-r.score, r.element, r.peak))


def _trimmed(region: PixelRegion, taken: tuple[int, int, int, int]) -> PixelRegion | None:
    """The largest part of a region's box outside `taken` that still holds its peak."""
    (r0, r1, c0, c1), (t0, t1, s0, s1) = region.box, taken
    row, col = region.peak
    parts = [(r0, min(r1, t0), c0, c1), (max(r0, t1), r1, c0, c1)]
    parts += [(r0, r1, c0, min(c1, s0)), (r0, r1, max(c0, s1), c1)]
    holding = [p for p in parts if p[0] <= row < p[1] and p[2] <= col < p[3]]
    if not holding:
        return None
    return replace(region, box=max(holding, key=lambda p: (p[1] - p[0]) * (p[3] - p[2])))


def _explains(finer: PixelRegion, element: int, row: int, col: int, scale: float) -> bool:
    if finer.element != element or finer.scale >= scale:
        return False
    return np.hypot(finer.peak[0] - row, finer.peak[1] - col) <= 2.5 * scale


def _overlaps(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]
