"""Words to the log about peers: a few a minute, so that whoever sends rubbish cannot fill the disk with it."""

import logging
import time
from collections.abc import Callable
from typing import Any

_MOST = 20
_EVERY_S = 60.0


class Complaints:
    """Passes the first few messages of each minute on, and says how many it kept to itself.

    Everything is counted elsewhere; this is for people who read the log.

    Parameters
    ----------
    logger : Logger
    now : callable
        Monotonic seconds.
    """

    def __init__(self, logger: logging.Logger, now: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._now = now
        self._since = float("-inf")
        self._said = 0

    def say(self, level: int, text: str, *values: Any) -> None:
        """Log a message, unless there were many of late."""
        now = self._now()
        if now - self._since > _EVERY_S:
            if self._said > _MOST:
                more = self._said - _MOST
                self._logger.warning("and %d more like these in %d s", more, now - self._since)
            self._since, self._said = now, 0
        self._said += 1
        if self._said <= _MOST:
            # With the traceback of the exception being handled, where it is worse than a word.
            self._logger.log(level, text, *values, exc_info=level >= logging.ERROR)

    def defect(self, text: str) -> None:
        """Log the exception being handled, unless there were many of late."""
        self.say(logging.ERROR, text)
