"""What every update says of its run, copied from the start document."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from inscan.callbacks.profile import BeamlineProfile, start_value

__all__ = ["bulky", "looked_for", "number_at", "plain", "run_meta"]

# Who may see the raw run may see what is made of it; and how runs belong together.
_COPIED = (
    "beamline_id",
    "sample",
    "purpose",
    "scan",
    "data_session",
    "proposal",
    "cycle",
    "tiled_access_tags",
    "parent_uid",
    "region",
    "rescan_proposal",
    "replay_of",
)
_LOOKED_FOR = {
    "targets",
    "elements",
    "together",
    "scale",
    "max_regions",
    "min_score",
    "precision",
    "energies",
}
_MOST_LINES = 100
_MOST_CHARACTERS = 1 << 16
_DEEPEST = 64


def run_meta(start: Mapping[str, Any], profile: BeamlineProfile, stream: str) -> dict[str, Any]:
    """Return the part of an update's meta that the start document decides; JSON-able."""
    dwell = (profile.xrf or profile.txm).dwell  # type: ignore[union-attr]
    left = bulky(start)
    return {
        "technique": profile.technique,
        "profile": profile.name,
        "run_uid": start["uid"],
        "scan_id": plain(start.get("scan_id")),
        "start_time": plain(start.get("time")),
        "stream": stream,
        "dwell": None if dwell is None else number_at(start, dwell),
        "rescan": looked_for(start, profile),
        **{key: plain(start[key]) for key in _COPIED if key in start and key not in left},
    }


def bulky(start: Mapping[str, Any]) -> list[str]:
    """Return the keys that would be copied, but hold more than a result should say of itself; the raw run has them."""
    return [key for key in _COPIED if key in start and not _fits(start[key])]


def _fits(value: Any, room: int = _MOST_CHARACTERS) -> bool:
    if isinstance(value, str | int | float | bool) or value is None:
        # Digits of a long integer count only where it could have as many.
        return value.bit_length() < room if isinstance(value, int) else len(str(value)) <= room
    try:
        return len(json.dumps(plain(value))) <= room
    except ValueError:  # an integer of thousands of digits
        return False


def looked_for(start: Mapping[str, Any], profile: BeamlineProfile) -> dict[str, Any]:
    """Return how places worth measuring again are looked for; limits are the service's matter.

    A survey may ask for a precision of its own: ``{"inscan": {"precision": {"Fe_K": 0.1}}}`` in its start document.
    What it asks for that is no share of a line's value is left out.
    """
    wanted = profile.rescan.model_dump(mode="json", include=_LOOKED_FOR)
    asked = start_value(start, "inscan.precision")
    if isinstance(asked, Mapping):
        own: dict[str, float] = {}
        for name, share in list(asked.items())[:_MOST_LINES]:
            if isinstance(share, int | float) and not isinstance(share, bool) and 0 < share <= 1:
                own[str(name)] = float(share)
        wanted["precision"] = own
        # Who asks for a precision goes on until it is reached; spots would be measured besides.
        if own and "precision" in wanted["targets"]:
            wanted["targets"] = ["precision"]
    return wanted


def number_at(start: Mapping[str, Any], path: str) -> float | None:
    """Return the finite number at a dotted path of a start document, None where there is none."""
    value = start_value(start, path)
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None  # an integer that no float holds
    return number if math.isfinite(number) else None


def plain(value: Any, depth: int = 0) -> Any:
    """Return the value in types that JSON has; what it has no type for, or nests deeper than 64, becomes text."""
    if depth >= _DEEPEST and isinstance(value, Mapping | list | tuple | set | frozenset):
        return f"({type(value).__name__} nested more than {_DEEPEST} deep)"
    if isinstance(value, Mapping):
        return {str(key): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist(), depth)
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item, depth + 1) for item in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        return f"(an integer of {value.bit_length()} bits)"  # no codec has it
    return value if value is None or isinstance(value, str | int | bool) else str(value)
