"""A fluorescence map, assembled pixel by pixel or row by row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from inscan.callbacks.geometry import GeometryError, ScanGeometry
from inscan.callbacks.profile import BeamlineProfile
from inscan.callbacks.readings import MOST, moment
from inscan.callbacks.run_meta import number_at, run_meta
from inscan.callbacks.units import scale
from inscan.callbacks.updates import Allocate, Notes, NotUnderstood, Update
from inscan.callbacks.xrf_arrays import XRFArrays
from inscan.callbacks.xrf_checks import check_live_times, check_positions, check_rows
from inscan.callbacks.xrf_columns import Column
from inscan.callbacks.xrf_layout import XRFLayout, detector_name, has_counts, read_layout
from inscan.callbacks.xrf_readers import Read, counts, event_readers, read_row
from inscan.callbacks.xrf_series import series_of
from inscan.callbacks.xrf_slow import SlowRows

__all__ = ["XRFMap"]

# Arrival is kept in 64 bits per pixel; one is for events.
_MOST_GROUPS = 63
# What is kept in memory beside the mapped arrays: per pixel, and per pixel and channel; how much there may be.
_BYTES, _CHANNEL_BYTES, _MOST_BYTES = 24, 14, 1 << 32


class XRFMap:
    """The map of one run; the target of a `RunAssembler`.

    See `XRFArrays` for the arrays of its updates.

    A pixel is an event (step), or a row of what stream_datum documents announce (fly); or an event
    is a row of pixels (rows), whose seq_num is then the row, from 1. Of the two streams of the last,
    that with one slow position per row may come at any time before the end.

    Maps of one place at several incident energies are runs of their own; ``meta["series"]`` says
    which belong together, see `inscan.callbacks.xrf_series.series_of`.

    Parameters
    ----------
    start, profile, allocate, notes
        See `inscan.callbacks.assembly.open_assembler`.
    geometry
        Where the pixels lie; it wins over what the start document says. None: the start document
        says it.

    Raises
    ------
    NotUnderstood
        No geometry is given and the start document has none.
    """

    def __init__(
        self,
        start: Mapping[str, Any],
        profile: BeamlineProfile,
        allocate: Allocate,
        notes: Notes,
        geometry: ScanGeometry | None = None,
    ) -> None:
        if profile.xrf is None:
            raise ValueError(f"profile {profile.name} has no section xrf")
        if geometry is None:
            try:
                geometry = ScanGeometry.from_start(start, profile.geometry)
            except GeometryError as error:
                raise NotUnderstood(f"run {start['uid'][:8]}: {error}") from error
        self._geometry = geometry
        self._start = start
        self._profile = profile
        self._xrf = profile.xrf
        self._allocate = allocate
        self._notes = notes
        ways = (profile.xrf.step, profile.xrf.fly, profile.xrf.rows)
        self._streams = {keys.stream for keys in ways if keys}
        self._slow = SlowRows(profile, self._geometry)
        energy = self._xrf.incident_energy
        incident = None if energy is None else number_at(start, energy)
        if incident is not None:
            incident *= scale(self._xrf.incident_energy_units, "eV")
        elif energy is not None:
            notes.add(f"no incident energy at {energy} in the start document, no line is refused")
        self._incident_ev = incident
        self._layout: XRFLayout | None = None
        self._arrays: XRFArrays | None = None
        self._stream = min(self._streams)
        self._detector = ""
        self._snapshots = 0
        # Data keys that events carry, by role, and the last seq_num of each group of keys.
        self._readers: dict[str, Read] = {}
        self._in_events = False
        self._array_keys: dict[str, tuple[int, ...]] = {}
        self._groups: dict[str, int] = {}
        self._passed: list[int] = []
        self._required: list[int] = []
        # Row -> number of its pixels that were recorded, where a row is an event.
        self._recorded: dict[int, int] = {}

    def wants(self, stream: str) -> bool:
        return stream in self._streams or stream == self._slow.stream

    def describe(self, stream: str, descriptor: Mapping[str, Any]) -> None:
        if stream == self._slow.stream and not has_counts(descriptor, self._xrf):
            self._slow.describe(descriptor, self._notes)
            return
        geometry = self._geometry
        keys = (
            self._profile.geometry.slow_readback or geometry.slow_motor,
            self._profile.geometry.fast_readback or geometry.fast_motor,
        )
        rows = self._xrf.rows
        if rows is not None and rows.stream == stream:
            keys = (
                rows.positions.get(geometry.slow_motor, keys[0]),
                rows.positions.get(geometry.fast_motor, keys[1]),
            )
        data_keys = descriptor["data_keys"]
        units = {
            motor: data_keys[motor]["units"]
            for motor in (geometry.slow_motor, geometry.fast_motor)
            if data_keys.get(motor, {}).get("units")
        }
        geometry = geometry.with_units(units)
        wanted = (geometry.slow_units, geometry.fast_units)
        layout = read_layout(descriptor, self._xrf, self._incident_ev, keys, wanted)
        if self._layout is None:
            self._geometry = geometry
            self._detector = detector_name(descriptor, layout)
            self._begin(stream, layout)
        elif layout.bins != self._layout.bins:
            raise NotUnderstood(
                f"the spectra change their length within the run: {layout.counts_key()} has"
                f" {layout.bins} bins, {self._layout.counts_key()} had {self._layout.bins}"
            )
        elif not self._layout.same_data(layout) or stream != self._stream:
            self._notes.add(
                "a later descriptor has other channels or elements; its data are left out",
                f"{list(layout.elements)} instead of {list(self._layout.elements)}",
            )
            raise ValueError(f"descriptor {descriptor['uid'][:8]} does not fit the map so far")

    def external_shape(self, stream: str, data_key: str) -> tuple[int, ...] | None:
        column = self._layout.columns.get(data_key) if self._layout else None
        return column.declared if column is not None and column.external else None

    def array_keys(self, stream: str) -> Mapping[str, tuple[int, ...]]:
        return self._array_keys if stream == self._stream else {}

    def event(self, stream: str, seq_num: int, taken: float, data: Mapping[str, Any]) -> None:
        if isinstance(seq_num, bool) or int(seq_num) != seq_num or seq_num < 1:
            raise ValueError(f"seq_num {seq_num!r}: expected 1 or more")
        if stream == self._slow.stream and (stream != self._stream or self._layout is None):
            self._slow.event(int(seq_num), moment(taken), data)
            return
        if self._arrays is None or stream != self._stream or not self._in_events:
            return
        if self._layout is not None and self._layout.way == "rows":
            self._row_event(self._layout, self._arrays, int(seq_num), moment(taken), data)
            return
        if seq_num > self._geometry.size:
            self._notes.add(f"events beyond the shape {self._geometry.shape} left out")
            return
        if seq_num > self._passed[0]:
            self._passed[0] = seq_num
        row, col = self._geometry.pixel_of(seq_num)
        try:
            values = {role: read(data) for role, read in self._readers.items()}
        except KeyError as error:
            raise KeyError(f"event {seq_num} lacks {error}") from error
        except (TypeError, ValueError) as error:
            raise ValueError(f"event {seq_num}: {error}") from error
        self._arrays.place_event(row * self._geometry.shape[1] + col, moment(taken), values)

    def _row_event(
        self,
        layout: XRFLayout,
        arrays: XRFArrays,
        seq_num: int,
        taken: float,
        data: Mapping[str, Any],
    ) -> None:
        n_rows, n_cols = self._geometry.shape
        if seq_num > n_rows:
            self._notes.add(f"rows beyond the shape {self._geometry.shape} left out")
            return
        try:
            row = read_row(layout, data, n_cols)
        except KeyError as error:
            raise KeyError(f"row {seq_num} lacks {error}") from error
        except (TypeError, ValueError) as error:
            raise ValueError(f"row {seq_num}: {error}") from error
        self._passed[0] = max(self._passed[0], seq_num * n_cols)
        self._recorded[seq_num] = max(self._recorded.get(seq_num, 0), row.recorded)
        arrays.place_row(self._row_pixels(seq_num, seq_num + 1)[: row.n], taken, row)

    def _row_pixels(self, first: int, stop: int) -> np.ndarray:
        """Pixels of rows ``first`` to ``stop`` - 1 (from 1), in the order in which they are stored."""
        n_cols = self._geometry.shape[1]
        rows = self._xrf.rows
        if rows is not None and rows.order == "position":
            return np.arange((first - 1) * n_cols, (stop - 1) * n_cols)
        return self._geometry.flat_pixels((first - 1) * n_cols + 1, (stop - 1) * n_cols + 1)

    def rows(self, stream: str, data_key: str, first_seq: int, block: np.ndarray) -> None:
        if self._arrays is None or self._layout is None:
            return
        column = self._layout.columns[data_key]
        if self._layout.way == "rows":
            self._whole_rows(column, self._groups[data_key], first_seq, block)
            return
        n = min(len(block), self._geometry.size + 1 - first_seq)
        if n < len(block):
            self._notes.add(
                f"rows beyond the shape {self._geometry.shape} left out",
                times=len(block) - max(n, 0),
            )
        if first_seq < 1 or n < 1:
            return
        pixels = self._geometry.flat_pixels(first_seq, first_seq + n)
        values = column.ordered(block[:n].reshape(n, *column.stored))
        group = self._groups[data_key]
        self._arrays.place_rows(column, group, pixels, values)
        self._passed[group] = max(self._passed[group], first_seq + n - 1)

    def _whole_rows(self, column: Column, group: int, first: int, block: np.ndarray) -> None:
        """Place rows of a file whose every entry is a row of the map."""
        n_rows, n_cols = self._geometry.shape
        n = min(len(block), n_rows + 1 - first)
        if n < len(block):
            self._notes.add(
                f"rows beyond the shape {self._geometry.shape} left out",
                times=len(block) - max(n, 0),
            )
        if first < 1 or n < 1 or self._arrays is None:
            return
        values = column.ordered(block[:n].reshape(n, *column.stored))
        if not column.pixels:
            values = np.repeat(values[:, None], n_cols, axis=1)
        width = min(values.shape[1], n_cols)
        pixels = self._row_pixels(first, first + n).reshape(n, n_cols)[:, :width]
        # Row by row: a row of spectra is large already.
        for row in range(n):
            self._arrays.place_rows(column, group, pixels[row], values[row, :width])
            if counts(column):
                self._recorded[first + row] = max(
                    self._recorded.get(first + row, 0), values.shape[1]
                )
        self._passed[group] = max(self._passed[group], (first + n - 1) * n_cols)

    def snapshot_due(self) -> bool:
        every = self._profile.method.snapshot_rows
        if self._arrays is None or not every:
            return False
        rows = min(self._passed[g] for g in self._required) // self._geometry.shape[1]
        # A snapshot of the last row would be superseded by the final at once.
        if rows // every <= self._snapshots or rows >= self._geometry.shape[0]:
            return False
        self._snapshots = rows // every
        return True

    def updates(self, final: tuple[str, str] | None) -> list[Update]:
        return [self._update(final)]

    def _update(self, final: tuple[str, str] | None) -> Update:
        status, reason = final or ("running", "")
        ended = f"{status}: {reason}" if reason else status
        if self._arrays is None:
            return self.rejected(f"the run ended ({ended}) before its map was described")
        arrays = self._arrays.take(final is not None, self._slow.positions())
        measured = arrays["measured"]
        if final is not None and not measured.any():
            return self.rejected(f"the run ended ({ended}) without a measured pixel")
        self._check(self._arrays, arrays)
        meta = self._meta() | {
            "rows_done": int(measured.all(axis=1).sum()),
            "pixels_done": int(measured.sum()),
            "complete": status == "success" and bool(measured.all()),
            "exit_status": status,
            "reason": reason,
            "i0_reference": self._arrays.i0_reference,
            "warnings": self._notes.lines(),
        }
        kind = "snapshot" if final is None else "final"
        return Update(kind, self._start["uid"], self._stream, meta, arrays)

    def rejected(self, reason: str) -> Update:
        meta = self._meta() | {
            "rows_done": 0,
            "complete": False,
            "exit_status": "rejected",
            "reason": reason,
            "warnings": self._notes.lines(),
        }
        return Update("rejected", self._start["uid"], self._stream, meta, {})

    def _begin(self, stream: str, layout: XRFLayout) -> None:
        self._stream, self._layout = stream, layout
        for warning in layout.warnings:
            self._notes.add(warning)
        for name, reason in layout.refused.items():
            self._notes.add(reason if name in reason else f"{name}: {reason}")
        self._readers = event_readers(layout) if layout.way != "rows" else {}
        self._in_events = any(not c.external for c in layout.columns.values())
        self._array_keys = {
            key: c.declared for key, c in layout.columns.items() if c.stored and not c.external
        }
        self._groups = {
            key: group
            for group, key in enumerate((k for k, c in layout.columns.items() if c.external), 1)
        }
        if len(self._groups) > _MOST_GROUPS:
            raise NotUnderstood(
                f"{len(self._groups)} file keys make one pixel; at most {_MOST_GROUPS} are kept apart"
            )
        # Motors alone do not make an event a measurement.
        required = {self._groups[k] for k, c in layout.columns.items() if c.external and counts(c)}
        if any(counts(c) for c in layout.columns.values() if not c.external):
            required.add(0)
        self._required = sorted(required)
        self._passed = [0] * (len(self._groups) + 1)
        self._check_size(layout)
        live = self._meta()["dwell"]
        if live is not None and not 0 < live < MOST:
            self._notes.add(f"a dwell of {live:g} s is none: not used")
            live = None
        if "live_time" not in {c.role for c in layout.columns.values()} and live is None:
            self._notes.add(
                "neither live time nor dwell are known: one pixel is one unit of exposure"
            )
        self._arrays = XRFArrays(
            layout, self._geometry, frozenset(required), live or 1.0, self._allocate, self._notes
        )

    def _check_size(self, layout: XRFLayout) -> None:
        """Refuse what is too large before any place is taken for it."""
        needed = self._geometry.size * (_BYTES + _CHANNEL_BYTES * len(layout.channels))
        if needed > _MOST_BYTES:
            raise NotUnderstood(
                f"a map of {self._geometry.shape} pixels and {len(layout.channels)} channels takes"
                f" {needed} bytes of memory, {_MOST_BYTES} are allowed"
            )
        if layout.cube is None or self._xrf.cube is None:
            return
        needed = 4 * len(layout.channels) * self._geometry.size * layout.cube.bins
        if needed > self._xrf.cube.max_bytes:
            raise NotUnderstood(
                f"spectra of {self._geometry.size} pixels, {len(layout.channels)} channels and"
                f" {layout.cube.bins} bins take {needed} bytes, {self._xrf.cube.max_bytes} are"
                " allowed: lower xrf.cube.bins or raise xrf.cube.max_bytes"
            )

    def _check(self, placed: XRFArrays, arrays: Mapping[str, np.ndarray]) -> None:
        """State what people should know of the map so far."""
        check_positions(self._geometry, arrays, self._notes)
        if self._layout is not None:
            check_live_times(self._layout, placed.live_time(), self._meta()["dwell"], self._notes)
            check_rows(
                self._layout,
                self._geometry,
                self._recorded,
                np.isnan(self._slow.positions()) & arrays["measured"].any(axis=1),
                self._notes,
            )

    def _meta(self) -> dict[str, Any]:
        geometry, layout = self._geometry, self._layout
        meta = run_meta(self._start, self._profile, self._stream) | {
            "geometry": geometry.to_dict(),
            "units": "counts",
            "quantity": "window sums, not concentrations",
            "source": self._xrf.elements.source,
            "incident_energy_ev": self._incident_ev,
            "series": series_of(self._start, self._profile.name, geometry, self._incident_ev),
        }
        if layout is not None:
            meta |= {
                "detector": self._detector,
                "elements": list(layout.elements),
                "channels": list(layout.channels),
                "windows_ev": [list(window) for window in layout.windows_ev],
                "refused": dict(layout.refused),
            }
            if layout.cube is not None:
                meta |= {
                    "bin_energies_ev": layout.cube.energies_ev.tolist(),
                    "line_weights": layout.cube.line_weights.tolist(),
                }
        return meta
