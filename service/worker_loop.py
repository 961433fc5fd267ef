"""A worker: dials the broker, runs one job at a time, tells every second that it lives, keeps
nothing.

The main thread speaks with the broker and beats; jobs run in another, so that a long computation is
no silence.
"""

import logging
import os
import queue
import threading
import time
from importlib.metadata import version

import psutil
from pydantic import ValidationError

from inscan.callbacks.link import ANYWHERE, Link, at_host, host_id, host_of
from inscan.callbacks.pass_file import Pass
from inscan.callbacks.wire import Message, WireError, pack, unpack
from inscan.service import device, host
from inscan.service.messages import (
    PROTOCOL,
    Fail,
    Heartbeat,
    Hello,
    InferenceJob,
    InferenceResult,
    Notice,
    Partial,
    Strict,
    Ticket,
    Welcome,
)
from inscan.service.worker_job import Cancelled, Process, execute, explain

EXIT_REFUSED = 3
EXIT_NOT_LET_IN = 4
"""The broker lets this worker's key in no more, or did not for `_REFUSED_S`."""
EXIT_STUCK = 75
"""A cancelled job did not let go: the process ends, for whoever started it to start another."""
_FIRST_BEAT_S = 0.5
_CANCEL_GRACE_S = 5.0
"""A new process takes less time to be ready than most jobs take to end by themselves."""
_PARTIAL_EVERY_S = 0.2
_SILENCE_S = 5.0
"""Time before the absence of a broker is mentioned."""
_REFUSED_S = 60.0
"""Time for somebody to let in a worker that was started first; whoever started it may start it again."""
_log = logging.getLogger(__name__)


class _Work:
    """The job at hand; `steps`, `progress` and `answer` are written by the compute thread."""

    def __init__(self, job: InferenceJob) -> None:
        self.job = job
        self.ticket = (job.key, job.fence)
        self.cancelled = threading.Event()
        self.cancelled_at: float | None = None
        self.progress = 0.0
        self.steps = 0
        self.answer: InferenceResult | Fail | None = None


