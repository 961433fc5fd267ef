"""From places in a map to the scans that would measure them: where, how finely, how long, and what that would tell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from inscan.callbacks.geometry import ScanGeometry, region_from_box
from inscan.callbacks.rescan_section import Rescan
from inscan.callbacks.units import scale
from inscan.service.messages import InferenceJob
from inscan.service.proposal import FineRegion, Refusal
from inscan.service.rescan_limits import Spent
from inscan.service.rescan_worth import Light, light_of, wanted_of, worth_of

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
    best_waiting : str
        The region that has it, for people.
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
    best_waiting: str = ""
    pace: float = 1.0
    context: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class FineScans:
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


def scans_of(geometry: ScanGeometry, job: InferenceJob, rules: Rescan, known: Known) -> FineScans:
    # Later rounds see a composite; step, dwell and dose stay those of the survey.
    meta = job.meta if known.survey is None else known.survey
    survey = ScanGeometry.from_dict(meta["geometry"])
    dwell = float(meta.get("dwell") or 0.0)
    step = abs(survey.slow_step), abs(survey.fast_step)
    return FineScans(
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


def fine_regions(
    plan: FineScans, boxes: Sequence[Mapping[str, Any]]
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


def _fine(plan: FineScans, box: Mapping[str, Any]) -> FineRegion | Refusal:
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
    # What is found fills its box; the margin around it holds surroundings alone.
    pixels = float((row1 - row0) * (col1 - col0))
    share = min(1.0, pixels * pixel / region.area)
    information = light.information(pixels=pixels, per_pixel=per_pixel, dose=dose)
    predicted: dict[str, Any] = {
        "line": light.line,
        "time_s": time_s,
        "scan_s": modelled,
        "dose": dose,
        "information": information,
        "pixels": pixels,
        "per_pixel": per_pixel,
        "share": share,
        "relative_sigma": light.sigma_after(dose),
        "relative_sigma_before": light.sigma,
    }
    if light.signal is not None and light.background is not None:
        predicted["counts"] = (light.signal * share + light.background) * dose / per_pixel
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
    plan: FineScans, box: Mapping[str, Any], light: Light, doses: float
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
