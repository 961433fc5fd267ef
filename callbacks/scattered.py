"""Fluorescence at points anywhere: kept point by point, put on an even grid at the end.

Counts of a pixel's points add up, and so do their exposures (live time times beam) and the
variances of their backgrounds: sums of Poisson counts are Poisson counts. A pixel without a point is
not measured. There are no snapshots: what falls into a pixel, and with a wider field the pixels
themselves, change until the last point, and a snapshot promises that measured pixels stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from inscan.callbacks.geometry import GeometryError, ScanGeometry
from inscan.callbacks.geometry_start import Points
from inscan.callbacks.profile import BeamlineProfile
from inscan.callbacks.regrid import Grid, GridError, choose_grid, regrid_mean, regrid_sum
from inscan.callbacks.units import scale
from inscan.callbacks.updates import Allocate, Notes, NotUnderstood, Update, from_stream
from inscan.callbacks.xrf import XRFMap
from inscan.callbacks.xrf_layout import has_counts

__all__ = ["ScatteredMap"]

# Place for points whose number nobody says.
_UNKNOWN = 16384
_MOST = 1 << 24
# Arrays that add up; the last axis of each is a point, but for `cube`, where bins come last.
_SUMMED = ("counts", "background", "background_variance", "exposure")


class ScatteredMap:
    """The map of points anywhere; the target of a `RunAssembler`.

    The arrays of its final are those of `XRFArrays`, on the grid; `position` is the mean readback of
    the points of a pixel. The points themselves are kept in arrays named ``points_...``.

    Parameters
    ----------
    start, profile, allocate, notes
        See `inscan.callbacks.assembly.open_assembler`.
    points
        What the start document says of them.

    Raises
    ------
    NotUnderstood
        More points are planned than are taken.
    """

    def __init__(
        self,
        start: Mapping[str, Any],
        profile: BeamlineProfile,
        allocate: Allocate,
        notes: Notes,
        points: Points,
    ) -> None:
        if profile.xrf is None:
            raise ValueError(f"profile {profile.name} has no section xrf")
        self._points = points
        self._start = start
        self._profile = profile
        self._xrf = profile.xrf
        self._allocate = allocate
        self._notes = notes
        self._readbacks = (
            profile.geometry.slow_readback or points.motors[0],
            profile.geometry.fast_readback or points.motors[1],
        )
        self._least = profile.geometry.most_points
        # Nothing is allocated before the run is described, and then it is made anew.
        self._line = XRFMap(
            start, profile, self._allocate_points, Notes(), self._line_of(points.expected or 1)
        )
        self._reserved = 0
        self._last = 0

    def wants(self, stream: str) -> bool:
        return self._line.wants(stream)

    def describe(self, stream: str, descriptor: Mapping[str, Any]) -> None:
        if self._reserved or not has_counts(descriptor, self._xrf):
            self._line.describe(stream, descriptor)
            return
        pattern, data_keys = self._points.pattern, descriptor["data_keys"]
        if self._xrf.rows is not None and self._xrf.rows.stream == stream:
            raise NotUnderstood(
                f"events of stream {stream!r} are whole rows, and nothing says where the rows of"
                f" {pattern!r} lie (geometry.scan_input, or geometry.shape and geometry.extents)"
            )
        missing = [key for key in self._readbacks if key not in data_keys]
        if missing:
            raise NotUnderstood(
                f"the points of {pattern!r} have no recorded positions: stream {stream!r} has no key"
                f" {' or '.join(map(repr, missing))}; name the keys in geometry.slow_readback and"
                " geometry.fast_readback"
            )
        for warning in self._points.warnings:
            self._notes.add(warning)
        expected = self._points.expected
        if expected is None or any(map(from_stream, data_keys.values())):
            # What a plan counts is events; a box that triggers on its own counts for itself.
            reserved = max(self._least or _UNKNOWN, expected or 0)
            self._notes.add(
                "the documents do not say how many points there are: place is kept for"
                f" {reserved} (geometry.most_points)"
            )
            self._points = replace(self._points, expected=None)
        else:
            reserved = max(expected, self._least or 0)
        line = XRFMap(
            self._start,
            self._profile,
            self._allocate_points,
            self._notes,
            self._line_of(reserved),
        )
        line.describe(stream, descriptor)
        self._line, self._reserved = line, reserved

    def _line_of(self, number: int) -> ScanGeometry:
        """Return points as they come, which have no planned place."""
        if number > _MOST:
            raise NotUnderstood(
                f"run {self._start['uid'][:8]}: {number} points anywhere, at most {_MOST} are taken"
            )
        try:
            return ScanGeometry(
                shape=(1, number),
                slow_motor=self._points.motors[0],
                fast_motor=self._points.motors[1],
                slow_units=self._points.units[0],
                fast_units=self._points.units[1],
                slow_first=0.0,
                slow_last=0.0,
                fast_first=0.0,
                fast_last=float(number),
                snaking=False,
                planned=False,
            )
        except GeometryError as error:
            raise NotUnderstood(
                f"run {self._start['uid'][:8]}: {number} points: {error}"
            ) from error

    def external_shape(self, stream: str, data_key: str) -> tuple[int, ...] | None:
        return self._line.external_shape(stream, data_key)

    def array_keys(self, stream: str) -> Mapping[str, tuple[int, ...]]:
        return self._line.array_keys(stream)

    def event(self, stream: str, seq_num: int, taken: float, data: Mapping[str, Any]) -> None:
        self._line.event(stream, seq_num, taken, data)
        self._last = max(self._last, seq_num)

    def rows(self, stream: str, data_key: str, first_seq: int, block: np.ndarray) -> None:
        self._line.rows(stream, data_key, first_seq, block)
        self._last = max(self._last, first_seq + len(block) - 1)

    def snapshot_due(self) -> bool:
        return False

    def updates(self, final: tuple[str, str] | None) -> list[Update]:
        if final is None:
            return []
        return [
            self._gridded(update) if update.kind == "final" else self._without_place(update)
            for update in self._line.updates(final)
        ]

    def rejected(self, reason: str) -> Update:
        return self._without_place(self._line.rejected(reason))

    def _allocate_points(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        return self._allocate(f"points_{name}", shape, dtype)

    def _gridded(self, update: Update) -> Update:
        measured = update.arrays["measured"][0]
        positions = update.arrays["position"][:, 0]
        placed = measured & np.isfinite(positions).all(axis=0)
        self._notes.set(
            "measured points without a position: left out of the map",
            int((measured & ~placed).sum()),
        )
        if self._last > self._reserved:
            self._notes.add(
                f"place is kept for {self._reserved} points, the last was number {self._last}: set"
                " geometry.most_points to as many"
            )
        units = (update.meta["geometry"]["slow_units"], update.meta["geometry"]["fast_units"])
        try:
            grid = choose_grid(
                positions[:, placed],
                step=self._points.step,
                step_from=self._points.step_from,
                fast_per_slow=self._fast_per_slow(units),
            )
        except GridError as error:
            return self.rejected(f"the points cannot be put on a grid: {error}")
        self._notes.add(
            f"points of {self._points.pattern!r} were put on a grid of {grid.shape[0]} x"
            f" {grid.shape[1]} pixels with the step {grid.said}; counts and exposures of a pixel's"
            " points add up (geometry.grid_step sets another)"
        )
        pixels = grid.pixels(positions[:, placed])
        arrays = self._regridded(update.arrays, grid, placed, pixels)
        geometry = ScanGeometry(
            shape=grid.shape,
            slow_motor=self._points.motors[0],
            fast_motor=self._points.motors[1],
            slow_units=units[0],
            fast_units=units[1],
            slow_first=grid.first[0],
            slow_last=grid.last[0],
            fast_first=grid.first[1],
            fast_last=grid.last[1],
            snaking=False,
        )
        on = arrays["measured"]
        # Without a plan's word on their number, the points up to the last one must all be there.
        through = self._points.expected or int(np.flatnonzero(measured).max()) + 1
        meta = update.meta | {
            "geometry": geometry.to_dict(),
            "rows_done": int(on.all(axis=1).sum()),
            "pixels_done": int(on.sum()),
            "points": {
                "planned": self._points.expected,
                "measured": int(measured.sum()),
                "without_position": int((measured & ~placed).sum()),
                "most_in_a_pixel": int(np.bincount(pixels).max()),
            },
            "complete": update.meta["exit_status"] == "success"
            and int(placed.sum()) >= max(through, self._last),
            "warnings": self._notes.lines(),
        }
        return replace(update, meta=meta, arrays=arrays)

    def _regridded(
        self,
        points: Mapping[str, np.ndarray],
        grid: Grid,
        placed: np.ndarray,
        pixels: np.ndarray,
    ) -> dict[str, np.ndarray]:
        size = grid.shape[0] * grid.shape[1]
        out: dict[str, np.ndarray] = {}
        for name in _SUMMED:
            if name in points:
                values = points[name][..., 0, :]
                out[name] = self._allocate(name, (*values.shape[:-1], *grid.shape), values.dtype)
                # Plane by plane: the copies stay small beside the map.
                for index in np.ndindex(values.shape[:-1]):
                    sums = regrid_sum(values[index][placed], pixels, size)
                    out[name][index] = sums.reshape(grid.shape)
        if "cube" in points:
            values = points["cube"][:, 0]
            n_channels, _, bins = values.shape
            out["cube"] = self._allocate("cube", (n_channels, *grid.shape, bins), values.dtype)
            flat = out["cube"].reshape(n_channels, size, bins)
            for channel in range(n_channels):
                for each in range(bins):
                    flat[channel, :, each] = regrid_sum(values[channel, placed, each], pixels, size)
        out["measured"] = self._allocate("measured", grid.shape, np.dtype(bool))
        out["measured"][...] = (np.bincount(pixels, minlength=size) > 0).reshape(grid.shape)
        out["position"] = self._allocate("position", (2, *grid.shape), np.dtype(np.float64))
        means = regrid_mean(points["position"][:, 0, placed], pixels, size)
        out["position"][...] = means.reshape(2, *grid.shape)
        return out

    def _fast_per_slow(self, units: tuple[str, str]) -> float:
        if units[0] == units[1]:
            return 1.0
        try:
            return scale(units[0], units[1])
        except ValueError:
            self._notes.add(
                f"distances of points are measured as if {units[0]!r} (slow) and {units[1]!r}"
                " (fast) were the same: set geometry.units or geometry.grid_step"
            )
            return 1.0

    def _without_place(self, update: Update) -> Update:
        """Leave out the line of points, which lies nowhere."""
        meta = {name: value for name, value in update.meta.items() if name != "geometry"}
        return replace(update, meta=meta | {"warnings": self._notes.lines()})
