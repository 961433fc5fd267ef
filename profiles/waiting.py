"""Small helpers of the simulated devices: statuses that end at once or in time, signal values."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ophyd import Signal
from ophyd.status import Status

__all__ = ["Ended", "after", "signal_value"]


class Ended:
    """A status that was successful from the beginning; costs no thread, unlike ophyd's."""

    done = True
    success = True

    def add_callback(self, callback: Callable[[Any], None]) -> None:
        """Call back at once."""
        callback(self)

    def exception(self, timeout: float | None = 0.0) -> None:
        """Return None: nothing went wrong."""
        del timeout

    def wait(self, timeout: float | None = None) -> None:
        """Return at once."""
        del timeout


def after(seconds: float) -> Ended | Status:
    """Return a status that is over after so many seconds, at once for 0."""
    if seconds <= 0:
        return Ended()
    status = Status()
    timer = threading.Timer(seconds, status.set_finished)
    timer.daemon = True
    timer.start()
    return status


def signal_value(signal: Signal) -> float:
    """Return the number that a signal holds."""
    value: Any = signal.get()
    return float(value)
