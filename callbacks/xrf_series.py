"""Which maps are one measurement at several incident energies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from inscan.callbacks.geometry import ScanGeometry
from inscan.callbacks.run_meta import plain

__all__ = ["series_of"]

# What must agree besides the raster. Plans of fluorescence XANES leave no identifier of the series.
_SAME = ("beamline_id", "sample", "data_session", "proposal", "cycle")


def series_of(
    start: Mapping[str, Any], profile: str, geometry: ScanGeometry, energy_ev: float | None
) -> dict[str, Any] | None:
    """Return to which series of maps a run belongs.

    Maps are a series when the profile, the sample, the proposal and the raster agree: number of
    points, motors, and where the first and last lie (to six digits: set points are the same to the
    last bit, what has gone through text need not be). The energy and the dwell are free.

    Parameters
    ----------
    start
        Start document.
    profile
        Name of the profile.
    geometry
        Raster of the map.
    energy_ev
        Incident energy, eV. None: unknown, the map is in no series.

    Returns
    -------
    dict or None
        ``key``: 32 hexadecimal digits, the same for all maps of a series; ``energy_ev``.
    """
    if energy_ev is None:
        return None
    same: dict[str, Any] = {name: plain(start.get(name)) for name in _SAME}
    ends = (geometry.slow_first, geometry.slow_last, geometry.fast_first, geometry.fast_last)
    same |= {
        "profile": profile,
        "shape": list(geometry.shape),
        "motors": [geometry.slow_motor, geometry.fast_motor],
        "ends": [f"{end + 0.0:.6g}" for end in ends],
    }
    text = json.dumps(same, sort_keys=True, ensure_ascii=True)
    return {"key": hashlib.sha256(text.encode()).hexdigest()[:32], "energy_ev": energy_ev}
