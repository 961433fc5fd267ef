"""The state of a beamline in which places were found, and whether it is still the same.

A snapshot is taken of what the profile names in `rescan.context`, from the survey's start document and from its stream
`baseline`. It is compared whenever somebody approves, queues or takes a proposal, and before every region, with what
later runs of the beamline said and with what the plan says.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from inscan.callbacks.profile import start_value
from inscan.callbacks.rescan_section import Rescan
from inscan.service.proposal import Refusal

TOLERANCE = 1e-6
"""Of a number that `rescan.tolerance` does not name: this share of it."""


def context_of(
    paths: Iterable[str], start: Mapping[str, Any], baseline: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """State of the beamline as a run tells it.

    Parameters
    ----------
    paths : iterable of str
        Dotted paths in start documents, and keys of the stream `baseline`.
    start : mapping
        A start document.
    baseline : mapping or None
        Latest readings of the run's stream `baseline` (`inscan.callbacks.baseline`).

    Returns
    -------
    dict
        Path to value, where the run has it; the start document first.
    """
    found: dict[str, Any] = {}
    for path in paths:
        value = start_value(start, path)
        if value is None and baseline:
            value = baseline.get(path)
        if value is not None:
            found[path] = value
    return found


def context_changes(
    rules: Rescan, then: Mapping[str, Any], now: Mapping[str, Any]
) -> list[Refusal]:
    """What differs between two contexts; a path that only one of them has says nothing.

    Returns
    -------
    list of Refusal
        One of rule `state_changed` for each difference; for numbers with the value then as its limit.
    """
    changes = []
    for path in sorted(set(then) & set(now)):
        if same(then[path], now[path], rules.tolerance.get(path)):
            continue
        before, after = (_number(context[path]) for context in (then, now))
        text = f"{path} was {then[path]!r} when this was proposed and is {now[path]!r} now"
        allowed = rules.tolerance.get(path)
        if allowed is not None and before is not None and after is not None:
            text += f"; it may differ by {allowed:g}"
        changes.append(Refusal("state_changed", text, before, after))
    return changes


def same(then: Any, now: Any, tolerance: float | None) -> bool:
    """Whether two values agree: numbers within the tolerance, lists and mappings part by part, else exactly.

    What is no number on one side only, and what is not finite, differs.
    """
    before, after = _number(then), _number(now)
    if before is not None and after is not None:
        if tolerance is None:
            return math.isclose(before, after, rel_tol=TOLERANCE, abs_tol=TOLERANCE**2)
        return abs(before - after) <= tolerance
    if (before is None) != (after is None):
        return False
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        return then.keys() == now.keys() and all(
            same(then[key], now[key], tolerance) for key in then
        )
    if isinstance(then, list | tuple) and isinstance(now, list | tuple):
        return len(then) == len(now) and all(
            same(one, other, tolerance) for one, other in zip(then, now, strict=True)
        )
    return bool(then == now)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e300 else math.nan
