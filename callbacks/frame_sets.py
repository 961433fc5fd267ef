"""Repeated camera frames: their mean, which pixels are good, and the scatter between them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = [
    "FrameSet",
    "combine",
    "frame_set",
    "good_pixels",
    "mean_frame",
    "pooled",
    "scatter_between",
]

# From here on a value is none of a camera: its square, and that over the square of a flat, stay within float32.
MOST_ADU = 1e12
# Sums of that many 16-bit frames are exact in float32.
_EXACT_FRAMES = 256


@dataclass(frozen=True)
class FrameSet:
    """Frames of one dark or flat event.

    Attributes
    ----------
    n
        Number of frames.
    mean
        (row, col) float32, 0 where not good.
    good
        (row, col) bool: finite, not negative, not saturated in any frame.
    clean
        Whether all pixels are good.
    scatter
        Variance between the frames, mean over good pixels; nan for one frame.
    """

    n: int
    mean: np.ndarray
    good: np.ndarray
    clean: bool
    scatter: float


def frame_set(frames: np.ndarray, good: np.ndarray | None, mean: np.ndarray) -> FrameSet:
    """Summarise frames.

    Parameters
    ----------
    frames
        (frame, row, col).
    good
        As `good_pixels` returns it.
    mean
        (row, col) float32: written to and kept.
    """
    mean_frame(frames, mean)
    clean = good is None
    if good is None:
        # One True that is seen as a whole frame: there are as many frames as energies.
        good = np.broadcast_to(np.True_, mean.shape)
    else:
        mean[~good] = 0
    scatter = float("nan")
    if len(frames) > 1 and good.any():
        scatter = scatter_between(list(frames), good)
    return FrameSet(len(frames), mean, good, clean, scatter)


def good_pixels(frames: np.ndarray, saturation: float | None) -> np.ndarray | None:
    """Return where every frame is finite, not negative and below saturation.

    Returns
    -------
    ndarray or None
        (row, col) bool; None: everywhere, the usual case, which costs one pass.
    """
    limit = MOST_ADU if saturation is None else min(saturation, MOST_ADU)
    # A comparison with nan is false, also that of an extreme of values with nan among them.
    if frames.max() < limit and (frames.dtype.kind == "u" or frames.min() >= 0):
        return None
    return np.logical_and.reduce((frames >= 0) & (frames < limit), axis=0)


def mean_frame(frames: np.ndarray, out: np.ndarray) -> None:
    """Write the mean over frames to ``out``, (row, col) float32."""
    small = frames.dtype.kind == "u" and frames.dtype.itemsize <= 2 and len(frames) <= _EXACT_FRAMES
    total = out if small else np.zeros(out.shape)
    # Pixels that overflow are not good, and are masked.
    with np.errstate(over="ignore", invalid="ignore"):
        total[...] = frames[0]
        for frame in frames[1:]:
            np.add(total, frame, out=total)
        np.divide(total, len(frames), out=total)
        if not small:
            out[...] = total


def scatter_between(frames: list[np.ndarray], good: np.ndarray) -> float:
    """Return the variance between frames, mean over good pixels.

    The frames are scaled to their mean level: a beam that flickers as a whole is not photon noise.
    """
    levels = np.array([frame[good].mean(dtype=np.float64) for frame in frames])
    scales = np.where(levels > 0, levels.mean() / np.where(levels > 0, levels, 1), 1)
    scaled = np.stack([frame[good] * scale for frame, scale in zip(frames, scales, strict=True)])
    return float(scaled.var(axis=0, ddof=1).mean())


def pooled(scatters: list[tuple[float, int]]) -> float | None:
    """Return the mean of (variance, degrees of freedom), None when nothing is known."""
    known = [(value, freedom) for value, freedom in scatters if freedom > 0 and np.isfinite(value)]
    if not known:
        return None
    return sum(value * freedom for value, freedom in known) / sum(freedom for _, freedom in known)


def combine(sets: list[FrameSet], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the mean over all frames (float32), pixels good in every set, and their number."""
    if len(sets) == 1:
        return sets[0].mean, sets[0].good, sets[0].n
    n = sum(s.n for s in sets)
    total = np.zeros(size)
    for s in sets:
        total += s.mean * np.float64(s.n)
    good = np.logical_and.reduce([s.good for s in sets])
    return (total / n).astype(np.float32), good, n
