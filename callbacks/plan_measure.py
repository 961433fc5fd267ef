"""Measure a proposal: each region is checked and confirmed right before it, a drift is followed, failures are told."""

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bluesky.utils import Msg, MsgGenerator

from inscan.callbacks.connection import Connection
from inscan.callbacks.plan_checks import Check, Context
from inscan.callbacks.plan_drift import Drift
from inscan.callbacks.plan_execution import executing
from inscan.callbacks.plan_opening import NotAllowedError
from inscan.callbacks.plan_scans import FineScans
from inscan.callbacks.plan_waiting import NoAnswer, ask

__all__ = [
    "APPROVED",
    "FinePlan",
    "Measured",
    "measure_proposal",
    "unapproved",
]

logger = logging.getLogger(__name__)

FinePlan = Callable[[dict[str, Any], dict[str, Any]], MsgGenerator[Any]]
"""(region, proposal) -> plan of one fine scan."""
APPROVED = ("approved", "auto", "queued")


@dataclass
class Measured:
    """What `measure_proposal` did.

    Attributes
    ----------
    proposal : str
        Its id.
    state : str
        ``done``; ``failed`` when it ended early; ``refused`` when nothing was measured.
    reason : str
        Why it is not done, or why not all of it.
    runs : list of str
        Fine runs, failed ones too.
    regions : dict of str to str
        Label of each region that was measured, and its (last) run.
    earlier : list of str
        Fine runs of the same survey before, with which these are one composite.
    shift : (float, float) or None
        Drift against the survey that was followed last, slow and fast, in motor units.
    failure : str
        How a device failed for good, nothing where none did.
    lost : str
        Why it is not known any more where the sample is, nothing while it is.
    outcome : dict or None
        What became of the composite of survey and fine runs, where it was waited for.
    notes : list of str
        What was not done and why, in sentences.
    """

    proposal: str
    state: str = "refused"
    reason: str = ""
    runs: list[str] = field(default_factory=list)
    regions: dict[str, str] = field(default_factory=dict)
    earlier: list[str] = field(default_factory=list)
    shift: tuple[float, float] | None = None
    failure: str = ""
    lost: str = ""
    outcome: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)


def measure_proposal(
    connection: Connection,
    proposal: str | Mapping[str, Any],
    fine_plan: FinePlan,
    *,
    checks: Sequence[Check] = (),
    suspenders: Sequence[Any] = (),
    context: Context | None = None,
    timeout: float = 600.0,
    composite: bool = False,
    max_regions: int | None = None,
    unless: Callable[[dict[str, Any]], str] | None = None,
    before: Measured | None = None,
    report: Callable[[str], None] | None = None,
) -> Generator[Msg, Any, Measured]:
    """Measure the regions of one approved proposal, each confirmed with the service right before it.

    Parameters
    ----------
    connection : Connection
        The one subscribed to this RunEngine.
    proposal : str or mapping
        Id of a proposal, which the service is then asked for, or the proposal itself as an outcome has it.
    fine_plan : callable
        (region, proposal) -> plan of one fine scan. ``region`` has ``slow_range`` and ``fast_range`` in motor
        units (moved by the drift that is followed, also given as ``shift``), ``step`` and ``dwell``;
        ``proposal`` is the whole proposal. Its runs get ``purpose``, ``parent_uid``, ``rescan_proposal`` (id) and
        ``region`` (label) in their start documents.
    checks : sequence of Check
        Read before each region; one that does not hold ends the proposal.
    suspenders : sequence of bluesky suspenders
        Installed while a fine plan runs, and only then.
    context : callable or mapping, optional
        The present state of the beamline, told to the service before each region: a function that returns
        dotted paths of start documents (for example ``{"scan.energy": 12.0}``), or devices to be read by such
        names. The service refuses when it is not the state in which the proposal was made.
    timeout : float
        Seconds to wait for the composite of survey and fine runs, where the drift is followed.
    composite : bool
        Wait for the composite of all runs at the end, too.
    max_regions : int, optional
        Most regions to measure; the service's own limit holds besides.
    unless : callable, optional
        Asked before each region; a text says why it and the following are not measured.
    before : Measured, optional
        What was measured of the same survey before: its runs belong to the composite, too, and its drift goes on.
    report : callable, optional
        Gets one sentence at each step; by default they go to the log.

    Returns
    -------
    Measured
        What was done. A refusal, a missing answer and a device that failed are in it, not raised.

    Raises
    ------
    Exception
        Whatever else a fine plan raises; the service is told before.
    """
    tell = report if report is not None else logger.info
    done = Measured(proposal if isinstance(proposal, str) else str(proposal.get("id")))

    def note(text: str) -> None:
        done.notes.append(text)
        tell(text)

    if isinstance(proposal, str):
        try:
            answer = yield from ask(connection, "proposal", proposal=proposal)
        except NoAnswer as error:
            answer = {"ok": False, "reason": str(error)}
        found: Any = answer.get("proposal")
        if not answer.get("ok") or not isinstance(found, Mapping):
            done.reason = str(answer.get("reason") or "the service does not know it")
            note(f"Proposal {proposal} is not measured: {done.reason}")
            return done
        proposal = found
    proposal = dict(proposal)
    done.proposal = str(proposal["id"])
    if proposal.get("kind", "map") != "map":
        done.reason = f"it is of kind {proposal['kind']}, which has no regions to map"
    elif proposal.get("state") not in APPROVED:
        done.reason = unapproved(proposal)
    if done.reason:
        note(f"Proposal {done.proposal} is not measured: {done.reason}")
        return done
    regions: list[dict[str, Any]] = [dict(region) for region in proposal.get("regions") or ()]
    left = proposal.get("left")
    if left is not None:  # taken again, after others of its regions were measured
        regions = [region for region in regions if str(region.get("label")) in left]
    if max_regions is not None and len(regions) > max_regions:
        note(f"Only {max_regions} of {len(regions)} regions are measured (max_regions)")
        regions = regions[:max_regions]
    if not regions:
        done.reason = "it has no region to be measured"
        note(f"Proposal {done.proposal} is not measured: {done.reason}")
        return done
    drift = Drift(connection, proposal, timeout, composite)
    if before is not None:
        done.earlier, drift.shift = [*before.earlier, *before.runs], before.shift
    with executing(connection, done.proposal, done.earlier) as execution:
        done.runs = execution.runs
        scans = FineScans(execution, proposal, drift.survey_uid, checks, suspenders, context)
        one = _Proposal(scans, fine_plan, drift, done, note, tell)
        ended = ""
        for number, region in enumerate(regions, 1):
            ended = "" if unless is None else unless(region)
            if ended:
                # Somebody's wish, not a failure: what was measured is all that was to be.
                execution.complete = bool(execution.runs)
                if execution.runs and composite:
                    yield from one.look(execution.runs[-1], "measured last")
                break
            ended = yield from one.region(region, number == len(regions))
            if ended:
                break
        execution.complete = execution.complete or not ended
        execution.reason = ended
        done.state, done.reason = execution.state, ended
        done.shift, done.outcome = drift.shift, drift.outcome
    if ended:
        if execution.runs:
            count = f"{len(done.regions)} of {len(regions)} regions"
            note(f"Proposal {done.proposal} ends after {count}: {ended}")
        else:
            note(f"Proposal {done.proposal} is not measured: {ended}")
    else:
        tell(f"Proposal {done.proposal} done: {len(execution.runs)} fine runs")
    return done


