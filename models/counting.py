"""Denoise maps of counts: stabilise, run the network, undo; each element alone and all together.

All maps here are whole rectangles without gaps; `inscan.models.n2n` cuts and fills them.

Two ways lead through the network. *Alone*: each element's map, exactly as the network was trained
on low counts. *Together*: the stabilised maps are turned onto their principal axes first, where
elements that share structure also share its counts, and turned back after; white noise stays white
under rotation. Which is better for an element is decided on counts held out by thinning.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from inscan.models.infer import Denoiser
from inscan.models.noise import (
    anscombe,
    anscombe_mean,
    anscombe_slope,
    anscombe_variance,
    inverse_anscombe,
    poisson_nll,
    thin,
)

__all__ = [
    "CountPrediction",
    "HeldOut",
    "Planes",
    "alone",
    "choose_weights",
    "denoise_counts",
    "principal_axes",
    "together",
]

_BLUR = 1.5  # pixels; noise in correlations falls 28-fold, structure of the maps hardly
_HELD = 0.2
_WINDOW = 144  # pixels; enough to choose by, and a third of the work on a map of 256 x 256
_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class CountPrediction:
    """What the network says of a set of maps.

    Attributes
    ----------
    stabilised : ndarray of float32, shape (element, row, col)
        Estimate on the Anscombe scale of the counts at the typical exposure.
    spread : ndarray of float32, shape (element, row, col)
        Predicted standard deviation of its error, same scale, not yet calibrated.
    typical : ndarray of float32, shape (element, 1, 1)
        Mean exposure of each element.
    """

    stabilised: NDArray[np.float32]
    spread: NDArray[np.float32]
    typical: NDArray[np.float32]

    @property
    def counts(self) -> NDArray[np.float64]:
        """Mean counts at the typical exposure, shape (element, row, col)."""
        return inverse_anscombe(self.stabilised)

    @property
    def rate(self) -> NDArray[np.float64]:
        """Mean counts at exposure 1, shape (element, row, col)."""
        return self.counts / self.typical

    @property
    def sigma(self) -> NDArray[np.float64]:
        """Standard deviation of the error of `rate`, same units."""
        return anscombe_slope(self.stabilised) * self.spread / self.typical


@dataclass(frozen=True)
class Planes:
    """Network input for maps of counts, and the way back.

    Attributes
    ----------
    planes : ndarray of float32, shape (plane, 4, row, col)
    scale, offset : ndarray of float32, shape (plane, 1, 1)
        Output × scale + offset is the plane's estimate.
    basis : ndarray of float32, shape (element, plane)
        Each element as a combination of planes.
    typical : ndarray of float32, shape (element, 1, 1)
        Mean exposure of each element.
    """

    planes: NDArray[np.float32]
    scale: NDArray[np.float32]
    offset: NDArray[np.float32]
    basis: NDArray[np.float32]
    typical: NDArray[np.float32]

    def finish(self, out: NDArray[np.float32]) -> CountPrediction:
        """From the network's output (plane, 2, row, col) to the elements."""
        estimate = np.tensordot(self.basis, out[:, 0] * self.scale + self.offset, 1)
        variance = np.tensordot(self.basis**2, (out[:, 1] * self.scale) ** 2, 1)
        root = np.sqrt(self.typical)
        return CountPrediction(
            (estimate * root).astype(np.float32),
            (np.sqrt(variance) * root).astype(np.float32),
            self.typical,
        )


@dataclass(frozen=True)
class HeldOut:
    """A trial on part of the counts, scored on the rest.

    Attributes
    ----------
    weights : ndarray of float, shape (element,)
        Share of *together* in the best answer for each element.
    window : tuple of two slices
        Rows and columns the trial was made on: all of a small map, the richest part of a large one.
    counts : ndarray of float32, shape (element, row, col)
        The counts held out, in the window.
    mean : ndarray of float64, shape (element, row, col)
        Their mean as predicted from the rest, with the weights above.
    """

    weights: NDArray[np.float64]
    window: tuple[slice, slice]
    counts: NDArray[np.float32]
    mean: NDArray[np.float64]


