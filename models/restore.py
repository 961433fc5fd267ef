"""Put back what the network took away although the counts clearly hold it.

A network trained for least squared error lowers what is rare: a bright spot of one or two pixels
may all but vanish. Where the residual shows an excess (or a lack) that counting noise does not
reach once in twenty maps, a spot of that size is added, brightest first, as CLEAN does
(Högbom, *Astron. Astrophys. Suppl.* 15 (1974) 417). Weaker excesses stay where they are: adding them
would, on average, add more noise than structure (measured on the training families).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.special import xlogy

from inscan.models.matched_filter import significance_threshold

__all__ = ["Restored", "residual_significance", "restore"]

SCALES = (0.45, 0.8, 1.3, 2.2)  # pixels, standard deviations of the spots looked for
_FALSE_ALARM = 0.05  # of a whole map of all elements
_MOST = 200  # spots of one element
_REACH = 4.0  # standard deviations
_LEAST_COUNTS = 4.0  # a lone count or three on an empty background is no spot


@dataclass(frozen=True)
class Restored:
    """Estimate with spots put back.

    Attributes
    ----------
    mean : ndarray of float64, shape (element, row, col)
        Expected counts.
    added_sigma : ndarray of float64, shape (element, row, col)
        Standard deviation of what was added.
    number : ndarray of int, shape (element,)
        Spots put back.
    """

    mean: NDArray[np.float64]
    added_sigma: NDArray[np.float64]
    number: NDArray[np.int64]


def restore(
    counts: NDArray[np.floating], mean: NDArray[np.floating], measured: NDArray[np.bool_]
) -> Restored:
    """Look for significant spots in the residual and put them back.

    Parameters
    ----------
    counts, mean : ndarray of float, shape (element, row, col)
        Measured counts, and what the network expects of them.
    measured : ndarray of bool, shape (element, row, col)

    Returns
    -------
    Restored
    """
    out = np.array(mean, dtype=np.float64)
    added = np.zeros_like(out)
    number = np.zeros(len(out), dtype=np.int64)
    pixels = int(measured.any(axis=0).sum())
    if pixels < 16 or min(out.shape[1:]) < 3:
        return Restored(out, added, number)
    threshold = significance_threshold(pixels, SCALES, len(out), _FALSE_ALARM)
    for element in range(len(out)):
        number[element] = _clean(
            np.where(measured[element], counts[element], out[element]),
            out[element],
            added[element],
            threshold,
        )
    return Restored(out, np.sqrt(added), number)


def residual_significance(
    counts: NDArray[np.floating], mean: NDArray[np.floating], scale: float
) -> NDArray[np.float64]:
    """Signed root of the likelihood ratio of an excess of one size, at every place.

    Parameters
    ----------
    counts, mean : ndarray of float, shape (row, col)
    scale : float
        Standard deviation of the weight, pixels; about the size of the spot.

    Returns
    -------
    ndarray of float64, shape (row, col)
        Standard deviations. Weighted counts are treated as Poisson counts of the same mean over
        variance.
    """
    mean = np.maximum(np.asarray(mean, dtype=np.float64), 1e-3)

    # Beyond the border there is nothing, in the data as in the estimate.
    def blurred(image: NDArray[np.floating], width: float) -> NDArray[np.float64]:
        return gaussian_filter(image, width, mode="constant", truncate=_REACH)

    observed, expected = blurred(np.asarray(counts, np.float64), scale), blurred(mean, scale)
    # The square of a Gaussian is one of half the variance; its sum is taken from the kernel.
    variance = float((_kernel(scale) ** 2).sum()) * blurred(mean, scale / np.sqrt(2))
    unit = expected / np.maximum(variance, 1e-12)
    n, m = np.maximum(observed, 0) * unit, np.maximum(expected * unit, 1e-9)
    deviance = 2 * (xlogy(n, np.maximum(n, 1e-12) / m) - (n - m))
    return np.sign(n - m) * np.sqrt(np.maximum(deviance, 0))


def _kernel(scale: float) -> NDArray[np.float64]:
    reach = int(_REACH * scale + 0.5)
    impulse = np.zeros((2 * reach + 1, 2 * reach + 1))
    impulse[reach, reach] = 1.0
    return gaussian_filter(impulse, scale, mode="constant", truncate=_REACH)


@dataclass(frozen=True)
class _Spot:
    """A Gaussian at one place: its shape there, fitted height, and gain in log likelihood."""

    place: tuple[slice, slice]
    shape: NDArray[np.float64]
    height: float
    variance: float
    gain: float


def _spot(
    counts: NDArray[np.float64], mean: NDArray[np.float64], row: int, col: int, scale: float
) -> _Spot:
    kernel = _kernel(scale)
    reach = len(kernel) // 2
    rows = slice(max(0, row - reach), min(mean.shape[0], row + reach + 1))
    cols = slice(max(0, col - reach), min(mean.shape[1], col + reach + 1))
    shape = kernel[
        rows.start - row + reach : rows.stop - row + reach,
        cols.start - col + reach : cols.stop - col + reach,
    ]
    y, before = counts[rows, cols], np.maximum(mean[rows, cols], 1e-3)
    norm = float((shape**2).sum())
    height = float((shape * (y - before)).sum()) / norm
    after = np.maximum(before + height * shape, 1e-3)
    gain = float((xlogy(y, after / before) - (after - before)).sum())
    spread = float((shape**2 * np.maximum(y, before)).sum()) / norm**2
    return _Spot((rows, cols), shape, height, spread, gain)


def _clean(
    counts: NDArray[np.float64],
    mean: NDArray[np.float64],
    variance: NDArray[np.float64],
    threshold: float,
) -> int:
    """Add spots to `mean`, and the variance of their heights to `variance`, in place."""
    significance = np.stack([residual_significance(counts, mean, s) for s in SCALES])
    number = 0
    for _ in range(_MOST):
        at = int(np.argmax(np.abs(significance)))
        _, row, col = (int(k) for k in np.unravel_index(at, significance.shape))
        if abs(significance.flat[at]) < threshold:
            break
        # A wide weight finds a small spot too: the size is that which explains the counts best.
        spot = max((_spot(counts, mean, row, col, s) for s in SCALES), key=lambda found: found.gain)
        rows, cols = spot.place
        if spot.height > 0 and spot.height * float(spot.shape.sum()) < _LEAST_COUNTS:
            significance[:, row, col] = 0.0
            continue
        mean[rows, cols] = np.maximum(mean[rows, cols] + spot.height * spot.shape, 0.0)
        variance[rows, cols] += spot.shape**2 * spot.variance
        number += 1
        reach = len(spot.shape) // 2
        # Only what the spot reaches has changed.
        wide = int(_REACH * max(SCALES) + 0.5) + reach
        near = (
            slice(max(0, row - 2 * wide), min(mean.shape[0], row + 2 * wide + 1)),
            slice(max(0, col - 2 * wide), min(mean.shape[1], col + 2 * wide + 1)),
        )
        inner = (
            slice(max(0, row - wide), min(mean.shape[0], row + wide + 1)),
            slice(max(0, col - wide), min(mean.shape[1], col + wide + 1)),
        )
        for k, scale in enumerate(SCALES):
            again = residual_significance(counts[near], mean[near], scale)
            cut = tuple(
                slice(i.start - n.start, i.stop - n.start) for i, n in zip(inner, near, strict=True)
            )
            significance[k][inner] = again[cut]
    return number
