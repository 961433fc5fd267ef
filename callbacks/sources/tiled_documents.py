"""The documents of one run in a Tiled catalog, as an assembler needs them.

`TiledWriter` takes documents apart: scalars lie in a table of each stream, larger arrays in nodes beside it, detector
files are registered. They are put together again from these nodes, not with ``run.documents()``, which hands arrays out
as lists and puts stream documents after the events that need them. What Tiled does not keep cannot come back: uids of
events, ``filled``, and how the frames of a file were dealt out over datum documents.
"""

from __future__ import annotations

import copy
import heapq
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from inscan.callbacks.sources.interface import Document, SourceError
from inscan.callbacks.sources.tiled_files import External, from_stream
from inscan.callbacks.sources.tiled_shared import Owner, place_rows, sharing
from inscan.callbacks.sources.tiled_table import Table

__all__ = ["RunReader"]

_log = logging.getLogger(__name__)
# What one request for rows of arrays may bring.
_BLOCK_BYTES = 32 << 20


@dataclass
class _Stream:
    """What has been handed on of one stream."""

    descriptors: int = 0
    rows: int = 0
    resources: Counter[str] = field(default_factory=Counter)
    announced: Counter[str] = field(default_factory=Counter)
    keys: dict[str, dict[str, Any]] = field(default_factory=dict)


