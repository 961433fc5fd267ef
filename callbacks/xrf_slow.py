"""Slow positions of a map whose events are rows: one per row, in a stream of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from inscan.callbacks.geometry import ScanGeometry
from inscan.callbacks.profile import BeamlineProfile
from inscan.callbacks.readings import MOST, reading
from inscan.callbacks.units import scale
from inscan.callbacks.updates import Notes

__all__ = ["SlowRows"]


class SlowRows:
    """Slow position by row.

    Parameters
    ----------
    profile
        Says which stream and key; none where its maps are not recorded in rows.
    geometry
        Number of rows, name and units of the slow motor.
    """

    def __init__(self, profile: BeamlineProfile, geometry: ScanGeometry) -> None:
        rows = None if profile.xrf is None else profile.xrf.rows
        self.stream = None if rows is None else rows.slow_stream
        self._key = profile.geometry.slow_readback or geometry.slow_motor
        self._units = geometry.slow_units
        self._factor: float | None = None
        self._n_rows = geometry.shape[0]
        # Row, from 0 -> (time, position): what was taken last counts.
        self._found: dict[int, tuple[float, float]] = {}

    def describe(self, descriptor: Mapping[str, Any], notes: Notes) -> None:
        """Learn the units of the stream's positions."""
        data_key = descriptor["data_keys"].get(self._key)
        if data_key is None:
            return
        own = str(data_key.get("units") or "")
        try:
            self._factor = scale(own, self._units) if own and self._units else 1.0
        except ValueError as error:
            notes.add(f"readback {self._key} is not used: {error}")

    def event(self, seq_num: int, taken: float, data: Mapping[str, Any]) -> None:
        """Take the position of row ``seq_num``, from 1; ValueError when it is no number."""
        if self._factor is None or self._key not in data or seq_num > self._n_rows:
            return
        position = reading(data[self._key]) * self._factor
        before = self._found.get(seq_num - 1)
        # Of two at the same time the larger, so that their order does not matter.
        if abs(position) < MOST and (before is None or (taken, position) > before):
            self._found[seq_num - 1] = (taken, position)

    def positions(self) -> np.ndarray:
        """Return (row,) float64, NaN where none is known."""
        found = np.full(self._n_rows, np.nan)
        for row, (_, position) in self._found.items():
            found[row] = position
        return found
