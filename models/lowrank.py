"""The common core of `subspace` and `spectral`: a spectral basis, its rank, denoised coefficients.

Everything here is in whitened units: noise of standard deviation 1 at every energy, times a map
of relative noise over the pixels.

References
----------
SUM: subspace modelling with a plug-and-play denoiser and Stein's unbiased risk (see
`inscan.models.subspace`). Monte-Carlo SURE: Ramani, Blu, Unser, IEEE TIP 17, 1540 (2008).
Whittaker smoother: Eilers, Analytical Chemistry 75, 3631 (2003).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from inscan.models.gram import HalfGrams
from inscan.models.infer import Denoiser

__all__ = [
    "Basis",
    "Coefficients",
    "denoise_coefficients",
    "plain_basis",
    "split_basis",
    "untouched",
]

_SMOOTHERS = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_PROBE = 0.1  # size of the Monte-Carlo perturbation, in sigma
_RISK_PIXELS = 192
_MARGIN_SIGMAS = 2.0
_NEARLY_ALL = 0.85
_LEAST_AGREEMENT = 0.3
_SURE_AGREEMENT = 0.9
_CHANCE_SIGMAS = 3.0
# Of a minor component against the truth, once its shrinkage is undone; components too weak to be
# kept hold a few percent of what moves an edge.
_SLOPE = 1.02
_MOST_GAIN = 1.4
_AROUND = (6.0, 6.0)  # pixels
_UNSURE = 0.15  # standard error of the slope at which it is not acted on


@dataclass(frozen=True)
class Basis:
    """Orthonormal spectra.

    Attributes
    ----------
    vectors : ndarray of float64, shape (energy, component)
    noise : ndarray of float64, shape (component,)
        Standard deviation of each entry of the vectors.
    smoothing : float
        Sigma in pixels of the smoothing that the basis was learned at.
    agreement : ndarray of float64, shape (component,)
        Cosine between what the two halves of the pixels say; near 1 for a component that is
        there, near 0 for noise.
    """

    @property
    def real(self) -> NDArray[np.bool_]:
        """Components on which the halves agree better than noise would."""
        chance = _CHANCE_SIGMAS / np.sqrt(len(self.vectors))
        return self.agreement >= min(max(_LEAST_AGREEMENT, chance), _SURE_AGREEMENT)

    vectors: NDArray[np.float64]
    noise: NDArray[np.float64]
    smoothing: float
    agreement: NDArray[np.float64]


@dataclass(frozen=True)
class Coefficients:
    """Denoised coefficient images of the components kept.

    Attributes
    ----------
    kept : ndarray of int, shape (rank,)
        Which candidates.
    tried : ndarray of int, shape (tried,)
        Candidates whose risk was estimated.
    images, sigma : ndarray of float32, shape (rank, row, col)
    risk : ndarray of float64, shape (tried,)
        Estimated mean squared error when the candidate is denoised and kept, in units of the
        noise variance.
    gain : ndarray of float64, shape (tried,)
        By how much that is less than the error of leaving the candidate out.
    gain_sigma : ndarray of float64, shape (tried,)
    unshrunk : ndarray of float64, shape (rank,)
        What the denoised components were multiplied by to undo their shrinkage.
    """

    kept: NDArray[np.intp]
    tried: NDArray[np.intp]
    images: NDArray[np.float32]
    sigma: NDArray[np.float32]
    risk: NDArray[np.float64]
    gain: NDArray[np.float64]
    gain_sigma: NDArray[np.float64]
    unshrunk: NDArray[np.float64]


def plain_basis(gram: NDArray[np.float64], count: int) -> Basis:
    """The leading eigenvectors of the Gram matrix of the data themselves, as published."""
    vectors = _leading(gram, count)
    none = np.zeros(vectors.shape[1])
    return Basis(vectors, none, 0.0, none + 1)


def split_basis(levels: list[HalfGrams], count: int) -> Basis:
    """Basis learned at the smoothing that suits the noise, with its own noise smoothed away.

    Parameters
    ----------
    levels : list of HalfGrams
        In whitened units, at least one.
    count : int
        Components wanted.

    Returns
    -------
    Basis

    Notes
    -----
    Smoothing over pixels leaves the space that the spectra span as it is and takes noise away,
    but also weakens components of fine structure; the level is taken at which bases learned from
    either half of the pixels agree best, components weighted by their power. Then each vector is
    smoothed along energy as far as Stein's unbiased risk allows: sharp features of strong
    components stay, because their noise is small.
    """
    power = np.maximum(_rayleigh(levels[0].cross, _leading(levels[0].whole(), count)), 0)
    best, best_loss = levels[0], np.inf
    for level in levels:
        a, b = _leading(level.first, count), _leading(level.second, count)
        lost = 1 - np.minimum((a.T @ b) ** 2, 1).max(axis=1)
        loss = float((lost * power).sum())
        # A coarser level must be clearly better: it sees less of the fine components.
        if loss < 0.9 * best_loss:
            best, best_loss = level, loss
    whole = _leading(best.whole(), count)
    a, b = _leading(best.first, count), _leading(best.second, count)
    # Spans of the first k vectors agree as far as their least similar directions do. If those of
    # more vectors agree, so do those of fewer: two components of like power may change places.
    least = [np.linalg.svd(a[:, :k].T @ b[:, :k])[1].min() for k in range(1, whole.shape[1] + 1)]
    agreement = np.maximum.accumulate(np.array(least)[::-1])[::-1]
    a, b = _aligned(a, whole), _aligned(b, whole)
    # The mean of the halves has half the noise variance of either: a quarter of their difference.
    noise = np.sqrt(np.mean((a - b) ** 2, axis=0) / 4)
    smoothed = [_smoothed(v, s) for v, s in zip(whole.T, noise, strict=True)]
    noise = np.array([left for _, left in smoothed])
    vectors, triangle = np.linalg.qr(np.stack([v for v, _ in smoothed], axis=1))
    return Basis(vectors * np.sign(np.diag(triangle)), noise, best.smoothing, agreement)


def untouched(images: NDArray[np.float32]) -> Coefficients:
    """All components as they are, for data without noise."""
    everything, nothing = np.arange(len(images)), np.zeros(len(images))
    return Coefficients(
        everything,
        everything,
        images,
        np.zeros_like(images),
        nothing,
        nothing,
        nothing,
        nothing + 1,
    )


def denoise_coefficients(
    images: NDArray[np.float32],
    noise: NDArray[np.float32],
    denoiser: Denoiser,
    *,
    rng: np.random.Generator,
    least: int,
    contiguous: bool,
    tta: int,
    real: NDArray[np.bool_] | None = None,
    guide: NDArray[np.float32] | None = None,
    unshrink: bool = False,
) -> Coefficients:
    """Denoise coefficient images and keep those for which that lowers the risk.

    Parameters
    ----------
    images : ndarray of float32, shape (candidate, row, col)
        Coefficients of an orthonormal basis.
    noise : ndarray of float32, shape (row, col) or (candidate, row, col)
        Standard deviation of their noise, above 0.
    denoiser : Denoiser
    rng : numpy.random.Generator
        For the Monte-Carlo divergence.
    least : int
        Keep at least so many.
    contiguous : bool
        Keep the first K (as published) instead of every candidate that pays.
    tta : int
        Symmetries to average for the components kept.
    real : ndarray of bool, shape (candidate,), optional
        Candidates that may be kept. The risk takes the basis as given; one that was chosen for
        the noise it holds looks better than it is.
    guide : ndarray of float32, shape (row, col), optional
        Another image of the same place, nearly free of noise.
    unshrink : bool
        Undo the shrinkage of every component but the first, where the data show how much there
        is: a denoiser of least squared error draws weak structure towards the mean.

    Returns
    -------
    Coefficients
    """
    tried = np.arange(len(images))
    if real is not None:
        tried = tried[real | (tried < least)]
    level = np.broadcast_to(noise, images.shape)[tried]
    images = images[tried]
    count = len(images)
    window = _busiest(images, _RISK_PIXELS)
    part, spread = images[:, *window], level[:, *window]
    part_guide = None if guide is None else guide[window]
    centre = np.median(images, axis=(1, 2), keepdims=True)
    probe = rng.choice(np.array([-1.0, 1.0], dtype=np.float32), size=part.shape)
    step = _PROBE * spread

    # The network works in half precision: a constant many times the noise would drown it.
    flat, flat_sigma = denoiser.denoise_with_spread(part - centre, spread, part_guide, tta=1)
    moved, _ = denoiser.denoise_with_spread(part - centre + step * probe, spread, part_guide, tta=1)
    removed = part - centre - flat
    slope = (moved - flat) * probe / step
    variance = spread.astype(np.float64) ** 2
    unit = variance.mean(axis=(1, 2))
    # How much of what the network removed to remove: all of it, unless the risk says that less
    # is better, as for images hundreds of times brighter than their noise (never trained on).
    share = np.ones(count)
    if not contiguous:
        best = (variance * (1 - slope)).mean(axis=(1, 2)) / (removed**2).mean(axis=(1, 2))
        share = np.where(best > _NEARLY_ALL, 1.0, np.clip(best, 0.0, 1.0))
    by = share[:, None, None]
    gain = np.ones(count)
    if unshrink:
        gain[1:] = _gain(part - centre, flat, slope, variance)[1:]
        gain[share < 1] = 1.0
    more = gain[:, None, None]
    # Per pixel: unbiased estimates of the squared error with and without the candidate.
    kept_slope = more * (1 - by * (1 - slope))
    answer = more * (part - centre - by * removed)
    inside = (part - centre - answer) ** 2 + variance * (2 * kept_slope - 1)
    outside = part.astype(np.float64) ** 2 - variance
    risk = inside.mean(axis=(1, 2)) / unit
    difference = (outside - inside) / unit[:, None, None]
    won = difference.mean(axis=(1, 2))
    won_sigma = difference.std(axis=(1, 2)) / np.sqrt(part[0].size)
    pays = won > _MARGIN_SIGMAS * won_sigma
    if contiguous:
        total = np.cumsum(won)
        pays = np.arange(count) <= int(np.argmax(total))
    pays[: min(least, count)] = True
    kept = np.flatnonzero(pays)
    by, more = by[kept].astype(np.float32), more[kept].astype(np.float32)
    noisy = images[kept] - centre[kept]
    values, sigma = denoiser.denoise_with_spread(noisy, level[kept], guide, tta=tta)
    values = (more * (noisy + by * (values - noisy)) + centre[kept]).astype(np.float32)
    sigma = more * np.sqrt((1 - by) * level[kept] ** 2 + by * sigma**2)
    # The network's own error estimate stands unless the unbiased risk clearly contradicts it.
    keep = share[:, None, None]
    own = (gain[:, None, None] ** 2 * ((1 - keep) * variance + keep * flat_sigma**2))[kept]
    predicted = own.mean(axis=(1, 2)) / unit[kept]
    doubt = 2 * (inside / unit[:, None, None]).std(axis=(1, 2))[kept] / np.sqrt(part[0].size)
    known = np.clip(predicted, risk[kept] - doubt, risk[kept] + doubt)
    factor = np.clip(np.sqrt(np.maximum(known, 0) / np.maximum(predicted, 1e-12)), 0.5, 3.0)
    sigma = (sigma * factor[:, None, None]).astype(np.float32)
    return Coefficients(tried[kept], tried, values, sigma, risk, won, won_sigma, gain[kept])


def _gain(
    noisy: NDArray[np.floating],
    denoised: NDArray[np.floating],
    slope: NDArray[np.floating],
    variance: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Factors after which denoised images follow the truth with a slope of nearly 1.

    Power of the truth: that of the data less the noise. Its covariance with the answer: that of the
    data less what the answer took over of the noise, which the divergence tells (Stein).
    """
    y = noisy.astype(np.float64)
    product = denoised * y - variance * slope
    power = y**2 - variance
    # Thick and thin places count alike, as they do in a map of the chemistry: weights go by the
    # power around a pixel, and places with next to none do not count.
    around = gaussian_filter(denoised.astype(np.float64) ** 2, (0, *_AROUND), mode="nearest")
    strong = np.percentile(around, 98, axis=(1, 2), keepdims=True)
    weight = np.where(around > 0.02 * strong, 1 / np.maximum(around, 0.05 * strong + 1e-30), 0.0)
    truth = np.maximum((weight * power).mean(axis=(1, 2)), 1e-30)
    follows = (weight * product).mean(axis=(1, 2)) / truth
    left = weight * (product - follows[:, None, None] * power)
    error = left.std(axis=(1, 2)) / np.sqrt(y[0].size) / truth
    sure = np.clip(1 - (error / _UNSURE) ** 2, 0, 1)
    wanted = np.clip(_SLOPE / np.maximum(follows, 0.1), 1.0, _MOST_GAIN)
    return 1 + sure * (wanted - 1)


