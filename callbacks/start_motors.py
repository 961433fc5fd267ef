"""Which motors made a map, in which order and units, by its start document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from inscan.callbacks.profile import start_value
from inscan.callbacks.profile_sections import Geometry
from inscan.callbacks.start_lists import GeometryError, pair

__all__ = ["motors_of", "motors_of_points", "units_of"]


def motors_of(start: Mapping[str, Any], keys: Geometry) -> tuple[str, str]:
    """Return the names of the slow and of the fast motor; GeometryError when there are not two."""
    if not _together(keys):
        names = []
        for axis, path in (("slow", keys.slow_motor), ("fast", keys.fast_motor)):
            name = None if path is None else start_value(start, path)
            if not isinstance(name, str) or not name:
                raise GeometryError(
                    f"the start document names no {axis} motor at {path!r}"
                    f" (geometry.{axis}_motor): got {name!r:.60}"
                )
            names.append(name)
        return names[0], names[1]
    if start_value(start, keys.motors) is None and keys.slow_readback and keys.fast_readback:
        # Flown by a box that records positions: the start document may name no motor at all.
        return keys.slow_readback, keys.fast_readback
    motors = pair(start, keys.motors, "motors")
    if not all(isinstance(name, str) and name for name in motors):
        raise GeometryError(f"start.{keys.motors} = {motors!r:.80}: expected two names of motors")
    if motors[0] == motors[1]:
        raise GeometryError(f"start.{keys.motors} = {motors!r:.80}: expected two different motors")
    slow, fast = (0, 1) if keys.order == "slow_fast" else (1, 0)
    return motors[slow], motors[fast]


def motors_of_points(start: Mapping[str, Any], keys: Geometry) -> tuple[tuple[str, str], str]:
    """Return the (slow, fast) motors of points that come in no rows, and a warning or nothing.

    ``scan_nd``, on which spirals are built, lists its motors in an order of chance (that of a set), so
    that the list says nothing. Spirals say it in their hints: x, y; a square spiral y, x. Where
    nothing does, names decide, so that the same plan always makes the same map.
    """
    motors = motors_of(start, keys)
    pattern = str(start.get("plan_pattern") or "")
    own = not _together(keys) or keys.motors != Geometry().motors
    if own or pattern in _ORDERED or start_value(start, keys.motors) is None:
        return motors, ""
    if pattern.startswith("spiral"):
        hinted = _hinted(start, motors)
        if hinted is not None:
            return (hinted if pattern == "spiral_square" else (hinted[1], hinted[0])), ""
    fast, slow = sorted(motors)
    return (slow, fast), (
        f"the plan does not say which motor is slow: {slow} is taken along rows, {fast} along columns"
        " (geometry.slow_motor and geometry.fast_motor say otherwise)"
    )


_ORDERED = ("inner_product", "inner_list_product", "outer_product", "outer_list_product")


def _hinted(start: Mapping[str, Any], motors: tuple[str, str]) -> tuple[str, str] | None:
    """Return the motors in the order of the hints, None where those do not name both."""
    hints = start.get("hints")
    dimensions = hints.get("dimensions") if isinstance(hints, Mapping) else None
    if not isinstance(dimensions, Sequence) or len(dimensions) != 2:
        return None
    found = []
    for dimension in dimensions:
        fields = dimension[0]
        if not isinstance(fields, Sequence) or isinstance(fields, str):
            return None
        # A motor's hinted field has its name, or begins with it.
        named = [m for m in motors if any(f == m or str(f).startswith(f"{m}_") for f in fields)]
        if len(named) != 1:
            return None
        found += named
    return (found[0], found[1]) if found[0] != found[1] else None


def units_of(start: Mapping[str, Any], keys: Geometry) -> tuple[str, str]:
    """Return the units of the slow and fast axis, empty where the start document has none."""
    found = []
    for path in (keys.slow_units, keys.fast_units):
        value = None if path is None else start_value(start, path)
        found.append(value if isinstance(value, str) and value else keys.units or "")
    return found[0], found[1]


def _together(keys: Geometry) -> bool:
    """Whether both motors stand in one list."""
    return keys.slow_motor is None and keys.fast_motor is None
