"""Plans that wait for inscan's answer, and measure again where it says so.

Nothing here moves a motor on its own: motion comes from the plans that the caller gives, and only
for proposals that the service has approved and confirmed at that moment.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
from bluesky.run_engine import WaitForTimeoutError
from bluesky.utils import Msg, MsgGenerator

from inscan.callbacks.connection import Connection

__all__ = ["CoarseToFine", "OutcomeTimeout", "coarse_to_fine", "wait_for_outcome"]

logger = logging.getLogger(__name__)

APPROVED = ("approved", "auto")
_SLICE = 1.0  # seconds between looks at the service's health while waiting
_CONFIRM_TIMEOUT = 10.0
_REPORT_TIMEOUT = 600.0  # the service may be restarting


class OutcomeTimeout(TimeoutError):  # noqa: N818 - a TimeoutError by its name already
    """A run's outcome did not come in time; says whether the service is there."""


@dataclass
class CoarseToFine:
    """What `coarse_to_fine` did.

    Attributes
    ----------
    survey_uids : list of str
        Runs of the survey.
    fine_uids : list of str
        Runs of the fine plans.
    outcomes : list of dict
        Outcomes of the survey's runs that came, in their order.
    notes : list of str
        What was not done and why, in sentences.
    """

    survey_uids: list[str] = field(default_factory=list)
    fine_uids: list[str] = field(default_factory=list)
    outcomes: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def wait_for_outcome(
    connection: Connection, run_uid: str, timeout: float, *, lost_after: float = 30.0
) -> Generator[Msg, Any, dict[str, Any]]:
    """Wait in a plan for what inscan made of a run. Moves nothing, writes no document.

    Pausing, resuming and aborting work as anywhere; an outcome that came during a pause counts,
    however long it was.

    Parameters
    ----------
    connection : Connection
        The one subscribed to this RunEngine.
    run_uid : str
        A run of this RunEngine that has ended.
    timeout : float
        Seconds to wait at most.
    lost_after : float
        Seconds without any service after which waiting is given up earlier.

    Returns
    -------
    dict
        See `Connection.future`.

    Raises
    ------
    OutcomeTimeout
        If it did not come. In the plan, so that it may be caught there.
    """
    future = connection.future(run_uid)
    begun = last_seen = time.monotonic()
    while not future.done():
        now = time.monotonic()
        if connection.connected:
            last_seen = now
        if now - begun >= timeout:
            raise OutcomeTimeout(f"no outcome of run {run_uid} within {timeout:g} s")
        if now - last_seen >= lost_after:
            raise OutcomeTimeout(
                f"no outcome of run {run_uid}: no inscan service for {lost_after:g} s; its "
                f"documents are in {connection.state_dir / 'log'} and go out when one runs"
            )
        yield from _wait(future, min(_SLICE, timeout, lost_after))
    # Never the response of the wait message: after a pause that is None.
    return future.result(timeout=0)


def _wait(future: "Future[Any]", timeout: float) -> MsgGenerator[None]:
    """Wait until a future is done, at most so many seconds; the RunEngine's loop goes on."""
    # A pause replays the messages since the last checkpoint: let that be this one alone.
    yield from bps.checkpoint()
    try:
        yield from bps.wait_for([lambda: asyncio.wrap_future(future)], timeout=timeout)
    except WaitForTimeoutError:
        return


