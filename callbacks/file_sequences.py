"""Detector files that come one by one: TIFF, JPEG, NPY or HDF5, an event being one or several of them.

Which file holds what is known by the consolidators of bluesky-tiled-plugins, so that it is read here as a Tiled
server reads it. The reading is ours: Tiled's adapters take a file as it is, however large it says it is;
here the header must fit the descriptor before any pixel is taken.
"""

from __future__ import annotations

import copy
import math
import os
import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile
from PIL import Image

from inscan.callbacks.file_access import (
    FileRefused,
    NotReadable,
    Roots,
    check_numbers,
    check_size,
    open_file,
    open_hdf5,
)

__all__ = ["MULTIPART", "SINGLE", "FileSequence", "pages", "read_array", "rows_of_npy"]

MULTIPART = (
    "multipart/related;type=image/tiff",
    "multipart/related;type=image/jpeg",
    "multipart/related;type=application/x-npy",
)
"""Types of which each event is one or several files."""

SINGLE = ("image/tiff", "application/x-npy")
"""Types of which one file holds all events: pages of a TIFF, rows of an NPY file."""

_MOST_FILES = 10_000
_WIDEST = 32
# Kinds of TIFF whose series may lie in other files: those that the file names, or an index beside it.
_ALONE: Mapping[str, Any] = {"is_ome": False, "is_ndtiff": False, "is_mmstack": False}


