"""Bookkeeping of one run: which events, rows and references have come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from inscan.callbacks.missing import Missing, Spans
from inscan.callbacks.updates import from_stream

__all__ = ["Received"]

_Held = tuple[str, int, str]
"""Stream, seq_num and key of an event that holds the id of a datum."""


class Received:
    """Counts what comes of the streams that matter.

    Parameters
    ----------
    wants
        Stream -> whether it holds any of the data.
    matters
        (stream, data key) -> whether its rows are read from files.
    """

    def __init__(self, wants: Callable[[str], bool], matters: Callable[[str, str], bool]) -> None:
        self._wants = wants
        self._matters = matters
        self._streams: dict[str, bool] = {}
        self._keys: dict[str, set[str]] = {}
        self._events: dict[str, Spans] = {}
        self._rows: dict[tuple[str, str], Spans] = {}
        self._files: dict[str, str] = {}
        self._resources: set[str] = set()
        self._datums: set[str] = set()
        self.replaced: set[tuple[str, int]] = set()
        """Stream and seq_num of events that held ids of data which came by another way."""
        # Resource that has not come -> datums of it that have.
        self._without_resource: dict[str, list[str]] = {}
        # Datum that cannot be read yet -> what holds its id; and the other way round.
        self._unknown: dict[str, set[_Held]] = {}
        self._held: dict[_Held, str] = {}

    def descriptor(self, stream: str, doc: Mapping[str, Any]) -> None:
        """Take a descriptor of a stream that matters."""
        keys = doc.get("data_keys", {})
        streamed = {key for key, value in keys.items() if from_stream(value)}
        # Data that come by files alone have no events.
        self._streams[stream] = len(streamed) < len(keys) or not keys
        self._keys.setdefault(stream, set()).update(streamed)

    def event(self, stream: str, doc: Mapping[str, Any], keys: Iterable[str]) -> None:
        """Take an event; of `keys` it may hold ids of datums."""
        seq = int(doc["seq_num"])
        self._events.setdefault(stream, Spans()).add(seq, seq + 1)
        for key in keys:
            value, held = doc["data"].get(key), (stream, seq, key)
            if self._held and held in self._held:
                self._let_go(held)
            if isinstance(value, str) and value not in self._datums:
                self._unknown.setdefault(value, set()).add(held)
                self._held[held] = value

    def reference(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take a stream_resource, resource or datum."""
        if name == "stream_resource":
            self._files[str(doc["uid"])] = str(doc.get("data_key"))
        elif name == "resource":
            uid = str(doc["uid"])
            self._resources.add(uid)
            for datum in self._without_resource.pop(uid, []):
                self._known(datum)
        else:
            datum, resource = str(doc["datum_id"]), str(doc["resource"])
            if resource in self._resources:
                self._known(datum)
            else:
                self._without_resource.setdefault(resource, []).append(datum)

    def _known(self, datum: str) -> None:
        self._datums.add(datum)
        for held in self._unknown.pop(datum, set()):
            self._held.pop(held, None)

    def _let_go(self, held: _Held) -> None:
        self.replaced.add(held[:2])
        datum = self._held.pop(held)
        holders = self._unknown[datum]
        holders.discard(held)
        if not holders:
            del self._unknown[datum]

    def rows(self, stream: str, doc: Mapping[str, Any]) -> None:
        """Take a stream_datum; which seq_nums it stands for is read as `DetectorFiles.rows` does."""
        start, stop = (int(doc["indices"][end]) for end in ("start", "stop"))
        first, after = (int((doc.get("seq_nums") or {}).get(end, 0)) for end in ("start", "stop"))
        if after - first != stop - start or first < 1:
            first = start + 1
        key = self._files.get(str(doc["stream_resource"]), "")
        self._rows.setdefault((stream, key), Spans()).add(first, first + stop - start)

    def resource_of(self, key: str) -> str | None:
        """Return the stream_resource of a data key, when there is exactly one."""
        found = [uid for uid, known in self._files.items() if known == key]
        return found[0] if len(found) == 1 else None

    def missing(
        self, num_events: Mapping[str, Any], waiting: Mapping[str, Iterable[str]]
    ) -> Missing:
        """Return what is missing.

        Parameters
        ----------
        num_events
            Of the stop document: stream -> number of events.
        waiting
            Uid that is waited for -> names of the documents that wait.
        """
        counts = {
            str(stream): count
            for stream, count in num_events.items()
            if isinstance(count, int) and 0 < count < 1 << 40
        }
        events, rows = {}, {}
        for stream, has_events in self._streams.items():
            seen = self._events.get(stream) or Spans()
            of_keys = {
                key: self._rows.get((stream, key), Spans())
                for key in self._keys[stream]
                if self._matters(stream, key)
            }
            if has_events:
                holes = self._without_data(stream, seen).holes(
                    max(seen.stop, counts.get(stream, 0) + 1)
                )
                if holes:
                    events[stream] = holes
            last = max([counts.get(stream, 0) + 1, *(spans.stop for spans in of_keys.values())])
            for key, spans in of_keys.items():
                if holes := spans.holes(last):
                    rows[stream, key] = holes
        streams = {
            stream: count
            for stream, count in counts.items()
            if stream not in self._streams and self._wants(stream)
        }
        return Missing(events, rows, streams, self._references(waiting))

    def _without_data(self, stream: str, seen: Spans) -> Spans:
        """Events seen, less those that hold ids of datums that cannot be read."""
        lame = [seq for name, seq, _ in self._held if name == stream]
        if not lame:
            return seen
        spans = seen.copy()
        for number in lame:
            spans.discard(number)
        return spans

    def _references(self, waiting: Mapping[str, Iterable[str]]) -> dict[str, int]:
        found: dict[str, int] = {}
        # A stream_datum that waits is a row that is missing, and told as such.
        descriptors = sum("event" in names for names in waiting.values())
        if descriptors:
            found["descriptor"] = descriptors
        owners = {d: uid for uid, datums in self._without_resource.items() for d in datums}
        resources = {owners[datum] for datum in self._unknown if datum in owners}
        datums = sum(datum not in owners for datum in self._unknown)
        found |= {"resource": len(resources)} if resources else {}
        return found | ({"datum": datums} if datums else {})
