"""What people should know of a fluorescence map: drifts, wrong units, rows that were cut short."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from inscan.callbacks.geometry import ScanGeometry
from inscan.callbacks.updates import Notes
from inscan.callbacks.xrf_layout import XRFLayout

__all__ = ["check_live_times", "check_positions", "check_rows"]

# Live times are shorter than the dwell, by the dead time; beyond this factor the unit is wrong.
_LIVE_OFF = 5.0


def check_positions(geometry: ScanGeometry, arrays: Mapping[str, np.ndarray], notes: Notes) -> None:
    """Compare readbacks with the raster: a drift or a wrong geometry must not pass unseen.

    Parameters
    ----------
    geometry
        Raster as planned.
    arrays
        ``position`` (2, row, col) and ``measured`` (row, col) of an update.
    notes
        Is told.
    """
    off = np.abs(arrays["position"] - geometry.positions())
    steps = np.abs([geometry.slow_step, geometry.fast_step])
    # Readbacks that were not read (NaN) say nothing; encoders round.
    far = (off > 0.5 * (1 + 1e-6) * steps[:, None, None]).any(axis=0) & arrays["measured"]
    notes.set(
        "pixels whose motor readbacks are more than half a step from where the start document"
        " says: drift, or a wrong geometry; the readbacks are in `position`",
        int(far.sum()),
    )


def check_live_times(
    layout: XRFLayout, live: float | None, dwell: float | None, notes: Notes
) -> None:
    """Compare recorded live times with the dwell: clocks count in many units.

    Parameters
    ----------
    layout
        Whether live times are recorded.
    live, dwell
        Median live time and dwell, s; None: unknown.
    notes
        Is told.
    """
    recorded = any(column.role == "live_time" for column in layout.columns.values())
    if recorded and live is not None and dwell:
        notes.set(
            f"live times do not fit the dwell of {dwell:g} s: see live_time_s in the profile",
            int(not 1 / _LIVE_OFF <= live / dwell <= _LIVE_OFF),
        )


def check_rows(
    layout: XRFLayout,
    geometry: ScanGeometry,
    recorded: Mapping[int, int],
    unknown: np.ndarray,
    notes: Notes,
) -> None:
    """Say which rows were cut short or went on too long, and which positions are computed.

    Parameters
    ----------
    layout, geometry
        What is recorded, and what was planned.
    recorded
        Row, from 1 -> number of its pixels that were recorded.
    unknown
        (row,) bool: measured, but without a slow position of its own.
    notes
        Is told; nothing where the events are no rows.
    """
    if layout.way != "rows":
        return
    cols = geometry.shape[1]
    notes.set(
        f"rows with fewer pixels than the {cols} planned: the others are masked",
        sum(n < cols for n in recorded.values()),
    )
    notes.set(
        f"rows with more pixels than the {cols} planned: those beyond are left out",
        sum(n > cols for n in recorded.values()),
    )
    roles = {column.role for column in layout.columns.values()}
    if "slow" not in roles:
        notes.set(
            f"rows without a recorded position of {geometry.slow_motor}: computed from the plan",
            int(unknown.sum()),
        )
    if "fast" not in roles:
        notes.set(
            f"no positions of {geometry.fast_motor} are recorded (xrf.rows.positions): computed"
            " from the plan",
            1,
        )
