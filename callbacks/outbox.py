"""Which documents of which logs go out next: windows, acknowledgements, resumption.

No socket here. For each log the service says from where it wants documents; until it has, nothing
is sent. It acknowledges what it has placed, and releases a log when it needs it no more. So every
message may be lost, repeated or late: the next SYNC puts both sides right.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from inscan.callbacks.log_file import LogError, LogFile
from inscan.callbacks.wire import Buffer, pack

logger = logging.getLogger(__name__)

WINDOW_DOCUMENTS = 64
WINDOW_BYTES = 32 * 10**6
SYNC_INTERVAL = 2.0  # seconds before an unanswered SYNC is repeated
STALL = 10.0  # seconds without an acknowledgement before asking what happened
RELEASE_INTERVAL = 5.0  # seconds between questions whether a sent log may go

Send = Callable[..., bool]
"""(kind, header, *chunks) -> False if nobody takes it now."""


@dataclass
class _Entry:
    log: LogFile
    sent: int = 0
    acked: int = 0
    synced: bool = False  # the service has said from where it wants documents
    asked_at: float = -1e9
    moved_at: float = 0.0
    end: int | None = None  # damaged files end early
    window: deque[tuple[int, int]] = field(default_factory=deque)  # (next offset, bytes)

    @property
    def complete(self) -> bool:
        """All that will ever be in the log has been acknowledged."""
        end = self.log.size if self.end is None else self.end
        return not self.log.live and self.synced and self.acked >= end

    def rewind(self, offset: int, placed: int) -> None:
        self.sent, self.acked = offset, placed
        self.window.clear()
        if offset > placed:  # waiting at the service
            self.window.append((offset, offset - placed))
        self.synced = True


class Outbox:
    """Logs on their way to the service.

    Attributes
    ----------
    sent, released : int
        Documents sent (repeats included), logs that the service has taken over.
    """

    def __init__(self) -> None:
        self.sent = 0
        self.released = 0
        self._entries: dict[str, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, run_uid: str) -> bool:
        return run_uid in self._entries

    def add(self, log: LogFile) -> None:
        """Take over a log: from now on it is read and closed here."""
        self._entries[log.run_uid] = _Entry(log)

    def file_names(self) -> set[str]:
        """Names of the files in here."""
        return {entry.log.path.name for entry in self._entries.values()}

    def live(self) -> bool:
        """Some log is still growing."""
        return any(entry.log.live for entry in self._entries.values())

    def unsent(self) -> int:
        """Number of logs with something the service has not acknowledged."""
        return sum(
            not entry.synced or (entry.acked < entry.log.size and not entry.complete)
            for entry in self._entries.values()
        )

    def reset(self) -> None:
        """Another service, or the same after a break: ask again for every log."""
        for entry in self._entries.values():
            entry.synced = False
            entry.asked_at = -1e9
            entry.window.clear()

    def acknowledge(self, run_uid: str, offset: int) -> None:
        """The service has placed everything before ``offset``."""
        entry = self._entries.get(run_uid)
        if entry is None or not entry.synced or not 0 <= offset <= entry.log.size:
            return  # of another life of the service, or nonsense
        entry.moved_at = time.monotonic()
        entry.acked, entry.sent = max(entry.acked, offset), max(entry.sent, offset)
        while entry.window and entry.window[0][0] <= offset:
            entry.window.popleft()

    def resume(self, run_uid: str, offset: int, placed: int) -> None:
        """The service has placed everything before ``placed`` and wants what is from ``offset``."""
        entry = self._entries.get(run_uid)
        # Beyond the end of the log as well: it may have lost its end with the power.
        if entry is not None and 0 <= placed <= offset:
            entry.rewind(offset, placed)
            entry.moved_at = time.monotonic()

    def release(self, run_uid: str) -> None:
        """The service needs the log no more: delete it."""
        entry = self._entries.pop(run_uid, None)
        if entry is not None:
            self.released += 1
            entry.log.delete()

    def pump(self, send: Send, now: float, most: int = WINDOW_DOCUMENTS) -> None:
        """Send what the window allows, growing logs first, one document of each in turn.

        Parameters
        ----------
        send : callable
            Sends one message, or says that it cannot.
        now : float
            Monotonic seconds.
        most : int
            Documents to be sent in this call.
        """
        for entry in self._entries.values():
            stalled = entry.window and now - max(entry.moved_at, entry.asked_at) > STALL
            if (not entry.synced and now - entry.asked_at > SYNC_INTERVAL) or stalled:
                if not self._ask(entry, send, now):
                    return
        documents = sum(len(entry.window) for entry in self._entries.values())
        nbytes = sum(size for entry in self._entries.values() for _, size in entry.window)
        left = most
        ready = sorted(
            (entry for entry in self._entries.values() if entry.synced),
            key=lambda entry: not entry.log.live,
        )
        while ready and left > 0:
            for entry in list(ready)[:left]:
                if documents >= WINDOW_DOCUMENTS or nbytes >= WINDOW_BYTES:
                    return
                message = self._next(entry)
                if message is None:
                    ready.remove(entry)
                    continue
                if not send("DOC", message.header, message.payload):
                    return
                if not entry.window:
                    entry.moved_at = now
                entry.sent = message.header["next"]
                entry.window.append((entry.sent, len(message.payload)))
                documents += 1
                nbytes += len(message.payload)
                self.sent += 1
                left -= 1
        for entry in self._entries.values():
            if entry.complete and now - entry.asked_at > RELEASE_INTERVAL:
                if not self._ask(entry, send, now):
                    return

    def idle(self) -> bool:
        """Nothing is left but growing logs whose documents so far have all been acknowledged."""
        return all(
            entry.log.live and entry.synced and entry.acked >= entry.log.size
            for entry in self._entries.values()
        )

    def park(self, keep: int) -> None:
        """Close logs beyond ``keep`` that nothing is added to, sent ones first; they are found again in the folder.

        Without a service all runs of weeks wait to be sent, and the process has a limited number of files.
        """
        ended = [(run_uid, entry) for run_uid, entry in self._entries.items() if not entry.log.live]
        ended.sort(key=lambda item: not item[1].complete)
        for run_uid, entry in ended[: max(0, len(self._entries) - keep)]:
            del self._entries[run_uid]
            entry.log.close()

    def abandon(self) -> None:
        """Let go of all files in a fork of the process that owns them; see `LogFile.abandon`."""
        for entry in list(self._entries.values()):
            entry.log.abandon()

    def close(self) -> None:
        """Close all logs; another process may adopt them."""
        while self._entries:
            self._entries.popitem()[1].log.close()

    def _ask(self, entry: _Entry, send: Send, now: float) -> bool:
        """Ask where the service is with a log, and tell it whether more may come."""
        entry.asked_at = now
        log = entry.log
        header = {"run": log.run_uid, "offset": entry.acked, "ended": entry.complete}
        return send("SYNC", header)

    def _next(self, entry: _Entry) -> "_Document | None":
        if entry.end is not None and entry.sent >= entry.end:
            return None
        log = entry.log
        try:
            record = log.read(entry.sent)
        except LogError as error:
            return self._damaged(entry, error)
        if record is None:
            if not log.live and entry.end is None and entry.sent < log.size:
                entry.end = entry.sent  # torn by a crash while writing
                entry.asked_at = -1e9
            return None
        header = {"run": log.run_uid, "offset": record.offset, "next": record.next}
        return _Document(header, record.payload)

    def _damaged(self, entry: _Entry, error: LogError) -> "_Document | None":
        after = entry.log.skip(entry.sent)
        logger.warning(
            "inscan: %s; %s", error, "skipped" if after else "nothing can be read behind it"
        )
        if after is None:
            entry.end = entry.sent
            return None
        gap = pack(["gap", {"documents": 1, "reason": str(error)}])
        return _Document({"run": entry.log.run_uid, "offset": entry.sent, "next": after}, gap)


@dataclass(frozen=True)
class _Document:
    header: Mapping[str, Any]
    payload: Buffer
