"""The nearest thing the codec carries, for documents with values that it refuses.

Called in the RunEngine's thread with whatever people put into metadata, so nothing in here may take long, ask
somebody over a network, or raise: the text of a foreign object is asked for only where that is known to be harmless.
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from inscan.callbacks.wire import MAX_DEPTH, WireError, pack_parts

__all__ = ["legible"]

_MAX_TEXT = 2000
_MAX_PARTS = (
    5000  # looked at in one document: cycles have no end, and their number doubles with each level
)
_MAX_S = 0.05
_MAX_ARRAY = 10_000  # elements of an object array, or of a list that cannot be packed as it is
_SCALARS = (str, int, float, bool, type(None))
_PLAIN = (int, complex, bytes, bytearray, range, type)
_HARMLESS = (
    "datetime",
    "decimal",
    "enum",
    "fractions",
    "ipaddress",
    "numpy",
    "pathlib",
    "uuid",
    "zoneinfo",
)
"""Modules whose classes have a representation of their own."""


class _Parts:
    """How many parts of a document may still be looked at, and for how much of this thread's time."""

    def __init__(self) -> None:
        self.left = _MAX_PARTS
        self.until = time.thread_time() + _MAX_S

    def take(self) -> bool:
        self.left -= 1
        return self.left >= 0 and time.thread_time() < self.until


def legible(value: Any) -> Any:
    """What can be packed instead of a value that cannot.

    Foreign objects become the text of their representation where their class has it from a few modules of Python's
    library or NumPy, else the name of their class; object arrays become lists, masked entries NaN, long integers
    text. What is fine stays as it is. Never raises, and looks at a bounded number of parts.
    """
    return _legible(value, 0, _Parts())


def _legible(value: Any, depth: int, parts: _Parts) -> Any:
    if type(value) in _SCALARS:  # such as the uid: whatever else there is, these stay
        return value if _packs(value) else _text(value)
    if not parts.take():
        return _name_of(value)
    if _packs(value):
        return value
    if depth >= MAX_DEPTH - 4:  # room for what the value is wrapped in
        return _text(value)
    try:
        return _taken_apart(value, depth + 1, parts)
    except Exception:  # noqa: BLE001 - a foreign class may raise anything; its name still says what was there
        return _name_of(value)


def _taken_apart(value: Any, depth: int, parts: _Parts) -> Any:
    if isinstance(value, Mapping):
        if len(value) > _MAX_ARRAY:
            return f"{_name_of(value)} of {len(value)} entries"
        return {_key(key): _legible(item, depth, parts) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        if len(value) > _MAX_ARRAY:
            return f"{_name_of(value)} of {len(value)} items"
        return [_legible(item, depth, parts) for item in value]
    if isinstance(value, np.ma.MaskedArray) and value.dtype.kind in "biuf":
        return np.ma.filled(value.astype(float), np.nan)
    if isinstance(value, np.ndarray) and value.dtype.kind not in "biufcSU":
        if value.size > _MAX_ARRAY:
            return f"array of {value.dtype}, shape {value.shape}"
        return _legible(value.tolist(), depth, parts)
    return _text(value)


def _packs(value: Any) -> bool:
    try:
        pack_parts(value)
    except WireError:
        return False
    except Exception:  # noqa: BLE001 - conversion of a foreign class: it may raise anything
        return False
    return True


def _key(key: Any) -> Any:
    return key if isinstance(key, str | int) and _packs(key) else _text(key)


def _text(value: Any) -> str:
    if isinstance(value, str):
        text: str = value
    elif _harmless(value):
        try:
            text = repr(value)
        except Exception:  # noqa: BLE001 - such as an integer of too many digits
            text = _name_of(value)
    else:
        text = _name_of(value)
    return text[:_MAX_TEXT].encode("utf-8", "backslashreplace").decode()


def _harmless(value: Any) -> bool:
    """Whether its representation asks no other object for its own, and nobody else for anything."""
    kind = type(value)
    if kind is tuple:  # as a key of a mapping
        return all(isinstance(item, str | int | float | None) for item in value)
    owner = next((one for one in kind.__mro__ if "__repr__" in one.__dict__), object)
    return owner in _PLAIN or owner.__module__.partition(".")[0] in _HARMLESS


def _name_of(value: Any) -> str:
    return f"<{type(value).__module__}.{type(value).__qualname__}>"[:_MAX_TEXT]
