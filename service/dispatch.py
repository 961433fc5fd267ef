"""The rules by which jobs are given out and results taken. No socket: what is to be sent goes
through a callable.

Finals come from the journal, which is the truth; snapshots live in memory, the newest of each run.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inscan.callbacks import wire
from inscan.callbacks.link import host_id
from inscan.callbacks.wire import Message, WireError
from inscan.service import spool
from inscan.service.acceptance import accept, fenced_path, settle_failure
from inscan.service.events import Look, Submit, TakenOut, WorkerLost
from inscan.service.journal import Journal
from inscan.service.mailbox import Mailbox, MailboxFullError, Outcome, SnapshotDone
from inscan.service.messages import (
    PROTOCOL,
    Fail,
    Heartbeat,
    Hello,
    InferenceJob,
    InferenceResult,
    Notice,
    Partial,
    Ticket,
)
from inscan.service.peer_messages import job_content, other_major, read, read_hello, welcome
from inscan.service.roster import Assignment, Peer, Roster, SnapshotQueue
from inscan.service.settings import Settings
from inscan.service.writer import Prepare

KINDS = ("HELLO", "HB", "PARTIAL", "DONE", "FAIL", "DRAIN", "BYE")
"""What workers send."""
_MAX_RESULT = 4 << 20
_log = logging.getLogger(__name__)

Send = Callable[..., bool]
"""(identity, kind, header, *chunks) -> whether the peer is there."""


class Dispatcher:
    """Workers, their jobs and their clocks; used by one thread at a time.

    Parameters
    ----------
    settings : Settings
        Times, budgets and folders.
    journal : Journal
    version : str
        Of this service.
    writer : Mailbox
        Told to look when a result or a failure is in the journal.
    ingest : Mailbox
        Told of snapshots that are done, and of runs that failed.
    send : callable
        `(identity, kind, header, *chunks) -> bool`: False when the peer is not there.
    """

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        *,
        version: str,
        writer: Mailbox,
        ingest: Mailbox,
        send: Send,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.spool_address = ""
        self._settings = settings
        self._journal = journal
        self._version = version
        self._writer = writer
        self._ingest = ingest
        self._send = send
        self._roster = Roster()
        self._snapshots = SnapshotQueue()
        self._took_s: dict[str, float] = {}
        self._looked = float("-inf")

    @property
    def busy(self) -> bool:
        """Whether some worker has a job."""
        return any(peer.work for peer in self._roster)

    def status(self) -> dict[str, Any]:
        """Workers, waiting snapshots and counters."""
        return {
            "workers": self._roster.describe(),
            "snapshots": len(self._snapshots),
            "counts": dict(self.counts),
        }

    def place_for(self, key: str, fence: int) -> Path | None:
        """Where the result of a dispatch may be put, or None when that dispatch is over."""
        peer = self._roster.holder(key, fence)
        work = None if peer is None else peer.work
        return None if work is None or work.cancelled else Path(work.job.result_path)

    def mail(self, item: object) -> None:
        """Take what another thread of the service posted."""
        match item:
            case Submit(job):
                self._submitted(job)
            case WorkerLost():
                self._worker_lost(item)
            case TakenOut(key):
                for peer in self._roster.at_work_on(key):
                    self._cancel(peer, "it was taken out of the queue")
                self._ended(key)
            case _:
                raise TypeError(f"the broker takes no {type(item).__name__}")

    def handle(self, identity: bytes, message: Message) -> None:
        """Take a message of a worker.

        Raises
        ------
        ValidationError, WireError, IndexError
            When it makes no sense; nothing has changed then.
        """
        if message.kind == "HELLO":
            self._hello(identity, read_hello(message.header))
            return
        peer = self._roster.peers.get(identity)
        if peer is None:
            self._send(
                identity, "ERR", Notice(code="hello", message="unknown here: say HELLO first")
            )
            return
        peer.seen = time.monotonic()
        minor = peer.hello.protocol[1]
        match message.kind:
            case "HB":
                self._beat(peer, read(Heartbeat, message.header, minor))
            case "PARTIAL":
                self._moved(peer, read(Partial, message.header, minor))
            case "DONE":
                ticket = read(Ticket, message.header, minor)
                content = wire.unpack(message.chunks[0], max_bytes=_MAX_RESULT)
                self._done(peer, ticket, read(InferenceResult, content, minor))
            case "FAIL":
                self._failed(peer, read(Fail, message.header, minor))
            case "DRAIN":
                peer.draining, peer.credit = True, 0
            case "BYE":
                self._bye(peer)
            case _:
                raise WireError(f"kind {message.kind!r} is not of this protocol")

    def _hello(self, identity: bytes, hello: Hello) -> None:
        refusal = other_major(hello, self._version)
        if refusal:
            self.counts["refused"] += 1
            self._send(identity, "ERR", Notice(code="protocol", message=refusal))
            return
        self._roster.welcome(identity, hello)
        self._journal.leases.came_back(hello.worker)
        _log.info("worker %s on %s", hello.worker, hello.device)
        self._send(identity, "WELCOME", welcome(self._settings, self._version, self.spool_address))

    def _beat(self, peer: Peer, beat: Heartbeat) -> None:
        peer.rss = beat.rss
        if beat.key is None:
            lost = peer.work
            if lost is None:
                peer.credit = 0 if peer.draining else beat.credit
            elif time.monotonic() - lost.started > 3 * self._settings.hb_s:
                # It never got the job, or we never heard its answer to a cancellation.
                peer.work, peer.credit = None, beat.credit
                self._journal.leases.release(*lost.ticket)
                spool.discard_frozen(lost.job)
            return
        work = peer.work
        if work is None or work.ticket != (beat.key, beat.fence):
            work = self._adopt(peer, beat)
            if work is None:
                self._cancel_ticket(peer, beat.key, beat.fence, "no longer yours")
                return
        work.move(beat.steps, beat.progress)
        if work.cancelled:
            self._cancel_ticket(peer, beat.key, beat.fence, work.cancelled)
        elif work.job.kind == "final" and not self._journal.leases.renew(
            *work.ticket, self._settings.lease_s
        ):
            self._cancel(peer, "its lease had ended")

    def _adopt(self, peer: Peer, beat: Heartbeat) -> Assignment | None:
        """A worker that kept on while the service was away keeps its job, if its lease still stands."""
        assert beat.key is not None
        job = self._journal.leased(beat.key, beat.fence, peer.hello.worker)
        if job is None:
            return None
        now = time.monotonic()
        work = Assignment(self._placed(job), started=now, moved=now, steps=beat.steps)
        peer.work, peer.credit = work, 0
        return work

    def _moved(self, peer: Peer, partial: Partial) -> None:
        if peer.work is not None and peer.work.ticket == (partial.key, partial.fence):
            peer.work.move(partial.steps, partial.progress)

    def _done(self, peer: Peer, ticket: Ticket, result: InferenceResult) -> None:
        if (ticket.key, ticket.fence) != (result.key, result.fence):
            raise WireError("a DONE for one dispatch with the result of another")
        work = peer.work
        ours = work is not None and work.ticket == (ticket.key, ticket.fence)
        if ours and work is not None and work.job.kind == "snapshot":
            self._snapshot_done(work, result)
        elif self._journal.job(ticket.key) is not None:
            timings = {"queued": work.waited if ours and work else 0.0, **result.timings}
            self._final_done(result.model_copy(update={"timings": timings}))
        if ours and work is not None:
            self._took_s[work.job.recipe] = time.monotonic() - work.started
            peer.work, peer.credit = None, 0 if peer.draining else 1
        self._send(peer.identity, "ACK", Ticket(key=ticket.key, fence=ticket.fence))

    def _snapshot_done(self, work: Assignment, result: InferenceResult) -> None:
        spool.discard_frozen(work.job)
        if work.cancelled or result.result_path != work.job.result_path:
            return
        rows = int(work.job.meta.get("rows_done") or 0)
        self._post(self._ingest, SnapshotDone(work.job.run_uid, rows, result.result_path))
        self._post(self._writer, Prepare(work.job, result.result_path))

    def _final_done(self, result: InferenceResult) -> None:
        taken = accept(self._journal, self._settings.results_dir, result)
        self.counts[taken] += 1
        if taken == "accepted":
            self._post(self._writer, Look())
        elif taken in ("missing", "misplaced"):
            text = f"its result was said to be at {result.result_path!r}: {taken}"
            if self._journal.leases.retry(result.key, result.fence, "no_result", text):
                self._ended(result.key)

    def _failed(self, peer: Peer, fail: Fail) -> None:
        work = peer.work
        ours = work is not None and work.ticket == (fail.key, fail.fence)
        if fail.code == "bad_job" and peer.hello.protocol[1] < PROTOCOL[1]:
            # An older worker may not know what a newer service asks for; another one will.
            self._journal.leases.release(fail.key, fail.fence)
            text = f"inscan {peer.hello.version} cannot read this service's jobs: update it"
            self._send(peer.identity, "ERR", Notice(code="protocol", message=text))
            peer.draining = True
        elif settle_failure(self._journal, fail):
            self._ended(fail.key)
        if ours and work is not None:
            spool.discard_frozen(work.job)
            if work.job.kind == "snapshot" and fail.code != "cancelled":
                self.counts["snapshots_failed"] += 1
                _log.warning("snapshot of run %s: %s", work.job.run_uid, fail.message)
            peer.work, peer.credit = None, 0 if peer.draining else 1
        self._send(peer.identity, "ACK", Ticket(key=fail.key, fence=fail.fence))

    def _bye(self, peer: Peer) -> None:
        if peer.work is not None:
            self._journal.leases.release(*peer.work.ticket)
            spool.discard_frozen(peer.work.job)
        del self._roster.peers[peer.identity]
        self._send(peer.identity, "BYE", Notice())

    def _submitted(self, job: InferenceJob) -> None:
        if job.kind == "snapshot":
            old = self._snapshots.put(job)
        else:
            old = self._snapshots.end(job.run_uid)
            self._make_room(job.run_uid)
        if old is not None:
            spool.discard_frozen(old)

    def _make_room(self, run_uid: str) -> None:
        """A final has come: the run's own snapshot is worth nothing now, and another's is worth less."""
        snapshots = self._at_snapshots()
        own = [p for p in snapshots if p.work and p.work.job.run_uid == run_uid]
        for peer in own:
            self._cancel(peer, "the run has ended")
        if snapshots and not own and not self._roster.idle():
            self._cancel(snapshots[0], "a completed run needs the worker")

    def _at_snapshots(self) -> list[Peer]:
        return [
            peer
            for peer in self._roster
            if peer.work and peer.work.job.kind == "snapshot" and not peer.work.cancelled
        ]

    def cancel_snapshots(self) -> None:
        """The service ends: nobody will look at them."""
        for peer in self._at_snapshots():
            self._cancel(peer, "the service ends")

    def _worker_lost(self, lost: WorkerLost) -> None:
        for peer in self._roster:
            if peer.hello.pid == lost.pid and peer.hello.host_id == host_id():
                self._gone(peer, lost.reason)

    def _gone(self, peer: Peer, reason: str) -> None:
        del self._roster.peers[peer.identity]
        if peer.work is not None:
            if self._journal.leases.crashed(*peer.work.ticket, reason):
                self._ended(peer.work.job.key)
            spool.discard_frozen(peer.work.job)

    def dispatch(self) -> None:
        """Give idle workers what waits: finals first."""
        for peer in self._roster.idle():
            for late in self._snapshots.drop_late(self._took_s):
                spool.discard_frozen(late)
            leased = self._journal.leases.lease(peer.hello.worker, self._settings.lease_s)
            waiting = leased or self._snapshots.take()
            if waiting is None:
                return
            job, waited = waiting
            self._give(peer, self._placed(job) if leased else job, waited)

    def _give(self, peer: Peer, job: InferenceJob, waited: float) -> None:
        now = time.monotonic()
        ticket = Ticket(key=job.key, fence=job.fence)
        if self._send(peer.identity, "JOB", ticket, job_content(job, peer.hello.protocol[1])):
            peer.work, peer.credit = Assignment(job, started=now, moved=now, waited=waited), 0
            return
        # Its connection is gone; if it lives it will say HELLO again.
        del self._roster.peers[peer.identity]
        if job.kind == "final":
            self._journal.leases.release(job.key, job.fence)
        else:
            self._submitted(job)

    def _placed(self, job: InferenceJob) -> InferenceJob:
        path = fenced_path(self._settings.results_dir, job.key, job.fence)
        return job.model_copy(update={"result_path": str(path)})

    def watch_clocks(self) -> None:
        """End leases, time budgets and workers that have been silent for too long."""
        now = time.monotonic()
        deaf, self._looked = now - self._looked, now
        if deaf > self._settings.lease_s / 2:  # frozen, or only just started: no worker was silent
            self._roster.excuse(deaf)
            self._journal.leases.excuse(self._settings.lease_s)
        for key, fence in self._journal.leases.expire():
            peer = self._roster.holder(key, fence)
            if peer is not None:
                self._cancel(peer, "its lease had ended")
            self._ended(key)
        for peer in self._roster:
            work = peer.work
            if now - peer.seen > self._settings.lease_s:
                self._gone(peer, f"worker {peer.hello.worker} was not heard of again")
            elif work is not None and not work.cancelled:
                self._watch(peer, work, now)

    def _watch(self, peer: Peer, work: Assignment, now: float) -> None:
        budget = self._settings.budgets.get(work.job.recipe)
        granted = work.job.granted_s
        if budget is not None and now - work.started > budget + granted:
            more = f" and the {granted:g} s granted to fine-tuning" if granted else ""
            reason = (
                f"took longer than its budget of {budget:g} s (setting budgets.{work.job.recipe})"
                f"{more}"
            )
            changed = self._journal.leases.refuse(*work.ticket, "too_slow", reason)
        elif now - work.moved > self._settings.progress_s:
            reason = f"no progress for {self._settings.progress_s:g} s on {peer.hello.worker}"
            changed = self._journal.leases.crashed(*work.ticket, reason)
        else:
            return
        if changed:
            self._ended(work.job.key)
        self._cancel(peer, reason)

    def _cancel(self, peer: Peer, reason: str) -> None:
        if peer.work is not None:
            peer.work.cancelled = reason
            self._cancel_ticket(peer, *peer.work.ticket, reason)

    def _cancel_ticket(self, peer: Peer, key: str, fence: int, reason: str) -> None:
        self._send(peer.identity, "CANCEL", Ticket(key=key, fence=fence, reason=reason))

    def _ended(self, key: str) -> None:
        """When a job has failed for good, tell those who wait for its run."""
        job = self._journal.job(key)
        if job is None or job["state"] != "failed":
            return
        _log.error("job %s of run %s failed: %s", key[:12], job["run_uid"], job["reason"])
        self._post(self._writer, Look())
        outcome = self._journal.outcome(job["run_uid"])
        if outcome is not None:
            self._post(self._ingest, Outcome(job["run_uid"], outcome))

    def _post(self, mailbox: Mailbox, item: object) -> None:
        try:
            mailbox.post(item)
        except MailboxFullError:
            # Both owners look into the journal by themselves as well.
            self.counts["unposted"] += 1
