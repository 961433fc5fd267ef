"""A result as fluorescence programs store maps: the groups of XRF-Maps (`/MAPS`) and of PyXRF (`/xrfmap`).

Names and axes of `/MAPS` as XRF-Maps (github.com/AdvancedPhotonSource/XRF-Maps) writes them, the old ones and those
since file version 9, which point to the same data. Those of `/xrfmap` as PyXRF (github.com/NSLS2/PyXRF) reads them.
"""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from inscan.service.export_result import ExportResult, NotExportable

__all__ = ["write_maps", "write_pyxrf"]

_MAPS_VERSION = 10.0


def write_maps(path: Path, result: ExportResult, step: Callable[[], None]) -> None:
    """Write maps as XRF-Maps does.

    Parameters
    ----------
    path : Path
        Written under this name directly: give a temporary one.
    result : ExportResult
    step : callable
        Called after each part.

    Raises
    ------
    NotExportable
        For an energy stack.
    OSError
        When it cannot be written.
    """
    names, shape = _names(result, "maps"), result.arrays["values"].shape
    text = h5py.string_dtype()
    with h5py.File(path, "w") as file:
        maps = file.create_group("MAPS")
        maps["version"] = np.float32(_MAPS_VERSION)
        roi = maps.create_group("XRF_Analyzed/ROI")
        # Not counts but counts per second of the detector's sum: said where XRF-Maps says it.
        values = _planes(roi, "Counts_Per_Sec", result, "values", step)
        values.attrs["units"] = result.arrays["values"].units
        roi.create_dataset("Channel_Names", data=names, dtype=text)
        roi.create_dataset("Channel_Units", data=[values.attrs["units"]] * len(names), dtype=text)
        maps["XRF_roi"], maps["channel_names"] = values, roi["Channel_Names"]
        maps["channel_units"] = roi["Channel_Units"]
        for name in ("sigma", "raw"):
            if name in result.arrays:
                _planes(maps, f"inscan_{name}", result, name, step)
        scan = maps.create_group("Scan")
        for dim, length in (("y", shape[1]), ("x", shape[2])):
            axis = result.axis(dim, length)
            scan[f"{dim}_axis"] = axis.values
            scan[f"{dim}_axis"].attrs["units"] = axis.units
            maps[f"{dim}_axis"] = scan[f"{dim}_axis"]
        if (spectra := result.arrays.get("spectra")) is not None:
            cube = np.moveaxis(spectra.whole(), -1, 0)
            maps.create_dataset("Spectra/mca_arr", data=cube)
            maps["mca_arr"] = maps["Spectra/mca_arr"]
            # keV there, as in XRF-Maps.
            maps["energy"] = result.axis("bin", spectra.shape[-1]).values / 1e3
            step()


def write_pyxrf(path: Path, result: ExportResult, step: Callable[[], None]) -> None:
    """Write maps as PyXRF reads them; parameters and errors as `write_maps`."""
    names, shape = _names(result, "pyxrf"), result.arrays["values"].shape
    with h5py.File(path, "w") as file:
        file.attrs["creator"] = "inscan"
        group = file.create_group("xrfmap")
        total = group.create_group("detsum")
        values = _planes(total, "xrf_roi", result, "values", step)
        values.attrs["comments"] = f"{result.arrays['values'].units}, denoised by inscan"
        # PyXRF decodes bytes of fixed length.
        total["xrf_roi_name"] = np.array(names, dtype="S20")
        for name in ("sigma", "raw"):
            if name in result.arrays:
                _planes(total, f"xrf_roi_{name}", result, name, step)
        if (spectra := result.arrays.get("spectra")) is not None:
            total["counts"] = spectra.whole()
            step()
        slow, fast = result.axis("y", shape[1]), result.axis("x", shape[2])
        y, x = np.meshgrid(slow.values, fast.values, indexing="ij")
        positions = group.create_group("positions")
        positions["pos"] = np.stack([x, y])
        positions["name"] = np.array(["x_pos", "y_pos"], dtype="S10")


def _names(result: ExportResult, form: str) -> list[str]:
    if not result.maps:
        raise NotExportable(
            f"{form} files hold maps of elements, and this is an energy stack: take nexus or tiff"
        )
    return list(result.arrays["values"].labels)


def _planes(
    group: h5py.Group, target: str, result: ExportResult, name: str, step: Callable[[], None]
) -> h5py.Dataset:
    array = result.arrays[name]
    dataset = group.create_dataset(target, array.shape, "<f4")
    for index, part in array.parts():
        dataset[index] = part
        step()
    return dataset
