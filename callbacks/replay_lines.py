"""Which line of a map, and which detector channel, a value of an event belongs to; for killing lines on purpose."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from inscan.callbacks.geometry import GeometryError, ScanGeometry
from inscan.callbacks.profile import BeamlineProfile, matches
from inscan.callbacks.replay_faults import Lines

__all__ = ["lines_of"]

_PLACE = re.compile(r"\{(channel|mcaroi)[^}]*\}")


def lines_of(
    start: Mapping[str, Any], profiles: Sequence[BeamlineProfile], events: int
) -> Lines | None:
    """Lines of a run.

    Parameters
    ----------
    start
        Its start document.
    profiles
        The first that matches says what is what.
    events
        Of its longest stream: of more events than lines, each is a pixel; else each is a line.

    Returns
    -------
    Lines or None
        None when no profile knows the run, or it is no raster.
    """
    profile = next((one for one in profiles if matches(one, start)), None)
    if profile is None or profile.xrf is None:
        return None
    try:
        rows, columns = ScanGeometry.from_start(start, profile.geometry).shape
    except GeometryError:
        return None
    patterns = [
        re.compile(_pattern(template))
        for keys in (profile.xrf.step, profile.xrf.fly, profile.xrf.rows)
        if keys is not None
        for role in ("mcaroi", "spectrum")
        for template in keys.names(role)
    ]

    def channel(key: str) -> int | None:
        for pattern in patterns:
            found = pattern.fullmatch(key)
            if found:
                return int(found["channel"]) if "channel" in found.groupdict() else 0
        return None

    return Lines(rows, columns if events > rows else 1, channel)


def _pattern(template: str) -> str:
    """A profile's template of data keys as a regular expression."""
    parts, last, seen = [], 0, set()
    for place in _PLACE.finditer(template):
        parts.append(re.escape(template[last : place.start()]))
        name = place[1]
        parts.append(r"\d+" if name in seen else rf"(?P<{name}>\d+)")
        seen.add(name)
        last = place.end()
    return "".join(parts) + re.escape(template[last:])
