"""Transmission and its variance from a frame, a dark and a flat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Camera", "Flat", "transmission"]

# A flat that is less than this many standard deviations above the dark does not light the pixel.
_LIT_SIGMAS = 3.0
# Pixels worked on at a time: all that belongs to them stays in the cache.
_STRIP = 1 << 14


@dataclass(frozen=True)
class Camera:
    """Noise of a camera.

    Attributes
    ----------
    dark
        (row, col) float32, mean dark frame, ADU.
    dark_variance
        Variance of that mean, ADU^2.
    adu_per_photon
        ADU per detected photon.
    read_variance
        Variance of one dark frame, ADU^2.
    """

    dark: np.ndarray
    dark_variance: float
    adu_per_photon: float
    read_variance: float

    def lit(self, flat: np.ndarray, n: float) -> np.ndarray:
        """Return where a mean flat of n frames is surely above the dark, (row, col) bool."""
        above = flat - self.dark
        variance = (self.adu_per_photon * np.maximum(above, 0) + self.read_variance) / n
        variance += self.dark_variance
        return (above > 0) & (above**2 > _LIT_SIGMAS**2 * variance)


@dataclass(frozen=True)
class Flat:
    """Mean flat of ``n`` frames, (row, col) float32, and where it can be used, (row, col) bool.

    ``n`` is the number of frames of the images' exposure that would say as much; it need not be whole.
    """

    mean: np.ndarray
    good: np.ndarray
    n: float


def transmission(
    frame: np.ndarray,
    n: int,
    camera: Camera,
    flat: Flat,
    good: np.ndarray | None,
    out: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """Compute T = (frame - dark) / (flat - dark) and its variance.

    A mean of n frames of level s above the dark has variance (g s + r^2) / n, with g ADU per photon
    and read noise r. With F = flat - dark, the derivatives 1/F, -T/F and (T - 1)/F to frame, flat
    and dark give var T = (var frame + T^2 var flat + (1 - T)^2 var dark) / F^2.

    Parameters
    ----------
    frame
        (row, col) float32, mean of ``n`` frames, ADU.
    camera, flat
        Dark, flat and noise.
    good
        Where the frame can be used, (row, col) bool; None: everywhere.
    out
        Transmission and variance, (row, col) float32, and measured, (row, col) bool: written to.
        The first two are 0 where not measured.
    """
    gain, read = camera.adu_per_photon, camera.read_variance
    rows = max(1, _STRIP // frame.shape[1])
    lit, inverse, work = (np.empty((rows, frame.shape[1]), np.float32) for _ in range(3))
    for start in range(0, len(frame), rows):
        here = slice(start, start + rows)
        dark = camera.dark[here]
        f, i, w = (array[: len(dark)] for array in (lit, inverse, work))
        t, v, measured = (array[here] for array in out)
        measured[...] = flat.good[here] if good is None else flat.good[here] & good[here]
        masked = None if measured.all() else ~measured
        np.subtract(flat.mean[here], dark, out=f)
        if masked is not None:
            f[masked] = 1
        np.divide(np.float32(1), f, out=i)
        np.subtract(frame[here], dark, out=t)
        t *= i
        # T^2 (var flat + var dark) - 2 T var dark + var dark ...
        np.multiply(f, np.float32(gain / flat.n), out=v)
        v += np.float32(read / flat.n + camera.dark_variance)
        v *= t
        v -= np.float32(2 * camera.dark_variance)
        v *= t
        v += np.float32(camera.dark_variance + read / n)
        # ... + photon noise of the frame, all over F^2.
        np.maximum(t, 0, out=w)
        w *= f
        w *= np.float32(gain / n)
        v += w
        v *= i
        v *= i
        if masked is not None:
            t[masked] = 0
            v[masked] = 0
