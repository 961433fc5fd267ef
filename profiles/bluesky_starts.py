"""Start documents of plain Bluesky plans, and where their points lie.

They are those that bluesky 1.15.1 writes; tests compare them with its own plans. The order of motors in
plans that are built on ``scan_nd`` is one of chance there, and sorted here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Plan", "grid", "list_grid", "scattered", "spiral", "square_spiral"]

_MODULE = "bluesky.plan_patterns"


@dataclass(frozen=True)
class Plan:
    """Points in the order they are taken.

    Attributes
    ----------
    start
        What the plan writes into the start document.
    positions
        (2, n): slow and fast readbacks in motor units.
    motors
        (slow, fast).
    """

    start: Mapping[str, Any]
    positions: np.ndarray
    motors: tuple[str, str] = ("sample_y", "sample_x")

    @property
    def n(self) -> int:
        """Number of points."""
        return self.positions.shape[1]


def _motor(name: str) -> str:
    return (
        f"SynAxis(prefix='', name='{name}', read_attrs=['readback', 'setpoint'],"
        " configuration_attrs=['velocity', 'acceleration'])"
    )


def _hints(motors: Sequence[str], **hints: Any) -> dict[str, Any]:
    return hints | {"dimensions": [[[motor], "primary"] for motor in motors]}


def _start(name: str, motors: Sequence[str], n: int, **more: Any) -> dict[str, Any]:
    return {
        "plan_type": "generator",
        "plan_name": name,
        "motors": list(motors),
        "detectors": ["xs", "sclr"],
        "num_points": n,
        "num_intervals": n - 1,
        **more,
    }


def grid(
    shape: tuple[int, int],
    slow: tuple[float, float],
    fast: tuple[float, float],
    *,
    snake: bool = False,
    relative_to: tuple[float, float] | None = None,
) -> Plan:
    """``grid_scan``, or with ``relative_to`` (slow, fast) ``rel_grid_scan`` from there."""
    axes = np.linspace(*slow, shape[0]), np.linspace(*fast, shape[1])
    motors = Plan.motors
    args: list[Any] = [
        _motor(motors[0]),
        *slow,
        shape[0],
        _motor(motors[1]),
        *fast,
        shape[1],
        snake,
    ]
    start = _start(
        "grid_scan" if relative_to is None else "rel_grid_scan",
        motors,
        shape[0] * shape[1],
        shape=list(shape),
        extents=[list(slow), list(fast)],
        snaking=[False, snake],
        plan_pattern="outer_product",
        plan_pattern_args={"args": args},
        plan_pattern_module=_MODULE,
        hints=_hints(motors, gridding="rectilinear"),
    )
    offset = np.array(relative_to or (0.0, 0.0))[:, None]
    return Plan(start, _raster(*axes, snake) + offset)


def list_grid(slow: Sequence[float], fast: Sequence[float], *, snake: bool = False) -> Plan:
    """``list_grid_scan``: its extents are least and most, and only the pattern has the lists."""
    motors = Plan.motors
    args = [_motor(motors[0]), list(slow), _motor(motors[1]), list(fast)]
    start = _start(
        "list_grid_scan",
        motors,
        len(slow) * len(fast),
        shape=[len(slow), len(fast)],
        extents=[[min(slow), max(slow)], [min(fast), max(fast)]],
        snake_axes=repr(snake),
        plan_pattern="outer_list_product",
        plan_pattern_args={"args": args, "snake_axes": repr(snake)},
        plan_pattern_module=_MODULE,
        hints=_hints(motors),
    )
    return Plan(start, _raster(np.asarray(slow, float), np.asarray(fast, float), snake))


def spiral(reach: float, dr: float, nth: int, *, centre: tuple[float, float] = (0.0, 0.0)) -> Plan:
    """``spiral``: ring i has i * nth points at the radius i * dr, as far as ``reach`` both ways."""
    points = [
        (ring * dr * math.sin(turn), ring * dr * math.cos(turn))
        for ring in range(1, int(2 * reach / dr) + 2)
        for turn in 2 * np.pi * np.arange(ring * nth) / (ring * nth)
    ]
    kept = np.array([p for p in points if max(map(abs, p)) <= reach]).T
    y, x = Plan.motors
    start = _start(
        "spiral",
        (x, y),
        kept.shape[1],
        extents=[[c - 2 * reach, c + 2 * reach] for c in (centre[1], centre[0])],
        plan_pattern="spiral",
        plan_pattern_args={
            "x_motor": _motor(x),
            "y_motor": _motor(y),
            "x_start": centre[1],
            "y_start": centre[0],
            "x_range": 2 * reach,
            "y_range": 2 * reach,
            "dr": dr,
            "nth": nth,
            "dr_y": None,
            "tilt": 0.0,
        },
        plan_pattern_module=_MODULE,
        hints=_hints((x, y)),
    )
    return Plan(start, kept + np.array(centre)[:, None])


def square_spiral(
    shape: tuple[int, int], slow: tuple[float, float], fast: tuple[float, float]
) -> Plan:
    """``spiral_square``: an even grid from the middle outwards, motors x first, shape y first."""
    rows, cols = np.indices(shape).reshape(2, -1)
    away = rows - (shape[0] - 1) / 2, cols - (shape[1] - 1) / 2
    order = np.lexsort((np.arctan2(*away), np.maximum(*np.abs(away))))
    axes = np.linspace(*slow, shape[0]), np.linspace(*fast, shape[1])
    y, x = Plan.motors
    start = _start(
        "spiral_square",
        (x, y),
        rows.size,
        shape=list(shape),
        extents=[list(slow), list(fast)],
        plan_pattern="spiral_square",
        hints=_hints((y, x), gridding="rectilinear_nonsequential"),
    )
    return Plan(start, np.stack([axes[0][rows[order]], axes[1][cols[order]]]))


def scattered(positions: np.ndarray, *, known: bool = True) -> Plan:
    """``scan_nd`` over any points (2, n); ``known``: the start document says how many."""
    start = _start("scan_nd", Plan.motors, positions.shape[1], hints=_hints(Plan.motors))
    if not known:
        del start["num_points"], start["num_intervals"]
    return Plan(start, np.asarray(positions, float))


def _raster(slow: np.ndarray, fast: np.ndarray, snake: bool) -> np.ndarray:
    rows = [fast[::-1] if snake and row % 2 else fast for row in range(len(slow))]
    return np.stack([np.repeat(slow, len(fast)), np.concatenate(rows)])
