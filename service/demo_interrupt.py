"""Ctrl-C during a demo: the first one stops it in order, at any moment; further ones change nothing."""

import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType, TracebackType

from bluesky import RunEngine

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ALREADY = b"inscan: already stopping: the run is being closed and the report written\n"


class Interrupts:
    """SIGINT and SIGTERM, while this is entered (in the main thread).

    The first raises KeyboardInterrupt, or pauses the RunEngine where a plan runs. Those that follow say that the end
    is on its way: whoever presses Ctrl-C twice does not lose the report, and leaves no process behind.

    Attributes
    ----------
    asked : bool
        One has come.
    """

    def __init__(self) -> None:
        self.asked = False
        self._pause: threading.Event | None = None
        self._held = False

    def __enter__(self) -> "Interrupts":
        self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked or self._held:
            self.asked = True
            os.write(2, _ALREADY)  # a signal handler must not take the console's locks
            return
        self.asked = True
        if self._pause is None:
            raise KeyboardInterrupt
        self._pause.set()

    @contextmanager
    def held(self) -> Generator[None, None, None]:
        """A signal is noted and breaks off nothing: for what takes seconds and must be whole."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    @contextmanager
    def pausing(self, run_engine: RunEngine) -> Generator[None, None, None]:
        """A context manager for a RunEngine's plans: a signal becomes an immediate pause.

        The RunEngine's own handler waits for a checkpoint and a second Ctrl-C.
        """
        asked, ended = threading.Event(), threading.Event()

        def pause() -> None:
            asked.wait()
            if not ended.is_set():
                run_engine.request_pause(defer=False)

        # Pausing takes locks, which a signal handler must not: a thread does it.
        thread = threading.Thread(target=pause, name="demo-interrupt", daemon=True)
        thread.start()
        self._pause = asked
        try:
            yield
        finally:
            self._pause = None
            ended.set()
            asked.set()
            thread.join()
