"""What documents say about detector files of one run, and the reading of them when they are ready.

Files may be missing, locked, half written, or on a disk that does not answer: what cannot be read is tried again
while documents come, and at the end of the run until the profile's deadline. A writer whose flush hangs (ADCore
issue 593) is seen as rows that are announced and not there.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from inscan.callbacks.datum_files import DatumFiles, DatumUnknown
from inscan.callbacks.external import DetectorFiles, FileRefused, NotReadable, Rows
from inscan.callbacks.file_reader import FileReader
from inscan.callbacks.handlers import HDF5_LAYOUTS
from inscan.callbacks.hdf5_rows import ROWS_BY
from inscan.callbacks.profile import BeamlineProfile
from inscan.callbacks.target import Target
from inscan.callbacks.updates import MALFORMED, Notes

__all__ = ["BY_TIME", "RunFiles"]

# While a run goes on, files that were not ready are looked at again this often; at its end oftener.
_RETRY_S = 0.5
_RETRY_AT_END_S = 0.02
BY_TIME = (
    "the rows of a file that several streams share are told apart by the times of the events, for"
    " a Tiled catalog does not keep which are whose"
)


class RunFiles:
    """Rows and arrays that are announced, read, or still to be read.

    Parameters
    ----------
    profile, data_roots
        Where files may be, how they are laid out, and how long the end of a run waits for them.
    target
        Where the rows go.
    notes
        What people should know.
    """

    def __init__(
        self,
        profile: BeamlineProfile,
        data_roots: tuple[Path, ...],
        target: Target,
        notes: Notes,
    ) -> None:
        layouts = {**HDF5_LAYOUTS, **profile.datum_files}
        self._files = DetectorFiles(
            (*profile.data_roots, *data_roots),
            profile.root_map,
            [spec for spec, layout in layouts.items() if layout.index_from is None],
        )
        self._datums = DatumFiles(self._files, profile.datum_files)
        self._reader = FileReader()
        self._deadline_s = profile.read_deadline
        self._target = target
        self._notes = notes
        self._refused: set[str] = set()
        self._announced: dict[str, Rows] = {}
        self._others: set[str] = set()
        self._unread: list[tuple[str, Rows]] = []
        self._unfilled: list[tuple[str, Mapping[str, Any]]] = []
        self._retry_at = 0.0
        # Why the last attempt failed, for people who wonder what was waited for.
        self._why = ""

    def knows(self, resource: str) -> bool:
        """Whether a stream_resource has come, also when it was refused."""
        return resource in self._files or resource in self._refused

    def add(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take a stream_resource, resource or datum document."""
        try:
            if name == "stream_resource":
                if not self.knows(doc["uid"]):
                    self._reader(self._files.add, doc)
                    if (doc.get("parameters") or {}).get(ROWS_BY) is not None:
                        self._notes.add(BY_TIME, doc["data_key"])
            elif name == "resource":
                self._reader(self._datums.add_resource, doc)
            else:
                self._datums.add_datum(doc)
                self._retry()
        except FileRefused as error:
            if name == "stream_resource":
                self._refused.add(doc["uid"])
            self._notes.add("detector files that are not read", str(error))

    def announce(self, stream: str, datum: Mapping[str, Any]) -> None:
        """Take a stream_datum whose resource is known, and read its rows if they are there."""
        if datum["stream_resource"] in self._refused:
            return
        rows = self._files.rows(datum)
        before = self._announced.get(rows.resource)
        if before is None or rows.stop > before.stop:
            self._announced[rows.resource] = rows
        if not self._read(stream, rows):
            self._unread.append((stream, rows))
        self._retry()

    def leave(self, datum: Mapping[str, Any]) -> None:
        """Know that a file belongs to a stream that nobody wants: a key may stand in several."""
        self._others.add(datum["stream_resource"])

    def event(self, stream: str, doc: Mapping[str, Any]) -> None:
        """Hand an event to the target, its datum ids replaced by arrays; later if need be."""
        try:
            data = self._filled(stream, doc["data"])
        except (NotReadable, DatumUnknown) as error:
            self._why = str(error)
            self._unfilled.append((stream, doc))
            return
        self._target.event(stream, doc["seq_num"], doc["time"], data)

    def announce_rest(self, streams: Mapping[str, str]) -> None:
        """Take rows that a successful run wrote but whose stream_datum has not come (yet).

        A Tiled server replays them in another order, a network may lose them; the file has them.

        Parameters
        ----------
        streams
            Descriptor uid -> stream, of the streams that the target wants.
        """
        keys = Counter(self._files.data_key(resource) for resource in self._files.resources())
        for resource in self._files.resources():
            key, known = self._files.data_key(resource), self._announced.get(resource)
            if resource in self._others:
                continue
            if known is None and keys[key] > 1:
                # Which event its first row is, or whether it is one of this stream, nobody says.
                self._notes.add("files of several that no document announced are left out", key)
                continue
            for uid, stream in streams.items():
                shape = self._target.external_shape(stream, key)
                if shape is None or (known is not None and known.descriptor != uid):
                    continue
                try:
                    length = self._reader(self._files.grown_length, resource, shape)
                except (NotReadable, *MALFORMED) as error:
                    self._notes.add("detector files whose length is unknown", str(error))
                    break
                self._take_rest(stream, uid, resource, length)
                break

    def _take_rest(self, stream: str, uid: str, resource: str, length: int) -> None:
        """Take rows from the last that was announced to the end of the file, where they are this stream's."""
        key, known = self._files.data_key(resource), self._announced.get(resource)
        start = known.stop if known else 0
        first = known.first_seq + known.stop - known.start if known else 1
        sharing = self._files.sharing(resource)
        if sharing:
            taken = [self._announced[one].stop for one in sharing if one in self._announced]
            if length > max(start, *taken, 0):
                self._notes.add("rows of a file that several streams share are left out", key)
            return
        # The events that follow may have theirs in the next file.
        others = [rows for rows in self._announced.values() if rows.data_key == key]
        begins = [rows.first_seq - rows.start for rows in others if rows.descriptor == uid]
        room = min((begin - first for begin in begins if begin >= first), default=length)
        if length > start + room:
            self._notes.add("rows of a file beyond the first of the next file are left out", key)
            length = start + room
        if length > start:
            self._unread.append((stream, Rows(resource, uid, key, start, length, first)))
            self._notes.add("rows found in the file that no document announced", key)

    def forget(self, events: Collection[tuple[str, int]]) -> None:
        """Read no more for events (stream, seq_num) whose data have come by another way."""
        self._unfilled = [
            (stream, doc)
            for stream, doc in self._unfilled
            if (stream, doc.get("seq_num")) not in events
        ]

    def finish(self) -> None:
        """Read what is left, waiting for it at most until the profile's deadline."""
        deadline = time.monotonic() + self._deadline_s
        while self._read_left() and time.monotonic() < deadline:
            # Nobody tells a reader that a file on a network disk has become readable: look again.
            threading.Event().wait(_RETRY_AT_END_S)
        for stream, rows in self._unread:
            self._notes.add(
                "announced rows could not be read",
                f"{stream} {rows.data_key} {rows.start}:{rows.stop} within {self._deadline_s} s:"
                f" {self._why}",
            )
        if self._unfilled:
            self._notes.add(
                "events whose files could not be read", self._why, times=len(self._unfilled)
            )

    def close(self) -> None:
        """Close every file."""
        self._reader.close(self._files.close)

    def _retry(self) -> None:
        if (self._unread or self._unfilled) and time.monotonic() >= self._retry_at:
            self._read_left()
            self._retry_at = time.monotonic() + _RETRY_S

    def _read_left(self) -> bool:
        """Try again; return whether waiting longer may help."""
        try:
            self._reader(self._files.hold)
        except NotReadable as error:
            self._why = str(error)
            return True
        try:
            return self._try_left()
        finally:
            # In the thread of the files, whenever it gets to it: one that hangs is not waited for.
            self._reader.later(self._files.release)

    def _try_left(self) -> bool:
        unread, self._unread = self._unread, []
        not_ready: set[str] = set()
        for stream, rows in unread:
            # What one datum of a file waits for, its later ones wait for too.
            if rows.resource in not_ready or not self._read(stream, rows):
                not_ready.add(rows.resource)
                self._unread.append((stream, rows))
        unfilled, self._unfilled = self._unfilled, []
        for stream, doc in unfilled:
            needed = self._resources_of(stream, doc["data"])
            if needed & not_ready:
                self._unfilled.append((stream, doc))
                continue
            try:
                data = self._filled(stream, doc["data"])
                self._target.event(stream, doc["seq_num"], doc["time"], data)
            except DatumUnknown as error:
                self._why = str(error)
                self._unfilled.append((stream, doc))
            except NotReadable as error:
                self._why = str(error)
                self._unfilled.append((stream, doc))
                not_ready |= needed
            except MALFORMED as error:
                self._notes.add("event documents left out", f"{type(error).__name__}: {error}")
        return bool(not_ready)

    def _resources_of(self, stream: str, data: Mapping[str, Any]) -> set[str]:
        """Resources that an event's arrays come from, as far as their documents have come."""
        ids = [data.get(key) for key in self._target.array_keys(stream)]
        found = {self._datums.resource_of(datum) for datum in ids if isinstance(datum, str)}
        return {resource for resource in found if resource is not None}

    def _read(self, stream: str, rows: Rows) -> bool:
        """Read rows into the target; False when they are not there yet."""
        shape = self._target.external_shape(stream, rows.data_key)
        if shape is None:
            return True
        try:
            for first_seq, block in self._reader.blocks(self._files.read(rows, shape)):
                self._target.rows(stream, rows.data_key, first_seq, block)
        except NotReadable as error:
            self._why = str(error)
            return False
        except MALFORMED as error:
            self._notes.add("rows of detector files left out", str(error))
        return True

    def _filled(self, stream: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
        wanted = {
            key: shape
            for key, shape in self._target.array_keys(stream).items()
            if isinstance(data.get(key), str)
        }
        if not wanted:
            return data
        return {**data, **self._reader(self._arrays, wanted, data)}

    def _arrays(
        self, wanted: Mapping[str, tuple[int, ...]], data: Mapping[str, Any]
    ) -> dict[str, np.ndarray]:
        # The smallest first: one that is not ready must not cost the reading of the largest.
        order = sorted(wanted, key=lambda key: math.prod(wanted[key]))
        self._files.hold()
        try:
            return {key: self._datums.read(data[key], wanted[key]) for key in order}
        finally:
            self._files.release()
