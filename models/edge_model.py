"""A parametric absorption edge: fitted to a survey of few energies, and what images at other energies would tell.

The edge is an arctangent step with a Gaussian white line over absorption that falls with the cube of the energy, the
usual description of X-ray absorption near an edge. It is a model to plan with: results are never computed from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq, least_squares

__all__ = ["EdgeShape", "Prospect", "fit_shape", "prospects"]

Floats = NDArray[np.float64]

_LEVEL = 0.5
_QUANTILES = np.array([0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95])
_WIDTHS = np.array([-1.0, 0.0, 1.0])
_WIDTH_WEIGHTS = np.array([0.25, 0.5, 0.25])
_LEAST_DOUBT = 0.15  # of the width, however well the model fits
_UNKNOWN = 0.15  # of the step at the edge: how far the edge may lie from where a survey puts it
_WIDTH_RANGE = (0.3, 8.0)  # eV
_WHITE_RANGE = (0.0, 2.5)  # edge steps
_PRIOR_EV = 5.0


@dataclass(frozen=True)
class EdgeShape:
    """An edge as a survey shows it.

    Attributes
    ----------
    edge_ev : float
        Median half-step energy of the pixels, eV.
    spread_ev : float
        Standard deviation between pixels, noise taken out, eV.
    width_ev : float
        Half width of the arctangent step, eV.
    width_doubt : float
        Uncertainty of the logarithm of it.
    white, white_at_ev, white_width_ev : float
        Height of the white line in edge steps, its distance from the middle of the step and its standard deviation.
    jump, pre : float
        Edge step and absorption before the edge of a typical pixel.
    positions_ev : ndarray of float64, shape (position,)
        Half-step energies to plan for: quantiles of the pixels', widened by what the survey's steps leave open.
    """

    PARAMETERS: ClassVar[int] = 4

    edge_ev: float
    spread_ev: float
    width_ev: float
    width_doubt: float
    white: float
    white_at_ev: float
    white_width_ev: float
    jump: float
    pre: float
    positions_ev: Floats

    def step(self, energies: ArrayLike, middle: float, width: float) -> tuple[Floats, Floats]:
        """Arctangent step and white line of height one, at energies."""
        x = np.asarray(energies, dtype=np.float64) - middle
        rise = 0.5 + np.arctan(x / width) / np.pi
        return rise, np.exp(-0.5 * ((x - self.white_at_ev) / self.white_width_ev) ** 2)

    def half_step(self, width: float) -> float:
        """Distance of the half-step energy from the middle of the arctangent."""

        def above(x: float) -> float:
            rise, line = self.step(x, 0.0, width)
            return float(rise + self.white * line) - _LEVEL

        if above(0.0) <= 0:
            return 0.0
        # A white line lifts the middle of the step above one half: the crossing comes before it.
        crossing: float = brentq(above, -60 * width, 1e-9)  # type: ignore[assignment]
        return crossing


def fit_shape(energies: Floats, spectra: Floats, at: Floats, sigma: Floats) -> EdgeShape:
    """Fit the edge model to the mean spectrum of a survey's pixels.

    Parameters
    ----------
    energies : ndarray of float64, shape (energy,), rising
    spectra : ndarray of float64, shape (energy, pixel)
        Density of the pixels that show an edge.
    at, sigma : ndarray of float64, shape (pixel,)
        Their half-step energies and standard deviations, eV.
    """
    middle = float(np.median(at))
    noise = float(np.nanmedian(sigma)) if np.isfinite(sigma).any() else 0.0
    low, high = np.percentile(at, [15.87, 84.13])
    seen = max(0.5 * float(high - low), 1e-6)
    # Pixels scatter by their chemistry and by noise; only the first is to be planned for.
    share = float(np.sqrt(np.clip(1 - (noise / seen) ** 2, 0.1, 1.0)))
    mean = np.nanmean(spectra, axis=1)
    above = int(np.clip(np.searchsorted(energies, middle), 1, len(energies) - 1))
    gap = float(energies[above] - energies[above - 1])
    scale = float(np.ptp(mean))
    falling = _falling(energies, middle)

    def parts(x: Floats) -> Floats:
        centre, width, height, distance, broad = x
        rise = 0.5 + np.arctan((energies - centre) / np.exp(width)) / np.pi
        line = np.exp(-0.5 * ((energies - centre - distance) / np.exp(broad)) ** 2)
        return np.stack([falling, rise + height * line], axis=1)

    def misfit(x: Floats) -> Floats:
        design = parts(x)
        amounts = np.linalg.lstsq(design, mean, rcond=None)[0]
        # A weak pull towards usual values: few energies do not determine five of them.
        usual = np.array([(x[0] - middle) / (2 * gap), (x[1] - 0.5) / 1.0, (x[2] - 0.5) / 1.0])
        usual = np.append(usual, [(x[3] - 6.0) / 3.0, (x[4] - 1.0) / 0.5])
        return np.concatenate([(design @ amounts - mean) / (0.02 * scale), usual])

    bounds = (
        [middle - 2 * gap - 5, np.log(_WIDTH_RANGE[0]), _WHITE_RANGE[0], 1.0, 0.0],
        [middle + 2 * gap + 5, np.log(_WIDTH_RANGE[1]), _WHITE_RANGE[1], 15.0, np.log(8.0)],
    )
    found = least_squares(misfit, [middle, 0.5, 0.5, 6.0, 1.0], bounds=bounds)
    covariance = np.linalg.pinv(found.jac.T @ found.jac)
    pre, jump = np.linalg.lstsq(parts(found.x), mean, rcond=None)[0]
    quantiles = np.quantile(at, _QUANTILES)
    # Standard normal quantiles, by which the open part of the position widens them.
    reach = np.array([-1.645, -0.842, -0.385, 0.0, 0.385, 0.842, 1.645])
    positions = middle + np.sign(reach) * np.hypot(
        share * (quantiles - middle), _UNKNOWN * gap * reach
    )
    return EdgeShape(
        edge_ev=middle,
        spread_ev=share * seen,
        width_ev=float(np.exp(found.x[1])),
        width_doubt=float(np.clip(np.sqrt(covariance[1, 1]), _LEAST_DOUBT, 0.7)),
        white=float(found.x[2]),
        white_at_ev=float(found.x[3]),
        white_width_ev=float(np.exp(found.x[4])),
        jump=max(float(jump), 1e-6 * max(scale, 1e-12)),
        pre=float(pre),
        positions_ev=positions,
    )


def _falling(energies: ArrayLike, at: float) -> Floats:
    """Absorption of everything but the edge, one at it (Victoreen: with the cube of the energy)."""
    return (at / np.asarray(energies, dtype=np.float64)) ** 3


class LinearModel:
    """Unknowns of many cases that are observed linearly, and functions of them whose errors are asked for.

    Parameters
    ----------
    design : ndarray, shape (case, unknown, energy)
        What an image at each energy sees of each unknown.
    noise : ndarray, shape (energy,)
        Variance of a value.
    wanted : ndarray, shape (case, function, unknown)
        Gradients of what is asked for.
    prior : ndarray, shape (unknown,)
        Standard deviation of each unknown before anything is measured.
    """

    def __init__(self, design: Floats, noise: Floats, wanted: Floats, prior: Floats) -> None:
        self.cases = len(design)
        self._design, self._noise, self._wanted = design, noise, wanted
        self._prior = np.diag(1 / prior**2)
        self._inverse: Floats = np.broadcast_to(
            np.diag(prior**2), (len(design), len(prior), len(prior))
        )

    def after(self, taken: NDArray[np.bool_]) -> LinearModel:
        """The same model with some energies taken."""
        model = copy(self)
        seen = self._design[:, :, taken]
        information = np.einsum("cue,e,cve->cuv", seen, 1 / self._noise[taken], seen)
        model._inverse = np.linalg.inv(information + self._prior)
        return model

    def variance(self) -> Floats:
        """Mean variance of what is asked for, (case,)."""
        return (
            np.einsum("cfu,cuv,cfv->c", self._wanted, self._inverse, self._wanted)
            / (self._wanted.shape[1])
        )

    def variance_with(self, candidates: NDArray[np.intp]) -> Floats:
        """The same with each of some further energies, (case, candidate); Sherman and Morrison."""
        column = self._design[:, :, candidates]
        moved = self._inverse @ column
        own = self._noise[candidates] + (column * moved).sum(axis=1)
        gained = (self._wanted @ moved) ** 2 / own[:, None, :]
        return self.variance()[:, None] - gained.mean(axis=1)

    def add(self, energy: int) -> None:
        """Take an energy."""
        column = self._design[:, :, energy]
        moved = np.einsum("cuv,cv->cu", self._inverse, column)
        own = self._noise[energy] + (column * moved).sum(axis=1)
        self._inverse = self._inverse - moved[:, :, None] * moved[:, None, :] / own[:, None, None]


@dataclass(frozen=True)
class Prospect:
    """What images at the energies of a grid would tell, for every edge that the survey leaves possible.

    Attributes
    ----------
    grid : ndarray of float64, shape (energy,), rising
    edge : LinearModel
        One case per edge; what is asked for is the half-step energy.
    fractions : LinearModel or None
        What is asked for are the fractions of references.
    weights : ndarray of float64, shape (case,)
        Of the edges, sum 1.
    even : ndarray of float64
        The same of the cases of `fractions`.
    crossing : ndarray of float64, shape (case,)
        Half-step energies.
    normalised : ndarray of float64, shape (case, energy)
        Spectra without what lies under the edge, edge step one.
    """

    grid: Floats
    edge: LinearModel
    fractions: LinearModel | None
    weights: Floats
    even: Floats
    crossing: Floats
    normalised: Floats

    def line_error(self, taken: NDArray[np.bool_]) -> Floats:
        """Error of a straight line between the energies beside each crossing, (case,) eV."""
        at = np.flatnonzero(taken)
        upper = np.clip(np.searchsorted(self.grid[at], self.crossing), 1, len(at) - 1)
        return self._line(at[upper - 1][:, None], at[upper][:, None])[:, 0]

    def line_error_with(self, taken: NDArray[np.bool_], candidates: NDArray[np.intp]) -> Floats:
        """The same with each of some further energies, (case, candidate)."""
        at = np.flatnonzero(taken)
        upper = np.clip(np.searchsorted(self.grid[at], self.crossing), 1, len(at) - 1)
        low, high = at[upper - 1][:, None], at[upper][:, None]
        between = (candidates > low) & (candidates < high)
        below = self.grid[candidates] < self.crossing[:, None]
        return self._line(
            np.where(between & below, candidates, low), np.where(between & ~below, candidates, high)
        )

    def _line(self, low: NDArray[np.intp], high: NDArray[np.intp]) -> Floats:
        first = np.take_along_axis(self.normalised, low, axis=1)
        last = np.take_along_axis(self.normalised, high, axis=1)
        # Beyond the survey's energies, or on a plateau, a line says nothing: half the step.
        width = self.grid[high] - self.grid[low]
        rises = (first < _LEVEL) & (last >= _LEVEL)
        share = np.where(rises, (_LEVEL - first) / np.where(rises, last - first, 1.0), 0.5)
        return self.grid[low] + share * width - self.crossing[:, None]


def prospects(
    shape: EdgeShape,
    grid: Floats,
    frame_variance: Floats,
    gain: float,
    references: Sequence[tuple[ArrayLike, ArrayLike]],
) -> Prospect:
    """What images would tell of the edges that a survey leaves possible.

    Parameters
    ----------
    shape : EdgeShape
    grid : ndarray of float64, shape (energy,), rising
        The survey's energies and the candidates.
    frame_variance : ndarray of float64, shape (energy,)
        Variance of a pixel of one image, as density.
    gain : float
        What denoising leaves of the variance of a pixel's parameters.
    references : sequence of (energies, absorption)
        Those that do not cover the grid are left out; fewer than two are no basis for fractions.
    """
    falling, jump = _falling(grid, shape.edge_ev), shape.jump
    design, wanted, normalised = [], [], []
    widths = shape.width_ev * np.exp(shape.width_doubt * _WIDTHS)
    for position in shape.positions_ev:
        for width in widths:
            middle = position - shape.half_step(width)
            rise, line = shape.step(grid, middle, width)
            # Numerical, as everything is that is planned with: a tenth of a millielectronvolt.
            later = np.asarray(shape.step(grid, middle + 1e-4, width))
            moved = (later - np.stack([rise, line])) / 1e-4
            design.append(
                np.stack([falling, rise, jump * (moved[0] + shape.white * moved[1]), line])
            )
            at = np.asarray(shape.step([position - 1e-4, position, position + 1e-4], middle, width))
            slope = float(
                ((at[0] + shape.white * at[1])[2] - (at[0] + shape.white * at[1])[0]) / 2e-4
            )
            bent = float(at[1, 1]) / (jump * slope)
            wanted.append([[0.0, shape.white * bent, 1.0, -bent]])
            normalised.append(rise + shape.white * line)
    prior = np.array([jump, jump, _PRIOR_EV, jump])
    noise = frame_variance * gain
    weights = np.outer(np.full(len(_QUANTILES), 1 / len(_QUANTILES)), _WIDTH_WEIGHTS).ravel()
    fractions = _fractions(grid, noise, jump, references)
    cases = 1 if fractions is None else fractions.cases
    return Prospect(
        grid=grid,
        edge=LinearModel(np.stack(design), noise, np.asarray(wanted), prior),
        fractions=fractions,
        weights=weights,
        even=np.full(cases, 1 / cases),
        crossing=np.repeat(shape.positions_ev, len(_WIDTHS)),
        normalised=np.stack(normalised),
    )


def _fractions(
    grid: Floats, noise: Floats, jump: float, references: Sequence[tuple[ArrayLike, ArrayLike]]
) -> LinearModel | None:
    """The fit of references: their amounts and a constant; asked for are shares, in pure pixels and in mixed ones."""
    known = [(np.asarray(e, np.float64), np.asarray(a, np.float64)) for e, a in references]
    spectra = [np.interp(grid, e, a) for e, a in known if e[0] <= grid[0] and grid[-1] <= e[-1]]
    if len(spectra) < 2:
        return None
    count = len(spectra)
    design = np.stack([*spectra, np.ones(len(grid))])
    shares = np.vstack([np.eye(count), np.full((1, count), 1 / count)])
    # Share i is amount i over all amounts.
    wanted = (np.eye(count)[None] - shares[:, :, None]) / jump
    wanted = np.concatenate([wanted, np.zeros((len(shares), count, 1))], axis=2)
    repeated = np.broadcast_to(design, (len(shares), *design.shape))
    return LinearModel(repeated, noise, wanted, np.full(count + 1, jump))
