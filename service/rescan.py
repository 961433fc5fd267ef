"""Which regions may be measured again: the one place where limits are checked, before anybody moves a motor.

Everything here is a pure function of the run, its result and the profile; what becomes of a proposal afterwards is in
`inscan.service.rescan_states`. A refusal names its rule, the limit and the value.
"""

import math
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from inscan.callbacks.geometry import RegionOfInterest, ScanGeometry, region_from_box
from inscan.callbacks.profile import BeamlineProfile, start_value
from inscan.callbacks.rescan_section import Rescan
from inscan.callbacks.units import scale
from inscan.service.messages import NAMESPACE, InferenceJob, InferenceResult, derived_uid
from inscan.service.proposal import FineRegion, Mode, Refusal, RescanProposal

RUN_UP_STEPS = 2.0
"""A motor may go so many fine steps beyond a region on each side: run-up and run-down of a fly scan, approach against
backlash, overshoot while it settles. The soft limits must hold for that too."""
OVERLAP = 0.5
"""A region that shares more of its area with one already chosen is dropped: the sample would pay twice."""
CONTEXT = ("sample", "scan.energy", "scan.theta", "theta", "sample_z", "coarse", "detector")
"""Paths in start documents of what must not change between a survey and its rescan."""
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class _Plan:
    """How fine maps of one survey are measured: the same for all its regions."""

    geometry: ScanGeometry
    rules: Rescan
    step: tuple[float, float]
    dwell: float
    survey_exposure: float
    """Seconds of exposure on a square motor unit."""
    um: tuple[float, float]
    """Micrometres in one motor unit, slow and fast."""


def propose(
    job: InferenceJob,
    result: InferenceResult,
    profile: BeamlineProfile,
    start: Mapping[str, Any],
    mode: Mode | None = None,
) -> RescanProposal | None:
    """Make of a result's regions what may be measured again.

    Parameters
    ----------
    job : InferenceJob
        Its `meta` has the survey's geometry (motor units) and dwell (s).
    result : InferenceResult
        Its `regions` are pixel boxes with scores and reasons.
    profile : BeamlineProfile
        Limits and the cost of motion, in `rescan`.
    start : mapping
        The survey's start document.
    mode : str or None
        Overrides the profile's.

    Returns
    -------
    RescanProposal or None
        None where rescans are off, and for runs that are no survey map: rescans themselves, energy stacks. A proposal
        in state `refused` says why nothing is proposed although it might have been.
    """
    rules = profile.rescan
    mode = mode or rules.mode
    surveyed = job.meta.get("geometry")
    if mode == "off" or not surveyed or start.get("purpose") == "fine" or start.get("parent_uid"):
        return None
    base = RescanProposal(
        id=str(uuid.uuid5(NAMESPACE, f"{job.key}/rescan")),
        run_uid=job.run_uid,
        result_uid=derived_uid(job.key),
        mode=mode,
        state="refused",
        reason="",
        context=context_of(start),
    )
    geometry = ScanGeometry.from_dict(surveyed)
    refusal = _verdict(result) or _units(geometry)
    if refusal is not None:
        return _refused(base, refusal)
    plan = _plan(geometry, job, rules)
    refusal = _whole(plan, result)
    if refusal is not None:
        return _refused(base, refusal)
    found = list(_regions(plan, result.regions))
    kept, dropped = _choose(plan, found)
    described = {
        "dropped": tuple(dropped),
        "motors": (geometry.slow_motor, geometry.fast_motor),
        "units": (geometry.slow_units, geometry.fast_units),
        "step": plan.step,
        "dwell": plan.dwell,
        "dose": max((one.dose for one in kept), default=0.0),
        **_following(geometry, rules),
    }
    if not kept:
        return _refused(base, dropped[0], **described)
    if start.get("replay_of"):
        gone = Refusal(
            "replay", "this run is a replay: its sample is not there to be measured again"
        )
        return replace(_refused(base, gone, **described), regions=tuple(kept))
    reason = f"{len(kept)} of {len(found)} regions, within all limits"
    if mode == "auto":
        reason += "; mode auto: no approval needed"
    state = "approved" if mode == "auto" else "suggested"
    return replace(base, state=state, reason=reason, regions=tuple(kept), **described)


