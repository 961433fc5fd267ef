"""What the RunEngine's thread does with a document: append it to its run's log file, nothing else.

No sync, no network, no waiting for another thread. What cannot be written (disk full, no
permission) leaves a marked gap and one warning; start, descriptor, resource and stop documents are
kept in memory meanwhile, because without them nothing of the run could be read later.
"""

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inscan.callbacks.log_file import LogFile
from inscan.callbacks.routes import Routes
from inscan.callbacks.wire import Buffer, WireError, pack_parts, plain

logger = logging.getLogger(__name__)

_MAX_KEPT = 1000  # documents kept in memory, a run, while its log cannot be written
_BULK = ("event", "event_page")


@dataclass
class _Run:
    log: LogFile | None = None
    lost: int = 0  # documents since the last whole record
    reason: str = ""
    kept: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    warned: bool = False
    over: bool = False


class DocumentLog:
    """The log files of all runs of this process.

    Parameters
    ----------
    directory : Path
        Where the files go; created if need be, and at each run again if that did not work.

    Attributes
    ----------
    written, lost : int
        Documents in log files, and documents that are in none.
    unrouted : int
        Documents of no open run, such as those of a run that started before the subscription.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.written = 0
        self.lost = 0
        self.unrouted = 0
        self._routes = Routes()
        self._runs: dict[str, _Run] = {}
        self._fresh: list[LogFile] = []
        self._translated: set[str] = set()
        self._lock = threading.Lock()

    def append(self, name: str, doc: Mapping[str, Any]) -> None:
        """Append a document to the log of its run.

        Trouble with files raises nothing (a gap is marked and counted). Documents that break
        event-model's rules raise KeyError, TypeError or AttributeError.
        """
        with self._lock:
            runs = self._routes.of(name, doc)
            if not runs:
                self.unrouted += 1
                return
            if name == "start":
                self._runs[doc["uid"]] = _Run()
            parts = self._encode(name, doc)
            for uid in runs:
                run = self._runs[uid]
                self._write(uid, run, name, doc, parts)
                if name == "stop":
                    self._routes.close(uid)
                    run.over = True
                    self._settle(uid, run)

    def mend(self) -> None:
        """Write what is kept in memory, if that is possible again."""
        with self._lock:
            for uid, run in list(self._runs.items()):
                if run.kept:
                    try:
                        self._catch_up(uid, run)
                    except OSError as error:
                        run.reason = str(error)
                    self._settle(uid, run)

    def take_new(self) -> list[LogFile]:
        """Log files created since the last call: the caller reads and closes them."""
        with self._lock:
            fresh, self._fresh = self._fresh, []
        return fresh

    @property
    def waiting(self) -> bool:
        """Some documents are in memory only, because they could not be written."""
        with self._lock:
            return any(run.kept for run in self._runs.values())

    def _encode(self, name: str, doc: Mapping[str, Any]) -> list[Buffer]:
        try:
            return pack_parts((name, doc))
        except WireError as error:
            if name not in self._translated:
                self._translated.add(name)
                logger.warning(
                    "inscan: a %s document holds something that is not plain data (%s); "
                    "its text is recorded instead",
                    name,
                    error,
                )
            return pack_parts((name, plain(doc)))

    def _write(
        self, uid: str, run: _Run, name: str, doc: Mapping[str, Any], parts: list[Buffer]
    ) -> None:
        try:
            if run.log is None or run.lost:
                self._catch_up(uid, run)
            assert run.log is not None
            run.log.append(parts)
            self.written += 1
        except OSError as error:
            run.lost += 1
            run.reason = str(error)
            if name not in _BULK and len(run.kept) < _MAX_KEPT:
                run.kept.append((name, dict(doc)))
            else:
                self.lost += 1
            if not run.warned:
                run.warned = True
                logger.warning(
                    "inscan: documents of run %s cannot be written to %s: %s. The scan goes on; "
                    "inscan will mark what is missing. Free space or repair the folder.",
                    uid,
                    self.directory,
                    error,
                )

    def _catch_up(self, uid: str, run: _Run) -> None:
        """Open the file if there is none, mark the gap, write what was kept. Raises OSError."""
        if run.log is None:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            run.log = LogFile.create(self.directory, uid)
            self._fresh.append(run.log)
        if run.lost:
            missing = run.lost - len(run.kept)
            if missing:
                gap = {"documents": missing, "reason": run.reason}
                run.log.append(pack_parts(["gap", gap]))
            run.lost = len(run.kept)
        while run.kept:
            name, doc = run.kept[0]
            run.log.append(self._encode(name, doc))
            run.kept.pop(0)
            run.lost -= 1
            self.written += 1

    def _settle(self, uid: str, run: _Run) -> None:
        if run.over and not run.kept:
            if run.log is not None:
                run.log.live = False
            del self._runs[uid]
