"""Survey coarsely, wait for inscan, measure finely what it proposes."""

import logging
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import bluesky.plan_stubs as bps
from bluesky.utils import Msg, MsgGenerator

from inscan.callbacks import plan_waiting
from inscan.callbacks.connection import Connection
from inscan.callbacks.plan_checks import Check, Context, read_checks
from inscan.callbacks.plan_measure import FinePlan, Measured, measure_proposal
from inscan.callbacks.plan_scans import marked, noting_runs, suspended
from inscan.callbacks.plan_waiting import NoAnswer, OutcomeTimeout, ask, wait_for_outcome

__all__ = ["CoarseToFine", "approvals", "coarse_to_fine"]

logger = logging.getLogger(__name__)


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
    measured : list of Measured
        What became of each proposal that was approved.
    notes : list of str
        What was not done and why, in sentences.
    """

    survey_uids: list[str] = field(default_factory=list)
    fine_uids: list[str] = field(default_factory=list)
    outcomes: list[dict[str, Any]] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def coarse_to_fine(
    survey_plan: MsgGenerator[Any],
    connection: Connection,
    fine_plan: FinePlan,
    *,
    timeout: float,
    on_timeout: Literal["stay"] | Callable[[], MsgGenerator[Any]] = "stay",
    max_regions: int | None = None,
    approval_timeout: float = 0.0,
    checks: Sequence[Check] = (),
    suspenders: Sequence[Any] = (),
    context: Context | None = None,
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
        (region, proposal) -> plan of one fine scan, see `measure_proposal`.
    timeout : float
        Seconds to wait for the outcome of each survey run, and where a drift is followed for that of each
        fine run.
    on_timeout : "stay" or callable
        What to do when there is no outcome: nothing, or the plan that the callable returns (for
        example a full fine scan).
    max_regions : int, optional
        Most regions to measure; the service's own limit holds besides.
    approval_timeout : float
        Seconds to wait for a person where the profile asks for one (rescan mode ``approve``): until
        then `inscan approve` on the command line lets the plan go on. 0: do not wait; what is not
        approved at once is not measured here.
    checks, suspenders, context
        See `measure_proposal`. The checks hold for the plan of ``on_timeout``, too.
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

    yield from noting_runs(survey_plan, done.survey_uids)
    tell(f"Survey done: {', '.join(done.survey_uids) or 'it opened no run'}")
    left = float("inf") if max_regions is None else max_regions
    for survey_uid in list(done.survey_uids):
        try:
            outcome = yield from wait_for_outcome(connection, survey_uid, timeout)
        except OutcomeTimeout as error:
            note(f"No rescan: {error}")
            if on_timeout != "stay":
                refusal = yield from read_checks(checks)
                if refusal:
                    note(f"Nor the plan for this case: {refusal}")
                    continue
                tell("The plan for this case runs instead")
                plan = suspended(marked(on_timeout(), {"parent_uid": survey_uid}), suspenders)
                yield from noting_runs(plan, done.fine_uids)
            continue
        done.outcomes.append(outcome)
        if outcome.get("status") != "done":
            note(f"No rescan of {survey_uid}: {outcome.get('status')}, {outcome.get('reason')}")
            continue
        proposals: list[dict[str, Any]] = list(outcome.get("proposals") or ())
        if not proposals:
            note(f"No rescan of {survey_uid}: nothing is proposed")
        proposals = yield from approvals(connection, survey_uid, proposals, approval_timeout, tell)
        for proposal in proposals:
            one = yield from measure_proposal(
                connection,
                {"survey_uid": survey_uid, **proposal},
                fine_plan,
                checks=checks,
                suspenders=suspenders,
                context=context,
                timeout=timeout,
                max_regions=None if max_regions is None else max(0, int(left)),
                report=tell,
            )
            done.measured.append(one)
            done.fine_uids.extend(one.runs)
            done.notes.extend(one.notes)
            left -= len(one.regions)
    return done


def approvals(
    connection: Connection,
    run_uid: str,
    proposals: list[dict[str, Any]],
    timeout: float,
    tell: Callable[[str], None],
) -> Generator[Msg, Any, list[dict[str, Any]]]:
    """Wait in a plan for a person to decide on a run's proposals, where one may; return them as they then are."""
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
        yield from bps.sleep(plan_waiting.SLICE)
        try:
            reply = yield from ask(connection, "proposals", run_uid=run_uid)
        except NoAnswer:
            continue  # nobody's word is no word; the deadline holds
        proposals = reply.get("proposals", proposals)
    return proposals
