"""Where documents come in: the thread that owns the ingest socket.

Documents go to the assembler of their run in a small pool of threads, so that a run whose detector
files are slow holds up no other. A client may delete its log (RELEASE) only after the run's
finals are durable; until then a new service asks for everything again.
"""

import logging
import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import zmq

from inscan.callbacks.wire import (
    DamagedError,
    Message,
    VersionError,
    WireError,
    decode_message,
)
from inscan.service.answers import Answers, HandleRequest
from inscan.service.clients import Client, Clients, Recent, place_named, run_named
from inscan.service.complaints import Complaints
from inscan.service.gate import Gate
from inscan.service.ingest_line import Line
from inscan.service.intake import RunIntake, Uses
from inscan.service.mailbox import Mailbox, Outcome
from inscan.service.readers import LIVING_S
from inscan.service.telling import Telling

logger = logging.getLogger(__name__)

_POLL_MS = 500  # between looks at clocks
_RESUME_INTERVAL = 1.0  # a RESUME is not repeated for each of the documents under way
_DEAF_S = 3.0  # between two turns: the process was frozen
_MAX_RUNS = 256
_MAX_RUNS_OF_ONE = 128  # one that goes mad leaves room for others
_FINISHED = 10_000  # run uids remembered as over
_THREADS = 4
_MENDERS = 2  # runs at a time of which missing documents are fetched
_BATCH = 256  # messages between looks at mail, runs and clocks


