"""Coarse and fine maps of one place in one estimate.

A survey and the fine maps that were taken inside it see the same sample with different pixels, exposures and beams,
from a stage that does not come back to the same place. Here each fine map is registered to the survey and compared
with it (`inscan.models.composite_place`). Where the two agree within noise their counts add up; where they do not, the
newer one stands as it is, the place is marked, and what is behind it (damage, drift, another probe) is said in words.

    from inscan.models.composite import Layer, compose
    made = compose(survey, [fine_1, fine_2], max_shift=2.0)
    made.values, made.sigma, made.source
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from inscan.models.composite_agreement import agreement
from inscan.models.composite_grid import (
    Box,
    Level,
    Summed,
    clusters,
    level_of,
    on_grid,
    placed_index,
)
from inscan.models.composite_layer import Channels, Layer, Placement
from inscan.models.composite_merge import Canvas, Coarse, merge_finer, start_canvas
from inscan.models.composite_place import place
from inscan.models.composite_words import layer_reports, summary

__all__ = [
    "Channels",
    "Coarse",
    "Composite",
    "Denoise",
    "Denoised",
    "Layer",
    "Summed",
    "compose",
    "counted",
]

MOST_PIXELS = 64 << 20
"""Pixels of an element that a composite may have; a finer grid is made coarser."""
MOST_LAYERS = 200
_LEVEL = 1.6449  # standard deviations to the ends of an interval of 90 %
_FLOOR = 0.3  # counts: what a place without any may still have


@dataclass(frozen=True)
class Denoised:
    """What a denoiser makes of counts: arrays of shape (element, row, col), NaN where nothing was measured.

    Attributes
    ----------
    values, sigma : ndarray
        Counts/s of the channel sum at reference I0, background removed; standard deviation of their error.
    low, high : ndarray
        Ends of the interval that holds the truth with a probability of 0.9.
    doubtful : ndarray of bool
    """

    values: NDArray[np.floating]
    sigma: NDArray[np.floating]
    low: NDArray[np.floating]
    high: NDArray[np.floating]
    doubtful: NDArray[np.bool_]


Denoise = Callable[[Summed], Denoised]


@dataclass(frozen=True)
class Composite:
    """One estimate of a survey's whole field.

    Attributes
    ----------
    elements : tuple of str
    values, sigma, low, high : ndarray of float32, shape (element, row, col)
        Counts/s of the channel sum at the survey's reference I0; NaN where nothing was measured.
    raw : ndarray of float32, same shape
        The same from the counts as they are, added up.
    counts, exposure : ndarray of float32, same shape
        What was added up: whole counts of finer pixels, and those of a survey pixel shared out over its parts.
    source : ndarray of uint8, shape (row, col)
        0 nothing, 1 survey, 2 fine, 3 both.
    disagrees : ndarray of bool, shape (element, row, col)
        Where scans did not agree: what stands there is the newer, or finer, one alone.
    doubtful : ndarray of bool, same shape
    rows, cols : ndarray of float64
        Centres in motor units.
    parts : (int, int)
        Pixels along the sides of a survey pixel.
    layers : tuple of dict
        For each fine map, in the order of time: `uid`, `region`, `found`, `shift` and `shift_error` (motor units, slow
        and fast; what is to be added to where the scan was sent so that it sees what the survey saw there), `agrees`,
        `used`, `reason`, `figures`.
    text : str
        All of it in words.
    coarse : Coarse
        The same on the survey's own grid.
    """

    elements: tuple[str, ...]
    values: NDArray[np.float32]
    sigma: NDArray[np.float32]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    raw: NDArray[np.float32]
    counts: NDArray[np.float32]
    exposure: NDArray[np.float32]
    source: NDArray[np.uint8]
    disagrees: NDArray[np.bool_]
    doubtful: NDArray[np.bool_]
    rows: NDArray[np.float64]
    cols: NDArray[np.float64]
    parts: tuple[int, int]
    layers: tuple[dict[str, Any], ...]
    text: str
    coarse: Coarse


def compose(
    survey: Layer,
    fine: Sequence[Layer],
    *,
    max_shift: float = 2.0,
    denoise: Denoise | None = None,
    most_pixels: int = MOST_PIXELS,
    check: Callable[[], object] = lambda: None,
) -> Composite:
    """Put a survey and the fine maps inside it together.

    Parameters
    ----------
    survey : Layer
    fine : sequence of Layer
        Of the same elements, in any order: the result is the same.
    max_shift : float
        Largest drift that is followed, survey pixels; a map farther off is left out, and said to be.
    denoise : callable, optional
        Called with counts on one grid at a time; by default they are taken as they are (`counted`).
    most_pixels : int
        Most pixels of an element.
    check : callable
        Called before each fine map is looked at: it may raise.

    Returns
    -------
    Composite

    Raises
    ------
    ValueError
        Layers that do not go together, more than 200 of them, or a limit that is not positive.
    """
    if not max_shift > 0:
        raise ValueError(f"max_shift must be > 0 survey pixels, got {max_shift}")
    if len(fine) > MOST_LAYERS:
        raise ValueError(f"{len(fine)} fine maps, at most {MOST_LAYERS} go into one composite")
    ways = {len(one.split().counts) for one in (survey, *fine)}
    if len(ways) > 1:
        raise ValueError(f"maps of {sorted(ways)} channels: give the same channels of each")
    estimate = denoise or counted
    ordered = sorted(fine, key=lambda one: (one.time, one.uid))
    placements: list[Placement] = []
    known = None
    for one in ordered:
        check()
        placed = place(survey, one, max_shift=max_shift, known=known)
        placements.append(placed)
        if placed.found and placed.agrees.any() and np.isfinite(placed.error).all():
            known = placed.shift
    used = [one for one in placements if one.used]
    levels = {id(one): level_of(survey, one.layer) for one in used}
    finest, coarsened = _finest(survey, list(levels.values()), most_pixels)
    by_level: dict[Level, list[Placement]] = {}
    for one in used:
        level = levels[id(one)]
        capped = (min(level[0], finest[0]), min(level[1], finest[1]))
        by_level.setdefault(capped, []).append(one)
    rows, cols = np.shape(survey.exposure)
    field: Box = (0, rows, 0, cols)
    base = on_grid(field, survey, 1.0, [np.arange(rows), np.arange(cols)])
    notes = []
    apart = np.zeros((len(survey.elements), rows, cols), dtype=bool)
    for one in used:
        apart |= one.differs
    same_step = by_level.pop((1, 1), [])
    own = np.zeros_like(apart)
    for one in same_step:
        own |= one.differs
    for box, summed, told in _fine_sums(survey, (1, 1), same_step):
        base.add(_whole(summed, box, base), own)
        notes += told
    # What took the survey's place there is no survey that others disagree with; its counts are the newest.
    apart &= ~(own & base.replaced)
    canvas = start_canvas(base, estimate(base), finest, apart | own)
    sampling = _sampling(used)
    for level in sorted(by_level, key=lambda one: (one[0] * one[1], one)):
        for box, summed, told in _fine_sums(survey, level, by_level[level]):
            merge_finer(canvas, base, summed, estimate(summed), box, level, sampling, apart)
            notes += told
    if coarsened:
        notes.append(coarsened)
    reports = layer_reports(survey, placements)
    return _finished(survey, canvas, finest, reports, summary(survey, placements, notes))


def counted(summed: Summed) -> Denoised:
    """Counts as they are: the rate, and the standard deviation that counting gives it."""
    counts, light, behind = summed.total()
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.where(light > 0, (counts - behind) / light, np.nan)
        # Smoothed: a pixel must not be taken for certain because its own noise was low.
        around = uniform_filter(counts, 3, axes=(1, 2), mode="nearest")
        lit = uniform_filter(light, 3, axes=(1, 2), mode="nearest")
        expected = np.maximum(around / lit * light, _FLOOR)
        if summed.background_variance is not None:
            expected = expected + summed.background_variance.sum(axis=0)
        sigma = np.where(light > 0, np.sqrt(expected) / light, np.nan)
    low = np.maximum(values - _LEVEL * sigma, 0) if not behind.any() else values - _LEVEL * sigma
    return Denoised(values, sigma, low, values + _LEVEL * sigma, np.zeros(values.shape, dtype=bool))


def _finest(survey: Layer, levels: list[Level], most_pixels: int) -> tuple[Level, str]:
    """The grid of the whole, and a word where it had to be made coarser."""
    wanted = (max([1, *(one[0] for one in levels)]), max([1, *(one[1] for one in levels)]))
    rows, cols = np.shape(survey.exposure)
    if most_pixels < rows * cols:
        raise ValueError(f"the survey has {rows * cols} pixels, a composite may have {most_pixels}")
    level = wanted
    while level[0] * level[1] * rows * cols > most_pixels:
        level = (
            max(1, level[0] - (level[0] >= level[1])),
            max(1, level[1] - (level[1] > level[0])),
        )
    if level == wanted:
        return level, ""
    text = (
        f"a grid of {wanted[0]} x {wanted[1]} parts of a survey pixel would have more than {most_pixels} pixels: it has"
        f" {level[0]} x {level[1]}"
    )
    return level, text


def _fine_sums(
    survey: Layer, level: Level, placements: Sequence[Placement]
) -> list[tuple[Box, Summed, list[str]]]:
    """Fine maps of one level added up, place by place; the newer stands where they do not agree."""
    rows, cols = (n * f for n, f in zip(np.shape(survey.exposure), level, strict=True))
    members = []
    for one in placements:
        index = placed_index(survey, one, level)
        box = _box(index, (rows, cols), level)
        if box is not None:
            members.append((one, index, box))
    found = []
    for box, numbers in clusters([box for *_, box in members]):
        told: list[str] = []
        summed: Summed | None = None
        for number in numbers:
            one, index, _ = members[number]
            newer = on_grid(box, one.layer, one.factor, index)
            if summed is None:
                summed = newer
                continue
            gives_way, why = _between(summed, newer, level, one.layer)
            told += why
            summed.add(newer, gives_way)
        assert summed is not None
        found.append((box, summed, told))
    return found


def _box(index: Sequence[NDArray[np.int64]], field: tuple[int, int], level: Level) -> Box | None:
    """Parts that a layer reaches, out to the edges of survey pixels; None where it misses the field."""
    edges = []
    for at, length, parts in zip(index, field, level, strict=True):
        low, high = max(0, int(at.min())), min(length, int(at.max()) + 1)
        if low >= high:
            return None
        edges += [low // parts * parts, -(-high // parts) * parts]
    return edges[0], edges[1], edges[2], edges[3]


def _between(
    older: Summed, newer: Summed, level: Level, layer: Layer
) -> tuple[NDArray[np.bool_], list[str]]:
    """Where a newer fine map contradicts the older ones, and in what."""
    both = ((older.layers > 0) & (newer.layers > 0)).any(axis=0)
    if not both.any():
        return np.zeros(older.layers.shape, dtype=bool), []
    blocks = []
    for one in (older, newer):
        counts, light, _ = one.total()
        blocks += [_blocked(counts * both, level), _blocked(light * both, level)]
    n_old, t_old, n_new, t_new = blocks
    inside = (t_old > 0).all(axis=0) & (t_new > 0).all(axis=0)
    scale = np.where(inside, t_old / np.where(t_new > 0, t_new, 1.0), 0.0)
    same = agreement(n_old, n_new * scale, n_new * scale**2, inside, layer, [1.0])
    away = np.repeat(np.repeat(same.differs, level[0], axis=1), level[1], axis=2)
    return away, [
        f"{layer.name} and what was measured there before it: {why}" for why in same.reasons
    ]


def _blocked(values: NDArray[np.float64], level: Level) -> NDArray[np.float64]:
    elements, rows, cols = values.shape
    split = (elements, rows // level[0], level[0], cols // level[1], level[1])
    return values.reshape(split).sum(axis=(2, 4))


def _whole(part: Summed, box: Box, like: Summed) -> Summed:
    """A part of the survey's grid as the whole of it."""
    cut = (slice(box[0], box[1]), slice(box[2], box[3]))

    def spread(values: NDArray | None) -> Any:
        if values is None:
            return None
        out = np.zeros((*values.shape[:-2], *like.layers.shape[1:]), dtype=values.dtype)
        out[..., *cut] = values
        return out

    return Summed(
        spread(part.counts),
        spread(part.exposure),
        spread(part.background),
        spread(part.background_variance),
        spread(part.layers),
        spread(part.replaced),
    )


def _sampling(used: Sequence[Placement]) -> str:
    """How the survey sampled: one way for all, that which explains most of the fine maps."""
    seen = Counter(one.sampling for one in used)
    return max(sorted(seen), key=lambda way: seen[way]) if seen else "box"


def _finished(
    survey: Layer,
    canvas: Canvas,
    parts: Level,
    reports: tuple[dict[str, Any], ...],
    text: str,
) -> Composite:
    axes = []
    for at, step, number in zip((survey.rows, survey.cols), survey.steps, parts, strict=True):
        fine = (np.arange(len(at) * number) + 0.5) / number - 0.5
        axes.append(np.asarray(at[0] + fine * step if number > 1 else at, dtype=np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        raw = np.where(
            canvas.exposure > 0, (canvas.counts - canvas.background) / canvas.exposure, np.nan
        )
    return Composite(
        survey.elements,
        canvas.values,
        canvas.sigma,
        canvas.low,
        canvas.high,
        raw.astype(np.float32),
        canvas.counts,
        canvas.exposure,
        canvas.source,
        canvas.disagrees,
        canvas.doubtful,
        axes[0],
        axes[1],
        parts,
        reports,
        text,
        canvas.coarse,
    )
