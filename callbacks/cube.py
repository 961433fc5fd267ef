"""The energy axis of spectra that are kept pixel by pixel: whole bins of the detector, added up."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from inscan.callbacks.windows import SpectrumWindows
from inscan.callbacks.xrf_sections import Cube

__all__ = ["CubeAxis", "cube_axis"]


@dataclass(frozen=True)
class CubeAxis:
    """Which bins of the detector are kept, and how they are added up.

    Attributes
    ----------
    first, width, bins
        Kept bin ``k`` is the sum of the detector's bins ``first + k * width`` up to, not including,
        ``first + (k + 1) * width``.
    energies_ev
        (bin,) float64, the mean of the centres of the bins in each.
    line_weights
        (element, bin) float64: with them the kept bins add up to the counts of a line, background
        under the peak removed.
    """

    first: int
    width: int
    bins: int
    energies_ev: np.ndarray
    line_weights: np.ndarray

    def sums(self, spectra: np.ndarray) -> np.ndarray:
        """Add up spectra, (..., bin of the detector) to (..., bin), float32."""
        stop = self.first + self.bins * self.width
        part = spectra[..., self.first : stop]
        if self.width == 1:
            return part.astype(np.float32)
        shape = (*spectra.shape[:-1], self.bins, self.width)
        return part.reshape(shape).sum(axis=-1, dtype=np.float32)


def cube_axis(
    wanted: Cube,
    windows: SpectrumWindows,
    *,
    n_bins: int,
    ev_per_bin: float,
    offset_ev: float,
    incident_energy_ev: float | None,
) -> CubeAxis:
    """Choose the bins to keep.

    Parameters
    ----------
    wanted
        Range and most bins; a remainder at the high end that fills no bin is left out.
    windows
        Of the lines, in bins of the detector.
    n_bins, ev_per_bin, offset_ev
        Energy axis of the detector: the centre of bin i is at ``offset_ev + i * ev_per_bin``.
    incident_energy_ev
        Up to there bins are kept where the profile says nothing else. None: unknown.

    Raises
    ------
    ValueError
        Nothing of the spectrum lies in the range.
    """
    high = wanted.high_ev or incident_energy_ev or math.inf
    centres = offset_ev + np.arange(n_bins) * ev_per_bin
    inside = np.flatnonzero((centres >= wanted.low_ev) & (centres <= high))
    if not inside.size:
        raise ValueError(
            f"cube: no bin between {wanted.low_ev:g} and {high:g} eV; the spectrum covers"
            f" {centres[0]:.0f} to {centres[-1]:.0f} eV"
        )
    width = -(-inside.size // wanted.bins)
    bins, first = inside.size // width, int(inside[0])
    kept = slice(first, first + bins * width)
    n = len(windows.windows_ev)
    peak, left, right = (windows.indicator[:, k * n : (k + 1) * n] for k in range(3))
    weights = peak - windows.weight_left * left - windows.weight_right * right
    grouped = weights[kept].reshape(bins, width, n).mean(axis=1)
    return CubeAxis(
        first,
        width,
        bins,
        centres[kept].reshape(bins, width).mean(axis=1),
        np.ascontiguousarray(grouped.T),
    )