def coarse_to_fine(
    survey_plan: MsgGenerator[Any],
    connection: Connection,
    fine_plan: Callable[[dict[str, Any], dict[str, Any]], MsgGenerator[Any]],
    *,
    timeout: float,
    on_timeout: Literal["stay"] | Callable[[], MsgGenerator[Any]] = "stay",
    max_regions: int | None = None,
    approval_timeout: float = 0.0,
    context: Callable[[], Mapping[str, Any]] | None = None,
    report: Callable[[str], None] | None = None,
) -> Generator[Msg, Any, CoarseToFine]:
    """Survey, wait for inscan, measure again the regions that it proposes and the service approves.

    Parameters
    ----------
    survey_plan : plan
        Any plan; every run that it opens is waited for.
    connection : Connection
        The one subscribed to this RunEngine.
    fine_plan : callable
        (region, proposal) -> plan of one fine scan. ``region`` is the mapping of a
        `inscan.callbacks.geometry.RegionOfInterest` (``slow_range`` and ``fast_range`` in motor
        units), ``proposal`` the whole proposal with step and dwell. Its runs get ``purpose``,
        ``parent_uid``, ``proposal`` (id) and ``region`` (label) in their start documents.
    timeout : float
        Seconds to wait for the outcome of each survey run.
    on_timeout : "stay" or callable
        What to do when there is no outcome: nothing, or the plan that the callable returns (for
        example a full fine scan).
    max_regions : int, optional
        Most regions to measure; the service's own limit holds besides.
    approval_timeout : float
        Seconds to wait for a person where the profile asks for one (rescan mode ``approve``): until
        then `inscan approve` on the command line lets the plan go on. 0: do not wait; what is not
        approved at once is not measured here.
    context : callable, optional
        Called right before motion; returns the present state of the beamline, dotted paths of start
        documents to values (for example ``{"scan.energy": 12.0}``). The service refuses when it is
        not the state in which the proposal was made.
    report : callable, optional
        Gets one sentence at each step; by default they go to the log.

    Returns
    -------
    CoarseToFine
        What was done. Without a service, an approval or a region worth it: the survey, no motion
        after it, and a note why.
    """
    done = CoarseToFine()
    tell = report if report is not None else logger.info

    def note(text: str) -> None:
        done.notes.append(text)
        tell(text)

    yield from _noting_runs(survey_plan, done.survey_uids)
    tell(f"Survey done: {', '.join(done.survey_uids) or 'it opened no run'}")
    left = float("inf") if max_regions is None else max_regions
    for survey_uid in list(done.survey_uids):
        try:
            outcome = yield from wait_for_outcome(connection, survey_uid, timeout)
        except OutcomeTimeout as error:
            note(f"No rescan: {error}")
            if on_timeout != "stay":
                tell("The plan for this case runs instead")
                plan = _marked(on_timeout(), {"parent_uid": survey_uid})
                yield from _noting_runs(plan, done.fine_uids)
            continue
        done.outcomes.append(outcome)
        if outcome.get("status") != "done":
            note(f"No rescan of {survey_uid}: {outcome.get('status')}, {outcome.get('reason')}")
            continue
        proposals: list[dict[str, Any]] = list(outcome.get("proposals") or ())
        if not proposals:
            note(f"No rescan of {survey_uid}: nothing is proposed")
        proposals = yield from _approvals(connection, survey_uid, proposals, approval_timeout, tell)
        for proposal in proposals:
            if proposal.get("state") not in APPROVED:
                state, reason = proposal.get("state"), proposal.get("reason") or "not approved"
                note(f"Proposal {proposal.get('id')} is not measured: {state}, {reason}")
                continue
            regions: list[dict[str, Any]] = list(proposal.get("regions") or ())
            if len(regions) > left:
                note(f"Only {int(left)} of {len(regions)} regions are measured (max_regions)")
                regions = regions[: int(left)]
            left -= len(regions)
            if regions:
                state = {} if context is None else dict(context())
                refusal = yield from _measure(
                    connection, survey_uid, proposal, regions, fine_plan, done, state, tell
                )
                if refusal:
                    note(f"Proposal {proposal['id']} is not measured: {refusal}")
    return done


def _approvals(
    connection: Connection,
    survey_uid: str,
    proposals: list[dict[str, Any]],
    timeout: float,
    tell: Callable[[str], None],
) -> Generator[Msg, Any, list[dict[str, Any]]]:
    """Wait for a person to decide, where one may; return the proposals as they then are."""
    deadline = time.monotonic() + timeout
    told = False
    while time.monotonic() < deadline:
        undecided = [
            proposal["id"]
            for proposal in proposals
            if proposal.get("state") == "suggested" and proposal.get("mode") == "approve"
        ]
        if not undecided:
            break
        if not told:
            told = True
            commands = ", ".join(f"`inscan approve {name}`" for name in undecided)
            tell(f"Waiting up to {timeout:g} s for {commands} (or refuse)")
        yield from bps.checkpoint()
        yield from bps.sleep(_SLICE)
        reply = connection.request("proposals", timeout=_CONFIRM_TIMEOUT, run_uid=survey_uid)
        yield from _wait(reply, 2 * _CONFIRM_TIMEOUT)
        if reply.done() and reply.exception(timeout=0) is None:
            proposals = reply.result(timeout=0).get("proposals", proposals)
    return proposals


