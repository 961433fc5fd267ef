"""Chemistry from an energy stack: optical density (or fluorescence), edge energy, and fractions of references.

Everything works on all pixels at once, takes NaN for what was not measured, gives NaN where there
is nothing to say, and carries a standard deviation per pixel. Only numpy is needed.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from inscan.models.reference_fit import ReferenceFit, checked_stack, fit_references

__all__ = [
    "EdgeMap",
    "ReferenceFit",
    "edge_energy",
    "fit_references",
    "fluorescence",
    "normalise",
    "optical_density",
]

_JUMP_SIGMAS = 3.0


@dataclass(frozen=True)
class EdgeMap:
    """Edge energies of every pixel.

    Attributes
    ----------
    energy, sigma : ndarray of float32, shape (row, col)
        Energy at which the normalised spectrum crosses the level, and its standard deviation, in
        the unit of the energies given. NaN where the edge jump is too small or never crossed.
    jump, jump_sigma : ndarray of float32, shape (row, col)
        Edge jump in optical density.
    """

    energy: NDArray[np.float32]
    sigma: NDArray[np.float32]
    jump: NDArray[np.float32]
    jump_sigma: NDArray[np.float32]


def optical_density(
    transmission: ArrayLike, variance: ArrayLike | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Optical density -ln T and its variance.

    Parameters
    ----------
    transmission : array of float, any shape
        (frame - dark) / (flat - dark).
    variance : array of float, broadcastable to `transmission`, optional

    Returns
    -------
    density : ndarray of float32
        NaN where the transmission is not above 0: no finite density fits there.
    variance : ndarray of float32 or None
        variance / T squared.
    """
    t = np.asarray(transmission, dtype=np.float32)
    good = t > 0
    safe = np.where(good, t, 1.0)
    density = np.where(good, -np.log(safe), np.nan).astype(np.float32)
    if variance is None:
        return density, None
    v = np.broadcast_to(np.asarray(variance, dtype=np.float32), t.shape)
    return density, np.where(good, v / safe**2, np.nan).astype(np.float32)


