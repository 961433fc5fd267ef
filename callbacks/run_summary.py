"""What a run holds, in one pass over its documents: the ground on which a profile is written or found wanting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from event_model import unpack_event_page

from inscan.callbacks.updates import MALFORMED, from_stream

__all__ = ["KeySummary", "RunSummary", "StreamSummary", "summarise"]

_MOST_NAMED = 10_000
"""More streams, keys or resources than that are counted and not listed."""


@dataclass(frozen=True)
class KeySummary:
    """One data key.

    Attributes
    ----------
    name, dtype, units
        As in the descriptor.
    shape
        Declared shape of one value.
    where
        ``event``: the values are in the events; ``datum``: events name them; ``stream``: stream_datum do.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    units: str
    where: str

    @property
    def scalar(self) -> bool:
        """One number a time."""
        return not self.shape and self.dtype in ("number", "integer")


@dataclass
class StreamSummary:
    """One stream: its keys, the configuration of its devices, and how many events came.

    Attributes
    ----------
    events
        Different seq_num seen.
    last
        Highest seq_num, also of stream_datum documents.
    """

    name: str
    keys: dict[str, KeySummary] = field(default_factory=dict)
    configuration: dict[str, Any] = field(default_factory=dict)
    events: int = 0
    last: int = 0


@dataclass
class RunSummary:
    """A run, as its documents tell it.

    Attributes
    ----------
    start
        Start document; empty when there is none.
    stop
        Stop document; None when there is none.
    streams
        By name.
    files
        Resource spec or stream_resource mimetype -> path of its first file.
    datum_kwargs
        Resource spec -> keyword arguments of its first datum.
    counts
        Documents by kind; ``malformed`` are those that make no sense.
    """

    start: Mapping[str, Any] = field(default_factory=dict)
    stop: Mapping[str, Any] | None = None
    streams: dict[str, StreamSummary] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    datum_kwargs: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def paths(self) -> dict[str, Any]:
        """Dotted path -> value, of everything in the start document that is not a mapping."""
        found: dict[str, Any] = {}
        waiting: list[tuple[str, Any]] = [("", self.start)]
        while waiting and len(found) < _MOST_NAMED:
            prefix, value = waiting.pop(0)
            if isinstance(value, Mapping):
                dot = f"{prefix}." if prefix else ""
                waiting += [(f"{dot}{name}", inner) for name, inner in value.items()]
            elif prefix:
                found[prefix] = value
        return found


def summarise(documents: Iterable[tuple[str, Mapping[str, Any]]]) -> RunSummary:
    """Read a run's documents once; what makes no sense is counted, nothing is raised."""
    run = RunSummary()
    names: dict[str, str] = {}
    seen: dict[str, set[int]] = {}
    specs: dict[str, str] = {}
    for name, doc in documents:
        run.counts[name] += 1
        try:
            if name == "start":
                run.start = run.start or dict(doc)
            elif name == "stop":
                run.stop = dict(doc)
            elif name == "descriptor":
                names[doc["uid"]] = doc["name"]
                _describe(run, doc)
            elif name == "event":
                _event(run, names, seen, doc)
            elif name == "event_page":
                for event in unpack_event_page(doc):  # type: ignore[arg-type]
                    _event(run, names, seen, event)
            elif name == "stream_datum":
                stream = run.streams[names[doc["descriptor"]]]
                stop = max(int(doc["indices"]["stop"]), int(doc["seq_nums"]["stop"]) - 1)
                stream.last = max(stream.last, stop)
            elif name == "resource" and len(run.files) < _MOST_NAMED:
                path = f"{str(doc.get('root') or '').rstrip('/')}/{doc['resource_path']}"
                run.files.setdefault(str(doc["spec"]), path)
                specs[doc["uid"]] = str(doc["spec"])
            elif name == "datum":
                run.datum_kwargs.setdefault(specs[doc["resource"]], dict(doc["datum_kwargs"]))
            elif name == "stream_resource" and len(run.files) < _MOST_NAMED:
                run.files.setdefault(str(doc["mimetype"]), str(doc["uri"]))
        except MALFORMED:
            run.counts["malformed"] += 1
    for stream, numbers in seen.items():
        run.streams[stream].events = len(numbers)
    return run


def _describe(run: RunSummary, doc: Mapping[str, Any]) -> None:
    if doc["name"] not in run.streams and len(run.streams) >= _MOST_NAMED:
        return
    stream = run.streams.setdefault(doc["name"], StreamSummary(doc["name"]))
    for key, entry in doc["data_keys"].items():
        if len(stream.keys) >= _MOST_NAMED:
            break
        external = entry.get("external")
        where = "stream" if from_stream(entry) else "datum" if external else "event"
        shape = tuple(int(n) for n in entry.get("shape") or ())
        units = str(entry.get("units") or "")
        stream.keys[key] = KeySummary(key, str(entry.get("dtype")), shape, units, where)
    for device in (doc.get("configuration") or {}).values():
        stream.configuration.update(device.get("data") or {})


def _event(
    run: RunSummary, names: Mapping[str, str], seen: dict[str, set[int]], doc: Mapping[str, Any]
) -> None:
    stream = run.streams[names[doc["descriptor"]]]
    number = int(doc["seq_num"])
    seen.setdefault(stream.name, set()).add(number)
    stream.last = max(stream.last, number)
