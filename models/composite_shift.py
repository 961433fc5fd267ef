"""The shift between two maps of counts of the same step, by their difference at shifts of whole pixels.

Under a likelihood one of two noisy maps has to predict the other, and between its pixels it predicts with less noise:
with pixels of the same size that pulls shifts towards half a pixel. At shifts of whole pixels nothing is interpolated
and the noise is the same at all of them; the maximum between them is that of a smooth surface through them.

References
----------
Variance-stabilised Poisson counts: Anscombe, Biometrika 35, 246 (1948).
"""

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RectBivariateSpline

from inscan.models.registration import CountGrid, Registration, compare

__all__ = ["whole_pixel_shift"]

_THINNINGS = 4
_FINE = 0.02  # pixels between the places at which the interpolated surface is looked at
_NEAR = 1.5  # pixels around the highest value that the maximum is sought in


def whole_pixel_shift(
    coarse: CountGrid, fine: CountGrid, max_shift: float, *, least_overlap: int
) -> Registration | None:
    """Register two maps of the same step; arguments and result as `registration.likeliest_shift`.

    The error is the scatter between shifts of independent halves of the counts; `chi2`, `ratio` and `ratio_error` are
    left at 1, 1 and 0: they are not needed here.
    """
    steps = np.array(coarse.steps)
    maps = [_upright(fine, steps), coarse]
    offset = np.array(
        [
            (maps[0].rows[0] - coarse.rows[0]) / steps[0],
            (maps[0].cols[0] - coarse.cols[0]) / steps[1],
        ]
    )
    whole = np.rint(offset).astype(int)
    reach = int(np.ceil(max_shift)) + 2
    surface = _likeness(coarse, maps[0], whole, reach, least_overlap)
    found = _peak(surface, reach, max_shift, offset - whole)
    if found is None:
        return None
    shift, lead, at_rim = found
    rng = np.random.default_rng(0)
    apart = []
    for _ in range(_THINNINGS):
        halves = [_halved(one, rng) for one in (coarse, maps[0])]
        each = [
            _peak(
                _likeness(halves[0][i], halves[1][i], whole, reach, least_overlap),
                reach,
                max_shift,
                offset - whole,
            )
            for i in range(2)
        ]
        if each[0] is None or each[1] is None:
            return None
        apart.append((each[0][0] - each[1][0]) / 2)
    error = np.sqrt(np.mean(np.square(apart), axis=0)) * np.abs(steps)
    moved = shift * steps
    inside = compare(coarse, fine, "box", moved).inside
    ones = np.ones(len(coarse.counts))
    return Registration(moved, error, ones, ones, 0 * ones, inside, lead, at_rim, 0.0)


def _upright(grid: CountGrid, steps: NDArray[np.float64]) -> CountGrid:
    """The map with its axes running as the other's."""
    counts, exposure, rows, cols = grid.counts, grid.exposure, grid.rows, grid.cols
    if grid.steps[0] * steps[0] < 0:
        counts, exposure, rows = counts[:, ::-1], exposure[::-1], rows[::-1]
    if grid.steps[1] * steps[1] < 0:
        counts, exposure, cols = counts[:, :, ::-1], exposure[:, ::-1], cols[::-1]
    return CountGrid(counts, exposure, rows, cols)


def _stabilised(grid: CountGrid) -> NDArray[np.float64]:
    seen = grid.exposure > 0
    level = float(np.median(grid.exposure[seen])) if seen.any() else 1.0
    flat = grid.counts * level / np.where(seen, grid.exposure, level)
    return 2 * np.sqrt(flat + 0.375)


def _likeness(
    coarse: CountGrid, fine: CountGrid, whole: NDArray[np.int64], reach: int, least: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How alike the two are (half the mean square difference, negative), and of how many pixels, for each shift by
    whole pixels; NaN where too few overlap."""
    a, b = _stabilised(coarse), _stabilised(fine)
    ok_a, ok_b = coarse.exposure > 0, fine.exposure > 0
    lags = np.arange(-reach, reach + 1)
    values = np.full((len(lags), len(lags)), np.nan)
    pixels = np.zeros(values.shape)
    for i, down in enumerate(lags):
        for j, right in enumerate(lags):
            start = whole + (down, right)
            cuts = [
                (max(0, s), min(n, s + m))
                for s, n, m in zip(start, ok_a.shape, ok_b.shape, strict=True)
            ]
            if min(stop - first for first, stop in cuts) < least:
                continue
            here = tuple(slice(*cut) for cut in cuts)
            there = tuple(slice(c[0] - s, c[1] - s) for c, s in zip(cuts, start, strict=True))
            both = ok_a[here] & ok_b[there]
            number = int(both.sum())
            if number < least**2:
                continue
            x, y = a[:, *here][:, both], b[:, *there][:, both]
            # Brought to one level: what differs then is noise, and structure that does not match.
            levels = x.mean(axis=1, keepdims=True), y.mean(axis=1, keepdims=True)
            apart = x - levels[0] - (y - levels[1]) * (levels[0] / levels[1])
            values[i, j], pixels[i, j] = -float((apart**2).sum()) / number / 2, number
    return values, pixels


def _peak(
    surface: tuple[NDArray[np.float64], NDArray[np.float64]],
    reach: int,
    max_shift: float,
    offset: NDArray[np.float64],
) -> tuple[NDArray[np.float64], float, bool] | None:
    """Shift in pixels, how far ahead of other maxima, and whether it lies at the rim.

    A map that lies `offset` pixels beyond a whole number of them is moved by that less.
    """
    values, pixels = surface
    if not np.isfinite(values).any():
        return None
    filled = np.where(np.isfinite(values), values, np.nanmin(values))
    lags = np.arange(-reach, reach + 1, dtype=np.float64)
    spline = RectBivariateSpline(lags, lags, filled, kx=3, ky=3)
    r, c = (int(k) for k in np.unravel_index(int(np.argmax(filled)), filled.shape))
    rows, cols = (
        np.clip(np.arange(lags[k] - _NEAR, lags[k] + _NEAR, _FINE), lags[0], lags[-1])
        for k in (r, c)
    )
    near = spline(rows, cols)
    i, j = np.unravel_index(int(np.argmax(near)), near.shape)
    shift = np.array([rows[int(i)], cols[int(j)]]) - offset
    away = np.hypot(lags[:, None] - lags[r], lags[None, :] - lags[c]) > 1.5
    padded = np.pad(filled, 1, constant_values=-np.inf)
    around = np.max(
        [
            padded[1 + i : 1 + i + len(lags), 1 + j : 1 + j + len(lags)]
            for i in (-1, 0, 1)
            for j in (-1, 0, 1)
            if (i, j) != (0, 0)
        ],
        axis=0,
    )
    others = filled[away & (filled > around) & np.isfinite(values)]
    lead = float((filled[r, c] - others.max()) * pixels[r, c]) if others.size else np.inf
    at_rim = r in (0, len(lags) - 1) or c in (0, len(lags) - 1)
    return shift, lead, bool(at_rim or (np.abs(shift) > max_shift).any())


def _halved(grid: CountGrid, rng: np.random.Generator) -> tuple[CountGrid, CountGrid]:
    """Two independent maps of half the counts, by binomial thinning."""
    first = rng.binomial(np.rint(grid.counts).astype(np.int64), 0.5).astype(np.float64)
    return tuple(
        CountGrid(counts, grid.exposure / 2, grid.rows, grid.cols)
        for counts in (first, grid.counts - first)
    )  # type: ignore[return-value]
