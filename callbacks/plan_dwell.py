"""Measure again, as long as it takes and no longer, where a map is not as precise as was asked for."""

import logging
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import bluesky.preprocessors as bpp
from bluesky.utils import Msg, MsgGenerator

from inscan.callbacks.connection import Connection
from inscan.callbacks.plan_checks import Check, Context
from inscan.callbacks.plan_coarse_to_fine import approvals
from inscan.callbacks.plan_measure import FinePlan, Measured, measure_proposal, unapproved
from inscan.callbacks.plan_scans import noting_runs
from inscan.callbacks.plan_waiting import OutcomeTimeout, wait_for_outcome

__all__ = ["AdaptiveDwell", "adaptive_dwell"]

logger = logging.getLogger(__name__)

_TARGET = "precision"


@dataclass
class AdaptiveDwell:
    """What `adaptive_dwell` reached.

    Attributes
    ----------
    survey_uid : str
        The survey.
    fine_uids : list of str
        Runs of the fine plans, in their order.
    rounds : int
        How many proposals were measured.
    ended : str
        ``precise``: nothing is left that is worth measuring for the precision asked for. ``budget``: the time is
        spent. ``rounds``: `max_rounds`, or the profile's. ``refused``: the next proposal is not approved, or a check or
        the service refused it. ``failed``: a device or a result failed. ``timeout``: no answer came.
    reason : str
        The same in a sentence.
    reached : dict
        For each line ``median`` relative uncertainty where it is present, and ``share_above`` of the pixels that are
        above what was asked for: of survey and fine runs together, empty before anything was measured again.
    spent_s : float
        Seconds of the budget that were used.
    measured : list of Measured
        What became of each proposal.
    notes : list of str
        What was not done and why, in sentences.
    """

    survey_uid: str = ""
    fine_uids: list[str] = field(default_factory=list)
    rounds: int = 0
    ended: str = ""
    reason: str = ""
    reached: dict[str, dict[str, float]] = field(default_factory=dict)
    spent_s: float = 0.0
    measured: list[Measured] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class _Budget:
    """Time since the survey; or what the measured regions were predicted to take, where that is more."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._begun = time.monotonic()
        self._predicted = 0.0

    @property
    def spent(self) -> float:
        return max(time.monotonic() - self._begun, self._predicted)

    def refusal(self, region: Mapping[str, Any]) -> str:
        """Return why a region is not begun; one that is, is counted."""
        needed = float(region.get("time_s") or 0.0)
        left = self.seconds - self.spent
        if needed > left or left <= 0:
            return f"budget: {max(left, 0):.4g} s are left of {self.seconds:g}, {needed:.4g} are needed"
        self._predicted += needed
        return ""


def adaptive_dwell(
    survey_plan: MsgGenerator[Any],
    connection: Connection,
    fine_plan: FinePlan,
    *,
    precision: Mapping[str, float],
    budget_s: float,
    timeout: float,
    max_rounds: int = 4,
    approval_timeout: float = 0.0,
    checks: Sequence[Check] = (),
    suspenders: Sequence[Any] = (),
    context: Context | None = None,
    report: Callable[[str], None] | None = None,
) -> Generator[Msg, Any, AdaptiveDwell]:
    """Survey, then measure again where the relative uncertainty is above what is asked for, until it is not.

    After each round inscan makes one estimate of the survey and all fine maps so far, and proposes what is still too
    uncertain. The profile's targets must have ``precision`` among them, its limits hold for all rounds together.

    Parameters
    ----------
    survey_plan : plan
        A plan of one run; ``inscan.precision`` is added to its start document.
    connection : Connection
        The one subscribed to this RunEngine.
    fine_plan : callable
        (region, proposal) -> plan of one fine scan, see `measure_proposal`. It should use ``region["dwell"]``, which
        differs from region to region.
    precision : mapping of str to float
        Relative standard uncertainty per line, above 0 and at most 1: ``{"Fe_K": 0.1}`` asks for 10 %.
    budget_s : float
        Seconds after the survey, waiting and pauses included. A region is begun only when the time that it is
        predicted to take is left. Where scans go faster than predicted, the prediction counts.
    timeout : float
        Seconds to wait for each outcome. Without it nothing moves.
    max_rounds : int
        Most proposals to measure; `rescan.max_rounds` of the profile holds besides.
    approval_timeout : float
        Seconds to wait for a person in each round, see `coarse_to_fine`.
    checks, suspenders, context
        See `measure_proposal`.
    report : callable, optional
        Gets one sentence at each step; by default they go to the log.

    Returns
    -------
    AdaptiveDwell
        What was reached, and why it ended.

    Raises
    ------
    ValueError
        For a precision that is none, before anything moves.
    """
    wanted = _checked(precision, budget_s, max_rounds)
    done = AdaptiveDwell()
    tell = report if report is not None else logger.info

    def end(why: str, reason: str) -> AdaptiveDwell:
        done.ended, done.reason, done.spent_s = why, reason, budget.spent
        done.notes.append(reason)
        tell(f"Ended ({why}): {reason}")
        return done

    uids: list[str] = []
    yield from noting_runs(_asking(survey_plan, wanted), uids)
    budget = _Budget(budget_s)
    if not uids:
        return end("failed", "the survey opened no run")
    if len(uids) > 1:
        done.notes.append(f"The survey opened {len(uids)} runs; only the first is followed")
    done.survey_uid = run_uid = uids[0]
    try:
        outcome = yield from wait_for_outcome(connection, run_uid, min(timeout, budget_s))
    except OutcomeTimeout as error:
        return end("timeout", str(error))
    one: Measured | None = None
    while True:
        done.reached = dict((outcome.get("composite") or {}).get("sigma") or done.reached)
        if outcome.get("status") != "done":
            return end("failed", f"run {run_uid}: {outcome.get('status')}, {outcome.get('reason')}")
        proposals = list(outcome.get("proposals") or ())
        proposals = yield from approvals(connection, run_uid, proposals, approval_timeout, tell)
        proposal = _next(proposals)
        if proposal is None:
            return end(*_nothing_left(proposals, done.reached))
        if done.rounds >= max_rounds:
            return end("rounds", f"{max_rounds} rounds are done (max_rounds)")
        one = yield from measure_proposal(
            connection,
            {"survey_uid": done.survey_uid, **proposal},
            fine_plan,
            checks=checks,
            suspenders=suspenders,
            context=context,
            timeout=timeout,
            composite=True,
            unless=budget.refusal,
            before=one,
            report=tell,
        )
        done.measured.append(one)
        done.fine_uids.extend(one.runs)
        done.notes.extend(one.notes)
        if one.runs:
            done.rounds += 1
        done.reached = dict(
            ((one.outcome or {}).get("composite") or {}).get("sigma") or done.reached
        )
        if one.reason.startswith("budget"):
            return end("budget", one.reason)
        if one.state != "done":
            return end(one.state, one.reason)
        if one.outcome is None:
            return end("timeout", one.lost)
        if one.lost:
            return end("failed", one.lost)
        outcome, run_uid = one.outcome, str(one.outcome.get("run"))


def _checked(precision: Mapping[str, float], budget_s: float, max_rounds: int) -> dict[str, float]:
    wanted = {str(line): float(share) for line, share in precision.items()}
    if not wanted or not all(0 < share <= 1 for share in wanted.values()):
        raise ValueError(
            f"precision {wanted}: expected one line or more, each with a share above 0 and at most 1"
        )
    if not budget_s > 0 or max_rounds < 1:
        raise ValueError(
            f"budget_s {budget_s}, max_rounds {max_rounds}: expected above 0 s and 1 round or more"
        )
    return wanted


def _asking(plan: MsgGenerator[Any], precision: dict[str, float]) -> MsgGenerator[Any]:
    """Ask for a precision in the start document of every run that a plan opens."""

    def ask_for(msg: Msg) -> Msg:
        if msg.command != "open_run":
            return msg
        own = msg.kwargs.get("inscan")
        kept = dict(own) if isinstance(own, Mapping) else {}
        return msg._replace(kwargs={**msg.kwargs, "inscan": {**kept, "precision": precision}})

    return bpp.msg_mutator(plan, ask_for)


def _next(proposals: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The proposal to measure, with its regions of this target alone; None where there is none."""
    for proposal in proposals:
        regions = [
            region for region in proposal.get("regions") or () if region.get("target") == _TARGET
        ]
        if regions and proposal.get("state") in ("approved", "auto"):
            return {**proposal, "regions": regions}
    return None


def _nothing_left(
    proposals: Sequence[Mapping[str, Any]], reached: Mapping[str, Mapping[str, float]]
) -> tuple[str, str]:
    """Why nothing is measured any more, in a word and in a sentence."""
    above = "; ".join(
        f"{line}: {100 * one.get('share_above', 0):.3g} % of its pixels are above"
        for line, one in reached.items()
        if one.get("share_above")
    )
    for proposal in proposals:
        rules = {str(one.get("rule")) for one in proposal.get("dropped") or ()}
        open_regions = any(one.get("target") == _TARGET for one in proposal.get("regions") or ())
        if "max_rounds" in rules:
            return "rounds", str(proposal.get("reason"))
        if open_regions or rules - {"regions", "overlap"}:
            return "refused", unapproved(proposal)
    return "precise", "nothing that is worth it is left" + (f" ({above})" if above else "")