def fluorescence(
    signal: ArrayLike, variance: ArrayLike | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """A fluorescence signal in the place of an optical density: as it is.

    Both are linear in the amount of the element and follow its absorption over the edge, so that
    everything here that takes a density takes a signal too. Self-absorption of thick samples is not
    corrected: it flattens the edge.

    Parameters
    ----------
    signal : array of float, any shape
        Counts per time and incident beam; may be below 0 where a background was subtracted.
    variance : array of float, broadcastable to `signal`, optional

    Returns
    -------
    density : ndarray of float32
        The signal.
    variance : ndarray of float32 or None
    """
    values = np.asarray(signal, dtype=np.float32)
    if variance is None:
        return values, None
    return values, np.broadcast_to(np.asarray(variance, dtype=np.float32), values.shape)


def normalise(
    density: ArrayLike,
    energies: ArrayLike,
    *,
    pre: tuple[float, float] | None = None,
    post: tuple[float, float] | None = None,
    order: tuple[int, int] = (1, 1),
) -> NDArray[np.float32]:
    """Subtract the pre-edge line and divide by the distance to the post-edge line, per energy.

    Parameters
    ----------
    density : array of float, shape (energy, row, col)
        Optical density; NaN where not measured.
    energies : array of float, shape (energy,), rising
    pre, post : (low, high), optional
        Energy ranges of the two straight lines. By default everything up to, and from, a
        distance of the steepest point of the mean spectrum that leaves its edge out.
    order : (int, int)
        Degree, 0 or 1, of the pre- and post-edge lines.

    Returns
    -------
    ndarray of float32, shape (energy, row, col)
        0 before the edge, about 1 after it; NaN where the lines meet or cross.
    """
    od, e = checked_stack(density, energies)
    below, above, _ = _lines(od, e, pre, post, order, None)
    low = below.at(e)
    gap = above.at(e) - low
    with np.errstate(invalid="ignore"):
        usable = gap > _least_gap(above, below)
    return ((od - low) / np.where(usable, gap, np.nan)).astype(np.float32)


def edge_energy(
    density: ArrayLike,
    energies: ArrayLike,
    *,
    level: float = 0.5,
    pre: tuple[float, float] | None = None,
    post: tuple[float, float] | None = None,
    order: tuple[int, int] = (1, 1),
    variance: ArrayLike | None = None,
    min_jump: float | None = None,
) -> EdgeMap:
    """Energy at which each normalised spectrum crosses `level`, between energies by a line.

    Parameters
    ----------
    density : array of float, shape (energy, row, col)
        Optical density; NaN where not measured.
    energies : array of float, shape (energy,), rising
    level : float
        Share of the edge jump, 0.5 for the half-step energy.
    pre, post, order
        As for `normalise`.
    variance : array of float, broadcastable to `density`, optional
        Without it the scatter around the pre-edge line is taken for the noise.
    min_jump : float, optional
        Least edge jump in optical density. By default three standard deviations of the jump and
        a tenth of the strong pixels' jump.

    Returns
    -------
    EdgeMap

    Raises
    ------
    ValueError
        On wrong shapes, energies that do not rise, or ranges that hold no energy.

    Notes
    -----
    Of several upward crossings the one closest to the steepest point of the mean spectrum is
    taken: the first one would often be noise before the edge. The standard deviation takes the
    noise of different energies as independent; in a denoised stack it is not, and the value is
    then an approximation.
    """
    od, e = checked_stack(density, energies)
    v = None if variance is None else np.broadcast_to(np.asarray(variance, np.float32), od.shape)
    # A frame that is missing altogether must not hide a crossing between its neighbours.
    there = np.isfinite(od).any(axis=(1, 2))
    if 4 <= there.sum() < e.size:
        od, e, v = od[there], e[there], None if v is None else v[there]
    below, above, edge = _lines(od, e, pre, post, order, v)
    jump = above.at(np.array([edge]))[0] - below.at(np.array([edge]))[0]
    jump_sigma = np.sqrt(above.variance_at(edge) + below.variance_at(edge))
    # The crossing is sought between the two ranges, and one energy into each.
    near = (e >= below.end) & (e <= above.start)
    first, last = int(np.argmax(near)), int(e.size - np.argmax(near[::-1]))
    window = slice(max(0, first - 1), min(e.size, last + 1))
    at = e[window]
    low = below.at(at)
    gap = above.at(at) - low
    with np.errstate(invalid="ignore", divide="ignore"):
        n = (od[window] - low) / np.where(gap > _least_gap(above, below), gap, np.nan)
        up = (n[:-1] < level) & (n[1:] >= level)
        share = (level - n[:-1]) / np.where(up, n[1:] - n[:-1], 1.0)
        crossing = at[:-1, None, None] + share * np.diff(at)[:, None, None]
        pick = np.argmin(np.where(up, np.abs(crossing - edge), np.inf), axis=0)[None]

        def taken(x: NDArray[np.floating]) -> NDArray[np.floating]:
            return np.take_along_axis(x, pick, axis=0)[0]

        energy, part = taken(crossing), taken(share)
        own = (
            below.scatter
            if v is None
            else (1 - part) ** 2 * taken(v[window][:-1]) + part**2 * taken(v[window][1:])
        )
        spread = (
            own
            + (1 - level) ** 2 * below.variance_at(energy)
            + level**2 * above.variance_at(energy)
        ) / taken(gap) ** 2
        slope = (taken(n[1:]) - taken(n[:-1])) / np.diff(at)[pick[0]]
        sigma = np.sqrt(spread) / slope
        if min_jump is None:
            strong = np.nanpercentile(jump, 98) if np.isfinite(jump).any() else np.nan
            least = np.fmax(_JUMP_SIGMAS * jump_sigma, 0.1 * strong)
        else:
            least = np.full_like(jump, min_jump)
        good = up.any(axis=0) & (jump > 0) & (jump >= least)
    return EdgeMap(
        np.where(good, energy, np.nan).astype(np.float32),
        np.where(good, sigma, np.nan).astype(np.float32),
        jump.astype(np.float32),
        jump_sigma.astype(np.float32),
    )


def _steepest(od: NDArray[np.float32], e: NDArray[np.float64]) -> float:
    """Energy at the middle of the steepest step of the mean spectrum, smoothed over 3 points."""
    flat = od.reshape(e.size, -1)
    counted = np.isfinite(flat)
    mean = np.where(counted, flat, 0).sum(axis=1) / np.maximum(counted.sum(axis=1), 1)
    if e.size > 8:
        mean[1:-1] = (mean[:-2] + mean[1:-1] + mean[2:]) / 3
    slope = np.diff(mean) / np.diff(e)
    k = int(np.argmax(slope))
    return float((e[k] + e[k + 1]) / 2)


def _step(e: NDArray[np.float64], at: float) -> float:
    k = int(np.clip(np.searchsorted(e, at), 1, e.size - 1))
    return float(e[k] - e[k - 1])


@dataclass(frozen=True)
class _Line:
    """A straight line per pixel: mean + slope * (energy - centre), arrays of shape (row, col)."""

    mean: NDArray[np.float32]
    slope: NDArray[np.float32]
    centre: NDArray[np.float32]
    mean_variance: NDArray[np.float32]
    slope_variance: NDArray[np.float32]
    scatter: NDArray[np.float32]
    start: float
    end: float

    def at(self, e: NDArray[np.float64]) -> NDArray[np.float32]:
        """Values at energies, shape (energy, row, col)."""
        distance = (e[:, None, None] - self.centre).astype(np.float32)
        return (self.mean + self.slope * distance).astype(np.float32)

    def variance_at(self, e: NDArray[np.floating] | float) -> NDArray[np.float32]:
        """Variance at one energy, or at one energy per pixel."""
        variance = self.mean_variance + (e - self.centre) ** 2 * self.slope_variance
        return variance.astype(np.float32)


def _lines(
    od: NDArray[np.float32],
    e: NDArray[np.float64],
    pre: tuple[float, float] | None,
    post: tuple[float, float] | None,
    order: tuple[int, int],
    variance: NDArray[np.float32] | None,
) -> tuple[_Line, _Line, float]:
    """Pre-edge and post-edge lines, and the edge of the mean spectrum."""
    if any(o not in (0, 1) for o in order):
        raise ValueError(f"order must be 0 or 1 for both lines, got {order}")
    edge, span = _steepest(od, e), float(e[-1] - e[0])
    gap = _step(e, edge)
    first, last = float(e[0]), float(e[-1])
    low = pre if pre is not None else (first, max(first, edge - max(0.08 * span, 3 * gap)))
    high = post if post is not None else (min(last, edge + max(0.2 * span, 5 * gap)), last)
    below = _line(od, e, low, order[0], variance, "pre-edge")
    above = _line(od, e, high, order[1], variance, "post-edge")
    if below.end >= above.start:
        raise ValueError(f"the pre-edge range {low} must end before the post-edge range {high}")
    return below, above, edge


def _least_gap(above: _Line, below: _Line) -> float:
    """Below this distance of the two lines there is no edge to divide by."""
    typical = np.abs(above.mean - below.mean)
    return 1e-3 * float(np.nanmax(typical)) if np.isfinite(typical).any() else 0.0


def _line(
    od: NDArray[np.float32],
    e: NDArray[np.float64],
    window: tuple[float, float],
    order: int,
    variance: NDArray[np.float32] | None,
    name: str,
) -> _Line:
    """Least-squares line of every pixel through its finite values in a range."""
    inside = (e >= window[0]) & (e <= window[1])
    if not inside.any():
        raise ValueError(
            f"no energies in the {name} range {window[0]:g} to {window[1]:g}; the stack runs from "
            f"{e[0]:g} to {e[-1]:g}"
        )
    y = od[inside]
    finite = np.isfinite(y)
    x = e[inside, None, None]
    number = finite.sum(axis=0)
    count = np.where(number > 0, number, np.nan)
    y = np.where(finite, y, 0.0)
    centre = (x * finite).sum(axis=0) / count
    mean = y.sum(axis=0) / count
    distance = (x - centre) * finite
    square = (distance**2).sum(axis=0)
    # A line through two or three points follows their noise: their mean is safer.
    sloped = (number >= 4) & (square > 0) & (order == 1)
    square = np.where(sloped, square, 1.0)
    slope = np.where(sloped, (distance * y).sum(axis=0) / square, 0.0)
    left = (y - mean - slope * distance) * finite
    scatter = (left**2).sum(axis=0) / np.maximum(number - 1 - sloped, 1)
    if variance is None:
        own = scatter
    else:
        own = np.where(finite, variance[inside], 0.0).sum(axis=0) / count
    f4 = np.float32
    return _Line(
        mean.astype(f4),
        slope.astype(f4),
        centre.astype(f4),
        (own / count).astype(f4),
        np.where(sloped, own / square, 0.0).astype(f4),
        scatter.astype(f4),
        float(e[inside][0]),
        float(e[inside][-1]),
    )
