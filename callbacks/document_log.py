"""What the RunEngine's thread does with a document: append it to its run's log file, nothing else.

No sync, no network, no waiting for another thread. What cannot be written (disk full, no
permission) leaves a marked gap and one warning; start, descriptor, resource and stop documents are
kept in memory meanwhile, because without them nothing of the run could be read later.
"""

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inscan.callbacks.log_file import SUFFIX, LogFile
from inscan.callbacks.routes import Routes
from inscan.callbacks.wire import Buffer, WireError, pack_parts, plain, unpack

logger = logging.getLogger(__name__)

_MAX_KEPT = 1000  # documents kept in memory, a run, while its log cannot be written
_MAX_OPEN = 1000  # runs; a source that never sends a stop must not fill the memory
_MAX_RESENT = 64  # whole logs of an earlier process that are sent at once
_BULK = ("event", "event_page")


@dataclass
class _Run:
    log: LogFile | None = None
    lost: int = 0  # documents since the last whole record
    reason: str = ""
    kept: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    warned: bool = False
    over: bool = False
    elsewhere: bool = False  # another process has the log of this run
    heard: float = field(default_factory=time.monotonic)


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
        Documents of no known run, such as events of a run whose descriptors came before the
        subscription.
    repeated : int
        Documents of runs that are over, or that another process records.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.written = 0
        self.lost = 0
        self.unrouted = 0
        self.repeated = 0
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
                if self._routes.over(name, doc):
                    self.repeated += 1
                else:
                    self.unrouted += 1
                return
            parts = self._encode(name, doc)
            for uid in runs:
                run = self._runs.get(uid) or self._begin(uid)
                run.heard = time.monotonic()
                self._write(uid, run, name, doc, parts)
                if name == "stop":
                    self._end(uid, run)

    def resume(self) -> int:
        """Go on with the runs that an earlier process of the same source was recording.

        Their logs are read to learn what belongs to them; those with a stop are only to be sent.

        Returns
        -------
        int
            Runs that go on.
        """
        found = 0
        with self._lock:
            for path in sorted(self.directory.glob(f"*{SUFFIX}")):
                try:
                    log = LogFile.reopen(path)
                except OSError as error:
                    logger.warning("inscan: %s; it is not continued", error)
                    continue
                if log is None:
                    continue
                if self._learn(log):
                    self._runs[log.run_uid] = _Run(log)
                    self._fresh.append(log)
                    found += 1
                else:
                    self._routes.close(log.run_uid)
                    log.live = False
                    if len(self._fresh) < _MAX_RESENT:
                        self._fresh.append(log)
                    else:
                        log.close()  # found again when there is time
        return found

    def _learn(self, log: LogFile) -> bool:
        """Route everything in a log; False when its run is over."""
        offset, over = 0, False
        while (record := log.read(offset)) is not None:
            offset = record.next
            try:
                name, doc = unpack(record.payload)
                over = over or name == "stop"
                self._routes.of(name, doc)
            except (WireError, ValueError, TypeError, KeyError, AttributeError) as error:
                logger.warning("inscan: %s at byte %d: %s", log.path, record.offset, error)
        return not over

    def end_quiet(self, seconds: float) -> list[str]:
        """End the logs of runs of which nothing came for so long: their stop is not to be expected.

        Returns
        -------
        list of str
            Uids of these runs.
        """
        oldest = time.monotonic() - seconds
        with self._lock:
            quiet = [uid for uid, run in self._runs.items() if run.heard < oldest and not run.over]
            for uid in quiet:
                self._end(uid, self._runs[uid])
        return quiet

    def _begin(self, uid: str) -> _Run:
        if len(self._runs) >= _MAX_OPEN:
            oldest = min(self._runs, key=lambda known: self._runs[known].heard)
            logger.warning("inscan: %d runs are open; run %s is ended", _MAX_OPEN, oldest)
            self._runs[oldest].kept.clear()
            self._end(oldest, self._runs[oldest])
        run = self._runs[uid] = _Run()
        return run

    def _end(self, uid: str, run: _Run) -> None:
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
        if run.elsewhere:
            self.repeated += 1
            return
        try:
            if run.log is None or run.lost:
                self._catch_up(uid, run)
            assert run.log is not None
            run.log.append(parts)
            self.written += 1
        except FileExistsError:
            run.elsewhere = True
            self.repeated += 1
            logger.warning(
                "inscan: run %s has a log in %s already; it is not recorded twice",
                uid,
                self.directory,
            )
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
