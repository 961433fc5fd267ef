"""Take few energies first, then those that matter, until the edge energies are as precise as was asked for."""

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import bluesky.preprocessors as bpp
from bluesky.utils import Msg, MsgGenerator

from inscan.callbacks.composite_uid import composite_uid
from inscan.callbacks.connection import Connection
from inscan.callbacks.plan_checks import Check, Context
from inscan.callbacks.plan_coarse_to_fine import approvals
from inscan.callbacks.plan_execution import executing
from inscan.callbacks.plan_measure import APPROVED, unapproved
from inscan.callbacks.plan_opening import NotAllowedError
from inscan.callbacks.plan_scans import FineScans, noting_runs
from inscan.callbacks.plan_waiting import OutcomeTimeout, wait_for_outcome

__all__ = ["EnergiesPlan", "SurveyThenEnergies", "survey_then_energies"]

logger = logging.getLogger(__name__)

EnergiesPlan = Callable[[list[float], dict[str, Any]], MsgGenerator[Any]]
"""(energies in eV, proposal) -> plan of one stack at these energies."""
_KIND = "energies"
_PRECISE = "energies.precision_ev"


@dataclass
class SurveyThenEnergies:
    """What `survey_then_energies` did.

    Attributes
    ----------
    survey_uid : str
        The survey.
    fine_uids : list of str
        Runs at added energies, in their order, failed ones too.
    energies_ev : list of float
        Energies that were added, in the order of the rounds.
    rounds : int
        How many proposals were measured.
    ended : str
        ``precise``: the precision that the profile asks for is reached. ``rounds``: `max_rounds`. ``refused``: the next
        proposal is not approved, or the service or a check refused it. ``failed``: a device or a result failed.
        ``timeout``: no answer came. ``nothing``: no energies are proposed for this run at all.
    reason : str
        The same in a sentence.
    outcomes : list of dict
        Outcomes of the survey and of the stack of all energies after each round.
    notes : list of str
        What was not done and why, in sentences.
    """

    survey_uid: str = ""
    fine_uids: list[str] = field(default_factory=list)
    energies_ev: list[float] = field(default_factory=list)
    rounds: int = 0
    ended: str = ""
    reason: str = ""
    outcomes: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def survey_uids(self) -> list[str]:
        """The survey, in a list as other plans have it."""
        return [self.survey_uid] if self.survey_uid else []


