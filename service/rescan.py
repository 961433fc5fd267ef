"""Which regions may be measured again: what is proposed to whoever moves the motors.

Everything here is a pure function of the run, its result, the profile and what is known besides; the limits are those
of `inscan.service.rescan_limits`, the ranking that of `rescan_worth`. What becomes of a proposal afterwards is in
`rescan_states`. A refusal names its rule, the limit and the value.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from inscan.callbacks.geometry import ScanGeometry, region_from_box
from inscan.callbacks.profile import BeamlineProfile
from inscan.callbacks.rescan_section import Rescan
from inscan.callbacks.units import scale
from inscan.service.messages import NAMESPACE, InferenceJob, InferenceResult, derived_uid
from inscan.service.proposal import FineRegion, Mode, Refusal, RescanProposal
from inscan.service.rescan_context import context_of
from inscan.service.rescan_limits import (
    OVERLAP,
    Placed,
    Spent,
    budget_refusal,
    range_refusal,
    round_refusal,
)
from inscan.service.rescan_worth import Light, light_of, wanted_of, worth_of

_LIKE = "like"
_MOST_BOXES = 1000
"""Boxes of one result that are looked at; the weakest beyond are left out."""


@dataclass(frozen=True)
class Known:
    """What is known of a survey besides one result of it.

    Attributes
    ----------
    survey_uid : str
        The run that all of it began with; empty: the result's own.
    survey : mapping or None
        Its job's meta (`geometry`, `dwell`), where the result is a composite's.
    spent : Spent
        By all other proposals of the survey.
    round : int
        Which time regions of this survey are proposed.
    best_worth : float
        Of the regions that wait to be measured, of this and other surveys.
    pace : float
        Time that scans took, in the time that was predicted.
    context : mapping or None
        State of the beamline; None: as the start document tells it.
    """

    survey_uid: str = ""
    survey: Mapping[str, Any] | None = None
    spent: Spent = field(default_factory=Spent)
    round: int = 1
    best_worth: float = 0.0
    pace: float = 1.0
    context: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class _Plan:
    """How fine maps of one survey are measured: the same for all its regions."""

    geometry: ScanGeometry
    """Of the map in which the regions were found."""
    rules: Rescan
    survey_step: tuple[float, float]
    step: tuple[float, float]
    dwell: float
    """Longest dwell, s."""
    survey_exposure: float
    """Seconds of exposure on a square motor unit."""
    um: tuple[float, float]
    """Micrometres in one motor unit, slow and fast."""
    precision: Mapping[str, float]
    known: Known


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
    surveyed = job.meta.get("geometry")
    if mode == "off" or start.get("purpose") == "fine" or start.get("parent_uid"):
        return None
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
        _verdict(result)
        or _positions(geometry)
        or _units(geometry)
        or round_refusal(rules, known.round)
    )
    if refusal is not None:
        return _refused(base, refusal)
    plan = _plan(geometry, job, rules, known)
    refusal = _whole(plan, regions)
    if refusal is not None:
        return _refused(base, refusal)
    found, unneeded = _regions(plan, regions)
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
        return _refused(base, dropped[0], **described)
    if start.get("replay_of"):
        gone = Refusal(
            "replay", "this run is a replay: its sample is not there to be measured again"
        )
        return replace(_refused(base, gone, **described), regions=tuple(kept))
    reason = f"{len(kept)} of {len(found) + len(unneeded)} regions, within all limits"
    asked = any(one.target == _LIKE for one in kept)
    if mode == "auto" and not asked:
        reason += "; mode auto: no approval needed"
    state = "approved" if mode == "auto" and not asked else "suggested"
    return replace(base, state=state, reason=reason, regions=tuple(kept), **described)


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


def _plan(geometry: ScanGeometry, job: InferenceJob, rules: Rescan, known: Known) -> _Plan:
    # Later rounds see a composite; step, dwell and dose stay those of the survey.
    meta = job.meta if known.survey is None else known.survey
    survey = ScanGeometry.from_dict(meta["geometry"])
    dwell = float(meta.get("dwell") or 0.0)
    step = abs(survey.slow_step), abs(survey.fast_step)
    return _Plan(
        geometry=geometry,
        rules=rules,
        survey_step=step,
        step=(step[0] * rules.step_factor, step[1] * rules.step_factor),
        dwell=dwell * rules.dwell_factor,
        survey_exposure=dwell / (step[0] * step[1]),
        um=(scale(geometry.slow_units, "um"), scale(geometry.fast_units, "um")),
        precision=(job.meta.get("rescan") or {}).get("precision", rules.precision),
        known=known,
    )


def _whole(plan: _Plan, regions: Sequence[Mapping[str, Any]]) -> Refusal | None:
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
    if not regions:
        looked_for = {
            "spots": "stands out from its surroundings",
            "doubt": "is in doubt",
            "chemistry": "has a chemistry of its own",
            "precision": "is known worse than asked for",
        }
        text = " or ".join(looked_for[target] for target in rules.targets) or "was looked for"
        return Refusal("regions", f"no place {text}")
    return None


def _regions(
    plan: _Plan, boxes: Sequence[Mapping[str, Any]]
) -> tuple[list[FineRegion], list[Refusal]]:
    """The boxes with their scans, in the order of the targets, of each the worthiest first; and those not needed."""
    order = plan.rules.targets
    strongest = sorted(boxes, key=lambda box: -float(box.get("score") or 0.0))[:_MOST_BOXES]
    found, unneeded = [], []
    for box in strongest:
        one = _fine(plan, box)
        (unneeded if isinstance(one, Refusal) else found).append(one)
    found.sort(
        key=lambda one: (
            order.index(one.target) if one.target in order else 0,
            -one.worth,
            -one.region.score,
        )
    )
    return [_numbered(one, number) for number, one in enumerate(found, 1)], unneeded


def _numbered(one: FineRegion, number: int) -> FineRegion:
    name = f"{number}-{one.region.label}" if one.region.label else str(number)
    return replace(one, region=replace(one.region, label=name))


def _fine(plan: _Plan, box: Mapping[str, Any]) -> FineRegion | Refusal:
    rules, geometry = plan.rules, plan.geometry
    row0, row1, col0, col1 = (int(edge) for edge in box["box"])
    region = region_from_box(
        geometry,
        (row0, row1, col0, col1),
        padding=rules.margin,
        score=float(box.get("score") or 0.0),
        reason=str(box.get("reason") or ""),
        label=str(box.get("element_name") or ""),
    )
    (rows, slow), (cols, fast) = (
        _points(low, high, step)
        for (low, high), step in zip((region.slow_range, region.fast_range), plan.step, strict=True)
    )
    doses = 1 + plan.known.spent.dose_at(region.slow_range, region.fast_range)
    light = light_of(box, doses=doses)
    # Survey doses that one second on every pixel gives.
    per_second = rows * cols / region.area / plan.survey_exposure
    needed = _needed(plan, box, light, doses)
    if isinstance(needed, Refusal):
        return needed
    dwell = plan.dwell if needed is None else min(plan.dwell, needed / per_second)
    dose = dwell * per_second
    modelled = rows * (rules.row_overhead + cols * (rules.point_overhead + dwell))
    time_s = rules.region_overhead + plan.known.pace * modelled
    pixel = abs(geometry.slow_step * geometry.fast_step)
    per_pixel = pixel * rows * cols / region.area
    information = light.information(pixels=region.area / pixel, per_pixel=per_pixel, dose=dose)
    predicted: dict[str, Any] = {
        "line": light.line,
        "time_s": time_s,
        "scan_s": modelled,
        "dose": dose,
        "information": information,
        "relative_sigma": light.sigma_after(dose),
        "relative_sigma_before": light.sigma,
    }
    if light.signal is not None and light.background is not None:
        predicted["counts"] = (light.signal + light.background) * dose / per_pixel
        predicted["background"] = light.background * dose / per_pixel
    return FineRegion(
        region=region,
        shape=(rows, cols),
        extents=(slow, fast),
        step=(
            (region.slow_range[1] - region.slow_range[0]) / rows,
            (region.fast_range[1] - region.fast_range[0]) / cols,
        ),
        dwell=dwell,
        time_s=time_s,
        exposure_s=rows * cols * dwell,
        area_um2=region.area * plan.um[0] * plan.um[1],
        dose=dose,
        target=str(box.get("target") or "spots"),
        information=information,
        worth=worth_of(information, time_s, dose),
        predicted=predicted,
    )


def _needed(
    plan: _Plan, box: Mapping[str, Any], light: Light, doses: float
) -> float | Refusal | None:
    """Survey doses until what is asked for is reached; None where nothing is asked for."""
    wanted = wanted_of(box, plan.precision, light.line)
    if not wanted:
        return None
    each = {line: light_of({**box, "element_name": line}, doses=doses) for line in wanted}
    needed = {line: each[line].dose_for(share) for line, share in wanted.items()}
    if max(needed.values()) > 0:
        return max(needed.values())
    line = next(iter(wanted))
    text = f"{line} is known to {each[line].sigma:.3g} of its value, {wanted[line]:g} is asked for"
    return Refusal("precision", text, wanted[line], each[line].sigma, "of the value")


def _points(low: float, high: float, step: float) -> tuple[int, tuple[float, float]]:
    """Number of pixels nearest to `step` wide that fill a range, and the centres of the first and last."""
    count = max(1, round((high - low) / step))
    half = (high - low) / count / 2
    return count, (low + half, high - half)


def _choose(plan: _Plan, found: Sequence[FineRegion]) -> tuple[list[FineRegion], list[Refusal]]:
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
            or _not_worth_it(plan.rules, best, candidate)
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


def _beyond_limits(plan: _Plan, fine: FineRegion) -> Refusal | None:
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


def _twice(plan: _Plan, kept: Sequence[FineRegion], fine: FineRegion) -> Refusal | None:
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


def _beyond_budget(plan: _Plan, spent: Spent, fine: FineRegion) -> Refusal | None:
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


def _not_worth_it(rules: Rescan, best: float, fine: FineRegion) -> Refusal | None:
    least = rules.least_worth * best
    if fine.worth >= least or fine.target == _LIKE:
        return None
    text = (
        f"it promises {fine.worth:.3g} nats per second and dose, the best that waits {best:.3g}; "
        f"{rules.least_worth:g} of that is asked for"
    )
    return Refusal("least_worth", text, least, fine.worth, "nats/s", fine.region.label)
