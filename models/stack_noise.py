"""The noise of an energy stack: given or measured, and whether it is white."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from inscan.models.gram import GramAccumulator
from inscan.models.noise import noise_sigma

__all__ = ["StackNoise", "known_noise", "measured_noise", "whiteness"]

_SIGNAL = 8  # components taken as signal when noise per energy is measured
_FRAMES_CHECKED = 12
_SIDE_CHECKED = 512
_SIDE = 256  # pixels across that neighbouring differences are taken over


@dataclass(frozen=True)
class StackNoise:
    """Noise as a product of a spectrum and a map.

    Attributes
    ----------
    energy : ndarray of float64, shape (energy,)
        Standard deviation per energy, in the stack's units.
    pixel : ndarray of float64, shape (row, col) or (1, 1)
        Relative to that; root mean square 1.
    source : str
        "given" or "measured".
    """

    energy: NDArray[np.float64]
    pixel: NDArray[np.float64]
    source: str


def known_noise(variance: ArrayLike, shape: tuple[int, ...], used: NDArray[np.intp]) -> StackNoise:
    """Noise from a given variance, split into energies and pixels (best rank-one product).

    Raises
    ------
    ValueError
        If the variance does not broadcast to the stack or is nowhere positive.
    """
    v = np.asarray(variance)
    if v.ndim == 1 and v.shape == shape[:1]:
        v = v[:, None, None]
    try:
        v = np.broadcast_to(v, shape)
    except ValueError:
        raise ValueError(f"variance has shape {np.shape(variance)}, the stack {shape}") from None
    energy = np.empty(len(used))
    pixel = np.zeros(shape[1:])
    count = np.zeros(shape[1:])
    for row, index in enumerate(used):
        frame = np.asarray(v[index], dtype=np.float64)
        good = np.isfinite(frame) & (frame > 0)
        if not good.any():
            raise ValueError(f"variance is nowhere above 0 at energy index {index}")
        energy[row] = frame[good].mean()
        pixel[good] += frame[good] / energy[row]
        count += good
    pixel = np.where(count > 0, pixel / np.maximum(count, 1), 1.0)
    return StackNoise(np.sqrt(energy), np.sqrt(pixel / pixel.mean()), "given")


def measured_noise(data: NDArray[np.floating], gram: GramAccumulator, recipe: str) -> StackNoise:
    """Noise per energy from what the leading components leave, and its level overall.

    With few frames, or for the published recipe, which takes noise as equal everywhere, there is
    one number for all energies.
    """
    energies, rows, cols = data.shape
    flat = np.ones((1, 1))
    if recipe == "paper" and energies > 2 * _SIGNAL:
        return StackNoise(np.ones(energies), flat, "measured")
    if min(rows, cols) < 2:
        line = np.diff(np.asarray(data, dtype=np.float64).reshape(energies, -1), 2, axis=1)
        level = float(np.median(np.abs(line)) / 0.6745 / np.sqrt(6)) if line.size else 0.0
        energy = np.full(energies, level)
    else:
        middle = tuple(slice(max(0, n // 2 - _SIDE // 2), n // 2 + _SIDE) for n in (rows, cols))
        part = data[:, middle[0], middle[1]][:, :_SIDE, :_SIDE]
        energy = np.array([float(noise_sigma(frame)) for frame in part])
    typical = float(np.median(energy))
    if typical <= 0:
        return StackNoise(np.ones(energies), flat * 0, "measured")
    if energies <= 2 * _SIGNAL:
        return StackNoise(np.full(energies, typical), flat, "measured")
    # Differences of neighbouring pixels see fine structure too. What the leading components of
    # the smoothed frames leave over is noise alone; their choice was hardly swayed by it.
    energy = np.maximum(energy, 0.1 * typical)
    plain = gram.plain() / np.outer(energy, energy)
    levels = gram.smoothed()
    leading = levels[len(levels) // 2].scaled(1 / energy).whole() if levels else plain
    _, vectors = np.linalg.eigh((leading + leading.T) / 2)
    signal = vectors[:, ::-1][:, :_SIGNAL]
    rest = np.eye(energies) - signal @ signal.T
    left = np.einsum("ij,jk,ik->i", rest, plain, rest) / (rows * cols)
    share = np.einsum("ij,ij->i", rest, rest)
    refined = energy * np.sqrt(np.maximum(left, 0) / np.maximum(share, 0.1))
    trusted = (share > 0.3) & (refined > 0)
    return StackNoise(np.where(trusted, refined, energy), flat, "measured")


def whiteness(
    data: NDArray[np.floating],
    weights: NDArray[np.float64],
    vectors: NDArray[np.float64],
    images: NDArray[np.float32],
    level: NDArray[np.float32],
) -> dict[str, float]:
    """Correlation of neighbours in what was taken away; about 0 for white noise.

    Returns
    -------
    dict
        "row", "col": lag-1 correlation along rows and columns; "frame": of successive frames;
        "error": their standard deviation for white noise; "chi2": mean square of the residual
        over the noise expected.
    """
    rows, cols = (slice(max(0, (n - _SIDE_CHECKED) // 2), None) for n in data.shape[1:])
    rows = slice(rows.start, rows.start + _SIDE_CHECKED)
    cols = slice(cols.start, cols.start + _SIDE_CHECKED)
    first = np.unique(np.linspace(0, max(0, len(data) - 2), _FRAMES_CHECKED).astype(int))
    sums = dict.fromkeys(("row", "col", "frame"), 0.0)
    total, count = 0.0, 0
    spread = np.maximum(level[rows, cols], 1e-30)
    part = images[:, rows, cols]

    def residual(index: int) -> NDArray[np.float64]:
        frame = np.asarray(data[index, rows, cols], dtype=np.float64) * weights[index]
        fitted = np.tensordot(vectors[index], part, axes=1)
        r = (frame - fitted) / spread
        return r - r.mean()

    for index in first:
        r = residual(int(index))
        n = r.size
        power = float((r**2).sum())
        total, count = total + power, count + n
        if power == 0:
            continue
        if r.shape[0] > 1:
            sums["row"] += float((r[1:] * r[:-1]).sum()) / power * n / r[1:].size
        if r.shape[1] > 1:
            sums["col"] += float((r[:, 1:] * r[:, :-1]).sum()) / power * n / r[:, 1:].size
        if index + 1 < len(data):
            other = residual(int(index) + 1)
            scale = np.sqrt(power * float((other**2).sum()))
            sums["frame"] += float((r * other).sum()) / scale if scale > 0 else 0.0
    report = {key: value / len(first) for key, value in sums.items()}
    report["error"] = 1 / np.sqrt(max(count, 1))
    report["chi2"] = total / max(count, 1)
    return report
