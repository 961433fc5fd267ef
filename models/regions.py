"""Which places of a coarse map are worth measuring again.

Regions are ranked by the log-likelihood ratio of a matched filter on the raw counts: is there a
compact excess here that Poisson noise on the local surroundings does not explain? On the same
maps this found weak inclusions in less area than peak intensity or any ranking of denoised maps.
The ratio for "on" counts under a template and "off" counts in a ring around it is that of Li and
Ma (1983), Astrophysical Journal 272, 317, equation 17; the threshold for the number of places
looked at follows Worsley et al. (1992), J. Cereb. Blood Flow Metab. 12, 900 (expected number of
excursions of a smooth random field).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter, gaussian_filter1d, maximum_filter
from scipy.optimize import brentq, nnls
from scipy.special import xlogy

__all__ = ["PixelRegion", "find_regions", "significance_threshold"]

_TRUNCATE = 3.0  # templates end at three sigma
_SIDE_SIGMAS = 2.0
_LEAST_OFF_PIXELS = 8
_LARGEST = 0.15  # a merged box may cover this share of the field
_LEAST_ON = 0.2  # share of the template that must lie on measured pixels


@dataclass(frozen=True)
class PixelRegion:
    """A box of pixels worth measuring again.

    Attributes
    ----------
    box : tuple of int
        (row start, row stop, column start, column stop), stops exclusive.
    score : float
        Log-likelihood ratio of the strongest excess in it.
    significance : float
        The same as a number of standard deviations, sqrt(2 score).
    peak : tuple of int
        Pixel (row, column) of that excess.
    element : int
        Index of the element it was seen in.
    scale : float
        Sigma of the best matching gaussian template, pixels.
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


@dataclass(frozen=True)
class _Excess:
    """Result of one template scale: all arrays of shape (element, row, col)."""

    significance: NDArray[np.float32]
    on: NDArray[np.float32]
    expected: NDArray[np.float32]


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
        floor = np.asarray(background, dtype=np.float32).reshape(maps.shape)
        floor = np.where(mask & np.isfinite(floor), floor, 0)
    if element == "unlike":
        predicted = _predicted_by_others(maps, mask)
        floor = predicted if floor is None else np.maximum(floor, predicted)
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
    part_floor = None if floor is None else floor[searched]
    found: list[PixelRegion] = []
    sums = _Integrals(part, mask)
    for scale in scales:
        excess = _excess(part, mask, sums, part_floor, scale)
        z = excess.significance
        width = 2 * int(np.ceil(2 * scale)) + 1
        peaks = (z >= threshold) & (z == maximum_filter(z, size=(1, width, width)))
        for e, r, c in np.argwhere(peaks):
            which = searched[e]
            half = int(np.ceil(2.5 * scale)) + pad_px
            box = (
                max(0, int(r) - half),
                min(rows, int(r) + half + 1),
                max(0, int(c) - half),
                min(cols, int(c) + half + 1),
            )
            strength = float(z[e, r, c])
            label = names[which] if names is not None else f"element {which}"
            reason = (
                f"{label}: {excess.on[e, r, c]:.3g} counts within {2 * scale:.2g} pixels of row "
                f"{r}, column {c} where "
                + ("the other elements and " if element == "unlike" else "")
                + f"the surroundings predict {excess.expected[e, r, c]:.3g} "
                f"({strength:.1f} sigma; {threshold:.1f} needed)"
            )
            found.append(
                PixelRegion(box, strength**2 / 2, strength, (int(r), int(c)), which, scale, reason)
            )
    return _merge(found, (rows, cols))[:max_regions]


def significance_threshold(
    pixels: int, scales: Sequence[float], elements: int, false_alarm: float
) -> float:
    """Standard deviations above which noise alone goes with probability `false_alarm`.

    Parameters
    ----------
    pixels : int
        Measured pixels.
    scales : sequence of float
        Sigma of each template, pixels.
    elements : int
        Maps searched.
    false_alarm : float
        Between 0 and 1.

    Returns
    -------
    float
        Standard deviations.
    """
    if not 0 < false_alarm < 1:
        raise ValueError(f"false_alarm must lie between 0 and 1, got {false_alarm}")
    # White noise filtered with a gaussian of sigma s has squared gradient 1 / (2 s^2). The filter
    # cannot be smoother than the pixels it is sampled on, hence the floor.
    density = sum(1.0 / (2.0 * max(s, 0.7) ** 2) for s in scales) * pixels * elements

    def excess(z: float) -> float:
        return density * z * np.exp(-(z**2) / 2) / (2 * np.pi) ** 1.5 - false_alarm

    return float(brentq(excess, 1.0, 40.0)) if excess(1.0) > 0 else 1.0


