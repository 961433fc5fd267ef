"""The broker: a thread with the ROUTER socket that workers dial. Metadata only; arrays never pass
through it.

Whatever a peer sends is counted and answered or dropped, and never ends the thread.
"""

import logging
import threading
import time
from pathlib import Path
from typing import Any

import zmq
from pydantic import ValidationError

from inscan.callbacks import wire
from inscan.callbacks.wire import DamagedError, VersionError, WireError
from inscan.service.complaints import Complaints
from inscan.service.dispatch import KINDS, Dispatcher
from inscan.service.gate import Gate
from inscan.service.journal import Journal, JournalError
from inscan.service.mailbox import Mailbox
from inscan.service.messages import Notice, Strict
from inscan.service.settings import Settings
from inscan.service.sockets import Router

_MAX_MESSAGE = 8 << 20
_BATCH = 256  # messages between looks at mail and clocks
_log = logging.getLogger(__name__)


class Broker:
    """The broker thread.

    Parameters
    ----------
    settings : Settings
        Addresses, times and budgets.
    journal : Journal
    version : str
        Of this service; workers of another protocol are refused by name.
    writer, ingest : Mailbox
        See `inscan.service.dispatch.Dispatcher`.
    gate : Gate or None
        Which workers may dial in; None for all of this machine.

    Attributes
    ----------
    mailbox : Mailbox
        For `Submit` and `WorkerLost`.
    """

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        *,
        version: str,
        writer: Mailbox,
        ingest: Mailbox,
        gate: Gate | None = None,
    ) -> None:
        self.mailbox = Mailbox()
        self._complaints = Complaints(_log)
        self._address = settings.broker
        self._tick = min(0.25, settings.hb_s / 2)
        self._rules = Dispatcher(
            settings, journal, version=version, writer=writer, ingest=ingest, send=self._send
        )
        self.router = Router(
            "broker", max_message=_MAX_MESSAGE, gate=gate, counts=self._rules.counts
        )
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._draining = threading.Event()
        self._drained = threading.Event()
        self._thread = threading.Thread(target=self._run, name="broker")

    def bind(self) -> str:
        """Listen; returns the address with its real port.

        Raises
        ------
        OSError
            When the address is in use or cannot be had.
        """
        return self.router.bind(self._address)

    def start(self, spool_address: str) -> None:
        """Start the thread; workers of other machines are sent to `spool_address` for their
        arrays."""
        self._rules.spool_address = spool_address
        self._thread.start()

    def drain(self, timeout_s: float) -> bool:
        """Give out no more jobs and wait until all are back; False when some are not."""
        self._draining.set()
        return self._drained.wait(timeout_s)

    def stop(self) -> None:
        """End the thread and close the socket. Leases stay in the journal."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()
        self.router.close()
        self.mailbox.close()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive() and self.router.alive

    def status(self) -> dict[str, Any]:
        """Workers, waiting snapshots and counters, for `inscan status`."""
        with self._lock:
            return self._rules.status()

    def place_for(self, key: str, fence: int) -> Path | None:
        """Where the result of a dispatch may be put, or None when that dispatch is over."""
        with self._lock:
            return self._rules.place_for(key, fence)

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self.router.socket, zmq.POLLIN)
        poller.register(self.mailbox.fileno(), zmq.POLLIN)
        next_tick = 0.0
        while not self._stopping.is_set():
            poller.poll(round(self._tick * 1000))
            due = time.monotonic() >= next_tick
            if due:
                next_tick = time.monotonic() + self._tick
            with self._lock:
                try:
                    self._turn(due)
                except JournalError:
                    # A full disk, for one. Leases run on, and workers repeat their results until
                    # they are taken.
                    self._rules.counts["journal_errors"] += 1
                    self._complaints.defect("the journal refused; trying on")
                except Exception:  # noqa: BLE001 - a defect must not end the service
                    self._rules.counts["defects"] += 1
                    self._complaints.defect("defect in the broker; it goes on")

    def _turn(self, due: bool) -> None:
        for item in self.mailbox.drain():
            self._rules.mail(item)
        for frames in self.router.received(_BATCH):
            try:
                self._message(frames)
            except JournalError:
                raise
            except Exception:  # noqa: BLE001 - no message must keep others, or the clocks, waiting
                self._rules.counts["defects"] += 1
                self._complaints.defect("defect in the broker, met by a message; it goes on")
        if due:
            self._rules.watch_clocks()
        if not self._draining.is_set():
            self._rules.dispatch()
        else:
            self._rules.cancel_snapshots()
            if not self._rules.busy:
                self._drained.set()

    def _message(self, frames: list[bytes]) -> None:
        identity, *rest = frames
        counts = self._rules.counts
        try:
            message = wire.decode_message(rest)
        except VersionError as error:
            counts["refused"] += 1
            text = Notice(code="protocol", message=str(error)).model_dump(mode="json")
            answer = wire.in_version_of(rest, wire.encode_message("ERR", text))
            self.router.send([identity, *answer])
            return
        except DamagedError:
            counts["damaged"] += 1
            return
        except WireError:
            counts["garbage"] += 1
            return
        try:
            self._rules.handle(identity, message)
            counts[message.kind if message.kind in KINDS else "garbage"] += 1
        except (ValidationError, WireError, IndexError) as error:
            counts["garbage"] += 1
            text = f"{message.kind} cannot be read: {error}"[:1000]
            self._send(identity, "ERR", Notice(code="malformed", message=text))

    def _send(self, identity: bytes, kind: str, header: Strict, *chunks: bytes) -> bool:
        frames = wire.encode_message(kind, header.model_dump(mode="json"), *chunks)
        return self.router.send([identity, *frames])
