"""Which energies to add to a stack of few, so that its edge energies become certain fastest.

A survey over an absorption edge says roughly where the edge lies, how steep it is and how far it moves from pixel to
pixel. That is enough to say what a further image at any energy would tell, before it is taken: the Fisher information
of an edge model. Energies are chosen one by one where the predicted error falls most, and exchanged afterwards.

References
----------
V. V. Fedorov, *Theory of Optimal Experiments*, Academic Press 1972 (sequential choice and exchange of points);
A. C. Atkinson, A. N. Donev and R. D. Tobias, *Optimum Experimental Designs, with SAS*, Oxford University Press 2007
(A-optimality: the mean variance of what is asked for); K. Chaloner and I. Verdinelli, "Bayesian Experimental Design: A
Review", Statistical Science 10 (1995) 273 (averaging over what the survey does not tell). That 10 to 40 % of the
energies of a usual stack can be enough is reported for subspace models of XANES stacks (paper 002 of the project).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from inscan.models.edge_model import EdgeShape, Prospect, fit_shape, prospects
from inscan.models.xanes import edge_energy

__all__ = ["EnergyChoice", "candidate_energies", "choose_energies"]

Floats = NDArray[np.float64]

_SOLID = 0.25  # edge jump of pixels that count, of the strong pixels'
_LEAST_PIXELS = 16
_PASSES = 3
_GAIN = 1e-3  # least relative gain for which one energy is exchanged for another
_MOST_CANDIDATES = 4096


@dataclass(frozen=True)
class EnergyChoice:
    """Energies to add, and what they are predicted to give.

    Attributes
    ----------
    energies_ev : ndarray of float64, shape (n,)
        The one that helps most first.
    edge_sigma_ev : ndarray of float64, shape (n + 1,)
        Predicted standard error of a pixel's edge energy: of the survey alone, and after each energy.
    fraction_sigma : ndarray of float64, shape (n + 1,), or None
        The same of the fractions of references (their root mean square); None without references.
    reached : bool
        Whether the last is as small as was asked for.
    edge_ev, spread_ev, width_ev : float
        Median edge energy of the survey's pixels, how far it varies between them (standard deviation, noise taken
        out), and the width of the edge.
    pixels : int
        How many pixels the prediction is for: those with a strong edge.
    """

    energies_ev: Floats
    edge_sigma_ev: Floats
    fraction_sigma: Floats | None
    reached: bool
    edge_ev: float
    spread_ev: float
    width_ev: float
    pixels: int


def candidate_energies(
    low_ev: float, high_ev: float, step_ev: float, taken_ev: ArrayLike
) -> Floats:
    """Energies of a grid that were not taken yet.

    Parameters
    ----------
    low_ev, high_ev, step_ev : float
        The grid begins at `low_ev` and ends at or below `high_ev`.
    taken_ev : array of float
        Those of the stack; candidates within half a step of one are left out.

    Returns
    -------
    ndarray of float64, rising

    Raises
    ------
    ValueError
        When the grid has more than 4096 points, or none.
    """
    if not (0 < low_ev < high_ev and step_ev > 0):
        raise ValueError(f"no grid of energies from {low_ev} to {high_ev} eV in steps of {step_ev}")
    count = int((high_ev - low_ev) / step_ev + 1e-9) + 1
    if count > _MOST_CANDIDATES:
        raise ValueError(
            f"{count} candidate energies from {low_ev:g} to {high_ev:g} eV in steps of {step_ev:g}; at most "
            f"{_MOST_CANDIDATES}: take larger steps"
        )
    grid = low_ev + step_ev * np.arange(count, dtype=np.float64)
    taken = np.atleast_1d(np.asarray(taken_ev, dtype=np.float64))
    near = np.abs(grid[:, None] - taken[None, :]).min(axis=1, initial=np.inf) < 0.5 * step_ev - 1e-9
    return grid[~near]


def choose_energies(
    density: ArrayLike,
    energies_ev: ArrayLike,
    candidates_ev: ArrayLike,
    *,
    sigma: ArrayLike,
    frame_variance: ArrayLike | None = None,
    references: Sequence[tuple[ArrayLike, ArrayLike]] = (),
    most: int = 24,
    precision_ev: float = 0.1,
) -> EnergyChoice:
    """Choose energies to add to a survey. Deterministic.

    Parameters
    ----------
    density : array of float, shape (energy, row, col)
        Denoised optical density, or fluorescence, of the survey. NaN where not measured.
    energies_ev : array of float, shape (energy,), rising
        Of the survey, eV.
    candidates_ev : array of float, shape (candidate,)
        Energies that may be added, eV; see `candidate_energies`.
    sigma : array of float, shape of `density`
        Standard deviation of `density` after denoising.
    frame_variance : array of float, broadcastable to `density`, optional
        Variance of single images before denoising. By default that of `sigma`: as if nothing had been denoised.
    references : sequence of (energies, absorption)
        Standards, edge step one. One that does not cover all energies and candidates is left out.
    most : int
        Most energies.
    precision_ev : float
        Standard error of the edge energy at which to stop, eV.

    Returns
    -------
    EnergyChoice
        No energies when the survey reaches the precision already.

    Raises
    ------
    ValueError
        On wrong shapes; and when the survey does not show an edge (too few energies on one side, too few pixels).

    Notes
    -----
    The criterion is the mean, over the edge positions and widths that the survey leaves open, of the squared error of
    a pixel's half-step energy: noise through the edge model (tangent plane at each of them), and the error of the
    straight line that `models.xanes.edge_energy` draws between two energies. Where there are references, the mean
    variance of their fractions counts as much, each relative to the survey's.
    """
    od, e, noise, left = _checked(density, energies_ev, sigma, frame_variance)
    candidates = np.unique(np.asarray(candidates_ev, dtype=np.float64).ravel())
    if most < 0 or not precision_ev > 0:
        raise ValueError(
            f"most {most} and precision_ev {precision_ev}: expected 0 or more, above 0"
        )
    edges = edge_energy(od, e, variance=left)
    jump, at = edges.jump.astype(np.float64), edges.energy.astype(np.float64)
    strong = np.nanpercentile(jump, 98) if np.isfinite(jump).any() else np.nan
    solid = np.isfinite(at) & (jump > _SOLID * strong)
    if solid.sum() < _LEAST_PIXELS:
        raise ValueError(
            f"{int(solid.sum())} pixels show an edge; a choice of energies needs {_LEAST_PIXELS} at least"
        )
    spectra, variances, kept = (x[:, solid].astype(np.float64) for x in (od, noise, left))
    shape = fit_shape(e, spectra, at[solid], edges.sigma[solid].astype(np.float64))
    grid = np.union1d(e, candidates)
    frame = np.exp(np.interp(grid, e, np.log(np.nanmean(variances, axis=1))))
    outlook = prospects(shape, grid, frame, _gain(kept, variances), references)
    taken = np.isin(grid, e)
    start = np.flatnonzero(taken)
    open_ = np.flatnonzero(np.isin(grid, candidates) & ~taken)
    state = _State(outlook, start)
    goal = precision_ev**2
    chosen: list[int] = []
    while len(chosen) < min(most, len(open_)) and state.edge > goal:
        chosen.append(state.add(open_))
    chosen = _exchanged(outlook, start, open_, chosen, state.survey)
    order, edge, fraction = _ordered(outlook, start, chosen)
    return EnergyChoice(
        energies_ev=grid[order],
        edge_sigma_ev=np.sqrt(edge),
        fraction_sigma=np.sqrt(fraction) if outlook.fractions is not None else None,
        reached=bool(edge[-1] <= goal),
        edge_ev=shape.edge_ev,
        spread_ev=shape.spread_ev,
        width_ev=shape.width_ev,
        pixels=int(solid.sum()),
    )


def _checked(
    density: ArrayLike, energies_ev: ArrayLike, sigma: ArrayLike, frame_variance: ArrayLike | None
) -> tuple[NDArray[np.float32], Floats, NDArray[np.float32], NDArray[np.float32]]:
    """Density, energies, variance of single images, variance that is left after denoising."""
    od = np.asarray(density, dtype=np.float32)
    e = np.asarray(energies_ev, dtype=np.float64)
    if od.ndim != 3 or e.shape != od.shape[:1]:
        raise ValueError(
            f"density must have shape (energy, row, col) and energies (energy,); got {od.shape} and {e.shape}"
        )
    left = np.broadcast_to(np.square(np.asarray(sigma, dtype=np.float32)), od.shape)
    noise = left if frame_variance is None else np.asarray(frame_variance, dtype=np.float32)
    noise = np.broadcast_to(noise, od.shape)
    if not (np.nanmin(noise) > 0 if np.isfinite(noise).any() else False):
        raise ValueError(
            "frame_variance (or sigma) must be above 0: without noise nothing is to be gained"
        )
    return od, e, noise, left


def _gain(left: Floats, variances: Floats) -> float:
    """What averaging over neighbours leaves of the variance of a pixel's model parameters, at most 1.

    A fit of m parameters to a pixel alone leaves, summed over energies, m times the noise.
    """
    trace = float(np.nanmedian(np.nansum(left / variances, axis=0)))
    return float(np.clip(trace / min(EdgeShape.PARAMETERS, len(left)), 1e-4, 1.0))


class _State:
    """Error after some energies, and what each further one would leave; all prospects at once."""

    def __init__(
        self,
        outlook: Prospect,
        taken: Sequence[int] | NDArray[np.intp],
        survey: tuple[float, float] | None = None,
    ) -> None:
        self._outlook = outlook
        self._taken = np.zeros(len(outlook.grid), dtype=bool)
        self._taken[np.asarray(taken, dtype=int)] = True
        self._models = [
            model.after(self._taken) for model in (outlook.edge, outlook.fractions) if model
        ]
        self.survey = survey if survey is not None else (self.edge, self.fraction)

    @property
    def edge(self) -> float:
        """Mean squared error of the edge energy, eV^2."""
        o = self._outlook
        return float(o.weights @ (self._models[0].variance() + o.line_error(self._taken) ** 2))

    @property
    def fraction(self) -> float:
        """Mean variance of fractions; 0 without references."""
        return float(self._outlook.even @ self._models[1].variance()) if self._models[1:] else 0.0

    def with_each(self, candidates: NDArray[np.intp]) -> Floats:
        """What is made small, with each of some further energies: squared errors in the survey's, (candidate,)."""
        o = self._outlook
        edge = o.weights @ (
            self._models[0].variance_with(candidates)
            + o.line_error_with(self._taken, candidates) ** 2
        )
        together = edge / self.survey[0]
        if self._models[1:]:
            shares = o.even @ self._models[1].variance_with(candidates)
            together = together + shares / self.survey[1]
        return together

    def add(self, candidates: NDArray[np.intp]) -> int:
        """Take the best of the candidates that are not taken yet; return it."""
        free = candidates[~self._taken[candidates]]
        best = int(free[int(np.argmin(self.with_each(free)))])
        self._taken[best] = True
        for model in self._models:
            model.add(best)
        return best


