"""Documents handed on when they are due."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable

from inscan.callbacks.recording import Due
from inscan.callbacks.replay import Closing
from inscan.callbacks.sources.interface import Sink

__all__ = ["play", "speed_of"]


def speed_of(text: str) -> float:
    """Read ``--speed``: a positive number, or ``max`` for infinity.

    Raises
    ------
    ValueError
        It is neither.
    """
    if text == "max":
        return math.inf
    try:
        speed = float(text)
    except ValueError:
        speed = math.nan
    if not speed > 0 or math.isinf(speed):
        raise ValueError(
            f"--speed {text}: expected a positive number (2 is twice as fast), or max for as fast as it goes"
        )
    return speed


def play(
    documents: Iterable[Due],
    sink: Sink,
    closing: Closing,
    *,
    speed: float,
    stop: threading.Event,
    progress: Callable[[Due], None] = lambda due: None,
) -> bool:
    """Hand documents on when they are due, and end their run whatever happens.

    Parameters
    ----------
    documents
        In order of emission.
    sink
        Takes them.
    closing
        Of the run that is emitted.
    speed
        Times the original one; infinity waits for nothing.
    stop
        Ends it early: the run gets a stop document with ``exit_status`` abort.
    progress
        Told after each document.

    Returns
    -------
    bool
        Whether all were handed on.
    """
    begun, whole = time.monotonic(), True
    try:
        for due in documents:
            # Not from document to document: what handing one on takes must not add up.
            pause = begun + due.at / speed - time.monotonic()
            if stop.wait(pause) if pause > 0 else stop.is_set():
                whole = False
                break
            closing(due.name, due.doc)
            sink(due.name, due.doc)
            progress(due)
    except BaseException:
        if closing.open:
            sink("stop", closing.stop("abort", "the replay broke off"))
        raise
    if closing.open:
        reason = "the stored run has no stop document" if whole else "the replay was stopped"
        sink("stop", closing.stop("abort", reason))
    return whole
