"""Frames looked up elsewhere than on their own pixels, with noise that stays nearly white.

References
----------
Windowed sinc: Harris, Proc. IEEE 66, 51 (1978).
"""

import tempfile

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from scipy.special import i0

__all__ = ["moved", "noise_kept", "put_back", "scratch"]

_TAPS = 8  # pixels that the windowed sinc reaches to either side
_KAISER = 6.0
_SCRATCH = 2 * 2**30  # bytes in memory; larger arrays go to a temporary file


def moved(
    image: NDArray[np.floating],
    shift: ArrayLike,
    scale: float = 1.0,
    *,
    variance: bool = False,
    fill: float | None = None,
) -> NDArray[np.float32]:
    """Look at an image elsewhere: the result at p is the image at centre + scale (p - centre) + shift.

    Parameters
    ----------
    image : ndarray of float, shape (row, col)
    shift : (rows, columns), pixels
    scale : float
    variance : bool
        The image holds the variance of white noise: weights are squared. The windowed sinc keeps
        white noise nearly white (linear interpolation would not).
    fill : float, optional
        For what lies outside; the nearest border pixel if not given.

    Returns
    -------
    ndarray of float32, shape (row, col)
    """
    dy, dx = np.asarray(shift, dtype=np.float64)
    across, inside_rows = _interpolation(image.shape[0], float(dy), scale, variance)
    along, inside_cols = _interpolation(image.shape[1], float(dx), scale, variance)
    out = (across @ np.asarray(image, dtype=np.float32)) @ along.T
    out = np.asarray(out, dtype=np.float32)
    if fill is not None:
        out[~inside_rows] = fill
        out[:, ~inside_cols] = fill
    return out


def put_back(
    data: NDArray[np.floating],
    there: NDArray[np.bool_] | None,
    shifts: NDArray[np.float64],
    scales: NDArray[np.float64],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The frames as they would have been without motion, and what of them was measured.

    Parameters
    ----------
    data : ndarray of float, shape (energy, row, col)
        Finite.
    there : ndarray of bool, shape (energy, row, col), optional
    shifts : ndarray of float64, shape (energy, 2)
    scales : ndarray of float64, shape (energy,)
        As for `moved`, of every frame.

    Returns
    -------
    aligned : ndarray of float32, shape (energy, row, col)
        In a temporary file that goes away with it when it is larger than 2 GiB.
    inside : ndarray of bool, shape (energy, row, col)
    """
    aligned = scratch(data.shape)
    inside = np.ones(data.shape, dtype=bool)
    for index, frame in enumerate(data):
        shift, scale = shifts[index], float(scales[index])
        out = moved(frame, shift, scale, fill=np.nan)
        inside[index] = np.isfinite(out)
        if there is not None and not there[index].all():
            # A pixel made from any that was not measured is not measured.
            gaps = moved((~there[index]).astype(np.float32), shift, scale)
            inside[index] &= np.abs(gaps) < 0.02
        aligned[index] = np.where(inside[index], out, 0)
    return aligned, inside


def noise_kept(shifts: NDArray[np.float64]) -> float:
    """Standard deviation of white noise after frames were moved so, of that before.

    What is lost is noise near the highest frequency a pixel grid carries; at lower ones, which
    are all that is left after denoising, nothing is.

    Parameters
    ----------
    shifts : ndarray of float64, shape (energy, 2)
    """
    powers = []
    for shift in shifts.ravel() % 1.0:
        weights, _ = _interpolation(2 * _TAPS + 1, float(shift), 1.0, True)
        powers.append(float(weights[[_TAPS]].sum()))
    pairs = np.array(powers).reshape(-1, 2)
    return float(np.sqrt(np.mean(pairs[:, 0] * pairs[:, 1])))


def scratch(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """An array to work in: in memory, or beyond 2 GiB in a file that goes away with it."""
    if 4 * int(np.prod(shape)) <= _SCRATCH:
        return np.empty(shape, dtype=np.float32)
    with tempfile.TemporaryFile(prefix="inscan-aligned-") as file:
        # The mapping keeps the file, which has no name any more, until it is dropped itself.
        return np.memmap(file, dtype=np.float32, mode="w+", shape=shape)


def _interpolation(
    size: int, shift: float, scale: float, squared: bool
) -> tuple[csr_array, NDArray[np.bool_]]:
    """Weights that look a line up elsewhere, and which of its points lie inside."""
    middle = (size - 1) / 2
    at = middle + scale * (np.arange(size) - middle) + shift
    inside = (at >= -0.5) & (at <= size - 0.5)
    first = np.floor(at + 1e-9).astype(int) - _TAPS + 1
    taps = first[:, None] + np.arange(2 * _TAPS)
    distance = at[:, None] - taps
    window = i0(_KAISER * np.sqrt(np.maximum(1 - (distance / _TAPS) ** 2, 0))) / i0(_KAISER)
    weight = np.sinc(distance) * window
    weight /= weight.sum(axis=1, keepdims=True)
    if squared:
        weight = weight**2
    line = np.repeat(np.arange(size), 2 * _TAPS)
    entries = (weight.ravel().astype(np.float32), (line, np.clip(taps, 0, size - 1).ravel()))
    return csr_array(entries, shape=(size, size)), inside
