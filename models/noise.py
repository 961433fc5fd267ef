"""Counting noise: stabilise it, undo that without bias, thin it, score it, estimate it."""

from functools import cache

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import xlogy
from scipy.stats import poisson

__all__ = [
    "anscombe",
    "anscombe_mean",
    "anscombe_slope",
    "anscombe_variance",
    "inverse_anscombe",
    "inverse_anscombe_torch",
    "marchenko_pastur_median",
    "noise_sigma",
    "poisson_deviance",
    "poisson_nll",
    "tail_sigma",
    "thin",
]

_LOWEST = 2.0 * np.sqrt(3.0 / 8.0)  # anscombe(0)
_A = 0.25 * np.sqrt(1.5)
_B = -11.0 / 8.0
_C = 5.0 / 8.0 * np.sqrt(1.5)


def anscombe(counts: ArrayLike) -> NDArray[np.float64]:
    """Make Poisson noise nearly Gaussian with standard deviation 1: 2 √(counts + 3/8).

    Anscombe, *Biometrika* 35 (1948) 246. Below about 3 counts a pixel the standard deviation
    falls off (0.59 at a mean of 0.5); the shipped denoiser was trained on that, exactly.

    Parameters
    ----------
    counts : array of float, any shape
        Counts; below 0 is taken as 0.

    Returns
    -------
    ndarray of float64, same shape
    """
    return 2.0 * np.sqrt(np.maximum(np.asarray(counts, dtype=np.float64), 0.0) + 0.375)


def inverse_anscombe(stabilised: ArrayLike) -> NDArray[np.float64]:
    """From the mean of stabilised counts to the mean of the counts, without bias.

    Closed form of the exact unbiased inverse, Mäkitalo and Foi, *IEEE TIP* 20 (2011) 2697;
    within 1 % of it everywhere. The algebraic inverse would lose a quarter of a count.

    Parameters
    ----------
    stabilised : array of float, any shape
        Values below 2 √(3/8), the image of 0 counts, give 0.

    Returns
    -------
    ndarray of float64, same shape
        Mean counts, at least 0.
    """
    d = np.maximum(np.asarray(stabilised, dtype=np.float64), _LOWEST)
    return np.maximum(d**2 / 4 + _A / d + _B / d**2 + _C / d**3 - 0.125, 0.0)


def anscombe_slope(stabilised: ArrayLike) -> NDArray[np.float64]:
    """Derivative of `inverse_anscombe`: counts for each unit of the stabilised scale.

    Parameters
    ----------
    stabilised : array of float, any shape
        Below 2 √(3/8) the slope at that point.

    Returns
    -------
    ndarray of float64, same shape
    """
    d = np.maximum(np.asarray(stabilised, dtype=np.float64), _LOWEST)
    return d / 2 - _A / d**2 - 2 * _B / d**3 - 3 * _C / d**4


def anscombe_variance(mean: ArrayLike) -> NDArray[np.float64]:
    """Variance of stabilised Poisson counts: 1 at high means, less where few counts are expected.

    Parameters
    ----------
    mean : array of float, any shape
        Mean counts, 0 or more.

    Returns
    -------
    ndarray of float64, same shape
    """
    m = np.asarray(mean, dtype=np.float64)
    at, variance = _variance_table()
    return np.interp(np.log(np.maximum(m, 1e-12)), at, variance)


@cache
def _variance_table() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logarithm of the mean, and the variance of the stabilised counts there, exactly."""
    grid = np.geomspace(1e-4, 50.0, 120)
    counts = np.arange(150)
    weight = poisson.pmf(counts[None], grid[:, None])
    values = anscombe(counts)
    first, second = weight @ values, weight @ values**2
    return np.log(grid), second - first**2


def anscombe_mean(mean: ArrayLike) -> NDArray[np.float64]:
    """Mean of stabilised Poisson counts of a given mean, exactly: the inverse's counterpart.

    Parameters
    ----------
    mean : array of float, any shape
        Mean counts, 0 or more.

    Returns
    -------
    ndarray of float64, same shape
    """
    # The mean square of 2 sqrt(y + 3/8) is 4 m + 3/2.
    square = 4.0 * np.asarray(mean, dtype=np.float64) + 1.5
    return np.sqrt(np.maximum(square - anscombe_variance(mean), 0.0))


def inverse_anscombe_torch(stabilised: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`inverse_anscombe` and its slope for training: differentiable, and straight below 0 counts.

    Parameters
    ----------
    stabilised : tensor of float, any shape

    Returns
    -------
    counts, slope : tensor, same shape
        `counts` continues below 0 as a straight line, so that gradients do not vanish there.
    """
    d = stabilised.clamp(min=_LOWEST)
    counts = d**2 / 4 + _A / d + _B / d**2 + _C / d**3 - 0.125
    slope = d / 2 - _A / d**2 - 2 * _B / d**3 - 3 * _C / d**4
    return counts + slope.detach() * (stabilised - d), slope.detach()


