"""A run that gave nothing to a composite, as one of its layers."""

from collections.abc import Mapping
from typing import Any

__all__ = ["missing_layer"]


def missing_layer(missing: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a layer that is not there, as the others are described."""
    return {
        "uid": str(missing["uid"]),
        "region": str(missing.get("region") or ""),
        "found": False,
        "shift": [0.0, 0.0],
        "shift_error": [None, None],
        "agrees": False,
        "used": False,
        "reason": str(missing["reason"]),
    }
