"""Where a map is less certain than was asked for, and how much longer it would take.

Relative uncertainty means nothing where a line is absent: it is infinite there, and no dwell helps.
So the counts say first where the line is present.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import correlate1d
from scipy.special import gammaincinv

from inscan.models.region_boxes import PixelRegion, boxed_parts, merged

__all__ = ["PrecisionRegion", "precision_regions", "present_lines"]

_WINDOWS = (3, 7)  # pixels: presence shows in what neighbours counted together
_STRONG, _EMPTY = 98.0, 10.0  # percentiles of a map: what strong and what empty places have
_FLOOR = 0.1  # of what the strong have: more of a line than that is no floor, however even
_ABOVE = 1.5  # times what the empty have
_CHANCE = 0.01  # probability that a map of the floor alone has any pixel called present
_OWN_SIGMAS = (1.0, 2.0)  # a value must be so far above 0, with counts to say so and without


@dataclass(frozen=True)
class PrecisionRegion:
    """A place whose values are less certain than was asked for.

    Attributes
    ----------
    region : PixelRegion
        Its score is the sum of ln(sigma / wanted sigma) over its pixels and lines: the nats that
        are missing.
    wanted : dict of int to float
        Share that was asked for, of every element that misses it here.
    relative_sigma : dict of int to float
        Median sigma over value of these elements, over the pixels that miss it.
    longer : float
        Additional exposure that it takes, in exposures of the map, for the element that takes
        most.
    """

    region: PixelRegion
    wanted: dict[int, float]
    relative_sigma: dict[int, float]
    longer: float


def present_lines(
    values: ArrayLike,
    sigma: ArrayLike,
    *,
    counts: ArrayLike | None = None,
    exposure: ArrayLike | None = None,
    background: ArrayLike | None = None,
    measured: ArrayLike | None = None,
) -> NDArray[np.bool_]:
    """Where each line is present.

    Parameters
    ----------
    values, sigma : array of float, shape (element, row, col)
        Estimate and its standard deviation; NaN where not measured.
    counts : array of shape (element, row, col), optional
        Raw counts.
    exposure : array of shape (row, col) or that of `counts`, optional
        Relative exposure; expected counts go with it.
    background : array of shape (element, row, col), optional
        Counts known not to come from the line.
    measured : array of bool, shape (row, col), optional

    Returns
    -------
    ndarray of bool, shape (element, row, col)
        True where the value is above its own sigma, and the counts of the pixel and its
        neighbours exceed the line's floor by more than Poisson noise does anywhere in the map with
        a probability of 1 %. The floor is what the emptiest tenth of the map holds and half of
        that again (scatter that nobody took off), but at most a tenth of what strong places have:
        a line that is everywhere is present. Without counts: where the value is above such a floor
        of values and above twice its own sigma.

    Raises
    ------
    ValueError
        On wrong shapes.
    """
    value, spread, mask = _checked(values, sigma, measured)
    if counts is None:
        floor = np.maximum(_floor(value, mask), 0.0)
        return np.asarray(mask & (value > floor) & (value > _OWN_SIGMAS[1] * spread))
    above = mask & (value > 0) & (value > _OWN_SIGMAS[0] * spread)
    number = _shaped(counts, value.shape, "counts")
    number = np.where(mask & (number > 0), number, 0.0)
    light = np.ones(value.shape)
    if exposure is not None:
        given = np.asarray(exposure, dtype=np.float64)
        if given.shape not in (value.shape, value.shape[1:]):
            raise ValueError(f"exposure has shape {given.shape}, the map {value.shape}")
        light = np.broadcast_to(np.where(np.isfinite(given) & (given > 0), given, 0.0), value.shape)
    light = np.where(mask, light, 0.0)
    known = np.zeros(value.shape)
    if background is not None:
        known = np.where(mask, _shaped(background, value.shape, "background"), 0.0)
        known = np.where(known > 0, known, 0.0)
    sums = {side: [_windowed(x, side) for x in (number, light, known)] for side in _WINDOWS}
    seen, lit, under = sums[max(_WINDOWS)]
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = np.where(lit > 0, (seen - under) / lit, 0.0)
    usual = np.array([np.median(x[m]) if m.any() else 1.0 for x, m in _each(lit, mask)])
    # One count more than seen: where next to nothing was seen, nothing is known of the floor.
    floor = np.maximum(_floor(rate, mask, 1 / np.maximum(usual, 1e-12)), 0.0)
    found = np.zeros(value.shape, dtype=bool)
    chance = _CHANCE / (len(_WINDOWS) * max(1, int(mask.any(axis=0).sum())))
    for seen, lit, under in sums.values():
        found |= seen >= _least_counts(under + floor * lit, chance)
    # A wide window next to something bright is full, the pixel in its middle need not be.
    seen, lit, under = sums[min(_WINDOWS)]
    return np.asarray(found & above & (seen > under + floor * lit))


def _floor(
    maps: NDArray[np.float64], mask: NDArray[np.bool_], more: NDArray[np.float64] | float = 0.0
) -> NDArray[np.float64]:
    """What a line has where it is absent, shape (element, 1, 1)."""
    shares = [_EMPTY, _STRONG]
    at = [np.percentile(x[m], shares) if m.any() else np.zeros(2) for x, m in _each(maps, mask)]
    empty, strong = np.array(at).T
    return np.minimum(_ABOVE * empty + more, _FLOOR * strong)[:, None, None]


def precision_regions(
    values: ArrayLike,
    sigma: ArrayLike,
    wanted: Mapping[int, float],
    *,
    present: ArrayLike,
    max_regions: int = 8,
    min_pixels: int = 4,
    pad_px: int = 1,
    names: Sequence[str] | None = None,
) -> list[PrecisionRegion]:
    """Box contiguous places where a line is present and less certain than was asked for.

    Parameters
    ----------
    values, sigma : array of float, shape (element, row, col)
        Estimate and its standard deviation; NaN where not measured.
    wanted : mapping of int to float
        Relative standard uncertainty per element index, above 0; those not named do not matter.
    present : array of bool, shape (element, row, col)
        As from `present_lines`.
    max_regions : int
        At most so many, those that miss most first.
    min_pixels : int
        Least number of touching pixels, corners included.
    pad_px : int
        Pixels added around each box, clipped at the field's edge.
    names : sequence of str, optional
        Element names for the reasons.

    Returns
    -------
    list of PrecisionRegion
        Boxes do not overlap. A place larger than a twentieth of the field is cut into parts.

    Raises
    ------
    ValueError
        On wrong shapes, or a share that is not above 0.
    """
    value, spread, mask = _checked(values, sigma, None)
    there = np.asarray(present, dtype=bool)
    if there.shape != value.shape:
        raise ValueError(f"present has shape {there.shape}, the values {value.shape}")
    if names is not None and len(names) != len(value):
        raise ValueError(f"{len(names)} names for {len(value)} elements")
    target = np.full(len(value), np.inf)
    for element, share in wanted.items():
        if not 0 <= element < len(value):
            raise ValueError(f"element {element} does not exist; the map has {len(value)}")
        if not share > 0:
            raise ValueError(f"element {element}: wanted must be above 0, got {share}")
        target[element] = share
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(value > 0, spread / value, np.inf)
        # Beyond a hundredfold nothing is known, and no dwell would help.
        lack = np.log(np.clip(relative / target[:, None, None], 1e-9, 100.0))
    lack = np.where(there & mask & (lack > 0), lack, 0.0)
    field = (value.shape[1], value.shape[2])
    found: list[PixelRegion] = []
    places = np.asarray((lack > 0).any(axis=0))
    for box, part, inside in boxed_parts(places, min_pixels=min_pixels, pad_px=pad_px):
        here = np.where(inside, lack[:, *part], 0.0)
        which = int(here.sum(axis=(1, 2)).argmax())
        row, col = np.unravel_index(int(here[which].argmax()), inside.shape)
        peak = (part[0].start + int(row), part[1].start + int(col))
        found.append(PixelRegion(box, float(here.sum()), 0.0, peak, which, 0.0, ""))
    told = [_told(region, relative, lack, target, names) for region in merged(found, field)]
    told.sort(key=lambda one: (-one.region.score, one.region.peak))
    return told[:max_regions]


def _told(
    region: PixelRegion,
    relative: NDArray[np.float64],
    lack: NDArray[np.float64],
    target: NDArray[np.float64],
    names: Sequence[str] | None,
) -> PrecisionRegion:
    """Figures and words, after boxes have joined or given way: over all that the box holds now."""
    r0, r1, c0, c1 = region.box
    own, missed = relative[:, r0:r1, c0:c1], lack[:, r0:r1, c0:c1]
    lines = [int(k) for k in np.flatnonzero((missed > 0).any(axis=(1, 2)))]
    usual = {k: float(np.median(own[k][missed[k] > 0])) for k in lines}
    # Counting noise falls with the root of the exposure: to reach a share, the sum of both
    # exposures must be (sigma / wanted)^2 of the first.
    takes = {k: (usual[k] / target[k]) ** 2 - 1 for k in lines}
    texts = []
    for k in sorted(lines, key=lambda k: -float(missed[k].sum())):
        who = names[k] if names is not None else f"element {k}"
        texts.append(
            f"{who}: relative uncertainty {100 * usual[k]:.3g} % (median of "
            f"{int((missed[k] > 0).sum())} pixels) where {100 * target[k]:.3g} % is asked for, "
            f"which takes {takes[k]:.2g} times the exposure more"
        )
    which = max(lines, key=lambda k: float(missed[k].sum()))
    at = np.unravel_index(int(missed[which].argmax()), missed[which].shape)
    whole = PixelRegion(
        region.box,
        float(missed.sum()),
        0.0,
        (r0 + int(at[0]), c0 + int(at[1])),
        which,
        0.0,
        "; ".join(texts),
    )
    return PrecisionRegion(whole, {k: float(target[k]) for k in lines}, usual, max(takes.values()))


def _least_counts(floor: NDArray[np.float64], chance: float) -> NDArray[np.float64]:
    """Number of counts that Poisson noise on `floor` reaches with a probability below `chance`.

    The probability of n counts or more is the regularised incomplete gamma function P(n, floor);
    turned around it gives the floor at which n are just so unlikely. A line between the entries of
    that table does for what would be a root per pixel.
    """
    highest = float(floor.max())
    most = ceil(highest + 12 * np.sqrt(highest)) + 40
    tried = np.unique(np.round(np.geomspace(1, most, 400)))
    return np.asarray(np.interp(floor, gammaincinv(tried, chance), tried))


def _windowed(x: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Sum over a square around every pixel, as far as it is in the field."""
    kernel = np.ones(side)
    down = correlate1d(x, kernel, axis=-2, mode="constant")
    return np.maximum(correlate1d(down, kernel, axis=-1, mode="constant"), 0.0)


