"""The default of `spectral`: a Poisson-weighted subspace whose coefficient images are denoised.

How many spectra the counts hold is settled by parallel analysis (Horn, Psychometrika 30, 179
(1965)): cubes of the same counts in which every pixel has the same spectrum show what noise alone
gives. What the two halves of the pixels both say beyond that is signal.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from inscan.models.fill import nearest_measured
from inscan.models.gram import GramAccumulator, HalfGrams
from inscan.models.infer import Denoiser
from inscan.models.lowrank import Basis, plain_basis, split_basis
from inscan.models.noise import anscombe, inverse_anscombe
from inscan.models.pansharpen import denoise_guided

__all__ = ["SubspaceFit", "fit_subspace", "write_back"]

_GROUPS = 192  # bins are summed to at most so many for the subspace; the spectra keep them all
_CANDIDATES = 16
_LEAST_COUNTS = 20  # a group of bins with fewer counts in the whole cube takes no part
_SIGNIFICANT = 4.0
_COST = 0.025  # noise that a denoised component brings back, of the noise it has
_LEAST_GAIN = 0.06  # of the noise, by which a component lowers the risk
_CLEARLY = 1.3  # times the strongest noise component, where there are too few pixels for halves
_NEAR = 5  # pixels on a side of the neighbourhood whose residuals are compared
_LEAST_PIXELS = 2.0  # independent pixels of a smoothed half for each group
_TTA_PIXELS = {8: 200**2, 4: 320**2, 2: 512**2}
_BAND_VALUES = 2**22


@dataclass(frozen=True)
class SubspaceFit:
    """Images and their spectra; the product is the result.

    Attributes
    ----------
    images, image_noise : ndarray of float32, shape (component, row, col)
    spectra, spectra_noise : ndarray of float64, shape (bin, component)
    unseen : ndarray of float64, shape (bin,)
        Variance of the structure that the residual of a bin still holds, over the mean square of
        the result there: what the components left out.
    figures : dict
        For the report.
    """

    images: NDArray[np.float32]
    image_noise: NDArray[np.float32]
    spectra: NDArray[np.float64]
    spectra_noise: NDArray[np.float64]
    unseen: NDArray[np.float64]
    figures: dict[str, object]


def fit_subspace(
    counts: NDArray[np.number],
    mask: NDArray[np.bool_],
    guide: NDArray[np.float32] | None,
    denoiser: Denoiser,
    seed: int,
    progress: Callable[[float], None] | None,
) -> SubspaceFit:
    """Find the spectra in a cube, and denoise how much of each is in every pixel.

    Parameters
    ----------
    counts : ndarray of numbers, shape (row, col, bin)
        May be a mapped file: it is read twice, in bands of rows.
    mask : ndarray of bool, shape (row, col)
        Where it was measured.
    guide : ndarray of float32, shape (row, col), optional
    denoiser : Denoiser
    seed : int
    progress : callable, optional

    Returns
    -------
    SubspaceFit
    """
    groups = grouped(counts, mask, _GROUPS)
    total = groups.sum(axis=(1, 2), dtype=np.float64)
    rich = total >= _LEAST_COUNTS
    if not rich.any():
        groups = groups.sum(axis=0, keepdims=True)
        rich = np.ones(1, dtype=bool)
    every = groups
    groups = nearest_measured(groups[rich], ~mask)
    tta = next((t for t, most in _TTA_PIXELS.items() if mask.size <= most), 1)
    clean = denoiser.denoise_gaussian(anscombe(groups.sum(axis=0))[None], 1.0)
    amount = inverse_anscombe(clean)[0]
    # In these units every group has unit noise in an average pixel.
    mean = groups.mean(axis=(1, 2), dtype=np.float64)
    weights = 1 / np.sqrt(np.maximum(mean, 1e-12))
    relative = np.maximum(amount / max(float(amount.mean()), 1e-9), 0.02)
    rng = np.random.default_rng([seed, 7])
    basis, real, figures = _component_basis(groups, mean, weights, relative, rng)
    if progress is not None:
        progress(0.3)
    v, chosen = basis.vectors[:, real], np.flatnonzero(real)
    images = np.tensordot((v.T * weights).astype(np.float32), groups, axes=1)
    level = np.broadcast_to(np.sqrt(relative), images.shape).astype(np.float32)
    first, _ = denoise_guided(images, level, denoiser, None, seed=[seed, 0], tta=1)
    if progress is not None:
        progress(0.5)
    # The noise of each image at each pixel follows from the spectrum expected there.
    expected = np.tensordot(v / weights[:, None], first.images, axes=1)
    variance = np.tensordot((v**2 * weights[:, None] ** 2).T, np.maximum(expected, 0), axes=1)
    floor = 0.02 * variance.mean(axis=(1, 2), keepdims=True)
    level = np.sqrt(np.maximum(variance, floor)).astype(np.float32)
    # A spectrum chosen for the noise in it looks a little better than it is.
    pays = first.gain > _LEAST_GAIN
    pays[0] = True
    kept, helped = denoise_guided(
        images[pays], level[pays], denoiser, guide, seed=[seed, 1], tta=tta
    )
    if progress is not None:
        progress(0.8)
    spectra, noise = _spectra(counts, mask, kept.images, relative)
    figures.update(
        rank=len(kept.images),
        components=[int(k) for k in chosen[pays]],
        basis_smoothing_px=round(basis.smoothing, 3),
        risk_gain=[round(float(g), 5) for g in kept.gain],
    )
    if guide is not None:
        figures["components_guided"] = [int(k) for k in chosen[pays][helped]]
    unseen = _unseen(every, mask, kept.images, spectra)
    figures["unseen"] = round(float(np.sqrt(unseen.mean())), 4)
    return SubspaceFit(kept.images, kept.sigma, spectra, noise, unseen, figures)


def grouped(counts: NDArray[np.number], mask: NDArray[np.bool_], most: int) -> NDArray[np.float32]:
    """Neighbouring bins summed to at most `most` groups: shape (group, row, col); 0 outside."""
    rows, cols, bins = counts.shape
    width = -(-bins // most)
    starts = np.arange(0, bins, width)
    out = np.empty((len(starts), rows, cols), dtype=np.float32)
    for band in bands(counts.shape):
        block = np.where(mask[band][..., None], counts[band], 0)
        out[:, band] = np.add.reduceat(block, starts, axis=2, dtype=np.float64).transpose(2, 0, 1)
    return out


def bands(shape: tuple[int, ...]) -> list[slice]:
    """Slices of rows that hold a few million voxels each."""
    rows, cols, bins = shape
    at_once = max(1, _BAND_VALUES // max(1, cols * bins))
    return [slice(r, min(rows, r + at_once)) for r in range(0, rows, at_once)]


def _component_basis(
    groups: NDArray[np.float32],
    mean: NDArray[np.float64],
    weights: NDArray[np.float64],
    relative: NDArray[np.float64],
    rng: np.random.Generator,
) -> tuple[Basis, NDArray[np.bool_], dict[str, object]]:
    """Spectra in whitened units, and which of them are more than noise."""
    unit = weights[:, None, None] / np.sqrt(relative)
    levels = _levels(groups * unit)
    candidates = min(_CANDIDATES, len(groups))
    null = rng.poisson(mean[:, None, None] * relative) * unit
    if not levels or len(groups) < 4:
        gram, chance = (_gram(z).plain() for z in (groups * unit, null))
        power, most = (np.linalg.eigvalsh(z)[::-1] for z in (gram, chance))
        # The first of both is the mean spectrum; what follows in the null is noise.
        number = 1
        while number < candidates and power[number] > _CLEARLY * most[1]:
            number += 1
        real = np.arange(candidates) < number
        return plain_basis(gram, candidates), real, {"components_significant": number}
    alike = _levels(null)
    found = []
    for level, null in zip(levels, alike, strict=True):
        chance = np.sqrt(np.mean(_shared_power(null, candidates)[0][1:] ** 2))
        power, halves = _shared_power(level, candidates)
        most = _significant(power / max(float(chance), 1e-30))
        # What the spectra chosen at this smoothing catch of the sharpest images there are, less
        # the noise that each leaves in the result.
        caught = sum(_quadratic(levels[0].cross, half) for half in halves) / 2
        worth = np.cumsum(caught - _COST * (groups[0].size / 4))[:most]
        found.append((float(worth.max()), most, level))
    _, number, level = max(found, key=lambda f: f[0])
    basis = split_basis([level], candidates)
    real = np.arange(candidates) < number
    return basis, real, {"components_significant": number}


def _gram(even: NDArray[np.floating]) -> GramAccumulator:
    gram = GramAccumulator(even.astype(np.float32))
    gram.advance(len(even))
    return gram


def _levels(even: NDArray[np.floating]) -> list[HalfGrams]:
    size = even[0].size
    return [
        level
        for level in _gram(even).smoothed()
        if size / level.smoothing**2 >= _LEAST_PIXELS * len(even) or level.smoothing < 3
    ]


def _shared_power(
    level: HalfGrams, count: int
) -> tuple[NDArray[np.float64], tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Power along the leading spectra of either half that the other half confirms.

    The noise of the halves is independent, so that for a spectrum which one half took for signal
    though it was noise, this scatters about 0.
    """
    a, b = _leading(level.first, count), _leading(level.second, count)
    return (_quadratic(level.cross, a) + _quadratic(level.cross, b)) / 2, (a, b)