def _checked(
    counts: ArrayLike, measured: ArrayLike | None
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    maps = np.asarray(counts, dtype=np.float32)
    if maps.ndim == 2:
        maps = maps[None]
    if maps.ndim != 3 or maps.size == 0:
        raise ValueError(f"counts must have shape (element, row, col), got {maps.shape}")
    mask = np.isfinite(maps).all(axis=0)
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


class _Integrals:
    """Sums of counts and of measured pixels over any rectangle around every pixel."""

    def __init__(self, maps: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
        self.shape = maps.shape
        self._counts = self._table(maps)
        self._pixels = self._table(mask[None].astype(np.float32))

    @staticmethod
    def _table(maps: NDArray[np.float32]) -> NDArray[np.float64]:
        table = np.zeros((maps.shape[0], maps.shape[1] + 1, maps.shape[2] + 1))
        np.cumsum(maps, axis=1, out=table[:, 1:, 1:], dtype=np.float64)
        np.cumsum(table[:, 1:, 1:], axis=2, out=table[:, 1:, 1:])
        return table

    def over(
        self, top: int, bottom: int, left: int, right: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Counts (element, row, col) and pixels (1, row, col) in rows r+top to r+bottom and
        columns c+left to c+right, ends included, clipped at the field's edge."""
        rows, cols = np.arange(self.shape[1]), np.arange(self.shape[2])
        r0 = np.clip(rows + top, 0, self.shape[1])
        r1 = np.clip(rows + bottom + 1, 0, self.shape[1])
        c0 = np.clip(cols + left, 0, self.shape[2])
        c1 = np.clip(cols + right + 1, 0, self.shape[2])
        sums = []
        for table in (self._counts, self._pixels):
            band = table[:, r1] - table[:, r0]
            sums.append(band[:, :, c1] - band[:, :, c0])
        return sums[0], sums[1]


def _excess(
    maps: NDArray[np.float32],
    mask: NDArray[np.bool_],
    sums: _Integrals,
    floor: NDArray[np.float32] | None,
    scale: float,
) -> _Excess:
    """Li-Ma significance of a gaussian template of one scale at every pixel."""
    line = gaussian_filter1d(
        np.eye(1, 2 * int(_TRUNCATE * scale + 0.5) + 1, int(_TRUNCATE * scale + 0.5))[0],
        scale,
        mode="constant",
        truncate=_TRUNCATE,
    )
    top = float(line.max()) ** 2  # the template is the gaussian over its peak value
    # A weighted sum of Poisson counts has variance below its mean; divided by `gain` it has the
    # mean and variance of a Poisson count again.
    gain = float((line**2).sum()) ** 2 / top

    def templated(x: NDArray[np.float32]) -> NDArray[np.float32]:
        spread = (0.0,) * (x.ndim - 2) + (scale, scale)
        return gaussian_filter(x, spread, mode="constant", truncate=_TRUNCATE) / top

    on = templated(maps)
    covered = templated(mask.astype(np.float32))
    inner = int(np.ceil(2.5 * scale))
    outer = inner + max(3, int(np.ceil(2.5 * scale)))
    sides = [  # four rectangles that make up the ring, as the arms of a pinwheel
        sums.over(-outer, -inner - 1, -outer, inner),
        sums.over(-outer, inner, inner + 1, outer),
        sums.over(inner + 1, outer, -inner, outer),
        sums.over(-inner, outer, -outer, -inner - 1),
    ]
    off = np.sum([s for s, _ in sides], axis=0)
    pixels = np.sum([p for _, p in sides], axis=0)
    usable = (pixels >= _LEAST_OFF_PIXELS) & mask & (covered >= _LEAST_ON / top)
    pixels = np.maximum(pixels, 1.0)
    # One count more than seen: where the ring holds next to nothing, nothing is known of it, and
    # single counts would look significant.
    level = (off + 1.0) / pixels
    for s, p in sides:
        # On the bright side of an edge the ring's mean is too low: the brighter side counts,
        # by as much as is beyond its own noise.
        here = s / np.maximum(p, 1.0)
        sure = here - _SIDE_SIGMAS * np.sqrt(np.maximum(s, 1.0)) / np.maximum(p, 1.0)
        level = np.where(p >= _LEAST_OFF_PIXELS, np.maximum(level, sure), level)
    expected = level * covered
    if floor is not None:
        expected = np.maximum(expected, templated(floor))
        level = np.maximum(level, expected / np.maximum(covered, 1e-6))
    n_on = on / gain
    ratio = covered / gain / pixels
    n_off = level * pixels
    total = n_on + n_off
    score = xlogy(n_on, (1 + ratio) / ratio * n_on / np.maximum(total, 1e-12)) + xlogy(
        n_off, (1 + ratio) * n_off / np.maximum(total, 1e-12)
    )
    z = np.sqrt(2 * np.maximum(score, 0)) * (n_on > ratio * n_off) * usable
    return _Excess(z.astype(np.float32), on.astype(np.float32), expected.astype(np.float32))


def _predicted_by_others(maps: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Each element's counts as a non-negative combination of the others' maps and a constant."""
    predicted = np.zeros_like(maps)
    if maps.shape[0] < 2:
        return predicted
    weight = np.maximum(gaussian_filter(mask.astype(np.float32), 1.0), 1e-3)
    smooth = gaussian_filter(maps, (0, 1.0, 1.0)) / weight
    columns = smooth[:, mask].astype(np.float64)
    for e in range(maps.shape[0]):
        others = [k for k in range(maps.shape[0]) if k != e]
        design = np.vstack([columns[others], np.ones(columns.shape[1])]).T
        spread = 1.0 / np.sqrt(columns[e] + 0.5)  # Poisson weights
        share, _ = nnls(design * spread[:, None], columns[e] * spread)
        predicted[e, mask] = design @ share
    return predicted


def _merge(found: list[PixelRegion], field: tuple[int, int]) -> list[PixelRegion]:
    """Strongest first. Overlapping boxes become one, unless that would be a large part of the
    field: then the weaker one gives way, and goes if its peak does not survive that."""
    limit = max(_LARGEST * field[0] * field[1], 64.0)
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


def _overlaps(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]
