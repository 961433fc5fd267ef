"""Specs of older resource documents, as the handlers of area-detector-handlers know them.

Formats that are a file per frame (TIFF, SPE, CBF, HDF5) are read by the handler class itself, once the files that it
is about to open (its own ``get_file_list``) are confined and their headers fit the descriptor.

Formats that are slices of one HDF5 file are not: of those handlers only the layout is taken (`HDF5_LAYOUTS`; tests
compare with the classes), because they

- open with HDF5's lock and without SWMR (all but two), which stops a detector that wants to append;
- keep the file open, and do not see what is added to it (all);
- read the whole file for one spectrum (``XSP3``) or for one event (``XSP3_FLY``) without looking at its size;
- follow links out of the file wherever they lead (all);
- cannot read a second datum (``AD_HDF5_SWMR_TS`` refreshes what it never opened).

Handlers of other packages are not called: nothing says what they open or how much they read. Their layouts
are described in a profile's ``datum_files``.
"""

from __future__ import annotations

import importlib
import math
import os
import re
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from inscan.callbacks.file_access import (
    MOST_BYTES,
    FileRefused,
    NotReadable,
    Roots,
    check_numbers,
    check_size,
    open_file,
    open_hdf5,
    regular_file,
)
from inscan.callbacks.profile_sections import DatumFile

__all__ = ["FRAME_FILES", "HDF5_LAYOUTS", "known_specs", "read_frame_files"]

_AREA_DETECTOR = DatumFile(dataset="entry/data/data", index_from="point_number")
_XSPRESS = "entry/instrument/detector/data"
_WHOLE = DatumFile(dataset=_XSPRESS)

HDF5_LAYOUTS: Mapping[str, DatumFile] = {
    "AD_HDF5": _AREA_DETECTOR,
    "AD_HDF5_SWMR": _AREA_DETECTOR,
    "TPX_HDF5": DatumFile(dataset=_XSPRESS, index_from="point_number"),
    "XSP3": DatumFile(dataset=_XSPRESS, index_from="frame", channel_from="channel"),
    "XSP3_FLY": _WHOLE,
    "XPS3_FLY": _WHOLE,
    "DEXELA_FLY_V1": _WHOLE,
    "MERLIN_FLY": _WHOLE,
    "MERLIN_FLY_STREAM_V1": _WHOLE,
    # Seconds and nanoseconds are two datasets, which the handler adds up.
    "AD_HDF5_TS": DatumFile(
        dataset="entry/instrument/NDAttributes/NDArrayEpicsTSSec",
        nanoseconds="entry/instrument/NDAttributes/NDArrayEpicsTSnSec",
        index_from="point_number",
    ),
    "AD_HDF5_SWMR_TS": DatumFile(
        dataset="entry/instrument/NDAttributes/NDArrayEpicsTSSec",
        nanoseconds="entry/instrument/NDAttributes/NDArrayEpicsTSnSec",
        index_from="point_number",
    ),
}
"""Spec -> where the handler of area-detector-handlers finds its array."""

FRAME_FILES = ("AD_TIFF", "AD_SPE", "AD_CBF", "AD_HDF5_SINGLE")
"""Specs that are read by the handler class itself."""

_KEYWORDS = {"template", "filename", "frame_per_point", "initial_number"}
_TEMPLATE = re.compile(r"(?:[^%]|%s|%0?\d?\d?(?:\.\d\d?)?d)*")
_MOST_FRAMES = 10_000
_SPE_HEADER = 4100
_SPE_TYPES = ("f4", "i4", "i2", "u2")


def known_specs() -> tuple[str, ...]:
    """Return the specs that are read without a word in the profile."""
    return (*HDF5_LAYOUTS, *FRAME_FILES, "NPY_SEQ")


def handler_class(spec: str) -> Any:
    """Return the handler class that area-detector-handlers registers for a spec.

    Raises
    ------
    FileRefused
        The package is not there, or does not know the spec.
    """
    for group in ("databroker.handlers", "area_detector_handlers.handlers"):
        for entry in entry_points(group=group, name=spec):
            if entry.value.startswith("area_detector_handlers."):
                return entry.load()
    raise FileRefused(f"area-detector-handlers has no handler for {spec}")


