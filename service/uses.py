"""What ingest needs of others: assemblers, and somebody who takes what they make of a run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from inscan.callbacks.updates import Update
from inscan.service.repair import Repairs


class Assembler(Protocol):
    """What an assembler is to ingest; see `inscan.callbacks.assembly.RunAssembler`."""

    def __call__(self, name: str, doc: Mapping[str, Any], /) -> list[Update]:
        """Place one document; return the updates that it completes."""
        ...

    def finish(self, reason: str, /) -> list[Update]:
        """End a run whose stop document will never come."""
        ...

    def close(self) -> None:
        """Let go of files. Nothing is placed afterwards."""
        ...


@dataclass(frozen=True)
class Uses:
    """What becomes of a run's documents; every one may be called from several threads, for
    different runs at the same time.

    Attributes
    ----------
    open_run : callable
        Start document -> assembler; raises NotUnderstood for a run that is nobody's.
    on_update : callable
        Takes an update; when it returns, a final or a rejection is durable. OSError means that
        the machine failed and the run is tried again later; any other exception that it cannot
        be processed.
    on_closed : callable
        (run uid): all updates of the run have been taken, none of them a rejection. Durable when it
        returns.
    on_passed_by : callable
        (run uid, reason): not a run for inscan.
    on_failed : callable
        (run uid, reason): the run cannot be processed. Durable when it returns.
    repair : Repairs or None
        Where what is missing of a run may be found; None: nowhere.
    """

    open_run: Callable[[Mapping[str, Any]], Assembler]
    on_update: Callable[[Update], None]
    on_closed: Callable[[str], None]
    on_passed_by: Callable[[str, str], None]
    on_failed: Callable[[str, str], None]
    repair: Repairs | None = None
