"""Whether two scans of one place have counted the same, element by element and pixel by pixel.

The beam may have changed between the two: that is one factor common to all elements, which is found and taken out. What
is left is held against counting noise. An element whose rate changed against the others has been lost or damaged; one
whose picture changed has moved.

References
----------
Variance-stabilised Poisson counts: Anscombe, Biometrika 35, 246 (1948).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, uniform_filter
from scipy.stats import norm

from inscan.models.composite_layer import Layer

__all__ = ["Agreement", "agreement", "misfit", "worst_chi2"]

_SOLID = 50.0  # counts of an element by which the beams of two scans are compared
_SURE = 4.0  # standard deviations
_MODEL = 0.02  # relative error of a prediction besides counting: beam shape, edges of pixels
_MOST_CHANGE = 1.5  # of all elements together, either way
_FALSE_ALARM = 0.01  # of a whole map
_WORST_CHI2 = 1.4
_MOST_DIFFERS = 0.2  # of the pixels: more than that and nothing is added


@dataclass(frozen=True)
class Agreement:
    """Two sets of counts of one place.

    Attributes
    ----------
    common : float
        Rate of the first over the second, of all elements together.
    common_error : float
    agrees : ndarray of bool, shape (element,)
    differs : ndarray of bool, shape (element, row, col)
        Pixels that differ by more than noise; all that were compared where the element does not agree.
    chi2, ratio, ratio_error : ndarray of float64, shape (element,)
        `ratio` is relative to `common`.
    reasons : tuple of str
        What does not agree, in words.
    """

    common: float
    common_error: float
    agrees: NDArray[np.bool_]
    differs: NDArray[np.bool_]
    chi2: NDArray[np.float64]
    ratio: NDArray[np.float64]
    ratio_error: NDArray[np.float64]
    reasons: tuple[str, ...]


def agreement(
    counts: NDArray[np.float64],
    expected: NDArray[np.float64],
    noise: NDArray[np.float64],
    inside: NDArray[np.bool_],
    fine: Layer,
    foreseen: list[float],
) -> Agreement:
    """Hold counts against what another scan makes of them.

    Parameters
    ----------
    counts, expected, noise : ndarray of float64, shape (element, row, col)
        Of the first scan; what the second predicts for the first's exposure; variance of that.
    inside : ndarray of bool, shape (row, col)
        Pixels to compare.
    fine : Layer
        The second scan, for its elements' names.
    foreseen : list of float
        Rates of the first over the second as the monitor has them: candidates.
    """
    total = counts[:, inside].sum(axis=1)
    made = expected[:, inside].sum(axis=1)
    ratio = np.where(made > 0, total / np.maximum(made, 1e-9), 1.0)
    error = np.maximum(ratio, 1e-9) * np.sqrt(
        1 / np.maximum(total, 1.0)
        + noise[:, inside].sum(axis=1) / np.maximum(made, 1e-9) ** 2
        + (_MODEL / 2) ** 2
    )
    solid = (total >= _SOLID) & (made > 0)
    common, common_error = _common(ratio, error, solid, foreseen)
    relative, relative_error = ratio / common, error / common
    z = _significance(counts, common * expected, common**2 * noise, inside)
    chi2 = np.array([float(np.mean(one[inside] ** 2)) for one in z])
    outliers = _outliers(z, inside)
    agrees, reasons = np.ones(len(counts), dtype=bool), []
    worst = worst_chi2(int(inside.sum()))
    strange = (
        not 1 / _MOST_CHANGE
        < common / min(foreseen, key=lambda f: abs(np.log(f / common)))
        < _MOST_CHANGE
    )
    for k, name in enumerate(fine.elements):
        left = inside & ~outliers[k]
        rest = float(np.mean(z[k][left] ** 2)) if left.any() else np.inf
        apart = relative[k] - 1
        if solid[k] and abs(apart) > _SURE * relative_error[k]:
            verb = "fell" if apart > 0 else "rose"
            change = 100 * abs(1 / relative[k] - 1)
            spread = 100 * relative_error[k] / relative[k] ** 2
            why = (
                f"{name}: its rate {verb} by {change:.1f} ± {spread:.1f} % between the two scans, against the other"
                f" elements: {'dose damage or loss' if apart > 0 else 'gain, or damage of the others'}"
            )
        elif rest > worst or outliers[k].sum() > _MOST_DIFFERS * inside.sum():
            why = (
                f"{name}: the two differ by more than noise (reduced chi square {chi2[k]:.2f}): drift within a scan,"
                " damage, or another probe"
            )
        else:
            continue
        agrees[k] = False
        reasons.append(why)
    if strange:
        agrees[:] = False
        reasons = [
            f"all elements together changed by a factor of {1 / common:.2f}: beam, exposure or damage"
        ]
    differs = np.where(agrees[:, None, None], outliers, inside)
    local = int((outliers & agrees[:, None, None]).any(axis=0).sum())
    if local:
        reasons.append(f"{local} survey pixels differ by more than noise and are not added up")
    return Agreement(
        common, common_error, agrees, differs, chi2, relative, relative_error, tuple(reasons)
    )


def _common(
    ratio: NDArray[np.float64],
    error: NDArray[np.float64],
    solid: NDArray[np.bool_],
    foreseen: list[float],
) -> tuple[float, float]:
    """The factor that most elements share: what the monitor foresaw, where they agree with it."""
    if not solid.any():
        return float(foreseen[0]), 0.0
    r, e = ratio[solid], error[solid]
    order = np.argsort(r)
    weight = np.cumsum((1 / e[order]) ** 2)
    median = float(r[order][int(np.searchsorted(weight, weight[-1] / 2))])

    def follow(factor: float) -> NDArray[np.bool_]:
        return np.abs(r - factor) < _SURE * e + _MODEL * factor

    candidates = sorted(foreseen, key=lambda f: abs(np.log(max(median, 1e-9) / f)))
    best = candidates[0]
    # Alone, an element cannot tell the beam's change from its own; together they can.
    if len(r) > 1 and follow(median).sum() > follow(best).sum():
        best = median
    near = follow(best)
    if not near.any():
        return (median, float(e.min())) if len(r) > 1 else (best, 0.0)
    w = 1 / e[near] ** 2
    mean, spread = float((w * r[near]).sum() / w.sum()), float(w.sum() ** -0.5)
    # A factor that noise explains is not applied: it would bring its own.
    return (best, spread) if abs(mean - best) < 3 * spread else (mean, spread)


def misfit(
    counts: NDArray[np.float64], expected: NDArray[np.float64], noise: NDArray[np.float64]
) -> NDArray[np.float64]:
    """-2 log likelihood of counts, up to a constant, added up over elements: smaller is better.

    Parameters
    ----------
    counts, expected, noise : ndarray of float64, shape (element, row, col)
        As for `agreement`; `noise` 0 for an expectation that is certain.

    Returns
    -------
    ndarray of float64, shape (row, col)
    """
    everywhere = np.ones(counts.shape[1:], dtype=bool)
    z = _significance(counts, expected, noise, everywhere)
    return (z**2 + np.log(_spread(expected, noise))).sum(axis=0)


def _spread(expected: NDArray[np.float64], noise: NDArray[np.float64]) -> NDArray[np.float64]:
    """Variance of the difference on the stabilised scale, on which counting alone gives 1."""
    safe = np.maximum(expected, 0.0) + 0.375
    return 1 + (np.maximum(noise, 0.0) + (_MODEL * expected) ** 2) / safe


def _significance(
    counts: NDArray[np.float64],
    expected: NDArray[np.float64],
    noise: NDArray[np.float64],
    inside: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Standard deviations between counts and expectation, of about unit variance at any count."""
    apart = 2 * (np.sqrt(counts + 0.375) - np.sqrt(np.maximum(expected, 0.0) + 0.375))
    return np.where(inside, apart / np.sqrt(_spread(expected, noise)), 0.0)


def _outliers(z: NDArray[np.float64], inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    places = max(1, int(inside.sum())) * len(z) * 2
    threshold = float(norm.isf(_FALSE_ALARM / 2 / places))
    held = uniform_filter(inside.astype(float), 3, mode="constant")
    found = np.abs(z) > threshold
    for k, one in enumerate(z):
        around = uniform_filter(one, 3, mode="constant") / np.sqrt(np.maximum(held, 1 / 9) / 9)
        found[k] |= binary_dilation(np.abs(around) > threshold, np.ones((3, 3)))
    return found & inside


def worst_chi2(pixels: int) -> float:
    """Largest reduced chi square of so many pixels that noise explains."""
    # Reduced chi square of n pixels scatters by the root of 2 / n.
    return max(_WORST_CHI2, 1 + 5 * float(np.sqrt(2 / max(pixels, 1))))
