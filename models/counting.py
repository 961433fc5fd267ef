"""Denoise maps of counts: stabilise, run the network, undo; each element alone and all together.

All maps here are whole rectangles without gaps; `inscan.models.n2n` cuts and fills them.

Two ways lead through the network. *Alone*: each element's map, exactly as the network was trained
on low counts. *Together*: the stabilised maps are turned onto their principal axes first, where
elements that share structure also share its counts, and turned back after; white noise stays white
under rotation. Each way can be gone *again*: the network sees the mean of the data and its first
answer, whose noise is about half, and what it adds to the first answer is counted double
(strengthen, operate, subtract: Romano and Elad, *SIAM J. Imaging Sci.* 8 (2015) 1187). The answers
are combined for each element by least squares on counts held out by thinning.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from inscan.models.infer import Denoiser
from inscan.models.mixture import best_mixture
from inscan.models.noise import (
    anscombe,
    anscombe_mean,
    anscombe_slope,
    anscombe_variance,
    inverse_anscombe,
    thin,
)
from inscan.models.unet import INPUTS

__all__ = [
    "ANSWERS",
    "CountPrediction",
    "HeldOut",
    "Planes",
    "alone",
    "choose_weights",
    "denoise_counts",
    "only",
    "principal_axes",
    "together",
]

_BLUR = 1.5  # pixels; noise in correlations falls 28-fold, structure of the maps hardly
_HELD = 0.5  # tells the run's own errors four times as well as a fifth would
_WINDOW = 128  # pixels; enough to choose by, and a quarter of the work on a map of 256 x 256
_AGAIN = (0.0, 1.15)
"""Noise that the second pass is told, over half of the data's; 0 is the first pass by itself."""
ANSWERS = tuple((way, again) for again in _AGAIN for way in ("alone", "together"))
"""What is combined: the way, and how it was gone again."""


@dataclass(frozen=True)
class CountPrediction:
    """What the network says of a set of maps.

    Attributes
    ----------
    counts : ndarray of float64, shape (element, row, col)
        Mean counts at the typical exposure.
    error : ndarray of float64, shape (element, row, col)
        Standard deviation of the error of `counts` as the network predicts it.
    spread : ndarray of float32, shape (element, row, col)
        The same on the Anscombe scale, where raw data have 1.
    typical : ndarray of float32, shape (element, 1, 1)
        Mean exposure of each element.
    """

    counts: NDArray[np.float64]
    error: NDArray[np.float64]
    spread: NDArray[np.float32]
    typical: NDArray[np.float32]

    @property
    def rate(self) -> NDArray[np.float64]:
        """Mean counts at exposure 1, shape (element, row, col)."""
        return self.counts / self.typical

    @property
    def sigma(self) -> NDArray[np.float64]:
        """Standard deviation of the error of `rate`, same units."""
        return self.error / self.typical


