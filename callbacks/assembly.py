"""From a run's documents to the array that a method works on, while the run goes on.

`RunAssembler` sorts documents; what they mean is known by its target, an `XRFMap` or an
`EnergyStack`. Everything is placed by seq_num, so that order, repetition and paging do not matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from event_model import unpack_datum_page, unpack_event_page

from inscan.callbacks.baseline import STREAM, Baseline
from inscan.callbacks.missing import Missing
from inscan.callbacks.profile import BeamlineProfile, matches
from inscan.callbacks.received import Received
from inscan.callbacks.run_files import RunFiles
from inscan.callbacks.run_meta import bulky, number_at, plain
from inscan.callbacks.target import Target
from inscan.callbacks.txm import EnergyStack
from inscan.callbacks.updates import (
    MALFORMED,
    Allocate,
    Notes,
    NotUnderstood,
    Update,
    in_memory,
    shortened,
)
from inscan.callbacks.xrf_target import xrf_target

__all__ = [
    "Allocate",
    "NotUnderstood",
    "RunAssembler",
    "Update",
    "in_memory",
    "of_run",
    "open_assembler",
]

# Documents that may wait for their descriptor or resource before they are given up.
_MOST_WAITING = 100_000
_LONGEST_STATUS = 40
_WHO_MAY_SEE = ("data_session", "proposal", "tiled_access_tags")


class RunAssembler:
    """Router of one run's documents; see `open_assembler`."""

    def __init__(
        self, run_uid: str, target: Target, files: RunFiles, notes: Notes, baseline: Baseline
    ) -> None:
        self.run_uid = run_uid
        self.late_documents = 0
        self._target = target
        self._files = files
        self._notes = notes
        self._baseline = baseline
        self._stopped: Any = None
        self._ended = False
        self._received = Received(
            target.wants, lambda stream, key: target.external_shape(stream, key) is not None
        )
        self._streams: dict[str, str] = {}
        self._waiting: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
        self._n_waiting = 0

    def __call__(self, name: str, doc: Mapping[str, Any]) -> list[Update]:
        """Place one document; return the updates that it completes.

        Documents that make no sense are counted in the warnings of every update. Only ``stop`` may
        wait, for at most the profile's ``read_deadline``, for detector files.
        """
        if self._ended:
            self.late_documents += 1
            return []
        if name == "stop":
            return self._stop(doc)
        try:
            self._place(name, doc)
        except NotUnderstood as error:
            return self._end([self._target.rejected(str(error))])
        except MALFORMED as error:
            self._notes.add(f"{name} documents left out", f"{type(error).__name__}: {error}")
        if self._target.snapshot_due():
            return self._with_baseline(self._target.updates(None))
        return []

    def finish(self, reason: str) -> list[Update]:
        """End a run whose stop document will never come."""
        if self._ended:
            return []
        return self._final("incomplete", reason)

    def missing(self, stop: Mapping[str, Any]) -> Missing:
        """Return what has not come of the streams that matter, now that `stop` has.

        Parameters
        ----------
        stop
            The stop document, or what there is in its place: without ``num_events`` nothing is known of the end.
        """
        if self._ended:
            return Missing()
        counts = stop.get("num_events")
        names = {uid: {name for name, _ in docs} for uid, docs in self._waiting.items()}
        return self._received.missing(counts if isinstance(counts, Mapping) else {}, names)

    def resource_of(self, key: str) -> str | None:
        """Return the uid of a data key's stream_resource, when exactly one has come."""
        return self._received.resource_of(key)

    def forget_waiting(self) -> None:
        """Give up documents that wait for others: what they stood for has come by another way."""
        self._waiting.clear()
        self._n_waiting = 0
        self._files.forget(self._received.replaced)

    def close(self) -> None:
        """Close detector files; every further document is late."""
        self._ended = True
        self._files.close()

    def _place(self, name: str, doc: Mapping[str, Any]) -> None:
        if name == "event":
            stream = self._streams.get(doc["descriptor"])
            if stream is None:
                self._wait(doc["descriptor"], name, doc)
                return
            if self._target.wants(stream):
                self._files.event(stream, doc)
                self._received.event(stream, doc, self._target.array_keys(stream))
            if stream == STREAM:
                self._baseline.event(doc)
        elif name == "event_page":
            for event in unpack_event_page(doc):  # type: ignore[arg-type]
                self._one("event", event)
        elif name == "descriptor":
            self._describe(doc)
        elif name == "stream_datum":
            self._datum(doc)
        elif name in ("stream_resource", "resource", "datum"):
            self._files.add(name, doc)
            self._received.reference(name, doc)
            if name == "stream_resource":
                self._release(doc["uid"])
        elif name == "datum_page":
            for datum in unpack_datum_page(doc):  # type: ignore[arg-type]
                self._files.add("datum", datum)
                self._received.reference("datum", datum)
        elif name == "start":
            if doc.get("uid") != self.run_uid:
                self._notes.add("documents of another run left out", str(doc.get("uid")))
        else:
            self._notes.add("documents of unknown kind left out", repr(name)[:40])

    def _one(self, name: str, doc: Mapping[str, Any]) -> None:
        """Place one of several documents: a bad one must not take the others with it."""
        try:
            self._place(name, doc)
        except NotUnderstood:
            raise
        except MALFORMED as error:
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
            self._received.descriptor(stream, doc)
        self._streams[uid] = stream
        self._release(uid)

    def _datum(self, doc: Mapping[str, Any]) -> None:
        resource, descriptor = doc["stream_resource"], doc["descriptor"]
        if not self._files.knows(resource):
            self._wait(resource, "stream_datum", doc)
        elif descriptor not in self._streams:
            self._wait(descriptor, "stream_datum", doc)
        elif self._target.wants(self._streams[descriptor]):
            self._files.announce(self._streams[descriptor], doc)
            self._received.rows(self._streams[descriptor], doc)
        else:
            self._files.leave(doc)

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

    def _stop(self, doc: Mapping[str, Any]) -> list[Update]:
        if not isinstance(doc, Mapping):
            doc = {}
        # A Tiled server ends a run without stop with an empty one.
        if not of_run(doc, self.run_uid):
            self._notes.add("documents of another run left out", str(doc.get("run_start")))
            return []
        self._stopped = plain(number_at(doc, "time"))
        status, reason = (_text(doc.get(key)) for key in ("exit_status", "reason"))
        status = shortened(status, _LONGEST_STATUS) or "incomplete"
        if status == "success":
            wanted = {uid: s for uid, s in self._streams.items() if self._target.wants(s)}
            self._files.announce_rest(wanted)
        return self._final(status, shortened(reason))

    def _final(self, exit_status: str, reason: str) -> list[Update]:
        self._files.finish()
        if self._n_waiting:
            self._notes.add("documents without descriptor or resource", times=self._n_waiting)
        return self._end(self._target.updates((exit_status, reason)))

    def _end(self, updates: list[Update]) -> list[Update]:
        self.close()
        return self._with_baseline(updates)

    def _with_baseline(self, updates: list[Update]) -> list[Update]:
        """Say of every map and stack how the beamline stood, and when the run was over."""
        readings = self._baseline.readings
        for update in updates:
            if update.kind == "rejected":
                # What was wrong with the documents is why: a record has the reason alone.
                why = [update.meta["reason"], *update.meta["warnings"]]
                update.meta["reason"] = shortened("; ".join(why))
            if readings:
                update.meta["baseline"] = readings
            if self._stopped is not None:
                update.meta["stop_time"] = self._stopped
        return updates


def of_run(stop: Mapping[str, Any], run_uid: str) -> bool:
    """Return whether a stop document is of a run: it says so, or says nothing (a Tiled server's for a run without)."""
    named = stop.get("run_start")
    return named is None or (isinstance(named, str) and named == run_uid)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


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
        hidden = [key for key in bulky(start) if key in _WHO_MAY_SEE]
        if hidden:
            raise NotUnderstood(
                f"start.{hidden[0]} is larger than a result can carry: who may see it is not known"
            )
        for key in bulky(start):
            notes.add(f"start.{key} is too large for a result, the raw run has it")
        target = (xrf_target if profile.technique == "xrf" else EnergyStack)(
            start, profile, allocate, notes
        )
        files = RunFiles(profile, tuple(data_roots), target, notes)
        return RunAssembler(uid, target, files, notes, Baseline(profile.rescan.context))
    names = ", ".join(profile.name for profile in profiles) or "none is loaded"
    raise NotUnderstood(f"run {uid[:8]} matches no profile ({names})")
