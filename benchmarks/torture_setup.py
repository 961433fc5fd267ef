"""What a trial of kills consists of, and what is noted of each kill."""

from dataclasses import dataclass, field
from typing import Literal

Victim = Literal["worker", "host", "service", "tiled", "all"]
PHASES = ("assembly", "queued", "running", "committing")


@dataclass(frozen=True)
class Setup:
    """What a trial consists of.

    Attributes
    ----------
    victims : tuple of str
        Killed in turn, in random order; the order given when there are as many as kills.
    gap_s : float
        Longest pause between a recovery and the next kill.
    plays, engines : int
        Host processes that play documents, and that run a RunEngine.
    workers : int
        Workers that are not the service's children; it has one besides.
    real : bool
        The real workers with their recipes.
    foreign : bool
        Tiled is no child of the service.
    """

    victims: tuple[Victim, ...]
    gap_s: float
    plays: int = 2
    engines: int = 0
    workers: int = 1
    real: bool = False
    foreign: bool = False


@dataclass
class Kill:
    """One kill: when, whom, in which phases runs and jobs were, and which processes it ended."""

    at: float
    victim: Victim
    phases: dict[str, int]
    pids: list[int] = field(default_factory=list)
