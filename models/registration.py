"""Where a fine map of counts lies on a coarse one, by likelihood, to a fraction of a pixel.

Both maps are Poisson counts. Under a shift, the fine rates averaged over the coarse pixels predict
the coarse counts; the noise of that prediction depends on the shift too (between two fine pixels it
averages, on one it does not), so the full likelihood with its logarithm of the variance is needed:
least squares alone prefers half-pixel shifts.

References
----------
Likelihood-ratio errors: Wilks, Ann. Math. Stat. 9, 60 (1938). Cubic interpolation: Keys, IEEE
Trans. ASSP 29, 1153 (1981), eq. 15.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from scipy.optimize import minimize

from inscan.models.superres_input import Sampling

__all__ = [
    "Comparison",
    "CountGrid",
    "Registration",
    "axis_weights",
    "compare",
    "likeliest_shift",
]

_LEAST_OVERLAP = 8  # coarse pixels along a side
_GRID_STEP = 0.25  # coarse pixels between the shifts tried first
_FLOOR = 0.05  # counts: variance of a pixel where none are expected


@dataclass(frozen=True)
class CountGrid:
    """Counts on a regular grid.

    Attributes
    ----------
    counts : ndarray of float64, shape (element, row, col)
    exposure : ndarray of float64, shape (row, col)
        0 where nothing was measured.
    rows, cols : ndarray of float64, shape (row,) and (col,)
        Pixel centres.
    """

    counts: NDArray[np.float64]
    exposure: NDArray[np.float64]
    rows: NDArray[np.float64]
    cols: NDArray[np.float64]

    @property
    def steps(self) -> tuple[float, float]:
        """Signed step along rows and columns."""
        return float(self.rows[1] - self.rows[0]), float(self.cols[1] - self.cols[0])


@dataclass(frozen=True)
class Registration:
    """The shift under which the fine map explains the coarse one best.

    Attributes
    ----------
    shift, error : ndarray of float64, shape (2,)
        What is added to the fine map's row and column positions to have the coarse map's; one
        standard deviation. In the units of the grids.
    chi2 : ndarray of float64, shape (element,)
        Reduced chi square of the coarse counts over the pixels inside.
    ratio, ratio_error : ndarray of float64, shape (element,)
        Coarse rate over fine rate there, and its standard deviation.
    inside : ndarray of bool, shape (coarse row, coarse col)
        Coarse pixels that the fine map covers wholly.
    lead : float
        By how much -2 log likelihood is better than at any local optimum more than a coarse pixel
        away; infinite when there is none.
    at_rim : bool
        The best shift lies at the end of what was searched.
    minus_two_log : float
        -2 log likelihood for each coarse pixel inside, by which ways of sampling compare.
    """

    shift: NDArray[np.float64]
    error: NDArray[np.float64]
    chi2: NDArray[np.float64]
    ratio: NDArray[np.float64]
    ratio_error: NDArray[np.float64]
    inside: NDArray[np.bool_]
    lead: float
    at_rim: bool
    minus_two_log: float


@dataclass(frozen=True)
class Comparison:
    """Coarse counts beside what the fine map makes of them, under one shift.

    Attributes
    ----------
    inside : ndarray of bool, shape (coarse row, coarse col)
        Coarse pixels that the fine map covers wholly; the others are 0 in all of these.
    counts, expected : ndarray of float64, shape (element, coarse row, coarse col)
        Counts, and those that the fine rates predict for the coarse exposure.
    noise : ndarray of float64, same shape
        Variance of `expected`.
    """

    inside: NDArray[np.bool_]
    counts: NDArray[np.float64]
    expected: NDArray[np.float64]
    noise: NDArray[np.float64]


def axis_weights(
    to: NDArray[np.float64], of: NDArray[np.float64], *, integrated: bool
) -> NDArray[np.float64]:
    """Weights that carry values from pixels centred at `of` to pixels centred at `to`.

    Parameters
    ----------
    to, of : ndarray of float64, shape (m,) and (n,)
        Equidistant centres, at least 2 of each; either may fall.
    integrated : bool
        Average over the whole of each pixel of `to`; else the value at its centre, by cubic
        interpolation.

    Returns
    -------
    ndarray of float64, shape (m, n)
        Rows sum to 1 where `of` covers the pixel (its centre), else to less.
    """
    step = of[1] - of[0]
    # In units of the pixels of `of`, which then are [j - 1/2, j + 1/2].
    at = (to - of[0]) / step
    index = np.arange(len(of))
    if integrated:
        half = abs((to[1] - to[0]) / step) / 2
        low = np.maximum(at[:, None] - half, index[None] - 0.5)
        high = np.minimum(at[:, None] + half, index[None] + 0.5)
        return np.maximum(high - low, 0) / (2 * half)
    weights = np.zeros((len(to), len(of)))
    inside = (at >= -0.5) & (at <= len(of) - 0.5)
    base = np.floor(at).astype(int)
    for tap in range(-1, 3):
        x = np.abs(at - (base + tap))
        near = (1.5 * x - 2.5) * x * x + 1
        far = ((-0.5 * x + 2.5) * x - 4) * x + 2
        weight = np.where(x <= 1, near, np.where(x < 2, far, 0.0))
        np.add.at(
            weights,
            (np.flatnonzero(inside), np.clip(base + tap, 0, len(of) - 1)[inside]),
            weight[inside],
        )
    return weights


def likeliest_shift(
    coarse: CountGrid,
    fine: CountGrid,
    sampling: Sampling,
    max_shift: float,
    *,
    least_overlap: int = _LEAST_OVERLAP,
) -> Registration | None:
    """Register `fine` to `coarse`.

    Parameters
    ----------
    coarse, fine : CountGrid
        The same elements in the same order.
    sampling : {"box", "point", "fly"}
        How the coarse map was sampled (see `superres_input.ForwardModel`).
    max_shift : float
        In coarse pixels, along each axis.
    least_overlap : int
        Coarse pixels along each side that must be covered for a shift to be considered.

    Returns
    -------
    Registration or None
        None when no shift gives that overlap.
    """
    steps = np.abs(coarse.steps)
    problem = _Likelihood(coarse, fine, sampling, least_overlap)
    found = _optimum(problem, steps, max_shift)
    if found is None:
        return None
    best, error, lead, at_rim = found
    # Where counts are few, noise makes sharp optima of its own; halves of the counts disagree then.
    rng = np.random.default_rng(0)
    halves = [_halved(grid, rng) for grid in (coarse, fine)]
    apart = [
        _optimum(_Likelihood(halves[0][i], halves[1][i], sampling, least_overlap), steps, max_shift)
        for i in range(2)
    ]
    if apart[0] is None or apart[1] is None:
        return None
    error = np.maximum(error, np.abs(apart[0][0] - apart[1][0]) / 2)
    inside = problem.inside(best)
    chi2, ratio, ratio_error = problem.agreement(best, inside)
    fit = problem.minus_two_log(best, inside) / max(float(inside.sum()), 1.0)
    return Registration(best, error, chi2, ratio, ratio_error, inside, lead, at_rim, fit)


def compare(
    coarse: CountGrid, fine: CountGrid, sampling: Sampling, shift: NDArray[np.float64]
) -> Comparison:
    """Predict coarse counts from a fine map under a given shift; arguments as `likeliest_shift`.

    Parameters
    ----------
    shift : ndarray of float64, shape (2,)
        Added to the fine map's positions, in the units of the grids.
    """
    problem = _Likelihood(coarse, fine, sampling)
    inside = problem.inside(shift)
    whole = [np.zeros(coarse.counts.shape) for _ in range(3)]
    if inside.any():
        counts, expected, _, noise = problem.terms(shift, inside)
        for out, values in zip(whole, (counts, expected, noise), strict=True):
            out[:, inside] = values
    return Comparison(inside, *whole)


def _halved(grid: CountGrid, rng: np.random.Generator) -> tuple[CountGrid, CountGrid]:
    """Two independent maps of half the counts, by binomial thinning."""
    whole = np.rint(grid.counts).astype(np.int64)
    first = rng.binomial(whole, 0.5).astype(np.float64)
    return tuple(
        CountGrid(counts, grid.exposure / 2, grid.rows, grid.cols)
        for counts in (first, grid.counts - first)
    )  # type: ignore[return-value]


def _optimum(
    problem: "_Likelihood", steps: NDArray[np.float64], max_shift: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], float, bool] | None:
    """Best shift, its error, lead over others, and whether it lies at the rim of the search."""
    reach = int(np.ceil(max_shift / _GRID_STEP))
    offsets = np.arange(-reach, reach + 1) * _GRID_STEP
    surface = np.array([[problem.mean((r, c) * steps) for c in offsets] for r in offsets])
    if not np.isfinite(surface).any():
        return None
    r, c = (int(i) for i in np.unravel_index(np.nanargmin(surface), surface.shape))
    start = np.array([offsets[r], offsets[c]])
    inside = problem.inside(start * steps)

    def function(shift: NDArray[np.float64]) -> float:
        return problem.minus_two_log(shift * steps, inside)

    found = minimize(
        function,
        start,
        method="Nelder-Mead",
        options={
            "initial_simplex": start + np.array([[0, 0], [0.15, 0], [0, 0.15]]),
            "xatol": 1e-4,
            "fatol": 1e-3,
            "maxiter": 200,
        },
    )
    at_rim = r in (0, len(offsets) - 1) or c in (0, len(offsets) - 1)
    lead = _lead(surface, r, c) * int(inside.sum())
    return found.x * steps, _errors(function, found.x) * steps, lead, at_rim


class _Likelihood:
    """-2 log likelihood of the coarse counts under a shift of the fine map."""

    def __init__(
        self,
        coarse: CountGrid,
        fine: CountGrid,
        sampling: Sampling,
        least_overlap: int = _LEAST_OVERLAP,
    ) -> None:
        self.coarse, self.fine = coarse, fine
        self.least_overlap = least_overlap
        self.known: dict[tuple[int, float], NDArray[np.float64]] = {}
        self.integrated = {
            "box": (True, True),
            "fly": (False, True),
            "point": (False, False),
        }[sampling]
        seen = fine.exposure > 0
        safe = np.where(seen, fine.exposure, 1.0)
        self.seen = seen.astype(np.float64)
        self.rate = np.where(seen, fine.counts / safe, 0.0)
        # Smoothed: the variance of a pixel must not come from that pixel's own noise.
        smooth = uniform_filter(fine.counts, 5, axes=(1, 2), mode="nearest")
        self.variance = np.where(seen, np.maximum(smooth, _FLOOR) / safe**2, 0.0)
        around = uniform_filter(coarse.counts, 5, axes=(1, 2), mode="nearest")
        self.counting = np.maximum(around, _FLOOR)

    def _weights(self, shift: NDArray[np.float64]) -> tuple[NDArray, NDArray]:
        return self._along(0, float(shift[0])), self._along(1, float(shift[1]))

    def _along(self, axis: int, shift: float) -> NDArray[np.float64]:
        # The search asks for each shift along an axis together with all those along the other.
        known = self.known.get((axis, shift))
        if known is None:
            to, of = ((g.rows, g.cols)[axis] for g in (self.coarse, self.fine))
            known = axis_weights(to, of + shift, integrated=self.integrated[axis])
            self.known[axis, shift] = known
        return known

    def inside(self, shift: NDArray[np.float64]) -> NDArray[np.bool_]:
        rows, cols = self._weights(shift)
        covered = rows @ self.seen @ cols.T
        return (covered > 1 - 1e-6) & (self.coarse.exposure > 0)

    def terms(
        self, shift: NDArray[np.float64], inside: NDArray[np.bool_]
    ) -> tuple[NDArray, NDArray, NDArray, NDArray]:
        """Counts; what the fine map makes of them; variance of the first, of the second."""
        rows, cols = self._weights(shift)
        some_rows, some_cols = inside.any(axis=1), inside.any(axis=0)
        rows, cols = rows[some_rows], cols[some_cols]
        keep = inside[some_rows][:, some_cols]
        light = self.coarse.exposure[some_rows][:, some_cols][keep]
        expected = np.maximum((rows @ self.rate @ cols.T)[:, keep] * light, 0.0)
        noise = (rows**2 @ self.variance @ (cols**2).T)[:, keep] * light**2
        counts = self.coarse.counts[:, some_rows][:, :, some_cols][:, keep]
        counting = self.counting[:, some_rows][:, :, some_cols][:, keep]
        return counts, expected, counting, noise

    def minus_two_log(self, shift: NDArray[np.float64], inside: NDArray[np.bool_]) -> float:
        """Up to what does not depend on the shift."""
        counts, expected, counting, noise = self.terms(shift, inside)
        ratio = _ratio(counts, expected)[:, None]
        variance = counting + ratio**2 * noise
        square = (counts - ratio * expected) ** 2
        return float(np.sum(square / variance + np.log(variance / counting)))

    def mean(self, shift: NDArray[np.float64]) -> float:
        """For each coarse pixel covered, NaN when they are too few."""
        inside = self.inside(shift)
        if min(inside.any(axis=1).sum(), inside.any(axis=0).sum()) < self.least_overlap:
            return np.nan
        return self.minus_two_log(shift, inside) / float(inside.sum())

    def agreement(
        self, shift: NDArray[np.float64], inside: NDArray[np.bool_]
    ) -> tuple[NDArray, NDArray, NDArray]:
        counts, expected, counting, noise = self.terms(shift, inside)
        ratio = _ratio(counts, expected)
        r = ratio[:, None]
        chi2 = ((counts - r * expected) ** 2 / (counting + r**2 * noise)).mean(axis=1)
        total = np.maximum(counts.sum(axis=1), 1.0)
        made = np.maximum(expected.sum(axis=1), 1e-9)
        error = ratio * np.sqrt(1 / total + noise.sum(axis=1) / made**2)
        return chi2, ratio, error


def _ratio(counts: NDArray[np.float64], expected: NDArray[np.float64]) -> NDArray[np.float64]:
    made = expected.sum(axis=1)
    return np.where(made > 0, counts.sum(axis=1) / np.maximum(made, 1e-9), 1.0)


def _errors(function, at: NDArray[np.float64], h: float = 0.05) -> NDArray[np.float64]:
    """Standard deviations from the curvature of -2 log likelihood; infinite where there is none."""
    unit = np.eye(2) * h
    here = function(at)
    hessian = np.empty((2, 2))
    for i in range(2):
        hessian[i, i] = (function(at + unit[i]) - 2 * here + function(at - unit[i])) / h**2
    cross = function(at + unit[0] + unit[1]) + function(at - unit[0] - unit[1])
    cross -= function(at + unit[0] - unit[1]) + function(at - unit[0] + unit[1])
    hessian[0, 1] = hessian[1, 0] = cross / (4 * h**2)
    if hessian[0, 0] <= 0 or hessian[1, 1] <= 0 or np.linalg.det(hessian) <= 0:
        return np.full(2, np.inf)
    return np.sqrt(np.diag(2 * np.linalg.inv(hessian)))


def _lead(surface: NDArray[np.float64], r: int, c: int) -> float:
    """How much worse the best local optimum more than a coarse pixel away is, per pixel."""
    filled = np.where(np.isfinite(surface), surface, np.inf)
    padded = np.pad(filled, 1, constant_values=np.inf)
    around = np.min(
        [
            padded[1 + i : 1 + i + filled.shape[0], 1 + j : 1 + j + filled.shape[1]]
            for i in (-1, 0, 1)
            for j in (-1, 0, 1)
            if (i, j) != (0, 0)
        ],
        axis=0,
    )
    rows, cols = np.indices(filled.shape)
    away = np.hypot(rows - r, cols - c) * _GRID_STEP > 1.0
    others = filled[away & (filled <= around) & np.isfinite(filled)]
    return float(others.min() - filled[r, c]) if others.size else np.inf
