"""A result as float TIFF: pages in the order of elements or energies, which a text file beside it names."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tifffile

from inscan.service.export_result import ExportArray, ExportResult

__all__ = ["write_tiffs"]

_UM = {"um": 1.0, "nm": 1e-3, "mm": 1e3, "m": 1e6, "cm": 1e4}
_UM_PER_CM = 1e4


def write_tiffs(
    folder: Path, stem: str, result: ExportResult, step: Callable[[], None]
) -> list[Path]:
    """Write one TIFF for each array of maps or frames, float32, missing pixels NaN.

    Parameters
    ----------
    folder : Path
        Where the files go; it exists.
    stem : str
        Beginning of their names.
    result : ExportResult
    step : callable
        Called after each part.

    Returns
    -------
    list of Path
        ``STEM_values.tif`` and so on, and ``STEM_energies.txt`` (eV) or ``STEM_elements.txt``: a line for each page.
    """
    written = []
    for name, array in result.arrays.items():
        if array.dims[-2:] != ("y", "x") or array.dtype.kind not in "fb":
            continue
        path = folder / f"{stem}_{name}.tif"
        _write(path, array, result, step)
        written.append(path)
    values = result.arrays["values"]
    if result.maps:
        pages = folder / f"{stem}_elements.txt"
        pages.write_text("".join(f"{label}\n" for label in values.labels), encoding="utf-8")
    else:
        pages = folder / f"{stem}_energies.txt"
        energies = result.axis("energy", values.shape[0]).values
        pages.write_text("".join(f"{energy:.4f}\n" for energy in energies), encoding="utf-8")
    return [*written, pages]


def _write(path: Path, array: ExportArray, result: ExportResult, step: Callable[[], None]) -> None:
    def pages() -> Iterator[np.ndarray]:
        for _, part in array.parts():
            yield np.asarray(part, dtype=np.float32)
            step()

    shape = array.shape if len(array.shape) == 3 else (1, *array.shape)
    # Several 4 GiB and more are BigTIFF, which tifffile decides by itself only for arrays in memory.
    big = 4 * int(np.prod(shape, dtype=np.int64)) > 2**31
    size = _pixels_per_cm(result, array.shape[-2:])
    tifffile.imwrite(
        path,
        pages(),
        shape=shape,
        dtype=np.float32,
        bigtiff=big,
        photometric="minisblack",
        software="inscan",
        description=f"{result.start.get('recipe', '')} {array.name} [{array.units}] of run {result.start['raw_uid']}",
        metadata=None,
        resolution=size,
        resolutionunit="CENTIMETER" if size else None,
    )


def _pixels_per_cm(result: ExportResult, shape: tuple[int, ...]) -> tuple[float, float] | None:
    """Pixels per cm along x and y, None where the axes have no length."""
    found = []
    for dim, length in (("x", shape[1]), ("y", shape[0])):
        axis = result.axis(dim, length)
        if axis.units not in _UM or length < 2:
            return None
        step = abs(float(axis.values[1] - axis.values[0])) * _UM[axis.units]
        if not step:
            return None
        found.append(_UM_PER_CM / step)
    return found[0], found[1]
