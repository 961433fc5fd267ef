"""Energy stacks with known chemistry at the Ni K edge, made of `inscan.profiles.xanes_standards`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import gaussian_filter
from scipy.spatial import KDTree

from inscan.profiles.xanes_standards import STANDARDS, absorption

__all__ = [
    "NI_EDGE_EV",
    "NI_STATES",
    "Chemistry",
    "Spectrum",
    "XANESSample",
    "battery_xanes",
    "ni_energies_ev",
]

NI_EDGE_EV = 8333.0
Chemistry = Literal["smooth", "fine", "random"]


@dataclass(frozen=True)
class Spectrum:
    """Absorption of one oxidation state, edge step one, about zero before the edge.

    Attributes
    ----------
    name
        A compound of `inscan.profiles.xanes_standards`.
    """

    name: str

    def __call__(self, energies_ev: ArrayLike) -> np.ndarray:
        """Return the absorption at energies (eV), float64 of the same shape."""
        return absorption(self.name, np.asarray(energies_ev, np.float64))


NI_STATES: tuple[Spectrum, ...] = tuple(Spectrum(name) for name in STANDARDS)
"""Nickel in oxidation states 2, 3 and 4, as in NiO, LiNiO2 and NiO2."""


def ni_energies_ev(count: int = 61) -> np.ndarray:
    """Return energies for a stack over the Ni K edge, (count,) float64, eV, rising.

    Half of them lie in the 30 eV where the edge is; the rest are spread over 8240 to 8470 eV.

    Raises
    ------
    ValueError
        Fewer than 12: no pre-edge and post-edge lines could be fitted.
    """
    if count < 12:
        raise ValueError(f"{count} energies do not cover an edge; take at least 12")
    edge = count // 2
    before = (count - edge) * 2 // 5
    return np.concatenate(
        [
            np.linspace(8240.0, 8330.0, before),
            np.linspace(8333.0, 8363.0, edge),
            np.linspace(8368.0, 8470.0, count - edge - before),
        ]
    )


@dataclass(frozen=True, eq=False)
class XANESSample:
    """A thin sample of one absorber in several states.

    Attributes
    ----------
    name
        Short name.
    jump
        (row, col) float32: edge step in optical density, 0 where nothing is.
    fractions
        (reference, row, col) float32: share of each state; sum one where ``jump`` > 0, else 0.
    pre_edge
        (row, col) float32: optical density at the edge energy of all that is no edge.
    spectra
        The states.
    pixel_size
        um.
    """

    name: str
    jump: np.ndarray
    fractions: np.ndarray
    pre_edge: np.ndarray
    spectra: tuple[Spectrum, ...]
    pixel_size: float

    def __post_init__(self) -> None:
        shape = (len(self.spectra), *self.jump.shape)
        if self.fractions.shape != shape or self.pre_edge.shape != self.jump.shape:
            raise ValueError(
                f"sample {self.name}: fractions {self.fractions.shape}, pre_edge"
                f" {self.pre_edge.shape}; expected {shape} and {self.jump.shape}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(row, col)."""
        return self.jump.shape[0], self.jump.shape[1]

    def optical_density(self, energies_ev: ArrayLike) -> np.ndarray:
        """Return -ln T, (energy, row, col) float32."""
        energies = np.atleast_1d(np.asarray(energies_ev, np.float64))
        absorption = np.stack([state(energies) for state in self.spectra], axis=1)
        # Victoreen: absorption that belongs to no edge falls about with the cube of the energy.
        falling = ((NI_EDGE_EV / energies) ** 3).astype(np.float32)
        parts = (self.fractions * self.jump).reshape(len(self.spectra), -1)
        edge = (absorption.astype(np.float32) @ parts).reshape(-1, *self.shape)
        return edge + falling[:, None, None] * self.pre_edge

    def edge_energy(self, level: float = 0.5) -> np.ndarray:
        """Return where the noise-free absorption first reaches ``level`` edge steps.

        Returns
        -------
        ndarray of float32, shape (row, col)
            eV; NaN where ``jump`` is 0.
        """
        energies = np.arange(8325.0, 8365.0, 0.05)
        spectra = np.stack([state(energies) for state in self.spectra])
        out = np.full(self.jump.shape, np.nan, np.float32)
        rows, cols = np.nonzero(self.jump > 0)
        for start in range(0, rows.size, 4096):
            here = rows[start : start + 4096], cols[start : start + 4096]
            mixed = self.fractions[:, *here].T @ spectra
            first = np.argmax(mixed >= level, axis=1)
            line = np.arange(len(first))
            low, high = mixed[line, first - 1], mixed[line, first]
            out[here] = energies[first - 1] + 0.05 * (level - low) / (high - low)
        return out