class FileSequence:
    """Files of one resource, named by a template.

    Parameters
    ----------
    doc
        A stream_resource document of a type in `MULTIPART`, or HDF5 with a ``template``.
    roots
        Where files may be.

    Raises
    ------
    FileRefused
        Its template is not one, or leads outside the data roots.
    """

    def __init__(self, doc: Mapping[str, Any], roots: Roots) -> None:
        self._doc = doc
        self._roots = roots
        parameters = doc["parameters"]
        template = parameters.get("template", "%s_%d.npy")
        if not isinstance(template, str) or not isinstance(parameters.get("filename", ""), str):
            raise FileRefused(f"{doc['data_key']}: template {template!r:.80} is no text")
        self._shape: tuple[int, ...] | None = None
        self._files: Any = None
        self._prepare((1,))
        self._roots.uri(self._files.get_datum_uri(0))

    def _prepare(self, shape: tuple[int, ...]) -> None:
        """Let the consolidator of the type say how many files an event has and how they are named."""
        # Tiled is slow to import and needed for file sequences only.
        from bluesky_tiled_plugins.writing.consolidators import (
            MultipartRelatedConsolidator,
            consolidator_factory,
        )

        doc: Any = copy.deepcopy(dict(self._doc))
        # It warns of the method concat, which is deprecated; what that means for files is this.
        if doc["parameters"].pop("join_method", None) == "concat" and shape:
            frames = int((doc["parameters"].get("chunk_shape") or (1,))[0])
            doc["parameters"].setdefault("files_per_datum", max(1, shape[0] // max(frames, 1)))
        descriptor: Any = {"data_keys": {doc["data_key"]: {"shape": list(shape), "dtype": "array"}}}
        try:
            files = consolidator_factory(doc, descriptor)
        except (TypeError, ValueError, LookupError, NotImplementedError, AttributeError) as error:
            raise FileRefused(f"{doc['data_key']}: its files cannot be named: {error}") from error
        if not isinstance(files, MultipartRelatedConsolidator):
            raise FileRefused(f"{doc['data_key']}: {doc['mimetype']} is no sequence of files")
        _check_template(files.template)
        if (
            not isinstance(files.files_per_datum, int)
            or not 0 < files.files_per_datum <= _MOST_FILES
        ):
            raise FileRefused(f"{doc['data_key']}: {files.files_per_datum} files per event")
        self._files, self._shape = files, shape

    def read(
        self, shape: tuple[int, ...], start: int, stop: int
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield events one by one, as `hdf5_rows.read_blocks` does.

        Raises
        ------
        NotReadable
            A file is not there yet.
        FileRefused
            A file is not of the declared shape, or outside the data roots.
        """
        if shape != self._shape:
            self._prepare(shape)
        per_event = self._files.files_per_datum
        part = (shape[0] // per_event, *shape[1:]) if per_event > 1 else shape
        if per_event * math.prod(part) != math.prod(shape):
            raise FileRefused(
                f"{self._doc['data_key']}: {per_event} files per event do not make {shape}"
            )
        for index in range(start, stop):
            first = index * per_event
            found = [self._one(number, part) for number in range(first, first + per_event)]
            yield index, np.concatenate(found).reshape(1, *shape)

    def _one(self, number: int, part: tuple[int, ...]) -> np.ndarray:
        path = self._roots.uri(self._files.get_datum_uri(number))
        kind = self._doc["mimetype"]
        if kind.startswith("application/x-hdf5"):
            array = self._hdf5(path, part)
        else:
            array = read_array(path, kind, part)
        return array.reshape(1, *part)

    def _hdf5(self, path: Path, part: tuple[int, ...]) -> np.ndarray:
        with open_hdf5(path) as file:
            dataset = self._roots.dataset(file, str(self._doc["parameters"].get("dataset")), path)
            _fits(dataset.shape, dataset.dtype, part, path)
            return dataset[()]


def read_array(path: Path, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Read one file that must hold an array of a shape, axes of length 1 aside.

    Parameters
    ----------
    path
        Confined.
    kind
        One of `MULTIPART`.
    shape
        Expected; compared with the file's header before anything else is read.

    Raises
    ------
    NotReadable
        Missing or incomplete.
    FileRefused
        Of another shape, or not numbers.
    """
    reader = _READERS[kind.removeprefix("multipart/related;type=")]
    try:
        with open_file(path) as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise NotReadable(f"{path} is empty")
            return reader(file, path, shape)
    except (FileRefused, NotReadable):
        raise
    # What a file of any content makes a decoder raise, and a part of a file too.
    except Exception as error:  # noqa: BLE001
        raise NotReadable(f"{path} cannot be read (yet): {error}") from error


def pages(path: Path, shape: tuple[int, ...], start: int, stop: int) -> np.ndarray:
    """Read events of one TIFF file, of which each is so many pages as its shape says.

    Returns
    -------
    ndarray
        (n, *shape).

    Raises
    ------
    NotReadable, FileRefused
        As `read_array`.
    """
    try:
        with open_file(path) as opened, tifffile.TiffFile(opened, **_ALONE) as file:
            page = file.pages.first
            per_event = _per_event(page.shape, shape, path)
            check_numbers(np.dtype(page.dtype), str(path))
            check_size(((stop - start), *shape), page.dtype, f"{path}: events")
            if len(file.pages) < stop * per_event:
                raise NotReadable(f"{path} has {len(file.pages)} pages of {stop * per_event}")
            found = []
            for number in range(start * per_event, stop * per_event):
                _fits(file.pages[number].shape, page.dtype, page.shape, path)
                found.append(file.pages[number].asarray())
    except (FileRefused, NotReadable):
        raise
    except Exception as error:  # noqa: BLE001
        raise NotReadable(f"{path} cannot be read (yet): {error}") from error
    return np.stack(found).reshape(stop - start, *shape)


def rows_of_npy(path: Path, shape: tuple[int, ...], start: int, stop: int) -> np.ndarray:
    """Read events of one NPY file; as `pages`, an event being one or several of its rows."""
    try:
        with open_file(path) as file:
            stored = _npy_header(file, path)
            per_event = _per_event(stored.shape[1:], shape, path)
            check_size(((stop - start), *shape), stored.dtype, f"{path}: events")
            if not stored.shape or stored.shape[0] < stop * per_event:
                raise NotReadable(f"{path} holds {stored.shape}, not {stop} events of {shape}")
            rows = _npy_rows(file, path, stored, start * per_event, stop * per_event)
        return rows.reshape(stop - start, *shape)
    except (FileRefused, NotReadable):
        raise
    # What a header of any content makes numpy raise: it is read as Python's tokens.
    except Exception as error:  # noqa: BLE001
        raise NotReadable(f"{path} cannot be read (yet): {error}") from error


def _per_event(row: tuple[int, ...], shape: tuple[int, ...], path: Path) -> int:
    """Pages or rows that make one event."""
    if _plain(row) == _plain(shape):
        return 1
    if shape and _plain(row) == _plain(shape[1:]):
        return shape[0]
    raise FileRefused(f"{path} has rows of {row}, the descriptor declares {shape}")


def _tiff(file: BinaryIO, path: Path, shape: tuple[int, ...]) -> np.ndarray:
    with tifffile.TiffFile(file, **_ALONE) as tiff:
        # Finds a chain of pages that leads back into itself, which is followed for ever otherwise.
        len(tiff.pages)
        series = tiff.series[0]
        _fits(series.shape, series.dtype, shape, path)
        return series.asarray()


def _npy(file: BinaryIO, path: Path, shape: tuple[int, ...]) -> np.ndarray:
    stored = _npy_header(file, path)
    _fits(stored.shape, stored.dtype, shape, path)
    return _npy_rows(file, path, stored, 0, stored.shape[0] if stored.shape else 1)


@dataclass(frozen=True)
class _Stored:
    """What the header of an NPY file says."""

    shape: tuple[int, ...]
    by_columns: bool
    dtype: np.dtype
    offset: int


def _npy_header(file: BinaryIO, path: Path) -> _Stored:
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise FileRefused(f"{path}: NPY version {version}")
    shape, by_columns, dtype = readers[version](file)
    check_numbers(dtype, str(path))
    return _Stored(tuple(int(n) for n in shape), bool(by_columns), dtype, file.tell())


def _npy_rows(file: BinaryIO, path: Path, stored: _Stored, start: int, stop: int) -> np.ndarray:
    """Rows by reading, never by mapping: who cut a mapped file short would end this process."""
    if stored.by_columns:
        whole = _values(file, path, stored, 0, math.prod(stored.shape))
        array = whole.reshape(stored.shape, order="F")
        return np.ascontiguousarray(array[start:stop]) if stored.shape else array
    row = math.prod(stored.shape[1:])
    values = _values(file, path, stored, start * row, (stop - start) * row)
    return values.reshape(stop - start, *stored.shape[1:]) if stored.shape else values[0]


def _values(file: BinaryIO, path: Path, stored: _Stored, first: int, count: int) -> np.ndarray:
    nbytes = check_size((count,), stored.dtype, f"{path}: what is read at once")
    begin = stored.offset + first * stored.dtype.itemsize
    if os.fstat(file.fileno()).st_size < begin + nbytes:
        raise NotReadable(f"{path} is cut short (so far)")
    file.seek(begin)
    values = np.fromfile(file, stored.dtype, count)
    if values.size < count:
        raise NotReadable(f"{path} was cut short while it was read")
    return values


def _jpeg(file: BinaryIO, path: Path, shape: tuple[int, ...]) -> np.ndarray:
    with Image.open(file, formats=["JPEG"]) as image:
        bands = len(image.getbands())
        _fits((image.height, image.width, bands), np.dtype("u1"), shape, path)
        return np.asarray(image)


_READERS: Mapping[str, Callable[[BinaryIO, Path, tuple[int, ...]], np.ndarray]] = {
    "image/tiff": _tiff,
    "image/jpeg": _jpeg,
    "application/x-npy": _npy,
}


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


def _fits(found: tuple[int, ...], dtype: Any, shape: tuple[int, ...], path: Path) -> None:
    check_numbers(np.dtype(dtype), str(path))
    check_size(shape, dtype, str(path))
    if _plain(found) != _plain(shape):
        raise FileRefused(f"{path} holds {tuple(found)}, the descriptor declares {shape}")


def _check_template(template: str) -> None:
    """A template may ask for the number of the file, in at most `_WIDEST` digits, and for nothing else."""
    try:
        fields = [field for field in string.Formatter().parse(template) if field[1] is not None]
    except ValueError as error:
        raise FileRefused(f"template {template[:80]!r}: {error}") from error
    for _, name, spec, conversion in fields:
        plain = (spec or "").lstrip("<+ ").removesuffix("d")
        digits = plain.isascii() and (plain.isdigit() or not plain)
        if name not in ("", "0") or conversion or not digits or int(plain or 0) > _WIDEST:
            raise FileRefused(f"template {template[:80]!r} asks for more than the number of a file")