class RunReader:
    """Reads a run, also one that still grows.

    Parameters
    ----------
    container
        Tiled's client of the container that holds the run.
    uid
        Of the run.
    as_arrays
        Hand out external data as arrays in events: ``none``, where a reference to their files does; ``legacy``, those
        that came by resource and datum documents, whose events carry ids otherwise; ``all``. Files that this machine
        does not have, or that only a Tiled adapter reads, are always handed out as arrays.
    wanted
        (stream, seq_num) -> whether an event is handed out; the arrays of others are not read. None: all are.

    Attributes
    ----------
    ended : bool
        The stop document is there, and has been handed on.
    left_out : dict of str to str
        Data keys that cannot be read, as ``primary Andor_image``, and why not: the run is handed on without them.
    """

    def __init__(
        self,
        container: Any,
        uid: str,
        *,
        as_arrays: str = "none",
        wanted: Callable[[str, int], bool] | None = None,
    ) -> None:
        if as_arrays not in ("none", "legacy", "all"):
            raise ValueError(f"as_arrays is none, legacy or all, not {as_arrays!r}")
        self.uid = uid
        self.ended = False
        self.left_out: dict[str, str] = {}
        self._container = container
        self._as_arrays = as_arrays
        self._wanted = wanted or (lambda stream, seq_num: True)
        self._started = False
        self._streams: dict[str, _Stream] = {}

    def news(self) -> Iterator[Document]:
        """Yield what has come since the last time; all of it at first.

        Raises
        ------
        SourceError
            Tiled does not answer, or holds no such run, or one of another make.
        """
        try:
            yield from self._news()
        except (httpx.HTTPError, KeyError) as error:
            raise SourceError(f"run {self.uid} cannot be read from Tiled: {error}") from error

    def _news(self) -> Iterator[Document]:
        if self.ended:
            return
        # Its stop is written last: what was there when the stop was seen is all there will be.
        run = self._container[self.uid]
        _check(run)
        metadata = run.metadata
        if not self._started:
            self._started = True
            yield "start", dict(metadata["start"])
        ended = bool(metadata.get("stop"))
        nodes = {name: node.base for name, node in _streams_of(run).items()}
        externals = {name: self._externals(node) for name, node in nodes.items()}
        tables = {name: Table.read(node) for name, node in nodes.items()}
        shared = self._tell_apart(externals, tables, ended)
        if not ended:
            # How external data are handed out is said in the descriptor: it has to be known by then.
            nodes = {name: n for name, n in nodes.items() if _settled(n, externals[name])}
        yield from self._descriptors(nodes, externals)
        for name in nodes:
            known = self._streams[name].resources
            for key, external in externals[name].items():
                if external.by_reference and (ended or (name, key) not in shared):
                    for resource in external.resources(known[key]):
                        known[key] += 1
                        yield "stream_resource", {**resource, "run_start": self.uid}
        yield from heapq.merge(
            *(
                self._events(name, nodes[name], externals[name], tables[name], ended)
                for name in nodes
                if ended or not _waits(name, externals[name], shared)
            ),
            key=lambda document: document[1]["time"],
        )
        for name in nodes:
            known = self._streams[name].announced
            for key, external in externals[name].items():
                held = not ended and (name, key) in shared
                if external.by_reference and external.count > known[key] and not held:
                    yield from (("stream_datum", doc) for doc in external.datums(known[key]))
                    known[key] = external.count
        if ended:
            self.ended = True
            yield "stop", dict(metadata["stop"])

    def _descriptors(
        self, nodes: Mapping[str, Any], externals: Mapping[str, Mapping[str, External]]
    ) -> Iterator[Document]:
        news = []
        for name, node in nodes.items():
            state = self._streams.setdefault(name, _Stream())
            documents = _descriptors(node, name, self.uid, externals[name], self.left_out)
            news += documents[state.descriptors :]
            state.descriptors, state.keys = len(documents), documents[0]["data_keys"]
        for document in sorted(news, key=lambda doc: doc["time"]):
            yield "descriptor", document

    def _externals(self, node: Any) -> dict[str, External]:
        keys, uid = node.metadata["data_keys"], node.metadata["uid"]
        found = {}
        for key, part in node.items():
            if key in keys and "external" in keys[key]:
                legacy = self._as_arrays == "legacy" and not from_stream(keys[key])
                wanted = legacy or self._as_arrays == "all"
                found[key] = External(key, part, keys[key], uid, as_arrays=wanted)
        return found

    def _tell_apart(
        self,
        externals: dict[str, dict[str, External]],
        tables: Mapping[str, Table | None],
        ended: bool,
    ) -> Collection[Owner]:
        """Find data of several streams in one file; say which rows are whose once the run has ended."""
        shared = sharing(externals)
        if not ended or not shared:
            return shared
        times = {
            name: np.array(table.times)
            for name, table in tables.items()
            if table is not None and np.array_equal(table.seq_nums, np.arange(len(table)) + 1)
        }
        said = {
            (name, key): n for name, s in self._streams.items() for key, n in s.announced.items()
        }
        unplaced = place_rows(shared, times, said)
        for (stream, key), one in shared.items():
            why = unplaced.get((stream, key), "")
            # Of an array Tiled hands out the first rows, whoever they belong to.
            if not one.by_reference and (why or not one.in_order):
                why = why or "Tiled hands out the rows of another stream"
                self._leave_out(stream, key, f"several streams share its file, and {why}")
                del externals[stream][key]
        return shared

    def _leave_out(self, stream: str, key: str, why: str) -> None:
        if f"{stream} {key}" not in self.left_out:
            self.left_out[f"{stream} {key}"] = why
            _log.warning("run %s is read without %s of %s: %s", self.uid, key, stream, why)

    def _rows(self, name: str, one: External, indices: np.ndarray, ended: bool) -> list[Any]:
        """Rows of one key; none of them where Tiled cannot read it."""
        try:
            return one.rows(indices)
        except (httpx.HTTPStatusError, ValueError) as error:
            # While files are written they may become readable yet.
            if not ended:
                raise SourceError(f"run {self.uid}: {name} {one.key}: {error}") from error
            self._leave_out(name, one.key, f"Tiled cannot read it ({error})")
            return [None] * len(indices)

    def _events(
        self,
        name: str,
        node: Any,
        externals: Mapping[str, External],
        table: Table | None,
        ended: bool,
    ) -> Iterator[Document]:
        state = self._streams[name]
        if table is None:
            yield from self._events_without_table(name, node, externals, ended)
            return
        arrays = {
            key: part for key, part in node.items() if key in state.keys and key not in externals
        }
        rows = {key: table.rows_of(key, part.shape[0]) for key, part in arrays.items()}
        filled = {key: one for key, one in externals.items() if not one.by_reference}
        n = table.complete(rows)
        sizes = [_row_bytes(part.shape, part.dtype) for part in arrays.values()]
        sizes += [one.row_bytes for one in filled.values()]
        step = max(1, _BLOCK_BYTES // max(1, sum(sizes)))
        stamps = _descriptor_stamps(node)
        for first in range(state.rows, n, step):
            last = min(first + step, n)
            chosen = [i for i in range(first, last) if self._wanted(name, int(table.seq_nums[i]))]
            if not chosen:
                state.rows = last
                continue
            values = {key: _cut(part, rows[key][first:last]) for key, part in arrays.items()}
            values |= {
                key: self._rows(name, one, table.seq_nums[first:last] - 1, ended)
                for key, one in filled.items()
            }
            for i in chosen:
                more = {key: found[i - first] for key, found in values.items()}
                yield "event", _event(table, i, more, state.keys, stamps)
                # Only now: what is prepared and never taken is to come again.
                state.rows = i + 1

    def _events_without_table(
        self, name: str, node: Any, externals: Mapping[str, External], ended: bool
    ) -> Iterator[Document]:
        """A fly stream of which only files are known, whose data are handed out as arrays."""
        state, uid = self._streams[name], node.metadata["uid"]
        filled = [one for one in externals.values() if not one.by_reference]
        n = max((one.count for one in filled), default=0)
        step = max(1, _BLOCK_BYTES // max(1, sum(one.row_bytes for one in filled)))
        # When each was taken is known to nobody any more.
        taken = float(node.metadata["time"])
        for first in range(state.rows, n, step):
            last = min(first + step, n)
            chosen = [i for i in range(first, last) if self._wanted(name, i + 1)]
            if not chosen:
                state.rows = last
                continue
            values = {
                one.key: self._rows(name, one, np.arange(first, last), ended) for one in filled
            }
            for i in chosen:
                data = {
                    key: found[i - first]
                    for key, found in values.items()
                    if found[i - first] is not None
                }
                yield "event", _document(uid, i + 1, taken, data, dict.fromkeys(data, taken))
                state.rows = i + 1


def _event(
    table: Table,
    row: int,
    arrays: Mapping[str, np.ndarray | None],
    keys: Mapping[str, Mapping[str, Any]],
    stamps: Sequence[tuple[float, str]],
) -> dict[str, Any]:
    taken = table.times[row]
    data: dict[str, Any] = {}
    for key, values in table.columns.items():
        if key in keys and table.has(key, row):
            value = values[row]
            if keys[key].get("dtype") == "array":
                data[key] = np.asarray(value)
            else:
                data[key] = value.item() if isinstance(value, np.generic) else value
    data |= {key: value for key, value in arrays.items() if value is not None}
    times = {key: table.columns.get(f"ts_{key}") for key in data}
    stamp = {key: taken if known is None else float(known[row]) for key, known in times.items()}
    uid = stamps[0][1]
    for since, later in stamps:
        if since <= taken:
            uid = later
    return _document(uid, int(table.seq_nums[row]), taken, data, stamp)


def _document(
    descriptor: str, seq_num: int, taken: float, data: dict[str, Any], stamps: dict[str, float]
) -> dict[str, Any]:
    return {
        "uid": f"{descriptor}-{seq_num}",
        "descriptor": descriptor,
        "seq_num": seq_num,
        "time": taken,
        "data": data,
        "timestamps": stamps,
        "filled": {},
    }


def _waits(name: str, externals: Mapping[str, External], shared: Collection[Owner]) -> bool:
    """Whether the events of a stream need arrays whose rows are not known before the end."""
    return any(not one.by_reference and (name, key) in shared for key, one in externals.items())


def _cut(part: Any, places: np.ndarray) -> list[np.ndarray | None]:
    """Rows of an array, read at once; None where there is none."""
    wanted = places[places >= 0]
    if not len(wanted):
        return [None] * len(places)
    first = int(wanted.min())
    block = np.asarray(part[first : int(wanted.max()) + 1])
    return [None if place < 0 else block[place - first] for place in places]


def _row_bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize


def _check(run: Any) -> None:
    versions = [str(spec.version) for spec in run.specs if spec.name == "BlueskyRun"]
    if not versions or not versions[0].startswith("3."):
        raise SourceError(
            f"{run.uri} is no run that TiledWriter wrote (BlueskyRun 3, found {versions or 'none'}): runs of a Mongo"
            " catalog are read with databroker:NAME"
        )


def _settled(node: Any, externals: Mapping[str, External]) -> bool:
    keys = node.metadata["data_keys"]
    return all(key in externals for key, described in keys.items() if "external" in described)


def _streams_of(run: Any) -> dict[str, Any]:
    """Streams by name; catalogs of 2025 have them one level further down."""
    base = run.base
    nodes = dict(base.items())
    old = nodes.get("streams")
    if old is not None and "BlueskyEventStream" not in {spec.name for spec in old.specs}:
        nodes = dict(old.base.items())
    return {name: node for name, node in nodes.items() if "data_keys" in node.metadata}


def _descriptors(
    node: Any,
    name: str,
    run_uid: str,
    externals: Mapping[str, External],
    left_out: Collection[str],
) -> list[dict[str, Any]]:
    """Descriptor documents of a stream, in their order: later ones differ in configuration."""
    metadata = {k: copy.deepcopy(v) for k, v in dict(node.metadata).items()}
    updates = metadata.pop("_config_updates", None) or []
    metadata.pop("stream_name", None)
    first = {**metadata, "name": name, "run_start": run_uid}
    for key in [key for key in first["data_keys"] if f"{name} {key}" in left_out]:
        del first["data_keys"][key]
    objects: dict[str, list[str]] = {}
    for key, described in first["data_keys"].items():
        if described.get("object_name"):
            objects.setdefault(described["object_name"], []).append(key)
        if key in externals:
            first["data_keys"][key] = externals[key].described
    first["object_keys"] = objects
    documents = [first]
    for update in updates:
        later = copy.deepcopy(documents[-1])
        later |= {key: update[key] for key in ("uid", "time") if key in update}
        for device, values in (update.get("configuration") or {}).items():
            known = later.setdefault("configuration", {}).setdefault(device, {})
            for part in ("data", "timestamps", "data_keys"):
                known[part] = {**known.get(part, {}), **values.get(part, {})}
        documents.append(later)
    return documents


def _descriptor_stamps(node: Any) -> list[tuple[float, str]]:
    """(time, uid) of a stream's descriptors: which of them an event belongs to follows from its time."""
    updates = node.metadata.get("_config_updates") or []
    stamps = [(float(node.metadata["time"]), node.metadata["uid"])]
    return stamps + [(float(one["time"]), one["uid"]) for one in updates if "uid" in one]