def _measure(
    connection: Connection,
    survey_uid: str,
    proposal: dict[str, Any],
    regions: list[dict[str, Any]],
    fine_plan: Callable[[dict[str, Any], dict[str, Any]], MsgGenerator[Any]],
    done: CoarseToFine,
    context: dict[str, Any],
    tell: Callable[[str], None],
) -> Generator[Msg, Any, str]:
    """Fine scans of one proposal; return why not, if the service does not want it now."""
    name = proposal["id"]
    with _execution(connection, name) as execution:
        refusal = yield from _confirm(connection, name, context, execution)
        if refusal:
            return refusal
        for index, region in enumerate(regions):
            label = region.get("label", index)
            tell(f"Region {label} of {survey_uid}: {region.get('reason', 'no reason given')}")
            marks = {
                "purpose": "fine",
                "parent_uid": survey_uid,
                "proposal": name,
                "region": label,
            }
            before = len(execution.runs)
            try:
                plan = _marked(fine_plan(region, proposal), marks)
                yield from _noting_runs(plan, execution.runs)
            finally:
                done.fine_uids.extend(execution.runs[before:])
            yield from bps.checkpoint()
        execution.state, execution.reason = "done", ""
    tell(f"Proposal {name} done: {len(execution.runs)} fine runs")
    return ""


def _confirm(
    connection: Connection, proposal: str, context: dict[str, Any], execution: "_Execution"
) -> Generator[Msg, Any, str]:
    """Tell the service that motion is about to begin; return why it must not, or nothing.

    The service has the last word: it knows whether the proposal was measured by somebody else,
    withdrawn, or made in a state of the beamline that has changed since.
    """
    reply = connection.request(
        "rescan_update",
        timeout=_CONFIRM_TIMEOUT,
        proposal=proposal,
        execution=execution.uid,
        state="running",
        runs=[],
        reason="",
        context=context,
    )
    yield from _wait(reply, 2 * _CONFIRM_TIMEOUT)
    if not reply.done() or reply.exception(timeout=0) is not None:
        execution.reason = "its start could not be confirmed with the service"
        return execution.reason
    answer = reply.result(timeout=0)
    if answer.get("ok"):
        return ""
    execution.ours = False
    return str(answer.get("reason") or "the service refuses")


@dataclass
class _Execution:
    """One attempt to measure a proposal; its uid tells it from others of the same proposal."""

    uid: str = field(default_factory=lambda: uuid.uuid4().hex)
    runs: list[str] = field(default_factory=list)
    state: str = "refused"
    reason: str = "stopped before the fine scans were complete"
    ours: bool = True  # false once the service has refused: then it is not ours to report on


@contextmanager
def _execution(connection: Connection, proposal: str) -> Iterator[_Execution]:
    """Tell the service how a proposal ended, also after an abort; waits for nothing."""
    execution = _Execution()
    try:
        yield execution
    except Exception as error:
        execution.reason = f"the fine scans failed: {type(error).__name__}: {error}"
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


def _marked(plan: MsgGenerator[Any], marks: Mapping[str, Any]) -> MsgGenerator[Any]:
    """Add metadata to every run that a plan opens."""
    return bpp.inject_md_wrapper(plan, dict(marks))


def _noting_runs(plan: MsgGenerator[Any], uids: list[str]) -> MsgGenerator[Any]:
    """Append to ``uids`` the uid of each run that a plan opens, whatever the plan returns."""
    # By its documents rather than by responses to messages: those are lost in a pause.
    return bpp.subs_wrapper(plan, {"start": [lambda name, doc: uids.append(doc["uid"])]})
