"""Measured absorption standards read from a table beside a profile."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inscan.callbacks.units import scale

__all__ = ["Reference", "read_references"]


@dataclass(frozen=True)
class Reference:
    """One standard: absorption against energy.

    Attributes
    ----------
    name
        Compound, e.g. ``NiO``.
    energies_ev
        (n,) float64, rising, eV.
    absorption
        (n,) float64, edge step one, pre-edge zero.
    """

    name: str
    energies_ev: np.ndarray
    absorption: np.ndarray

    def at(self, energies_ev: Sequence[float] | np.ndarray) -> np.ndarray:
        """Return the absorption at other energies, (m,) float64.

        Raises
        ------
        ValueError
            An energy lies outside the standard: nothing is extrapolated.
        """
        wanted = np.asarray(energies_ev, dtype=np.float64)
        low, high = self.energies_ev[0], self.energies_ev[-1]
        if wanted.size and (wanted.min() < low or wanted.max() > high):
            raise ValueError(
                f"standard {self.name} covers {low:.1f} to {high:.1f} eV, but the run needs"
                f" {wanted.min():.1f} to {wanted.max():.1f} eV"
            )
        return np.interp(wanted, self.energies_ev, self.absorption)


def read_references(path: Path, energy_units: str) -> list[Reference]:
    """Read a CSV of standards: energies first, then one column per standard.

    Raises
    ------
    ValueError
        No such columns, a cell that is no number, or energies that do not rise.
    """
    with path.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.reader(line for line in lines if line.strip() and line[0] != "#"))
    if len(rows) < 3 or len(rows[0]) < 2:
        raise ValueError(f"{path}: expected a header and at least two lines of energy, absorption")
    names = [name.strip() for name in rows[0][1:]]
    try:
        table = np.array(rows[1:], dtype=np.float64)
    except ValueError as error:
        raise ValueError(
            f"{path}: every cell below the header must be a number: {error}"
        ) from error
    energies = table[:, 0] * scale(energy_units, "eV")
    if not np.isfinite(table).all() or not (np.diff(energies) > 0).all():
        raise ValueError(f"{path}: energies must be finite and rise from line to line")
    return [Reference(name, energies, table[:, 1 + i]) for i, name in enumerate(names)]
