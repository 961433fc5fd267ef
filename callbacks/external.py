"""Rows of detector files that stream_resource and stream_datum documents announce.

HDF5, and sequences of TIFF, JPEG, NPY or HDF5 files, on this machine and under the folders that the profile or the
service allow: documents come over a network, and must not make the service read any file it can.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import h5py
import numpy as np

from inscan.callbacks.file_access import FileRefused, NotReadable, Roots, check_size, open_hdf5
from inscan.callbacks.file_sequences import MULTIPART, SINGLE, FileSequence, pages, rows_of_npy
from inscan.callbacks.hdf5_rows import read_blocks, row_selection

__all__ = ["DetectorFiles", "FileRefused", "NotReadable", "Rows"]

_HDF5 = ("application/x-hdf5", "application/x-hdf5;type=swmr")
# Some detectors write a new file per row: a long map must not use up the file handles of the process.
_MOST_OPEN = 16


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
    root_map
        Where folders named by documents are mounted here; see `inscan.callbacks.file_access.Roots`.
    one_event_specs
        Specs of older resources whose files hold one event each. Documents that a Tiled server made of such resources
        keep the spec among their parameters, and number the events through all files of a data key.
    """

    def __init__(
        self,
        roots: Iterable[Path],
        root_map: Mapping[str, Path] | None = None,
        one_event_specs: Iterable[str] = (),
    ) -> None:
        self.roots = Roots(roots, root_map)
        self._one_event_specs = frozenset(one_event_specs)
        self._resources: dict[str, Mapping[str, Any]] = {}
        self._paths: dict[str, Path] = {}
        self._sequences: dict[str, FileSequence] = {}
        self._files: dict[Path, h5py.File] = {}
        self._datasets: dict[str, h5py.Dataset] = {}
        self._within: dict[str, Path] = {}
        self._held = 0
        self._fixed: set[str] = set()

    def add(self, doc: Mapping[str, Any]) -> None:
        """Take a stream_resource document; FileRefused when its file may not be read.

        Documents from before event-model 1.20 say ``spec``, ``root``, ``resource_path`` and ``resource_kwargs``.
        """
        if "mimetype" not in doc and isinstance(doc.get("resource_path"), str):
            doc = _of_old_schema(doc)
        wrong = [key for key in ("uid", "data_key", "uri") if not isinstance(doc.get(key), str)]
        if wrong:
            raise FileRefused(f"a resource document without {', '.join(wrong)}")
        mimetype, parameters = doc.get("mimetype"), doc.get("parameters")
        if mimetype not in (*_HDF5, *MULTIPART, *SINGLE):
            raise FileRefused(
                f"{doc['data_key']}: files of type {mimetype!r:.80} are not read, only"
                f" {', '.join((_HDF5[0], *MULTIPART, *SINGLE))}"
            )
        if not isinstance(parameters, Mapping):
            raise FileRefused(f"{doc['data_key']}: the resource has no parameters")
        # What Tiled calls dataset now was path before.
        dataset = parameters.get("dataset") or parameters.get("path")
        if mimetype in _HDF5:
            if not isinstance(dataset, str):
                raise FileRefused(f"{doc['data_key']}: the resource names no parameters.dataset")
            doc = {**doc, "parameters": {**parameters, "dataset": dataset}}
        if mimetype in MULTIPART or (mimetype in _HDF5 and parameters.get("template")):
            self._sequences[doc["uid"]] = FileSequence(doc, self.roots)
        else:
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
        offset = rows.first_seq - rows.start
        if rows.resource in self._sequences:
            blocks = self._sequences[rows.resource].read(shape, rows.start, rows.stop)
        elif doc["mimetype"] in SINGLE:
            blocks = self._single(doc, shape, rows)
        else:
            blocks = self._hdf5(doc, shape, rows)
        for start, block in blocks:
            yield start + offset, block

    def _single(
        self, doc: Mapping[str, Any], shape: tuple[int, ...], rows: Rows
    ) -> Iterator[tuple[int, np.ndarray]]:
        read = pages if doc["mimetype"] == "image/tiff" else rows_of_npy
        path = self._path(doc)
        for start in range(rows.start, rows.stop):
            yield start, read(path, shape, start, start + 1)

    def _hdf5(
        self, doc: Mapping[str, Any], shape: tuple[int, ...], rows: Rows
    ) -> Iterator[tuple[int, np.ndarray]]:
        try:
            dataset = self._dataset(doc)
            start, stop = rows.start, rows.stop
            if doc["parameters"].get("spec") in self._one_event_specs:
                if stop - start != 1:
                    raise FileRefused(f"{doc['uri']} holds one event, not {stop - start}")
                yield start, self._whole(dataset, shape, doc)[None]
                return
            selection = row_selection(dataset, shape, doc["parameters"], doc["data_key"])
            yield from read_blocks(dataset, selection, start, stop)
        except (FileRefused, NotReadable):
            raise
        except OSError as error:
            raise NotReadable(f"{doc['uri']}: {error}") from error
        finally:
            self._drop_unless_swmr(doc)

    def value(
        self, resource: str, index: int | None, channel: int | None, shape: tuple[int, ...]
    ) -> np.ndarray:
        """Read one value.

        Parameters
        ----------
        resource
            Uid of its resource.
        index
            Which row, from 0; None: the whole dataset, however long its first axis is.
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
            if index is None:
                return self._whole(dataset, shape, doc)
            if index < 0 or channel is not None and not 1 <= channel <= (*dataset.shape, 0, 0)[1]:
                raise FileRefused(
                    f"{doc['uri']}: no index {index}, channel {channel} in {dataset.shape}"
                )
            part = {} if channel is None else {"slice": f":,{channel - 1}"}
            selection = row_selection(
                dataset, shape, {**doc["parameters"], **part}, doc["data_key"]
            )
            ((_, block),) = read_blocks(dataset, selection, index, index + 1)
            return block.reshape(shape)
        except (FileRefused, NotReadable):
            raise
        except OSError as error:
            raise NotReadable(f"{doc['uri']}: {error}") from error
        finally:
            self._drop_unless_swmr(doc)

    @staticmethod
    def _whole(dataset: h5py.Dataset, shape: tuple[int, ...], doc: Mapping[str, Any]) -> np.ndarray:
        """Read a file that is one event: a row of a map, which may have been cut short or run on.

        What its length means is for the target of the rows to say.
        """
        if not shape or dataset.shape[1:] != shape[1:] or not dataset.shape:
            raise FileRefused(
                f"{doc['uri']} holds {dataset.shape}, the descriptor declares {shape}"
            )
        if len(dataset) < shape[0] and dataset.file.swmr_mode:
            raise NotReadable(f"{doc['uri']} has {len(dataset)} of {shape[0]} entries")
        check_size(dataset.shape, dataset.dtype, doc["data_key"])
        return dataset[()]

    def grown_length(self, resource: str, shape: tuple[int, ...]) -> int:
        """Return how many rows have been written, 0 where that cannot be known.

        A dataset of fixed size says nothing: its rows may be empty. Of a sequence of files nobody says the last.
        """
        doc = self._resources[resource]
        if doc["mimetype"] not in _HDF5 or resource in self._sequences:
            return 0
        if doc["parameters"].get("spec") in self._one_event_specs:
            return 0
        try:
            dataset = self._dataset(doc)
            per_event = row_selection(dataset, shape, doc["parameters"], doc["data_key"]).per_event
            return len(dataset) // per_event if (dataset.maxshape or (0,))[0] is None else 0
        finally:
            self._drop_unless_swmr(doc)

    def resources(self) -> list[str]:
        """Return the uids of all resources."""
        return list(self._resources)

    def sharing(self, resource: str) -> list[str]:
        """Return the other resources that have rows of the same dataset."""
        where = _dataset_of(self._resources[resource])
        return [
            uid
            for uid, doc in self._resources.items()
            if uid != resource and _dataset_of(doc) == where
        ]

    def close(self) -> None:
        """Close every file."""
        for path in list(self._files):
            self._close(path)

    def hold(self) -> None:
        """Keep files open from now on until `release`, which must follow each `hold`.

        Many values of one file are then read without opening it for each; what is added to a file
        that is not in SWMR mode may go unseen meanwhile.
        """
        self._held += 1

    def release(self) -> None:
        """End what `hold` began: close every file that would not show what is added to it."""
        self._held -= 1
        if not self._held:
            for path in [path for path, file in self._files.items() if not file.swmr_mode]:
                self._close(path)

    def _drop_unless_swmr(self, doc: Mapping[str, Any]) -> None:
        """Close a file that would not show what is added to it, and that its writer may want."""
        if doc["uid"] in self._datasets:
            return
        if self._paths[doc["uid"]] in self._files:
            self._close(self._paths[doc["uid"]])

    def _path(self, doc: Mapping[str, Any]) -> Path:
        # Resolved each time: what was a file may have become a link.
        path = self._paths[doc["uid"]] = self.roots.uri(doc["uri"])
        return path

    def _dataset(self, doc: Mapping[str, Any]) -> h5py.Dataset:
        dataset = self._datasets.get(doc["uid"])
        if dataset is not None and doc["uid"] in self._fixed:
            return dataset
        path = self._path(doc)
        try:
            if dataset is None:
                dataset = self._find(doc, path)
                if dataset.file.swmr_mode or self._held:
                    self._datasets[doc["uid"]], self._within[doc["uid"]] = dataset, path
                    if not dataset.file.swmr_mode:
                        self._fixed.add(doc["uid"])
            else:
                # On a network disk the length of an open file is asked for anew when it is opened.
                path.open("rb").close()
            if dataset.file.swmr_mode:
                # Not dataset.id.refresh(): h5py would go on telling the shape that it remembers.
                dataset.refresh()
        except (FileRefused, NotReadable):
            raise
        except OSError as error:
            raise NotReadable(f"{doc['uri']}: {error}") from error
        return dataset

    def _find(self, doc: Mapping[str, Any], path: Path) -> h5py.Dataset:
        file = self._files.get(path)
        if file is None:
            while len(self._files) >= _MOST_OPEN:
                self._close(next(iter(self._files)))
            file = self._files[path] = open_hdf5(path)
        try:
            dataset = self.roots.dataset(file, doc["parameters"]["dataset"], path)
        except (NotReadable, FileRefused):
            # A writer that is not in SWMR mode may add it later: look again in a fresh handle.
            self._close(path)
            raise
        # Several resources may lead to one dataset. It is open once: to refresh one that is open
        # twice corrupts the memory of this process (HDF5 2.0).
        opened = [self._datasets[uid] for uid, within in self._within.items() if within == path]
        return next((other for other in opened if other == dataset), dataset)

    def _close(self, path: Path) -> None:
        for uid in [uid for uid, within in self._within.items() if within == path]:
            del self._within[uid], self._datasets[uid]
            self._fixed.discard(uid)
        self._files.pop(path).close()


def _dataset_of(doc: Mapping[str, Any]) -> tuple[str, str, str]:
    parameters = doc["parameters"]
    return (
        doc["uri"],
        str(parameters.get("dataset")).strip("/"),
        str(parameters.get("slice") or ""),
    )


def _of_old_schema(doc: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a stream_resource of the present schema; only HDF5 was written in the old one."""
    root = str(doc.get("root") or "")
    path = (
        f"{root.rstrip('/')}/{doc['resource_path'].lstrip('/')}" if root else doc["resource_path"]
    )
    return {
        "uid": doc.get("uid"),
        "data_key": doc.get("data_key"),
        "mimetype": "application/x-hdf5",
        "uri": f"file://localhost{quote(path)}",
        "parameters": {**(doc.get("resource_kwargs") or {}), "spec": doc.get("spec")},
    }
