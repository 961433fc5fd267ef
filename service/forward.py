"""One source of documents, carried to the service by a process of its own.

The source runs in a thread and writes each document to a log, like a RunEngine with inscan
subscribed; the log is shipped whenever there is a service. A process that is started again goes on
with the runs of the last one.
"""

import fcntl
import hashlib
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from inscan.callbacks.connection import Connection
from inscan.callbacks.shipper import ServiceGone
from inscan.callbacks.sources.interface import Source

_log = logging.getLogger(__name__)

_TICK_S = 0.2
_REPORT_S = 0.5
_TELL_S = 60.0
_LOOK_QUIET_S = 10.0


def log_folder(state_dir: Path, label: str) -> Path:
    """Folder of the logs of a source, one a label."""
    slug = re.sub(r"[^A-Za-z0-9]+", "-", label).strip("-")[:60]
    digest = hashlib.sha256(label.encode("utf-8", "backslashreplace")).hexdigest()[:8]
    return state_dir / "log" / "sources" / f"{slug}-{digest}"


class Forward:
    """A source on its way into the service.

    Parameters
    ----------
    source : Source
    state_dir : Path
        Where the service is found, and in whose `log/sources` the documents go.
    address : str or None
        Of the service; by default that of the state directory.
    quiet_s : float
        A run of which nothing came for so long has ended without a stop.
    on_ready : callable
        Called once, when the source is ready for the first time.

    Raises
    ------
    BlockingIOError
        When another process forwards the same source to the same state directory.
    OSError
        When the folder cannot be made.
    """

    def __init__(
        self,
        source: Source,
        state_dir: Path,
        *,
        address: str | None = None,
        quiet_s: float = 4 * 3600.0,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self.source = source
        self.folder = log_folder(state_dir, source.label)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise BlockingIOError(
                f"{source.label} is forwarded by another process already ({self.folder} is in use); "
                "stop that one first"
            ) from None
        self._quiet_s = quiet_s
        self._on_ready = on_ready
        self._connection = Connection(state_dir, address=address, log_dir=self.folder, resume=True)
        self._last_document: float | None = None
        self._reply: Future[dict[str, Any]] | None = None
        self._failure: Exception | None = None

    @property
    def counts(self) -> dict[str, int]:
        """What became of the documents: of the source, and of the log."""
        connection = self._connection
        found = {**self.source.counts, "written": connection.written, "lost": connection.lost}
        return {**found, **connection.left_out, "resumed runs": connection.resumed}

    def run(self, stop: threading.Event) -> None:
        """Forward until the source ends or `stop` is set.

        Raises
        ------
        SourceError
            Of the source.
        """
        thread = threading.Thread(target=self._work, args=(stop,), name="inscan-source")
        thread.start()
        told = reported = looked = time.monotonic()
        greeted = False
        try:
            while thread.is_alive():
                thread.join(_TICK_S)
                now = time.monotonic()
                if self.source.ready.is_set() and not greeted:
                    greeted = True
                    self._on_ready()
                if now - reported > _REPORT_S:
                    reported = now
                    self._report()
                if now - looked > _LOOK_QUIET_S:
                    looked = now
                    for uid in self._connection.end_quiet(self._quiet_s):
                        _log.warning("run %s: nothing came for %g s; ended", uid, self._quiet_s)
                if now - told > _TELL_S:
                    told = now
                    _log.info("%s: %s", self.source.label, _counted(self.counts))
        finally:
            stop.set()
            thread.join()
        self._report()
        if self._failure is not None:
            raise self._failure

    def close(self, grace_s: float) -> bool:
        """Send what can be sent within `grace_s` seconds; whether the service has taken over every log."""
        try:
            return self._connection.close(grace_s)
        finally:
            os.close(self._lock)

    def _work(self, stop: threading.Event) -> None:
        def sink(name: str, doc: Mapping[str, Any]) -> None:
            self._last_document = time.monotonic()
            self._connection(name, doc)

        try:
            self.source.run(sink, stop)
        except Exception as error:  # noqa: BLE001 - raised again in the main thread
            self._failure = error

    def _report(self) -> None:
        """Tell the service how things stand, unless the last report is still under way."""
        if self._reply is not None:
            if not self._reply.done():
                return
            error = self._reply.exception()
            if error is not None and not isinstance(error, ServiceGone):
                _log.warning("the service took no report: %s", error)
        age = None if self._last_document is None else time.monotonic() - self._last_document
        self._reply = self._connection.request(
            "source_report",
            timeout=2.0,
            label=self.source.label,
            ready=self.source.ready.is_set(),
            counts=self.counts,
            pid=os.getpid(),
            host=socket.gethostname(),
            age_s=age,
            note=str(getattr(self.source, "last_garbage", "")),
        )


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items() if count) or "nothing yet"
