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
    scatter
        Variance between the frames, mean over good pixels; nan for one frame.
    """

    n: int
    mean: np.ndarray
    good: np.ndarray
    scatter: float


def frame_set(frames: np.ndarray, good: np.ndarray) -> FrameSet:
    """Summarise frames (frame, row, col) whose good pixels are known."""
    mean = mean_frame(frames)
    mean[~good] = 0
    scatter = float("nan")
    if len(frames) > 1 and good.any():
        scatter = scatter_between(list(frames), good)
    return FrameSet(len(frames), mean, good, scatter)


def good_pixels(frames: np.ndarray, saturation: float | None) -> np.ndarray:
    """Return where every frame is finite, not negative and below saturation, (row, col) bool."""
    good = np.ones(frames.shape[1:], bool)
    if frames.dtype.kind == "f":
        good &= np.isfinite(frames).all(axis=0)
    if frames.dtype.kind != "u":
        good &= (frames >= 0).all(axis=0)
    if saturation is not None:
        good &= frames.max(axis=0) < saturation
    return good


def mean_frame(frames: np.ndarray) -> np.ndarray:
    """Return the mean over frames, (row, col) float32."""
    small = frames.dtype.kind == "u" and frames.dtype.itemsize <= 2 and len(frames) <= _EXACT_FRAMES
    total = frames.sum(axis=0, dtype=np.float32 if small else np.float64)
    return (total / total.dtype.type(len(frames))).astype(np.float32)


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
