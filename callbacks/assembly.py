"""From a run's documents to the array that a method works on, while the run goes on.

`RunAssembler` sorts documents; what they mean is known by its target, an `XRFMap` or an
`EnergyStack`. Everything is placed by seq_num, so that order, repetition and paging do not matter.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from event_model import unpack_event_page

from inscan.callbacks.external import DetectorFiles, FileRefused, NotReadable, Rows
from inscan.callbacks.profile import BeamlineProfile, matches
from inscan.callbacks.txm import EnergyStack
from inscan.callbacks.updates import Allocate, Notes, NotUnderstood, Update, in_memory
from inscan.callbacks.xrf import XRFMap

__all__ = [
    "Allocate",
    "NotUnderstood",
    "RunAssembler",
    "Update",
    "in_memory",
    "open_assembler",
]

# What documents of the wrong make raise; anything else is a defect of ours and must be heard.
_MALFORMED = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError)
# Documents that may wait for their descriptor or resource before they are given up.
_MOST_WAITING = 100_000
_RETRY_S = 0.02


class Target(Protocol):
    """What a run's data become."""

    def wants(self, stream: str) -> bool:
        """Return whether the stream holds any of the data."""
        ...

    def describe(self, stream: str, descriptor: Mapping[str, Any]) -> None:
        """Learn what the stream's keys are; NotUnderstood when they cannot be used."""
        ...

    def external_shape(self, stream: str, data_key: str) -> tuple[int, ...] | None:
        """Return the shape of one row of a key that is read from files, None when it is not."""
        ...

    def event(self, stream: str, seq_num: int, taken: float, data: Mapping[str, Any]) -> None:
        """Place one event; ValueError, KeyError or TypeError when it does not fit."""
        ...

    def rows(self, stream: str, data_key: str, first_seq: int, block: np.ndarray) -> None:
        """Place rows (n, *shape) of one data key."""
        ...

    def snapshot_due(self) -> bool:
        """Return, once, whether another step of rows is complete."""
        ...

    def update(self, final: tuple[str, str] | None) -> Update:
        """Return a snapshot, or with (exit_status, reason) the final."""
        ...

    def rejected(self, reason: str) -> Update:
        """Return why nothing can be computed."""
        ...


