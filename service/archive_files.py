"""What lies in a file: its arrays with shapes and attributes, read only when and as far as they are wanted.

HDF5 and NeXus, npz and npy, TIFF, and tables of text. Nothing is interpreted here: `inscan.service.archive_layouts`
does that.
"""

import csv
import fnmatch
import gzip
import io
import math
import re
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from inscan.service.archive_hdf5 import hdf5_datasets
from inscan.service.archive_types import ArchiveDataset, ArchiveError, Part

MOST_BYTES = 16 << 30
"""Nothing larger is read at once; `--crop` takes a part."""
_LISTED = 40
_TEXT_BYTES = 64 << 20
_MOST_MEMBERS = 10_000
_NPY_HEADER_BYTES = 10_000
# Kinds of TIFF whose series may lie in other files: those that the file names, or an index beside it.
_ALONE: Mapping[str, Any] = {"_multifile": False, "is_ndtiff": False, "is_mmstack": False}

Found = tuple[dict[str, ArchiveDataset], dict[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class Archive:
    """An open file.

    Attributes
    ----------
    path : Path
    kind : str
        `HDF5`, `npz`, `npy`, `TIFF` or `table`.
    datasets : dict of str to ArchiveDataset
    groups : dict of str to mapping
        Attributes of HDF5 groups, by path; `""` is the file.
    """

    path: Path
    kind: str
    datasets: dict[str, ArchiveDataset]
    groups: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def named(self, pattern: str) -> list[ArchiveDataset]:
        """Datasets by path, or by a pattern with `*`; in their natural order.

        Raises
        ------
        ArchiveError
            When there is none; says which there are.
        """
        plain = pattern.strip("/")
        if plain in self.datasets:
            return [self.datasets[plain]]
        found = [name for name in self.datasets if fnmatch.fnmatchcase(name, plain)]
        if not found:
            # The last part of a path will do where it is the only one.
            found = [name for name in self.datasets if name.rsplit("/", 1)[-1] == plain]
            if len(found) != 1:
                raise ArchiveError(f"{self.path}: no dataset {pattern!r}\n{self.listing()}")
        return [self.datasets[name] for name in sorted(found, key=natural)]

    def listing(self) -> str:
        """Every array with its shape and dtype, the largest first where they are too many."""
        names = list(self.datasets)
        if len(names) > _LISTED:
            names = sorted(names, key=lambda name: -self.datasets[name].size)[:_LISTED]
        width = max((len(name) for name in names), default=0)
        lines = [f"  {name:<{width}}  {self.datasets[name].text}" for name in names]
        if len(self.datasets) > len(names):
            lines.append(f"  ... and {len(self.datasets) - len(names)} smaller ones")
        return "\n".join([f"{self.path} ({self.kind}) holds:", *(lines or ["  no array"])])


def natural(text: str) -> list[tuple[int, int, str]]:
    """Sort key by which `scan2` comes before `scan10`."""
    return [
        (0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", text)
    ]


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open a file of any kind that is understood.

    Raises
    ------
    FileNotFoundError
        No such file.
    ArchiveError
        Another kind of file, or a broken one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    kind, reader = _kind(path)
    if kind == "HDF5":
        with hdf5_datasets(path, MOST_BYTES) as (datasets, groups):
            yield Archive(path, kind, datasets, groups)
        return
    with _readable(path, kind):
        datasets, groups = reader(path)
    yield Archive(path, kind, datasets, groups)


@contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    """Whatever a file of any content makes its reader raise says which file it is."""
    try:
        yield
    except ArchiveError:
        raise
    except Exception as error:  # noqa: BLE001 - zipfile, zlib, numpy and tifffile each have many
        raise ArchiveError(f"{path} is not a readable {kind} file: {error}") from error


def _kind(path: Path) -> tuple[str, Callable[[Path], Found]]:
    """Kind of a file by its first bytes, where they say it, else by its name."""
    with path.open("rb") as file:
        head = file.read(8)
    name = path.name.lower()
    if head == b"\x89HDF\r\n\x1a\n":
        return "HDF5", _nothing
    if head[:4] == b"PK\x03\x04" and name.endswith(".npz"):
        return "npz", _npz
    if head[:6] == b"\x93NUMPY":
        return "npy", _npy
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF", _tiff
    if name.endswith((".csv", ".csv.gz", ".txt", ".txt.gz", ".dat")):
        return "table", _table
    raise ArchiveError(
        f"{path} is no kind of file that is understood: HDF5 (.h5, .nxs), .npz, .npy, TIFF, or a table (.csv, .txt, "
        ".gz of them); documents of runs end in .json, .jsonl, .msgpack (or .gz of them)"
    )


def _nothing(path: Path) -> Found:
    raise ArchiveError(f"{path}: HDF5 files are read elsewhere")


def _limited(name: str, shape: Sequence[int], dtype: np.dtype, path: Path) -> None:
    size = math.prod(shape) * dtype.itemsize
    if size > MOST_BYTES:
        raise ArchiveError(
            f"{path}: {name} {tuple(shape)} of {dtype} takes {size} bytes, at most {MOST_BYTES} are read: take a part "
            "with --crop"
        )


def _npz(path: Path) -> Found:
    datasets: dict[str, ArchiveDataset] = {}
    with zipfile.ZipFile(path) as archive:
        members = archive.namelist()
        if len(members) > _MOST_MEMBERS:
            raise ArchiveError(f"{path}: {len(members)} arrays, at most {_MOST_MEMBERS} are listed")
        for member in members:
            with archive.open(member) as file:
                header = _npy_header(file)
            if header is not None:
                name = member.removesuffix(".npy")
                datasets[name] = ArchiveDataset(name, *header, {}, _npz_reader(path, name, header))
    return datasets, {}


def _npz_reader(
    path: Path, name: str, header: tuple[tuple[int, ...], np.dtype]
) -> Callable[[Part], np.ndarray]:
    def read(part: Part) -> np.ndarray:
        _limited(name, *header, path)
        with _readable(path, "npz"), np.load(path, allow_pickle=False) as archive:
            return np.asarray(archive[name])[part]

    return read


def _npy_header(file: Any) -> tuple[tuple[int, ...], np.dtype] | None:
    """Shape and dtype, None for what holds Python objects or no array."""
    try:
        version = np.lib.format.read_magic(file)
        reader, length_format = {
            (1, 0): (np.lib.format.read_array_header_1_0, "<H"),
            (2, 0): (np.lib.format.read_array_header_2_0, "<I"),
        }[version]
        length = file.read(struct.calcsize(length_format))
        # numpy takes as many bytes as the header says it has, gigabytes out of a small compressed file.
        (size,) = struct.unpack(length_format, length)
        if size > _NPY_HEADER_BYTES:
            return None
        shape, _, dtype = reader(io.BytesIO(length + file.read(size)))
    except Exception:  # noqa: BLE001 - no header that numpy reads; it is taken for Python's tokens
        return None
    return None if dtype.hasobject else (tuple(int(n) for n in shape), dtype)


def _npy(path: Path) -> Found:
    with path.open("rb") as file:
        header = _npy_header(file)
    if header is None:
        raise ArchiveError(f"{path}: an .npy file of Python objects, which are never loaded")

    def read(part: Part) -> np.ndarray:
        with _readable(path, "npy"):
            return np.array(np.load(path, mmap_mode="r", allow_pickle=False)[part])

    return {path.stem: ArchiveDataset(path.stem, *header, {}, read)}, {}


def _tiff(path: Path) -> Found:
    import tifffile

    from inscan.profiles.measured import page_names

    try:
        with tifffile.TiffFile(path, **_ALONE) as file:
            # Finds a chain of pages that leads back into itself, which is followed for ever otherwise.
            len(file.pages)
            series = [(tuple(one.shape), one.dtype, str(one.axes)) for one in file.series]
            labels = page_names(file, path)
    except (tifffile.TiffFileError, IndexError, TypeError) as error:
        raise ArchiveError(f"{path} is not a readable TIFF file: {error}") from error
    datasets = {}
    for number, (shape, dtype, axes) in enumerate(series):
        if dtype is None:
            continue
        name = "pages" if len(series) == 1 else f"series{number}"
        attrs = {"axes": axes, "labels": labels if len(series) == 1 else []}
        datasets[name] = ArchiveDataset(
            name, shape, np.dtype(dtype), attrs, _tiff_reader(path, number)
        )
    return datasets, {}


def _tiff_reader(path: Path, number: int) -> Callable[[Part], np.ndarray]:
    def read(part: Part) -> np.ndarray:
        import tifffile

        with _readable(path, "TIFF"), tifffile.TiffFile(path, **_ALONE) as file:
            len(file.pages)
            series = file.series[number]
            _limited("pages", series.shape, np.dtype(series.dtype or "u1"), path)
            return np.asarray(series.asarray())[part]

    return read


def _table(path: Path) -> Found:
    """A table of numbers, its header where it has one, and without a first column of row numbers that has no name."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", newline="") as file:
        text = file.read(_TEXT_BYTES + 1)
    if len(text) > _TEXT_BYTES:
        raise ArchiveError(f"{path}: a table of more than {_TEXT_BYTES} characters is not read")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        raise ArchiveError(f"{path}: an empty table")
    delimiter = "," if "," in lines[0] else None
    first = next(csv.reader([lines[0]])) if delimiter else lines[0].split()
    header = not all(_is_number(cell) for cell in first)
    if header and len(lines) == 1:
        raise ArchiveError(f"{path}: one line of text, no table of numbers")
    table = np.atleast_2d(np.loadtxt(lines[header:], delimiter=delimiter))
    attrs: dict[str, Any] = {}
    if header and first[0].strip() in ("", "Unnamed: 0", "index"):
        table, attrs = table[:, 1:], {"left_out": "the first column, which numbers the rows"}
    return {
        "table": ArchiveDataset("table", table.shape, table.dtype, attrs, lambda part: table[part])
    }, {}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
