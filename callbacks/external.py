"""Rows of detector files that stream_resource and stream_datum documents announce.

Only HDF5, only on this machine, and only under the folders that the profile or the service allow:
documents come over a network, and must not make the service read any file it can.
"""

from __future__ import annotations

import fcntl
import math
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import h5py
import numpy as np

__all__ = ["DetectorFiles", "FileRefused", "NotReadable", "Rows"]

# Large enough to amortise a read, small enough to stay in cache between reading and placing.
_BLOCK_BYTES = 16 << 20
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SWMR_SUPERBLOCK = 3
_MIMETYPES = ("application/x-hdf5", "application/x-hdf5;type=swmr")


class FileRefused(ValueError):
    """A file that must not or cannot ever be read; the message says why."""


class NotReadable(OSError):
    """A file or rows that are not there yet; trying again may help."""


@dataclass(frozen=True)
class Rows:
    """Rows ``start`` to ``stop`` - 1 of one data key, the first of which is event ``first_seq``."""

    resource: str
    descriptor: str
    data_key: str
    start: int
    stop: int
    first_seq: int


class DetectorFiles:
    """The detector files of one run.

    Parameters
    ----------
    roots
        Folders under which files may be read; symbolic links are followed before comparing.
    """

    def __init__(self, roots: Iterable[Path]) -> None:
        self._roots = tuple(Path(root).resolve() for root in roots)
        self._resources: dict[str, Mapping[str, Any]] = {}
        self._files: dict[Path, h5py.File] = {}
        self._datasets: dict[str, h5py.Dataset] = {}

    def add(self, doc: Mapping[str, Any]) -> None:
        """Take a stream_resource document; FileRefused when its file may not be read."""
        wrong = [key for key in ("uid", "data_key", "uri") if not isinstance(doc.get(key), str)]
        if wrong:
            raise FileRefused(f"a resource document without {', '.join(wrong)}")
        if doc.get("mimetype") not in _MIMETYPES:
            raise FileRefused(
                f"{doc.get('data_key')}: files of type {doc.get('mimetype')!r} are not read, only"
                f" {_MIMETYPES[0]}"
            )
        parameters = doc.get("parameters")
        if not isinstance(parameters, Mapping) or not isinstance(parameters.get("dataset"), str):
            raise FileRefused(f"{doc.get('data_key')}: the resource names no parameters.dataset")
        self._path(doc)
        self._resources[doc["uid"]] = doc

    def __contains__(self, resource: str) -> bool:
        return resource in self._resources

    def data_key(self, resource: str) -> str:
        """Return the data key of a resource."""
        return self._resources[resource]["data_key"]

    def rows(self, datum: Mapping[str, Any]) -> Rows:
        """Return what a stream_datum announces; its resource must be known.

        ``seq_nums`` count when there is one per index; documents that were not made by a RunEngine
        leave them empty, then row 0 is event 1.
        """
        start, stop = (int(datum["indices"][end]) for end in ("start", "stop"))
        first, after = (int(datum.get("seq_nums", {}).get(end, 0)) for end in ("start", "stop"))
        if not 0 <= start <= stop:
            raise ValueError(f"indices {start}:{stop} are no range")
        if after - first != stop - start or first < 1:
            first = start + 1
        return Rows(
            datum["stream_resource"],
            datum["descriptor"],
            self.data_key(datum["stream_resource"]),
            start,
            stop,
            first,
        )

    def read(self, rows: Rows, shape: tuple[int, ...]) -> Iterator[tuple[int, np.ndarray]]:
        """Read rows block by block.

        Parameters
        ----------
        rows
            What to read.
        shape
            Declared shape of one row in the descriptor.

        Yields
        ------
        first_seq : int
            Event number of the first row of the block.
        block : ndarray
            (n, *shape), as stored.

        Raises
        ------
        NotReadable
            The file or the rows are not there yet. Blocks yielded before stay valid.
        FileRefused
            Outside the allowed folders, or stored with another shape than declared.
        """
        doc = self._resources[rows.resource]
        try:
            dataset = self._dataset(doc)
            yield from self._blocks(dataset, rows, shape)
        finally:
            self._drop_unless_swmr(doc)

    def _blocks(
        self, dataset: h5py.Dataset, rows: Rows, shape: tuple[int, ...]
    ) -> Iterator[tuple[int, np.ndarray]]:
        per_row = self._per_row(dataset, shape, rows.data_key)
        if not len(dataset) >= rows.stop * per_row:
            raise NotReadable(
                f"{dataset.file.filename}: {dataset.name} has {len(dataset) // per_row} of"
                f" {rows.stop} rows"
            )
        row_bytes = max(1, math.prod(shape) * dataset.dtype.itemsize)
        step = max(1, _BLOCK_BYTES // row_bytes)
        for start in range(rows.start, rows.stop, step):
            stop = min(start + step, rows.stop)
            try:
                block = dataset[start * per_row : stop * per_row]
            except OSError as error:
                raise NotReadable(f"{dataset.file.filename}: {error}") from error
            yield rows.first_seq + start - rows.start, block.reshape(stop - start, *shape)

    def value(
        self, resource: str, index: int | None, channel: int | None, shape: tuple[int, ...]
    ) -> np.ndarray:
        """Read one value.

        Parameters
        ----------
        resource
            Uid of its resource.
        index
            Which row, from 0; None: the whole dataset.
        channel
            Which entry of the second axis, from 1; None: there is no such axis.
        shape
            Declared shape.

        Raises
        ------
        NotReadable, FileRefused
            As `read`.
        """
        doc = self._resources[resource]
        try:
            dataset = self._dataset(doc)
            inner = dataset.shape if index is None else dataset.shape[1:]
            if index is None or channel is not None:
                per_row = 1
                if (inner if channel is None else inner[1:]) != shape:
                    raise FileRefused(
                        f"{doc['uri']} holds {inner}, the descriptor declares {shape}"
                    )
            else:
                per_row = self._per_row(dataset, shape, doc["data_key"])
            if index is None:
                return dataset[()]
            if index < 0 or (channel is not None and not 1 <= channel <= inner[0]):
                raise FileRefused(f"{doc['uri']}: no index {index}, channel {channel} in {inner}")
            if len(dataset) < (index + 1) * per_row:
                raise NotReadable(
                    f"{doc['uri']} has {len(dataset) // per_row} rows, not {index + 1}"
                )
            if channel is not None:
                return dataset[index, channel - 1]
            return dataset[index * per_row : (index + 1) * per_row].reshape(shape)
        except OSError as error:
            raise NotReadable(f"{doc['uri']}: {error}") from error
        finally:
            self._drop_unless_swmr(doc)

    def grown_length(self, resource: str, shape: tuple[int, ...]) -> int:
        """Return how many rows have been written, 0 where that cannot be known.

        A dataset of fixed size says nothing: its rows may be empty.
        """
        doc = self._resources[resource]
        try:
            dataset = self._dataset(doc)
            per_row = self._per_row(dataset, shape, doc["data_key"])
            return len(dataset) // per_row if (dataset.maxshape or (0,))[0] is None else 0
        finally:
            self._drop_unless_swmr(doc)

    def resources(self) -> list[str]:
        """Return the uids of all resources."""
        return list(self._resources)

    def close(self) -> None:
        """Close every file."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._datasets.clear()

    def _drop_unless_swmr(self, doc: Mapping[str, Any]) -> None:
        """Close a file that would not show what is added to it, and that its writer may want."""
        if doc["uid"] in self._datasets:
            return
        file = self._files.pop(self._path(doc), None)
        if file is not None:
            file.close()

    def _path(self, doc: Mapping[str, Any]) -> Path:
        uri = urlsplit(doc["uri"])
        if uri.scheme != "file" or uri.netloc not in ("", "localhost", socket.gethostname()):
            raise FileRefused(f"{doc['uri']}: expected file://localhost/...")
        path = Path(unquote(uri.path)).resolve()
        self._confine(path)
        return path

    def _confine(self, path: Path) -> None:
        if not any(path.is_relative_to(root) for root in self._roots):
            allowed = ", ".join(map(str, self._roots)) or "none is set"
            raise FileRefused(
                f"{path} is outside the data roots ({allowed}); add its folder to data_roots in the"
                f" profile or the service's settings"
            )

    def _dataset(self, doc: Mapping[str, Any]) -> h5py.Dataset:
        dataset = self._datasets.get(doc["uid"])
        if dataset is None:
            dataset = self._find(doc)
            if dataset.file.swmr_mode:
                self._datasets[doc["uid"]] = dataset
        try:
            # Not dataset.id.refresh(): h5py would go on telling the shape that it remembers.
            dataset.refresh()
        except OSError as error:
            raise NotReadable(f"{doc['uri']}: {error}") from error
        return dataset

    def _find(self, doc: Mapping[str, Any]) -> h5py.Dataset:
        path = self._path(doc)
        file = self._files.get(path)
        if file is None:
            file = self._files[path] = _open(path)
        name = doc["parameters"]["dataset"]
        try:
            dataset = file[name]
        except (KeyError, OSError) as error:
            # A writer that is not in SWMR mode may add it later: look again in a fresh handle.
            self._files.pop(path).close()
            raise NotReadable(f"{path}: no dataset {name!r} yet: {error}") from error
        if not isinstance(dataset, h5py.Dataset) or not dataset.shape:
            raise FileRefused(f"{path}: {name!r} is not an array with a row axis")
        # An HDF5 file can point to other files in three ways.
        self._confine(Path(dataset.file.filename).resolve())
        for other, *_ in dataset.external or ():
            self._confine((path.parent / other).resolve())
        if dataset.is_virtual:
            for source in dataset.virtual_sources():
                if source.file_name != ".":
                    self._confine((path.parent / source.file_name).resolve())
        return dataset

    @staticmethod
    def _per_row(dataset: h5py.Dataset, shape: tuple[int, ...], data_key: str) -> int:
        """Rows of the dataset per event: 1 if stacked, shape[0] if concatenated along it."""
        if dataset.shape[1:] == shape:
            return 1
        if shape and dataset.shape[1:] == shape[1:]:
            return shape[0]
        raise FileRefused(
            f"{data_key}: {dataset.file.filename} holds rows of {dataset.shape[1:]}, the descriptor"
            f" declares {shape}"
        )


def _open(path: Path) -> h5py.File:
    """Open for reading without holding a lock that could stop the detector's writer.

    Files that can be read while they are written (superblock 3) carry a mark while a writer has
    them; HDF5 refuses those that are written without SWMR. Older ones have only the writer's lock.
    """
    try:
        with path.open("rb") as raw:
            head = raw.read(9)
            if len(head) < 9 or head[:8] != _SIGNATURE:
                raise NotReadable(f"{path} is not HDF5 (yet)")
            swmr = head[8] >= _SWMR_SUPERBLOCK
            if not swmr:
                # Held for microseconds, and only on a file whose writer has let go of it.
                fcntl.flock(raw, fcntl.LOCK_SH | fcntl.LOCK_NB)
                fcntl.flock(raw, fcntl.LOCK_UN)
        options = {"libver": "latest", "swmr": True} if swmr else {}
        try:
            return h5py.File(path, "r", locking=False, **options)
        except OSError as error:
            # HDF5 wants one locking flag per file and process: the writer lives in this one.
            if "locking flag" not in str(error):
                raise
            return h5py.File(path, "r", **options)
    except NotReadable:
        raise
    except FileNotFoundError as error:
        raise NotReadable(f"{path} is not there yet") from error
    except BlockingIOError as error:
        raise NotReadable(f"{path} is still being written") from error
    except OSError as error:
        raise NotReadable(f"{path}: {error}") from error
