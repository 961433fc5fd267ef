"""External data of a run in Tiled: references to files where those are reachable, arrays where they are not."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

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
        self._shape, self._per_event = shape_of(total, declared)
        self.count = total[0] // max(1, self._per_event) if total else 0
        self._source = node.data_sources()[0]
        self._uris = self._local_files()
        self.by_reference = not as_arrays and bool(self._uris)
        self.described = {**described, "shape": list(self._shape)}
        if self.by_reference:
            self.described["external"] = "STREAM:"
        else:
            del self.described["external"]

    @property
    def row_bytes(self) -> int:
        """Bytes of one event's data."""
        return math.prod(self._shape) * self._node.dtype.itemsize

    def resources(self, known: int) -> Iterator[dict[str, Any]]:
        """Yield stream_resource documents, one for each file beyond `known` ones."""
        parameters = dict(self._source.parameters)
        parameters["join_method"] = "concat" if self._per_event > 1 else "stack"
        for number in range(known, len(self._uris)):
            yield {
                "uid": self._uid(number),
                "data_key": self.key,
                "mimetype": _HDF5,
                "uri": self._uris[number],
                "parameters": parameters,
            }

    def datums(self, known: int) -> Iterator[dict[str, Any]]:
        """Yield stream_datum documents of what lies beyond `known` events."""
        if len(self._uris) == 1:
            yield self._datum(0, known, self.count, known + 1)
            return
        for number in range(known, self.count):
            yield self._datum(number, 0, 1, number + 1)

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
        return block.reshape(last - first, *self._shape)

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

    def _local_files(self) -> list[str]:
        """Addresses of the HDF5 files in their order; none when they are elsewhere or only an adapter reads them."""
        source = self._source
        if source.mimetype != _HDF5 or source.parameters.get("slice"):
            return []
        assets = sorted(source.assets, key=lambda asset: asset.num or 0)
        uris = [asset.data_uri for asset in assets if asset.parameter in ("data_uri", "data_uris")]
        # How the rows are dealt out over several files is known only when each holds one event.
        if len(uris) > 1 and len(uris) != self.count:
            return []
        return uris if all(_is_here(uri) for uri in uris) else []


def _is_here(uri: str) -> bool:
    parts = urlsplit(uri)
    if parts.scheme != "file" or parts.hostname not in (None, "localhost", socket.gethostname()):
        return False
    try:
        return Path(unquote(parts.path)).is_file()
    except (OSError, ValueError):
        return False
