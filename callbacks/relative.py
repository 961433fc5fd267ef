"""Rasters that are counted from where the motors stood: the readbacks decide where they lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from inscan.callbacks.geometry import ScanGeometry
from inscan.callbacks.profile import BeamlineProfile
from inscan.callbacks.updates import Allocate, Notes, Update
from inscan.callbacks.xrf import XRFMap

__all__ = ["RelativeMap"]


class RelativeMap:
    """A map whose place is found from readbacks; the target of a `RunAssembler`.

    Rows and columns are those of the plan. Where they lie is the median distance of the readbacks
    from the plan's own positions; without readbacks the map has no ``geometry``, so that nothing can
    be sent to places that nobody knows.

    Parameters
    ----------
    start, profile, allocate, notes
        See `inscan.callbacks.assembly.open_assembler`.
    geometry
        The raster in positions relative to an unknown start; not `planned`.
    """

    def __init__(
        self,
        start: Mapping[str, Any],
        profile: BeamlineProfile,
        allocate: Allocate,
        notes: Notes,
        geometry: ScanGeometry,
    ) -> None:
        self._notes = notes
        self._map = XRFMap(start, profile, allocate, notes, geometry)

    def wants(self, stream: str) -> bool:
        return self._map.wants(stream)

    def describe(self, stream: str, descriptor: Mapping[str, Any]) -> None:
        self._map.describe(stream, descriptor)

    def external_shape(self, stream: str, data_key: str) -> tuple[int, ...] | None:
        return self._map.external_shape(stream, data_key)

    def array_keys(self, stream: str) -> Mapping[str, tuple[int, ...]]:
        return self._map.array_keys(stream)

    def event(self, stream: str, seq_num: int, taken: float, data: Mapping[str, Any]) -> None:
        self._map.event(stream, seq_num, taken, data)

    def rows(self, stream: str, data_key: str, first_seq: int, block: np.ndarray) -> None:
        self._map.rows(stream, data_key, first_seq, block)

    def snapshot_due(self) -> bool:
        return self._map.snapshot_due()

    def updates(self, final: tuple[str, str] | None) -> list[Update]:
        return [
            update if update.kind == "rejected" else self._placed(update)
            for update in self._map.updates(final)
        ]

    def rejected(self, reason: str) -> Update:
        return self._unplaced(self._map.rejected(reason))

    def _placed(self, update: Update) -> Update:
        relative = ScanGeometry.from_dict(update.meta["geometry"])
        positions = np.array(update.arrays["position"])
        off = positions - relative.shifted(0.0, 0.0).positions()
        known = np.isfinite(off).all(axis=0) & update.arrays["measured"]
        if not known.any():
            self._notes.set(_NOWHERE, 1)
            return self._unplaced(update)
        slow, fast = (float(np.median(axis[known])) for axis in off)
        geometry = relative.shifted(slow, fast)
        steps = np.abs([geometry.slow_step, geometry.fast_step])
        apart = np.abs(positions - geometry.positions())
        far = (apart > 0.5 * (1 + 1e-6) * steps[:, None, None]).any(axis=0) & known
        if update.kind == "final":
            self._notes.add(
                "positions of the plan are relative: by the readbacks the map lies"
                f" {slow:.6g} {geometry.slow_units} ({geometry.slow_motor}) and {fast:.6g}"
                f" {geometry.fast_units} ({geometry.fast_motor}) from them"
            )
        self._notes.set(_FAR, int(far.sum()))
        meta = update.meta | {"geometry": geometry.to_dict(), "warnings": self._notes.lines()}
        return replace(update, meta=meta)

    def _unplaced(self, update: Update) -> Update:
        meta = {name: value for name, value in update.meta.items() if name != "geometry"}
        return replace(update, meta=meta | {"warnings": self._notes.lines()})


_NOWHERE = (
    "positions of the plan are relative, and no readback says to what: the map has no place"
    " (geometry.slow_readback, geometry.fast_readback)"
)
_FAR = (
    "pixels whose motor readbacks are more than half a step from the plan's, moved to where it"
    " began: drift, or a wrong geometry; the readbacks are in `position`"
)
