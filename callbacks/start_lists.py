"""Lists in start documents: of two axes, of numbers, also written as text."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from inscan.callbacks.profile import start_value

__all__ = ["GeometryError", "numbers", "pair"]

# A list in a start document that is longer than this is no list of positions.
_LONGEST_TEXT = 2000
_MOST_NUMBERS = 1 << 16
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_NUMPY_SCALAR = re.compile(r"np\.\w+\(([^()]*)\)")


class GeometryError(ValueError):
    """A start document that does not say where the map lies."""


def pair(start: Mapping[str, Any], path: str, key: str) -> Sequence[Any]:
    """Return the two entries at a path; GeometryError, naming the profile key, for anything else."""
    value = start_value(start, path)
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if value is None:
        raise GeometryError(f"the start document has no {path!r} (profile key geometry.{key})")
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise GeometryError(
            f"start.{path} = {value!r:.80}: expected two axes, a map has no more and no fewer"
            f" (profile key geometry.{key})"
        )
    return value


def numbers(value: Any, path: str, most: int = _MOST_NUMBERS) -> list[float]:
    """Return finite numbers from a list, or from the text of one; nothing of it is evaluated.

    Parameters
    ----------
    value
        A list, an array, or a text like ``[0, 9.5, 20]``.
    path
        Where it stands, for errors.
    most
        Numbers that are wanted; what follows them is left alone.

    Raises
    ------
    GeometryError
        Something else, or numbers that are not finite.
    """
    items = value
    if isinstance(items, str):
        if len(items) > _LONGEST_TEXT:
            raise GeometryError(f"start.{path}: a text of {len(items)} characters is no list")
        text = _NUMPY_SCALAR.sub(r"\1", items).strip()
        if text[:1] == "(" and text[-1:] == ")":
            text = f"[{text[1:-1].rstrip(', ')}]"
        try:
            items = json.loads(text)
        except (ValueError, RecursionError) as error:
            # `1.` and `.5` are numbers in Python's words, and none in JSON's.
            items = [part.strip() for part in text.strip("[]()").split(",")][:most]
            if not all(_NUMBER.fullmatch(part) for part in items):
                raise GeometryError(
                    f"start.{path} = {value!r:.80}: not a list of numbers: {error}"
                ) from error
    if isinstance(items, np.ndarray):
        items = items.tolist()
    if not isinstance(items, Sequence) or isinstance(items, str) or len(items) > _MOST_NUMBERS:
        raise GeometryError(f"start.{path} = {value!r:.80}: expected a list of numbers")
    try:
        found = [float(item) for item in items[:most]]
    except (TypeError, ValueError, OverflowError) as error:
        raise GeometryError(
            f"start.{path} = {value!r:.80}: not all are numbers: {error}"
        ) from error
    if not all(math.isfinite(number) for number in found):
        raise GeometryError(f"start.{path} = {value!r:.80}: every number must be finite")
    return found
