"""Limits of what may be measured again: of positions over the whole trajectory, and of what one survey may cost.

Pure functions of the profile's section `rescan` and of numbers; whatever proposes, approves, queues or confirms a
rescan asks here. A refusal names its rule (the profile key), the limit and the value.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from inscan.callbacks.rescan_section import Rescan
from inscan.callbacks.units import convert
from inscan.service.proposal import Refusal

RUN_UP_STEPS = 2.0
"""Where the profile names no `run_up`, a motor may go so many fine steps beyond a region on each side: run-up and
run-down of a fly scan, overshoot while it settles."""
OVERLAP = 0.5
"""A region that shares more of its area with one that is taken is dropped: the sample would pay twice."""
COUNTED = ("approved", "queued", "running")
"""States in which all regions of a proposal count: they are measured, or will be. Of one that has ended only those
count that were begun."""

Range = tuple[float, float]
_EVERYWHERE = ((-math.inf, math.inf), (-math.inf, math.inf))


@dataclass(frozen=True)
class Placed:
    """A region that is measured or will be: where it lies, in motor units, and its exposure in survey doses."""

    slow: Range
    fast: Range
    dose: float
    label: str = ""
    round: int = 1

    def shared(self, slow: Range, fast: Range) -> float:
        """Area that it shares with a box, in products of the motor units."""
        return _shared(self.slow, slow) * _shared(self.fast, fast)


@dataclass(frozen=True)
class Spent:
    """What one survey's rescans have cost so far, and will cost by what is approved.

    Attributes
    ----------
    time_s, exposure_s, area_um2 : float
    regions : int
        Regions, each counted as often as it was begun.
    dose : float
        Exposure of the whole field (added energies), in survey doses.
    placed : tuple of Placed
        Regions, as often as they were begun.
    """

    time_s: float = 0.0
    exposure_s: float = 0.0
    area_um2: float = 0.0
    regions: int = 0
    dose: float = 0.0
    placed: tuple[Placed, ...] = ()

    def plus(
        self,
        *,
        time_s: float,
        exposure_s: float,
        area_um2: float,
        regions: int = 1,
        dose: float = 0.0,
        placed: Iterable[Placed] = (),
    ) -> "Spent":
        """The same with more."""
        return replace(
            self,
            time_s=self.time_s + time_s,
            exposure_s=self.exposure_s + exposure_s,
            area_um2=self.area_um2 + area_um2,
            regions=self.regions + regions,
            dose=self.dose + dose,
            placed=(*self.placed, *placed),
        )

    def dose_at(self, slow: Range, fast: Range) -> float:
        """The largest exposure that any place in a box has from all that lies on top of each other, in survey doses."""
        here = [one for one in self.placed if one.shared(slow, fast) > 0]
        # The most covered place of axis-parallel boxes begins, along each axis, where one of them does.
        corners = itertools.product(
            {max(slow[0], one.slow[0]) for one in here}, {max(fast[0], one.fast[0]) for one in here}
        )
        covered = (
            sum(
                one.dose
                for one in here
                if one.slow[0] <= row < one.slow[1] and one.fast[0] <= col < one.fast[1]
            )
            for row, col in corners
        )
        return self.dose + max(covered, default=0.0)


def spent_by(proposals: Iterable[Mapping[str, Any]]) -> Spent:
    """What proposals of one survey have cost and will cost.

    Parameters
    ----------
    proposals : iterable of mapping
        As the journal gives them; `begun` says which regions were begun, as often as they were.

    Returns
    -------
    Spent
        All regions of those in a state of `COUNTED`, and of the others those that were begun.
    """
    spent = Spent()
    for proposal in proposals:
        begun = [str(one["region"]) for one in proposal.get("begun", ())]
        whole = 1 if proposal["state"] in COUNTED else 0
        if proposal.get("kind", "map") == "energies":
            times = max(len(begun), whole)
            spent = spent.plus(
                time_s=times * float(proposal.get("time_s") or 0.0),
                exposure_s=times * float(proposal.get("exposure_s") or 0.0),
                area_um2=times * float(proposal.get("area_um2") or 0.0),
                regions=0,
                dose=times * float(proposal.get("dose") or 0.0),
            )
            continue
        for region in proposal.get("all_regions") or proposal["regions"]:
            times = max(begun.count(str(region["label"])), whole)
            if times:
                spent = with_region(spent, region, times, int(proposal.get("round") or 1))
    return spent


def with_region(spent: Spent, region: Mapping[str, Any], times: int = 1, number: int = 1) -> Spent:
    """The same with a proposal's region, so many times; `number` is the proposal's round."""
    place = Placed(
        slow=(float(region["slow_range"][0]), float(region["slow_range"][1])),
        fast=(float(region["fast_range"][0]), float(region["fast_range"][1])),
        dose=float(region["dose"]),
        label=str(region["label"]),
        round=number,
    )
    return spent.plus(
        time_s=times * float(region["time_s"]),
        exposure_s=times * float(region["exposure_s"]),
        area_um2=times * float(region["area_um2"]),
        regions=times,
        placed=[place] * times,
    )


def range_refusal(
    rules: Rescan,
    motor: str,
    units: str,
    low: float,
    high: float,
    fine_step: float,
    label: str = "",
    *,
    position: float | None = None,
) -> Refusal | None:
    """Whether a motor may be scanned over a range: with run-up, run-down, backlash on either side, and the way there.

    Parameters
    ----------
    rules : Rescan
    motor : str
    units : str
        Of all numbers that follow; eV or keV for a monochromator.
    low, high : float
        Outer edges of what is scanned.
    fine_step : float
        Step of the scan.
    label : str
        The region's, for the refusal.
    position : float or None
        Where the motor is, when that is known: it goes from there, and the way between must be allowed as well.

    Returns
    -------
    Refusal or None
        Of rule `soft_limits`.
    """
    soft = rules.soft_limits.get(motor)
    if soft is None:
        text = f"motor {motor} has no soft limits in the profile and may not be moved"
        return Refusal("soft_limits", text, region=label)
    try:
        allowed = soft.in_units(units)
        run_up = (
            RUN_UP_STEPS * abs(fine_step)
            if soft.run_up is None
            else convert(soft.run_up, soft.units, units)
        )
        beyond = run_up + convert(soft.backlash, soft.units, units)
    except ValueError as error:
        text = f"those of motor {motor} cannot be compared: {error}"
        return Refusal("soft_limits", text, region=label)
    given = [low, high, fine_step, *([] if position is None else [position])]
    wrong = next((value for value in given if not math.isfinite(value)), None)
    if wrong is not None:
        text = f"{motor} would go to {wrong}, which is no position"
        return Refusal("soft_limits", text, None, wrong, units, label)
    # From which side backlash is taken up is the motor's own affair: it counts on both.
    reach = [min(low, high) - beyond, max(low, high) + beyond]
    if position is not None:
        reach = [min(reach[0], position), max(reach[1], position)]
    for value, limit, inside in (
        (reach[0], allowed[0], reach[0] >= allowed[0]),
        (reach[1], allowed[1], reach[1] <= allowed[1]),
    ):
        if not inside:
            text = (
                f"{motor} would go to {value:.6g} {units} with run-up and backlash, its limits are "
                f"{allowed[0]:.6g} to {allowed[1]:.6g} {units}"
            )
            return Refusal("soft_limits", text, limit, value, units, label)
    return None


def budget_refusal(
    rules: Rescan,
    spent: Spent,
    *,
    time_s: float,
    exposure_s: float,
    area_um2: float,
    dose: float,
    label: str = "",
    regions: int = 1,
    place: tuple[Range, Range] | None = None,
) -> Refusal | None:
    """Whether one more region (or set of energies) stays within what one survey's rescans may cost.

    Parameters
    ----------
    rules : Rescan
    spent : Spent
        By all other proposals of the survey, and by what of this one is taken already.
    time_s, exposure_s, area_um2, dose : float
        Of what is added; dose is exposure per area in survey doses.
    label : str
        The region's, for the refusal.
    regions : int
        How many regions it is; 0 for energies.
    place : ((low, high), (low, high)) or None
        Where it lies, slow axis first, in motor units: what lies on top of each other adds up. None: the whole field.

    Returns
    -------
    Refusal or None
        Of rule `max_regions`, `max_dose`, `max_exposure`, `max_area` or `max_time`.
    """
    if regions and not spent.regions + regions <= rules.max_regions:
        text = f"{spent.regions} regions of this survey are taken, {rules.max_regions} are allowed"
        return Refusal("max_regions", text, rules.max_regions, spent.regions + regions, "", label)
    under = spent.dose_at(*(place or _EVERYWHERE))
    for rule, limit, value, units, what in (
        ("max_dose", rules.max_dose, under + dose, "survey doses", "exposure per area"),
        ("max_exposure", rules.max_exposure, spent.exposure_s + exposure_s, "s", "exposure"),
        ("max_area", rules.max_area, spent.area_um2 + area_um2, "um^2", "area"),
        ("max_time", rules.max_time, spent.time_s + time_s, "s", "time"),
    ):
        if limit is not None and not value <= limit:
            text = (
                f"{what} of all that is measured again of this survey would be {value:.4g} {units}, "
                f"{limit:g} are allowed"
            )
            return Refusal(rule, text, limit, value, units, label)
    return None


def round_refusal(rules: Rescan, number: int) -> Refusal | None:
    """Whether regions may be proposed a `number`-th time for one survey; rule `max_rounds`."""
    if number <= rules.max_rounds:
        return None
    text = f"this would be round {number} of this survey, {rules.max_rounds} are allowed"
    return Refusal("max_rounds", text, rules.max_rounds, number)


def shift_refusal(
    rules: Rescan, shift: Sequence[float], survey_step: Sequence[float], label: str = ""
) -> Refusal | None:
    """Whether a drift (slow, fast; motor units) may be followed; rule `follow_drift` or `max_shift`.

    Parameters
    ----------
    survey_step : (float, float)
        Step of the survey, motor units.
    """
    moved = [
        abs(float(part)) / step if step else math.inf
        for part, step in zip(shift, (abs(float(step)) for step in survey_step), strict=True)
    ]
    largest = max((math.inf if math.isnan(part) else part for part in moved), default=0.0)
    if any(part != 0 for part in shift) and not rules.follow_drift:
        text = f"a drift of {largest:.3g} survey pixels is not followed (follow_drift is off)"
        return Refusal("follow_drift", text, 0.0, largest, "survey pixels", label)
    if not largest <= rules.max_shift:
        text = f"a drift of {largest:.3g} survey pixels, {rules.max_shift:g} are followed at most"
        return Refusal("max_shift", text, rules.max_shift, largest, "survey pixels", label)
    return None


def _shared(one: Range, other: Range) -> float:
    return max(0.0, min(one[1], other[1]) - max(one[0], other[0]))
