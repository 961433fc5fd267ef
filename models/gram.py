"""Gram matrices of an energy stack, built while frames arrive.

The left singular vectors of a stack (energy x pixel) are the eigenvectors of its small
energy x energy Gram matrix, so that after the last frame only a little work is left. Beside the
plain one, Gram matrices of smoothed frames are kept: spectra are the same everywhere, so smoothing
in space costs the spectral basis nothing and takes most of the noise out of it. Each smoothed
matrix comes in halves from different pixels, whose disagreement says how noisy the basis is.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from inscan.models.stack_resample import scratch

__all__ = ["GramAccumulator", "HalfGrams"]

_BLOCK_BYTES = 16 * 2**20
_SMOOTHING = 1.0  # sigma in binned pixels


@dataclass(frozen=True)
class HalfGrams:
    """Gram matrices of two halves of the pixels at one smoothing.

    Attributes
    ----------
    first, second, cross : ndarray of float64, shape (energy, energy)
        Of either half, and between them (symmetric part): the noise of the halves is
        independent, so `cross` holds none of its power on average.
    smoothing : float
        Sigma of the smoothing in pixels; 0 for none.
    """

    first: NDArray[np.float64]
    second: NDArray[np.float64]
    cross: NDArray[np.float64]
    smoothing: float

    def whole(self) -> NDArray[np.float64]:
        """Gram matrix of the mean of the two halves."""
        return (self.first + self.second + 2 * self.cross) / 4

    def scaled(self, weights: NDArray[np.float64]) -> "HalfGrams":
        """The same with each energy multiplied by its weight."""
        w = weights[:, None] * weights[None, :]
        return HalfGrams(self.first * w, self.second * w, self.cross * w, self.smoothing)


class GramAccumulator:
    """Gram matrices of the frames of a stack that are there so far.

    Parameters
    ----------
    stack : ndarray of float, shape (energy, row, col)
        The whole stack, of the size it will have; may be a mapped file that is still being
        written. Only frames named to `advance` are read, each of them once more for every later
        block of frames. They must be final and finite by then: transmission, not raw frames, so
        dark and flat have to be known before the first frame is taken in. When flats come last,
        start with the last flat.

    Notes
    -----
    While a scan runs::

        gram = GramAccumulator(transmission)      # (energy, row, col), mapped, zeros so far
        gram.advance(20)                          # frames 0 to 19 are there
        gram.advance(40)                          # 20 to 39 as well; any number at a time
        ...
        gram.advance(len(transmission))
        subspace.denoise(transmission, variance=variance, gram=gram)

    `denoise` must get the same array, or one of the same values. It builds another matrix where
    this one does not hold what it needs: not all frames taken in, pixels that were not measured, a
    drift that was divided out, frames that were registered. A frame that changes after it was
    taken in (a flat that was measured again) needs a new accumulator.

    Keeps binned halves of the frames: two thirds of the stack's size in float32, beyond 2 GiB in a
    temporary file. A block of frames costs a product of the new with all frames so far: blocks of
    10 to 20 are a good deal cheaper than single frames, and the last one is what the result waits
    for.
    """

    def __init__(self, stack: NDArray[np.floating]) -> None:
        if stack.ndim != 3 or stack.size == 0:
            raise ValueError(f"stack must have shape (energy, row, col), got {stack.shape}")
        self.stack = stack
        self.frames = 0
        energies, rows, cols = stack.shape
        self._plain = np.zeros((energies, energies))
        self._levels: list[tuple[float, NDArray[np.float32]]] = []
        shape = (rows // 2, cols // 2)
        smoothing = 2.0 * float(np.sqrt(_SMOOTHING**2 + (1 - 1 / 4) / 12))
        while min(shape) >= 4 and len(self._levels) < 3:
            self._levels.append((smoothing, scratch((2, energies, *shape))))
            shape, smoothing = (shape[0] // 2, shape[1] // 2), 2 * smoothing
        self._grams = np.zeros((len(self._levels), 3, energies, energies))

    def advance(self, frames: int) -> None:
        """Take in the frames up to, not including, index `frames`."""
        if not self.frames <= frames <= len(self.stack):
            raise ValueError(
                f"frames must lie between {self.frames} (done) and {len(self.stack)}, got {frames}"
            )
        new = slice(self.frames, frames)
        if new.start == new.stop:
            return
        rows_at_once = max(1, _BLOCK_BYTES // (8 * frames * self.stack.shape[2]))
        for r in range(0, self.stack.shape[1], rows_at_once):
            block = self.stack[:frames, r : r + rows_at_once]
            flat = np.asarray(block, dtype=np.float64).reshape(frames, -1)
            self._plain[new, :frames] += flat[new] @ flat.T
        _mirror(self._plain, new)
        for frame in range(new.start, new.stop):
            halves = _halves(np.asarray(self.stack[frame], dtype=np.float32))
            for level, (_, kept) in enumerate(self._levels):
                if level > 0:
                    halves = _binned(halves)
                kept[:, frame] = gaussian_filter(
                    halves, (0, _SMOOTHING, _SMOOTHING), mode="nearest", truncate=3.0
                )
        for (_, kept), grams in zip(self._levels, self._grams, strict=True):
            grams[:, new, :frames] = 0
            at_once = max(1, _BLOCK_BYTES // (16 * frames * kept.shape[3]))
            for r in range(0, kept.shape[2], at_once):
                block = kept[:, :frames, r : r + at_once]
                flat = block.reshape(2, frames, -1).astype(np.float64)
                grams[0, new, :frames] += flat[0, new] @ flat[0].T
                grams[1, new, :frames] += flat[1, new] @ flat[1].T
                both = flat[0, new] @ flat[1].T + flat[1, new] @ flat[0].T
                grams[2, new, :frames] += both / 2
            for gram in grams:
                _mirror(gram, new)
        self.frames = frames

    def plain(self) -> NDArray[np.float64]:
        """Gram matrix of the frames as they are, shape (energy, energy)."""
        return self._plain[: self.frames, : self.frames].copy()

    def smoothed(self) -> list[HalfGrams]:
        """Gram matrices of smoothed frames, the least smoothed first; empty for tiny frames."""
        n = self.frames
        return [
            HalfGrams(first[:n, :n].copy(), second[:n, :n].copy(), cross[:n, :n].copy(), smoothing)
            for (smoothing, _), (first, second, cross) in zip(
                self._levels, self._grams, strict=True
            )
        ]


def _mirror(gram: NDArray[np.float64], new: slice) -> None:
    gram[: new.start, new] = gram[new, : new.start].T


def _halves(frame: NDArray[np.float32]) -> NDArray[np.float32]:
    """2 x 2 bins, from their two diagonals: shape (2, row // 2, col // 2)."""
    rows, cols = frame.shape[0] // 2 * 2, frame.shape[1] // 2 * 2
    f = frame[:rows, :cols]
    return np.stack([(f[::2, ::2] + f[1::2, 1::2]) / 2, (f[1::2, ::2] + f[::2, 1::2]) / 2]).astype(
        np.float32
    )


def _binned(halves: NDArray[np.float32]) -> NDArray[np.float32]:
    rows, cols = halves.shape[1] // 2 * 2, halves.shape[2] // 2 * 2
    h = halves[:, :rows, :cols]
    total = h[:, ::2, ::2] + h[:, 1::2, ::2] + h[:, ::2, 1::2] + h[:, 1::2, 1::2]
    return (total / 4).astype(np.float32)
