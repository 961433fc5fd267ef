"""A run's documents on local disk, in the order of their times, so that a slow store does not disturb a replay."""

from __future__ import annotations

import math
import struct
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inscan.callbacks.legible import legible
from inscan.callbacks.sources.interface import Document
from inscan.callbacks.wire import WireError, pack, unpack

__all__ = ["Due", "Recording"]

_LENGTH = struct.Struct("<Q")
_EVENTS = ("event", "event_page")
DATA = (*_EVENTS, "stream_datum")
"""Documents that say that something was measured; the others describe it."""
_LEANING = ("resource", "datum", "datum_page", "stream_resource", "descriptor")


@dataclass(frozen=True)
class Due:
    """A document and its time, seconds after the start of the run."""

    at: float
    name: str
    doc: Mapping[str, Any]


class Recording:
    """Documents of one run. Use it as a context manager: the file has no name and is gone at the end.

    Parameters
    ----------
    documents : iterable of (name, document)
        As a `StoredRun` gives them.
    folder : Path
        Where there is room for them.

    Attributes
    ----------
    counts : Counter
        Documents by name.
    streams : Counter
        Events (or the frames that stream_datum documents announce) by stream.
    files : set of str
        Folders of the external files that resources name.
    garbage : int
        Things among the documents that are none.
    duration : float
        Seconds from the first document to the last.

    Raises
    ------
    OSError
        No room, or the source broke off.
    """

    def __init__(self, documents: Iterable[Document], folder: Path) -> None:
        self.counts: Counter[str] = Counter()
        self.streams: Counter[str] = Counter()
        self.files: set[str] = set()
        self.garbage = 0
        self.start: dict[str, Any] = {}
        self._file = tempfile.TemporaryFile(dir=folder)
        self._offsets = array("q")
        self._times = array("d")
        self._names: list[str] = []
        self._descriptors: dict[str, tuple[str, float]] = {}
        self._shares: dict[int, tuple[str, float]] = {}
        try:
            for name, doc in documents:
                self._add(name, doc)
        except BaseException:
            self._file.close()
            raise
        self._order, self._due = self._timeline()

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[Due]:
        for index in self._order:
            self._file.seek(self._offsets[index])
            (length,) = _LENGTH.unpack(self._file.read(_LENGTH.size))
            name, doc = unpack(self._file.read(length))
            yield Due(float(self._due[index]), name, doc)

    @property
    def data(self) -> int:
        """Documents that say that something was measured."""
        return sum(self.counts[name] for name in DATA)

    @property
    def duration(self) -> float:
        return float(self._due.max()) if len(self._due) else 0.0

    def close(self) -> None:
        """Remove the file."""
        self._file.close()

    def _add(self, name: Any, doc: Any) -> None:
        if not isinstance(name, str) or not isinstance(doc, Mapping):
            self.garbage += 1
            return
        try:
            packed = pack((name, doc))
        except WireError:
            packed = pack((name, legible(doc)))
        self._offsets.append(self._file.seek(0, 2))
        self._file.write(_LENGTH.pack(len(packed)) + packed)
        self._times.append(_time_of(doc))
        self._names.append(name)
        self.counts[name] += 1
        if name == "start" and not self.start:
            self.start = dict(doc)
        self._look(name, doc)

    def _look(self, name: str, doc: Mapping[str, Any]) -> None:
        if name == "descriptor":
            self._descriptors[str(doc.get("uid"))] = (str(doc.get("name")), self._times[-1])
        elif name in _EVENTS:
            numbers = doc.get("seq_num")
            stream = self._descriptors.get(str(doc.get("descriptor")), ("", 0.0))[0]
            self.streams[stream] += len(numbers) if isinstance(numbers, list) else 1
        elif name == "stream_datum":
            indices = doc.get("indices")
            end = indices.get("stop") if isinstance(indices, Mapping) else None
            if isinstance(end, int):
                descriptor = str(doc.get("descriptor"))
                self._shares[len(self._names) - 1] = (descriptor, float(end))
                stream = self._descriptors.get(descriptor, ("", 0.0))[0]
                self.streams[stream] = max(self.streams[stream], end)
        elif name == "stream_resource" and isinstance(doc.get("uri"), str):
            self.files.add(doc["uri"].partition("://localhost")[2].rpartition("/")[0])
        elif name == "resource" and isinstance(doc.get("resource_path"), str):
            root = str(doc.get("root") or "/").rstrip("/")
            self.files.add(f"{root}/{doc['resource_path'].lstrip('/')}".rpartition("/")[0])

    def _timeline(self) -> tuple[np.ndarray, np.ndarray]:
        """Order of emission, and when each document is due.

        Documents say when they were made, except those about files: a stream_datum is due with its share of the
        stream, the others with what comes next. Stores hand out one stream after the other, and monitors are late:
        so documents are sorted by time, but nothing comes before what it needs.
        """
        names, times = np.array(self._names), np.array(self._times)
        if not len(times):
            return np.empty(0, int), times
        is_data = np.isin(names, DATA)
        first = times[np.isfinite(times)].min(initial=np.inf)
        starts, stops = times[names == "start"], times[names == "stop"]
        begin = float(starts[0]) if len(starts) and np.isfinite(starts[0]) else float(first)
        begin = begin if math.isfinite(begin) else 0.0
        known = times[np.isfinite(times) & (is_data | (names == "stop"))]
        # The stop document ends the run: a time beyond it is a clock that is wrong.
        last = float(stops[-1]) if len(stops) and np.isfinite(stops[-1]) else np.inf
        end = min(last, float(known.max(initial=begin)))
        for index, (descriptor, reached) in self._shares.items():
            since = self._descriptors.get(descriptor, ("", begin))[1]
            since = since if math.isfinite(since) else begin
            whole = self.streams[self._descriptors.get(descriptor, ("", 0.0))[0]]
            times[index] = since + (end - since) * min(1.0, reached / whole if whole else 0.0)
        due = np.clip(_filled(times), begin, max(begin, end)) - begin
        # Suffix minimum over what was measured: what that leans on comes no later.
        later = np.where(is_data, due, np.inf)
        leaning = np.minimum.accumulate(later[::-1])[::-1]
        leans = np.isin(names, _LEANING)
        due = np.where(leans & np.isfinite(leaning), np.minimum(due, leaning), due)
        due[names == "start"] = 0.0
        due[names == "stop"] = due.max()
        rank = np.select([names == "start", names == "stop"], [0, 2], 1)
        return np.lexsort((np.arange(len(due)), due, rank)), due


def _time_of(doc: Mapping[str, Any]) -> float:
    time = doc.get("time")
    if isinstance(time, list | tuple | np.ndarray) and len(time):
        time = time[-1]
    good = isinstance(time, int | float | np.number) and not isinstance(time, bool)
    value = float(time) if good else math.nan  # type: ignore[arg-type]
    return value if math.isfinite(value) else math.nan


def _filled(times: np.ndarray) -> np.ndarray:
    """Give documents without a time that of the next one that has one, or else of the last."""
    known = np.flatnonzero(np.isfinite(times))
    if not len(known):
        return np.zeros_like(times)
    following = np.searchsorted(known, np.arange(len(times)))
    return times[known[np.minimum(following, len(known) - 1)]]
