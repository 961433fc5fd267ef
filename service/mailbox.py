"""How the service's threads hand things to each other."""

import os
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any


class MailboxFullError(RuntimeError):
    """Nobody empties the mailbox: its owner hangs, or more is posted than it can do."""


class Mailbox:
    """A bounded queue whose owner can wait for it and for sockets in one poll.

    Any thread posts; one thread polls `fileno` for reading and drains.

    Parameters
    ----------
    maxlen : int
        Most items that may wait.
    """

    def __init__(self, maxlen: int = 10_000) -> None:
        if maxlen < 1:
            raise ValueError(f"maxlen is {maxlen}, expected 1 at least")
        self._maxlen = maxlen
        self._items: deque[Any] = deque()
        self._room = threading.Condition()
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        """File descriptor, readable while items wait."""
        return self._fd

    def __len__(self) -> int:
        return len(self._items)

    def post(self, item: Any, *, timeout: float = 0.0) -> None:
        """Add an item.

        Parameters
        ----------
        item : object
            Anything; items come out in the order they went in.
        timeout : float
            Seconds to wait for room.

        Raises
        ------
        MailboxFullError
            If there is no room after that time.
        ValueError
            If the mailbox is closed.
        """
        with self._room:
            if not self._room.wait_for(
                lambda: self._fd < 0 or len(self._items) < self._maxlen, timeout
            ):
                raise MailboxFullError(
                    f"{self._maxlen} items wait; cannot post a {type(item).__name__}"
                )
            if self._fd < 0:
                raise ValueError(f"the mailbox is closed; cannot post a {type(item).__name__}")
            self._items.append(item)
            os.eventfd_write(self._fd, 1)

    def drain(self) -> list[Any]:
        """Take all items, oldest first. Does not wait."""
        with self._room:
            items = list(self._items)
            self._items.clear()
            if items:
                os.eventfd_read(self._fd)
                self._room.notify_all()
        return items

    def close(self) -> None:
        """Free the file descriptor. What waits is dropped; later posts are refused."""
        with self._room:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
            self._items.clear()
            self._room.notify_all()


@dataclass(frozen=True)
class Outcome:
    """To ingest: what became of a run, for its watchers.

    Attributes
    ----------
    run_uid : str
        Raw run.
    payload : dict
        ``status`` (done, failed, passed_by), ``result_uid``, ``verdict``, ``reason``,
        ``proposals``: plain data.
    """

    run_uid: str
    payload: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SnapshotDone:
    """To ingest: a newer picture of a growing run, for its watchers.

    Attributes
    ----------
    run_uid : str
        Raw run.
    rows : int
        Rows measured so far.
    path : str
        Result file.
    """

    run_uid: str
    rows: int
    path: str
