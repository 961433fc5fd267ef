"""What the RunEngine's thread does with a document: append it to its run's log file, nothing else.

No sync, no network, no waiting for another thread. What cannot be written (disk full, no
permission) leaves a marked gap and one warning; start, descriptor, resource and stop documents are
kept in memory meanwhile, because without them nothing of the run could be read later.

Where writing itself takes long (a slow disk under its limit of unwritten pages) the RunEngine's thread stops
writing: documents are kept in memory, a bounded number of bytes, and whoever calls `DocumentLog.mend` writes them.
"""

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inscan.callbacks.legible import legible
from inscan.callbacks.log_file import SUFFIX, LogFile
from inscan.callbacks.log_pace import Pace
from inscan.callbacks.routes import Routes
from inscan.callbacks.wire import Buffer, WireError, pack_parts, unpack

logger = logging.getLogger(__name__)

_MAX_KEPT = 1000  # documents kept in memory, a run, while its log cannot be written
_MAX_KEPT_BYTES = 128 * 2**20  # of all runs together
_CATCH_UP = 32  # kept documents that one call writes in the RunEngine's thread
_MAX_OPEN = (
    256  # runs; a source that never sends a stop must fill neither memory nor the table of files
)
_MAX_RESENT = 64  # whole logs of an earlier process that are sent at once
_MAX_FRESH = (
    512  # logs that wait to be taken; a taker that hangs must not use up the process's files
)
_BULK = ("event", "event_page")


