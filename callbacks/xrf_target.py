"""Which kind of fluorescence map a run is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inscan.callbacks.geometry import ScanGeometry
from inscan.callbacks.geometry_start import GeometryError, Points, read_start
from inscan.callbacks.profile import BeamlineProfile
from inscan.callbacks.relative import RelativeMap
from inscan.callbacks.scattered import ScatteredMap
from inscan.callbacks.target import Target
from inscan.callbacks.updates import Allocate, Notes, NotUnderstood
from inscan.callbacks.xrf import XRFMap

__all__ = ["xrf_target"]


def xrf_target(
    start: Mapping[str, Any], profile: BeamlineProfile, allocate: Allocate, notes: Notes
) -> Target:
    """Return what a fluorescence run's data become: a raster, one counted from where the motors
    stood, or points anywhere.

    Parameters
    ----------
    start, profile, allocate, notes
        See `inscan.callbacks.assembly.open_assembler`.

    Raises
    ------
    NotUnderstood
        The start document does not say where the pixels lie; names the profile key.
    """
    try:
        layout = read_start(start, profile.geometry)
        if isinstance(layout, Points):
            return ScatteredMap(start, profile, allocate, notes, layout)
        geometry = ScanGeometry.of(layout)
    except GeometryError as error:
        raise NotUnderstood(f"run {start['uid'][:8]}: {error}") from error
    for warning in layout.warnings:
        notes.add(warning)
    kind = RelativeMap if layout.relative else XRFMap
    return kind(start, profile, allocate, notes, geometry)