def _leading(gram: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    _, vectors = np.linalg.eigh((gram + gram.T) / 2)
    return vectors[:, ::-1][:, :count]


def _quadratic(gram: NDArray[np.float64], vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return ((gram @ vectors) * vectors).sum(axis=0)


def _significant(z: NDArray[np.float64]) -> int:
    """How many leading components stand out: singly, or several weak ones together."""
    number = 1
    while number < len(z):
        rest = z[number:]
        together = np.cumsum(rest) / np.sqrt(np.arange(1, len(rest) + 1))
        best = int(np.argmax(together))
        if together[best] < _SIGNIFICANT:
            break
        number += best + 1
    return number


def _spectra(
    counts: NDArray[np.number],
    mask: NDArray[np.bool_],
    images: NDArray[np.float32],
    relative: NDArray[np.floating],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weighted least squares of every bin on the denoised images; and its standard deviations."""
    weight = mask / relative
    flat = images.reshape(len(images), -1).astype(np.float64)
    normal = (flat * weight.reshape(-1)) @ flat.T
    normal += 1e-9 * np.trace(normal) * np.eye(len(normal))
    inverse = np.linalg.inv(normal)
    moment = np.zeros((len(images), counts.shape[2]))
    total = np.zeros(counts.shape[2])
    for band in bands(counts.shape):
        block = np.where(mask[band][..., None], counts[band], 0).astype(np.float32)
        y = block.reshape(-1, counts.shape[2])
        d = (images[:, band] * weight[band]).reshape(len(images), -1)
        moment += d.astype(np.float32) @ y
        total += y.sum(axis=0, dtype=np.float64)
    # Poisson: variance of the counts is about relative * mean of the bin, which the weights undo.
    mean = total / max(1, int(mask.sum()))
    return (inverse @ moment).T, np.sqrt(np.outer(mean, np.diagonal(inverse)))


def _unseen(
    groups: NDArray[np.float32],
    mask: NDArray[np.bool_],
    images: NDArray[np.float32],
    spectra: NDArray[np.float64],
) -> NDArray[np.float64]:
    """What the residuals of neighbouring pixels share: structure, for their noise is independent.

    Returns
    -------
    ndarray of float64, shape (bin,)
        Mean product of a residual with those around it, at least 0, over the mean square of the
        result, for the group that a bin belongs to.
    """
    bins = len(spectra)
    width = -(-bins // len(groups))
    together = np.add.reduceat(spectra, np.arange(0, bins, width), axis=0).astype(np.float32)
    around = uniform_filter(mask.astype(np.float32), _NEAR, mode="constant") * _NEAR**2 - mask
    pairs = max(float(around[mask].sum()), 1.0)
    share = np.zeros(len(groups))
    for index, (counts, spectrum) in enumerate(zip(groups, together, strict=True)):
        made = np.where(mask, np.tensordot(spectrum, images, 1), 0)
        left = np.where(mask, counts - made, 0)
        near = uniform_filter(left, _NEAR, mode="constant") * _NEAR**2 - left
        power = float(np.square(made).sum()) / max(1, int(mask.sum()))
        share[index] = max(float((left * near)[mask].sum()) / pairs, 0.0) / max(power, 1e-12)
    return np.minimum(share, 1.0).repeat(width)[:bins]


def write_back(
    fit: SubspaceFit,
    values: NDArray[np.floating],
    sigma: NDArray[np.floating],
    mask: NDArray[np.bool_],
) -> float:
    """Expected counts and their standard deviation into (row, col, bin), in bands of rows.

    Returns
    -------
    float
        The total over the measured pixels.
    """
    bins = values.shape[2]
    spectra = fit.spectra.astype(np.float32).T
    square, own = spectra**2, fit.spectra_noise.astype(np.float32).T ** 2
    unseen = fit.unseen.astype(np.float32)
    rank, total = len(spectra), 0.0
    for band in bands(values.shape):
        d = fit.images[:, band].reshape(rank, -1).T
        e = fit.image_noise[:, band].reshape(rank, -1).T
        shape = (-1, values.shape[1], bins)
        made = d @ spectra
        sigma[band] = np.sqrt(e**2 @ square + d**2 @ own + unseen * made**2).reshape(shape)
        values[band] = np.maximum(made, 0).reshape(shape)
        total += float(values[band][mask[band]].sum(dtype=np.float64))
    return total
