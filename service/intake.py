"""One run on its way in: documents in order, through its assembler, into durable updates.

No socket here. `RunIntake.offer` (ingest's thread) decides by offset what a document is: the next
one, a repetition, or the far side of a gap. `RunIntake.work` (one thread of a pool at a time)
places what has been accepted. What the client is to be told is read from the attributes.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from inscan.callbacks.assembly import of_run
from inscan.callbacks.updates import NotUnderstood, Update, shortened
from inscan.callbacks.wire import WireError, unpack
from inscan.service.readers import Reader
from inscan.service.repair import Mending
from inscan.service.uses import Assembler, Uses

__all__ = ["Assembler", "RunIntake", "Uses"]

logger = logging.getLogger(__name__)

State = Literal["open", "closed", "passed_by", "failed", "held"]

# Well above what a client may have under way, so only one that breaks the rules gets there.
_MAX_QUEUE = 256
_MAX_QUEUE_BYTES = 512 * 2**20
MAX_START_BYTES = 16 * 2**20
"""Most bytes of a start document: it is metadata."""


class _Abandoned(Exception):
    """The service stops in the middle of a repair, or the run turned out to be nobody's."""


@dataclass
class RunIntake:
    """State of one run; see the module.

    Attributes
    ----------
    client : bytes
        Routing identity from which documents come, the latest that sent any.
    expected : int
        Offset of the next document to accept.
    placed : int
        Everything before this offset has gone through the assembler.
    state : str
        ``open`` until its end; ``held``: the machine failed, to be sent again later.
    reason : str
        Why it failed, is held, or was passed by.
    reader : Reader
        Who reads the log from which its documents come.
    behind : bool
        Documents were refused while the run was being repaired.
    """

    run_uid: str
    client: bytes
    uses: Uses
    expected: int = 0
    placed: int = 0
    state: State = "open"
    reason: str = ""
    told: int = 0  # offset last acknowledged
    resumed_at: float = -1e9
    held_at: float = 0.0
    reader: Reader = field(default_factory=Reader)
    behind: bool = False
    _queue: deque[tuple[int, bytes] | str] = field(default_factory=deque)
    _bytes: int = 0
    _busy: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _assembler: Assembler | None = None
    _warnings: list[str] = field(default_factory=list)
    _gaps: list[str] = field(default_factory=list)
    _mending: Mending | None = None
    _mended: bool = False
    _begun_late: bool = False
    _abandoned: bool = False
    _trouble: str = ""
    _found_stop: Mapping[str, Any] | None = None

    def offer(self, offset: int, following: int, payload: bytes) -> Literal["next", "old", "gap"]:
        """Accept a document if it is the next one.

        Returns
        -------
        str
            ``next``: accepted. ``old``: placed or waiting already. ``gap``: something before it
            is missing (or too much waits): ask to resume from `expected`.
        """
        with self._lock:
            if offset < self.expected:
                return "old"
            full = len(self._queue) >= _MAX_QUEUE or self._bytes + len(payload) > _MAX_QUEUE_BYTES
            if offset > self.expected or following <= offset or (full and self._queue):
                return "gap"
            self._queue.append((following, payload))
            self._bytes += len(payload)
            self.expected = following
        return "next"

    def end(self, reason: str) -> None:
        """No document will follow, though there was no stop: process what there is."""
        with self._lock:
            if reason not in self._queue:
                self._queue.append(reason)

    def claim(self) -> bool:
        """Whether the caller is to have `work` run now: there is work and nobody is at it."""
        with self._lock:
            if self._busy or self._mending is not None or not self._queue:
                return False
            self._busy = True
            return True

    def claim_mending(self, now: float) -> bool:
        """Whether the caller is to have `mend` run now: a look into the catalog is due."""
        with self._lock:
            if self._busy or self._mending is None or now < self._mending.due:
                return False
            self._busy = True
            return True

    @property
    def idle(self) -> bool:
        """Nothing waits and nobody works."""
        with self._lock:
            return not self._busy and not self._queue and self._mending is None

    @property
    def mending(self) -> bool:
        """What waits has to wait until the run is repaired."""
        with self._lock:
            return self._mending is not None

    def work(self, tell: Callable[[], None]) -> None:
        """Place what waits. Run by one thread at a time (`claim`); never raises.

        Parameters
        ----------
        tell : callable
            Called after each document: `placed` has moved.
        """
        while True:
            with self._lock:
                if not self._queue:
                    self._busy = False
                    return
                item = self._queue.popleft()
            if self.state == "open":
                try:
                    self._process(item)
                except Exception as error:  # noqa: BLE001 - one run's defect is not the others'
                    self._broken(error)
            with self._lock:
                parked = self._mending is not None
                if parked:
                    self._queue.appendleft(item)
                    self._busy = False
                elif not isinstance(item, str):
                    self._bytes -= len(item[1])
                    self.placed = item[0]
            tell()
            if parked:
                return

    def mend(self, tell: Callable[[], None]) -> int:
        """Look into the catalog once. Run by one thread at a time (`claim_mending`); never raises.

        Returns
        -------
        int
            Events and rows that were repaired, when it is over.
        """
        mending, repair = self._mending, self.uses.repair
        assert mending is not None and repair is not None
        over = True
        try:
            over = repair.look(mending, self._assembler, self._place_fetched)
            if over:
                self._settle(mending)
        except _Abandoned:
            logger.info("run %s: its repair ends here", self.run_uid)
        except Exception as error:  # noqa: BLE001 - one run's defect is not the others'
            self._broken(error)
        with self._lock:
            if over:
                self._mending = None
            self._busy = False
        tell()
        return mending.fetched if over else 0

    def abandon(self) -> None:
        """Forget what waits: the service stops, and the client has it."""
        with self._lock:
            self._queue.clear()
            self._bytes = 0
            self._mending = None
            self._abandoned = True

    def close(self) -> None:
        """Let go of the assembler. Only while `idle`."""
        if self._assembler is not None:
            self._assembler.close()
            self._assembler = None

    def _process(self, item: tuple[int, bytes] | str) -> None:
        if isinstance(item, str):
            self._end(item)
            return
        name, doc = self._document(item[1])
        if name == "gap":
            self._gaps.append(
                f"{doc.get('documents')} documents were not recorded ({doc.get('reason')})"
            )
            logger.warning("run %s: %s", self.run_uid, self._gaps[-1])
        elif name == "start":
            if self._assembler is None:
                self._start(doc, len(item[1]))
        elif name == "log":
            return
        elif self._assembler is None:
            self._without_start(doc if name == "stop" else None)
        elif name == "stop" and of_run(doc, self.run_uid):  # another's is left out, the run goes on
            if not self._to_mend(doc):
                self._finish(self._assembler(name, doc), "")
        else:
            self._show(self._assembler(name, doc))

    def _end(self, reason: str) -> None:
        """Process what there is of a run that ended without a stop, or with one that was lost."""
        if self._assembler is not None and self._to_mend({}):
            return
        if self._assembler is None:
            self._finish([], reason)
        elif self._found_stop is not None:
            self._finish(self._assembler("stop", self._found_stop), "")
        else:
            self._finish(self._assembler.finish(reason), reason)

    def _to_mend(self, stop: Mapping[str, Any]) -> bool:
        """Whether the run waits for a repair now; once."""
        if self._mended or self.uses.repair is None or self._assembler is None:
            return False
        self._mended = True
        gaps = bool(self._gaps) or not stop
        self._mending = self.uses.repair.fill(self.run_uid, self._assembler, stop, gaps=gaps)
        return self._mending is not None

    def _without_start(self, stop: Mapping[str, Any] | None) -> None:
        """Have the beginning of a run fetched: at its first document, and if need be at its last."""
        if self.uses.repair is None:
            self._pass_by("its start document is missing from the log")
        elif stop is None and self._begun_late:
            return  # it comes from the catalog, with all of the run, at the end
        elif self._mended:
            self._pass_by(f"it was joined late, and its start is not to be had: {self._trouble}")
        else:
            self._begun_late, self._mended = True, stop is not None
            self._mending = self.uses.repair.join(self.run_uid, stop=stop)
            if self._mending is None:
                self._pass_by(
                    "its start document is missing from the log, and no catalog of raw runs is"
                    " named to fetch it from (setting repair)"
                )

    def _place_fetched(self, name: str, doc: Mapping[str, Any]) -> None:
        if self._abandoned or self.state != "open":
            raise _Abandoned  # nothing that follows is of use
        if name == "start" and self._assembler is None:
            self._start(dict(doc))
        elif self._assembler is not None and name != "start":
            self._show(self._assembler(name, doc))

    def _settle(self, mending: Mending) -> None:
        self._trouble, self._found_stop = mending.said, mending.found_stop
        if mending.joins and self._assembler is not None:
            # What is lost from here on is seen at the stop.
            self._mended = False
        if mending.complete:
            self._warnings += [f"{gap}; what they held is in Tiled" for gap in self._gaps]
            self._gaps.clear()
        if (mending.fetched or mending.stop) and mending.said:
            self._warnings.append(mending.said)

    def _document(self, payload: bytes) -> tuple[str, dict[str, Any]]:
        try:
            name, doc = unpack(payload)
            if not isinstance(name, str) or not isinstance(doc, dict):
                raise WireError("not a pair of name and document")
        except (WireError, TypeError, ValueError) as error:
            return "gap", {"documents": 1, "reason": f"unreadable: {error}"}
        return name, doc

    def _start(self, doc: dict[str, Any], size: int = 0) -> None:
        if doc.get("uid") != self.run_uid:
            self._pass_by(f"its start document has the uid {doc.get('uid')!r:.300}")
            return
        if size > MAX_START_BYTES:
            # The journal keeps it, and every list of runs reads it.
            self._fail(
                f"too_large: its start document has {size} bytes, {MAX_START_BYTES} at most; bulk"
                " belongs into events or files"
            )
            return
        try:
            self._assembler = self.uses.open_run(doc)
        except NotUnderstood as error:
            self._pass_by(str(error))

    def _show(self, updates: list[Update]) -> None:
        """Hand on what a document before the end completed; snapshots are allowed to fail."""
        for update in updates:
            if update.kind != "snapshot":
                self._take(update)
                continue
            try:
                self._take(update)
            except Exception:  # noqa: BLE001 - the next snapshot or the final replaces it
                logger.exception("run %s: a snapshot was lost; the run goes on", self.run_uid)

    def _take(self, update: Update) -> None:
        more = [*self._gaps, *self._warnings]
        if more:
            known = update.meta.setdefault("warnings", [])
            known.extend(text for text in more if text not in known)
        self.uses.on_update(update)
        if update.kind == "rejected":
            # Whatever follows cannot change that; the rejection is recorded.
            self.reason, self.state = str(update.meta.get("reason", "rejected")), "failed"

    def _finish(self, updates: list[Update], reason: str) -> None:
        for update in updates:
            self._take(update)
        if self.state != "open":
            return
        if not updates and reason:
            self._fail(reason)
        else:
            self.uses.on_closed(self.run_uid)
            self.state = "closed"
        self.close()

    def _pass_by(self, reason: str) -> None:
        reason = shortened(reason)
        self.uses.on_passed_by(self.run_uid, reason)
        self.reason, self.state = reason, "passed_by"

    def _fail(self, reason: str) -> None:
        self.uses.on_failed(self.run_uid, reason)
        self.reason, self.state = reason, "failed"

    def _broken(self, error: Exception) -> None:
        if isinstance(error, MemoryError):
            self.reason = f"too_large: its arrays do not fit into memory: {shortened(str(error))}"
        else:
            self.reason = shortened(f"{type(error).__name__}: {error}")
        logger.exception("run %s: %s", self.run_uid, self.reason)
        # The machine failed (disk full, no permission): the same documents may work later.
        held = isinstance(error, OSError)
        if not held:
            try:
                self.uses.on_failed(self.run_uid, self.reason)
            except Exception:  # noqa: BLE001 - not recorded, so it must not be released either
                logger.exception("run %s: the failure could not be recorded", self.run_uid)
                held = True
        try:
            self.close()
        except Exception:  # noqa: BLE001 - detector files of a run that is given up anyway
            logger.exception("run %s: cannot close its assembler", self.run_uid)
        self.state = "held" if held else "failed"