def thin(
    counts: NDArray[np.floating] | NDArray[np.integer], fraction: float, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Split counts at random into two independent Poisson maps of the same place.

    Each count goes into the first map with probability `fraction`. For Poisson counts of mean m
    the two maps are independent Poisson with means fraction · m and (1 − fraction) · m, which is
    what splitting a detector's channels gives; it works for a single channel too.

    Parameters
    ----------
    counts : ndarray, any shape
        Counts of 0 or more. Values between integers are rounded at random to a neighbour,
        keeping their mean.
    fraction : float
        Between 0 and 1.
    rng : numpy.random.Generator

    Returns
    -------
    kept, held : ndarray of float32, same shape

    Raises
    ------
    ValueError
        If the fraction is not strictly between 0 and 1.
    """
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"thin: fraction must lie between 0 and 1, got {fraction}")
    values = np.asarray(counts, dtype=np.float64)
    whole = np.floor(values)
    if not np.array_equal(whole, values):
        whole += rng.random(values.shape) < values - whole
    kept = rng.binomial(whole.astype(np.int64), fraction)
    return kept.astype(np.float32), (whole - kept).astype(np.float32)


def poisson_nll(counts: ArrayLike, mean: ArrayLike) -> NDArray[np.float64]:
    """Negative log likelihood of counts, without the term that does not depend on the mean.

    Parameters
    ----------
    counts, mean : array of float, same shape
        The mean is kept above 1e-6 counts.
    """
    m = np.maximum(np.asarray(mean, dtype=np.float64), 1e-6)
    return m - np.asarray(counts, dtype=np.float64) * np.log(m)


def poisson_deviance(counts: ArrayLike, mean: ArrayLike) -> NDArray[np.float64]:
    """Twice the log likelihood lost against a perfect fit; about 1 a pixel at high counts."""
    y = np.asarray(counts, dtype=np.float64)
    m = np.maximum(np.asarray(mean, dtype=np.float64), 1e-6)
    return 2.0 * (xlogy(y, np.maximum(y, 1e-6) / m) - (y - m))


def noise_sigma(images: ArrayLike) -> NDArray[np.float64]:
    """Standard deviation of white noise, from the finest diagonal differences of each image.

    Median absolute value of (a − b − c + d) / 2 over 2 × 2 blocks, which smooth structure leaves
    near zero; after Donoho and Johnstone, *Biometrika* 81 (1994) 425. Structure at the scale of a
    pixel raises it.

    Parameters
    ----------
    images : array of float, shape (..., row, col)
        At least 2 × 2.

    Returns
    -------
    ndarray of float64, shape (...)

    Raises
    ------
    ValueError
        If the images are smaller than 2 × 2.
    """
    x = np.asarray(images, dtype=np.float64)
    if x.ndim < 2 or min(x.shape[-2:]) < 2:
        raise ValueError(f"noise_sigma: needs images of at least 2 x 2, got shape {x.shape}")
    detail = (x[..., 1:, 1:] - x[..., 1:, :-1] - x[..., :-1, 1:] + x[..., :-1, :-1]) / 2
    return np.median(np.abs(detail), axis=(-2, -1)) / 0.6744897501960817


def marchenko_pastur_median(ratio: float) -> float:
    """Median of the Marchenko-Pastur law: of the eigenvalues of XᵀX/n for unit white noise.

    Parameters
    ----------
    ratio : float
        Smaller over larger side of X, in (0, 1].
    """
    if not 0.0 < ratio <= 1.0:
        raise ValueError(f"marchenko_pastur_median: ratio must lie in (0, 1], got {ratio}")
    low, high = (1 - np.sqrt(ratio)) ** 2, (1 + np.sqrt(ratio)) ** 2
    # x = middle - half cos(t) removes the square-root ends of the density.
    t = np.linspace(0.0, np.pi, 4001)
    x = (low + high) / 2 - (high - low) / 2 * np.cos(t)
    density = np.sin(t) ** 2 / np.maximum(x, 1e-12)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return float(np.interp(0.5 * mass[-1], mass, x))


def tail_sigma(eigenvalues: ArrayLike, samples: int, signal: int = 0) -> float:
    """Noise of a stack from the many small eigenvalues of its Gram matrix.

    The lower half of the spectrum belongs to noise alone when the signal has low rank; its median
    is that of the Marchenko-Pastur law (Gavish and Donoho, *IEEE TIT* 60 (2014) 5040).

    Parameters
    ----------
    eigenvalues : array of float, shape (frame,)
        Of YᵀY for Y of shape (samples, frame), in any order.
    samples : int
        Pixels that entered the Gram matrix.
    signal : int
        How many of the largest eigenvalues to leave out as signal.

    Returns
    -------
    float
        Standard deviation in the units of Y.

    Raises
    ------
    ValueError
        If nothing is left to take the median of.
    """
    values = np.sort(np.asarray(eigenvalues, dtype=np.float64))[::-1]
    # With more frames than pixels the Gram matrix has only `samples` eigenvalues above zero.
    small, large = sorted((values.size, samples))
    values = values[signal:small]
    if values.size == 0:
        raise ValueError(
            f"tail_sigma: {small} eigenvalues, {signal} of them signal, leave nothing to measure"
        )
    median = float(np.median(values)) / (large - signal)
    ratio = (small - signal) / (large - signal)
    return float(np.sqrt(max(median, 0.0) / marchenko_pastur_median(ratio)))
