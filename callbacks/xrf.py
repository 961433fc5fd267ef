"""A fluorescence map, assembled pixel by pixel or row by row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any

import numpy as np

from inscan.callbacks.geometry import GeometryError, ScanGeometry
from inscan.callbacks.profile import BeamlineProfile
from inscan.callbacks.run_meta import number_at, run_meta
from inscan.callbacks.units import scale
from inscan.callbacks.updates import Allocate, Notes, NotUnderstood, Update
from inscan.callbacks.xrf_arrays import XRFArrays
from inscan.callbacks.xrf_layout import Column, XRFLayout, read_layout

__all__ = ["XRFMap"]

# Arrival is kept in 64 bits per pixel; one is for events.
_MOST_GROUPS = 63
Read = Callable[[Mapping[str, Any]], np.ndarray]


class XRFMap:
    """The map of one run; the target of a `RunAssembler`.

    See `XRFArrays` for the arrays of its updates.

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
        self._streams = {keys.stream for keys in (profile.xrf.step, profile.xrf.fly) if keys}
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
        self._array_keys: dict[str, tuple[int, ...]] = {}
        self._groups: dict[str, int] = {}
        self._passed: list[int] = []
        self._required: list[int] = []

    def wants(self, stream: str) -> bool:
        return stream in self._streams

    def describe(self, stream: str, descriptor: Mapping[str, Any]) -> None:
        geometry = self._geometry
        keys = (
            self._profile.geometry.slow_readback or geometry.slow_motor,
            self._profile.geometry.fast_readback or geometry.fast_motor,
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
            self._detector = _detector(descriptor, layout)
            self._begin(stream, layout)
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
        return self._array_keys

    def event(self, stream: str, seq_num: int, taken: float, data: Mapping[str, Any]) -> None:
        if self._arrays is None or stream != self._stream or not self._readers:
            return
        if isinstance(seq_num, bool) or int(seq_num) != seq_num or seq_num < 1:
            raise ValueError(f"seq_num {seq_num!r}: expected 1 or more")
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
        self._arrays.place_event(row * self._geometry.shape[1] + col, float(taken), values)

    def rows(self, stream: str, data_key: str, first_seq: int, block: np.ndarray) -> None:
        if self._arrays is None or self._layout is None:
            return
        column = self._layout.columns[data_key]
        n = min(len(block), self._geometry.size + 1 - first_seq)
        if n < len(block):
            self._notes.add(
                f"rows beyond the shape {self._geometry.shape} left out",
                times=len(block) - max(n, 0),
            )
        if first_seq < 1 or n < 1:
            return
        pixels = self._geometry.flat_pixels(first_seq, first_seq + n)
        values = block[:n].reshape(n, *column.shape)
        group = self._groups[data_key]
        self._arrays.place_rows(column, group, pixels, values)
        self._passed[group] = max(self._passed[group], first_seq + n - 1)

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
        if self._arrays is None:
            return self.rejected(f"the run ended ({status}: {reason}) before its map was described")
        arrays = self._arrays.take(final is not None)
        measured = arrays["measured"]
        if final is not None and not measured.any():
            return self.rejected(f"the run ended ({status}: {reason}) without a measured pixel")
        self._check_positions(arrays)
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
        self._readers = _readers(layout)
        self._array_keys = {
            key: c.declared for key, c in layout.columns.items() if c.shape and not c.external
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
        required = {self._groups[k] for k, c in layout.columns.items() if c.external and _counts(c)}
        if any(_counts(c) for c in layout.columns.values() if not c.external):
            required.add(0)
        self._required = sorted(required)
        self._passed = [0] * (len(self._groups) + 1)
        self._check_size(layout)
        live = self._meta()["dwell"]
        if "live_time" not in {c.role for c in layout.columns.values()} and live is None:
            self._notes.add(
                "neither live time nor dwell are known: one pixel is one unit of exposure"
            )
        self._arrays = XRFArrays(
            layout, self._geometry, frozenset(required), live or 1.0, self._allocate, self._notes
        )

    def _check_size(self, layout: XRFLayout) -> None:
        """Refuse spectra that are too large before any place is taken for them."""
        if layout.cube is None or self._xrf.cube is None:
            return
        needed = 4 * len(layout.channels) * self._geometry.size * layout.cube.bins
        if needed > self._xrf.cube.max_bytes:
            raise NotUnderstood(
                f"spectra of {self._geometry.size} pixels, {len(layout.channels)} channels and"
                f" {layout.cube.bins} bins take {needed} bytes, {self._xrf.cube.max_bytes} are"
                " allowed: lower xrf.cube.bins or raise xrf.cube.max_bytes"
            )

    def _check_positions(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Compare readbacks with the raster: a drift or a wrong geometry must not pass unseen."""
        geometry = self._geometry
        off = np.abs(arrays["position"] - geometry.positions())
        steps = np.abs([geometry.slow_step, geometry.fast_step])
        # Readbacks that were not read (NaN) say nothing; encoders round.
        far = (off > 0.5 * (1 + 1e-6) * steps[:, None, None]).any(axis=0) & arrays["measured"]
        self._notes.set(
            "pixels whose motor readbacks are more than half a step from where the start document"
            " says: drift, or a wrong geometry; the readbacks are in `position`",
            int(far.sum()),
        )

    def _meta(self) -> dict[str, Any]:
        geometry, layout = self._geometry, self._layout
        meta = run_meta(self._start, self._profile, self._stream) | {
            "geometry": geometry.to_dict(),
            "units": "counts",
            "quantity": "window sums, not concentrations",
            "source": self._xrf.elements.source,
            "incident_energy_ev": self._incident_ev,
            # How places worth measuring again are looked for; limits are the service's matter.
            "rescan": self._profile.rescan.model_dump(
                mode="json", include={"targets", "elements", "scale", "max_regions", "min_score"}
            ),
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


def _detector(descriptor: Mapping[str, Any], layout: XRFLayout) -> str:
    """Name of the device whose counts these are; of the first key where documents name no device."""
    keys = [key for key, c in layout.columns.items() if c.role in ("mcaroi", "spectrum")]
    owners = {
        str(name)
        for name, owned in (descriptor.get("object_keys") or {}).items()
        if set(owned) & set(keys)
    }
    return " ".join(sorted(owners)) or min(keys)


def _counts(column: Column) -> bool:
    return column.role not in ("slow", "fast")


def _readers(layout: XRFLayout) -> dict[str, Read]:
    """Return, per role, how its values are taken from an event's data."""
    channels = np.array(layout.channels) - 1
    mcarois = np.array(layout.mcarois, np.int64) - 1
    readers: dict[str, Read] = {}
    for role in dict.fromkeys(c.role for c in layout.columns.values() if not c.external):
        columns = {k: c for k, c in layout.columns.items() if c.role == role and not c.external}
        first = next(iter(columns.values()))
        if role in ("i0", "slow", "fast"):
            readers[role] = _scalar(next(iter(columns)), first.factor)
            continue
        lead = tuple(
            count
            for count, index in (
                (len(layout.channels), first.channel),
                (len(layout.elements), first.element),
            )
            if index is not None
        )
        stacked = _stacked(tuple(columns), lead, first)
        if first.channel is None and role == "mcaroi" and first.element is None:
            readers[role] = _select(stacked, np.ix_(channels, mcarois))
        elif first.channel is None and first.element is None:
            readers[role] = _select(stacked, channels)
        elif first.channel is None:
            # {mcaroi} keys that each hold all channels: (element, channel).
            readers[role] = _select(
                stacked, np.ix_(np.arange(len(layout.elements)), channels), True
            )
        elif role == "mcaroi" and first.element is None:
            readers[role] = _select(stacked, np.ix_(np.arange(len(channels)), mcarois))
        else:
            readers[role] = stacked
    return readers


def _scalar(key: str, factor: float) -> Read:
    def read(data: Mapping[str, Any]) -> np.ndarray:
        return float(data[key]) * factor  # type: ignore[return-value]

    return read


def _stacked(keys: tuple[str, ...], lead: tuple[int, ...], column: Column) -> Read:
    """Values of keys, (*lead, *column.shape)."""
    shape = (*lead, *column.shape)
    get = itemgetter(*keys)
    if not column.shape:
        return lambda data: np.array(get(data), np.float64).reshape(shape)

    def read(data: Mapping[str, Any]) -> np.ndarray:
        parts = [np.asarray(data[key]) for key in keys]
        for key, part in zip(keys, parts, strict=True):
            if part.shape not in (column.shape, column.declared) or part.dtype.kind not in "buif":
                raise ValueError(
                    f"{key} has shape {part.shape} of {part.dtype}, the descriptor declares numbers"
                    f" of shape {column.declared}"
                )
        return np.stack(parts).reshape(shape)

    return read


def _select(read: Read, index: Any, transpose: bool = False) -> Read:
    if transpose:
        return lambda data: read(data)[index].T
    return lambda data: read(data)[index]
