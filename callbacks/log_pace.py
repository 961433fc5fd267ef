"""How long writing to the log folder takes: whether a scan can afford to write there itself."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from inscan.callbacks.log_file import LogFile
from inscan.callbacks.wire import Buffer

logger = logging.getLogger(__name__)

_SLOW_S = 0.1  # a write that takes longer holds up the scan; one alone may be a busy processor
_SLOW_AGAIN_S = 2.0  # two of them in so short a time are a slow disk,
_HANGS_S = 0.5  # and one of so long is enough
_SLOW_FOR_S = 10.0  # how long the disk is thought to be slow then


class Pace:
    """Appends to logs of one folder, and watches the clock.

    Parameters
    ----------
    directory : Path
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._until = self._latest = -1e9

    @property
    def slow(self) -> bool:
        """Writing takes too long for a scan."""
        return time.monotonic() < self._until

    def append(self, log: LogFile, parts: Sequence[Buffer]) -> None:
        """Append a record. Raises OSError."""
        before = time.monotonic()
        log.append(parts)
        now = time.monotonic()
        if now - before < _SLOW_S:
            return
        again, self._latest = now - self._latest < _SLOW_AGAIN_S, now
        if not again and now - before < _HANGS_S:
            return
        if now > self._until:
            logger.warning(
                "inscan: writing a document to %s took %.1f s; the scan does not wait for the disk: documents go "
                "through the memory until it is faster",
                self._directory,
                now - before,
            )
        self._until = now + _SLOW_FOR_S
