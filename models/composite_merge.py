"""The whole field of a composite: the survey carried to the finest grid, and finer maps put into it."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from inscan.models.composite_grid import Box, Level, Summed, footprint

__all__ = ["Canvas", "Coarse", "Result", "merge_finer", "start_canvas"]


class Result(Protocol):
    """Values of a place with their uncertainty, as `inscan.models.composite.Denoised` has them."""

    @property
    def values(self) -> NDArray[np.floating]: ...
    @property
    def sigma(self) -> NDArray[np.floating]: ...
    @property
    def low(self) -> NDArray[np.floating]: ...
    @property
    def high(self) -> NDArray[np.floating]: ...
    @property
    def doubtful(self) -> NDArray[np.bool_]: ...


@dataclass
class Canvas:
    """What is known of the field so far; arrays as `inscan.models.composite.Composite` has them."""

    parts: Level
    values: NDArray[np.float32]
    sigma: NDArray[np.float32]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    counts: NDArray[np.float32]
    exposure: NDArray[np.float32]
    background: NDArray[np.float32]
    source: NDArray[np.uint8]
    disagrees: NDArray[np.bool_]
    doubtful: NDArray[np.bool_]
    coarse: "Coarse"


@dataclass
class Coarse:
    """The same on the survey's grid, as its places are named: each ndarray of float64, shape (element, row, col).

    Attributes
    ----------
    values, sigma : ndarray
        Means over survey pixels; where a pixel was measured finer its parts share their errors.
    counts, exposure, background : ndarray
        Of all scans together.
    """

    values: NDArray[np.float64]
    sigma: NDArray[np.float64]
    counts: NDArray[np.float64]
    exposure: NDArray[np.float64]
    background: NDArray[np.float64]


def start_canvas(base: Summed, result: Result, parts: Level, apart: NDArray[np.bool_]) -> Canvas:
    """Carry what is known on the survey's grid to the finest one.

    A part of a survey pixel has the pixel's value. What it may differ by within the pixel is read from the slope of the
    values there and added to sigma: the variance of a straight slope over the width of the pixel.

    Parameters
    ----------
    base : Summed
        Counts on the survey's grid.
    result : Result
        What was made of them.
    parts : (int, int)
        Parts of a survey pixel along rows and columns.
    apart : ndarray of bool, shape (element, row, col)
        Survey pixels where scans did not agree.
    """
    values = np.asarray(result.values, dtype=np.float64)
    sigma = np.asarray(result.sigma, dtype=np.float64)
    wider = sigma.copy()
    for axis, number in ((1, parts[0]), (2, parts[1])):
        if number > 1 and values.shape[axis] > 1:
            slope = np.nan_to_num(np.gradient(values, axis=axis))
            wider = np.sqrt(wider**2 + slope**2 / 12)
    arms = wider / np.where(sigma > 0, sigma, 1.0)
    low = values - (values - result.low) * arms
    low = np.where(np.asarray(result.low) >= 0, np.maximum(low, 0), low)
    high = values + (result.high - values) * arms
    counts, light, behind = base.total()
    share = 1.0 / (parts[0] * parts[1])
    several = (base.layers > 1).any(axis=0)
    alone = (base.replaced & (base.layers > 0)).all(axis=0)
    source = np.where(base.layers.any(axis=0), np.uint8(1), np.uint8(0))
    source[several] = 3
    source[alone] = 2

    def carried(one: NDArray) -> NDArray:
        return np.repeat(np.repeat(one, parts[0], axis=-2), parts[1], axis=-1)

    return Canvas(
        parts,
        values=carried(values.astype(np.float32)),
        sigma=carried(wider.astype(np.float32)),
        low=carried(low.astype(np.float32)),
        high=carried(high.astype(np.float32)),
        counts=carried((counts * share).astype(np.float32)),
        exposure=carried((light * share).astype(np.float32)),
        background=carried((behind * share).astype(np.float32)),
        source=carried(source.astype(np.uint8)),
        disagrees=carried(apart | base.replaced),
        doubtful=carried(np.asarray(result.doubtful, dtype=bool)),
        coarse=Coarse(values, sigma, counts, light, behind),
    )


def merge_finer(
    canvas: Canvas,
    base: Summed,
    summed: Summed,
    result: Result,
    box: Box,
    level: Level,
    sampling: str,
    apart: NDArray[np.bool_],
) -> None:
    """Put a finer map into the field, together with what the survey's counts say of it.

    A survey pixel has seen the mean over its parts (or over those in its middle): its counts move that mean, by as much
    as they know of it beside the finer map, and leave the shape to the finer map. As counts they are shared out over
    the parts in proportion to what is expected there, which is one step of expectation maximisation.

    Parameters
    ----------
    base : Summed
        Counts on the survey's grid.
    summed : Summed
        Counts of the finer map.
    result : Result
        What was made of them.
    box : tuple of int
        Where they lie on the grid of `level`, whole survey pixels.
    level : (int, int)
        Parts of a survey pixel.
    sampling : {"box", "point", "fly"}
    apart : ndarray of bool, shape (element, survey row, survey col)
        Survey pixels whose counts may not be added.
    """
    weights = np.outer(
        footprint(level[0], sampling == "box"), footprint(level[1], sampling != "point")
    )
    here = (
        slice(box[0] // level[0], box[1] // level[0]),
        slice(box[2] // level[1], box[3] // level[1]),
    )
    n, t, b = (one[:, *here] for one in base.total())
    seen = _blocks(summed.layers > 0, level)
    whole = np.asarray(seen.all(axis=(3, 4)))
    allowed = whole & (t > 0) & ~apart[:, *here]
    v, s = _blocks(np.nan_to_num(result.values), level), _blocks(np.nan_to_num(result.sigma), level)
    mean, spread = (v * weights).sum(axis=(3, 4)), (s * weights).sum(axis=(3, 4))
    safe = np.where(t > 0, t, 1.0)
    rate, noise = (n - b) / safe, np.maximum(n, 1.0) / safe**2
    trust = np.where(allowed, spread**2 / np.maximum(spread**2 + noise, 1e-30), 0.0)
    moved = trust * (rate - mean)
    where = weights > 0
    grown = np.where(mean > 0, moved / np.where(mean > 0, mean, 1.0), 0.0)
    added = np.where(mean > 0, 0.0, moved)
    # Twice as much at most: a survey pixel that holds much more than the finer map saw was marked above.
    factor = 1 + np.clip(grown, -1.0, 1.0)[..., None, None] * where
    new = v * factor + added[..., None, None] * where
    narrower = np.where(where, np.sqrt(1 - trust)[..., None, None], 1.0)
    expected = np.maximum(v, 0) * weights
    total = expected.sum(axis=(3, 4), keepdims=True)
    shared = np.where(total > 0, expected / np.where(total > 0, total, 1.0), weights)
    gives = allowed[..., None, None]
    counts, light, behind = summed.total()
    flat = summed.layers > 0
    values, sigma = _flat(new), _flat(s * narrower)
    scale = _flat(narrower)
    low = values - (np.nan_to_num(result.values - result.low)) * scale
    low = np.where(np.asarray(result.low) >= 0, np.maximum(low, 0), low)
    high = values + np.nan_to_num(result.high - result.values) * scale
    counts = counts + _flat(np.where(gives, n[..., None, None] * shared, 0.0))
    light = light + _flat(np.where(gives, t[..., None, None] * weights, 0.0))
    behind = behind + _flat(np.where(gives, b[..., None, None] * weights, 0.0))
    _onto_survey(canvas.coarse, here, whole, allowed, summed, level, new, s * narrower)
    added_up = np.asarray(_flat(np.broadcast_to(gives, v.shape)).any(axis=0))
    _write(
        canvas,
        box,
        level,
        flat,
        {
            "values": values,
            "sigma": sigma,
            "low": low,
            "high": high,
            "doubtful": np.asarray(result.doubtful, dtype=bool),
        },
        {"counts": counts, "exposure": light, "background": behind},
        added_up,
        summed.replaced,
    )


def _onto_survey(
    coarse: Coarse,
    here: tuple[slice, slice],
    whole: NDArray[np.bool_],
    allowed: NDArray[np.bool_],
    summed: Summed,
    level: Level,
    values: NDArray[np.float64],
    sigma: NDArray[np.float64],
) -> None:
    """Survey pixels that were measured finer as a whole; `values` and `sigma` by blocks."""
    at = (slice(None), *here)
    counts, light, behind = (_blocks(one, level).sum(axis=(3, 4)) for one in summed.total())
    for name, one in (("counts", counts), ("exposure", light), ("background", behind)):
        target = getattr(coarse, name)
        target[at] = np.where(whole, np.where(allowed, target[at], 0) + one, target[at])
    coarse.values[at] = np.where(whole, values.mean(axis=(3, 4)), coarse.values[at])
    spread = np.sqrt(np.square(sigma).mean(axis=(3, 4)))
    coarse.sigma[at] = np.where(whole, spread, coarse.sigma[at])


def _write(
    canvas: Canvas,
    box: Box,
    level: Level,
    seen: NDArray[np.bool_],
    values: dict[str, NDArray],
    amounts: dict[str, NDArray],
    added_up: NDArray[np.bool_],
    replaced: NDArray[np.bool_],
) -> None:
    """Onto the finest grid; what counts amount to is shared out where its pixels are smaller."""
    index, cut = [], []
    for start, stop, parts, finest in (
        (box[0], box[1], level[0], canvas.parts[0]),
        (box[2], box[3], level[1], canvas.parts[1]),
    ):
        low, high = start // parts * finest, stop // parts * finest
        at = ((np.arange(low, high) + 0.5) * parts / finest).astype(int) - start
        index.append(at)
        cut.append(slice(low, high))
    take = (slice(None), index[0][:, None], index[1][None, :])
    # How many pixels of the finest grid each pixel of this one has become.
    times = np.bincount(index[0])[index[0]][:, None] * np.bincount(index[1])[index[1]][None, :]
    here = (slice(None), *cut)
    known = seen[take]
    for name, one in values.items():
        target = getattr(canvas, name)
        target[here] = np.where(known, one[take], target[here])
    for name, one in amounts.items():
        target = getattr(canvas, name)
        target[here] = np.where(known, one[take] / times, target[here])
    covered = known.any(axis=0)
    source = np.where(added_up[take[1:]], np.uint8(3), np.uint8(2))
    canvas.source[here[1:]] = np.where(covered, source, canvas.source[here[1:]])
    canvas.disagrees[here] |= replaced[take]


def _blocks(values: NDArray, level: Level) -> NDArray:
    """(element, row, col) as (element, survey row, survey col, part, part)."""
    elements, rows, cols = values.shape
    split = values.reshape(elements, rows // level[0], level[0], cols // level[1], level[1])
    return split.transpose(0, 1, 3, 2, 4)


def _flat(blocks: NDArray) -> NDArray:
    """The reverse of `_blocks`."""
    elements, rows, cols, down, across = blocks.shape
    return blocks.transpose(0, 1, 3, 2, 4).reshape(elements, rows * down, cols * across)
