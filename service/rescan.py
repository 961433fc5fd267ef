"""Which regions may be measured again: what is proposed to whoever moves the motors.

Everything here is a pure function of the run, its result, the profile and what is known besides; the limits are those
of `inscan.service.rescan_limits`, the ranking that of `rescan_worth`. What becomes of a proposal afterwards is in
`rescan_states`. A refusal names its rule, the limit and the value.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from inscan.callbacks.geometry import ScanGeometry
from inscan.callbacks.profile import BeamlineProfile
from inscan.callbacks.rescan_section import Rescan
from inscan.callbacks.units import scale
from inscan.service.messages import NAMESPACE, InferenceJob, InferenceResult, derived_uid
from inscan.service.proposal import FineRegion, Mode, Refusal, RescanProposal
from inscan.service.rescan_context import context_of
from inscan.service.rescan_energies import propose_energies
from inscan.service.rescan_limits import (
    OVERLAP,
    Placed,
    Spent,
    budget_refusal,
    range_refusal,
    round_refusal,
)
from inscan.service.rescan_refused import REPLAYED, blocked, refused
from inscan.service.rescan_regions import FineScans, Known, fine_regions, scans_of

__all__ = ["Known", "propose"]

_LIKE = "like"


def propose(
    job: InferenceJob,
    result: InferenceResult,
    profile: BeamlineProfile,
    start: Mapping[str, Any],
    mode: Mode | None = None,
    known: Known | None = None,
) -> RescanProposal | None:
    """Make of a result's regions what may be measured again.

    Parameters
    ----------
    job : InferenceJob
        Its `meta` has the geometry (motor units) and dwell (s).
    result : InferenceResult
        Its `regions` are pixel boxes with scores and reasons.
    profile : BeamlineProfile
        Limits and the cost of motion, in `rescan`.
    start : mapping
        The survey's start document.
    mode : str or None
        Overrides the profile's.
    known : Known or None
        What was proposed and spent before; None: nothing.

    Returns
    -------
    RescanProposal or None
        None where rescans are off, and for runs that are no survey map: rescans themselves, energy stacks of which no
        energies are wanted. A proposal in state `refused` says why nothing is proposed although it might have been.
    """
    rules, known = profile.rescan, known or Known()
    mode = mode or rules.mode
    if mode == "off" or start.get("purpose") == "fine" or start.get("parent_uid"):
        return None
    if profile.technique == "txm":
        return propose_energies(
            job,
            result,
            profile,
            start,
            mode,
            known,
        )
    surveyed = job.meta.get("geometry")
    if not surveyed:
        return None
    regions = result.regions
    base = RescanProposal(
        id=str(uuid.uuid5(NAMESPACE, f"{job.key}/rescan")),
        run_uid=job.run_uid,
        result_uid=derived_uid(job.key),
        mode=mode,
        state="refused",
        reason="",
        context=context_of(rules.context, start) if known.context is None else known.context,
        survey_uid=known.survey_uid or job.run_uid,
        round=known.round,
    )
    geometry = ScanGeometry.from_dict(surveyed)
    refusal = (
        blocked(result)
        or _positions(geometry)
        or _units(geometry)
        or round_refusal(rules, known.round)
    )
    if refusal is not None:
        return refused(base, refusal)
    plan = scans_of(geometry, job, rules, known)
    refusal = _whole(plan, regions) or (None if regions else _nothing_found(job, rules))
    if refusal is not None:
        return refused(base, refusal)
    found, unneeded = fine_regions(plan, regions)
    kept, dropped = _choose(plan, found)
    dropped = [*unneeded, *dropped]
    described = {
        "dropped": tuple(dropped),
        "motors": (geometry.slow_motor, geometry.fast_motor),
        "units": (geometry.slow_units, geometry.fast_units),
        "step": plan.step,
        # A plan that knows one dwell for all must not expose any of them for longer than it needs.
        "dwell": min((one.dwell for one in kept), default=plan.dwell),
        "dose": max((one.dose for one in kept), default=0.0),
        "survey_step": plan.survey_step,
        "margin": tuple(rules.margin * step for step in plan.survey_step),
        "max_shift": tuple(rules.max_shift * step for step in plan.survey_step),
        "follow_drift": rules.follow_drift,
        "retries": rules.retries,
    }
    if not kept:
        return refused(base, dropped[0], **described)
    if start.get("replay_of"):
        return replace(refused(base, REPLAYED, **described), regions=tuple(kept))
    reason = f"{len(kept)} of {len(found) + len(unneeded)} regions, within all limits"
    asked = any(one.target == _LIKE for one in kept)
    if mode == "auto" and not asked:
        reason += "; mode auto: no approval needed"
    state = "approved" if mode == "auto" and not asked else "suggested"
    return replace(base, state=state, reason=reason, regions=tuple(kept), **described)


def _positions(geometry: ScanGeometry) -> Refusal | None:
    if geometry.planned:
        return None
    text = "where the survey's points lay is not known; motors cannot be sent there"
    return Refusal("geometry", text)


def _units(geometry: ScanGeometry) -> Refusal | None:
    for motor, units in (
        (geometry.slow_motor, geometry.slow_units),
        (geometry.fast_motor, geometry.fast_units),
    ):
        try:
            scale(units, "um")
        except ValueError:
            text = f"motor {motor} is in {units!r}, which is no known unit of length; set geometry.units"
            return Refusal("units", text)
    return None


def _whole(plan: FineScans, regions: Sequence[Mapping[str, Any]]) -> Refusal | None:
    """Rules that no choice of regions can satisfy."""
    rules, geometry = plan.rules, plan.geometry
    if not plan.dwell > 0:
        text = "the survey's dwell is unknown, so that time and dose cannot be predicted; set xrf.dwell"
        return Refusal("dwell", text)
    for motor, units in (
        (geometry.slow_motor, geometry.slow_units),
        (geometry.fast_motor, geometry.fast_units),
    ):
        if motor not in rules.soft_limits:
            text = f"motor {motor} has no soft limits in the profile and may not be moved"
            return Refusal("soft_limits", text)
        try:
            rules.soft_limits[motor].in_units(units)
        except ValueError as error:
            return Refusal("soft_limits", f"those of motor {motor} cannot be compared: {error}")
    return None


def _nothing_found(job: InferenceJob, rules: Rescan) -> Refusal:
    """Why there is no region: nothing was there, or what was asked for is not in the run."""
    wanted = job.meta.get("rescan") or {}
    lines = [str(name) for name in job.meta.get("elements") or ()]
    absent = [name for name in wanted.get("precision") or {} if name not in lines]
    if absent and lines:
        text = f"a precision is asked for of {', '.join(absent)}, the run has {', '.join(lines)}"
        return Refusal("elements", text)
    looked_for = {
        "spots": "stands out from its surroundings",
        "doubt": "is in doubt",
        "chemistry": "has a chemistry of its own",
        "precision": "is known worse than asked for",
    }
    targets = wanted.get("targets") or rules.targets
    text = " or ".join(looked_for[target] for target in targets) or "was looked for"
    return Refusal("regions", f"no place {text}")


def _choose(plan: FineScans, found: Sequence[FineRegion]) -> tuple[list[FineRegion], list[Refusal]]:
    """Take regions in their order, as long as all limits hold for all that is taken of the survey together."""
    kept: list[FineRegion] = []
    dropped: list[Refusal] = []
    spent = plan.known.spent
    possible = [
        one
        for one in found
        if _beyond_limits(plan, one) is None and _beyond_budget(plan, spent, one) is None
    ]
    best = max([plan.known.best_worth, *(one.worth for one in possible)])
    for candidate in found:
        refusal = (
            _beyond_limits(plan, candidate)
            or _twice(plan, kept, candidate)
            or _beyond_budget(plan, spent, candidate)
            or _not_worth_it(plan, best, candidate)
        )
        if refusal is None:
            kept.append(candidate)
            spent = spent.plus(
                time_s=candidate.time_s,
                exposure_s=candidate.exposure_s,
                area_um2=candidate.area_um2,
                placed=[_placed(candidate)],
            )
        else:
            dropped.append(refusal)
    return kept, dropped


def _placed(fine: FineRegion) -> Placed:
    region = fine.region
    return Placed(region.slow_range, region.fast_range, fine.dose, region.label)


def _beyond_limits(plan: FineScans, fine: FineRegion) -> Refusal | None:
    """Soft limits, over everything that the motors will do."""
    geometry, region = plan.geometry, fine.region
    axes = (
        (geometry.slow_motor, geometry.slow_units, region.slow_range, plan.step[0], fine.step[0]),
        (geometry.fast_motor, geometry.fast_units, region.fast_range, plan.step[1], fine.step[1]),
    )
    for motor, units, (low, high), *steps in axes:
        refusal = range_refusal(plan.rules, motor, units, low, high, max(steps), region.label)
        if refusal is not None:
            return refusal
    return None


def _twice(plan: FineScans, kept: Sequence[FineRegion], fine: FineRegion) -> Refusal | None:
    """Whether the sample would pay twice for the same place; later rounds measure places again for precision alone."""
    region = fine.region
    before = () if fine.target == "precision" else plan.known.spent.placed
    for other, area in (
        *((_placed(one), min(one.region.area, region.area)) for one in kept),
        *((one, region.area) for one in before),
    ):
        share = other.shared(region.slow_range, region.fast_range) / area
        if share > OVERLAP:
            text = f"it shares {100 * share:.0f} % with region {other.label}"
            return Refusal("overlap", text, OVERLAP, share, "", region.label)
    return None


def _beyond_budget(plan: FineScans, spent: Spent, fine: FineRegion) -> Refusal | None:
    return budget_refusal(
        plan.rules,
        spent,
        time_s=fine.time_s,
        exposure_s=fine.exposure_s,
        area_um2=fine.area_um2,
        dose=fine.dose,
        label=fine.region.label,
        place=(fine.region.slow_range, fine.region.fast_range),
    )


def _not_worth_it(plan: FineScans, best: float, fine: FineRegion) -> Refusal | None:
    rules, known = plan.rules, plan.known
    least = rules.least_worth * best
    if fine.worth >= least or fine.target == _LIKE:
        return None
    other = f" ({known.best_waiting})" if best == known.best_worth and known.best_waiting else ""
    text = (
        f"it promises {fine.worth:.3g} nats per second and dose, the best that waits{other} {best:.3g}; "
        f"{rules.least_worth:g} of that is asked for"
    )
    return Refusal("least_worth", text, least, fine.worth, "nats/s", fine.region.label)
