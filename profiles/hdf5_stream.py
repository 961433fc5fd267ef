"""A growing HDF5 file that other processes read while it is written, and its documents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import h5py
import numpy as np
from event_model import compose_stream_resource

__all__ = ["Column", "HDF5Stream"]

_CHUNK_BYTES = 1 << 18


@dataclass(frozen=True)
class Column:
    """One dataset: ``path`` in the file, shape and dtype of one row."""

    path: str
    shape: tuple[int, ...]
    dtype: str


class HDF5Stream:
    """One file in SWMR mode with datasets that grow together, one row per event or pixel.

    Parameters
    ----------
    path
        New file; its folder is made.
    columns
        Data key -> dataset.

    Raises
    ------
    OSError
        The file cannot be created.
    """

    def __init__(self, path: Path, columns: Mapping[str, Column]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._columns = dict(columns)
        self._bundles: dict[str, Any] | None = None
        self._announced = 0
        self._file = h5py.File(path, "x", libver="latest")
        self._chunks, self._datasets = {}, {}
        for key, column in columns.items():
            row_bytes = np.dtype(column.dtype).itemsize * int(np.prod(column.shape, initial=1))
            chunk = (max(1, min(4096, _CHUNK_BYTES // row_bytes)), *column.shape)
            self._chunks[key] = chunk
            self._datasets[key] = self._file.create_dataset(
                column.path,
                shape=(0, *column.shape),
                maxshape=(None, *column.shape),
                chunks=chunk,
                dtype=column.dtype,
            )
        self._file.swmr_mode = True

    def write(self, start: int, rows: Mapping[str, np.ndarray]) -> None:
        """Write rows from index ``start`` on, and flush: readers see them on return.

        Parameters
        ----------
        start
            Index of the first row; rows that are there already are written over.
        rows
            Data key -> (n, *shape), for every data key.
        """
        for key, dataset in self._datasets.items():
            values = rows[key]
            stop = start + len(values)
            if len(dataset) < stop:
                dataset.resize(stop, axis=0)
            dataset[start:stop] = values
            dataset.flush()

    def documents(self, stop: int) -> Iterator[tuple[str, Any]]:
        """Yield what is new up to row ``stop``: resources the first time, then one datum per key."""
        if self._bundles is None:
            self._bundles = {}
            for key, column in self._columns.items():
                bundle = compose_stream_resource(
                    mimetype="application/x-hdf5",
                    uri=f"file://localhost{quote(str(self.path.resolve()))}",
                    data_key=key,
                    parameters={
                        "dataset": column.path,
                        "chunk_shape": list(self._chunks[key]),
                        "swmr": True,
                    },
                )
                self._bundles[key] = bundle
                yield "stream_resource", bundle.stream_resource_doc
        if stop > self._announced:
            indices: Any = {"start": self._announced, "stop": stop}
            self._announced = stop
            for bundle in self._bundles.values():
                yield "stream_datum", bundle.compose_stream_datum(indices=indices)

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        self._file.close()