def _each(
    maps: NDArray[np.float64], mask: NDArray[np.bool_]
) -> list[tuple[NDArray[np.float64], NDArray[np.bool_]]]:
    return list(zip(maps, mask, strict=True))


def _shaped(x: ArrayLike, shape: tuple[int, ...], name: str) -> NDArray[np.float64]:
    given = np.asarray(x, dtype=np.float64)
    if given.ndim == 2:
        given = given[None]
    if given.shape != shape:
        raise ValueError(f"{name} has shape {given.shape}, the values {shape}")
    return given


def _checked(
    values: ArrayLike, sigma: ArrayLike, measured: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    value, spread = (np.asarray(x, dtype=np.float64) for x in (values, sigma))
    if value.ndim != 3 or value.size == 0:
        raise ValueError(f"values must have shape (element, row, col), got {value.shape}")
    if spread.shape != value.shape:
        raise ValueError(f"sigma has shape {spread.shape}, the values {value.shape}")
    mask = np.isfinite(value) & np.isfinite(spread)
    if measured is not None:
        given = np.asarray(measured, dtype=bool)
        if given.shape != value.shape[1:]:
            raise ValueError(f"measured has shape {given.shape}, the values {value.shape}")
        mask &= given
    return np.where(mask, value, 0.0), np.where(mask, spread, 0.0), np.asarray(mask)