def _leading(gram: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Eigenvectors of the largest eigenvalues, signs fixed, shape (energy, count)."""
    _, vectors = np.linalg.eigh((gram + gram.T) / 2)
    top = vectors[:, ::-1][:, :count]
    largest = np.take_along_axis(top, np.abs(top).argmax(axis=0)[None], axis=0)
    return top * np.sign(largest)


def _rayleigh(gram: NDArray[np.float64], vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return ((gram @ vectors) * vectors).sum(axis=0)


def _aligned(vectors: NDArray[np.float64], to: NDArray[np.float64]) -> NDArray[np.float64]:
    """`vectors` turned within the space they span to lie as close as they can to `to`."""
    left, _, right = np.linalg.svd(vectors.T @ to)
    return vectors @ (left @ right)


def _smoothed(vector: NDArray[np.float64], noise: float) -> tuple[NDArray[np.float64], float]:
    """Whittaker-smoothed as strongly as Stein's unbiased risk asks for, and the error left."""
    n = vector.size
    if n < 5 or noise == 0:
        return vector, noise
    bend = np.diff(np.eye(n), 2, axis=0)
    best, best_risk, error = vector, np.inf, noise
    for strength in _SMOOTHERS:
        smoother = np.linalg.inv(np.eye(n) + strength * bend.T @ bend)
        smooth = smoother @ vector
        risk = ((vector - smooth) ** 2).sum() + 2 * noise**2 * np.trace(smoother)
        if risk < best_risk:
            best, best_risk = smooth, risk
            passed = noise**2 * float((smoother**2).sum())
            error = float(np.sqrt(max(risk - n * noise**2, passed) / n))
    return best, error


def _busiest(images: NDArray[np.float32], side: int) -> tuple[slice, slice]:
    """A window of at most `side` x `side` pixels around the centre of the variance."""
    rows, cols = images.shape[1:]
    power = ((images - np.median(images, axis=(1, 2), keepdims=True)) ** 2).sum(axis=0)
    window = []
    for axis, size in ((1, rows), (0, cols)):
        line = power.sum(axis=axis)
        middle = int((line * np.arange(size)).sum() / max(float(line.sum()), 1e-30))
        first = int(np.clip(middle - side // 2, 0, max(0, size - side)))
        window.append(slice(first, min(size, first + side)))
    return window[0], window[1]