def survey_then_energies(
    survey_plan: MsgGenerator[Any],
    connection: Connection,
    energies_plan: EnergiesPlan,
    *,
    timeout: float,
    max_rounds: int | None = None,
    approval_timeout: float = 0.0,
    checks: Sequence[Check] = (),
    suspenders: Sequence[Any] = (),
    context: Context | None = None,
    report: Callable[[str], None] | None = None,
) -> Generator[Msg, Any, SurveyThenEnergies]:
    """Take a stack of few energies, wait for inscan, add the energies that it proposes, as long as it proposes any.

    After each round inscan makes one stack of all energies so far and says whether more of them are worth it. The
    profile says which energies may be added and how precise the edge energy is to be (``rescan.energies``); its limits
    hold for all rounds together.

    Parameters
    ----------
    survey_plan : plan
        A plan of one run at few energies, some of them before and some after the edge; gets ``purpose: survey``.
    connection : Connection
        The one subscribed to this RunEngine.
    energies_plan : callable
        (energies in eV, proposal) -> plan of one stack at these energies, at the same place; ``proposal`` has
        ``exposure_factor``. Its runs get ``purpose``, ``parent_uid``, ``rescan_proposal`` (id) and ``region`` (the
        round) in their start documents.
    timeout : float
        Seconds to wait for each outcome. Without it nothing moves.
    max_rounds : int, optional
        Most proposals to measure; `rescan.max_rounds` of the profile holds besides.
    approval_timeout : float
        Seconds to wait for a person in each round, see `coarse_to_fine`.
    checks, suspenders, context
        See `measure_proposal`: read before each round, installed while energies are taken.
    report : callable, optional
        Gets one sentence at each step; by default they go to the log.

    Returns
    -------
    SurveyThenEnergies
        What was done, and why it ended. Without a service, an approval or energies worth it: the survey alone, no
        motion after it.
    """
    if max_rounds is not None and max_rounds < 1:
        raise ValueError(f"max_rounds {max_rounds}: expected 1 or more, or None")
    done = SurveyThenEnergies()
    tell = report if report is not None else logger.info

    def end(why: str, reason: str) -> SurveyThenEnergies:
        done.ended, done.reason = why, reason
        done.notes.append(reason)
        tell(f"Ended ({why}): {reason}")
        return done

    uids: list[str] = []
    yield from noting_runs(_survey(survey_plan), uids)
    if not uids:
        return end("failed", "the survey opened no run")
    if len(uids) > 1:
        done.notes.append(f"The survey opened {len(uids)} runs; only the first is followed")
    done.survey_uid = run_uid = uids[0]
    while True:
        try:
            outcome = yield from wait_for_outcome(connection, run_uid, timeout)
        except OutcomeTimeout as error:
            return end("timeout", str(error))
        done.outcomes.append(outcome)
        if outcome.get("status") != "done":
            return end("failed", f"run {run_uid}: {outcome.get('status')}, {outcome.get('reason')}")
        proposals = list(outcome.get("proposals") or ())
        proposals = yield from approvals(connection, run_uid, proposals, approval_timeout, tell)
        own = [one for one in proposals if one.get("kind") == _KIND]
        proposal = next((one for one in own if one.get("state") in APPROVED), None)
        if proposal is None:
            return end(*_nothing(own))
        if max_rounds is not None and done.rounds >= max_rounds:
            return end("rounds", f"{max_rounds} rounds are done (max_rounds)")
        with executing(connection, str(proposal["id"])) as execution:
            execution.earlier = list(done.fine_uids)
            scans = FineScans(execution, proposal, done.survey_uid, checks, suspenders, context)
            ended = yield from _take(scans, energies_plan, done, tell)
            execution.complete, execution.reason = not ended, ended
        done.fine_uids.extend(execution.runs)
        if ended:
            return end("failed" if execution.runs else "refused", ended)
        done.rounds += 1
        done.energies_ev.extend(_energies(proposal))
        run_uid = composite_uid(done.survey_uid, done.fine_uids)


def _take(
    scans: FineScans,
    energies_plan: EnergiesPlan,
    done: SurveyThenEnergies,
    tell: Callable[[str], None],
) -> Generator[Msg, Any, str]:
    """Confirm and take a proposal's energies, again where that is needed and allowed; return why not, or nothing."""
    execution, proposal = scans.execution, dict(scans.proposal)
    energies = _energies(proposal)
    if not energies:
        return "the proposal has no energies"
    tell(f"{len(energies)} energies: {proposal.get('reason') or 'no reason given'}")
    mark = f"energies-{proposal.get('round') or done.rounds + 1}"
    failure = ""
    for attempt in range(1, scans.retries + 2):
        # The field stays where it is: no region is named, all that is proposed is confirmed.
        refusal = yield from scans.clear(None, None, attempt)
        if refusal:
            return refusal
        begun = len(execution.runs)
        plan = energies_plan(energies, proposal)
        try:
            failure = yield from scans.take(plan, mark, None, None, attempt)
        except NotAllowedError as error:
            return str(error)
        if not failure and len(execution.runs) == begun:
            return "the plan of the energies opened no run"
        if not failure:
            refusal = yield from execution.measured()
            return f"the service has not taken note of the energies: {refusal}" if refusal else ""
        done.notes.append(failure)
        tell(failure)
    return f"{failure} (rescan.retries: {scans.retries})"


def _survey(plan: MsgGenerator[Any]) -> MsgGenerator[Any]:
    """Say of every run that a plan opens that it is a survey."""
    return bpp.inject_md_wrapper(plan, {"purpose": "survey"})


def _energies(proposal: Mapping[str, Any]) -> list[float]:
    return [float(one) for one in proposal.get("energies_ev") or ()]


def _nothing(proposals: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Why no energies are added any more, in a word and in a sentence."""
    for proposal in proposals:
        dropped = proposal.get("dropped") or ()
        precise = next((one for one in dropped if one.get("rule") == _PRECISE), None)
        if precise is not None:
            return "precise", str(precise.get("text"))
        return "refused", unapproved(proposal)
    return "nothing", "no energies are proposed (rescan.mode and rescan.energies of the profile)"
