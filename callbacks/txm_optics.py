"""The size of a pixel on the sample, from where lens and camera stood."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from inscan.callbacks.profile_sections import TXM
from inscan.callbacks.readings import reading as number
from inscan.callbacks.units import scale
from inscan.callbacks.updates import Notes

__all__ = ["PixelSize"]

# Readings before and after a scan that differ by more say two magnifications.
_SAME = 0.01


class PixelSize:
    """The pixel size that a profile gives, or the rule by which it follows from readings.

    Parameters
    ----------
    txm
        Section of the profile.
    notes
        What people should know.
    """

    def __init__(self, txm: TXM, notes: Notes) -> None:
        self._fixed = txm.pixel_size_um
        self._rule = txm.magnification
        self._notes = notes
        self._factor = 1.0
        self._readings: dict[int, tuple[float, float]] = {}

    def wants(self, stream: str) -> bool:
        """Return whether the stream holds the readings."""
        return self._rule is not None and stream == self._rule.stream

    def describe(self, descriptor: Mapping[str, Any]) -> None:
        """Learn the units of the readings; ValueError when they do not compare."""
        rule, keys = self._rule, descriptor["data_keys"]
        if rule is None or rule.lens not in keys or rule.camera not in keys:
            return
        lens, camera = (keys[key].get("units") for key in (rule.lens, rule.camera))
        if lens and camera:
            self._factor = scale(str(camera), str(lens))

    def event(self, seq_num: int, data: Mapping[str, Any]) -> None:
        """Take a reading."""
        if self._rule is not None and self._rule.lens in data and self._rule.camera in data:
            reading = number(data[self._rule.lens]), number(data[self._rule.camera])
            self._readings[int(seq_num)] = reading

    def meta(self) -> dict[str, float | None]:
        """Return ``pixel_size_um`` and ``magnification``, None where unknown."""
        if self._rule is None:
            return {"pixel_size_um": self._fixed, "magnification": None}
        found = [
            (camera * self._factor / lens - 1.0) * self._rule.optics
            for _, (lens, camera) in sorted(self._readings.items())
            if lens > 0 and np.isfinite(lens) and np.isfinite(camera)
        ]
        if not found or not found[0] > 0:
            self._notes.set(_UNKNOWN.format(self._rule.lens, self._rule.camera), 1)
            return {"pixel_size_um": None, "magnification": None}
        self._notes.set(_UNKNOWN.format(self._rule.lens, self._rule.camera), 0)
        self._notes.set(_CHANGED, int(np.ptp(found) > _SAME * found[0]))
        return {
            "pixel_size_um": self._rule.camera_pixel_um / found[0],
            "magnification": found[0],
        }


_UNKNOWN = (
    "the size of a pixel is not known: no sensible readings of {} and {} (txm.magnification in the"
    " profile)"
)
_CHANGED = "the magnification changed during the scan; that of its begin is reported"
