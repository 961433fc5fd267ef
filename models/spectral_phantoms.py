"""Spectrum images with known truth: what `spectral` is judged on, and what it is calibrated on.

Judged on cells, Siemens star and battery particles, calibrated on textures of the training
families with spectra drawn at random: the two share no sample and no spectrum.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from inscan.models.pool import training_pool
from inscan.profiles.samples import battery_particles, cells, siemens_star

__all__ = ["SpectrumPhantom", "random_phantom", "spectrum_phantom"]

SampleName = Literal["cells", "siemens star", "battery particles"]
Lines = tuple[tuple[float, float], ...]  # energy (keV) and relative height

_SAMPLES = {"cells": cells, "siemens star": siemens_star, "battery particles": battery_particles}
_BIN = 12  # fine pixels of a sample to a pixel of the cube, on each axis
_SIDE = 64
# The support first, then the materials. Line energies: X-ray data booklet, LBNL (2009).
_LINES: Mapping[str, tuple[Lines, ...]] = {
    "cells": (
        ((0.52, 1.0),),
        ((1.74, 1.0), (1.84, 0.2)),
        ((3.69, 1.0), (4.01, 0.15)),
        ((6.40, 1.0), (7.06, 0.14), (0.70, 0.4)),
        ((8.05, 0.8), (0.93, 0.5)),
    ),
    "siemens star": (
        ((0.52, 1.0),),
        ((1.74, 1.0), (1.84, 0.1)),
        ((5.41, 1.0), (5.95, 0.13), (0.57, 0.3)),
        ((7.48, 1.0), (8.26, 0.14), (0.85, 0.4)),
    ),
    # Neighbours in the periodic table: the weak line of one lies under the strong one of the next.
    "battery particles": (
        ((0.28, 1.0),),
        ((5.90, 1.0), (6.49, 0.14), (0.64, 0.3)),
        ((6.40, 1.0), (7.06, 0.14), (0.70, 0.3)),
        ((6.93, 1.0), (7.65, 0.14), (0.78, 0.3)),
        ((7.48, 1.0), (8.26, 0.14), (0.85, 0.3)),
        ((8.05, 1.0), (8.90, 0.14), (0.93, 0.3)),
    ),
}
_RANGE = (0.3, 9.0)  # keV


@dataclass(frozen=True)
class SpectrumPhantom:
    """What a detector would count on average.

    Attributes
    ----------
    mean : ndarray of float64, shape (row, col, bin)
        Expected counts.
    windows : ndarray of bool, shape (material, bin)
        Bins around each material's main line.
    spectra : ndarray of float64, shape (material, bin)
    maps : ndarray of float64, shape (material, row, col)
        Amount of each material; `mean` is their product with `spectra`.
    """

    mean: NDArray[np.float64]
    windows: NDArray[np.bool_]
    spectra: NDArray[np.float64]
    maps: NDArray[np.float64]

    @property
    def mass(self) -> NDArray[np.float64]:
        """A contrast image in which heavier materials are brighter, shape (row, col)."""
        weight = 1 + np.arange(len(self.maps), dtype=np.float64)
        return np.einsum("p,prc->rc", weight / weight.max(), self.maps)


def spectrum_phantom(
    sample: SampleName, seed: int, *, counts: float, bins: int = 96
) -> SpectrumPhantom:
    """64 x 64 pixels of a sample that no network has seen.

    Parameters
    ----------
    sample : {"cells", "siemens star", "battery particles"}
    seed : int
    counts : float
        Mean counts of a pixel over all bins.
    bins : int
        Between 0.3 and 9 keV.

    Returns
    -------
    SpectrumPhantom
    """
    lines = _LINES[sample]
    maps = np.asarray(_SAMPLES[sample](seed).maps[: len(lines) - 1], dtype=np.float64)
    maps = maps[:, : _SIDE * _BIN, : _SIDE * _BIN]
    maps = maps.reshape(len(maps), _SIDE, _BIN, _SIDE, _BIN).mean(axis=(2, 4))
    return _phantom(maps / maps.max(axis=(1, 2), keepdims=True), lines, counts, bins)


def random_phantom(rng: np.random.Generator) -> SpectrumPhantom:
    """Texture of the training families with spectra drawn at random, for calibration.

    Parameters
    ----------
    rng : numpy.random.Generator

    Returns
    -------
    SpectrumPhantom
        48 or 64 pixels on a side, 48 to 200 bins, 4 to 400 counts per pixel.
    """
    side = int(rng.choice([48, 64]))
    maps = training_pool(1, side=side, seed=int(rng.integers(2**31)))[0].astype(np.float64)
    maps /= np.maximum(maps.max(axis=(1, 2), keepdims=True), 1e-6)
    lines = tuple(
        tuple(
            (float(energy), float(height))
            for energy, height in zip(
                rng.uniform(0.4, 8.6, number),
                [1.0, *rng.uniform(0.05, 0.5, number - 1)],
                strict=True,
            )
        )
        for number in rng.integers(1, 4, len(maps) + 1)
    )
    counts = float(np.exp(rng.uniform(np.log(4), np.log(400))))
    return _phantom(maps, lines, counts, int(rng.integers(48, 201)))


def _phantom(
    maps: NDArray[np.float64], lines: Sequence[Lines], counts: float, bins: int
) -> SpectrumPhantom:
    """The materials lie on a support that they partly replace; all have a continuum."""
    support = 1 - 0.7 * np.clip(maps.sum(axis=0), 0, 1)
    maps = np.concatenate([support[None], maps])
    energy = np.linspace(*_RANGE, bins)
    width = 0.04 + 0.006 * energy  # standard deviation of the detector's response, keV
    spectra = np.stack(
        [
            0.12 * sum(h * np.exp(-0.5 * ((energy - at) / width) ** 2) for at, h in several)
            + 0.012 * np.exp(-energy / 2.5)
            for several in lines
        ]
    )
    mean = np.einsum("prc,pe->rce", maps, spectra)
    scale = counts / mean.sum(axis=2).mean()
    windows = np.stack(
        [
            np.abs(energy - several[0][0]) < 2 * (0.04 + 0.006 * several[0][0]) + 0.05
            for several in lines
        ]
    )
    return SpectrumPhantom(mean * scale, windows, spectra * scale, maps)
