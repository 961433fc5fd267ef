"""Absorption of three nickel oxides over the Ni K edge, as analytic spectra.

They play the measured standards of the simulated transmission microscope: `ni_standards.csv` is this
module's output (``python -m inscan.profiles.xanes_standards > profiles/sim_txm/ni_standards.csv``), and
a simulated sample made of the same compounds draws from the same function. Edge positions and white
lines follow the shift of about 1.5 eV per unit of oxidation state that nickel oxides show; the shapes
are a model, not a measurement.
"""

from __future__ import annotations

import sys

import numpy as np

__all__ = ["STANDARDS", "absorption", "energy_grid"]

# Edge energy and white line (eV), height and width of the white line (edge step, eV), phase of the
# oscillations that follow.
STANDARDS = {
    "NiO": (8344.6, 8350.3, 0.85, 2.6, 0.0),
    "LiNiO2": (8346.2, 8352.0, 0.70, 3.0, 0.5),
    "NiO2": (8347.8, 8353.8, 0.60, 3.3, 1.0),
}
_CORE_HOLE_EV = 1.6


def absorption(compound: str, energies_ev: np.ndarray) -> np.ndarray:
    """Return the absorption of a compound, normalised to an edge step of one.

    An arctangent step, a Gaussian white line, the small pre-edge peak of Ni 3d, and damped
    oscillations above the edge.

    Parameters
    ----------
    compound
        A key of `STANDARDS`.
    energies_ev
        Any shape, eV.

    Returns
    -------
    ndarray
        float64, the shape of ``energies_ev``: near 0 far below the edge, near 1 far above.
    """
    edge, white, height, width, phase = STANDARDS[compound]
    energy = np.asarray(energies_ev, dtype=np.float64)
    step = 0.5 + np.arctan((energy - edge) / _CORE_HOLE_EV) / np.pi
    peak = height * np.exp(-0.5 * ((energy - white) / width) ** 2)
    before = 0.03 * np.exp(-0.5 * ((energy - (edge - 11.5)) / 1.2) ** 2)
    # Photoelectron wave number in 1/angstrom: k = sqrt(0.2625 (E - E0)).
    above = np.clip(energy - white - 2 * width, 0, None)
    wave = np.sqrt(0.2625 * above)
    rise = 1 - np.exp(-above / 8)
    return step + peak + before - 0.12 * rise * np.exp(-above / 90) * np.cos(3.9 * wave + phase)


def energy_grid() -> np.ndarray:
    """Return the energies (eV) of the table: dense at the edge, 8200 to 8700 eV."""
    parts = [
        np.arange(8200.0, 8320.0, 2.0),
        np.arange(8320.0, 8380.0, 0.25),
        np.arange(8380.0, 8450.0, 1.0),
        np.arange(8450.0, 8700.1, 5.0),
    ]
    return np.concatenate(parts)


def _table() -> str:
    energies = energy_grid()
    columns = [absorption(name, energies) for name in STANDARDS]
    lines = [
        "# Absorption of nickel oxides, edge step one. Made by inscan.profiles.xanes_standards.",
        ",".join(["energy_ev", *STANDARDS]),
    ]
    for energy, *values in zip(energies, *columns, strict=True):
        lines.append(",".join([f"{energy:.2f}", *(f"{value:.6f}" for value in values)]))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(_table())