def _exchanged(
    outlook: Prospect,
    start: NDArray[np.intp],
    open_: NDArray[np.intp],
    chosen: list[int],
    survey: tuple[float, float],
) -> list[int]:
    """Fedorov's exchange: replace one energy by a better one until that gains nothing."""
    chosen = list(chosen)
    for _ in range(_PASSES):
        changed = False
        for position in range(len(chosen)):
            others = chosen[:position] + chosen[position + 1 :]
            free = np.setdiff1d(open_, others)
            with_each = _State(outlook, [*start, *others], survey).with_each(free)
            best = int(np.argmin(with_each))
            own = with_each[int(np.flatnonzero(free == chosen[position])[0])]
            if with_each[best] < (1 - _GAIN) * own:
                chosen[position], changed = int(free[best]), True
        if not changed:
            break
    return chosen


def _ordered(
    outlook: Prospect, start: NDArray[np.intp], chosen: list[int]
) -> tuple[list[int], Floats, Floats]:
    """The chosen ones, the most helpful first, with the errors on the way."""
    state = _State(outlook, start)
    edge, fraction, order = [state.edge], [state.fraction], []
    for _ in chosen:
        order.append(state.add(np.asarray(chosen)))
        edge.append(state.edge)
        fraction.append(state.fraction)
    return order, np.asarray(edge), np.asarray(fraction)