def _following(geometry: ScanGeometry, rules: Rescan) -> dict[str, Any]:
    """What a plan needs to know to follow a drift, in motor units."""
    pixel = (abs(geometry.slow_step), abs(geometry.fast_step))
    return {
        "follow_drift": rules.follow_drift,
        "max_shift": (rules.max_shift * pixel[0], rules.max_shift * pixel[1]),
        "margin": (rules.margin * pixel[0], rules.margin * pixel[1]),
        "retries": rules.retries,
    }


def context_of(start: Mapping[str, Any]) -> dict[str, Any]:
    """State of the beamline as a start document tells it: the paths of `CONTEXT` that it has."""
    values = {path: start_value(start, path) for path in CONTEXT}
    return {path: value for path, value in values.items() if value is not None}


def context_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Refusal]:
    """What differs between two contexts; a path that only one of them has says nothing.

    Returns
    -------
    list of Refusal
        One of rule `state_changed` for each difference.
    """
    changes = []
    for path in sorted(set(then) & set(now)):
        if not _same(then[path], now[path]):
            numbers = [
                value if isinstance(value, int | float) else None
                for value in (then[path], now[path])
            ]
            text = f"{path} was {then[path]!r} when this was proposed and is {now[path]!r} now"
            changes.append(Refusal("state_changed", text, numbers[0], numbers[1]))
    return changes