class RunAssembler:
    """Router of one run's documents; see `open_assembler`."""

    def __init__(
        self, run_uid: str, target: Target, files: DetectorFiles, notes: Notes, deadline_s: float
    ) -> None:
        self.run_uid = run_uid
        self.late_documents = 0
        self._target = target
        self._files = files
        self._notes = notes
        self._deadline_s = deadline_s
        self._ended = False
        self._streams: dict[str, str] = {}
        self._waiting: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
        self._n_waiting = 0
        self._unread: list[tuple[str, Rows]] = []
        self._announced: dict[str, Rows] = {}
        self._refused: set[str] = set()

    def __call__(self, name: str, doc: Mapping[str, Any]) -> list[Update]:
        """Place one document; return the updates that it completes.

        Documents that make no sense are counted in the warnings of every update. Only ``stop`` may
        wait, for at most the profile's ``read_deadline``, for detector files.
        """
        if self._ended:
            self.late_documents += 1
            return []
        try:
            if name == "stop":
                return self._stop(doc)
            self._place(name, doc)
        except NotUnderstood as error:
            return self._end(self._target.rejected(str(error)))
        except _MALFORMED as error:
            self._notes.add(f"{name} documents left out", f"{type(error).__name__}: {error}")
        if self._target.snapshot_due():
            return [self._target.update(None)]
        return []

    def finish(self, reason: str) -> list[Update]:
        """End a run whose stop document will never come."""
        if self._ended:
            return []
        return self._final("incomplete", reason)

    def close(self) -> None:
        """Close detector files; every further document is late."""
        self._ended = True
        self._files.close()

    def _place(self, name: str, doc: Mapping[str, Any]) -> None:
        if name == "event":
            stream = self._streams.get(doc["descriptor"])
            if stream is None:
                self._wait(doc["descriptor"], name, doc)
            elif self._target.wants(stream):
                self._target.event(stream, doc["seq_num"], doc["time"], doc["data"])
        elif name == "event_page":
            for event in unpack_event_page(doc):  # type: ignore[arg-type]
                self._one("event", event)
        elif name == "descriptor":
            self._describe(doc)
        elif name == "stream_resource":
            self._resource(doc)
        elif name == "stream_datum":
            self._datum(doc)
        elif name == "start":
            if doc.get("uid") != self.run_uid:
                self._notes.add("documents of another run left out", str(doc.get("uid")))
        elif name not in ("resource", "datum", "datum_page"):
            self._notes.add("documents of unknown kind left out", repr(name)[:40])

    def _one(self, name: str, doc: Mapping[str, Any]) -> None:
        """Place one of several documents: a bad one must not take the others with it."""
        try:
            self._place(name, doc)
        except NotUnderstood:
            raise
        except _MALFORMED as error:
            self._notes.add(f"{name} documents left out", f"{type(error).__name__}: {error}")

    def _describe(self, doc: Mapping[str, Any]) -> None:
        if doc.get("run_start") != self.run_uid:
            self._notes.add("documents of another run left out", str(doc.get("run_start")))
            return
        uid, stream = doc["uid"], doc["name"]
        if uid in self._streams:
            return
        if self._target.wants(stream):
            self._target.describe(stream, doc)
        self._streams[uid] = stream
        self._release(uid)

    def _resource(self, doc: Mapping[str, Any]) -> None:
        uid = doc["uid"]
        if uid in self._files or uid in self._refused:
            return
        try:
            self._files.add(doc)
        except FileRefused as error:
            self._refused.add(uid)
            self._notes.add("detector files that are not read", str(error))
        self._release(uid)

    def _datum(self, doc: Mapping[str, Any]) -> None:
        resource, descriptor = doc["stream_resource"], doc["descriptor"]
        if resource in self._refused:
            return
        for needed, known in ((resource, self._files), (descriptor, self._streams)):
            if needed not in known:
                self._wait(needed, "stream_datum", doc)
                return
        rows = self._files.rows(doc)
        before = self._announced.get(resource)
        if before is None or rows.stop > before.stop:
            self._announced[resource] = rows
        stream = self._streams[descriptor]
        if self._target.wants(stream):
            self._unread.append((stream, rows))
            self._read(time.monotonic())

    def _wait(self, needed: str, name: str, doc: Mapping[str, Any]) -> None:
        if self._n_waiting >= _MOST_WAITING:
            self._notes.add(f"{name} documents left out", "their descriptor never came")
            return
        self._n_waiting += 1
        self._waiting.setdefault(needed, []).append((name, doc))

    def _release(self, uid: str) -> None:
        waiting = self._waiting.pop(uid, [])
        self._n_waiting -= len(waiting)
        for name, doc in waiting:
            self._one(name, doc)

    def _read(self, deadline: float) -> None:
        """Read what was announced; try again until the deadline (monotonic s) what is not there."""
        while True:
            unread = []
            for stream, rows in self._unread:
                shape = self._target.external_shape(stream, rows.data_key)
                if shape is None:
                    continue
                try:
                    for first_seq, block in self._files.read(rows, shape):
                        self._target.rows(stream, rows.data_key, first_seq, block)
                except NotReadable:
                    unread.append((stream, rows))
                except _MALFORMED as error:
                    self._notes.add("rows of detector files left out", str(error))
            self._unread = unread
            if not unread or time.monotonic() >= deadline:
                return
            # Nobody tells a reader that a file on a network disk has become readable: look again.
            threading.Event().wait(_RETRY_S)

    def _stop(self, doc: Mapping[str, Any]) -> list[Update]:
        # A Tiled server ends a run without stop with an empty one.
        if doc.get("run_start", self.run_uid) != self.run_uid:
            self._notes.add("documents of another run left out", str(doc.get("run_start")))
            return []
        status = str(doc.get("exit_status") or "incomplete")
        if status == "success":
            self._take_unannounced()
        return self._final(status, str(doc.get("reason") or ""))

    def _take_unannounced(self) -> None:
        """Announce rows that a successful run wrote but whose stream_datum has not come (yet).

        A Tiled server replays them in another order, a network may lose them; the file has them.
        """
        for resource in self._files.resources():
            known = self._announced.get(resource)
            key = self._files.data_key(resource)
            streams = {uid: s for uid, s in self._streams.items() if self._target.wants(s)}
            for uid, stream in streams.items():
                shape = self._target.external_shape(stream, key)
                if shape is None or (known is not None and known.descriptor != uid):
                    continue
                try:
                    length = self._files.grown_length(resource, shape)
                except (NotReadable, FileRefused):
                    continue
                start = known.stop if known else 0
                first = known.first_seq + known.stop - known.start if known else 1
                if length > start:
                    self._unread.append((stream, Rows(resource, uid, key, start, length, first)))
                    self._notes.add("rows found in the file that no document announced", key)
                break

    def _final(self, exit_status: str, reason: str) -> list[Update]:
        self._read(time.monotonic() + self._deadline_s)
        for stream, rows in self._unread:
            self._notes.add(
                "announced rows could not be read",
                f"{stream} {rows.data_key} {rows.start}:{rows.stop} after {self._deadline_s} s",
            )
        if self._n_waiting:
            self._notes.add("documents without descriptor or resource", times=self._n_waiting)
        return self._end(self._target.update((exit_status, reason)))

    def _end(self, update: Update) -> list[Update]:
        self.close()
        return [update]


def open_assembler(
    start: Mapping[str, Any],
    profiles: Sequence[BeamlineProfile],
    allocate: Allocate = in_memory,
    *,
    data_roots: Sequence[Path] = (),
) -> RunAssembler:
    """Return the assembler of a run, by the first profile that its start document matches.

    Parameters
    ----------
    start
        Start document. Sending it to the assembler again does no harm.
    profiles
        Candidates, in order.
    allocate
        Where the arrays live.
    data_roots
        Folders under which detector files may be read, besides the profile's own.

    Raises
    ------
    NotUnderstood
        No profile matches, or the start document lacks what the profile needs.
    """
    uid = start.get("uid")
    if not isinstance(uid, str) or not uid:
        raise NotUnderstood(f"start document without a uid (got {uid!r:.60})")
    for profile in profiles:
        if not matches(profile, start):
            continue
        notes = Notes()
        target = (XRFMap if profile.technique == "xrf" else EnergyStack)(
            start, profile, allocate, notes
        )
        files = DetectorFiles((*profile.data_roots, *data_roots))
        return RunAssembler(uid, target, files, notes, profile.read_deadline)
    names = ", ".join(profile.name for profile in profiles) or "none is loaded"
    raise NotUnderstood(f"run {uid[:8]} matches no profile ({names})")
