"""Linear combination fit of reference spectra to every pixel of an energy stack at once."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["ReferenceFit", "checked_stack", "fit_references"]

_MOST_REFERENCES = 8
_JUMP_SIGMAS = 3.0


@dataclass(frozen=True)
class ReferenceFit:
    """A linear combination fit of every pixel.

    Attributes
    ----------
    fractions, sigma : ndarray of float32, shape (reference, row, col)
        Share of each reference, adding up to 1, and its standard deviation. NaN where the total
        amount is too small.
    amount : ndarray of float32, shape (row, col)
        Sum of the coefficients before normalisation: edge jumps of optical density.
    offset : ndarray of float32, shape (row, col)
        Fitted constant under the spectrum.
    chi2 : ndarray of float32, shape (row, col)
        Reduced chi square; 1 where the references and the variance are right. Without variance
        the mean over pixels is 1 by construction.
    """

    fractions: NDArray[np.float32]
    sigma: NDArray[np.float32]
    amount: NDArray[np.float32]
    offset: NDArray[np.float32]
    chi2: NDArray[np.float32]


def fit_references(
    density: ArrayLike,
    energies: ArrayLike,
    references: ArrayLike,
    *,
    variance: ArrayLike | None = None,
    offset: bool = True,
    min_amount: float | None = None,
) -> ReferenceFit:
    """Non-negative linear combination of reference spectra, best for every pixel.

    Parameters
    ----------
    density : array of float, shape (energy, row, col)
        Optical density; NaN where not measured. A pixel with any energy missing is left out.
    energies : array of float, shape (energy,), rising
    references : array of float, shape (reference, energy)
        Absorption of each reference at `energies`, normalised to an edge jump of 1.
    variance : array of float, broadcastable to `density`, optional
        Energies are weighted by its mean over the pixels, so that one design serves all pixels;
        the pixels' own variances enter sigma and chi2.
    offset : bool
        Fit a constant as well, of either sign: absorption that does not change over the edge.
    min_amount : float, optional
        Least total coefficient; by default a tenth of the strong pixels' and three standard
        deviations.

    Returns
    -------
    ReferenceFit

    Raises
    ------
    ValueError
        On wrong shapes, more than 8 references, or fewer energies than unknowns.

    Notes
    -----
    Every subset of the references is fitted by least squares and the best one without negative
    coefficients kept: the exact non-negative solution, for all pixels together.
    """
    od, e = checked_stack(density, energies)
    refs = np.atleast_2d(np.asarray(references, dtype=np.float64))
    if refs.shape[1] != e.size or not np.isfinite(refs).all():
        raise ValueError(
            f"references must be finite and have shape (reference, {e.size}), got {refs.shape}"
        )
    n_refs, n_energy = refs.shape
    if n_refs > _MOST_REFERENCES:
        raise ValueError(f"{n_refs} references cannot be told apart; {_MOST_REFERENCES} at most")
    unknowns = n_refs + int(offset)
    if n_energy <= unknowns:
        raise ValueError(f"{n_energy} energies do not determine {unknowns} unknowns")
    _, rows, cols = od.shape
    y = od.reshape(n_energy, -1).astype(np.float64)
    good = np.asarray(np.isfinite(y).all(axis=0))
    weights, pixel_variance = _split_variance(variance, od.shape, good)
    design = np.vstack([refs, np.ones((int(offset), n_energy))]).T  # (energy, unknown)
    scaled = design * weights[:, None]
    z = np.where(good, y, 0) * weights[:, None]
    normal, moment = scaled.T @ scaled, scaled.T @ z
    energy_left = (z**2).sum(axis=0)
    best = np.full(y.shape[1], np.inf)
    solution = np.zeros((unknowns, y.shape[1]))
    fixed = [n_refs] if offset else []
    for size in range(n_refs + 1):
        for chosen in combinations(range(n_refs), size):
            active = [*chosen, *fixed]
            if not active:
                continue
            block = np.linalg.pinv(normal[np.ix_(active, active)])
            x = block @ moment[active]
            left = energy_left - (x * moment[active]).sum(axis=0)
            better = (x[:size] >= 0).all(axis=0) & (left < best)
            best = np.where(better, left, best)
            solution[:, better] = 0
            solution[np.ix_(active, np.flatnonzero(better))] = x[:, better]
    freedom = n_energy - unknowns
    left = np.maximum(best, 0) / freedom
    if variance is None:
        level = float(np.median(left[good])) if good.any() else 1.0
        pixel_variance = np.full(y.shape[1], max(level, 1e-30))
    chi2 = left / pixel_variance
    amount = solution[:n_refs].sum(axis=0)
    # All references active, also where the fit holds one at 0: its noise is there all the same.
    covariance = np.linalg.pinv(normal)[:n_refs, :n_refs]
    total = covariance.sum() * pixel_variance
    with np.errstate(invalid="ignore", divide="ignore"):
        share = solution[:n_refs] / amount
        # d(share_i) = (d(a_i) - share_i * sum_j d(a_j)) / amount
        each = covariance.diagonal()[:, None] - 2 * share * covariance.sum(axis=1)[:, None]
        var = (each + share**2 * covariance.sum()) * pixel_variance / amount**2
    if min_amount is None:
        strong = float(np.percentile(amount[good], 98)) if good.any() else 0.0
        least = np.maximum(0.1 * strong, _JUMP_SIGMAS * np.sqrt(np.maximum(total, 0)))
    else:
        least = np.full_like(amount, min_amount)
    shown = good & (amount > 0) & (amount >= least)

    def picture(x: NDArray[np.floating], keep: NDArray[np.bool_]) -> NDArray[np.float32]:
        return np.where(keep, x, np.nan).reshape(-1, rows, cols).astype(np.float32)

    constant = solution[n_refs] if offset else np.zeros(y.shape[1])
    return ReferenceFit(
        picture(share, shown),
        picture(np.sqrt(np.maximum(var, 0)), shown),
        picture(amount, good)[0],
        picture(constant, good)[0],
        picture(chi2, good)[0],
    )


def _split_variance(
    variance: ArrayLike | None, shape: tuple[int, ...], good: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights per energy (1/sigma, mean square 1); variance of each pixel in those units."""
    if variance is None:
        return np.ones(shape[0]), np.ones(good.size)
    v = np.broadcast_to(np.asarray(variance, dtype=np.float64), shape).reshape(shape[0], -1)
    v = np.where(np.isfinite(v) & good, v, np.nan)
    if not good.any():
        return np.ones(shape[0]), np.ones(good.size)
    per_energy = np.nanmean(v[:, good], axis=1)
    if not (per_energy > 0).all():
        raise ValueError("variance must be > 0 at every energy")
    weights = 1 / np.sqrt(per_energy)
    weights /= np.sqrt(np.mean(weights**2))
    pixel = np.ones(good.size)
    pixel[good] = np.mean(v[:, good] * weights[:, None] ** 2, axis=0)
    return weights, pixel


def checked_stack(
    density: ArrayLike, energies: ArrayLike
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Optical density (energy, row, col) and rising energies (energy,), or a ValueError."""
    od = np.asarray(density, dtype=np.float32)
    e = np.asarray(energies, dtype=np.float64)
    if od.ndim != 3 or e.shape != od.shape[:1]:
        raise ValueError(
            f"density must have shape (energy, row, col) and energies (energy,); got {od.shape} "
            f"and {e.shape}"
        )
    if e.size < 4 or not (np.diff(e) > 0).all():
        raise ValueError("at least 4 energies are needed, and they must rise")
    return od, e
