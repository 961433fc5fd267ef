"""Which places of a coarse map are worth measuring again.

Regions are ranked by the log-likelihood ratio of a matched filter on the raw counts: is there a
compact excess here that Poisson noise on the local surroundings does not explain? On the same
maps this found weak inclusions in less area than peak intensity or any ranking of denoised maps.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter, maximum_filter

from inscan.models.matched_filter import (
    Floor,
    Integrals,
    excess,
    predicted_by_others,
    significance_threshold,
)
from inscan.models.region_boxes import PixelRegion, boxed_parts, merged, padded
from inscan.models.region_input import counted

__all__ = ["PixelRegion", "doubtful_regions", "find_regions", "significance_map"]

_FALSE_ALARM = 0.01
_OTHERS = 1.0  # pixels over which what other elements predict is averaged
_STRONGER = 1.3  # a wide template must beat the narrow one by so much to be what is there


def find_regions(
    counts: ArrayLike,
    *,
    element: int | Sequence[int] | Literal["any", "unlike"] | None = None,
    together: Sequence[int] = (),
    beside_others: bool = False,
    measured: ArrayLike | None = None,
    exposure: ArrayLike | None = None,
    background: ArrayLike | None = None,
    background_variance: ArrayLike | None = None,
    scale_px: float | Sequence[float] = (0.7, 1.2, 2.0, 3.3),
    max_regions: int = 8,
    min_score: float | None = None,
    false_alarm: float | None = None,
    pad_px: int = 1,
    names: Sequence[str] | None = None,
) -> list[PixelRegion]:
    """Find compact excesses and box them.

    Parameters
    ----------
    counts : array of shape (element, row, col) or (row, col)
        Raw counts (the channel sum), >= 0. Pixels that are not finite count as not measured; an
        element without a finite pixel is not searched.
    element : int, sequence of int, "any", "unlike" or None
        Search one element, several, all ("any" or None), or all for excesses that the other
        elements' maps do not predict ("unlike"): an inclusion of a trace element, not every
        bright spot.
    together : sequence of int
        Elements whose counts are added up and searched as one besides: a place that is weak in
        each of them may be clear in their sum.
    beside_others : bool
        Take what the other elements predict, smoothed, as background where it is higher: an
        inclusion of a trace element, not the structure that it shares with bright ones. Milder
        than "unlike", which takes their counts pixel by pixel.
    measured : array of bool, shape (row, col), optional
        Which pixels were measured.
    exposure : array of shape (row, col) or that of `counts`, optional
        Relative exposure (live time x I0): expected counts go with it, so that dropouts and drift
        are no structure. Pixels without, or with less than a twentieth of the typical one, count
        as not measured.
    background : array like `counts`, optional
        Counts known not to come from the element (continuum, overlapping lines). The local
        surroundings are taken as background where they are higher.
    background_variance : array like `counts`, optional
        Variance of `background`, where it was measured itself.
    scale_px : float or sequence of float
        Sigma of the gaussian templates, pixels.
    max_regions : int
        At most so many, the strongest first.
    min_score : float, optional
        Least log-likelihood ratio.
    false_alarm : float, optional
        Probability that a map of noise alone, all its elements, pixels and scales together,
        gives any region. Where `min_score` is given too, both must hold; where neither is, 0.01.
    pad_px : int
        Pixels added around each box, clipped at the field's edge.
    names : sequence of str, optional
        Element names for the reasons.

    Returns
    -------
    list of PixelRegion
        Strongest first; boxes do not overlap. What was found in a sum of elements has the index
        of the one that stands out most.

    Raises
    ------
    ValueError
        On wrong shapes, negative counts or exposures, or an element that does not exist.
    """
    maps, light, alive = counted(counts, measured, exposure)
    n_elements, rows, cols = maps.shape
    scales = _scales(scale_px)
    if names is not None and len(names) != n_elements:
        raise ValueError(f"{len(names)} names for {n_elements} elements")
    searched = [k for k in _searched(element, n_elements) if alive[k]]
    groups: list[tuple[int, ...]] = [(k,) for k in range(n_elements)]
    summed = tuple(k for k in dict.fromkeys(_existing(together, n_elements)) if alive[k])
    if len(summed) > 1:
        groups.append(summed)
        searched.append(n_elements)
        maps = np.concatenate([maps, maps[list(summed)].sum(axis=0, keepdims=True)])
        if len(light) > 1:
            light = np.concatenate([light, light[list(summed)].mean(axis=0, keepdims=True)])
    if not (light > 0).any() or not searched:
        return []
    floor = _known(background, background_variance, groups, light, (n_elements, rows, cols))
    unlike = element == "unlike"
    if unlike or beside_others:
        other = predicted_by_others(maps, light, groups)
        floor = _higher(other if unlike else _smooth(other, light), floor)
    threshold = float(np.sqrt(2 * max(min_score or 0.0, 0.0)))
    if false_alarm is not None or min_score is None:
        chance = _FALSE_ALARM if false_alarm is None else false_alarm
        pixels = int((light > 0).any(axis=0).sum())
        threshold = max(
            threshold,
            significance_threshold(pixels, scales, len(searched), chance, rows + cols),
        )
    found: list[PixelRegion] = []
    for which in searched:
        own = slice(which, which + 1)
        found += _found_in(
            maps[own],
            light if len(light) == 1 else light[own],
            None if floor is None else Floor(floor.mean[own], floor.variance[own]),
            scales,
            threshold,
            which,
            pad_px,
            " + ".join(names[k] if names is not None else f"element {k}" for k in groups[which]),
            "the other elements and the surroundings"
            if unlike or beside_others
            else "the surroundings",
        )
    return [
        _of_element(region, maps, groups) for region in merged(found, (rows, cols))[:max_regions]
    ]


def _found_in(
    one: NDArray[np.float32],
    light: NDArray[np.float32],
    floor: Floor | None,
    scales: Sequence[float],
    threshold: float,
    which: int,
    pad_px: int,
    label: str,
    by: str,
) -> list[PixelRegion]:
    """Every place that stands out of one map, shape (1, row, col), once; boxes may overlap."""
    field = (one.shape[1], one.shape[2])
    sums = Integrals(one, light)
    found: list[PixelRegion] = []
    for scale in sorted(scales):
        here = excess(one, light, sums, floor, scale)
        z = here.significance[0]
        half = int(np.ceil(2 * scale))
        peaks = (z >= threshold) & (z == maximum_filter(z, size=2 * half + 1))
        for row, col in np.argwhere(peaks).tolist():
            strength = float(z[row, col])
            reason = (
                f"{label}: {here.on[0, row, col]:.3g} counts within {2 * scale:.2g} pixels of row "
                f"{row}, column {col} where {by} predict {here.expected[0, row, col]:.3g} "
                f"({strength:.1f} sigma; {threshold:.1f} needed)"
            )
            box = padded((row - half, row + half + 1, col - half, col + half + 1), pad_px, field)
            region = PixelRegion(box, strength**2 / 2, strength, (row, col), which, scale, reason)
            _note(found, region)
    return found


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
    field = (doubt.shape[1], doubt.shape[2])
    found: list[PixelRegion] = []
    places = np.asarray(doubt.any(axis=0))
    for box, part, inside in boxed_parts(places, min_pixels=min_pixels, pad_px=pad_px):
        here = doubt[:, *part] & inside
        by_pixel, by_element = here.sum(axis=0), here.sum(axis=(1, 2))
        which = int(by_element.argmax())
        # A box that gives way to another keeps its peak: it must be one of that element.
        at = np.where(here[which], by_pixel, 0)
        row, col = np.unravel_index(int(at.argmax()), at.shape)
        who = names[which] if names is not None else f"element {which}"
        reason = (
            f"the result is not to be trusted here: {int((by_pixel > 0).sum())} pixels in doubt, "
            f"most of them ({int(by_element[which])}) for {who}"
        )
        peak = (part[0].start + int(row), part[1].start + int(col))
        found.append(PixelRegion(box, float(by_element.sum()), 0.0, peak, which, 0.0, reason))
    return merged(found, field)[:max_regions]


def significance_map(
    counts: ArrayLike,
    *,
    measured: ArrayLike | None = None,
    exposure: ArrayLike | None = None,
    scale_px: float | Sequence[float] = (0.7, 1.2, 2.0, 3.3),
) -> NDArray[np.float32]:
    """Significance of a compact excess at every pixel, the best over the template scales.

    Parameters
    ----------
    counts, measured, exposure, scale_px
        As for `find_regions`.

    Returns
    -------
    ndarray of float32, shape (element, row, col)
        Standard deviations; 0 where nothing was measured.
    """
    maps, light, _ = counted(counts, measured, exposure)
    sums = Integrals(maps, light)
    best = np.zeros(maps.shape, dtype=np.float32)
    for scale in _scales(scale_px):
        np.maximum(best, excess(maps, light, sums, None, scale).significance, out=best)
    return best


def _scales(scale_px: float | Sequence[float]) -> list[float]:
    scales = [float(s) for s in np.atleast_1d(np.asarray(scale_px, dtype=float))]
    if not scales or not all(0 < s < np.inf for s in scales):
        raise ValueError(f"scale_px must be > 0, got {scale_px}")
    return scales


def _searched(element: int | Sequence[int] | str | None, n_elements: int) -> list[int]:
    if element is None or element in ("any", "unlike"):
        return list(range(n_elements))
    if isinstance(element, str):
        raise ValueError(f"element must be an index, several, 'any' or 'unlike', got {element!r}")
    wanted = [element] if isinstance(element, int | np.integer) else list(element)
    return list(dict.fromkeys(_existing(wanted, n_elements)))


def _existing(elements: Sequence[int], n_elements: int) -> list[int]:
    for one in elements:
        if not 0 <= one < n_elements:
            raise ValueError(f"element {one} does not exist; the map has {n_elements}")
    return [int(one) for one in elements]


def _known(
    background: ArrayLike | None,
    variance: ArrayLike | None,
    groups: Sequence[tuple[int, ...]],
    light: NDArray[np.float32],
    shape: tuple[int, int, int],
) -> Floor | None:
    """The background given, for every map that is searched, 0 where not measured."""
    if background is None:
        return None
    mask = (light > 0).any(axis=0)

    def of_groups(x: ArrayLike | None) -> NDArray[np.float32]:
        if x is None:
            return np.zeros((len(groups), *shape[1:]), dtype=np.float32)
        given = np.asarray(x, dtype=np.float32)
        if given.ndim == 2:
            given = given[None]
        if given.shape != shape:
            raise ValueError(f"background has shape {given.shape}, the map {shape}")
        # Estimated from both sides of a peak it may come out below nothing.
        given = np.where(mask & np.isfinite(given), np.maximum(given, 0), np.float32(0))
        return np.stack([given[list(group)].sum(axis=0) for group in groups])

    return Floor(of_groups(background), of_groups(variance))


def _smooth(floor: Floor, light: NDArray[np.float32]) -> Floor:
    """What others predict on average around each pixel: their noise is not to hide, or make, a place."""
    around = gaussian_filter(light, (0, _OTHERS, _OTHERS))
    # Per exposure, lest a dropout be given the light of its neighbours.
    mean = gaussian_filter(floor.mean, (0, _OTHERS, _OTHERS)) / np.maximum(around, 1e-3) * light
    return Floor(mean.astype(np.float32), np.zeros_like(floor.variance))


def _higher(one: Floor, other: Floor | None) -> Floor:
    """The higher of two floors, pixel by pixel."""
    if other is None:
        return one
    lower = one.mean < other.mean
    return Floor(
        np.where(lower, other.mean, one.mean), np.where(lower, other.variance, one.variance)
    )


def _of_element(
    region: PixelRegion, maps: NDArray[np.float32], groups: Sequence[tuple[int, ...]]
) -> PixelRegion:
    """What was found in a sum belongs to the element that stands out most in its box."""
    group = groups[region.element]
    if len(group) == 1:
        return region
    r0, r1, c0, c1 = region.box
    own = maps[list(group)].astype(np.float64)
    usual = own.mean(axis=(1, 2))
    above = (own[:, r0:r1, c0:c1].mean(axis=(1, 2)) - usual) / np.sqrt(np.maximum(usual, 1e-9))
    return replace(region, element=group[int(above.argmax())])


def _note(found: list[PixelRegion], region: PixelRegion) -> None:
    """Add what a template answers to, unless narrower ones say better where that is.

    A wide template also answers to narrow spots. How far they stand out is its to say, where that
    is more; but a speck of noise on something wide does not stand for it.
    """
    finer = [k for k, one in enumerate(found) if _explains(one, region)]
    if not finer:
        found.append(region)
        return
    best = max(finer, key=lambda k: found[k].score)
    if region.score > found[best].score:
        found[best] = replace(
            found[best],
            score=region.score,
            significance=region.significance,
            reason=region.reason,
        )


def _explains(finer: PixelRegion, wider: PixelRegion) -> bool:
    if finer.scale >= wider.scale or wider.significance > _STRONGER * finer.significance:
        return False
    return bool(np.hypot(*np.subtract(finer.peak, wider.peak)) <= 2.5 * wider.scale)
