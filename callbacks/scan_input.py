"""Rasters that are written as one flat list: [first, last, number or step] of each axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from inscan.callbacks.profile import start_value
from inscan.callbacks.profile_sections import Geometry
from inscan.callbacks.start_lists import GeometryError, numbers

__all__ = ["FlatList", "read_flat_list"]

# Counts and steps of people do not come out whole to the last bit.
_WHOLE = 1e-6


@dataclass(frozen=True)
class FlatList:
    """What a flat list says.

    Attributes
    ----------
    shape
        (row, col).
    slow, fast
        Centres of the first and last pixel.
    warnings
        What people should know.
    """

    shape: tuple[int, int]
    slow: tuple[float, float]
    fast: tuple[float, float]
    warnings: tuple[str, ...]


def read_flat_list(start: Mapping[str, Any], keys: Geometry) -> FlatList:
    """Read [fast first, last, num | step, slow first, last, num | step, ...].

    Parameters
    ----------
    start
        Start document.
    keys
        ``scan_input`` and its form; ``shape`` and ``order`` to compare with.

    Raises
    ------
    GeometryError
        The list is something else; names the profile key.
    """
    path = str(keys.scan_input)
    given = start_value(start, path)
    values = numbers(given, path, 6)
    if len(values) < 6:
        raise GeometryError(
            f"start.{path} = {given!r:.80}: expected [first, last, number or step] of the fast and"
            " of the slow axis (geometry.scan_input)"
        )
    warnings: list[str] = []
    counts: list[int] = []
    ends: list[tuple[float, float]] = []
    said = _planned_counts(start, keys)
    form = keys.scan_input_form
    if form == "fast_slow":
        form = _form_by_shape(values, said, path, keys)
    for axis, number in (("fast", 0), ("slow", 1)):
        first, last, third = values[3 * number : 3 * number + 3]
        if form == "fast_slow_num":
            if not 1 <= third < 1 << 31 or third != int(third):
                raise GeometryError(
                    f"start.{path} = {given!r:.80}: {third:g} is no number of {axis} points; does it"
                    " hold steps (geometry.scan_input_form: fast_slow_step)?"
                )
            counts.append(int(third))
            ends.append((first, last))
            continue
        count, last = _count_of(first, last, third, said[number], axis, path, warnings)
        counts.append(count)
        ends.append((first, last))
    if said not in ((None, None), tuple(counts)):
        warnings.append(
            f"start.{keys.shape} says {said} fast and slow points, start.{path} says {tuple(counts)};"
            " the latter is believed"
        )
    return FlatList((counts[1], counts[0]), ends[1], ends[0], tuple(warnings))


def _form_by_shape(
    values: Sequence[float], said: tuple[int | None, int | None], path: str, keys: Geometry
) -> Literal["fast_slow_num", "fast_slow_step"]:
    """Return what the third entries are: numbers of points, or steps."""
    if said == (values[2], values[5]):
        return "fast_slow_num"
    counts = [
        _intervals(*values[3 * axis : 3 * axis + 3]) + 1 if count is not None else math.nan
        for axis, count in enumerate(said)
    ]
    if all(abs(found - (count or 0)) < 1 for found, count in zip(counts, said, strict=True)):
        return "fast_slow_step"
    raise GeometryError(
        f"start.{path} = {list(values[:6])} fits start.{keys.shape} = {said} (fast, slow) neither with"
        " numbers of points nor with steps: set geometry.scan_input_form"
    )


def _intervals(first: float, last: float, step: float) -> float:
    if step == 0:
        return 0.0 if first == last else math.nan
    return abs((last - first) / step)


def _count_of(
    first: float,
    last: float,
    step: float,
    said: int | None,
    axis: str,
    path: str,
    warnings: list[str],
) -> tuple[int, float]:
    """Return the number of points of an axis given by its step, and where the last one lies."""
    intervals = _intervals(first, last, step)
    if not intervals < 1 << 28:
        raise GeometryError(
            f"start.{path}: the {axis} axis, {first:g} to {last:g} in steps of {step:g}, is no scan"
        )
    whole = math.floor(intervals + _WHOLE)
    if said is not None and abs(said - 1 - intervals) <= 1:
        whole = said - 1
    if abs(intervals - whole) > _WHOLE:
        end = first + math.copysign(whole * abs(step), last - first)
        warnings.append(
            f"the {axis} axis {first:g} to {last:g} is not a whole number of steps of {step:g}:"
            f" {whole + 1} points up to {end:g} are taken"
        )
        return whole + 1, end
    return whole + 1, last


def _planned_counts(start: Mapping[str, Any], keys: Geometry) -> tuple[int | None, int | None]:
    """Return (fast, slow) counts from the key of the shape, where it has any."""
    shape = start_value(start, keys.shape)
    if isinstance(shape, np.ndarray):
        shape = shape.tolist()
    if not isinstance(shape, Sequence) or isinstance(shape, str) or len(shape) != 2:
        return None, None
    if not all(isinstance(n, int | float) and n == n // 1 and 1 <= n < 1 << 31 for n in shape):
        return None, None
    fast, slow = shape if keys.order == "fast_slow" else reversed(shape)
    return int(fast), int(slow)
