"""Points anywhere, put on an even grid: counts and exposures of a pixel's points add up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import KDTree

__all__ = ["Grid", "GridError", "choose_grid", "regrid_mean", "regrid_sum"]

# A grid may have this many pixels for every point before its step is widened, and this many anyway.
_PIXELS_PER_POINT = 16
_ALWAYS_PIXELS = 1 << 16
_MOST_PIXELS = 1 << 26
# A lattice: points lie on even spacing to a quarter of a step, and half of its places are taken.
_EVEN = 0.25
_FILLED = 0.5
# On a lattice the median distances of these neighbours are its step.
_IN_A_PLANE, _IN_A_LINE, _THIN = 4, 2, 1e-3


class GridError(ValueError):
    """Points that no grid can be made for."""


@dataclass(frozen=True)
class Grid:
    """An even grid in motor units.

    Attributes
    ----------
    shape
        (row, col).
    first, step
        (slow, fast): centre of the first pixel, and the distance of pixels, positive.
    said
        Where the steps come from, in words, with their values.
    """

    shape: tuple[int, int]
    first: tuple[float, float]
    step: tuple[float, float]
    said: str

    @property
    def last(self) -> tuple[float, float]:
        """(slow, fast): centre of the last pixel."""
        slow, fast = (
            first + (count - 1) * step
            for first, count, step in zip(self.first, self.shape, self.step, strict=True)
        )
        return slow, fast

    def pixels(self, positions: np.ndarray) -> np.ndarray:
        """Return row * n_col + col of positions (2, n), (n,) int64; all must lie in the grid."""
        index = []
        for axis, count in enumerate(self.shape):
            exact = (positions[axis] - self.first[axis]) / self.step[axis]
            # The outermost points may lie on the outer edge, rounded to either side.
            index.append(np.clip(np.floor(exact + 0.5).astype(np.int64), 0, count - 1))
        return index[0] * self.shape[1] + index[1]


def choose_grid(
    positions: np.ndarray,
    *,
    step: tuple[float, float] | None = None,
    step_from: str = "",
    fast_per_slow: float = 1.0,
) -> Grid:
    """Return the grid for points.

    Without a step, points that are a lattice (an outer product in any order) get its steps; others
    the median distance of fourth neighbours, which gives most pixels a point: on a lattice it is
    its step, and points of chance fill two pixels of three (nearest neighbours: one of five).
    Where that makes many more pixels than points, the step is widened, and the grid says so; a step
    that is given is never changed.

    Parameters
    ----------
    positions
        (2, n) float64, slow and fast, finite, in motor units.
    step
        (slow, fast); None: found from the points.
    step_from
        What said the step, in words.
    fast_per_slow
        Units of the fast axis in one of the slow axis, so that distances can be measured.

    Raises
    ------
    GridError
        There is no point, all are at one place, or the grid would be too large.
    """
    if positions.shape[1] == 0:
        raise GridError("no point has a position")
    spans = np.ptp(positions, axis=1)
    if step is not None:
        return _fit(positions, step, f"{_words(step)} from {step_from}", given=True)
    if not spans.any():
        raise GridError(
            f"all {positions.shape[1]} points are at one place: give the step of the grid"
            " (geometry.grid_step)"
        )
    lattice = _lattice(positions)
    if lattice is not None:
        return lattice
    scaled = positions * np.array([[fast_per_slow], [1.0]])
    distinct = np.unique(scaled, axis=1)
    along = np.linalg.svd(distinct - distinct.mean(axis=1, keepdims=True), compute_uv=False)
    # On a line, the second neighbour is what the fourth is in a plane.
    order = min(_IN_A_LINE if along[1] < _THIN * along[0] else _IN_A_PLANE, distinct.shape[1] - 1)
    distances, _ = KDTree(distinct.T).query(distinct.T, k=order + 1)
    near = float(np.median(distances[:, -1]))
    steps = (near / fast_per_slow, near)
    return _fit(positions, steps, f"{_words(steps)}, the median distance of neighbour {order}")


def _fit(
    positions: np.ndarray, step: tuple[float, float], said: str, *, given: bool = False
) -> Grid:
    low, spans = positions.min(axis=1), np.ptp(positions, axis=1)
    counts = np.floor(spans / step + 0.5) + 1
    most = max(_ALWAYS_PIXELS, _PIXELS_PER_POINT * positions.shape[1])
    if given:
        if not counts.prod() <= _MOST_PIXELS:
            raise GridError(
                f"a grid of {said} would have {counts[0]:.0f} x {counts[1]:.0f} pixels, at most"
                f" {_MOST_PIXELS} are made: set geometry.grid_step"
            )
    elif not counts.prod() <= most:
        # Evenly wider, until it fits; an axis of one pixel cannot give way.
        wider = 1.0
        while not counts.prod() <= most:
            wider *= 1.25
            counts = np.floor(spans / (np.array(step) * wider) + 0.5) + 1
        step = step[0] * wider, step[1] * wider
        said += f", widened to {_words(step)} for {positions.shape[1]} points"
    # Points that were meant to lie on the grid lie on its centres, wherever that begins.
    first = tuple(
        float(start + _phase(positions[axis] - start, step[axis])) for axis, start in enumerate(low)
    )
    counts = np.floor((positions.max(axis=1) - first) / step + 0.5).astype(int) + 1
    return Grid((int(counts[0]), int(counts[1])), (first[0], first[1]), step, said)


def _phase(offsets: np.ndarray, step: float) -> float:
    """Return where in a step most offsets lie, -step / 2 to step / 2; 0 when nowhere in particular."""
    turns = np.exp(2j * np.pi * (offsets / step)).mean()
    return float(np.angle(turns)) / (2 * np.pi) * step if abs(turns) > 0.5 else 0.0


def _lattice(positions: np.ndarray) -> Grid | None:
    """Return the grid of points that are an even lattice, whatever their order."""
    found = [_even(values) for values in positions]
    if any(axis is None for axis in found):
        return None
    (rows, slow, slow_step), (cols, fast, fast_step) = (axis for axis in found if axis)
    grid = Grid(
        (rows, cols),
        (slow, fast),
        (slow_step, fast_step),
        f"{_words((slow_step, fast_step))}: the points are a lattice of {rows} x {cols}",
    )
    taken = len(np.unique(grid.pixels(positions)))
    return grid if rows > 1 and cols > 1 and taken >= _FILLED * rows * cols else None


def _even(values: np.ndarray) -> tuple[int, float, float] | None:
    """Return (number, first, step) of evenly spaced places that all values are near; else None."""
    ordered = np.sort(values)
    gaps = np.diff(ordered)
    if not len(gaps) or gaps.max() <= 0:
        return None
    # Readbacks scatter about each place: gaps within a place are far smaller than those between.
    breaks = np.flatnonzero(gaps > 0.5 * gaps.max())
    groups = np.split(ordered, breaks + 1)
    centres = np.array([group.mean() for group in groups])
    step = (centres[-1] - centres[0]) / (len(centres) - 1)
    even = centres[0] + step * np.arange(len(centres))
    width = max(float(np.ptp(group)) for group in groups)
    if np.abs(centres - even).max() > _EVEN * step or width > _EVEN * step:
        return None
    return len(centres), float(centres[0]), float(step)


def regrid_sum(values: np.ndarray, pixels: np.ndarray, size: int) -> np.ndarray:
    """Return sums over the points of each pixel.

    Parameters
    ----------
    values
        (..., n).
    pixels
        (n,) index of each point's pixel.
    size
        Number of pixels.

    Returns
    -------
    ndarray
        (..., size) float64: exact for counts.
    """
    flat = values.reshape(-1, values.shape[-1])
    sums = np.empty((len(flat), size))
    for target, row in zip(sums, flat, strict=True):
        target[:] = np.bincount(pixels, weights=row, minlength=size)
    return sums.reshape(*values.shape[:-1], size)


def regrid_mean(values: np.ndarray, pixels: np.ndarray, size: int) -> np.ndarray:
    """Return means over the points of each pixel, (..., size) float64; NaN without a point."""
    number = np.bincount(pixels, minlength=size)
    sums = regrid_sum(values, pixels, size)
    return np.divide(sums, number, out=np.full_like(sums, np.nan), where=number > 0)


def _words(step: tuple[float, float]) -> str:
    return f"{step[0]:.6g} x {step[1]:.6g} (slow x fast)"
