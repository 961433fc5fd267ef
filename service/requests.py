"""What the command line and plans may ask of a running service."""

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from inscan.service.approval import GATED, Approval
from inscan.service.broker import Broker
from inscan.service.job_requests import JobRequests
from inscan.service.journal import Journal
from inscan.service.queue_rescans import QueueRescans
from inscan.service.rescan_states import Rescans
from inscan.service.source_table import SourceTable
from inscan.service.spool import Spool

_MOST_RUNS = 1000  # asked about at a time: the answer is given in ingest's thread


class Requests:
    """Answers requests; called in ingest's thread, so every answer is a quick look at what is known.

    Parameters
    ----------
    about : mapping
        What does not change: version, addresses, state directory.
    writer : callable
        What it says of itself.
    counts : callable
        Counters of messages to ingest and to the spool server.
    troubles : callable
        What the main thread cannot do at present, and why.
    sources : SourceTable
        What forwarders say of themselves.
    queue : QueueRescans
        What it says of proposals that go through a queue server.
    approval : Approval
        Asked about every request that decides something.
    sockets : callable
        What the listening sockets say of themselves.
    """

    def __init__(
        self,
        journal: Journal,
        broker: Broker,
        spool: Spool,
        rescans: Rescans,
        about: Mapping[str, Any],
        *,
        writer: Callable[[], Mapping[str, Any]],
        troubles: Callable[[], Mapping[str, str]] = dict,
        counts: Callable[[], Sequence[Mapping[str, int]]],
        sources: SourceTable,
        queue: QueueRescans,
        approval: Approval,
        sockets: Callable[[], list[dict[str, Any]]],
    ) -> None:
        self._journal = journal
        self._broker = broker
        self._spool = spool
        self._rescans = rescans
        self._about = about
        self._writer = writer
        self._troubles = troubles
        self._counts = counts
        self._sources = sources
        self._queue = queue
        self._approval = approval
        self._sockets = sockets
        self._people = JobRequests(journal, broker.mailbox)
        self._since = time.monotonic()

    def __call__(self, op: str, fields: dict[str, Any], peer: bytes) -> Mapping[str, Any]:
        """Answer one request; `peer` is the connection that it came from.

        Raises
        ------
        NotApprover
            For one that decides something and comes without an approver's key.
        ValueError
            For an operation or a field that is not known; the caller gets the text.
        LookupError
            For a run or proposal that is not known.
        """
        known: dict[str, Callable[..., Mapping[str, Any]]] = {
            "status": self._status,
            "jobs": self._people.jobs,
            "retry": self._people.retry,
            "quarantine": self._people.quarantine,
            "runs": self._runs,
            "outcome": self._outcome,
            "proposals": self._proposals,
            "approve": self._approve,
            "refuse": self._refuse,
            "rescan_update": self._rescans.update,
            "proposal": self._proposal,
            "rescan_record": self._rescans.past,
            "propose_places": self._rescans.propose_places,
            "known_runs": self._known_runs,
            "sources": lambda: {"sources": self._sources.rows()},
            "source_report": self._sources.report,
        }
        if op not in known:
            raise ValueError(f"the service knows no request {op!r}; it knows {', '.join(known)}")
        if op in GATED:
            fields = self._approval.signed(op, fields, peer)
        try:
            return known[op](**fields)
        except TypeError as error:
            raise ValueError(f"request {op!r} with fields {sorted(fields)}: {error}") from error

    def _status(self) -> Mapping[str, Any]:
        broker = self._broker.status()
        return {
            **self._about,
            "pid": os.getpid(),
            "uptime_s": round(time.monotonic() - self._since, 1),
            **self._journal.status(),
            "journal": self._journal.health(),
            "snapshots": {"waiting": broker["snapshots"]},
            "writer": dict(self._writer()),
            "troubles": dict(self._troubles()),
            "spool": self._spool.status(),
            "messages": _sum(broker["counts"], *self._counts(), self._approval.counts),
            "sockets": self._sockets(),
            "workers": broker["workers"],
            "sources": self._sources.rows(),
            **({"queueserver": self._queue.status()} if self._queue.wanted else {}),
        }

    def _runs(self, state: str | None = None, limit: int = 200) -> Mapping[str, Any]:
        rows = self._journal.runs(state, limit)
        return {"runs": [{k: v for k, v in row.items() if k != "start"} for row in rows]}

    def _known_runs(self, uids: list[str]) -> Mapping[str, Any]:
        """Which of these runs are over and done with here."""
        return {"known": [uid for uid in uids[:_MOST_RUNS] if self._journal.released(str(uid))]}

    def _outcome(self, run_uid: str) -> Mapping[str, Any]:
        if self._journal.run(run_uid) is None:
            raise LookupError(f"no run {run_uid!r} has come to this service")
        return {"outcome": self._journal.outcome(run_uid)}

    def _proposals(self, run_uid: str | None = None, state: str | None = None) -> Mapping[str, Any]:
        return {"proposals": self._queue.told(self._journal.proposals(run_uid, state))}

    def _proposal(self, proposal: str) -> Mapping[str, Any]:
        return {"proposal": self._queue.told([self._rescans.find(proposal)])[0]}

    def _approve(self, proposal: str, who: str, reason: str = "") -> Mapping[str, Any]:
        return self._rescans.approve(proposal, who, reason)

    def _refuse(self, proposal: str, who: str, reason: str = "") -> Mapping[str, Any]:
        return self._rescans.refuse(proposal, who, reason)


def _sum(*counts: Mapping[str, int]) -> dict[str, int]:
    """All counters added up: garbage is garbage, whichever socket it came to."""
    total: Counter[str] = Counter()
    for one in counts:
        total.update(dict(one))  # a copy: the thread that it is of goes on counting
    return dict(total)
