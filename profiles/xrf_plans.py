"""Plans of the simulated microscope: a step raster and a fly raster with the same metadata."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import numpy as np
from bluesky.utils import Msg

from inscan.profiles.beam import Scaler
from inscan.profiles.stages import Stage
from inscan.profiles.xspress3 import Xspress3
from inscan.profiles.xspress3_fly import FlyRow, Xspress3Fly

__all__ = ["fly_raster", "step_raster"]

Plan = Generator[Msg, Any, Any]


def step_raster(
    det: Xspress3,
    scaler: Scaler,
    slow_motor: Stage,
    s0: float,
    s1: float,
    ns: int,
    fast_motor: Stage,
    f0: float,
    f1: float,
    nf: int,
    *,
    dwell: float,
    snake: bool = False,
    md: Mapping[str, Any] | None = None,
) -> Plan:
    """Take a map point by point: `bluesky.plans.grid_scan` with the metadata of a map.

    Parameters
    ----------
    det, scaler
        Detectors.
    slow_motor, s0, s1, ns
        Centres of the first and last row, motor units, and their number; at least 1.
    fast_motor, f0, f1, nf
        The same for columns.
    dwell
        Time per point, s.
    snake
        Take every second row backwards.
    md
        Added to the start document.

    Raises
    ------
    ValueError
        No points, or no time.
    LimitError
        A corner outside the soft limits; nothing has moved then.
    """
    _check(slow_motor, (s0, s1), ns, fast_motor, (f0, f1), nf, dwell)
    meta = _metadata("XRF_STEP", det, dwell, md)
    yield from bps.mv(det.dwell, dwell)
    return (
        yield from bp.grid_scan(
            [det, scaler],
            slow_motor,
            *(s0, s1, ns),
            fast_motor,
            *(f0, f1, nf),
            snake_axes=snake,
            md=meta,
        )
    )


def fly_raster(
    det: Xspress3Fly,
    slow_motor: Stage,
    s0: float,
    s1: float,
    ns: int,
    fast_motor: Stage,
    f0: float,
    f1: float,
    nf: int,
    *,
    dwell: float,
    snake: bool = False,
    run_up: float = 0.0,
    backlash: float = 0.0,
    md: Mapping[str, Any] | None = None,
) -> Plan:
    """Take a map in flight: rows along the fast motor, each announced when it is complete.

    May be paused, resumed, stopped and aborted anywhere; a row in flight at a pause is flown again.
    For parameters and errors see `step_raster`.

    Parameters
    ----------
    run_up
        How far before its first and beyond its last pixel the fast motor goes in each row, to fly at constant speed
        over them; motor units.
    backlash
        How far before the first row the slow motor turns, so that it comes to all rows from one side; motor units.
    """
    along = -1.0 if f1 < f0 else 1.0
    before = s0 - (-backlash if s1 < s0 else backlash)
    reach = (f0 - along * run_up, f1 + along * run_up)
    _check(slow_motor, (s0, s1, before), ns, fast_motor, (f0, f1, *reach), nf, dwell)
    meta = {
        "plan_name": "fly_raster",
        "detectors": [det.name],
        "motors": [slow_motor.name, fast_motor.name],
        "shape": [ns, nf],
        "extents": [[s0, s1], [f0, f1]],
        "snaking": [False, bool(snake)],
        "num_points": ns * nf,
        "hints": {
            "gridding": "rectilinear",
            "dimensions": [[[slow_motor.name], "primary"], [[fast_motor.name], "primary"]],
        },
        **_metadata("XRF_FLY", det, dwell, md),
    }
    yield from bps.mv(det.dwell, dwell)

    @bpp.stage_decorator([det])
    @bpp.run_decorator(md=meta)
    def rows() -> Plan:
        # bluesky annotates this for detectors that are read; with collect it takes flyers.
        yield from bps.declare_stream(det, name="primary", collect=True)  # pyright: ignore[reportArgumentType]
        for index, slow in enumerate(np.linspace(s0, s1, ns)):
            back = bool(snake and index % 2)
            begin, end = (f1, f0) if back else (f0, f1)
            first, last = reversed(reach) if back else reach
            yield from bps.checkpoint()
            if index == 0 and backlash:
                yield from bps.mv(slow_motor, before)
            yield from bps.mv(slow_motor, float(slow), fast_motor, first)
            row = FlyRow(index, slow_motor.here, begin, end, nf)
            yield from bps.prepare(det, row, wait=True)
            yield from bps.kickoff(det, wait=True)
            yield Msg("set", fast_motor, last, group="flight")
            yield from bps.collect_while_completing(
                [det], [det], flush_period=0.5, stream_name="primary"
            )
            yield from bps.wait("flight")

    return (yield from rows())


def _metadata(
    kind: str, det: Xspress3 | Xspress3Fly, dwell: float, md: Mapping[str, Any] | None
) -> dict[str, Any]:
    given = dict(md or {})
    scan = {"type": kind, "energy": det.incident_energy, "dwell": dwell}
    return {**given, "scan": {**scan, **given.get("scan", {})}}


def _check(
    slow_motor: Stage,
    slow: tuple[float, ...],
    ns: int,
    fast_motor: Stage,
    fast: tuple[float, ...],
    nf: int,
    dwell: float,
) -> None:
    """Refuse what cannot be done before anything moves."""
    if ns < 1 or nf < 1 or not dwell > 0:
        raise ValueError(f"{ns} x {nf} points of {dwell} s: expected at least 1 x 1 and above 0 s")
    for motor, ends in ((slow_motor, slow), (fast_motor, fast)):
        for end in ends:
            motor.check_value(end)
