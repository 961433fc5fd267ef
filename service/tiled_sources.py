"""How Tiled is told of an array: registered in the HDF5 file where it lies, or made ready to be uploaded."""

import io
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from inscan.service.derived import Axis
from inscan.service.result_file import sync_path
from inscan.service.result_view import StoredArray

_BLOCK_BYTES = 32 << 20
"""One request reads or writes about so much."""
_HDF5 = "application/x-hdf5"
_ZARR = "application/x-zarr"


def registered(path: Path, array: StoredArray) -> dict[str, Any]:
    """Data source of an array that Tiled reads from the result file itself."""
    return {
        "structure_family": "array",
        "structure": structure(array),
        "mimetype": _HDF5,
        "parameters": {"dataset": array.dataset},
        "properties": {},
        "assets": [
            {
                "data_uri": f"file://localhost{path.as_posix()}",
                "is_directory": False,
                "parameter": "data_uris",
                "num": 0,
            }
        ],
        "management": "external",
    }


def uploaded(array: StoredArray) -> dict[str, Any]:
    """Data source of an array that Tiled keeps in its own storage, to be filled block by block."""
    return {
        "structure_family": "array",
        "structure": structure(array),
        "mimetype": _ZARR,
        "parameters": {},
        "properties": {},
        "assets": [],
        "management": "writable",
    }


def structure(array: StoredArray) -> dict[str, Any]:
    """Tiled's words for dtype, shape, blocks and axes; blocks are whole rows of the first axis."""
    dtype = np.dtype(array.dtype)
    rows = array.shape[0] if array.shape else 1
    per_row = max(1, array.nbytes // max(1, rows))
    step = max(1, min(rows, _BLOCK_BYTES // per_row))
    full, rest = divmod(rows, step)
    first = [step] * full + ([rest] if rest else [])
    return {
        "data_type": {
            "endianness": {"<": "little", ">": "big"}.get(dtype.str[0], "not_applicable"),
            "kind": dtype.kind,
            "itemsize": dtype.itemsize,
            "dt_units": None,
        },
        "shape": list(array.shape),
        "chunks": [first, *([length] for length in array.shape[1:])] if array.shape else [],
        "dims": list(array.dims),
        "resizable": False,
    }


def axis_array(axis: Axis) -> StoredArray:
    """An axis as an array of the file that `write_axes` makes."""
    return StoredArray(axis.dim, axis.dim, axis.values.shape, "<f8", (axis.dim,), axis.units, None)


def axes_path(path: Path) -> Path:
    """The file of axes beside a result file, which itself must not change any more."""
    return path.with_suffix(".axes.h5")


def write_axes(path: Path, axes: Sequence[Axis]) -> Path:
    """Write the axes of a result beside it, in one step; returns where."""
    target = axes_path(path)
    # HDF5 itself never meets the disk here: where that is full it takes the process with it.
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for axis in axes:
            dataset = file.create_dataset(axis.dim, data=np.asarray(axis.values, dtype="<f8"))
            dataset.attrs["units"] = axis.units
            dataset.attrs["motor"] = axis.motor
    with _to_be(target) as temporary:
        temporary.write_bytes(content.getbuffer())
    return target


def brought(path: Path, folder: Path) -> Path:
    """Copy a file into `folder`, in one step; returns where it is now."""
    target = folder / path.name
    with _to_be(target) as temporary:
        shutil.copyfile(path, temporary)
    return target


def blocks(array: StoredArray, where: Path | np.ndarray) -> Iterator[tuple[tuple[int, ...], bytes]]:
    """Number and bytes of each block of an array, read one by one."""
    rest = (0,) * (len(array.shape) - 1)
    first = 0
    for number, rows in enumerate(structure(array)["chunks"][0]):
        yield (number, *rest), _rows(array, where, first, first + rows).tobytes()
        first += rows


def _rows(array: StoredArray, where: Path | np.ndarray, first: int, stop: int) -> np.ndarray:
    if isinstance(where, np.ndarray):
        return np.asarray(where[first:stop])
    with h5py.File(where, "r") as file:
        dataset = file[array.dataset]
        assert isinstance(dataset, h5py.Dataset)
        return np.asarray(dataset[first:stop])


@contextmanager
def _to_be(target: Path) -> Iterator[Path]:
    """A file to write, which becomes `target` in one step, on the disk; nothing is left of it where that fails."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync_path(temporary)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
