"""NeXus data groups: what the file itself says of the axes of its signals."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from inscan.service.archive_files import Archive
from inscan.service.archive_layouts import bin_axis, texts
from inscan.service.archive_types import ArchiveDataset, Reading

__all__ = ["electronvolts", "nexus_data", "point_spectra"]

_ENERGIES = ("energy", "energies", "e", "photon_energy", "energy_ev", "energy_kev")
_BINS = ("bin", "bins", "mca", "spectrum_energy", "spectra_energy")
_CHANNELS = ("channel", "channels", "detector", "detectors", "element_index")
_ELEMENTS = ("element", "elements", "line", "lines")
_ROWS_COLS = (("y", "x"), ("row", "col"), ("x", "y"))
_FLUORESCENCE = ("NXfluo", "NXxrf")


def nexus_data(archive: Archive) -> list[Reading]:
    """Signals of NXdata groups with two axes at least besides spectra, as far as their axes are named."""
    readings: list[Reading] = []
    for path, signal, axes in _signals(archive):
        if len(signal.shape) < 2 or len(signal.shape) != len(axes) or not signal.numeric:
            continue
        if max(signal.shape) < 2:
            continue
        readings.append(_reading(archive, path, signal, axes))
    return readings


def point_spectra(archive: Archive) -> list[tuple[str, int, str]]:
    """Signals of NXdata groups with one axis: path, length and the name of the axis."""
    return [
        (signal.name, signal.shape[0], axes[0])
        for _, signal, axes in _signals(archive)
        if len(signal.shape) == 1 and len(axes) == 1
    ]


def electronvolts(values: np.ndarray, units: str) -> tuple[np.ndarray, str]:
    """Energies in eV, and a word where their units had to be told from their size."""
    known = units.strip().lower()
    if known in ("ev", "kev"):
        return values * (1e3 if known == "kev" else 1.0), ""
    small = float(np.nanmax(np.abs(values))) < 100
    return values * (1e3 if small else 1.0), (
        f"energies have no units; by their size ({values.min():g} ... {values.max():g}) they are taken for "
        f"{'keV' if small else 'eV'}"
    )


def _signals(archive: Archive) -> list[tuple[str, ArchiveDataset, list[str]]]:
    found = []
    for path, attrs in archive.groups.items():
        if attrs.get("NX_class") != "NXdata":
            continue
        prefix = f"{path}/" if path else ""
        name = attrs.get("signal")
        if isinstance(name, str):
            signal = archive.datasets.get(prefix + name) or archive.datasets.get(
                f"{path.rpartition('/')[0]}/{name}".lstrip("/")
            )
            axes = attrs.get("axes")
        else:
            # The older way: the signal's own attributes say it.
            marked = [
                d
                for n, d in archive.datasets.items()
                if n.rpartition("/")[0] == path and str(d.attrs.get("signal")) == "1"
            ]
            signal = marked[0] if len(marked) == 1 else None
            axes = None if signal is None else signal.attrs.get("axes")
        if signal is not None:
            found.append((path, signal, _axes(axes, len(signal.shape))))
    return found


def _axes(axes: Any, count: int) -> list[str]:
    if isinstance(axes, str):
        axes = axes.strip("[] ").replace(":", ",").split(",")
    named = [str(name).strip() for name in axes] if axes is not None else []
    return named + ["."] * (count - len(named)) if len(named) <= count else named


def _reading(archive: Archive, path: str, signal: ArchiveDataset, axes: list[str]) -> Reading:
    dims, spectral = _dims(archive, path, signal, axes)
    said = [f"{signal.name}: axes named {', '.join(axes)} by NXdata, taken as {', '.join(dims)}"]
    energies_ev = bins = None
    elements: tuple[str, ...] = ()
    prefix = f"{path}/" if path else ""
    for name, dim, length in zip(axes, dims, signal.shape, strict=True):
        axis = archive.datasets.get(prefix + name)
        if dim == "element":
            elements = tuple(texts(axis))
        if dim not in ("bin", "energy", "?") or axis is None or axis.shape != (length,):
            continue
        if name.lower() in (*_ENERGIES, *_BINS) and axis.numeric:
            values = np.asarray(axis.read(()), dtype=np.float64)
            energies_ev, guess = electronvolts(values, str(axis.attrs.get("units") or ""))
            said += [f"energies taken from {axis.name}", *([guess] if guess else [])]
            bins = bin_axis(energies_ev)
    return Reading(
        signal.name,
        spectral,
        (signal,),
        tuple(dims),
        tuple(said),
        0 if "bin" in dims or "energy" in dims else 1,
        elements=elements,
        energies_ev=energies_ev,
        bin_ev=bins,
        positions=_positions(archive, prefix, signal, axes, dims),
    )


def _dims(
    archive: Archive, path: str, signal: ArchiveDataset, axes: list[str]
) -> tuple[list[str], str]:
    """What each axis is, `?` where its name does not say it."""
    dims = []
    for name in (name.lower() for name in axes):
        if name in _BINS:
            dims.append("bin")
        elif name in _ENERGIES:
            dims.append(_bins_or_energies(archive, path, signal, axes))
        elif name in _ELEMENTS:
            dims.append("element")
        elif name in _CHANNELS:
            dims.append("channel")
        else:
            dims.append("place")
    places = [index for index, dim in enumerate(dims) if dim == "place"]
    if len(places) == 2:
        dims[places[0]], dims[places[1]] = "row", "col"
    else:
        dims = ["?" if dim == "place" else dim for dim in dims]
    what = "spectra" if "bin" in dims else "a stack over energy" if "energy" in dims else "maps"
    return dims, what


def _bins_or_energies(archive: Archive, path: str, signal: ArchiveDataset, axes: list[str]) -> str:
    """Whether an axis of energies is that of a detector's spectrum or of the beam, where the file says so."""
    kind = str(signal.attrs.get("interpretation") or "")
    parent = path.rpartition("/")[0]
    definition = texts(archive.datasets.get(f"{parent}/definition".lstrip("/")))
    if kind == "spectrum" or set(definition) & set(_FLUORESCENCE):
        return "bin"
    if kind == "image":
        return "energy"
    return "?"


def _positions(
    archive: Archive, prefix: str, signal: ArchiveDataset, axes: list[str], dims: list[str]
) -> Mapping[str, tuple[np.ndarray, str]]:
    """Centres of the pixels along rows and columns, where axes of the right length, or maps of positions, say them."""
    found: dict[str, tuple[np.ndarray, str]] = {}
    if "row" not in dims or "col" not in dims:
        return found
    shape = tuple(signal.shape[dims.index(dim)] for dim in ("row", "col"))
    for dim, across in (("row", 1), ("col", 0)):
        axis = archive.datasets.get(prefix + axes[dims.index(dim)])
        if axis is None or not axis.numeric:
            continue
        units = str(axis.attrs.get("units") or "")
        if axis.shape == (shape[1 - across],):
            found[dim] = (np.asarray(axis.read(()), dtype=np.float64), units)
    return found
