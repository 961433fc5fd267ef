"""Which kind of fluorescence map a run is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inscan.callbacks.profile import BeamlineProfile
from inscan.callbacks.target import Target
from inscan.callbacks.updates import Allocate, Notes
from inscan.callbacks.xrf import XRFMap

__all__ = ["xrf_target"]


def xrf_target(
    start: Mapping[str, Any], profile: BeamlineProfile, allocate: Allocate, notes: Notes
) -> Target:
    """Return what a fluorescence run's data become.

    Parameters
    ----------
    start, profile, allocate, notes
        See `inscan.callbacks.assembly.open_assembler`.

    Raises
    ------
    NotUnderstood
        The start document does not say where the pixels lie.
    """
    return XRFMap(start, profile, allocate, notes)
