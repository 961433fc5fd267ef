"""What n2n is measured on: maps of families that no network was trained on, with known truth."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skimage.color import rgb2hed
from skimage.data import immunohistochemistry

from inscan.profiles.samples import XRFSample, battery_particles, cells, siemens_star

__all__ = ["FAMILY_CASES", "N2N_CASES", "Measured", "N2NCase", "expected_counts", "measure"]

_BIN = 5  # fine-grid pixels of the sample to a pixel of the scan, on each axis
_TISSUE_SIDE = 160
_TISSUE_BIN = 2
_SAMPLES: Mapping[str, Callable[[int], XRFSample]] = {
    "cells": cells,
    "siemens": siemens_star,
    "particles": battery_particles,
}


@dataclass(frozen=True)
class N2NCase:
    """A sample, the detector's channels, the brightest pixel's counts.

    Attributes
    ----------
    sample : {"cells", "siemens", "particles", "tissue"}
    channels : int
    peak : float
        Mean counts of each element's brightest pixel, summed over channels.
    element : str or None
        This line alone instead of all that the sample has.
    """

    sample: str
    channels: int
    peak: float
    element: str | None = None

    @property
    def name(self) -> str:
        alone = f" {self.element} alone" if self.element else ""
        return f"{self.sample}{alone}, {self.channels} channels, peak {self.peak:g}"


N2N_CASES = (
    N2NCase("cells", 16, 10.0),
    N2NCase("siemens", 16, 10.0),
    N2NCase("siemens", 16, 10.0, "Ni_K"),
    N2NCase("cells", 2, 50.0),
    N2NCase("particles", 4, 10.0),
    N2NCase("tissue", 4, 10.0),
)
"""Tissue is a photographed micrograph: as close to a measured truth as one without noise can be."""

FAMILY_CASES = (N2N_CASES[0], N2N_CASES[1], N2N_CASES[4], N2N_CASES[5])
"""One case for each held-out family, all elements at a peak of 10 counts."""


@dataclass(frozen=True)
class Measured:
    """One simulated measurement.

    Attributes
    ----------
    counts : ndarray of float32, shape (channel, element, row, col)
    mean : ndarray of float64, shape (element, row, col)
        Expected counts of the channel sum.
    elements : tuple of str
    spots : ndarray of bool, shape of `mean`
        Pixels inside the half maximum of a known inclusion, in the element that it is made of.
    """

    counts: NDArray[np.float32]
    mean: NDArray[np.float64]
    elements: tuple[str, ...]
    spots: NDArray[np.bool_]


def measure(case: N2NCase, seed: int) -> Measured:
    """Draw a sample, channel gains (0.6 to 1.4) and Poisson counts.

    Parameters
    ----------
    case : N2NCase
    seed : int
        The same seed gives the same sample, gains and counts.

    Raises
    ------
    ValueError
        For a sample or an element that does not exist.
    """
    elements, mean, spots = _drawn(case, seed)
    rng = np.random.default_rng([seed, 77])
    gains = rng.uniform(0.6, 1.4, case.channels)
    gains /= gains.sum()
    counts = rng.poisson(gains[:, None, None, None] * mean)
    return Measured(counts.astype(np.float32), mean, elements, spots)


def expected_counts(case: N2NCase, seed: int) -> NDArray[np.float64]:
    """Mean counts of the channel sum, shape (element, row, col); arguments as for `measure`."""
    return _drawn(case, seed)[1]


_Drawn = tuple[tuple[str, ...], NDArray[np.float64], NDArray[np.bool_]]


def _drawn(case: N2NCase, seed: int) -> _Drawn:
    elements, coarse, spots = _tissue(seed) if case.sample == "tissue" else _built_in(case, seed)
    if case.element is not None:
        if case.element not in elements:
            raise ValueError(
                f"{case.sample} has no {case.element!r}: expected one of {', '.join(elements)}"
            )
        at = elements.index(case.element)
        elements, coarse, spots = (case.element,), coarse[at : at + 1], spots[at : at + 1]
    return elements, case.peak * coarse / coarse.max(axis=(1, 2), keepdims=True), spots


def _built_in(case: N2NCase, seed: int) -> _Drawn:
    if case.sample not in _SAMPLES:
        raise ValueError(f"no sample {case.sample!r}: expected {', '.join(_SAMPLES)} or tissue")
    sample = _SAMPLES[case.sample](seed)
    coarse = _binned(np.asarray(sample.maps, dtype=np.float64), _BIN)
    return sample.elements, coarse, _spots(sample, coarse.shape)


def _binned(fine: NDArray[np.float64], by: int) -> NDArray[np.float64]:
    rows, cols = (side // by for side in fine.shape[1:])
    cut = fine[:, : rows * by, : cols * by]
    return cut.reshape(len(fine), rows, by, cols, by).mean(axis=(2, 4))


def _spots(sample: XRFSample, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    step = _BIN * sample.pixel_size
    slow, fast = (
        low + (np.arange(side) + 0.5) * step
        for (low, _), side in zip(sample.field, shape[1:], strict=True)
    )
    inside = np.zeros(shape, dtype=bool)
    for spot in sample.inclusions:
        far = np.hypot(slow[:, None] - spot.slow, fast[None, :] - spot.fast)
        inside[sample.elements.index(spot.element)] |= far <= spot.fwhm / 2
    return inside


def _tissue(seed: int) -> _Drawn:
    """Colon tissue, two stains separated (Ruifrok and Johnston 2001); a crop, turned, per seed.

    The picture ships with scikit-image (Center for Microscopy and Molecular Imaging, no known
    copyright restrictions).
    """
    rng = np.random.default_rng([seed, 4])
    stains = np.moveaxis(rgb2hed(immunohistochemistry())[..., [0, 2]], -1, 0)
    side = _TISSUE_SIDE * _TISSUE_BIN
    row, col = (int(rng.integers(size - side + 1)) for size in stains.shape[1:])
    crop = np.maximum(stains[:, row : row + side, col : col + side], 0)
    crop = np.rot90(crop, int(rng.integers(4)), (1, 2))[:, :, :: int(rng.choice((-1, 1)))]
    coarse = _binned(np.ascontiguousarray(crop, dtype=np.float64), _TISSUE_BIN)
    # A few saturated pixels must not set the scale of everything else.
    coarse = np.minimum(coarse, np.quantile(coarse, 0.995, axis=(1, 2), keepdims=True))
    return ("haematoxylin", "DAB"), coarse, np.zeros(coarse.shape, dtype=bool)