def read_frame_files(
    resource: Mapping[str, Any],
    folder: Path,
    datum_kwargs: Mapping[str, Any],
    shape: tuple[int, ...],
    roots: Roots,
) -> np.ndarray:
    """Read an event whose frames are a file each, through its handler.

    Parameters
    ----------
    resource
        Resource document, its spec one of `FRAME_FILES`.
    folder
        Confined folder that the resource names.
    datum_kwargs
        Of the datum: ``point_number``.
    shape
        Declared shape.
    roots
        Where files may be.

    Raises
    ------
    NotReadable
        A file is missing or incomplete.
    FileRefused
        Outside the data roots, of another shape than declared, or its reader is not installed.
    """
    spec, given = resource["spec"], dict(resource.get("resource_kwargs") or {})
    template, name = given.get("template"), given.get("filename")
    if not isinstance(template, str) or not isinstance(name, str) or len(name) > 255:
        raise FileRefused(f"{spec}: expected resource_kwargs template and filename")
    if len(template) > 255 or not _TEMPLATE.fullmatch(template):
        raise FileRefused(f"{spec}: template {template[:80]!r} asks for more than %s and %d")
    for key in ("frame_per_point", "initial_number"):
        if not isinstance(given.get(key, 1), int) or not 0 <= given.get(key, 1) <= 1 << 31:
            raise FileRefused(f"{spec}: {key} is {given[key]!r:.40}")
    frames = given.get("frame_per_point", 1)
    point = int(datum_kwargs["point_number"])
    if point < 0 or not 1 <= frames <= _MOST_FRAMES:
        raise FileRefused(f"{spec}: point {point} of {frames} frames")
    if spec == "AD_CBF":
        _need_fabio()
    known = {key: given[key] for key in _KEYWORDS & set(given)}
    try:
        handler = handler_class(spec)(str(folder), **known)
        named = handler.get_file_list([{"point_number": point}])
    except TypeError as error:
        raise FileRefused(f"{spec}: resource_kwargs {sorted(given)}: {error}") from error
    files = [roots.confine(Path(path)) for path in named]
    frame = shape[1:] if shape and shape[0] == frames and len(files) == frames else shape
    if len(files) * math.prod(frame) != math.prod(shape):
        raise FileRefused(
            f"{spec}: {len(files)} files of one frame do not make the declared {shape}"
        )
    opened = _identities(files)
    for path in files:
        _check_header(spec, path, frame, roots)
    try:
        found = np.asarray(handler(point_number=point))
    except (FileRefused, NotReadable):
        raise
    # A file that is still written makes a decoder raise anything.
    except Exception as error:  # noqa: BLE001
        raise NotReadable(f"{spec} {files[0]}: cannot be read (yet): {error}") from error
    # The handler opens them by name, which may have been made to lead elsewhere meanwhile.
    if _identities(files) != opened:
        raise NotReadable(f"{spec} {files[0]}: was replaced while it was read")
    if found.size != math.prod(shape):
        raise FileRefused(
            f"{spec} {files[0]}: holds {found.shape}, the descriptor declares {shape}"
        )
    return found.reshape(shape)


def _identities(files: list[Path]) -> list[tuple[int, int]]:
    """Which files the names lead to now; refused where that is not where they led when they were confined."""
    found = []
    for path in files:
        with open_file(path) as file:
            status = os.fstat(file.fileno())
            found.append((status.st_dev, status.st_ino))
    return found


def _check_header(spec: str, path: Path, frame: tuple[int, ...], roots: Roots) -> None:
    """Compare what a file says of itself with the declared shape of one frame."""
    size = regular_file(path)
    if size == 0:
        raise NotReadable(f"{path} is empty")
    if spec == "AD_HDF5_SINGLE":
        with open_hdf5(path) as file:
            dataset = roots.dataset(file, "/entry/data/data", path)
            found, dtype = dataset.shape, dataset.dtype
    elif spec == "AD_TIFF":
        try:
            with open_file(path) as opened, tifffile.TiffFile(opened) as file:
                if file.is_ome or file.is_ndtiff or file.is_mmstack:
                    raise FileRefused(f"{path} is a kind of TIFF that may lead to other files")
                found, dtype = file.series[0].shape, np.dtype(file.series[0].dtype)
        except (FileRefused, NotReadable):
            raise
        except Exception as error:  # noqa: BLE001
            raise NotReadable(f"{path} is not TIFF (yet): {error}") from error
    elif spec == "AD_SPE":
        found, dtype = _spe_header(path, size)
    else:
        # A CBF file packs a pixel into a byte at best: what it unpacks to is bounded by its size.
        if size * 4 > MOST_BYTES:
            raise FileRefused(f"{path} is too large: {size} bytes")
        return
    check_numbers(dtype, str(path))
    check_size(found, dtype, str(path))
    if math.prod(found) != math.prod(frame):
        raise FileRefused(f"{path} holds {tuple(found)}, the descriptor declares frames of {frame}")


def _spe_header(path: Path, size: int) -> tuple[tuple[int, ...], np.dtype]:
    if size < _SPE_HEADER:
        raise NotReadable(f"{path} is shorter than an SPE header")
    with open_file(path) as file:
        head = file.read(_SPE_HEADER)
    x, y = (int(np.frombuffer(head, "<u2", 1, at)[0]) for at in (42, 656))
    frames = int(np.frombuffer(head, "<u4", 1, 1446)[0])
    kind = int(np.frombuffer(head, "<i2", 1, 108)[0])
    if not 0 <= kind < len(_SPE_TYPES):
        raise FileRefused(f"{path}: SPE values of unknown type {kind}")
    dtype = np.dtype(_SPE_TYPES[kind])
    # The handler reads to the end of the file, whatever the header says.
    if size - _SPE_HEADER > check_size((frames, y, x), dtype, str(path)):
        raise FileRefused(f"{path} is larger than its header says")
    return (frames, y, x), dtype


def _need_fabio() -> None:
    try:
        importlib.import_module("fabio")
    except ImportError as error:
        raise FileRefused("AD_CBF needs the package fabio, which is not installed") from error
