"""A map that was measured, as something that can be measured again: the photons of a stored run, thinned.

Poisson counts from which each photon is kept with probability p are Poisson counts of p times the mean (thinning;
Kingman, Poisson Processes, sec. 5.1), and photons that one exposure did not take are independent of those it took. So
every stored pixel is a stock of photons and of exposure: an exposure takes its share out of it, and until the stock is
used up new exposures are honest and independent measurements. Beyond that nothing honest is left, and what is handed
out is counted as reused or extrapolated.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

__all__ = ["StoredExposure", "StoredField"]

_EDGE = 1e-9


@dataclass(frozen=True, eq=False)
class StoredExposure:
    """What the detector of a stored field reports for one exposure.

    Attributes
    ----------
    counts
        (channel, element) int64.
    live_time
        (channel,) float64, s. 0 where the position is outside what was measured: no exposure, no data.
    intensity
        Beam relative to the reference of the stored run.
    """

    counts: np.ndarray
    live_time: np.ndarray
    intensity: float


@dataclass
class StoredField:
    """A measured map to expose again.

    Parameters
    ----------
    counts
        (channel, element, row, col) raw counts.
    live_time
        (channel, row, col) s; 0 where a channel has none.
    intensity
        (row, col) beam relative to the reference of the run.
    measured
        (row, col).
    dwell
        Dwell time per pixel of the stored run, s.
    slow, fast
        (row,) and (col,): centres of rows and columns in motor units, evenly spaced.
    seed
        Same seed and same exposures, same counts.

    Attributes
    ----------
    exposures, masked, reused, extrapolated
        Exposures so far; outside the measured field; from photons that an earlier one took already; longer than the
        stored run has time for. Those of the last two carry noise that belongs to the stored run.

    Raises
    ------
    ValueError
        Shapes that do not belong together, or no dwell time.
    """

    counts: np.ndarray
    live_time: np.ndarray
    intensity: np.ndarray
    measured: np.ndarray
    dwell: float
    slow: np.ndarray
    fast: np.ndarray
    seed: int = 0
    exposures: int = field(default=0, init=False)
    masked: int = field(default=0, init=False)
    reused: int = field(default=0, init=False)
    extrapolated: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        shape = (len(self.slow), len(self.fast))
        found = (self.counts.shape[2:], self.live_time.shape[1:], self.intensity.shape)
        if any(one != shape for one in (*found, self.measured.shape)):
            raise ValueError(f"a field of {shape} pixels, but arrays of {found}")
        if not self.dwell > 0:
            raise ValueError(f"dwell time {self.dwell} s: expected above 0")
        if self.counts.shape[0] != self.live_time.shape[0]:
            raise ValueError("counts and live times have different numbers of channels")
        self._rng = np.random.default_rng([self.seed, 21])
        self._whole = np.rint(np.nan_to_num(self.counts)).clip(0).astype(np.int64)
        self._stock = self._whole.copy()
        # Seconds of exposure that are left in each pixel.
        self._left = np.where(self.measured, self.dwell, 0.0)

    def expose(self, slow: float, fast: float, dwell: float) -> StoredExposure:
        """Expose one position.

        Between the centres of stored pixels the four around it contribute, each with its bilinear weight: the beam of
        the stored run was as wide as it was, and nothing finer is made up.

        Parameters
        ----------
        slow, fast
            Position in motor units.
        dwell
            Time, s.
        """
        self.exposures += 1
        around = self._around(slow, fast)
        n_channel, n_element = self._whole.shape[:2]
        if not around:
            self.masked += 1
            nothing = np.zeros((n_channel, n_element), np.int64)
            return StoredExposure(nothing, np.zeros(n_channel), 1.0)
        counts = np.zeros((n_channel, n_element), np.int64)
        live, intensity = np.zeros(n_channel), 0.0
        reused = extrapolated = False
        for row, col, weight in around:
            seconds = weight * dwell
            taken, how = self._take(row, col, seconds)
            counts += taken
            live += self.live_time[:, row, col] * (seconds / self.dwell)
            intensity += weight * self.intensity[row, col]
            reused, extrapolated = reused or how == "reused", extrapolated or how == "extrapolated"
        self.reused += reused
        self.extrapolated += extrapolated
        return StoredExposure(counts, live, float(intensity))

    def _take(self, row: int, col: int, seconds: float) -> tuple[np.ndarray, str]:
        """Photons of so many seconds out of a pixel, and where they came from."""
        left = self._left[row, col]
        if seconds <= left * (1 + _EDGE):
            stock = self._stock[..., row, col]
            taken = self._rng.binomial(stock, min(seconds / left, 1.0))
            self._stock[..., row, col] = stock - taken
            self._left[row, col] = max(left - seconds, 0.0)
            return taken, "honest"
        whole = self._whole[..., row, col]
        if seconds <= self.dwell * (1 + _EDGE):
            return self._rng.binomial(whole, min(seconds / self.dwell, 1.0)), "reused"
        return self._rng.poisson(whole * (seconds / self.dwell)), "extrapolated"

    def _around(self, slow: float, fast: float) -> list[tuple[int, int, float]]:
        """(row, col, weight) of the pixels that a position lies between; none when any of them was not measured."""
        rows, cols = _between(self.slow, slow), _between(self.fast, fast)
        found = [(r, c, a * b) for r, a in rows for c, b in cols if a * b > _EDGE]
        good = all(self.measured[r, c] and self.live_time[:, r, c].any() for r, c, _ in found)
        return found if good else []


def _between(centres: np.ndarray, position: float) -> list[tuple[int, float]]:
    """Index and weight of the one or two centres beside a position; none outside the outer edges of the pixels."""
    if len(centres) == 1:
        return [(0, 1.0)]
    step = (centres[-1] - centres[0]) / (len(centres) - 1)
    at = float((position - centres[0]) / step)
    if not -0.5 - 1e-6 <= at <= len(centres) - 0.5 + 1e-6:
        return []
    # The outer half of an edge pixel is that pixel's own.
    at = min(max(at, 0.0), len(centres) - 1.0)
    first = min(int(at), len(centres) - 2)
    share = at - first
    return [(first, 1 - share), (first + 1, share)]