def denoise_counts(
    denoiser: Denoiser,
    counts: NDArray[np.floating],
    exposure: NDArray[np.floating],
    weights: NDArray[np.floating],
    tta: bool | int = 1,
) -> CountPrediction:
    """Denoise every element of one place.

    Parameters
    ----------
    denoiser : Denoiser
    counts : ndarray of float, shape (element, row, col)
        Poisson counts.
    exposure : ndarray of float, shape (element, row, col)
        Above 0; counts over exposure is the rate whose structure is sought.
    weights : ndarray of float, shape (element,)
        Share of the answer found together with the other elements, 0 to 1; see `choose_weights`.
    tta : bool or int
        As `Denoiser.run` takes it.

    Returns
    -------
    CountPrediction
    """
    share = np.asarray(weights, dtype=np.float32)[:, None, None]
    answers = []
    for needed, make in ((share.min() < 1, alone), (share.max() > 0, together)):
        prepared = make(counts, exposure) if needed else None
        answers.append(prepared.finish(denoiser.run(prepared.planes, tta)) if prepared else None)
    single, joint = answers
    if joint is None or single is None:
        return joint or single  # pyright: ignore[reportReturnType]
    # Both answers come from the same counts: their errors are far from independent.
    return CountPrediction(
        (1 - share) * single.stabilised + share * joint.stabilised,
        (1 - share) * single.spread + share * joint.spread,
        single.typical,
    )


def choose_weights(
    denoiser: Denoiser,
    counts: NDArray[np.floating],
    exposure: NDArray[np.floating],
    rng: np.random.Generator,
) -> HeldOut:
    """Find out on held-out counts what helps each element: the others, or being left alone.

    Parameters
    ----------
    denoiser : Denoiser
    counts, exposure : ndarray of float, shape (element, row, col)
    rng : numpy.random.Generator
        Draws which counts are held out (a fifth of them).

    Returns
    -------
    HeldOut
    """
    window = _richest(counts)
    kept, held = thin(counts[:, *window], 1 - _HELD, rng)
    seen = exposure[:, *window] * (1 - _HELD)
    options = _WEIGHTS if len(counts) > 1 else (0.0,)
    single = denoise_counts(denoiser, kept, seen, np.zeros(len(counts)))
    joint = single
    if len(counts) > 1:
        joint = denoise_counts(denoiser, kept, seen, np.ones(len(counts)))
    means, scores = [], []
    for share in options:
        mixed = (1 - share) * single.stabilised + share * joint.stabilised
        mean = inverse_anscombe(mixed) / single.typical * seen * _HELD / (1 - _HELD)
        means.append(mean)
        scores.append(poisson_nll(held, mean).mean(axis=(1, 2)))
    best = np.argmin(scores, axis=0)
    mean = np.stack([means[k][element] for element, k in enumerate(best)])
    return HeldOut(np.array([options[k] for k in best]), window, held, mean)


def alone(counts: NDArray[np.floating], exposure: NDArray[np.floating]) -> Planes:
    """Network input for each element by itself; arguments as for `denoise_counts`."""
    stabilised, variance, typical = _stabilise(counts, exposure, exact=False)
    scale = _rms(stabilised)
    planes = np.zeros((len(counts), 4, *counts.shape[1:]), dtype=np.float32)
    planes[:, 0] = stabilised / scale
    planes[:, 1] = np.sqrt(variance) / scale
    basis = np.eye(len(counts), dtype=np.float32)
    return Planes(planes, scale, np.zeros_like(scale), basis, typical)


