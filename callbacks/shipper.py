"""The thread that carries document logs to the service, whenever there is one.

It never holds up the RunEngine: it reads the log files, keeps a bounded number of documents under
way, and starts over from what the service says it has when either side was gone.

It shares the interpreter with the RunEngine, which waits whenever this thread is at work. So while a scan is on it
works in short pieces and rests for most of the time, whatever there is to be sent.
"""

import logging
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from inscan.callbacks.document_log import DocumentLog
from inscan.callbacks.link import Link, Location, host_id
from inscan.callbacks.log_file import SUFFIX, LogFile
from inscan.callbacks.outbox import Outbox
from inscan.callbacks.pass_file import PassError
from inscan.callbacks.wire import PROTOCOL, Message, WireError, pack, unpack

logger = logging.getLogger(__name__)

PING_INTERVAL = 1.0
ASK_INTERVAL = 2.0  # seconds before an unanswered request or watch is repeated
SILENCE = 6.0  # seconds without a word from the service: it is gone
GROWING_INTERVAL = 0.05  # seconds between looks at growing logs; the RunEngine wakes nobody
SCAN_INTERVAL = 5.0
FIRST_WORD = 2.0  # seconds before the absence of a service is mentioned
_SENDING = 8  # logs sent at the same time
_OPEN = 64  # logs kept open
_LOOKED_AT = 1000  # names of logs remembered from one look into the folder
_MAX_REQUESTS = 256
_PIECE = (
    4  # documents, messages and logs in one turn while a scan is on: a fraction of a millisecond
)
_SHARE = 0.05  # of the time that this thread works while a scan is on
_LONGEST_REST = 0.1
_SCAN_ON = 1.0  # seconds after its latest document that a scan is thought to go on


class ServiceGone(ConnectionError):
    """The service did not answer, or went away before it had."""


@dataclass(frozen=True)
class _Request:
    op: str
    fields: dict[str, Any]
    deadline: float
    future: "Future[dict[str, Any]]"


