"""Layouts of HDF5 files that people have: MAPS, PyXRF, GDA's Xspress3. What each axis is follows from the layout."""

import re
from collections.abc import Sequence

import numpy as np

from inscan.service.archive_files import Archive, natural
from inscan.service.archive_types import ArchiveDataset, Aside, Reading

__all__ = ["bin_axis", "hdf5_layouts", "texts"]

_MAPS_TABLES = {
    # Group -> (dataset, names, rank, what): of MAPS, and of XRF-Maps since its version 9.
    "MAPS/XRF_roi": ("MAPS/XRF_roi", "MAPS/channel_names", 2, "sums over windows"),
    "MAPS/XRF_roi_plus": ("MAPS/XRF_roi_plus", "MAPS/channel_names", 3, "sums over windows"),
    "MAPS/XRF_fits": ("MAPS/XRF_fits", "MAPS/channel_names", 3, "fitted peaks"),
}
_ANALYZED = re.compile(r"MAPS/XRF_Analyzed/(\w+)/Counts_Per_Sec")
_PYXRF_DETECTOR = re.compile(r"xrfmap/(det\d+)/counts")
_RAW_DETECTOR = re.compile(r"MAPS_RAW/data_[a-z]")
_MONITORS = "counts of monitors are there; name one with --i0 {path}[NAME]: {names}"


def hdf5_layouts(archive: Archive) -> list[Reading]:
    """What of a file follows a known layout, by which every axis is known."""
    return [*_maps_raw(archive), *_maps(archive), *_pyxrf(archive), *_xspress3(archive)]


def texts(dataset: ArchiveDataset | None) -> list[str]:
    """A list of names out of a dataset of text."""
    if dataset is None or dataset.dtype.kind not in "SUO" or dataset.size > 10_000:
        return []
    return [str(text).strip() for text in np.ravel(dataset.read(())).tolist()]


def bin_axis(energies_ev: np.ndarray) -> tuple[float, float] | None:
    """Centre of the first bin and width of a bin, None where the bins are not of one width."""
    if energies_ev.size < 2 or not np.isfinite(energies_ev).all():
        return None
    steps = np.diff(energies_ev)
    step = float(np.median(steps))
    if step <= 0 or float(np.abs(steps - step).max()) > 0.05 * step:
        return None
    return float(energies_ev[0]), float((energies_ev[-1] - energies_ev[0]) / (energies_ev.size - 1))


def _maps_raw(archive: Archive) -> list[Reading]:
    found = [
        archive.datasets[name]
        for name in sorted(archive.datasets, key=natural)
        if _RAW_DETECTOR.fullmatch(name)
    ]
    if not found or found[0].shape.__len__() != 3 or len({one.shape for one in found}) != 1:
        return []
    live = archive.datasets.get("MAPS_RAW/livetime")
    said = [
        f"raw MAPS file: MAPS_RAW/data_a ... are spectra (bin, row, col) of {len(found)} detector elements"
    ]
    aside = None
    if live is not None and live.shape == (len(found), *found[0].shape[1:]):
        aside = Aside(live, ("channel", "row", "col"))
        said.append("live times taken from MAPS_RAW/livetime (element, row, col)")
    return [
        Reading(
            "MAPS_RAW/data_*",
            "spectra of each detector element",
            tuple(found),
            ("channel", "bin", "row", "col"),
            tuple(said),
            live_time=aside,
        )
    ]


def _maps(archive: Archive) -> list[Reading]:
    data, readings = archive.datasets, []
    positions = _maps_positions(archive)
    monitors = _monitors(archive, "MAPS/scalers", "MAPS/scaler_names")
    monitors += _monitors(archive, "MAPS/Scalers/Values", "MAPS/Scalers/Names")
    for name in ("MAPS/mca_arr", "MAPS/Spectra/mca_arr"):
        spectra = data.get(name)
        if spectra is None or len(spectra.shape) != 3:
            continue
        said = [f"MAPS file: {name} are spectra (bin, row, col), detector elements added up"]
        energies = data.get("MAPS/energy") or data.get("MAPS/Spectra/Energy")
        axis = None
        if energies is not None and energies.shape == spectra.shape[:1]:
            axis = bin_axis(1e3 * np.asarray(energies.read(()), dtype=np.float64))
            said.append(f"energies of the bins taken from {energies.name} (keV)")
        dims = ("bin", "row", "col")
        readings.append(
            Reading(
                name,
                "spectra",
                (spectra,),
                dims,
                (*said, *monitors),
                1,
                bin_ev=axis,
                positions=positions,
            )
        )
    tables = dict(_MAPS_TABLES)
    for name in data:
        match = _ANALYZED.fullmatch(name)
        if match is not None:
            names = name.replace("Counts_Per_Sec", "Channel_Names")
            rank = 2 if match[1] == "ROI" else 3
            tables[name] = (name, names, rank, f"{match[1]} (counts per second)")
    for name, (dataset, names, rank, what) in tables.items():
        table, labels = data.get(dataset), texts(data.get(names))
        if table is None or len(table.shape) != 3 or len(labels) != table.shape[0]:
            continue
        said = (
            f"MAPS file: {dataset} are maps (element, row, col), elements named by {names}",
            *monitors,
        )
        readings.append(
            Reading(
                name,
                f"maps of elements, {what}",
                (table,),
                ("element", "row", "col"),
                said,
                rank,
                elements=tuple(labels),
                positions=positions,
            )
        )
    return readings