@dataclass
class _Run:
    log: LogFile | None = None
    lost: int = 0  # documents that are in no log and not kept, since the last mark of a gap
    reason: str = ""
    kept: deque[bytes] = field(default_factory=deque)
    busy: bool = False  # somebody writes what was kept; new documents go behind it
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
    kept_bytes : int
        Bytes of documents that are in memory only, because they could not be written.
    heard : float
        When the latest document came, monotonic seconds.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.written = 0
        self.lost = 0
        self.unrouted = 0
        self.repeated = 0
        self.kept_bytes = 0
        self.heard = -1e9
        self._keeping = 0  # documents
        self._pace = Pace(directory)
        self._settled = threading.Event()
        self._routes = Routes()
        self._runs: dict[str, _Run] = {}
        self._fresh: list[LogFile] = []
        self._translated: set[str] = set()
        self._lock = threading.Lock()

    def append(self, name: str, doc: Mapping[str, Any]) -> None:
        """Append a document to the log of its run.

        Trouble with files raises nothing (a gap is marked and counted). Documents that break
        event-model's rules raise KeyError, TypeError, ValueError or AttributeError.
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
            self.heard = time.monotonic()
            for uid in runs:
                run = self._runs.get(uid) or self._begin(uid)
                run.heard = self.heard
                if isinstance(parts, str):
                    self._lose(run, parts)
                else:
                    self._write(uid, run, name, parts)
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
            self._forget(self._runs[oldest])
            self._end(oldest, self._runs[oldest])
        run = self._runs[uid] = _Run()
        return run

    def _end(self, uid: str, run: _Run) -> None:
        self._routes.close(uid)
        run.over = True
        self._settle(uid, run)

    def mend(self) -> None:
        """Write what is kept in memory, if that is possible again. Call it now and then, from one thread.

        While it writes, documents that come are kept: nobody who appends waits for it.
        """
        with self._lock:
            waiting = [uid for uid, run in self._runs.items() if run.kept]
        for uid in waiting:
            if not self._mend(uid):
                break  # what one log does not take the next one in the folder will not either
        self._settled.set()

    def settle(self, seconds: float) -> bool:
        """Wait until somebody has written what is kept in memory, so many seconds at most; whether that is so."""
        self._settled.clear()
        if self.waiting:
            self._settled.wait(seconds)
        return not self.waiting

    def _mend(self, uid: str) -> bool:
        """Write what is kept of one run; False when that is not possible now."""
        while True:
            with self._lock:
                run = self._runs.get(uid)
                if run is None:
                    return True
                if not run.kept:
                    self._settle(uid, run)
                    return True
                run.busy, lost, batch = True, run.lost, list(run.kept)
            marked, written, trouble = False, 0, ""
            try:
                log = self._opened(uid, run)
                self._mark(log, lost, run.reason)
                marked = True
                for payload in batch:
                    self._pace.append(log, [payload])
                    written += 1
            except FileExistsError:
                with self._lock:
                    run.busy, run.elsewhere = False, True
                    self._forget(run)
                continue
            except (OSError, MemoryError) as error:
                trouble = str(error)
            with self._lock:
                run.busy = False
                run.lost -= lost if marked else 0
                self._kept_is_written(run, written)
                if trouble:
                    run.reason = trouble
                    return False

    def take_new(self) -> list[LogFile]:
        """Log files created since the last call: the caller reads and closes them."""
        with self._lock:
            fresh, self._fresh = self._fresh, []
        return fresh

    @property
    def waiting(self) -> bool:
        """Some documents are in memory only, because they could not be written."""
        return self._keeping > 0

    @property
    def slow(self) -> bool:
        """Writing takes so long that documents go through the memory: `mend` is to be called all the time."""
        return self._pace.slow

    def abandon(self) -> None:
        """Let go of all files without a word, in a fork of the process that writes them: it would own them, too."""
        for log in [*self._fresh, *(run.log for run in self._runs.values() if run.log is not None)]:
            log.abandon()

    def _encode(self, name: str, doc: Mapping[str, Any]) -> list[Buffer] | str:
        """Bytes of a document, or why there are none."""
        try:
            return pack_parts((name, doc))
        except Exception as error:  # noqa: BLE001 - a foreign class in a document may raise anything
            if name not in self._translated:
                self._translated.add(name)
                logger.warning(
                    "inscan: a %s document holds something that is not plain data (%s); "
                    "its text is recorded instead",
                    name,
                    error if isinstance(error, WireError) else type(error).__name__,
                )
        try:
            return pack_parts((name, legible(doc)))
        except Exception as error:  # noqa: BLE001 - no memory, above all; the gap is marked
            return f"a {name} document cannot be packed: {type(error).__name__}: {error}"

    def _write(self, uid: str, run: _Run, name: str, parts: list[Buffer]) -> None:
        if run.elsewhere:
            self.repeated += 1
            return
        if run.busy or self.slow:
            self._keep(run, parts)
            return
        try:
            log = self._opened(uid, run)
            if run.lost or run.kept:
                self._catch_up(log, run)
            if run.kept:  # too many for the time that a scan has
                self._keep(run, parts)
                return
            self._pace.append(log, parts)
            self.written += 1
        except FileExistsError:
            run.elsewhere = True
            self.repeated += 1
            logger.warning(
                "inscan: run %s has a log in %s already; it is not recorded twice",
                uid,
                self.directory,
            )
        except (OSError, MemoryError) as error:
            run.reason = str(error)
            self._unwritten(uid, run, name, parts)

    def _unwritten(self, uid: str, run: _Run, name: str, parts: list[Buffer]) -> None:
        """Keep what the run cannot be read without; the rest is lost."""
        if name in _BULK or len(run.kept) >= _MAX_KEPT:
            self._lose(run, run.reason)
        else:
            self._keep(run, parts)
        if not run.warned:
            run.warned = True
            logger.warning(
                "inscan: documents of run %s cannot be written to %s: %s. The scan goes on; "
                "inscan will mark what is missing. Free space or repair the folder.",
                uid,
                self.directory,
                run.reason,
            )

    def _keep(self, run: _Run, parts: list[Buffer]) -> None:
        """Keep a document in memory: its bytes, for whoever emitted it may change it."""
        size = sum(len(part) for part in parts)
        if self.kept_bytes + size > _MAX_KEPT_BYTES:
            self._lose(run, run.reason or f"{_MAX_KEPT_BYTES} bytes wait to be written already")
            return
        run.kept.append(b"".join(parts))
        self._keeping += 1
        self.kept_bytes += size

    def _lose(self, run: _Run, reason: str) -> None:
        run.lost += 1
        run.reason = reason
        self.lost += 1

    def _kept_is_written(self, run: _Run, count: int) -> None:
        count = min(count, len(run.kept))  # a run may have been given up meanwhile
        for _ in range(count):
            self.kept_bytes -= len(run.kept.popleft())
        self._keeping -= count
        self.written += count

    def _forget(self, run: _Run) -> None:
        """Give up what is kept of a run."""
        count = len(run.kept)
        self.kept_bytes -= sum(len(payload) for payload in run.kept)
        run.kept.clear()
        run.lost += count
        self.lost += count
        self._keeping -= count

    def _opened(self, uid: str, run: _Run) -> LogFile:
        """Log of a run, made if there is none. Raises OSError."""
        if run.log is None:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            run.log = LogFile.create(self.directory, uid)
            self._fresh.append(run.log)
        return run.log

    def _mark(self, log: LogFile, lost: int, reason: str) -> None:
        """Say in a log that documents are missing. Raises OSError."""
        if lost:
            self._pace.append(log, pack_parts(["gap", {"documents": lost, "reason": reason}]))

    def _catch_up(self, log: LogFile, run: _Run) -> None:
        """Mark the gap and write what was kept, so much as a scan has time for. Raises OSError."""
        self._mark(log, run.lost, run.reason)
        run.lost = 0
        for payload in list(itertools.islice(run.kept, _CATCH_UP)):
            self._pace.append(log, [payload])
            self._kept_is_written(run, 1)

    def _settle(self, uid: str, run: _Run) -> None:
        """Forget a run that is over, once nothing of it is left in memory."""
        if not run.over or run.kept or run.busy:
            return
        if run.log is not None:
            try:
                self._mark(run.log, run.lost, run.reason)
            except (OSError, MemoryError) as error:
                logger.warning("inscan: the gap in run %s cannot be marked: %s", uid, error)
            run.log.live = False
        del self._runs[uid]
        ended = [log for log in self._fresh if not log.live]
        for log in ended[: max(0, len(self._fresh) - _MAX_FRESH)]:
            self._fresh.remove(log)
            log.close()  # found again in the folder
