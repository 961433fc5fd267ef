"""What a fluorescence detector's spectrum is made of: lines, scatter, windows.

Line energies and intensities come from `xraydb` (Elam, Ravel and Sieber, Radiation Physics and
Chemistry 63, 121, 2002). Peaks are Gaussian with the resolution of silicon; a small part of each
line spreads evenly below it (incomplete charge collection).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xraydb
from scipy.special import erf

__all__ = ["Mcaroi", "Response", "build_response"]

_FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))
_MN_KA_EV = 5895.0
_ELECTRON_REST_EV = 510_998.95
_SHELF = 0.01  # share of a line's counts spread evenly below it
# Scatter at 90 degrees with a polarised beam: mostly Compton, some elastic, a continuum below.
_ELASTIC, _COMPTON, _CONTINUUM = 0.3, 0.6, 0.1
_COMPTON_WIDENING = 1.8


@dataclass(frozen=True)
class Mcaroi:
    """A spectral window of the detector: bins with centres in ``low_ev`` <= E < ``high_ev``."""

    name: str
    low_ev: float
    high_ev: float


@dataclass(frozen=True, eq=False)
class Response:
    """Spectrum for each element and of the scatter, all channels together.

    Attributes
    ----------
    elements
        Lines of the sample.
    mcarois
        Windows.
    energy_per_bin, offset_ev
        The centre of bin i is at ``offset_ev + i * energy_per_bin``, eV.
    templates
        (element, bin) float64: counts per count of the element's rate. A rate is what falls into
        the window around the element's own line, so that part of a template sums to one. Zero for
        lines that the beam cannot excite.
    scatter
        (bin,) float64: counts/s of the scatter at the nominal beam.
    bins
        (mcaroi, 2): half-open bin ranges of the windows.
    """

    elements: tuple[str, ...]
    mcarois: tuple[Mcaroi, ...]
    energy_per_bin: float
    offset_ev: float
    templates: np.ndarray
    scatter: np.ndarray
    bins: np.ndarray

    def window_rates(self, rates: np.ndarray) -> np.ndarray:
        """Return what the windows count: lines, neighbours' tails and scatter.

        Parameters
        ----------
        rates
            (element, ...), counts/s, as `XRFSample.rate` returns them.

        Returns
        -------
        ndarray of float64, shape (mcaroi, ...)
            Counts/s of all channels together without dead time, at the nominal beam.
        """
        lines = np.stack([self.templates[:, a:b].sum(axis=1) for a, b in self.bins])
        scatter = np.array([self.scatter[a:b].sum() for a, b in self.bins])
        counted = np.tensordot(lines, np.asarray(rates, np.float64), axes=1)
        return counted + scatter.reshape(-1, *([1] * (counted.ndim - 1)))


def _fwhm(energy_ev: float, resolution_ev: float) -> float:
    """Width of a peak in eV; Fano noise grows with the energy (Fano factor 0.115, 3.66 eV/pair)."""
    fano = _FWHM_PER_SIGMA**2 * 0.115 * 3.66
    return math.sqrt(max(resolution_ev**2 + fano * (energy_ev - _MN_KA_EV), 100.0))


def _lines(name: str, incident_ev: float) -> tuple[dict[str, tuple[float, float]], float]:
    """Return lines (Siegbahn name -> energy, weight) of a shell, and the main group's energy.

    The weights are zero above the incident energy.

    Raises
    ------
    ValueError
        No such line.
    """
    element, _, family = name.partition("_")
    shell, group = family[:1], family[1:] or "a"
    try:
        every = xraydb.xray_lines(element)
        edges = xraydb.xray_edges(element)
    except ValueError as error:
        raise ValueError(f"{name}: no element {element!r}; expected a line like Fe_K") from error
    lines, main = {}, []
    for member, line in every.items():
        if not member.startswith(shell or "?") or line.initial_level not in edges:
            continue
        edge = edges[line.initial_level]
        # Levels of a shell share the excitation by their absorption jumps.
        weight = line.intensity * edge.fyield * (1 - 1 / edge.jump_ratio)
        if member[1:2] == group:
            main.append((line.energy, weight))
        lines[member] = (line.energy, weight if edge.energy < incident_ev else 0.0)
    total = sum(weight for _, weight in main)
    if not total > 0:
        raise ValueError(f"{name}: {element} has no such line; expected a line like Fe_K or Pb_L")
    return lines, sum(energy * weight for energy, weight in main) / total


def _peak(edges: np.ndarray, energy: float, fwhm: float) -> np.ndarray:
    """Return the share of a Gaussian in each bin, (bin,)."""
    cumulative = erf((edges - energy) * (_FWHM_PER_SIGMA / math.sqrt(2) / fwhm))
    return 0.5 * np.diff(cumulative)


def build_response(
    elements: Sequence[str],
    *,
    incident_ev: float = 12_000.0,
    bins: int = 4096,
    energy_per_bin: float = 10.0,
    resolution_ev: float = 150.0,
    scatter_rate: float = 3000.0,
    mcarois: Sequence[str] | None = None,
) -> Response:
    """Work out spectra and windows.

    Parameters
    ----------
    elements
        Lines in the sample, ``Fe_K``.
    incident_ev
        Beam energy, eV.
    bins, energy_per_bin
        Energy axis from 0; width of a bin in eV.
    resolution_ev
        Full width at half maximum at Mn Ka, eV.
    scatter_rate
        Elastic, Compton and continuum together, counts/s of all channels. 0: none.
    mcarois
        Lines with a window, each +- 0.8 full widths at half maximum. None: all of the sample.

    Raises
    ------
    ValueError
        An unknown line, or one whose window is outside the energy axis.
    """
    centres = np.arange(bins) * energy_per_bin
    edges = np.append(centres, bins * energy_per_bin) - energy_per_bin / 2

    def window(name: str) -> Mcaroi:
        _, energy = _lines(name, incident_ev)
        half = 0.8 * _fwhm(energy, resolution_ev)
        return Mcaroi(name, round(energy - half, 1), round(energy + half, 1))

    def bin_range(mcaroi: Mcaroi) -> tuple[int, int]:
        low, high = (math.ceil(e / energy_per_bin) for e in (mcaroi.low_ev, mcaroi.high_ev))
        if not 0 <= low < high <= bins:
            raise ValueError(
                f"{mcaroi.name}: its window {mcaroi.low_ev} to {mcaroi.high_ev} eV is not within"
                f" the spectrum, 0 to {bins * energy_per_bin} eV"
            )
        return low, high

    templates = np.zeros((len(elements), bins))
    for template, name in zip(templates, elements, strict=True):
        lines, _ = _lines(name, incident_ev)
        for energy, weight in lines.values():
            shelf = (centres > 500) & (centres < energy)
            template += weight * (1 - _SHELF) * _peak(edges, energy, _fwhm(energy, resolution_ev))
            template += weight * _SHELF * shelf / max(1, shelf.sum())
        own = template[slice(*bin_range(window(name)))].sum()
        if own > 0:
            template /= own
    chosen = tuple(window(name) for name in (elements if mcarois is None else mcarois))
    compton_ev = incident_ev / (1 + incident_ev / _ELECTRON_REST_EV)
    below = (centres > 500) & (centres < incident_ev)
    continuum = below * np.exp(-centres / 6000.0)
    scatter = _ELASTIC * _peak(edges, incident_ev, _fwhm(incident_ev, resolution_ev))
    wide = _COMPTON_WIDENING * _fwhm(compton_ev, resolution_ev)
    scatter += _COMPTON * _peak(edges, compton_ev, wide)
    scatter += _CONTINUUM * continuum / max(continuum.sum(), 1e-12)
    return Response(
        tuple(elements),
        chosen,
        float(energy_per_bin),
        0.0,
        templates,
        scatter_rate * scatter,
        np.array([bin_range(mcaroi) for mcaroi in chosen], np.int64).reshape(-1, 2),
    )