def together(counts: NDArray[np.floating], exposure: NDArray[np.floating]) -> Planes:
    """Network input on the principal axes of the elements; arguments as for `denoise_counts`."""
    stabilised, variance, typical = _stabilise(counts, exposure, exact=True)
    basis = principal_axes(stabilised)
    turned = np.tensordot(basis.T, stabilised, 1)
    offset = turned.mean(axis=(1, 2), keepdims=True)
    turned -= offset
    sigma = np.sqrt(np.tensordot(basis.T**2, variance, 1))
    scale = _rms(turned)
    planes = np.zeros((len(counts), 4, *counts.shape[1:]), dtype=np.float32)
    planes[:, 0] = turned / scale
    planes[:, 1] = sigma / scale
    return Planes(planes, scale, offset, basis, typical)


def _stabilise(
    counts: NDArray[np.floating], exposure: NDArray[np.floating], *, exact: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Stabilised rates (element, row, col), their variance, and the typical exposure.

    Few counts scatter by less than 1 on the stabilised scale. Alone, the network knows that from
    training and is told 1; together, with `exact`, it is told what to expect where.
    """
    root = np.sqrt(exposure).astype(np.float32)
    typical = exposure.mean(axis=(1, 2), keepdims=True).astype(np.float32)
    stabilised = (anscombe(counts) / root).astype(np.float32)
    even = bool(np.ptp(exposure, axis=(1, 2)).max() <= 1e-3 * typical.min())
    if even and not exact:
        return stabilised, (1.0 / root**2).astype(np.float32), typical
    width = (0, 2, 2)
    soft = gaussian_filter(np.asarray(counts, dtype=np.float32), width, mode="nearest")
    soft_rate = soft / gaussian_filter(np.asarray(exposure, np.float32), width, mode="nearest")
    if not even:
        # Low counts are lifted by stabilising, the more the lower: a dim row would seem brighter.
        here = anscombe_mean(soft_rate * exposure) / root
        there = anscombe_mean(soft_rate * typical) / np.sqrt(typical)
        stabilised -= (here - there).astype(np.float32)
    variance = anscombe_variance(soft_rate * exposure) if exact else np.ones_like(soft)
    return stabilised, (variance / root**2).astype(np.float32), typical


def principal_axes(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rotation of the elements onto the principal axes of what they share.

    Parameters
    ----------
    maps : ndarray of float32, shape (element, row, col)
        Noisy maps; they are blurred a little first, so that structure, not noise, sets the axes.

    Returns
    -------
    ndarray of float32, shape (element, plane)
        Orthogonal; columns are axes, least variance first.
    """
    soft = gaussian_filter(maps, (0, _BLUR, _BLUR), mode="nearest").reshape(len(maps), -1)
    soft = soft - soft.mean(axis=1, keepdims=True)
    _, axes = np.linalg.eigh((soft @ soft.T).astype(np.float64))
    return axes.astype(np.float32)


def _richest(counts: NDArray[np.floating]) -> tuple[slice, slice]:
    """The part of a large map, `_WINDOW` on a side, where the elements together show most."""
    sides = counts.shape[1:]
    if max(sides) <= _WINDOW:
        return slice(0, sides[0]), slice(0, sides[1])
    # Each element counts alike, however bright.
    total = (counts / np.maximum(counts.mean(axis=(1, 2), keepdims=True), 1e-9)).sum(axis=0)
    sums = np.pad(total.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    high, wide = (min(side, _WINDOW) for side in sides)
    inside = sums[high:, wide:] - sums[:-high, wide:] - sums[high:, :-wide] + sums[:-high, :-wide]
    row, col = (int(k) for k in np.unravel_index(int(inside.argmax()), inside.shape))
    return slice(row, row + high), slice(col, col + wide)


def _rms(planes: NDArray[np.float32]) -> NDArray[np.float32]:
    scale = np.sqrt(np.mean(np.square(planes), axis=(1, 2), keepdims=True))
    return np.where(scale > 0, scale, 1.0).astype(np.float32)
