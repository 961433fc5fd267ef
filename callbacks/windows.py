"""Window sums of spectra, and the background under each peak with its variance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from inscan.callbacks.lines import EmissionLine, fwhm_ev, line_window, shell_energies

__all__ = ["SpectrumWindows", "outside_spectrum", "spectrum_windows"]

# Side windows start half a FWHM beyond the peak window (3.5 sigma from the line at the default
# width: 0.02 % of the peak lies beyond), and are looked for up to four FWHM away.
_GAP_FWHM = 0.5
_REACH_FWHM = 4.0
_LEAST_BINS = 3
_ELECTRON_REST_EV = 510_998.95
# Spectra are summed a few at a time: a block then stays in cache.
_BLOCK_VALUES = 1 << 19


@dataclass(frozen=True)
class SpectrumWindows:
    """Bins of each element's peak and side windows.

    Attributes
    ----------
    windows_ev
        (low, high) per element, eV.
    peak, left, right
        (element, 2) int64: half-open bin ranges. An empty side range: none could be found.
    weight_left, weight_right
        (element,) float64: the background under a peak is ``weight_left * sum(left) +
        weight_right * sum(right)``.
    indicator
        (bin, 3 * element) float64: 1 for the bins of each peak, then left, then right window.
    without_background
        Elements with neither side window, whose background is unknown and left at zero.
    """

    windows_ev: tuple[tuple[float, float], ...]
    peak: np.ndarray
    left: np.ndarray
    right: np.ndarray
    weight_left: np.ndarray
    weight_right: np.ndarray
    indicator: np.ndarray
    without_background: tuple[str, ...]

    @property
    def has_background(self) -> bool:
        """Whether any side windows were asked for and found."""
        return bool((self.left[:, 1] > 0).any() or (self.right[:, 1] > 0).any())

    def sums(self, spectra: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sum spectra over the windows.

        Parameters
        ----------
        spectra
            (n, channel, bin), counts.

        Returns
        -------
        counts, background, variance : ndarray
            (n, channel, element) float64: counts in the peak window, background expected in it, and
            the variance of that expectation, for Poisson counts in the side windows. NaN where a
            spectrum holds a value that is negative or not finite.
        """
        n, channels, bins = spectra.shape
        shape = (n, channels, len(self.windows_ev))
        out = (np.empty(shape), np.empty(shape), np.empty(shape))
        step = max(1, _BLOCK_VALUES // max(1, channels * bins))
        for start in range(0, n, step):
            part = spectra[start : start + step]
            bad = None
            # NaN is in the minimum of what holds it.
            if part.dtype.kind not in "bu" and not (part.min() >= 0 and part.max() < math.inf):
                wrong = ~((part >= 0) & np.isfinite(part))
                part, bad = np.where(wrong, 0, part), wrong.any(axis=-1)
            peak, left, right = self._windows(part)
            here = slice(start, start + step)
            out[0][here] = peak
            out[1][here] = self.weight_left * left + self.weight_right * right
            out[2][here] = self.weight_left**2 * left + self.weight_right**2 * right
            if bad is not None:
                for array in out:
                    array[here][bad] = np.nan
        return out

    def _windows(self, spectra: np.ndarray) -> list[np.ndarray]:
        """Sums over peak, left and right windows, (n, channel, element) float64 each.

        Added one after the other, so that they are the same to the last bit however many spectra
        come at once; no matrix product, whose threads would cost more than they bring here.
        """
        runs, windows = self._packed
        # Of thousands of bins the windows need a few hundred.
        parts = [spectra[..., start:stop] for start, stop in runs]
        used = np.concatenate(parts, axis=-1, dtype=np.float64)
        total = np.zeros((*used.shape[:2], used.shape[2] + 1))
        np.cumsum(used, axis=-1, out=total[..., 1:])
        return [total[..., edges[:, 1]] - total[..., edges[:, 0]] for edges in windows]

    @cached_property
    def _packed(self) -> tuple[list[tuple[int, int]], list[np.ndarray]]:
        """The bins that any window holds, as runs; and the windows among them."""
        used = self.indicator.any(axis=1)
        changes = np.flatnonzero(np.diff(used, prepend=False, append=False))
        runs = [(int(start), int(stop)) for start, stop in changes.reshape(-1, 2)]
        place = np.concatenate([[0], np.cumsum(used)])
        return runs, [place[edges] for edges in (self.peak, self.left, self.right)]


def spectrum_windows(
    lines: Sequence[EmissionLine],
    *,
    n_bins: int,
    ev_per_bin: float,
    offset_ev: float,
    resolution_ev: float,
    half_width_fwhm: float,
    incident_energy_ev: float | None,
    background: bool,
) -> SpectrumWindows:
    """Choose peak and side windows for lines.

    Side windows keep clear of the peaks of all the lines' elements and, with a known incident
    energy, of the elastic and Compton peaks. The background is a straight line through both sides,
    or the level of the only side that is free.

    Parameters
    ----------
    lines
        Lines to map.
    n_bins, ev_per_bin, offset_ev
        Energy axis: the centre of bin i is at ``offset_ev + i * ev_per_bin``.
    resolution_ev
        Full width at half maximum of the detector at Mn Ka, eV.
    half_width_fwhm
        Half width of a peak window in FWHM.
    incident_energy_ev
        None: unknown.
    background
        False: no side windows.

    Raises
    ------
    ValueError
        A line's window lies outside the energy axis.
    """

    def to_bins(low: float, high: float) -> tuple[int, int]:
        first, stop = (math.ceil((edge - offset_ev) / ev_per_bin) for edge in (low, high))
        return min(max(first, 0), n_bins), min(max(stop, 0), n_bins)

    taken = np.zeros(n_bins, bool)
    for line in lines:
        for energy in shell_energies(line):
            half = half_width_fwhm * fwhm_ev(energy, resolution_ev)
            taken[slice(*to_bins(energy - half, energy + half))] = True
    if incident_energy_ev is not None:
        half = 1.5 * fwhm_ev(incident_energy_ev, resolution_ev)
        backscattered = incident_energy_ev / (1 + 2 * incident_energy_ev / _ELECTRON_REST_EV)
        taken[slice(*to_bins(backscattered - half, incident_energy_ev + half))] = True

    windows, peaks, lefts, rights, weights_left, weights_right = [], [], [], [], [], []
    without = []
    for line in lines:
        low, high = line_window(line, resolution_ev, half_width_fwhm)
        peak = to_bins(low, high)
        reason = outside_spectrum(
            line,
            n_bins=n_bins,
            ev_per_bin=ev_per_bin,
            offset_ev=offset_ev,
            resolution_ev=resolution_ev,
            half_width_fwhm=half_width_fwhm,
        )
        if reason is not None:
            raise ValueError(reason)
        width = fwhm_ev(line.energy_ev, resolution_ev) / ev_per_bin
        gap, reach = round(_GAP_FWHM * width), round(_REACH_FWHM * width)
        most = max(_LEAST_BINS, (peak[1] - peak[0]) // 2)
        left = right = (0, 0)
        if background:
            left = _free_run(taken, range(peak[0] - 1 - gap, peak[0] - 1 - reach, -1), most)
            right = _free_run(taken, range(peak[1] + gap, peak[1] + reach), most)
            if left == right == (0, 0):
                without.append(line.name)
        share_left, share_right = _shares(peak, left, right)
        windows.append((low, high))
        peaks.append(peak)
        lefts.append(left)
        rights.append(right)
        weights_left.append(share_left)
        weights_right.append(share_right)
    indicator = np.zeros((n_bins, 3 * len(windows)))
    for column, (start, stop) in enumerate(peaks + lefts + rights):
        indicator[start:stop, column] = 1.0
    return SpectrumWindows(
        tuple(windows),
        np.array(peaks, np.int64).reshape(-1, 2),
        np.array(lefts, np.int64).reshape(-1, 2),
        np.array(rights, np.int64).reshape(-1, 2),
        np.array(weights_left),
        np.array(weights_right),
        indicator,
        tuple(without),
    )


def outside_spectrum(
    line: EmissionLine,
    *,
    n_bins: int,
    ev_per_bin: float,
    offset_ev: float,
    resolution_ev: float,
    half_width_fwhm: float,
) -> str | None:
    """Return why a line has no window in a spectrum, None when it has; see `spectrum_windows`."""
    low, high = line_window(line, resolution_ev, half_width_fwhm)
    end = offset_ev + n_bins * ev_per_bin
    # The centre of bin 0 is at the offset; of a window all but one bin must be there.
    if low >= offset_ev - ev_per_bin and high <= end:
        return None
    return (
        f"{line.name}: its window {low:.0f} to {high:.0f} eV is outside the spectrum, which"
        f" covers {offset_ev:.0f} to {end:.0f} eV"
    )


def _free_run(taken: np.ndarray, bins: range, most: int) -> tuple[int, int]:
    """Nearest run of bins that no line takes, at most ``most`` long; (0, 0) when there is none."""
    run: list[int] = []
    for index in bins:
        if 0 <= index < len(taken) and not taken[index]:
            run.append(index)
            if len(run) == most:
                break
        elif len(run) >= _LEAST_BINS:
            break
        else:
            run = []
    return (min(run), max(run) + 1) if len(run) >= _LEAST_BINS else (0, 0)


def _shares(
    peak: tuple[int, int], left: tuple[int, int], right: tuple[int, int]
) -> tuple[float, float]:
    """Weights of the side sums in a straight line's sum under the peak."""
    n_peak, n_left, n_right = (stop - start for start, stop in (peak, left, right))
    if not n_left or not n_right:
        return (n_peak / n_left if n_left else 0.0), (n_peak / n_right if n_right else 0.0)
    centre, at_left, at_right = (0.5 * (start + stop) for start, stop in (peak, left, right))
    towards_right = (centre - at_left) / (at_right - at_left)
    return n_peak * (1 - towards_right) / n_left, n_peak * towards_right / n_right
