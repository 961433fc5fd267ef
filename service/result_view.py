"""What a result file holds, without reading it: shapes and axes of its arrays, and a check of their digest in place."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from inscan.service.digest import BLOCK, Content, digest_contents
from inscan.service.plain_hdf5 import array_in, member
from inscan.service.result_file import DATA, ResultFileError, opened


@dataclass(frozen=True)
class StoredArray:
    """One array of a result file.

    Attributes
    ----------
    name : str
        For example `values`.
    dataset : str
        Its place in the file, for example `entry/data/values`.
    shape : tuple of int
    dtype : str
        As numpy writes it, for example `<f4`.
    dims : tuple of str
        Names of the axes, slow axis first.
    units : str
    labels : tuple of str or None
        Names along the first axis.
    """

    name: str
    dataset: str
    shape: tuple[int, ...]
    dtype: str
    dims: tuple[str, ...]
    units: str
    labels: tuple[str, ...] | None

    @property
    def nbytes(self) -> int:
        """Size of the values in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


def describe(path: Path) -> list[StoredArray]:
    """List the arrays of a result file in the order in which they were written.

    Raises
    ------
    FileNotFoundError, ResultFileError, OSError
        As `inscan.service.result_file.opened`.
    """
    with opened(path) as file:
        return _arrays(file)


def digest_of(path: Path) -> str:
    """Digest of the arrays in a result file, which is read piece by piece.

    Not mapped: a page that the disk cannot give, or that somebody cuts off meanwhile, would end the process.

    Raises
    ------
    FileNotFoundError, ResultFileError, OSError
        As `describe`.
    """
    with opened(path) as file, path.open("rb", buffering=0) as raw:
        return digest_contents(
            {
                array.name: Content(array.dtype, array.shape, array.nbytes, blocks)
                for array in _arrays(file)
                for blocks in (_blocks(raw, file, array),)
            }
        )


def _arrays(file: h5py.File) -> list[StoredArray]:
    group = _group(file)
    return [_describe(name, group) for name in json.loads(str(group.attrs["order"]))]


def _group(file: h5py.File) -> h5py.Group:
    group = member(file, DATA)
    if not isinstance(group, h5py.Group):
        raise KeyError(f"{DATA} is no group")
    return group


def _describe(name: str, group: h5py.Group) -> StoredArray:
    dataset = array_in(group, name)
    labels = dataset.attrs.get("labels")
    return StoredArray(
        name=name,
        dataset=f"{DATA}/{name}",
        shape=tuple(int(length) for length in dataset.shape),
        # h5py stores bool as an enumeration and hands it back as bool.
        dtype=dataset.dtype.str,
        dims=tuple(json.loads(str(dataset.attrs["dims"]))),
        units=str(dataset.attrs["units"]),
        labels=None if labels is None else tuple(json.loads(str(labels))),
    )


def _blocks(raw: io.FileIO, file: h5py.File, array: StoredArray) -> Iterator[memoryview]:
    offset = array_in(file, array.dataset).id.get_offset()
    if offset is None:
        return  # nothing stored: an empty array
    buffer = memoryview(bytearray(BLOCK))
    for start in range(0, array.nbytes, BLOCK):
        size = min(BLOCK, array.nbytes - start)
        raw.seek(offset + start)
        got = 0
        while got < size:
            more = raw.readinto(buffer[got:size])
            if not more:
                raise ResultFileError(f"{raw.name}: {array.name} ends after {start + got} bytes")
            got += more
        yield buffer[:size]
