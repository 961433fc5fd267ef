"""Beam and optics that drift between flat and frame, taken out of an energy stack in transmission.

What drifts multiplies every frame by a field: a change of flux, a slope, and the ways in which the
flats themselves differ. These fields have low rank, as the sample has, and would be kept as if they
were sample. Here they are learned from the flats, how much of each is in a frame is read where there
is no sample, and the frame is divided by it. What is not significant is left alone.

References
----------
Flats as a mean and a few components: Van Nieuwenhove et al., Optics Express 23, 27975 (2015). There
the amounts are those that make the image smooth; here they come from empty pixels with an error of
their own, which the result's sigma inherits.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import binary_erosion, gaussian_filter

from inscan.models.gram import GramAccumulator
from inscan.models.infer import Denoiser
from inscan.models.lowrank import split_basis
from inscan.models.stack_resample import scratch

__all__ = ["Drift", "divided", "empty_pixels", "find_drift"]

_NEAR_ONE = 0.05  # empty pixels transmit all of the light, to a flat's drift
_LEAST_SHARE = 0.05
_LEAST_PIXELS = 200
_SOFT = 2.0  # pixels
_EDGE = 2  # pixels kept clear of the sample
_MOST_FLATS = 4  # components of the flats
_SIGNIFICANT = 4.0


@dataclass(frozen=True)
class Drift:
    """Multiplicative fields and how much of each every frame has.

    Attributes
    ----------
    fields : ndarray of float32, shape (field, row, col)
        The first is 1 everywhere; then slopes and curvature; then those of the flats.
    amount : ndarray of float64, shape (energy, field)
        A frame is (1 + amount @ fields) times what it should be. 0 where not significant.
    covariance : ndarray of float64, shape (field, field)
        Of the amounts' errors, the same for all frames.
    empty : float
        Share of the field without sample.
    flats : int
        Components that the flats gave.
    """

    fields: NDArray[np.float32]
    amount: NDArray[np.float64]
    covariance: NDArray[np.floating]
    empty: float
    flats: int

    @property
    def found(self) -> bool:
        """Whether anything drifted."""
        return bool(self.amount.any())

    def rms(self) -> float:
        """Root mean square of the relative change that was divided out."""
        power = np.einsum("krc,lrc->kl", self.fields, self.fields) / self.fields[0].size
        return float(np.sqrt(np.mean(np.einsum("ek,kl,el->e", self.amount, power, self.amount))))

    def relative_variance(self) -> NDArray[np.float32]:
        """Variance of a frame's relative error that is left, shape (row, col)."""
        return np.einsum("krc,kl,lrc->rc", self.fields, self.covariance, self.fields).astype(
            np.float32
        )


def find_drift(
    data: NDArray[np.floating],
    empty: NDArray[np.bool_],
    *,
    flats: ArrayLike | None = None,
    denoiser: Denoiser | None = None,
) -> Drift | None:
    """Read from the empty pixels what drifted.

    Parameters
    ----------
    data : ndarray of float, shape (energy, row, col)
        Transmission, finite.
    empty : ndarray of bool, shape (row, col)
        Pixels without sample, see `empty_pixels`.
    flats : array of float, shape (flat, row, col), optional
        Open beam, dark subtracted, any number of them.
    denoiser : Denoiser, optional
        For the components of the flats, which are noisy.

    Returns
    -------
    Drift or None
        None where too little of the field is empty.

    Raises
    ------
    ValueError
        If the flats are not finite frames of the stack's size.
    """
    if empty.sum() < max(_LEAST_PIXELS, _LEAST_SHARE * empty.size):
        return None
    shapes, count = _fields(empty.shape, flats, denoiser)
    here = shapes[:, empty].astype(np.float64)
    normal = here @ here.T
    inverse = np.linalg.pinv(normal, hermitian=True)
    raw = np.empty((len(data), len(shapes)))
    left = np.empty(len(data))
    for index, frame in enumerate(data):
        z = np.asarray(frame, dtype=np.float64)[empty] - 1
        raw[index] = inverse @ (here @ z)
        left[index] = np.mean((z - raw[index] @ here) ** 2)
    # Noise is what the fields leave.
    level = max(float(np.median(left)), 1e-30)
    error = level * inverse
    # How much each field varies beyond its error; fields that do not are left out, one by one.
    keep = np.ones(len(shapes), dtype=bool)
    prior = np.zeros(len(shapes))
    for _ in range(len(shapes)):
        at = np.flatnonzero(keep)
        if at.size == 0:
            break
        part = np.linalg.pinv(normal[np.ix_(at, at)], hermitian=True)
        fitted = _refit(raw, normal, at, part)
        own = level * part.diagonal()
        ratio = np.mean(fitted**2, axis=0) / np.maximum(own, 1e-300)
        sure = (ratio - 1) / np.sqrt(2.0 / len(data))
        worst = int(np.argmin(sure))
        prior[:] = 0
        prior[at] = np.maximum(np.mean(fitted**2, axis=0) - own, 0)
        if sure[worst] >= _SIGNIFICANT:
            break
        keep[at[worst]] = False
        prior[at[worst]] = 0
    at = np.flatnonzero(keep)
    amount = np.zeros_like(raw)
    covariance = np.zeros_like(error)
    if at.size:
        # Normal prior and likelihood: an amount is drawn to 0 as far as it is uncertain.
        within = normal[np.ix_(at, at)] / level
        posterior = np.linalg.inv(within + np.diag(1 / np.maximum(prior[at], 1e-300)))
        moment = raw @ normal[:, at] / level
        amount[:, at] = moment @ posterior
        covariance[np.ix_(at, at)] = posterior
    return Drift(shapes, amount, covariance, float(empty.mean()), count)