def _maps_positions(archive: Archive) -> dict[str, tuple[np.ndarray, str]]:
    found = {}
    for dim, names in (
        ("row", ("MAPS/y_axis", "MAPS/Scan/y_axis")),
        ("col", ("MAPS/x_axis", "MAPS/Scan/x_axis")),
    ):
        for name in names:
            axis = archive.datasets.get(name)
            if axis is not None and len(axis.shape) == 1 and axis.numeric:
                found[dim] = (
                    np.asarray(axis.read(()), np.float64),
                    str(axis.attrs.get("units") or ""),
                )
                break
    return found


def _monitors(archive: Archive, values: str, names: str) -> list[str]:
    table, labels = archive.datasets.get(values), texts(archive.datasets.get(names))
    if table is None or not labels:
        return []
    shown = ", ".join(labels[:8]) + (", ..." if len(labels) > 8 else "")
    return [_MONITORS.format(path=values, names=shown)]


def _pyxrf(archive: Archive) -> list[Reading]:
    data, readings = archive.datasets, []
    monitors = _monitors(archive, "xrfmap/scalers/val", "xrfmap/scalers/name")
    positions = _pyxrf_positions(archive)
    detectors = [
        data[name] for name in sorted(data, key=natural) if _PYXRF_DETECTOR.fullmatch(name)
    ]
    if detectors and len({one.shape for one in detectors}) == 1 and len(detectors[0].shape) == 3:
        readings.append(
            Reading(
                "xrfmap/det[0-9]*/counts",
                "spectra of each detector element",
                tuple(detectors),
                ("channel", "row", "col", "bin"),
                (
                    f"PyXRF file: xrfmap/det1 ... are spectra (row, col, bin) of {len(detectors)} elements",
                    *monitors,
                ),
                positions=positions,
            )
        )
    total = data.get("xrfmap/detsum/counts")
    if total is not None and len(total.shape) == 3:
        readings.append(
            Reading(
                total.name,
                "spectra, detector elements added up",
                (total,),
                ("row", "col", "bin"),
                ("PyXRF file: xrfmap/detsum/counts are spectra (row, col, bin)", *monitors),
                1,
                positions=positions,
            )
        )
    for group in ("detsum", *(one.name.split("/")[1] for one in detectors)):
        table = data.get(f"xrfmap/{group}/xrf_fit")
        labels = texts(data.get(f"xrfmap/{group}/xrf_fit_name"))
        if table is not None and len(table.shape) == 3 and table.shape[0] == len(labels):
            readings.append(
                Reading(
                    table.name,
                    f"maps of elements, fitted ({group})",
                    (table,),
                    ("element", "row", "col"),
                    (f"PyXRF file: {table.name} are maps (element, row, col)", *monitors),
                    2 if group == "detsum" else 3,
                    elements=tuple(labels),
                    positions=positions,
                )
            )
    return readings


def _pyxrf_positions(archive: Archive) -> dict[str, tuple[np.ndarray, str]]:
    table = archive.datasets.get("xrfmap/positions/pos")
    names = texts(archive.datasets.get("xrfmap/positions/name"))
    if table is None or len(table.shape) != 3 or len(names) != table.shape[0]:
        return {}
    values = np.asarray(table.read(()), dtype=np.float64)
    found = {}
    for dim, name, axis in (("row", "y_pos", 1), ("col", "x_pos", 0)):
        if name in names:
            found[dim] = (values[names.index(name)].mean(axis=axis), "")
    return found


def _xspress3(archive: Archive) -> list[Reading]:
    """GDA's Xspress3: the sum over elements beside the spectra of each shows which axis the elements are."""
    readings = []
    for group in archive.groups:
        spectra, total = (archive.datasets.get(f"{group}/{n}") for n in ("MCAs", "AllElementSum"))
        if spectra is None or total is None or len(spectra.shape) != 4:
            continue
        if (*spectra.shape[:2], spectra.shape[3]) != total.shape:
            continue
        said = (
            f"Xspress3 of GDA: {spectra.name} {spectra.shape} has one axis more than {total.name} "
            f"{total.shape}: (row, col, channel, bin)",
        )
        dims = ("row", "col", "channel", "bin")
        what = "spectra of each detector element"
        readings.append(Reading(spectra.name, what, (spectra,), dims, said))
    return _once(readings)


def _once(readings: Sequence[Reading]) -> list[Reading]:
    """Leave out what is there again under another path: GDA writes everything twice."""
    kept: list[Reading] = []
    for one in readings:
        twin = any(
            one.shape == other.shape
            and np.array_equal(one.data[0].read((slice(1),)), other.data[0].read((slice(1),)))
            for other in kept
        )
        if not twin:
            kept.append(one)
    return kept
