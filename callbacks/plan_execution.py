"""One attempt to measure a proposal: what a plan and the service tell each other about it."""

import uuid
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from bluesky.utils import Msg

from inscan.callbacks.connection import Connection
from inscan.callbacks.plan_waiting import STOPPING, NoAnswer, ask

__all__ = ["Execution", "executing"]

_REPORT_TIMEOUT = 600.0  # how an execution ended reaches a service that is restarting, too


@dataclass
class Execution:
    """What has been done of a proposal.

    Attributes
    ----------
    connection : Connection
    proposal : str
        Its id.
    uid : str
        Tells this attempt from others of the same proposal.
    earlier : list of str
        Fine runs of the same survey before.
    runs : list of str
        Fine runs so far.
    complete : bool
        Everything that was to be measured is.
    reason : str
        Why it ended, where it is not complete.
    ours : bool
        Whether the service was asked for it and has not refused it from the start: else it is not ours to
        report on.
    """

    connection: Connection
    proposal: str
    earlier: list[str] = field(default_factory=list)
    uid: str = field(default_factory=lambda: uuid.uuid4().hex)
    runs: list[str] = field(default_factory=list)
    complete: bool = False
    reason: str = "stopped before the fine scans were complete"
    ours: bool = False
    _confirmed: bool = False

    @property
    def state(self) -> str:
        """How it stands if it ended now: ``done``, ``failed`` or, with nothing measured, ``refused``."""
        if self.complete:
            return "done"
        return "failed" if self.runs else "refused"

    def confirm(
        self,
        region: Any,
        context: Mapping[str, Any],
        shift: tuple[float, float] | None,
        attempt: int,
    ) -> Generator[Msg, Any, str]:
        """Tell the service that a region is about to be measured; return why it must not be, or nothing.

        The service has the last word: it knows whether the proposal was measured by somebody else,
        withdrawn, or made in a state of the beamline that has changed since; and it checks the limits
        over the whole trajectory, moved by a drift.
        """
        self.ours = True  # also when no answer comes: the question may have arrived
        try:
            answer = yield from self._tell(
                region=region,
                context=dict(context),
                shift=None if shift is None else list(shift),
                attempt=attempt,
            )
        except NoAnswer as error:
            self.reason = f"its start could not be confirmed with the service: {error}"
            return self.reason
        if answer.get("ok"):
            self._confirmed = True
            return ""
        self.ours = self._confirmed
        self.reason = str(answer.get("reason") or "the service refuses")
        return self.reason

    def measured(self) -> Generator[Msg, Any, str]:
        """Tell the service of the runs so far, for their composite; return why that did not work, or nothing."""
        try:
            answer = yield from self._tell()
        except NoAnswer as error:
            return str(error)
        return "" if answer.get("ok") else str(answer.get("reason") or "the service refuses")

    def _tell(self, **more: Any) -> Generator[Msg, Any, dict[str, Any]]:
        return (
            yield from ask(
                self.connection,
                "rescan_update",
                proposal=self.proposal,
                execution=self.uid,
                state="running",
                runs=list(self.runs),
                **more,
            )
        )


@contextmanager
def executing(
    connection: Connection, proposal: str, earlier: Sequence[str] = ()
) -> Iterator[Execution]:
    """Tell the service how an execution ended, whatever ends it; waits for nothing."""
    execution = Execution(connection, proposal, list(earlier))
    try:
        yield execution
    except STOPPING as error:
        execution.reason = f"the plan was stopped ({type(error).__name__})"
        raise
    except Exception as error:
        execution.reason = f"the fine scans failed: {type(error).__name__}: {error}"
        raise
    except GeneratorExit:
        execution.reason = "the plan was halted"
        raise
    finally:
        if execution.ours:
            connection.request(
                "rescan_update",
                timeout=_REPORT_TIMEOUT,
                proposal=proposal,
                execution=execution.uid,
                state=execution.state,
                runs=list(execution.runs),
                reason=execution.reason,
            )