def divided(data: NDArray[np.floating], drift: Drift) -> NDArray[np.float32]:
    """The stack without its drift, float32 (energy, row, col)."""
    out = scratch(data.shape)
    for index, frame in enumerate(data):
        field = np.tensordot(drift.amount[index].astype(np.float32), drift.fields, axes=1)
        out[index] = np.asarray(frame, dtype=np.float32) / np.maximum(1 + field, 0.1)
    return out


def empty_pixels(data: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Pixels that transmit all of the light at every energy, a margin off the sample.

    Parameters
    ----------
    data : ndarray of float, shape (energy, row, col)
        Transmission; anything else has no pixels near 1 and gives none.

    Returns
    -------
    ndarray of bool, shape (row, col)
    """
    half = max(1, len(data) // 2)
    first = np.zeros(data.shape[1:])
    second = np.zeros(data.shape[1:])
    for index, frame in enumerate(data):
        (first if index < half else second)[...] += np.asarray(frame, dtype=np.float64)
    first, second = first / half, second / max(1, len(data) - half)
    mean = gaussian_filter((first + second) / 2, _SOFT, mode="nearest")
    change = gaussian_filter(second - first, _SOFT, mode="nearest")
    near = np.abs(mean - 1) < _NEAR_ONE
    if near.mean() < _LEAST_SHARE:
        return np.zeros(mean.shape, dtype=np.bool_)
    # The open beam is the brightest broad level; the sample's rims lie below it.
    middle = float(np.median(mean[near & (mean >= np.quantile(mean[near], 0.3))]))
    spread = 1.4826 * float(np.median(np.abs(mean[near] - middle)))
    turned = 1.4826 * float(np.median(np.abs(change[near] - np.median(change[near]))))
    empty: NDArray[np.bool_] = np.abs(mean - middle) < max(3 * min(spread, 0.01), 0.004)
    empty &= np.abs(change - np.median(change[near])) < max(4 * turned, 0.004)
    return np.asarray(binary_erosion(empty, iterations=_EDGE, border_value=1), dtype=bool)


def _refit(
    raw: NDArray[np.float64],
    normal: NDArray[np.float64],
    at: NDArray[np.intp],
    inverse: NDArray[np.floating],
) -> NDArray[np.float64]:
    """Amounts of some of the fields, fitted without the others."""
    return raw @ normal[:, at] @ inverse


def _fields(
    shape: tuple[int, ...], flats: ArrayLike | None, denoiser: Denoiser | None
) -> tuple[NDArray[np.float32], int]:
    rows, cols = shape
    y, x = np.linspace(-1, 1, rows)[:, None], np.linspace(-1, 1, cols)[None, :]
    plain = [np.ones((rows, cols)), y + 0 * x, x + 0 * y, y**2 + 0 * x, x * y, x**2 + 0 * y]
    found: list[NDArray[np.floating]] = []
    if flats is not None:
        found = _of_flats(np.asarray(flats), (rows, cols), denoiser)
    return np.stack([*plain, *found]).astype(np.float32), len(found)


def _of_flats(
    flats: NDArray[np.floating], shape: tuple[int, int], denoiser: Denoiser | None
) -> list[NDArray[np.floating]]:
    """In which ways the flats differ from their mean, relative to it, as far as noise lets see."""
    if flats.ndim != 3 or flats.shape[1:] != shape or not np.isfinite(flats).all():
        raise ValueError(
            f"flats must be finite and have shape (flat, {shape[0]}, {shape[1]}), got {flats.shape}"
        )
    if len(flats) < 3 or min(shape) < 8:
        return []
    flux = np.maximum(flats.mean(axis=(1, 2), dtype=np.float64), 1e-12)[:, None, None]
    level = (flats / flux).mean(axis=0)
    lit = level > 0.05
    relative = np.where(lit, flats / flux / np.where(lit, level, 1) - 1, 0).astype(np.float32)
    gram = GramAccumulator(relative)
    gram.advance(len(relative))
    basis = split_basis(gram.smoothed(), min(_MOST_FLATS, len(flats) - 1))
    vectors = basis.vectors[:, basis.real]
    images = np.tensordot(vectors.T.astype(np.float32), relative, axes=1)
    rest = relative.astype(np.float64).reshape(len(flats), -1)
    noise = np.sqrt(
        max(float((rest**2).sum() - (images.astype(np.float64) ** 2).sum()), 0.0)
        / (max(1, len(flats) - 1 - len(images)) * rest.shape[1])
    )
    if len(images) and noise > 0 and denoiser is not None:
        images = denoiser.denoise_gaussian(images, np.full(len(images), noise, np.float32), tta=1)
    return [image / max(float(np.sqrt(np.mean(image**2))), 1e-30) for image in images]
