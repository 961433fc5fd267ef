"""Which workers there are, what each is at, and which snapshots wait: the broker's memory, none of
it durable."""

import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from inscan.service.messages import Hello, InferenceJob

_LONGEST_S = 7 * 86400.0  # a scan
_MOST_PACES = 256
"""Runs whose pace is remembered: some end without a word to the broker."""


@dataclass
class Assignment:
    """One dispatch; times of the monotonic clock.

    Attributes
    ----------
    moved, steps : float, int
        When its progress was last seen to change, and what it said then.
    waited : float
        Seconds in the queue.
    cancelled : str
        Why it is not wanted any more; empty while it is.
    """

    job: InferenceJob
    started: float
    moved: float
    waited: float = 0.0
    steps: int = 0
    progress: float = 0.0
    cancelled: str = ""

    @property
    def ticket(self) -> tuple[str, int]:
        """Key and fence."""
        return self.job.key, self.job.fence

    def move(self, steps: int, progress: float) -> None:
        """Take over what the worker says of its progress."""
        if steps != self.steps:
            self.steps, self.progress, self.moved = steps, progress, time.monotonic()


@dataclass
class Peer:
    """A worker that presented itself."""

    identity: bytes
    hello: Hello
    seen: float
    credit: int
    work: Assignment | None = None
    draining: bool = False
    rss: int = 0

    @property
    def idle(self) -> bool:
        """Whether it can be given a job."""
        return self.work is None and self.credit > 0 and not self.draining


@dataclass
class Roster:
    """All workers by routing identity."""

    peers: dict[bytes, Peer] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Peer]:
        return iter(list(self.peers.values()))

    def welcome(self, identity: bytes, hello: Hello) -> Peer:
        """Take a worker in; one that is known under an older connection keeps its job."""
        work = None
        for old in self:
            if old.hello.worker == hello.worker:
                work = old.work
                del self.peers[old.identity]
        peer = Peer(identity, hello, time.monotonic(), hello.credit, work)
        self.peers[identity] = peer
        return peer

    def holder(self, key: str, fence: int) -> Peer | None:
        """Who works on a dispatch."""
        return next((p for p in self if p.work is not None and p.work.ticket == (key, fence)), None)

    def excuse(self, seconds: float) -> None:
        """Nobody could be heard for so long, for we did not listen: no worker was silent, no job stood still."""
        for peer in self:
            peer.seen += seconds
            if peer.work is not None:
                peer.work.started += seconds
                peer.work.moved += seconds

    def at_work_on(self, key: str) -> list[Peer]:
        """Who works on any dispatch of a job."""
        return [peer for peer in self if peer.work is not None and peer.work.job.key == key]

    def idle(self) -> list[Peer]:
        """Workers to be given jobs."""
        return [peer for peer in self if peer.idle]

    def describe(self) -> list[dict[str, Any]]:
        """For `inscan status`."""
        now = time.monotonic()
        return [
            {
                "worker": peer.hello.worker,
                "pid": peer.hello.pid,
                "device": peer.hello.device,
                "version": peer.hello.version,
                "rss": peer.rss,
                "seen_s": round(now - peer.seen, 2),
                "state": "draining" if peer.draining else "idle" if peer.idle else "busy",
                "run_uid": peer.work.job.run_uid if peer.work else None,
                "kind": peer.work.job.kind if peer.work else None,
                "progress": peer.work.progress if peer.work else None,
            }
            for peer in self
        ]


@dataclass
class _Pace:
    """How fast a run grows: rows at a time, and seconds for each row since the snapshot before (since its start)."""

    rows: int
    at: float
    row_s: float | None = None


class SnapshotQueue:
    """Snapshots that wait: of each run the newest only, in the order in which runs came."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[str, tuple[InferenceJob, float]] = OrderedDict()
        self._paces: OrderedDict[str, _Pace] = OrderedDict()

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: InferenceJob) -> InferenceJob | None:
        """Queue a snapshot; returns the older one of the run, which nobody needs any more."""
        now, rows = time.monotonic(), int(job.meta.get("rows_done") or 0)
        old, pace = self._jobs.get(job.run_uid), self._paces.get(job.run_uid)
        if pace is not None and rows > pace.rows:
            self._paces[job.run_uid] = _Pace(rows, now, (now - pace.at) / (rows - pace.rows))
        elif pace is None:
            self._paces[job.run_uid] = _Pace(rows, now, _pace_since_start(job, rows))
            while len(self._paces) > _MOST_PACES:
                self._paces.popitem(last=False)
        self._jobs[job.run_uid] = (job, now)
        return old[0] if old else None

    def drop_late(self, took_s: Mapping[str, float]) -> list[InferenceJob]:
        """Forget snapshots that would hold up the final: their runs end before they would be done.

        Parameters
        ----------
        took_s : mapping
            Recipe -> seconds that its latest job took; a final takes about as long as a snapshot.
        """
        late = []
        for run_uid, (job, _) in list(self._jobs.items()):
            pace, total = self._paces.get(run_uid), _rows_in_all(job)
            took = took_s.get(job.recipe)
            if took is None or total is None or pace is None or pace.row_s is None:
                continue
            if pace.at + (total - pace.rows) * pace.row_s < time.monotonic() + took:
                late.append(job)
                del self._jobs[run_uid]
        return late

    def take(self) -> tuple[InferenceJob, float] | None:
        """The snapshot whose turn it is, and the seconds it waited."""
        if not self._jobs:
            return None
        _, (job, since) = self._jobs.popitem(last=False)
        return job, time.monotonic() - since

    def end(self, run_uid: str) -> InferenceJob | None:
        """A run has ended: forget it; returns the snapshot of it that waited."""
        self._paces.pop(run_uid, None)
        old = self._jobs.pop(run_uid, None)
        return old[0] if old else None


def _pace_since_start(job: InferenceJob, rows: int) -> float | None:
    """Seconds for each row so far, by the date in the start document: a guess until the next snapshot.

    None where the dates do not go together, of two machines or before and after the clock was set: a run that seems to
    begin in the future would be at its end at once.
    """
    started = job.meta.get("start_time")
    if not rows or not isinstance(started, int | float):
        return None
    since = time.time() - started
    return since / rows if 0 < since < _LONGEST_S else None


def _rows_in_all(job: InferenceJob) -> int | None:
    """Rows of a map, energies of a stack, None where the run does not say."""
    geometry, energies = job.meta.get("geometry"), job.meta.get("energies_ev")
    if geometry:
        return int(geometry["shape"][0])
    return len(energies) if energies else None