class Ingest:
    """The ingest thread.

    Parameters
    ----------
    address : str
        Where to listen, such as ``tcp://127.0.0.1:5620``; port 0 takes any free one.
    uses : Uses
        What becomes of documents; called from a pool of four threads.
    is_closed : callable
        Run uid -> whether its log may go: all of it is durable (`Uses.on_closed`), or it is over otherwise.
    on_incomplete : callable
        (run uid, reason): nobody sends the run any more, and it has no stop. Provisional: when
        its client comes back, the run is taken in again from its start.
    outcome_of : callable
        Run uid -> outcome payload, or None while there is none.
    handle_request : callable
        (op, fields, identity of the connection) -> reply; called in the ingest thread, so it must be
        quick. An exception becomes a refusal that carries its text.
    mailbox : Mailbox
        For `Outcome` and `SnapshotDone`.
    incomplete_after : float
        Seconds without a word from a run's client before `on_incomplete`.
    retry_after : float
        Seconds before a run that met a failing machine is asked for again.
    unfinished : iterable of str
        Runs that an earlier life of the service had begun and not closed.
    gate : Gate or None
        Which clients may come in; None for all of this machine.
    """

    def __init__(
        self,
        address: str,
        uses: Uses,
        *,
        is_closed: Callable[[str], bool],
        on_incomplete: Callable[[str, str], None],
        outcome_of: Callable[[str], dict[str, Any] | None],
        handle_request: HandleRequest,
        mailbox: Mailbox,
        incomplete_after: float = 600.0,
        retry_after: float = 30.0,
        unfinished: Iterable[str] = (),
        gate: Gate | None = None,
    ) -> None:
        self.boot = uuid.uuid4().hex
        self.counts: Counter[str] = Counter()
        """Messages by kind, and ``garbage``, ``damaged``, ``repeated``, ``gaps``, ``repaired`` (events and rows)."""
        self._address = address
        self._uses = uses
        self._is_closed = is_closed
        self._on_incomplete = on_incomplete
        self._outcome_of = outcome_of
        self._mailbox = mailbox
        self._incomplete_after = incomplete_after
        self._retry_after = retry_after
        self._runs: dict[str, RunIntake] = {}
        self._finished = Recent(_FINISHED)
        self._orphans = dict.fromkeys(unfinished, time.monotonic())
        self._clients = Clients()
        self._listened = time.monotonic()
        self._line = Line(self.counts, gate)
        self.router = self._line.router
        self._complaints = Complaints(logger)
        self._answers = Answers(handle_request, self._complaints)
        self._telling = Telling(self._line, self._clients, outcome_of, self.boot)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="inscan-run")
        self._menders = ThreadPoolExecutor(_MENDERS, thread_name_prefix="inscan-repair")
        self._thread = threading.Thread(target=self._run, name="inscan-ingest")

    def bind(self) -> str:
        """Listen; returns the address clients connect to, with the real port.

        Raises
        ------
        OSError
            If somebody listens there already, or it is no address of this machine.
        """
        return self._line.bind(self._address)

    def start(self) -> None:
        """Start the thread; `bind` first."""
        if self._line.socket is None:
            raise RuntimeError("bind() before start()")
        self._thread.start()

    def stop(self, timeout: float = 30.0) -> bool:
        """Take no more documents, finish those at hand, close; False if that takes longer."""
        self._stopping.set()
        os.eventfd_write(self._wake, 1)
        if self._thread.ident is None:
            self._close()
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        poller = zmq.Poller()
        for source in (self._line.socket, self._wake, self._mailbox.fileno()):
            poller.register(source, zmq.POLLIN)
        try:
            while not self._stopping.is_set():
                self._guarded(self._turn, poller)
        finally:
            self._close()

    def _guarded(self, work: Callable[..., None], *given: Any) -> None:
        try:
            work(*given)
        except Exception:  # noqa: BLE001 - no message must end the service, or keep others waiting
            self.counts["defects"] += 1
            self._complaints.defect("defect in ingest; it goes on")

    def _close(self) -> None:
        for run in self._runs.values():
            run.abandon()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._menders.shutdown(wait=True, cancel_futures=True)
        for run in self._runs.values():
            run.close()
        self._line.close()
        os.close(self._wake)

    def _turn(self, poller: zmq.Poller) -> None:
        for source, _ in poller.poll(_POLL_MS):
            if source == self._wake:
                os.eventfd_read(self._wake)
        self._excuse(time.monotonic())
        for item in self._mailbox.drain():
            self._telling.mail(item)
        for frames in self._line.received(_BATCH):
            self._guarded(self._message, frames)
        now = time.monotonic()
        for run in list(self._runs.values()):
            self._put_to_work(run)
            if run.claim_mending(now):
                self._menders.submit(self._mend, run)
            self._report(run, now)
        self._watch_clocks(now)

    def _message(self, frames: list[bytes]) -> None:
        identity, *rest = frames
        try:
            message = decode_message(rest)
        except VersionError as error:
            self.counts["garbage"] += 1
            self._line.refuse(identity, rest, str(error))
            return
        except WireError as error:
            self.counts["damaged" if isinstance(error, DamagedError) else "garbage"] += 1
            return
        try:
            client = self._clients.heard(identity, time.monotonic())
            self._dispatch(identity, client, message)
            self.counts[message.kind] += 1
        except (KeyError, TypeError, ValueError, IndexError, ArithmeticError) as error:
            self.counts["garbage"] += 1
            self._complaints.say(logging.WARNING, "malformed %s: %.1000r", message.kind, error)

    def _dispatch(self, identity: bytes, client: Client, message: Message) -> None:
        header = message.header
        match message.kind:
            case "HELLO":
                client = self._clients.introduce(identity, header, time.monotonic())
                self.counts["turned_away"] += not client.name
                self._telling.welcome(identity, client)
            case "PING":
                self._telling.welcome(identity, client)
            case "DOC":
                self._document(identity, client, message)
            case "SYNC":
                ends_at = place_named(header, "offset") if header["ended"] else None
                self._sync(identity, client, run_named(header), ends_at)
            case "WATCH":
                self._telling.watch(identity, client, run_named(header))
            case "REQUEST":
                name, reply = self._answers(identity, message)
                self._line.send(identity, "REPLY", {"id": name}, reply)
            case _:
                raise ValueError("unknown kind of message")

    def _over(self, run_uid: str) -> bool:
        if run_uid not in self._finished and run_uid not in self._runs:
            if self._is_closed(run_uid):
                self._finished.add(run_uid)
        return run_uid in self._finished

    def _document(self, identity: bytes, client: Client, message: Message) -> None:
        (chunk,), run_uid = message.chunks, run_named(message.header)
        offset, following = (place_named(message.header, name) for name in ("offset", "next"))
        payload = bytes(chunk)
        if self._over(run_uid):
            self._line.send(identity, "RELEASE", {"run": run_uid})
            return
        run = self._runs.get(run_uid)
        if run is not None:
            run = self._of(run, identity, client, payload if offset == 0 else None)
            if run is None:
                return
        elif offset != 0:
            self._from_start(identity, run_uid)
            return
        elif not self._has_room(identity):
            self.counts["busy"] += 1
            text = f"{len(self._runs)} runs are open already; {run_uid} has to wait"
            self._line.send(identity, "ERR", {"code": "busy", "message": text})
            return
        else:
            run = self._open(run_uid, identity, client, payload)
        run.client = identity
        match run.offer(offset, following, payload):
            case "next":
                self._put_to_work(run)
            case "old":
                self.counts["repeated"] += 1
            case "gap":
                self.counts["gaps"] += 1
                run.behind = run.mending
                now = time.monotonic()
                if not run.behind and now - run.resumed_at > _RESUME_INTERVAL:
                    run.resumed_at = now
                    self._resume(run)

    def _has_room(self, identity: bytes) -> bool:
        theirs = sum(run.client == identity for run in self._runs.values())
        return len(self._runs) < _MAX_RUNS and theirs < _MAX_RUNS_OF_ONE

    def _open(self, run_uid: str, identity: bytes, client: Client, payload: bytes) -> RunIntake:
        run = self._runs[run_uid] = RunIntake(run_uid, identity, self._uses)
        run.reader.begin(identity, client.name, payload)
        self._orphans.pop(run_uid, None)
        return run

    def _of(
        self, run: RunIntake, identity: bytes, client: Client, first: bytes | None
    ) -> RunIntake | None:
        """The run, if it is to be taken from this client."""
        now = time.monotonic()
        silence = min(self._clients.silence(one, now) for one in run.reader.identities)
        match run.reader.judge(identity, client.name, first, living=silence < LIVING_S):
            case "ours":
                return run
            case "taken over":
                run.client = identity
                self._resume(run)
            case "prove":
                self._from_start(identity, run.run_uid)
            case "replace" if first is not None and run.idle:
                logger.warning("run %s is taken from another client's log", run.run_uid)
                run.close()
                return self._open(run.run_uid, identity, client, first)
            case "tell":
                self.counts["doubled"] += 1
                text = f"run {run.run_uid} comes from another client; this log is kept until it is over"
                self._line.send(identity, "ERR", {"code": "doubled", "message": text})
        return None

    def _resume(self, run: RunIntake) -> None:
        header = {"run": run.run_uid, "offset": run.expected, "placed": run.placed}
        self._line.send(run.client, "RESUME", header)

    def _from_start(self, identity: bytes, run_uid: str) -> None:
        self._line.send(identity, "RESUME", {"run": run_uid, "offset": 0, "placed": 0})

    def _put_to_work(self, run: RunIntake) -> None:
        if run.claim():
            self._pool.submit(self._work, run)

    def _work(self, run: RunIntake) -> None:
        run.work(self._tell)
        self._tell()  # the run is idle now

    def _mend(self, run: RunIntake) -> None:
        self.counts["repaired"] += run.mend(self._tell)
        self._tell()

    def _tell(self) -> None:
        """Have the ingest thread look at the runs."""
        os.eventfd_write(self._wake, 1)

    def _sync(self, identity: bytes, client: Client, run_uid: str, ends_at: int | None) -> None:
        if self._over(run_uid):
            self._line.send(identity, "RELEASE", {"run": run_uid})
            return
        run = self._runs.get(run_uid)
        if run is None:
            self._from_start(identity, run_uid)
            return
        if self._of(run, identity, client, None) is None:
            return
        run.client = identity
        self._resume(run)
        # What a late acknowledgement makes the client believe is no end: all of the log must be here.
        ended = ends_at is not None and run.placed >= ends_at
        if ended and run.idle and run.state == "open":
            run.end("the acquisition ended without a stop document")
            self._put_to_work(run)

    def _report(self, run: RunIntake, now: float) -> None:
        """Tell the client what has become of what it sent."""
        placed, state = run.placed, run.state
        if placed > run.told:
            run.told = placed
            self._line.send(run.client, "ACK", {"run": run.run_uid, "offset": placed})
        if run.behind and not run.mending:
            run.behind = False
            self._resume(run)
        if state == "open" or not run.idle:
            return
        if state == "held":
            run.held_at = run.held_at or now
            if now - run.held_at > self._retry_after:
                del self._runs[run.run_uid]
                self._from_start(run.client, run.run_uid)
            return
        del self._runs[run.run_uid]
        self._finished.add(run.run_uid)
        self._line.send(run.client, "RELEASE", {"run": run.run_uid})
        outcome = self._outcome_of(run.run_uid)
        if outcome is None and state in ("failed", "passed_by"):
            outcome = {"status": state, "reason": run.reason, "proposals": []}
        if outcome is not None:
            self._telling.mail(Outcome(run.run_uid, outcome))

    def _excuse(self, now: float) -> None:
        """Whoever was not heard while this process was frozen was not silent."""
        deaf, self._listened = now - self._listened, now
        if deaf > _DEAF_S:
            self._clients.excuse(deaf)
            self._orphans = {run_uid: since + deaf for run_uid, since in self._orphans.items()}

    def _watch_clocks(self, now: float) -> None:
        for run in list(self._runs.values()):
            silent = self._clients.silence(run.client, now) > self._incomplete_after
            if run.state == "open" and run.idle and silent:
                run.close()
                del self._runs[run.run_uid]
                self._incomplete(run.run_uid)
        for run_uid, since in list(self._orphans.items()):
            if now - since > self._incomplete_after:
                del self._orphans[run_uid]
                self._incomplete(run_uid)

    def _incomplete(self, run_uid: str) -> None:
        silence = f"no word from its client for {self._incomplete_after:g} s"
        self._on_incomplete(run_uid, f"incomplete: no stop document, and {silence}")
