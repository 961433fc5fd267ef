"""Emission lines: energies, detector windows, what may be excited, what overlaps what.

All energies, edges and relative intensities come from `xraydb` (Elam, Ravel and Sieber,
Radiation Physics and Chemistry 63, 121, 2002, with its later corrections); nothing is a table here.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import xraydb

__all__ = [
    "EmissionLine",
    "Overlap",
    "excitable",
    "fwhm_ev",
    "line_window",
    "overlaps",
    "shell_energies",
]

# Silicon: energy per electron-hole pair, Fano factor; resolutions are quoted at Mn Ka.
_EV_PER_PAIR = 3.66
_FANO = 0.115
_MN_KA_EV = 5895.0
_FWHM_PER_SIGMA = 2.0 * math.sqrt(2.0 * math.log(2.0))
_NAME = re.compile(r"^([A-Z][a-z]?)[ _-]([KLM])([a-z]?)(\d*)$")


@dataclass(frozen=True)
class EmissionLine:
    """A group of emission lines that a detector sees as one peak.

    Attributes
    ----------
    element
        Symbol, ``Fe``.
    family
        Shell, and the group if it is not the main one: ``K`` (= Ka), ``Kb``, ``L`` (= La), ``M``.
    """

    element: str
    family: str

    @property
    def name(self) -> str:
        """``Fe_K``."""
        return f"{self.element}_{self.family}"

    @classmethod
    def parse(cls, text: str) -> EmissionLine:
        """Read ``Fe_K``, ``Fe_Kb``, ``Pb-L``, ``Pb La``.

        Raises
        ------
        ValueError
            Not an element, or a line that it does not have; names the nearest that exists.
        """
        match = _NAME.match(text.strip()) if isinstance(text, str) else None
        if match is None:
            raise ValueError(f"{text!r} is not a line like Fe_K or Pb_L{_suggestion(str(text))}")
        element, shell, group, _ = match.groups()
        if element not in _elements():
            raise ValueError(f"{text!r}: no element {element!r}{_suggestion(text)}")
        line = cls(element, shell if group in ("", "a") else shell + group)
        if not line.members():
            known = [
                f"{element}_{name[0]}{name[1].replace('a', '')}" for name in _lines_of(element)
            ]
            raise ValueError(
                f"{text!r}: {element} has no such line; it has {', '.join(dict.fromkeys(known))}"
            )
        return line

    @property
    def shell(self) -> str:
        """``K``, ``L`` or ``M``."""
        return self.family[0]

    def members(self) -> dict[str, tuple[float, float]]:
        """Return the lines of the group: Siegbahn name -> (energy in eV, relative intensity)."""
        group = self.family[1:] or "a"
        return {
            name: value
            for name, value in _shell_lines(self.element, self.shell).items()
            if name[1:2] == group
        }

    @property
    def energy_ev(self) -> float:
        """Mean energy of the group in eV, weighted by intensity."""
        members = self.members().values()
        return sum(e * w for e, w in members) / sum(w for _, w in members)

    @property
    def edge_ev(self) -> float:
        """Lowest absorption edge in eV from which the group can be excited."""
        edges = _edges_of(self.element)
        initial = {
            line.initial_level
            for name, line in _lines_of(self.element).items()
            if name in self.members()
        }
        return min(edges[level].energy for level in initial if level in edges)


@cache
def _elements() -> frozenset[str]:
    return frozenset(xraydb.atomic_symbol(z) for z in range(3, 96))


@cache
def _lines_of(element: str) -> dict[str, Any]:
    return dict(xraydb.xray_lines(element))


@cache
def _edges_of(element: str) -> dict[str, Any]:
    return dict(xraydb.xray_edges(element))


@cache
def _shell_lines(element: str, shell: str) -> dict[str, tuple[float, float]]:
    """Lines of one shell with intensities relative to each other for white excitation.

    xraydb gives intensities per initial level. Between the levels of a shell they are weighted with
    the fluorescence yield times the number of electrons, which is right to a factor of two: enough
    to find overlaps, not to quantify.
    """
    edges = _edges_of(element)
    electrons = {"K": 2, "L1": 2, "L2": 2, "L3": 4, "M1": 2, "M2": 2, "M3": 4, "M4": 4, "M5": 6}
    lines = {}
    for name, line in _lines_of(element).items():
        level = line.initial_level
        if not level.startswith(shell) or not name.startswith(shell) or level not in edges:
            continue
        weight = line.intensity * edges[level].fyield * electrons.get(level, 0)
        if weight > 0:
            lines[name] = (float(line.energy), float(weight))
    return lines


def shell_energies(line: EmissionLine) -> list[float]:
    """Return the energies (eV) of every line of the same shell that is 1 % of the strongest."""
    lines = _shell_lines(line.element, line.shell).values()
    least = 0.01 * max(weight for _, weight in lines)
    return [energy for energy, weight in lines if weight >= least]


def _suggestion(text: str) -> str:
    known = [f"{symbol}_{shell}" for symbol in sorted(_elements()) for shell in "KLM"]
    near = difflib.get_close_matches(text[:1].upper() + text[1:], known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def fwhm_ev(energy_ev: float, resolution_ev: float) -> float:
    """Return the full width at half maximum (eV) of a silicon detector at an energy.

    ``resolution_ev`` is the width at Mn Ka. Electronic noise is constant, the rest is Fano noise:
    fwhm^2 = resolution^2 + 8 ln 2 * 0.115 * 3.66 eV * (E - 5895 eV).
    """
    fano = _FWHM_PER_SIGMA**2 * _FANO * _EV_PER_PAIR
    # A resolution better than the Fano limit leaves nothing for noise; never below 10 eV.
    return math.sqrt(max(resolution_ev**2 + fano * (energy_ev - _MN_KA_EV), 100.0))


def line_window(
    line: EmissionLine, resolution_ev: float, half_width_fwhm: float
) -> tuple[float, float]:
    """Return (low, high) in eV of the detector window around a line group."""
    energy = line.energy_ev
    half = half_width_fwhm * fwhm_ev(energy, resolution_ev)
    return energy - half, energy + half


def excitable(line: EmissionLine, incident_energy_ev: float | None) -> str | None:
    """Return why a line cannot be excited at an incident energy (eV); None when it can.

    An unknown incident energy (None) refuses nothing.
    """
    if incident_energy_ev is None or line.edge_ev < incident_energy_ev:
        return None
    return (
        f"{line.name} is refused: its absorption edge at {line.edge_ev:.0f} eV is above the"
        f" incident energy of {incident_energy_ev:.0f} eV"
    )


@dataclass(frozen=True)
class Overlap:
    """Counts of ``source`` that fall into the window of ``window``.

    ``share`` is relative to the counts in the source's own window; ``member`` is the Siegbahn name
    of the line that contributes most.
    """

    window: str
    source: str
    member: str
    share: float

    def __str__(self) -> str:
        target, source = EmissionLine.parse(self.window), EmissionLine.parse(self.source)
        group = target.family if len(target.family) > 1 else f"{target.family}a"
        member = f"{source.element} {self.member.rstrip('0123456789,')}"
        return (
            f"{member} overlaps {target.element} {group}: {self.share:.0%} as many counts as in"
            f" {self.source} are also counted as {self.window}"
        )


def overlaps(
    windows: Sequence[tuple[EmissionLine, float, float]],
    resolution_ev: float,
    *,
    threshold: float,
    incident_energy_ev: float | None = None,
) -> list[Overlap]:
    """Find lines of one mapped element that leak into the window of another.

    Parameters
    ----------
    windows
        (line, low, high) in eV for each mapped element.
    resolution_ev
        Full width at half maximum of the detector at Mn Ka, eV.
    threshold
        Least share that is reported.
    incident_energy_ev
        Lines from levels above it are left out. None: none are.
    """
    found = []
    for target, low, high in windows:
        for source, own_low, own_high in windows:
            if source.name == target.name:
                continue
            own, leak, most, most_name = 0.0, 0.0, 0.0, ""
            levels = _lines_of(source.element)
            edges = _edges_of(source.element)
            for name, (energy, weight) in _shell_lines(source.element, source.shell).items():
                edge = edges[levels[name].initial_level].energy
                if incident_energy_ev is not None and edge >= incident_energy_ev:
                    continue
                sigma = fwhm_ev(energy, resolution_ev) / _FWHM_PER_SIGMA
                own += weight * _within(energy, sigma, own_low, own_high)
                part = weight * _within(energy, sigma, low, high)
                leak += part
                if part > most:
                    most, most_name = part, name
            if own > 0 and leak / own >= threshold:
                found.append(Overlap(target.name, source.name, most_name, leak / own))
    return found


def _within(centre: float, sigma: float, low: float, high: float) -> float:
    """Share of a Gaussian between two energies."""
    upper = math.erf((high - centre) / (sigma * math.sqrt(2.0)))
    lower = math.erf((low - centre) / (sigma * math.sqrt(2.0)))
    return 0.5 * (upper - lower)
