"""What a source of documents is, and what a run that is stored somewhere is."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Document", "Sink", "Source", "SourceError", "StoredRun"]

Document = tuple[str, Mapping[str, Any]]
"""Name and content, as a RunEngine hands them to a callback."""

Sink = Callable[[str, Mapping[str, Any]], None]
"""What takes documents: an `inscan.callbacks.connection.Connection`, or any Bluesky callback."""


class SourceError(OSError):
    """A source that cannot be used; the message says what, where and what to do."""


class Source(Protocol):
    """Live documents of a beamline.

    Attributes
    ----------
    label : str
        What it is, for people: ``0MQ tcp://127.0.0.1:5578``.
    ready : threading.Event
        Set while everything that is emitted from now on will arrive.
    counts : Counter
        ``documents`` handed on; ``garbage`` and whatever else was left out, by reason.
    """

    label: str
    ready: threading.Event
    counts: Counter[str]

    def run(self, sink: Sink, stop: threading.Event) -> None:
        """Hand documents to ``sink`` until ``stop`` is set or the source ends; what a peer sends never raises.

        Raises
        ------
        SourceError
            The source cannot be reached or used at all.
        """
        ...


@dataclass(frozen=True)
class StoredRun:
    """A run that was recorded.

    Attributes
    ----------
    uid
        Of its start document.
    where
        For people: ``file run.jsonl``, ``Tiled http://127.0.0.1:8000/raw``.
    start
        Its start document.
    documents
        Reads all documents anew, start first, stop (where there is one) last, resources before what needs them.
        Arrays are ndarrays, external data stay references.
    """

    uid: str
    where: str
    start: Mapping[str, Any]
    documents: Callable[[], Iterator[Document]]
