"""Do the channels of a detector see the same map, each with its own gain and nothing else?

Every test holds one channel against the others: given the counts of all, those of one channel are
binomial with a share that does not depend on the sample (conditioning removes the sample).
Channels sit at different angles, so a share may change slowly over the field; that is modelled by
a smooth gain field. What is left must be counting noise.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from scipy.special import expit

__all__ = ["Misfit", "block_side", "blocks", "gain_field", "misfit", "noise_ratio", "scatter"]

_BLOCK = 8  # pixels on a side, pooled so that low counts still tell a sick channel from noise
_BLOCKS = 6  # along the shorter side, at least
_SIGNIFICANT = 40.0  # gain in deviance for five coefficients; noise gives 5 +- 3
_LEAST_COUNTS = 2000.0
_WINDOW = 7  # pixels; slower differences between channels are geometry, not noise


@dataclass(frozen=True)
class Misfit:
    """How a channel differs from the sum of the others beyond counting noise.

    Attributes
    ----------
    relative : float
        Root mean square of the difference over the channel's own structure, noise taken off.
    z : float
        The same in standard errors.
    """

    relative: float
    z: float


def block_side(shape: tuple[int, ...]) -> int:
    """Side of the blocks that counts are pooled in, pixels: smaller on small maps."""
    return max(1, min(_BLOCK, min(shape[-2:]) // _BLOCKS))


def blocks(image: NDArray[np.floating]) -> NDArray[np.float64]:
    """Sums over blocks of `block_side` pixels; a last, smaller block takes what is left over."""
    side = block_side(image.shape)
    rows, cols = np.arange(0, image.shape[0], side), np.arange(0, image.shape[1], side)
    return np.add.reduceat(np.add.reduceat(image.astype(np.float64), rows, axis=0), cols, axis=1)


def gain_field(
    one: NDArray[np.float64],
    others: NDArray[np.float64],
    ratio: NDArray[np.float64],
    shape: tuple[int, int],
) -> NDArray[np.float64] | None:
    """Smooth change of one channel's gain over the field, against the other channels.

    A polynomial of second degree in row and column for the logarithm of the gain, fitted to the
    binomial counts of blocks by Newton's method.

    Parameters
    ----------
    one, others : ndarray of float, shape (block row, block col)
        Counts of the channel, and of the others together.
    ratio : ndarray of float, same shape
        Exposure of the channel over that of the others; 0 where not measured.
    shape : (int, int)
        Rows and columns of the map.

    Returns
    -------
    ndarray of float64, shape (row, col), or None
        Relative gain, mean about 1; None where the data show no change of it.
    """
    total = one + others
    seen = (total > 0) & (ratio > 0)
    if total[seen].sum() < _LEAST_COUNTS or seen.sum() < 12:
        return None
    side = block_side(shape)
    rows = np.minimum((np.arange(one.shape[0]) + 0.5) * side, shape[0]) / shape[0]
    cols = np.minimum((np.arange(one.shape[1]) + 0.5) * side, shape[1]) / shape[1]
    design = _polynomial(*np.meshgrid(rows, cols, indexing="ij"))[:, seen]
    y, n, offset = one[seen], total[seen], np.log(ratio[seen])
    full = _fit(design, y, n, offset)
    flat = _fit(design[:1], y, n, offset)
    if full is None or flat is None or flat[1] - full[1] < _SIGNIFICANT:
        return None
    at = np.meshgrid(
        (np.arange(shape[0]) + 0.5) / shape[0],
        (np.arange(shape[1]) + 0.5) / shape[1],
        indexing="ij",
    )
    slow = np.tensordot(full[0], _polynomial(*at), 1)
    # Where hardly anything was counted the polynomial is free to run away.
    return np.exp(np.clip(slow - np.average(slow), -1.0, 1.0))


def _polynomial(row: NDArray[np.float64], col: NDArray[np.float64]) -> NDArray[np.float64]:
    y, x = 2 * row - 1, 2 * col - 1
    return np.stack([np.ones_like(x), y, x, y * y, x * y, x * x])


def _fit(
    design: NDArray[np.float64],
    y: NDArray[np.float64],
    n: NDArray[np.float64],
    offset: NDArray[np.float64],
) -> tuple[NDArray[np.float64], float] | None:
    """Logistic regression: coefficients and deviance; None if it does not converge."""
    beta = np.zeros(len(design))
    share = y.sum() / n.sum()
    beta[0] = np.log(max(share, 1e-6) / max(1 - share, 1e-6)) - np.average(offset, weights=n)
    for _ in range(20):
        p = np.clip(expit(offset + beta @ design), 1e-9, 1 - 1e-9)
        weight = n * p * (1 - p)
        hessian = (design * weight) @ design.T + 1e-6 * np.eye(len(design))
        step = np.linalg.solve(hessian, design @ (y - n * p))
        beta = beta + np.clip(step, -1, 1)
        if np.abs(step).max() < 1e-6:
            break
    if not np.isfinite(beta).all() or np.abs(beta[1:]).sum() > 20:
        return None
    p = np.clip(expit(offset + beta @ design), 1e-9, 1 - 1e-9)
    return beta, float(-2 * (y * np.log(p) + (n - y) * np.log1p(-p)).sum())


def misfit(
    one: NDArray[np.float64], others: NDArray[np.float64], ratio: NDArray[np.float64]
) -> Misfit:
    """Structure of one channel that the others lack, or the other way round.

    Parameters
    ----------
    one, others : ndarray of float, shape (block row, block col)
        Counts of the channel, and of the others together.
    ratio : ndarray of float, same shape
        Exposure times gain field of the channel over that of the others.
    """
    seen = (one + others > 0) & (ratio > 0)
    if seen.sum() < 4:
        return Misfit(0.0, 0.0)
    y, reference, part = one[seen], others[seen], ratio[seen]
    share = y.sum() / max(float((reference * part).sum()), 1e-12)
    expected = share * part * reference
    variance = expected * (1 + share * part) + 1.0 / 12.0
    excess = (y - expected) ** 2 - variance
    z = excess.sum() / np.sqrt(2.0 * (variance**2).sum() + variance.sum())
    relative = np.sqrt(max(float(excess.sum()), 0.0) / max(float((expected**2).sum()), 1e-12))
    return Misfit(float(relative), float(z))


def scatter(
    one: NDArray[np.floating], others: NDArray[np.floating], ratio: NDArray[np.floating]
) -> tuple[float, float]:
    """Variance of one channel about the others, pixel by pixel, over that of counting noise.

    Parameters
    ----------
    one, others : ndarray of float, shape (row, col)
        Counts of the channel, and of the others together.
    ratio : ndarray of float, same shape
        Gain × exposure of the channel over that of the others; 0 where not measured.

    Returns
    -------
    float, float
        1 for Poisson counts, and the standard error of that.
    """
    rest, variance = _differences(one, others, ratio)
    expected = float(variance.sum())
    if min(rest.shape) >= _WINDOW:
        # Slow differences go; white noise keeps all but a 49th of its variance.
        rest = rest - uniform_filter(rest, _WINDOW, mode="mirror")
        expected *= 1 - 1 / _WINDOW**2
    if expected < 50:
        return 1.0, np.inf
    value = float((rest[ratio > 0] ** 2).sum()) / expected
    error = np.sqrt(float((2 * variance**2 + variance).sum())) / expected
    return value, float(error)


def noise_ratio(
    one: NDArray[np.floating], others: NDArray[np.floating], ratio: NDArray[np.floating]
) -> tuple[float, float]:
    """Variance of the noise alone over that of counts, with the channels' different views taken off.

    Noise of scaled or averaged counts has a variance in proportion to the mean; views that differ
    by some percent have one in proportion to its square. The squares of the differences over the
    counting variance are therefore a straight line in that variance, and noise is where it starts.

    Parameters
    ----------
    one, others, ratio
        As for `scatter`.

    Returns
    -------
    float, float
        1 for Poisson counts, and the standard error of that; infinite where counts are as good as
        the same everywhere, so that the two cannot be told apart.
    """
    rest, variance = _differences(one, others, ratio)
    bright = variance > 0.02
    if bright.sum() < 30:
        return 1.0, np.inf
    v = variance[bright]
    q = rest[bright] ** 2 / v
    # A difference of views makes the scatter of q grow; one count of it is Poisson's own.
    weight = v / (1 + 2 * v)
    centre, spread, slope, start = 0.0, 1.0, 0.0, 1.0
    for _ in range(3):
        centre = float(np.average(v, weights=weight))
        spread = float((weight * (v - centre) ** 2).sum())
        if spread <= 0:
            return 1.0, np.inf
        slope = max(float((weight * (v - centre) * q).sum()) / spread, 0.0)
        start = float(np.average(q, weights=weight)) - slope * centre
        weight = v / (1 + 2 * v * np.maximum(start + slope * v, 0.05) ** 2)
    inverse = 1 / float(weight.sum()) + (centre**2 / spread if slope > 0 else 0.0)
    return start, float(np.sqrt(inverse))


def _differences(
    one: NDArray[np.floating], others: NDArray[np.floating], ratio: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A channel's differences from its share, 0 where not measured, and their counting variance."""
    seen = ratio > 0
    share = np.where(seen, ratio / (1 + ratio), 0.0)
    total = np.where(seen, one + others, 0.0).astype(np.float64)
    return np.where(seen, one, 0.0) - share * total, share * (1 - share) * total
