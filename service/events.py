"""What the service's threads tell each other through their mailboxes."""

from dataclasses import dataclass

from inscan.service.messages import InferenceJob


@dataclass(frozen=True)
class Submit:
    """To the broker: a snapshot to compute, or a final that is in the journal now."""

    job: InferenceJob


@dataclass(frozen=True)
class WorkerLost:
    """To the broker: a child process of the service ended, and with it whatever it worked on."""

    pid: int
    reason: str


@dataclass(frozen=True)
class Look:
    """To the writer: something in the journal may be ready for it."""


@dataclass(frozen=True)
class SnapshotDone:
    """To ingest: the newest snapshot of a run is in `path`; `rows` rows (energies) are in it."""

    run_uid: str
    rows: int
    path: str


@dataclass(frozen=True)
class Outcome:
    """To ingest: a run has an outcome in the journal (`Journal.outcome`) for those who watch."""

    run_uid: str
