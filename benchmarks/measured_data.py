"""Read the measured files that `measured.py` scores; their README says where each comes from."""

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from inscan.service.archive_choice import Naming, choose, values_of
from inscan.service.archive_files import open_archive

__all__ = ["APS_LINES", "PIXL_LINES", "SpectrumFile", "Windows", "read_aps", "read_eds", "read_fly"]
__all__ += ["read_pixl", "read_repeats", "read_vanadium", "window_counts"]

Windows = dict[str, tuple[int, int]]

# First and last channel of each window. The scale follows from the lines themselves: 9.6 eV a
# channel at APS 2-ID-E, 7.86 eV and an offset of -18.5 eV on PIXL.
APS_LINES: Windows = {
    "Si": (168, 196),
    "Ar": (292, 326),
    "Ca": (368, 402),
    "La": (470, 502),
    "Fe": (648, 684),
    "Cu": (820, 858),
}
PIXL_LINES: Windows = {
    "Si": (212, 236),
    "S": (285, 307),
    "K": (412, 434),
    "Ca": (459, 483),
    "Ti": (563, 587),
    "Cr": (678, 702),
    "Mn": (740, 764),
    "Fe": (801, 829),
}


@dataclass(frozen=True)
class SpectrumFile:
    """A spectrum image.

    Attributes
    ----------
    counts : ndarray of integer, shape (row, col, bin)
    kev : ndarray of float64, shape (bin,)
    """

    counts: NDArray[np.integer]
    kev: NDArray[np.float64]


def window_counts(spectra: NDArray, windows: Windows) -> NDArray[np.float32]:
    """Sum (..., channel) over windows: shape (..., line)."""
    return np.stack(
        [spectra[..., low : high + 1].sum(axis=-1) for low, high in windows.values()], axis=-1
    ).astype(np.float32)


def read_aps(path: Path) -> NDArray[np.float32]:
    """Line counts of an APS 2-ID-E step map, (detector element, line, row, col)."""
    with np.load(path) as stored:
        return window_counts(stored["spectra"], APS_LINES).transpose(2, 3, 0, 1)


def read_fly(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Line counts of the fly map, (element, line, row, col), and live time over its mean."""
    with open_archive(path) as archive:
        reading = choose(archive, Naming())
        spectra, _ = values_of(reading, None)
        assert reading.live_time is not None
        live = np.asarray(reading.live_time.data.read(()), dtype=np.float32)
    counts = window_counts(spectra.transpose(0, 2, 3, 1), APS_LINES).transpose(0, 3, 1, 2)
    return counts, live / live.mean()


def read_pixl(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Line counts of PIXL's two detectors, (detector, line, row, col), and live time over its mean."""
    with np.load(path) as stored:
        spectra, live = stored["spectra"], stored["live_s"]
    if spectra.ndim == 3:
        spectra, live = spectra[None], live[None]
    counts = window_counts(spectra, PIXL_LINES).transpose(2, 3, 0, 1)
    return counts, (live / live.mean()).transpose(2, 0, 1).astype(np.float32)


def read_eds(path: Path, most_bins: int = 1024) -> SpectrumFile:
    """A sparse EDS cube; neighbouring bins are added until there are at most so many."""
    with open_archive(path) as archive:
        reading = choose(archive, Naming())
        counts, _ = values_of(reading, None)
    assert reading.bin_ev is not None
    first, step = (value / 1e3 for value in reading.bin_ev)
    shape = counts.shape
    width = -(-shape[2] // most_bins)
    if width > 1:
        counts = np.add.reduceat(counts, np.arange(0, shape[2], width), axis=2, dtype=np.uint32)
    kev = first + step * (width * (np.arange(counts.shape[2]) + 0.5) - 0.5)
    # Below the first line there is only electronic noise (the peak at zero energy).
    return SpectrumFile(counts[..., kev > 0.12], kev[kev > 0.12])


def read_repeats(path: Path) -> NDArray[np.float64]:
    """Counts of repeated spectra, (repeat, channel)."""
    with open_archive(path) as archive:
        return values_of(choose(archive, Naming(dims=("col", "bin"))), None)[0]


def read_vanadium(
    path: Path,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The V K edge: energies (energy,), counts and I0-normalised counts (scan, energy, element)."""
    counts, normal, energy = [], [], np.zeros(0)
    with h5py.File(path) as file:
        for name in file:
            group = file[f"{name}/{name}"]
            assert isinstance(group, h5py.Group)
            raw = group["rawdata"]
            assert isinstance(raw, h5py.Dataset)
            table = np.asarray(raw)
            labels = [text.strip(' "') for text in str(raw.attrs["array_labels"])[1:-1].split(",")]
            of = {label: table[:, index] for index, label in enumerate(labels)}
            energy = of["energy"]
            several = [(of[f"v_ka_mca{k}"], of[f"dtfactor_mca{k}"]) for k in range(1, 5)]
            light = of["i0"] / of["i0"].mean()
            counts.append(np.stack([y for y, _ in several], axis=1))
            normal.append(np.stack([y * factor / light for y, factor in several], axis=1))
    return energy, np.stack(counts), np.stack(normal)