def _same(then: Any, now: Any) -> bool:
    if isinstance(then, int | float) and isinstance(now, int | float):
        return math.isclose(then, now, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    return then == now


def _refused(base: RescanProposal, refusal: Refusal, **described: Any) -> RescanProposal:
    dropped = described.pop("dropped", (refusal,))
    return replace(
        base,
        state="refused",
        reason=f"{refusal.rule}: {refusal.text}",
        dropped=dropped,
        **described,
    )


def _verdict(result: InferenceResult) -> Refusal | None:
    if result.report.get("verdict") != "block":
        return None
    reasons = "; ".join(str(reason) for reason in result.report.get("reasons", [])) or "no reason"
    return Refusal("verdict", f"the result's verdict is block ({reasons})")


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


def _plan(geometry: ScanGeometry, job: InferenceJob, rules: Rescan) -> _Plan:
    dwell = float(job.meta.get("dwell") or 0.0)
    return _Plan(
        geometry=geometry,
        rules=rules,
        step=(
            abs(geometry.slow_step) * rules.step_factor,
            abs(geometry.fast_step) * rules.step_factor,
        ),
        dwell=dwell * rules.dwell_factor,
        survey_exposure=dwell / abs(geometry.slow_step * geometry.fast_step),
        um=(scale(geometry.slow_units, "um"), scale(geometry.fast_units, "um")),
    )


def _whole(plan: _Plan, result: InferenceResult) -> Refusal | None:
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
    if not result.regions:
        looked_for = {"spots": "stands out from its surroundings", "doubt": "is in doubt"}
        text = " or ".join(looked_for[target] for target in rules.targets) or "was looked for"
        return Refusal("regions", f"no place {text}")
    return None


def _regions(plan: _Plan, boxes: Iterable[Mapping[str, Any]]) -> Iterable[FineRegion]:
    """The boxes with their scans: in the order of the targets, of each the best first."""
    order = plan.rules.targets
    ranked = sorted(
        boxes,
        key=lambda box: (
            order.index(box["target"]) if box.get("target") in order else 0,
            -float(box.get("score") or 0.0),
        ),
    )
    for number, box in enumerate(ranked, 1):
        row0, row1, col0, col1 = (int(edge) for edge in box["box"])
        region = region_from_box(
            plan.geometry,
            (row0, row1, col0, col1),
            padding=plan.rules.margin,
            score=float(box.get("score") or 0.0),
            reason=str(box.get("reason") or ""),
            label=f"{number}-{box['element_name']}" if box.get("element_name") else str(number),
        )
        yield _fine(plan, region)


def _fine(plan: _Plan, region: RegionOfInterest) -> FineRegion:
    rules = plan.rules
    (rows, slow), (cols, fast) = (
        _points(low, high, step)
        for (low, high), step in zip((region.slow_range, region.fast_range), plan.step, strict=True)
    )
    return FineRegion(
        region=region,
        shape=(rows, cols),
        extents=(slow, fast),
        step=(
            (region.slow_range[1] - region.slow_range[0]) / rows,
            (region.fast_range[1] - region.fast_range[0]) / cols,
        ),
        dwell=plan.dwell,
        time_s=rules.region_overhead
        + rows * (rules.row_overhead + cols * (rules.point_overhead + plan.dwell)),
        exposure_s=rows * cols * plan.dwell,
        area_um2=region.area * plan.um[0] * plan.um[1],
        dose=rows * cols * plan.dwell / region.area / plan.survey_exposure,
    )


def _points(low: float, high: float, step: float) -> tuple[int, tuple[float, float]]:
    """Number of pixels nearest to `step` wide that fill a range, and the centres of the first and last."""
    count = max(1, round((high - low) / step))
    half = (high - low) / count / 2
    return count, (low + half, high - half)


def _choose(plan: _Plan, found: Sequence[FineRegion]) -> tuple[list[FineRegion], list[Refusal]]:
    """Take regions, best first, as long as all limits hold for all taken together."""
    kept: list[FineRegion] = []
    dropped: list[Refusal] = []
    for candidate in found:
        refusal = _beyond_limits(plan, candidate) or _beyond_budget(plan.rules, kept, candidate)
        if refusal is None:
            kept.append(candidate)
        else:
            dropped.append(refusal)
    return kept, dropped


def _beyond_limits(plan: _Plan, fine: FineRegion) -> Refusal | None:
    """Soft limits, over everything that the motors will do."""
    geometry = plan.geometry
    axes = (
        (geometry.slow_motor, geometry.slow_units, fine.region.slow_range, plan.step[0]),
        (geometry.fast_motor, geometry.fast_units, fine.region.fast_range, plan.step[1]),
    )
    for motor, units, (low, high), step in axes:
        allowed = plan.rules.soft_limits[motor].in_units(units)
        reach = (low - RUN_UP_STEPS * step, high + RUN_UP_STEPS * step)
        for value, limit, beyond in (
            (reach[0], allowed[0], reach[0] < allowed[0]),
            (reach[1], allowed[1], reach[1] > allowed[1]),
        ):
            if beyond:
                text = (
                    f"{motor} would go to {value:.6g} {units} with run-up, its limits are "
                    f"{allowed[0]:.6g} to {allowed[1]:.6g} {units}"
                )
                return Refusal("soft_limits", text, limit, value, units, fine.region.label)
    return None


def _beyond_budget(rules: Rescan, kept: Sequence[FineRegion], fine: FineRegion) -> Refusal | None:
    label = fine.region.label
    for other in kept:
        if _shared(other.region, fine.region) > OVERLAP * fine.region.area:
            text = f"most of it lies in region {other.region.label}"
            return Refusal("overlap", text, region=label)
    if len(kept) + 1 > rules.max_regions:
        text = f"{rules.max_regions} regions with higher scores are taken"
        return Refusal("max_regions", text, rules.max_regions, len(kept) + 1, "", label)
    if rules.max_dose is not None and fine.dose > rules.max_dose:
        text = (
            f"dwell_factor {rules.dwell_factor:g} and step_factor {rules.step_factor:g} give {fine.dose:.4g} times "
            f"the survey's exposure per area, {rules.max_dose:g} are allowed"
        )
        return Refusal("max_dose", text, rules.max_dose, fine.dose, "survey doses", label)
    area = sum(one.area_um2 for one in kept) + fine.area_um2
    if area > rules.max_area:
        text = f"all regions together would cover {area:.4g} um^2, {rules.max_area:g} are allowed"
        return Refusal("max_area", text, rules.max_area, area, "um^2", label)
    time_s = sum(one.time_s for one in kept) + fine.time_s
    if time_s > rules.max_time:
        text = f"all regions together would take {time_s:.4g} s, {rules.max_time:g} are allowed"
        return Refusal("max_time", text, rules.max_time, time_s, "s", label)
    return None


def _shared(one: RegionOfInterest, other: RegionOfInterest) -> float:
    sides = []
    for (low, high), (low2, high2) in (
        (one.slow_range, other.slow_range),
        (one.fast_range, other.fast_range),
    ):
        sides.append(max(0.0, min(high, high2) - max(low, low2)))
    return sides[0] * sides[1]
