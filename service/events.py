"""What the service's threads tell each other through their mailboxes; what ingest takes is in
`inscan.service.mailbox`."""

from dataclasses import dataclass

from inscan.service.messages import InferenceJob


@dataclass(frozen=True)
class Submit:
    """To the broker: a snapshot to compute, or a final that is in the journal now."""

    job: InferenceJob


@dataclass(frozen=True)
class TakenOut:
    """To the broker: a person ended a job; whoever works on it may stop, and whoever waits for its run must hear."""

    key: str


@dataclass(frozen=True)
class WorkerLost:
    """To the broker: a child process of the service ended, and with it whatever it worked on."""

    pid: int
    reason: str


@dataclass(frozen=True)
class Look:
    """To the writer: something in the journal may be ready for it."""
