"""What a start document says of where the pixels lie. Nothing else reads shapes and extents.

Facts about Bluesky's own plans were read off documents of bluesky 1.15.1: ``grid_scan`` writes
shape, extents, snaking and motors, slow axis first; ``list_grid_scan`` writes min and max as extents
and its lists as ``plan_pattern_args``; ``spiral_square`` writes shape and extents (y first) although
its points come from the middle outwards; other spirals, ``scan_nd`` and scans
of two motors together write no shape, and plans built on ``scan_nd`` may write a shape alone.
``rel_`` plans write extents from where the motors stood.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inscan.callbacks.profile import start_value
from inscan.callbacks.profile_sections import Geometry
from inscan.callbacks.scan_input import read_flat_list
from inscan.callbacks.start_lists import GeometryError, numbers, pair
from inscan.callbacks.start_motors import motors_of, motors_of_points, units_of
from inscan.callbacks.updates import MALFORMED

__all__ = ["GeometryError", "Points", "Raster", "read_start"]


@dataclass(frozen=True)
class Raster:
    """A grid whose points come row by row.

    Attributes
    ----------
    shape
        (row, col).
    motors, units
        (slow, fast).
    slow, fast
        Centres of the first and last pixel in motor units.
    snaking
        Every second row was taken from last to first.
    slow_centres, fast_centres
        All centres, where they are not evenly spaced; else empty.
    relative
        Positions are counted from where the motors stood before.
    warnings
        What people should know.
    """

    shape: tuple[int, int]
    motors: tuple[str, str]
    units: tuple[str, str]
    slow: tuple[float, float]
    fast: tuple[float, float]
    snaking: bool
    slow_centres: tuple[float, ...] = ()
    fast_centres: tuple[float, ...] = ()
    relative: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Points:
    """Points anywhere, whose readbacks alone say where they lie.

    Attributes
    ----------
    motors, units
        (slow, fast).
    expected
        Number of points; None: the plan does not say.
    step
        (slow, fast) distance of the grid that they are put on, in motor units; None: not said.
    step_from
        What said the step, in words; empty: nothing did.
    pattern
        Name of the pattern, for people.
    warnings
        What people should know.
    """

    motors: tuple[str, str]
    units: tuple[str, str]
    expected: int | None
    step: tuple[float, float] | None
    step_from: str
    pattern: str
    warnings: tuple[str, ...] = ()


def read_start(start: Mapping[str, Any], keys: Geometry | None = None) -> Raster | Points:
    """Read where the pixels lie.

    Parameters
    ----------
    start
        Start document.
    keys
        Where it says what; None: as Bluesky's plans write it.

    Raises
    ------
    GeometryError
        It says neither a raster of two axes nor two motors; names the profile key to set.
    """
    keys = keys or Geometry()
    try:
        if keys.scan_input is not None and start_value(start, keys.scan_input) is not None:
            return _from_scan_input(start, keys)
        if _says(start, keys.shape) and not _nonsequential(start) and _has_extents(start, keys):
            raster = _from_shape(start, keys)
            return _points(start, keys) if raster is None else raster
        return _points(start, keys)
    except GeometryError:
        raise
    except MALFORMED as error:
        raise GeometryError(
            f"the geometry of the start document cannot be read: {type(error).__name__}: {error}"
        ) from error


def _says(start: Mapping[str, Any], path: str) -> bool:
    """Whether the path is there. With null in it, it is: that is a mistake, not another plan."""
    *parents, last = path.split(".")
    value = start_value(start, ".".join(parents)) if parents else start
    return isinstance(value, Mapping) and last in value


def _has_extents(start: Mapping[str, Any], keys: Geometry) -> bool:
    """Whether extents must be there. A plan that writes its shape alone does not say in what order its
    rows are taken; where the profile says where extents stand, their absence is a mistake."""
    return _says(start, keys.extents) or keys.extents != Geometry().extents


def _nonsequential(start: Mapping[str, Any]) -> bool:
    """Whether points of a grid come in another order than row by row."""
    hints = start.get("hints")
    gridding = hints.get("gridding") if isinstance(hints, Mapping) else None
    return gridding == "rectilinear_nonsequential" or start.get("plan_pattern") == "spiral_square"


def _from_shape(start: Mapping[str, Any], keys: Geometry) -> Raster | None:
    """Read shape and extents; None: the lists of the grid go up and down, rows are no neighbours."""
    shape = pair(start, keys.shape, "shape")
    extents = pair(start, keys.extents, "extents")
    slow, fast = (0, 1) if keys.order == "slow_fast" else (1, 0)
    try:
        if any(float(count) != int(count) for count in shape):
            raise GeometryError(f"start.{keys.shape} = {shape!r}: counts must be whole")
        ends = [(float(extents[axis][0]), float(extents[axis][1])) for axis in (slow, fast)]
        counts = int(shape[slow]), int(shape[fast])
    except GeometryError:
        raise
    except MALFORMED as error:
        raise GeometryError(
            f"start.{keys.shape} = {shape!r} and start.{keys.extents} = {extents!r}: expected"
            f" [rows, cols] and [[first, last], [first, last]]: {error}"
        ) from error
    motors = motors_of(start, keys)
    raster = Raster(
        shape=counts,
        motors=motors,
        units=units_of(start, keys),
        slow=ends[0],
        fast=ends[1],
        snaking=_snaking(start, keys, motors[1]),
        relative=_relative(start, keys),
    )
    return _with_lists(raster, start) if start.get("plan_pattern") == _LISTS else raster


_LISTS = "outer_list_product"


def _with_lists(raster: Raster, start: Mapping[str, Any]) -> Raster | None:
    """Take the positions of a grid of lists from the lists: its extents are their least and most."""
    pattern = start.get("plan_pattern_args")
    args = pattern.get("args") if isinstance(pattern, Mapping) else None
    if not isinstance(args, Sequence) or isinstance(args, str) or len(args) != 4:
        raise GeometryError(
            "a grid of lists (plan_pattern outer_list_product) without its lists in"
            " plan_pattern_args.args: its spacing is unknown, and it is not taken as even"
        )
    lists = []
    for values, count in zip((args[1], args[3]), raster.shape, strict=True):
        lists.append(numbers(values, "plan_pattern_args.args"))
        if len(lists[-1]) != count:
            raise GeometryError(
                f"plan_pattern_args.args has a list of {len(lists[-1])} positions, the shape has"
                f" {count}"
            )
    warnings = []
    ends: list[tuple[float, float]] = []
    centres: list[tuple[float, ...]] = []
    for name, values in zip(raster.motors, lists, strict=True):
        steps = np.diff(values)
        if len(steps) and not ((steps > 0).all() or (steps < 0).all()):
            return None
        even = not len(steps) or bool(np.allclose(steps, steps.mean(), rtol=1e-6, atol=0))
        ends.append((values[0], values[-1]))
        centres.append(() if even else tuple(values))
        if not even:
            warnings.append(
                f"{name} is not evenly spaced ({values[0]:g} to {values[-1]:g} in steps of"
                f" {np.abs(steps).min():g} to {np.abs(steps).max():g}): pixels of the map are not"
                " of one size; axes drawn with one step are nominal, `position` has the places"
            )
    return Raster(
        raster.shape,
        raster.motors,
        raster.units,
        ends[0],
        ends[1],
        raster.snaking,
        centres[0],
        centres[1],
        raster.relative,
        (*raster.warnings, *warnings),
    )


def _from_scan_input(start: Mapping[str, Any], keys: Geometry) -> Raster:
    flat = read_flat_list(start, keys)
    motors = motors_of(start, keys)
    return Raster(
        shape=flat.shape,
        motors=motors,
        units=units_of(start, keys),
        slow=flat.slow,
        fast=flat.fast,
        snaking=_snaking(start, keys, motors[1]),
        relative=_relative(start, keys),
        warnings=flat.warnings,
    )


def _points(start: Mapping[str, Any], keys: Geometry) -> Points:
    pattern = str(start.get("plan_pattern") or start.get("plan_name") or "unknown")[:60]
    motors, warning = motors_of_points(start, keys)
    expected = start.get("num_points")
    if isinstance(expected, bool) or not isinstance(expected, int) or expected < 1:
        expected = None
    if keys.grid_step is not None:
        step, said = keys.grid_step, "geometry.grid_step"
    else:
        step, said = _pattern_step(start)
    warnings = (warning,) if warning else ()
    return Points(motors, units_of(start, keys), expected, step, said, pattern, warnings)


def _pattern_step(start: Mapping[str, Any]) -> tuple[tuple[float, float] | None, str]:
    """Return (slow, fast) steps that a pattern of Bluesky's implies, and how they come about."""
    pattern = start.get("plan_pattern")
    args = start.get("plan_pattern_args")
    if pattern == "spiral_square" or _nonsequential(start):
        try:
            steps = [
                abs(float(last) - float(first)) / max(int(count) - 1, 1)
                for count, (first, last) in zip(start["shape"], start["extents"], strict=True)
            ]
        except MALFORMED:
            return None, ""
        return _usable(steps, "extents and shape of the plan")
    if not isinstance(args, Mapping):
        return None, ""
    try:
        along = float(args["dr"])
        across = along if args.get("dr_y") is None else float(args["dr_y"])
        if pattern == "spiral":
            # Ring i has i * nth points on a circle of radius i * dr.
            factor = max(1.0, 2 * math.pi / float(args["nth"]))
            return _usable([across * factor, along * factor], "the spiral's dr and nth")
        if pattern == "spiral_fermat":
            # Point i lies at radius sqrt(i) * dr / factor: each has the area pi (dr / factor)^2.
            factor = math.sqrt(math.pi) / float(args["factor"])
            return _usable([across * factor, along * factor], "the spiral's dr and factor")
    except (*MALFORMED, ZeroDivisionError):
        return None, ""
    return None, ""


def _usable(steps: Sequence[float], said: str) -> tuple[tuple[float, float] | None, str]:
    if len(steps) != 2 or not all(math.isfinite(step) and step > 0 for step in steps):
        return None, ""
    return (steps[0], steps[1]), said


def _snaking(start: Mapping[str, Any], keys: Geometry, fast_motor: str) -> bool:
    snaking = start_value(start, keys.snaking)
    if snaking is None and start.get("plan_pattern") == _LISTS:
        # Written as text: True, False, or the motors that snake as their repr.
        text = str(start.get("snake_axes"))
        return text == "True" or f"'{fast_motor}'" in text
    if isinstance(snaking, np.ndarray):
        snaking = snaking.tolist()
    if isinstance(snaking, Sequence) and not isinstance(snaking, str):
        # The slow axis never snakes; with the fast axis first its flag comes first.
        snaking = snaking[0 if keys.order == "fast_slow" else -1] if snaking else False
    if isinstance(snaking, str):
        return snaking.strip().lower() in ("true", "1", "yes")
    return bool(snaking)


def _relative(start: Mapping[str, Any], keys: Geometry) -> bool:
    if keys.relative is not None:
        return keys.relative
    return str(start.get("plan_name") or "").startswith(("rel_", "relative_"))
