"""A sample that does not stay where it was: it creeps with time, or slips once between two runs."""

from __future__ import annotations

import re
import threading

import numpy as np

__all__ = ["StageDrift"]

_TEXT = re.compile(r"(\d+(?:\.\d+)?) ?(um/h|um)")


class StageDrift:
    """Where the sample is, as seen from the motors. Time is that of the exposures.

    Parameters
    ----------
    creep
        How far it moves per hour, um.
    slip
        How far it moves at once, after the first run, um.
    seed
        Direction.
    """

    def __init__(self, *, creep: float = 0.0, slip: float = 0.0, seed: int = 0) -> None:
        angle = np.random.default_rng([seed, 14]).uniform(0, 2 * np.pi)
        self._direction = (float(np.sin(angle)), float(np.cos(angle)))
        self._creep, self._slip = creep, slip
        self._seconds, self._runs = 0.0, 0
        self._lock = threading.Lock()

    @classmethod
    def parse(cls, text: str, seed: int) -> StageDrift:
        """Return what a text says: ``0.6 um`` slips once, ``20 um/h`` creeps; nothing stays.

        Raises
        ------
        ValueError
            For another text.
        """
        if not text.strip():
            return cls(seed=seed)
        found = _TEXT.fullmatch(text.strip())
        if found is None:
            raise ValueError(f"{text!r}: expected a length as in '0.6 um', or '20 um/h'")
        length = float(found[1])
        return cls(creep=length, seed=seed) if found[2] == "um/h" else cls(slip=length, seed=seed)

    def begin_run(self) -> None:
        """Note that a run begins."""
        with self._lock:
            self._runs += 1

    def pass_time(self, seconds: float) -> None:
        """Let so many seconds of exposure go by."""
        with self._lock:
            self._seconds += seconds

    @property
    def offset(self) -> tuple[float, float]:
        """What was at (slow, fast) of the motors at first is at that plus this now, um."""
        with self._lock:
            moved = self._creep * self._seconds / 3600
            if self._runs > 1:
                moved += self._slip
        return moved * self._direction[0], moved * self._direction[1]