class Worker:
    """A worker's main thread.

    Parameters
    ----------
    address : str
        Broker, `tcp://HOST:PORT`.
    process : callable
        The recipe.
    name : str
        Unique to this process.
    described : str
        What it computes on, for people.
    grace_s : float
        Time to finish the present job when told to stop.
    cancel_grace_s : float
        Time in which a cancelled job has to let go, at most `grace_s`.
    key : Pass or None
        What lets it in; None for a broker of this machine that asks for no key.
    refused_s : float
        Time after which a worker that is not let in ends.
    """

    def __init__(
        self,
        address: str,
        process: Process,
        *,
        name: str,
        described: str,
        grace_s: float,
        cancel_grace_s: float = _CANCEL_GRACE_S,
        key: Pass | None = None,
        refused_s: float = _REFUSED_S,
    ) -> None:
        self._address = address
        self._process = process
        self._name = name
        self._described = described
        self._grace_s = grace_s
        self._cancel_grace_s = min(cancel_grace_s, grace_s)
        self._key = key
        self._refused_s = refused_s
        self._refused_since: float | None = None
        self._told_trouble = ""
        self._begun = time.monotonic()
        self._link = Link()
        self._jobs: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._compute = threading.Thread(target=self._compute_jobs, name="compute", daemon=True)
        self._welcome: Welcome | None = None
        self._work: _Work | None = None
        self._over: tuple[str, int] | None = None
        self._stop_by: float | None = None
        self._stopping = False
        self._exit = 0
        self._memory = psutil.Process()
        self._told = 0
        self._next_partial = 0.0

    def stop(self) -> None:
        """Take no more jobs, finish the present one within the grace, then leave. Safe in a signal
        handler."""
        self._stopping = True
        self._link.wake()

    def run(self) -> int:
        """Serve until `stop`; the exit status."""
        self._link.connect(self._address, self._key)
        self._compute.start()
        next_beat = time.monotonic()
        try:
            while not self._finished():
                beat = self._welcome.hb_s if self._welcome else _FIRST_BEAT_S
                if time.monotonic() >= next_beat:
                    self._beat()
                    next_beat = time.monotonic() + beat
                self._link.wait(max(0.0, min(next_beat, self._deadline()) - time.monotonic()))
                for message in self._link.messages():
                    self._take(message)
                self._look_for_trouble()
                self._report()
                self._begin_to_stop()
        finally:
            self._leave()
        return self._exit

    def _finished(self) -> bool:
        if self._exit:
            return True
        if self._work is not None and self._work.cancelled_at is not None:
            # Python cannot stop a thread: a job that ignores its cancellation takes the process
            # with it.
            if (
                self._work.answer is None
                and time.monotonic() > self._work.cancelled_at + self._cancel_grace_s
            ):
                _log.error("job %s does not let go; ending this process", self._work.job.key[:12])
                self._exit = EXIT_STUCK
                return True
        return self._stopping and (self._work is None or time.monotonic() > self._deadline())

    def _look_for_trouble(self) -> None:
        """Say once why the broker cannot be spoken to; end when it will not be for long."""
        trouble, now = self._link.trouble, time.monotonic()
        if trouble is None or not trouble.sure:
            self._refused_since = None
            if self._welcome is None and not self._told_trouble and now > self._begun + _SILENCE_S:
                self._told_trouble = trouble.text if trouble else f"no broker at {self._address}"
                _log.warning("%s; trying on", self._told_trouble)
            return
        if trouble.text != self._told_trouble:
            self._told_trouble = trouble.text
            _log.error("%s", trouble.text)
        self._refused_since = self._refused_since or now
        if now - self._refused_since > self._refused_s:
            _log.error("not let in for %g s; ending this process", self._refused_s)
            self._exit = EXIT_NOT_LET_IN

    def _deadline(self) -> float:
        return float("inf") if self._stop_by is None else self._stop_by

    def _begin_to_stop(self) -> None:
        if self._stopping and self._stop_by is None:
            self._stop_by = time.monotonic() + self._grace_s
            self._send("DRAIN", Notice(code="drain", message="told to stop"))

    def _leave(self) -> None:
        work = self._work
        if work is not None and work.answer is None:
            self._send(
                "FAIL",
                Fail(
                    key=work.job.key,
                    fence=work.job.fence,
                    code="stuck" if self._exit == EXIT_STUCK else "drained",
                    message="handed back by a worker that leaves",
                    retryable=True,
                ),
            )
        # The socket drops what is not yet sent when it closes, and what was sent may be lost: an answer shows that it
        # was not. Said again until then, or the lease of a job in hand ends as if this worker had crashed.
        deadline = time.monotonic() + 0.5
        while True:
            self._send("BYE", Notice(code="bye", message="worker leaves"))
            self._link.wait(0.1)
            if any(message.kind == "BYE" for message in self._link.messages()):
                break
            if self._welcome is None or time.monotonic() > deadline:
                break
        if work is None:
            self._jobs.put(None)
            self._compute.join()
            self._link.close()

    def _send(self, kind: str, header: Strict, *chunks: bytes) -> bool:
        return self._link.send(kind, header.model_dump(mode="json"), *chunks)

    def _beat(self) -> None:
        if self._welcome is None:
            self._hello()
            return
        work = self._work
        self._send(
            "HB",
            Heartbeat(
                worker=self._name,
                key=work.job.key if work else None,
                fence=work.job.fence if work else 0,
                progress=work.progress if work else 0.0,
                steps=work.steps if work else 0,
                rss=self._memory.memory_info().rss,
                credit=int(work is None and not self._stopping),
            ),
        )
        if work is not None and work.answer is not None:
            self._answer(work.answer)

    def _hello(self) -> None:
        self._send(
            "HELLO",
            Hello(
                protocol=PROTOCOL,
                worker=self._name,
                host_id=host_id(),
                boot_id=host.boot_id(),
                pid=os.getpid(),
                device=self._described,
                memory=device.memory(),
                version=version("inscan"),
                credit=int(self._work is None and not self._stopping),
            ),
        )

    def _take(self, message: Message) -> None:
        try:
            if message.kind == "WELCOME":
                self._welcome = Welcome.model_validate(message.header)
                self._beat()
            elif message.kind == "JOB":
                self._begin(message)
            elif message.kind == "ACK":
                self._acknowledged(Ticket.model_validate(message.header))
            elif message.kind == "CANCEL":
                self._cancel(Ticket.model_validate(message.header))
            elif message.kind == "DRAIN":
                self.stop()
            elif message.kind == "ERR":
                self._refused(Notice.model_validate(message.header))
            elif message.kind != "BYE":
                _log.warning("the broker sent %s, which this version does not know", message.kind)
        except (ValidationError, WireError) as error:
            _log.warning("the broker sent a %s that cannot be read: %s", message.kind, error)

    def _begin(self, message: Message) -> None:
        ticket = Ticket.model_validate(message.header)
        if (ticket.key, ticket.fence) == self._over:
            return  # it came twice, and the result is in the service's hands
        if self._work is not None:
            if self._work.ticket != (ticket.key, ticket.fence):
                _log.warning("job %s came while another runs; left to its lease", ticket.key[:12])
            return
        try:
            job = InferenceJob.model_validate(unpack(message.chunks[0]))
        except (ValidationError, WireError, IndexError) as error:
            text = f"the job cannot be read: {error}"[:4000]
            self._send(
                "FAIL",
                Fail(
                    key=ticket.key,
                    fence=ticket.fence,
                    code="bad_job",
                    message=text,
                    retryable=False,
                ),
            )
            return
        self._work = _Work(job)
        self._jobs.put(self._work)

    def _acknowledged(self, ticket: Ticket) -> None:
        if self._work is not None and self._work.ticket == (ticket.key, ticket.fence):
            self._work, self._over = None, self._work.ticket
            self._beat()

    def _cancel(self, ticket: Ticket) -> None:
        work = self._work
        if (
            work is not None
            and work.ticket == (ticket.key, ticket.fence)
            and work.cancelled_at is None
        ):
            _log.info("job %s cancelled: %s", ticket.key[:12], ticket.reason)
            work.cancelled_at = time.monotonic()
            work.cancelled.set()

    def _refused(self, notice: Notice) -> None:
        if notice.code == "hello":
            # A broker that has just started knows nobody.
            self._hello()
        elif notice.code == "protocol":
            _log.error("the broker refuses this worker: %s", notice.message)
            self._exit = EXIT_REFUSED
        elif notice.code == "key":
            _log.error("the broker refuses this worker: %s", notice.message)
            self._exit = EXIT_NOT_LET_IN
        else:
            _log.warning("the broker says: %s", notice.message)

    def _report(self) -> None:
        work = self._work
        if work is None:
            return
        if work.answer is not None:
            # Once at once; again with each heartbeat until it is acknowledged.
            if self._told != id(work):
                self._told = id(work)
                self._answer(work.answer)
        elif work.steps and time.monotonic() >= self._next_partial:
            self._next_partial = time.monotonic() + _PARTIAL_EVERY_S
            self._send(
                "PARTIAL",
                Partial(
                    key=work.job.key, fence=work.job.fence, progress=work.progress, steps=work.steps
                ),
            )

    def _answer(self, answer: InferenceResult | Fail) -> None:
        if isinstance(answer, Fail):
            self._send("FAIL", answer)
        else:
            self._send(
                "DONE",
                Ticket(key=answer.key, fence=answer.fence),
                pack(answer.model_dump(mode="json")),
            )

    def _compute_jobs(self) -> None:
        while (work := self._jobs.get()) is not None:
            work.answer = self._compute_one(work)
            self._link.wake()

    def _compute_one(self, work: _Work) -> InferenceResult | Fail:
        def progress(fraction: float) -> None:
            work.progress = fraction
            work.steps += 1
            if work.cancelled.is_set():
                raise Cancelled(f"job {work.job.key[:12]} is not wanted any more")
            self._link.wake()

        assert self._welcome is not None
        try:
            spool = self._welcome.spool
            if host_of(spool) in ANYWHERE:  # the service cannot know by which name it was reached
                spool = at_host(spool, host_of(self._address))
            return execute(work.job, self._process, progress, spool, self._key)
        except BaseException as error:  # noqa: BLE001 - it becomes the failure of the job, SystemExit of a library too
            if not isinstance(error, Cancelled):
                _log.exception("job %s failed", work.job.key[:12])
            return explain(work.job, error)
