"""What must hold before a region is measured: signals that are read in the plan, and the state of the beamline."""

import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bluesky.utils import Msg

from inscan.callbacks.plan_waiting import STOPPING

__all__ = ["Check", "Context", "read_checks", "read_context", "start_values"]

Context = Callable[[], Mapping[str, Any]] | Mapping[str, Any]
"""State of the beamline: a function that returns it, or the device to read for each name."""
_TRIES = 3


@dataclass(frozen=True)
class Check:
    """A condition on a signal, read right before motion.

    Attributes
    ----------
    signal : Readable
        An ophyd or ophyd-async signal, motor or other device.
    low, high : float or None
        Allowed range, ends included.
    equals : object
        Allowed value, for example 1 or ``"Open"``; instead of a range.
    words : str
        What the condition means, for example ``the shutter is open``.
    key : str
        Data key, for devices that read several; by default the device's own name.

    Raises
    ------
    ValueError
        For a check that asks for nothing, or for a range and a value.
    """

    signal: Any
    low: float | None = None
    high: float | None = None
    equals: Any = None
    words: str = ""
    key: str = ""

    def __post_init__(self) -> None:
        ranged = self.low is not None or self.high is not None
        if ranged == (self.equals is not None):
            raise ValueError(
                f"a check of {self.name} needs a range (low, high) or a value (equals)"
            )
        if self.low is not None and self.high is not None and not self.low <= self.high:
            raise ValueError(f"a check of {self.name}: low {self.low} is above high {self.high}")

    @property
    def name(self) -> str:
        """Name of the signal, or the data key."""
        return self.key or str(getattr(self.signal, "name", self.signal))

    def refusal(self, value: Any) -> str:
        """Return why a value is not allowed, nothing when it is."""
        if self.equals is not None:
            wanted = repr(self.equals)
            holds = bool(value == self.equals)
        else:
            low, high = self.low, self.high
            wanted = (
                f"{low:g} to {high:g}"
                if low is not None and high is not None
                else (f"at least {low:g}" if low is not None else f"at most {high:g}")
            )
            holds = (
                isinstance(value, int | float)
                and not isinstance(value, bool)
                and math.isfinite(value)
                and (low is None or value >= low)
                and (high is None or value <= high)
            )
        if holds:
            return ""
        meaning = f" ({self.words})" if self.words else ""
        return f"check: {self.name} is {value!r}, {wanted} is needed{meaning}"


def read_checks(checks: Sequence[Check]) -> Generator[Msg, Any, str]:
    """Read signals in a plan; return the first refusal, nothing when all conditions hold.

    A signal that cannot be read is a refusal as well: what is not known is not allowed.
    """
    for check in checks:
        try:
            value = yield from _read(check.signal, check.key)
            refusal = check.refusal(value)
        except STOPPING:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a device says, it could not be checked
            return f"check: {check.name} could not be read: {type(error).__name__}: {error}"
        if refusal:
            return refusal
    return ""


def read_context(context: Context | None) -> Generator[Msg, Any, dict[str, Any]]:
    """Return the state of the beamline as it is now; names to plain values.

    Raises
    ------
    Exception
        Whatever a device or the caller's function raises.
    """
    if context is None:
        return {}
    if not isinstance(context, Mapping):
        return dict(context())
    values = {}
    for name, signal in context.items():
        values[name] = yield from _read(signal, "")
    return values


def start_values(metadata: Mapping[str, Any], paths: Iterable[str]) -> dict[str, Any]:
    """Return what the metadata of a run say at dotted paths of start documents; names to plain values."""
    # Here, not above: profiles bring the X-ray database along, half a second that not every plan needs.
    from inscan.callbacks.profile import start_value

    found = {str(path): start_value(metadata, str(path)) for path in paths}
    return {path: value for path, value in found.items() if value is not None}


def _read(signal: Any, key: str) -> Generator[Msg, Any, Any]:
    """Return the present value of a signal, as plain data."""
    for _ in range(_TRIES):
        # After a pause at this very message there is no response to it.
        reading = yield Msg("read", signal)
        if reading is not None:
            break
    else:
        raise RuntimeError("no reading came back")
    wanted = key or signal.name
    if wanted not in reading:
        if key or len(reading) != 1:
            raise KeyError(
                f"it reads {', '.join(reading)}, not {wanted!r}: name one of them as key"
            )
        (wanted,) = reading
    value = reading[wanted]["value"]
    return value.item() if hasattr(value, "item") and getattr(value, "size", 0) == 1 else value
