"""Fine runs of one proposal, of maps and of energies alike: what must hold before each, its marks, and how it fails."""

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
from bluesky.utils import FailedStatus, Msg, MsgGenerator

from inscan.callbacks.plan_checks import Check, Context, read_checks, read_context
from inscan.callbacks.plan_execution import Execution
from inscan.callbacks.plan_opening import NotAllowedError, guarded
from inscan.callbacks.plan_waiting import STOPPING

__all__ = ["FineScans", "marked", "noting_runs", "suspended"]

_MOST_RETRIES = 5
_FAILURES = (FailedStatus, TimeoutError)
"""What a device that failed raises in a plan; anything else is a defect, or somebody stops the plan."""
Shift = tuple[float, float] | None


@dataclass
class FineScans:
    """How the runs of one execution are taken.

    Attributes
    ----------
    execution : Execution
    proposal : mapping
    survey_uid : str
    checks, suspenders, context
        See `inscan.callbacks.plan_measure.measure_proposal`.
    """

    execution: Execution
    proposal: Mapping[str, Any]
    survey_uid: str
    checks: Sequence[Check]
    suspenders: Sequence[Any]
    context: Context | None

    @property
    def retries(self) -> int:
        """How often one that failed may be taken again."""
        return min(int(self.proposal.get("retries") or 0), _MOST_RETRIES)

    def clear(self, region: Any, shift: Shift, attempt: int) -> Generator[Msg, Any, str]:
        """Checks, then the service's word; return why there must be no motion, or nothing.

        Parameters
        ----------
        region
            Label of the region that is to be measured; None: all that is proposed.
        shift : (float, float) or None
            Drift that it is moved by.
        attempt : int
            From 1.
        """
        refusal = yield from read_checks(self.checks)
        if refusal:
            return refusal
        context = yield from read_context(self.context)
        refusal = yield from self.execution.confirm(region, context, shift, attempt)
        if refusal:
            return refusal
        # The answer may have taken its time, or a pause came in between.
        return (yield from read_checks(self.checks))

    def take(
        self, plan: MsgGenerator[Any], mark: Any, region: Any, shift: Shift, attempt: int
    ) -> Generator[Msg, Any, str]:
        """Run a fine plan; return how a device failed, or nothing.

        Parameters
        ----------
        plan : plan
        mark
            What its runs call their region.
        region, shift, attempt
            See `clear`.

        Raises
        ------
        NotAllowedError
            What the fine plan says of its run is not the state in which the proposal was made.
        TypeError
            It is no plan.
        """
        if not isinstance(plan, Iterable):
            raise TypeError(
                f"fine_plan returned {plan!r}, which is no plan: return or yield from one"
            )
        marks = {
            "purpose": "fine",
            "parent_uid": self.survey_uid,
            "rescan_proposal": self.proposal["id"],
            "region": mark,
        }
        plan = guarded(
            marked(plan, marks),
            self.proposal.get("context") or {},
            lambda told: self.execution.confirm(region, told, shift, attempt),
        )
        try:
            yield from noting_runs(suspended(plan, self.suspenders), self.execution.runs)
        except (*STOPPING, NotAllowedError):
            raise
        except _FAILURES as error:
            cause = error.__cause__ or error
            return f"the fine scan failed: {type(cause).__name__}: {cause}"
        yield from bps.checkpoint()
        return ""


def marked(plan: MsgGenerator[Any], marks: Mapping[str, Any]) -> MsgGenerator[Any]:
    """Add metadata to every run that a plan opens."""
    return bpp.inject_md_wrapper(plan, dict(marks))


def noting_runs(plan: MsgGenerator[Any], uids: list[str]) -> MsgGenerator[Any]:
    """Append to ``uids`` the uid of each run that a plan opens, whatever the plan returns."""
    # By its documents rather than by responses to messages: those are lost in a pause.
    return bpp.subs_wrapper(plan, {"start": [lambda name, doc: uids.append(doc["uid"])]})


def suspended(plan: MsgGenerator[Any], suspenders: Sequence[Any]) -> MsgGenerator[Any]:
    """Install suspenders for the time of a plan, and leave none behind."""
    if not suspenders:
        return (yield from plan)
    try:
        return (yield from bpp.suspend_wrapper(plan, list(suspenders)))
    except GeneratorExit:
        # A halted plan may not clean up by messages: Bluesky would keep the suspenders for good.
        for suspender in suspenders:
            if suspender.RE is not None:
                suspender.RE.remove_suspender(suspender)
        raise
