"""Numbers out of documents: what is a reading, what is none, and what no instrument can have measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["MOST", "moment", "reading", "readings"]

MOST = 1e15
"""From here on a value is no reading of counts, light, time or position: it is masked. Well within float32, so that
squares and sums of readings stay finite."""


def reading(value: Any) -> float:
    """Return one number of a document; NaN for null, which stands for it in JSON.

    Raises
    ------
    TypeError, ValueError, OverflowError
        Text (also that of a number), a complex number, several numbers, or an integer that no float holds.
    """
    if value is None:
        return math.nan
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    if isinstance(value, str | bytes | bytearray | complex | np.complexfloating):
        raise TypeError(f"{value!r:.40} is no number")
    return float(value)


def readings(values: Any) -> np.ndarray:
    """Return a number, or a tuple of them, as an array; see `reading`."""
    array = np.array(values)
    if array.dtype.kind in "buif":
        return array.astype(np.float64)
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        return np.array(reading(values))
    return np.array([reading(value) for value in values])


def moment(taken: Any) -> float:
    """Return the time of an event; 0 where its clock said none, so that any other moment is later."""
    time = reading(taken)
    return time if math.isfinite(time) else 0.0