def battery_xanes(
    seed: int = 0,
    *,
    chemistry: Chemistry = "smooth",
    size: int = 256,
    pixel_size: float = 0.03,
    spectra: Sequence[Spectrum] = NI_STATES,
) -> XANESSample:
    """Draw secondary battery particles.

    Parameters
    ----------
    seed
        Same seed, same particles.
    chemistry
        ``smooth``: from a reduced surface to an oxidised core, different in each particle.
        ``fine``: each primary grain, a few pixels wide, has its own state.
        ``random``: each pixel has its own state; nothing can be learned from neighbours.
    size
        Rows and columns.
    pixel_size
        um.
    spectra
        The states, from the most reduced to the most oxidised; 2 or 3.

    Raises
    ------
    ValueError
        Another chemistry, size or number of states.
    """
    if chemistry not in ("smooth", "fine", "random"):
        raise ValueError(f"chemistry {chemistry!r}: expected smooth, fine or random")
    if size < 16 or len(spectra) not in (2, 3):
        raise ValueError(f"size {size}, {len(spectra)} states; expected size >= 16 and 2 or 3")
    rng = np.random.default_rng([seed, 4])
    y, x = np.mgrid[:size, :size].astype(np.float32)
    thickness = np.zeros((size, size), np.float32)
    charge = np.zeros((size, size), np.float32)
    for _ in range(rng.integers(4, 7)):
        radius = rng.uniform(0.12, 0.24) * size
        row, col = rng.uniform(0.15 * size, 0.85 * size, 2)
        around = np.arctan2(y - row, x - col)
        bumps = sum(
            rng.normal(0, 0.03) * np.cos(k * around + rng.uniform(0, 6.3)) for k in (2, 3, 5)
        )
        r = np.hypot(y - row, x - col) / (radius * (1 + bumps))
        dome = np.sqrt(np.clip(1 - r * r, 0, 1)) * radius / (0.24 * size)
        new = dome > thickness
        state = rng.uniform(0.4, 0.95) - rng.uniform(0.1, 0.5) * np.clip(r, 0, 1) ** 3
        thickness[new], charge[new] = dome[new], state[new]
    seeds = rng.uniform(0, size, (max(4, int(size * size / 25)), 2))
    pixels = np.stack([y.ravel(), x.ravel()], axis=1)
    grain = np.asarray(KDTree(seeds).query(pixels)[1]).reshape(size, size)
    # Primary grains differ in density, with any chemistry: a sharp structure in every image.
    solid = thickness * rng.uniform(0.75, 1.0, len(seeds)).astype(np.float32)[grain]
    slow = gaussian_filter(rng.standard_normal((size, size)), size / 12)
    charge += (0.1 * slow / slow.std()).astype(np.float32)
    if chemistry == "fine":
        charge = rng.uniform(0, 1, len(seeds)).astype(np.float32)[grain]
    elif chemistry == "random":
        charge = rng.uniform(0, 1, (size, size)).astype(np.float32)
    fractions = _fractions(np.clip(charge, 0, 1), len(spectra))
    jump = np.where(solid > 0.02, 1.1 * solid, 0).astype(np.float32)
    name = f"battery_{chemistry}"
    return XANESSample(name, jump, fractions * (jump > 0), 0.45 * jump, tuple(spectra), pixel_size)


def _fractions(charge: np.ndarray, states: int) -> np.ndarray:
    """Mix neighbouring states: charge 0 is all of the first, 1 all of the last, (state, row, col)."""
    at = charge * (states - 1)
    return np.stack([np.clip(1 - abs(at - i), 0, 1) for i in range(states)]).astype(np.float32)
