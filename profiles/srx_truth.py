"""A fluorescence map that is known in every bin: what synthetic documents are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

__all__ = ["SRXMap"]

_SIGMA_BINS = 6.0


@dataclass(frozen=True)
class SRXMap:
    """What is measured, pixel by pixel.

    Attributes
    ----------
    spectra
        (row, col, channel, bin) uint32, counts; 10 eV per bin.
    i0
        (row, col) float32, counts of the beam monitor.
    slow, fast
        (row, col) float32, positions in um.
    ends
        (first, last) of the slow and of the fast axis as planned, um.
    dwell
        Dwell per pixel, s.
    energy_kev
        Incident energy, keV.
    sample
        Name of the sample.
    """

    spectra: np.ndarray
    i0: np.ndarray
    slow: np.ndarray
    fast: np.ndarray
    ends: tuple[tuple[float, float], tuple[float, float]]
    dwell: float = 0.05
    energy_kev: float = 12.0
    sample: str = "grain"

    @classmethod
    def make(
        cls,
        shape: tuple[int, int] = (5, 7),
        channels: int = 4,
        bins: int = 4096,
        *,
        peaks_ev: Mapping[float, float | np.ndarray] | None = None,
        seed: int = 0,
        dwell: float = 0.05,
        energy_kev: float = 12.0,
        sample: str = "grain",
    ) -> SRXMap:
        """Draw a map with recognisable counts: by itself no two pixels or channels are alike.

        Parameters
        ----------
        shape
            (row, col).
        channels, bins
            Detector elements, and length of a spectrum.
        peaks_ev
            Energy of a peak in eV -> mean counts in it and each channel: a (row, col) image, or a
            number that every pixel and channel strays from. None: Ca, Fe and Zn K alpha, straying.
        seed
            For counts and positions.
        dwell, energy_kev, sample
            See the attributes.
        """
        rng = np.random.default_rng(seed)
        rows, cols = shape
        peaks = peaks_ev or {3691.0: 60.0, 6400.0: 200.0, 8631.0: 120.0}
        axis = np.arange(bins)
        mean = np.full((*shape, channels, bins), 0.05, np.float32)
        for energy, counts in peaks.items():
            peak = np.exp(-0.5 * ((axis - energy / 10.0) / _SIGMA_BINS) ** 2)
            peak /= _SIGMA_BINS * np.sqrt(2 * np.pi)
            if np.ndim(counts):
                amount = np.asarray(counts).reshape(*shape, 1, 1)
            else:
                amount = rng.uniform(0.2, 1.8, (*shape, channels, 1)) * counts
            mean += (amount * peak).astype(np.float32)
        ends = ((2.0, 2.0 + 0.5 * max(rows - 1, 1)), (-3.0, -3.0 + 0.25 * max(cols - 1, 1)))
        slow, fast = np.meshgrid(
            np.linspace(*ends[0], rows), np.linspace(*ends[1], cols), indexing="ij"
        )
        return cls(
            rng.poisson(mean).astype(np.uint32),
            rng.uniform(9e4, 1.1e5, shape).astype(np.float32),
            (slow + rng.normal(0, 0.01, shape)).astype(np.float32),
            (fast + rng.normal(0, 0.01, shape)).astype(np.float32),
            ends,
            dwell,
            energy_kev,
            sample,
        )
