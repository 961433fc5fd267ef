"""External data of a run in Tiled: references to files where those are reachable, arrays where they are not."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from inscan.callbacks.hdf5_rows import ROWS_BY

__all__ = ["External", "from_stream", "shape_of"]

_HDF5 = "application/x-hdf5"


def from_stream(data_key: Mapping[str, Any]) -> bool:
    """Return whether values came by stream_datum documents, not by ids in events."""
    return str(data_key.get("external") or "").upper().startswith("STREAM")


def shape_of(total: tuple[int, ...], declared: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """Return the shape of one event's data, and how many rows of the array they take.

    Parameters
    ----------
    total
        Of the array in Tiled, all events together.
    declared
        Of one event, in the descriptor.
    """
    if total[1:] == declared:
        return declared, 1
    if declared and total[1:] == declared[1:]:
        return declared, declared[0]
    # Several frames a point, which the descriptor does not tell.
    return total[1:], 1


class External:
    """One data key whose values lie in files.

    Parameters
    ----------
    key
        Data key.
    node
        Tiled's client of its array.
    described
        The data key in the descriptor.
    descriptor
        Uid of the stream's first descriptor.
    as_arrays
        Do not refer to files even where they can be read here.

    Attributes
    ----------
    by_reference : bool
        Whether it is handed out by stream documents. Else its values belong into events.
    count : int
        Events whose data are there.
    shape : tuple of int
        Of one event's data.
    files : list of str
        Addresses of the HDF5 files in their order; empty where it is not plain rows of such files.
    dataset : str
        In them.
    is_here : bool
        This machine has the files.
    described : dict
        The data key as the documents handed out describe it.
    """

    def __init__(
        self,
        key: str,
        node: Any,
        described: Mapping[str, Any],
        descriptor: str,
        *,
        as_arrays: bool,
    ) -> None:
        self.key = key
        self._node = node
        self._descriptor = descriptor
        total = tuple(int(n) for n in node.shape)
        declared = tuple(int(n) for n in described.get("shape") or ())
        self.shape, self._per_event = shape_of(total, declared)
        self.count = total[0] // max(1, self._per_event) if total else 0
        self._source = node.data_sources()[0]
        self.dataset = str(self._source.parameters.get("dataset") or "").strip("/")
        self.files = self._files()
        self.is_here = bool(self.files) and all(_is_here(uri) for uri in self.files)
        # How the rows are dealt out over several files is known only when each holds one event.
        dealt = len(self.files) in (1, self.count)
        self.by_reference = not as_arrays and self.is_here and dealt
        self._rows: np.ndarray | None = None
        self.described = {**described, "shape": list(self.shape)}
        if self.by_reference:
            self.described["external"] = "STREAM:"
        else:
            del self.described["external"]

    @property
    def row_bytes(self) -> int:
        """Bytes of one event's data."""
        return math.prod(self.shape) * self._node.dtype.itemsize

    def resources(self, known: int) -> Iterator[dict[str, Any]]:
        """Yield stream_resource documents, one for each file beyond `known` ones."""
        parameters = dict(self._source.parameters)
        parameters["join_method"] = "concat" if self._per_event > 1 else "stack"
        if self._rows is not None:
            parameters[ROWS_BY] = "time"
        for number in range(known, len(self.files)):
            yield {
                "uid": self._uid(number),
                "data_key": self.key,
                "mimetype": _HDF5,
                "uri": self.files[number],
                "parameters": parameters,
            }

    def datums(self, known: int) -> Iterator[dict[str, Any]]:
        """Yield stream_datum documents of what lies beyond `known` events."""
        if len(self.files) > 1:
            for number in range(known, self.count):
                row = 0 if self._rows is None else int(self._rows[number])
                yield self._datum(number, row, row + 1, number + 1)
            return
        rows = np.arange(self.count) if self._rows is None else self._rows
        ends = [*(np.flatnonzero(np.diff(rows[known:]) != 1) + known + 1), self.count]
        for first, last in zip([known, *ends[:-1]], ends, strict=True):
            yield self._datum(0, int(rows[first]), int(rows[last - 1]) + 1, int(first) + 1)

    def place(self, rows: np.ndarray) -> None:
        """Say which rows of its file (of one event each) belong to which event.

        Parameters
        ----------
        rows
            (count,) int, in the order of the events; of several files, in the file of each.
        """
        self._rows = rows

    @property
    def in_order(self) -> bool:
        """Whether the rows of the array in Tiled are those of the events: nobody else's are between or before them."""
        rows = self._rows
        return rows is None or (
            len(self.files) == 1 and np.array_equal(rows, np.arange(self.count))
        )

    def rows(self, indices: np.ndarray) -> list[np.ndarray | None]:
        """Return data of events by index, read at once where they lie together; None for those that are not there.

        Parameters
        ----------
        indices
            (n,) int, seq_num - 1.
        """
        there = indices[(indices >= 0) & (indices < self.count)]
        if not len(there):
            return [None] * len(indices)
        first, last = int(there.min()), int(there.max()) + 1
        if last - first > 2 * len(indices):
            # Far apart: what lies between them was not asked for and may be large.
            return [self._read(int(i), int(i) + 1)[0] if i in there else None for i in indices]
        block = self._read(first, last)
        return [block[i - first] if 0 <= i < self.count else None for i in indices]

    def _read(self, first: int, last: int) -> np.ndarray:
        per = self._per_event
        block = np.asarray(self._node[first * per : last * per])
        return block.reshape(last - first, *self.shape)

    def _uid(self, number: int) -> str:
        return f"{self._descriptor}-{self.key}-{number}"

    def _datum(self, number: int, start: int, stop: int, first_seq: int) -> dict[str, Any]:
        resource = self._uid(number)
        return {
            "uid": f"{resource}/{start}",
            "stream_resource": resource,
            "descriptor": self._descriptor,
            "indices": {"start": start, "stop": stop},
            "seq_nums": {"start": first_seq, "stop": first_seq + stop - start},
        }

    def _files(self) -> list[str]:
        source = self._source
        if source.mimetype != _HDF5 or source.parameters.get("slice"):
            return []
        assets = sorted(source.assets, key=lambda asset: asset.num or 0)
        return [asset.data_uri for asset in assets if asset.parameter in ("data_uri", "data_uris")]


def _is_here(uri: str) -> bool:
    parts = urlsplit(uri)
    if parts.scheme != "file" or parts.hostname not in (None, "localhost", socket.gethostname()):
        return False
    try:
        return Path(unquote(parts.path)).is_file()
    except (OSError, ValueError):
        return False
