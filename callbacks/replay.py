"""A stored run's documents again, under uids of their own, so that nobody takes them for the run itself.

Every new uid follows from the new run's uid and the old one, by a function without a memory: all references to a uid
change with it, in whatever order the documents come, and the stored documents themselves are never touched.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from inscan.callbacks.sources.interface import Document

__all__ = ["Closing", "Identity", "identity", "renamed"]

_NAMESPACE = uuid.UUID("6f0f6f5c-6d19-5c0a-9d5e-5a0e0f6a3b11")
_KNOWN = frozenset(
    "start descriptor event event_page resource datum datum_page stream_resource stream_datum stop".split()
)


@dataclass(frozen=True)
class Identity:
    """Who a replayed run is.

    Attributes
    ----------
    original
        Uid of the stored run.
    uid
        Uid of the replayed one, a UUID.
    """

    original: str
    uid: str

    def of(self, old: str) -> str:
        """New uid for any uid of the stored run; ``UID/NUMBER``, as datums have, keeps its number."""
        if old == self.original:
            return self.uid
        head, slash, tail = old.partition("/")
        return str(uuid.uuid5(uuid.UUID(self.uid), head)) + slash + tail


def identity(original: str, *, seed: int | None = None, of: str = "") -> Identity:
    """Who the replay of a run is to be.

    Parameters
    ----------
    original
        Uid of the stored run.
    seed
        The same seed, run and ``of`` give the same uid, and with it all others; None gives a new one each time.
    of
        Whatever else makes this replay another one, such as its faults.
    """
    if seed is None:
        return Identity(original, str(uuid.uuid4()))
    return Identity(original, str(uuid.uuid5(_NAMESPACE, f"{seed} {of} {original}")))


def renamed(
    documents: Iterable[Document],
    who: Identity,
    mark: Mapping[str, Any],
    *,
    runs: Mapping[str, str] | None = None,
    counts: Counter[str] | None = None,
) -> Iterator[Document]:
    """Documents of a stored run as those of its replay.

    Times stay as they were: they belong to what was measured. The start document loses its ``scan_id``, so that the
    number keeps meaning the run itself; it is kept in ``replay``. Access keys, sample and plan stay.

    Parameters
    ----------
    documents
        Of one run.
    who
        From `identity`.
    mark
        What the start document says of the replay, under ``replay``; plain data.
    runs
        Uids of other runs that are replayed with this one, old to new: ``parent_uid`` follows them.
    counts
        Where documents are counted that are left out because they are none.

    Yields
    ------
    tuple of str and dict
        Documents of their own; what is unchanged in them is shared with the stored ones.
    """
    external: dict[str, frozenset[str]] = {}
    for name, doc in documents:
        if name not in _KNOWN or not isinstance(doc, Mapping):
            if counts is not None:
                counts[f"not a document: {name!r:.40}"] += 1
            continue
        if name == "stop" and not doc.get("exit_status"):
            continue  # a Tiled server ends a run without stop with an empty one
        if name == "start":
            yield name, _start(doc, who, mark, runs or {})
        elif name == "descriptor":
            if isinstance(doc.get("uid"), str):
                external[doc["uid"]] = _external(doc)
            yield name, _swapped(doc, who, "uid", "run_start")
        elif name in ("event", "event_page"):
            known = external.get(str(doc.get("descriptor")), frozenset())
            yield name, _event(_swapped(doc, who, "uid", "descriptor"), who, known)
        else:
            yield name, _swapped(doc, who, *_FIELDS[name])


_FIELDS = {
    "resource": ("uid", "run_start"),
    "stream_resource": ("uid", "run_start"),
    "stream_datum": ("uid", "stream_resource", "descriptor"),
    "datum": ("datum_id", "resource"),
    "datum_page": ("datum_id", "resource"),
    "stop": ("uid", "run_start"),
}


def _start(
    doc: Mapping[str, Any], who: Identity, mark: Mapping[str, Any], runs: Mapping[str, str]
) -> dict[str, Any]:
    new = {key: value for key, value in doc.items() if key != "scan_id"}
    said = dict(mark)
    if "scan_id" in doc:
        said["scan_id"] = doc["scan_id"]
    parent = doc.get("parent_uid")
    if isinstance(parent, str) and parent in runs:
        new["parent_uid"] = runs[parent]
    # What was measured stays so, and what was simulated does not become real by being sent again.
    new.setdefault("simulated", False)
    return new | {"uid": who.uid, "replay_of": who.original, "replay": said}


def _swapped(doc: Mapping[str, Any], who: Identity, *fields: str) -> dict[str, Any]:
    new = dict(doc)
    for one in fields:
        if one in new:
            new[one] = _replaced(new[one], who)
    return new


def _replaced(value: Any, who: Identity) -> Any:
    """The new uid for an old one, or for each of a page's; anything else is none and stays."""
    if isinstance(value, str):
        return who.of(value)
    if isinstance(value, list | tuple):
        return [_replaced(one, who) for one in value]
    return value


def _external(descriptor: Mapping[str, Any]) -> frozenset[str]:
    keys = descriptor.get("data_keys")
    if not isinstance(keys, Mapping):
        return frozenset()
    return frozenset(
        key for key, said in keys.items() if isinstance(said, Mapping) and said.get("external")
    )


def _event(doc: dict[str, Any], who: Identity, external: frozenset[str]) -> dict[str, Any]:
    """Replace references to data: texts where the descriptor or ``filled`` says that the data are elsewhere."""
    filled = doc.get("filled")
    if isinstance(filled, Mapping):
        external = external | {key for key, value in filled.items() if _unfilled(value)}
    if not external:
        return doc
    # Some detectors write the reference where the time belongs, and `filled` may name what it was filled from.
    for one in ("data", "timestamps", "filled"):
        values = doc.get(one)
        if isinstance(values, Mapping):
            doc[one] = {
                key: _replaced(value, who) if key in external and _text(value) else value
                for key, value in values.items()
            }
    return doc


def _unfilled(value: Any) -> bool:
    return value is False or (isinstance(value, list) and False in value)


def _text(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(one, str) for one in value)
    return isinstance(value, str)


@dataclass
class Closing:
    """Watches documents go by, to end their run when they do not do it themselves.

    Attributes
    ----------
    run
        Uid of the run.
    open
        Its start has passed, its stop has not.
    events
        Events by stream.
    """

    run: str
    open: bool = False
    events: Counter[str] = field(default_factory=Counter)
    _streams: dict[Any, str] = field(default_factory=dict)
    _time: float = 0.0

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take note of a document."""
        time = doc.get("time")
        if isinstance(time, int | float) and not isinstance(time, bool):
            self._time = max(self._time, time)
        if name == "start":
            self.open = True
        elif name == "stop":
            self.open = False
        elif name == "descriptor":
            stream = str(doc.get("name"))
            self._streams[doc.get("uid")] = stream
            self.events[stream] += 0
        elif name in ("event", "event_page"):
            stream = self._streams.get(doc.get("descriptor"))
            if stream is not None:
                numbers = doc.get("seq_num")
                self.events[stream] += len(numbers) if isinstance(numbers, list) else 1

    def stop(self, status: str, reason: str) -> dict[str, Any]:
        """A stop document; ``status`` is ``abort`` or ``fail``."""
        self.open = False
        return {
            "uid": str(uuid.uuid5(uuid.UUID(self.run), "stop")),
            "run_start": self.run,
            "time": self._time,
            "exit_status": status,
            "reason": reason,
            "num_events": dict(self.events),
        }