class Shipper(threading.Thread):
    """Carries logs to the service and answers back.

    Parameters
    ----------
    log : DocumentLog
        Logs of this process; its folder is searched for those of dead ones too.
    find : callable
        Says where the service is; asked again at every attempt.
    on_outcome : callable
        (run uid, outcome) of a watched run.
    on_snapshot : callable
        (run uid, snapshot) of a watched run.

    Attributes
    ----------
    connected : bool
        The service has spoken within the last seconds.
    left_behind : int
        Logs that the service had not taken over when the thread ended.
    """

    def __init__(
        self,
        log: DocumentLog,
        find: Callable[[], Location],
        *,
        on_outcome: Callable[[str, dict[str, Any]], None],
        on_snapshot: Callable[[str, dict[str, Any]], None],
    ) -> None:
        super().__init__(name="inscan-shipper", daemon=True)
        self.connected = False
        self.left_behind = 0
        self.outbox = Outbox()
        self._log = log
        self._find = find
        self._on_outcome = on_outcome
        self._on_snapshot = on_snapshot
        self._link = Link()
        self._client = uuid.uuid4().hex
        self._location: Location | None = None
        self._boot: str | None = None
        self._begun = self._heard = self._socket_since = time.monotonic()
        self._told_absent = False
        self._told_trouble = ""
        self._pinged = self._scanned = self._dialled = self._mended = -1e9
        self._left: deque[str] = deque()  # names of logs that nobody has sent
        self._unreadable: set[str] = set()
        self._asked = time.monotonic()
        self._guard = threading.Lock()  # of the next four
        self._watched: set[str] = set()
        self._unwatched: deque[str] = deque()
        self._requests: dict[str, _Request] = {}
        self._unsent_requests: deque[str] = deque()
        self._deadline: float | None = None
        self._ending = threading.Event()
        self._finished = False

    # Called from other threads.

    def wake(self) -> None:
        """Look at the logs now."""
        with self._guard:
            if not self._finished:
                self._link.wake()

    def watch(self, run_uid: str) -> None:
        """Ask for the outcome of a run, again at every reconnection until it came."""
        with self._guard:
            self._watched.add(run_uid)
            self._unwatched.append(run_uid)
        self.wake()

    def request(
        self, op: str, fields: Mapping[str, Any], timeout: float
    ) -> "Future[dict[str, Any]]":
        """Send a request; the future gets the reply, or ServiceGone within ``timeout`` seconds.

        A request that could not be sent in that time is never sent; one that stays without an answer
        is sent again. The same life of a service does it once, the next one may do it again.
        """
        future: Future[dict[str, Any]] = Future()
        future.set_running_or_notify_cancel()
        with self._guard:
            if self._finished or len(self._requests) >= _MAX_REQUESTS:
                future.set_exception(ServiceGone("the connection is closed or overloaded"))
                return future
            name = uuid.uuid4().hex
            deadline = time.monotonic() + timeout
            self._requests[name] = _Request(op, dict(fields), deadline, future)
            self._unsent_requests.append(name)
        self.wake()
        return future

    def stop(self, timeout: float) -> bool:
        """Send what can be sent within ``timeout`` seconds, then end.

        Returns
        -------
        bool
            Whether the service has taken over every log.
        """
        self._deadline = time.monotonic() + timeout
        self._ending.set()
        self.wake()
        self.join(timeout + 2 * PING_INTERVAL)
        return not self.is_alive() and self.left_behind == 0

    # The thread.

    def run(self) -> None:
        try:
            while not self._done():
                self._turn()
        finally:
            self.left_behind = len(self.outbox)
            with self._guard:
                self._finished = True
                requests, self._requests = self._requests, {}
            for request in requests.values():
                request.future.set_exception(ServiceGone("the connection was closed"))
            self.outbox.close()
            self._link.close()

    def _turn(self) -> None:
        try:
            self._link.wait(self._pause())
            began = time.thread_time()
            scanning = self._scanning()
            for message in self._link.messages(*(_PIECE,) if scanning else ()):
                self._heard = time.monotonic()
                self._receive(message)
            now = time.monotonic()
            self._collect(now, 1 if scanning else _SENDING)
            self._keep_contact(now)
            self._expire(now)
            if self.connected:
                self._speak()
                self.outbox.pump(self._link.send, now, *(_PIECE,) if scanning else ())
            if scanning:
                worked = time.thread_time() - began
                self._ending.wait(min(worked * (1 / _SHARE - 1), _LONGEST_REST))
        except Exception:  # noqa: BLE001 - the thread must outlive any defect: logs wait on disk
            logger.exception("inscan: defect while sending documents; they stay in their logs")
            self._link.wait(PING_INTERVAL)

    def _scanning(self) -> bool:
        return self._deadline is None and time.monotonic() - self._log.heard < _SCAN_ON

    def _pause(self) -> float:
        if self._deadline is not None:
            return GROWING_INTERVAL / 2
        dialling = not self.connected and time.monotonic() - self._socket_since < PING_INTERVAL
        return GROWING_INTERVAL if dialling or self.outbox.live() else PING_INTERVAL / 2

    def _done(self) -> bool:
        if self._deadline is None:
            return False
        now = time.monotonic()
        # A service that is there answers the dial within moments; do not wait for none.
        absent = not self.connected and now - self._begun > PING_INTERVAL
        return now > self._deadline or absent or (self.connected and self._idle())

    def _idle(self) -> bool:
        with self._guard:
            if self._requests:
                return False
        return not self._log.waiting and self.outbox.idle()

    def _collect(self, now: float, most: int) -> None:
        """Take over new logs, all of our own and so many of those that dead processes left."""
        if self._log.waiting and (self._log.slow or now - self._mended > PING_INTERVAL):
            self._mended = now
            self._log.mend()
        for log in self._log.take_new():
            self.outbox.add(log)
        if len(self.outbox) > _OPEN:
            self.outbox.park(_OPEN)
        if self._deadline is not None:
            return
        if now - self._scanned > SCAN_INTERVAL:
            self._scanned = now
            self._left = self._look_for_logs()
        for _ in range(most):
            if not self._left or not self.connected:
                return
            if self.outbox.unsent() >= _SENDING or len(self.outbox) >= _OPEN:
                return
            self._adopt(self._left.popleft())

    def _look_for_logs(self) -> deque[str]:
        """Names of logs that are not in our hands; some of them, where there are many."""
        known = self.outbox.file_names() | self._unreadable
        found: deque[str] = deque()
        try:
            with os.scandir(self._log.directory) as entries:
                for entry in entries:
                    if entry.name.endswith(SUFFIX) and entry.name not in known:
                        found.append(entry.name)
                        if len(found) >= _LOOKED_AT:
                            break
        except OSError:
            return found  # no folder, no leftovers; appending has its own words for it
        return found

    def _adopt(self, name: str) -> None:
        try:
            log = LogFile.adopt(self._log.directory / name)
        except OSError as error:
            self._unreadable.add(name)
            logger.warning("inscan: %s; it is left where it is", error)
            return
        if log is not None:
            self.outbox.add(log)

    def _keep_contact(self, now: float) -> None:
        if self.connected and now - self._heard > SILENCE:
            self.connected = False
            logger.warning(
                "inscan: the service at %s does not answer; documents are logged in %s until "
                "it is back",
                self._location and self._location.address,
                self._log.directory,
            )
        if not self.connected and now - self._dialled > PING_INTERVAL:
            self._dial(now)
        if now - self._pinged > PING_INTERVAL:
            sent = self._link.send("PING", {}) if self.connected else self._hello()
            self._pinged = now if sent else -1e9
        if not self.connected and not self._told_absent and now - self._begun > FIRST_WORD:
            self._told_absent = True
            logger.warning(
                "inscan: no service at %s (%s). Documents are logged in %s and sent when one "
                "runs: `inscan serve`",
                self._location and self._location.address,
                self._location and self._location.source,
                self._log.directory,
            )

    def _dial(self, now: float) -> None:
        self._dialled = now
        trouble = self._link.trouble
        try:
            location = self._find()
        except PassError as error:
            self._say_trouble(str(error))
            return
        if trouble is not None and trouble.sure:
            self._say_trouble(trouble.text)
        if location != self._location or now - self._heard > 2 * SILENCE:
            # A fresh socket, too, where the old one might hang in a half-open connection.
            self._location = location
            self._heard = self._socket_since = now
            try:
                self._link.connect(location.address, location.key)
            except ValueError as error:
                self._say_trouble(f"{error} (from {location.source})")
        self._pinged = -1e9

    def _say_trouble(self, text: str) -> None:
        """Say once why the service cannot be spoken to."""
        if text != self._told_trouble:
            self._told_trouble, self._told_absent = text, True
            logger.warning(
                "inscan: %s. Documents are logged in %s until then", text, self._log.directory
            )

    def _hello(self) -> bool:
        header = {"client": self._client, "host_id": host_id(), "pid": os.getpid()}
        return self._link.send("HELLO", {**header, "protocol": list(PROTOCOL)})

    def _speak(self) -> None:
        """Send watches and requests that are due."""
        self._ask_again(time.monotonic())
        with self._guard:
            watches, self._unwatched = self._unwatched, deque()
            names, self._unsent_requests = self._unsent_requests, deque()
            requests = [(name, self._requests[name]) for name in names if name in self._requests]
        for run_uid in watches:
            if not self._link.send("WATCH", {"run": run_uid}):
                with self._guard:
                    self._unwatched.append(run_uid)
        while requests:
            name, request = requests[0]
            header = {"id": name, "op": request.op}
            try:
                if not self._link.send("REQUEST", header, pack(request.fields)):
                    break
            except WireError as error:
                self._answer(name, error)
            requests.pop(0)
        with self._guard:  # in their order, before any that came meanwhile
            self._unsent_requests.extendleft(name for name, _ in reversed(requests))

    def _ask_again(self, now: float) -> None:
        """Repeat what has no answer yet: it, or the answer, may have been lost on the way."""
        with self._guard:
            # Many runs may be watched for hours: not more than a hundred of them a second.
            pause = max(ASK_INTERVAL, len(self._watched) / 100)
            if now - self._asked < pause:
                return
            self._asked = now
            self._unwatched.extend(self._watched.difference(self._unwatched))
            unsent = set(self._unsent_requests)
            self._unsent_requests.extend(name for name in self._requests if name not in unsent)

    def _expire(self, now: float) -> None:
        with self._guard:
            late = [name for name, request in self._requests.items() if now > request.deadline]
        for name in late:
            self._answer(name, ServiceGone("the service did not answer in time"))

    def _answer(self, name: str, reply: dict[str, Any] | Exception) -> None:
        with self._guard:
            request = self._requests.pop(name, None)
        if request is None:
            return
        if isinstance(reply, Exception):
            request.future.set_exception(reply)
        else:
            request.future.set_result(reply)

    def _receive(self, message: Message) -> None:
        header = message.header
        try:
            match message.kind:
                case "WELCOME":
                    self._welcome(str(header["boot"]), bool(header["known"]))
                case "ACK":
                    self.outbox.acknowledge(header["run"], int(header["offset"]))
                case "RESUME":
                    offset, placed = int(header["offset"]), int(header["placed"])
                    self.outbox.resume(header["run"], offset, placed)
                case "RELEASE":
                    self.outbox.release(header["run"])
                case "OUTCOME":
                    with self._guard:
                        self._watched.discard(header["run"])
                    self._on_outcome(header["run"], unpack(message.chunks[0]))
                case "SNAPSHOT":
                    self._on_snapshot(header["run"], dict(header))
                case "REPLY":
                    self._answer(header["id"], unpack(message.chunks[0]))
                case "ERR" if header.get("code") == "key":
                    self.connected = False  # nothing that we say over this connection is heard
                    self._say_trouble(f"the service says: {header.get('message')}")
                case "ERR":
                    logger.warning("inscan: the service says: %s", header.get("message"))
        except (KeyError, TypeError, ValueError, IndexError, ArithmeticError) as error:
            logger.warning("inscan: malformed %s from the service: %r", message.kind, error)

    def _welcome(self, boot: str, known: bool) -> None:
        if not known:  # the line was cut and is back; what was under way is lost
            if self.connected:  # else the next HELLO comes in its time: it may have no room for us
                self.connected = False
                self._hello()
            return
        if self.connected and boot == self._boot:
            return
        logger.info("inscan: connected to the service")
        self.connected = True
        self._told_absent = True
        self._told_trouble = ""
        self._boot = boot
        self.outbox.reset()
        with self._guard:
            self._unwatched.extend(self._watched.difference(self._unwatched))
            # Whether an unanswered one arrived is unknown: ask again, requests may come twice.
            self._unsent_requests = deque(self._requests)