@dataclass(frozen=True)
class Planes:
    """Network input for maps of counts, and the way back.

    Attributes
    ----------
    planes : ndarray of float32, shape (plane, 2, row, col)
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
        stabilised, spread = estimate * root, np.sqrt(variance) * root
        return CountPrediction(
            inverse_anscombe(stabilised),
            anscombe_slope(stabilised) * spread,
            spread.astype(np.float32),
            self.typical,
        )


@dataclass(frozen=True)
class HeldOut:
    """A trial on part of the counts, scored on the rest.

    Attributes
    ----------
    weights : ndarray of float, shape (element, answer)
        Best mixture of `ANSWERS` for each element; 0 or more, adding up to 1.
    window : tuple of two slices
        Rows and columns the trial was made on: all of a small map, the richest part of a large one.
    counts : ndarray of float32, shape (element, row, col)
        The counts held out, in the window.
    mean : ndarray of float64, shape (element, row, col)
        Their mean as predicted from the rest, with the weights above.
    kept : ndarray of float32, shape (element, row, col)
        The counts that were not held out.
    prediction : CountPrediction
        What was made of them.
    """

    weights: NDArray[np.float64]
    window: tuple[slice, slice]
    counts: NDArray[np.float32]
    mean: NDArray[np.float64]
    kept: NDArray[np.float32]
    prediction: CountPrediction


def only(way: str, elements: int) -> NDArray[np.float64]:
    """Weights of the first pass of one way, "alone" or "together", for every element."""
    weights = np.zeros((elements, len(ANSWERS)))
    weights[:, ANSWERS.index((way, 0.0))] = 1.0
    return weights


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
    weights : ndarray of float, shape (element, answer)
        Mixture of `ANSWERS` for each element; see `choose_weights` and `only`.
    tta : bool or int
        As `Denoiser.run` takes it.

    Returns
    -------
    CountPrediction
    """
    wanted = [answer for k, answer in enumerate(ANSWERS) if np.any(weights[:, k] > 0)]
    found = _answers(denoiser, counts, exposure, wanted, tta)
    shares = np.stack([weights[:, ANSWERS.index(answer)] for answer in wanted])
    return _mixed([found[answer] for answer in wanted], shares)


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
        Draws which counts are held out (half of them).

    Returns
    -------
    HeldOut
    """
    window = _richest(counts)
    kept, held = thin(counts[:, *window], 1 - _HELD, rng)
    seen = exposure[:, *window] * (1 - _HELD)
    # A single element has nothing to be turned with.
    options = [answer for answer in ANSWERS if answer[0] == "alone" or len(counts) > 1]
    found = _answers(denoiser, kept, seen, options, 1)
    to_held = seen * _HELD / (1 - _HELD)
    weights = np.zeros((len(counts), len(ANSWERS)))
    places = [ANSWERS.index(answer) for answer in options]
    for element in range(len(counts)):
        means = np.stack([found[a].rate[element] * to_held[element] for a in options])
        weights[element, places] = best_mixture(means, held[element])
    prediction = _mixed([found[a] for a in options], weights[:, places].T)
    return HeldOut(weights, window, held, prediction.rate * to_held, kept, prediction)


def _answers(
    denoiser: Denoiser,
    counts: NDArray[np.floating],
    exposure: NDArray[np.floating],
    wanted: list[tuple[str, float]],
    tta: bool | int,
) -> dict[tuple[str, float], CountPrediction]:
    found = {}
    for way, make in (("alone", alone), ("together", together)):
        times = [again for w, again in wanted if w == way]
        if not times:
            continue
        prepared = make(counts, exposure)
        first = denoiser.run(prepared.planes, tta)
        for again in times:
            out = first
            if again > 0:
                planes = prepared.planes.copy()
                planes[:, 0] = (planes[:, 0] + first[:, 0]) / 2
                planes[:, 1] *= again / 2
                out = first.copy()
                out[:, 0] = 2 * denoiser.run(planes, tta)[:, 0] - first[:, 0]
            found[way, again] = prepared.finish(out)
    return found


def _mixed(answers: list[CountPrediction], shares: NDArray[np.floating]) -> CountPrediction:
    """Weighted mean of answers; shares have shape (answer, element).

    All answers come from the same counts: their errors are far from independent, so that errors
    add up like the answers themselves.
    """
    if len(answers) == 1:
        return answers[0]

    def mean(parts: list[NDArray]) -> NDArray[np.float64]:
        return np.einsum("ae,aerc->erc", shares, np.stack(parts))

    return CountPrediction(
        mean([a.counts for a in answers]),
        mean([a.error for a in answers]),
        mean([a.spread for a in answers]).astype(np.float32),
        answers[0].typical,
    )


def alone(counts: NDArray[np.floating], exposure: NDArray[np.floating]) -> Planes:
    """Network input for each element by itself; arguments as for `denoise_counts`."""
    stabilised, variance, typical = _stabilise(counts, exposure, exact=False)
    scale = _rms(stabilised)
    planes = np.empty((len(counts), len(INPUTS), *counts.shape[1:]), dtype=np.float32)
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
    planes = np.empty((len(counts), len(INPUTS), *counts.shape[1:]), dtype=np.float32)
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