@dataclass
class _Proposal:
    """A proposal that is being measured."""

    scans: FineScans
    fine_plan: FinePlan
    drift: Drift
    done: Measured
    note: Callable[[str], None]
    tell: Callable[[str], None]

    def region(self, region: dict[str, Any], last: bool) -> Generator[Msg, Any, str]:
        """Measure a region, again where that is needed and allowed; return why the proposal ends here, or nothing."""
        label = region.get("label", "")
        self.tell(f"Region {label}: {region.get('reason') or 'no reason given'}")
        execution, retries = self.scans.execution, self.scans.retries
        for attempt in range(1, retries + 2):
            shift = self.drift.shift
            refusal = yield from self.scans.clear(label, shift, attempt)
            if refusal:
                return refusal
            begun = len(execution.runs)
            plan = self.fine_plan(self.drift.moved(region), dict(self.scans.proposal))
            try:
                failure = yield from self.scans.take(plan, label, label, shift, attempt)
            except NotAllowedError as error:
                return str(error)
            if failure:
                self.note(f"Region {label}: {failure}")
                if attempt <= retries:
                    continue
                self.done.failure = failure
                return f"{failure} (rescan.retries: {retries})"
            runs = execution.runs[begun:]
            if not runs:
                return f"the fine plan of region {label} opened no run"
            self.done.regions[str(label)] = runs[-1]
            if not self.drift.wanted(last, may_repeat=attempt <= retries):
                return ""
            yield from self.look(runs[-1], label)
            if self.done.lost:
                return "" if last else f"drift: {self.done.lost}"
            if not self.drift.missed:
                return ""
            if attempt > retries:
                self.note(f"Region {label} is not taken again (rescan.retries: {retries})")
        return ""

    def look(self, run_uid: str, label: Any) -> MsgGenerator[None]:
        """Find the last region in the survey; `done.lost` says why that is not possible."""
        self.done.lost = yield from self.drift.look(self.scans.execution, run_uid, label)
        for text in (self.drift.remark, self.done.lost):
            if text:
                self.note(f"Region {label}: {text}")


def unapproved(proposal: Mapping[str, Any]) -> str:
    """Say why a proposal that is not approved is not measured, and what could be done."""
    state, reason = str(proposal.get("state")), str(proposal.get("reason") or "not approved")
    if state != "suggested":
        # An expired one says so itself.
        return reason if reason.startswith(f"{state}:") else f"{state}, {reason}"
    hint = {
        "approve": f" (inscan approve {str(proposal.get('id'))[:8]})",
        "suggest": " (rescan.mode is suggest: regions are only shown)",
    }
    return f"suggested, not approved{hint.get(str(proposal.get('mode')), '')}"
