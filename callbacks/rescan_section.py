"""The section `rescan` of a beamline profile: whether, where and how finely places may be measured again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from inscan.callbacks.lines import EmissionLine
from inscan.callbacks.profile_sections import NotNegative, Part, Positive
from inscan.callbacks.units import convert

__all__ = ["EnergyRescan", "Rescan", "SoftLimit"]

Share = Annotated[float, Field(gt=0, le=1)]


class SoftLimit(Part):
    """Range that a motor may be sent to, and what it does beyond the places it is sent to."""

    low: float
    """Lowest position allowed."""
    high: float
    """Highest position allowed."""
    units: str
    """Units of all its values, e.g. ``um``."""
    run_up: NotNegative | None = None
    """How far the motor may go beyond a region on each side: run-up and run-down of a fly scan, overshoot while it
    settles. null: two fine steps."""
    backlash: NotNegative = 0.0
    """How much further it goes before it turns, where it always comes from one side. 0: it does not."""

    @model_validator(mode="after")
    def _ordered(self) -> SoftLimit:
        if not self.low < self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        return self

    def in_units(self, units: str) -> tuple[float, float]:
        """Return (low, high) in other units of length; ValueError when they do not convert."""
        return convert(self.low, self.units, units), convert(self.high, self.units, units)


class EnergyRescan(Part):
    """Which energies are added to a survey of few (technique txm)."""

    low_ev: Positive
    """Lowest energy that may be taken, in eV."""
    high_ev: Positive
    """Highest energy that may be taken, in eV."""
    step_ev: Positive = 1.0
    """Candidates lie on a grid of so many eV."""
    most: Annotated[int, Field(ge=1)] = 24
    """Most energies that are added to a survey."""
    precision_ev: Positive = 0.1
    """Standard error of the edge energy that is asked for, in eV: no more energies are proposed than it takes."""
    frame_overhead: NotNegative = 0.0
    """Time per energy beyond the exposures (monochromator, undulator, flats), in s. 0: none."""
    image_motors: tuple[str, str] | None = None
    """Motors that move the sample along the image's rows and columns, e.g. ``[zps_sy, zps_sx]``; with a minus before
    one that moves the image the other way. With ``txm.positions.motors`` and their soft limits, places of other
    chemistry are told as motor positions that bring them to the middle of the image. null: in pixels only."""

    @model_validator(mode="after")
    def _ordered(self) -> EnergyRescan:
        if not self.low_ev < self.high_ev:
            raise ValueError(f"low_ev {self.low_ev} is not below high_ev {self.high_ev}")
        return self


class Rescan(Part):
    """Whether, where and how finely places may be measured again. Every limit is per survey run, all that follows from
    it together."""

    mode: Literal["off", "suggest", "approve", "auto"] = "suggest"
    """``off``: nothing. ``suggest``: regions are shown. ``approve``: taken once a person agrees.
    ``auto``: taken at once, within the limits."""
    through: Literal["plan", "queue"] = "plan"
    """Who takes what is approved. ``plan``: a plan that waits in the same RunEngine. ``queue``: it becomes an item at
    the front of the queue server's queue (settings key ``queueserver``)."""
    soft_limits: Mapping[str, SoftLimit] = {}
    """Allowed range per motor. A motor that is not named here may not be moved at all."""
    max_area: NotNegative = 0.0
    """Largest area of all regions together, in um^2. 0: no rescan at all."""
    max_time: NotNegative = 0.0
    """Longest time of all regions together, in s. 0: no rescan at all."""
    max_dose: Positive | None = None
    """Largest exposure per area relative to the survey (dwell per area), summed up where regions of one survey lie on
    top of each other. null: not limited."""
    max_exposure: Positive | None = None
    """Longest exposure (dwell of all pixels) of all regions together, in s. null: not limited."""
    max_regions: Annotated[int, Field(ge=0)] = 4
    """Most regions that are proposed for a run. 0: none."""
    max_rounds: Annotated[int, Field(ge=1, le=20)] = 4
    """How often regions are proposed again after others of the same survey were measured (plans that go on until a
    precision is reached). 1: never."""
    step_factor: Share = 0.25
    """Step of the fine map in survey steps. 1: the survey's step."""
    dwell_factor: Positive = 1.0
    """Dwell of the fine map in survey dwells. 1: the survey's dwell. Where ``precision`` is asked for, the longest."""
    margin: NotNegative = 1.0
    """Survey pixels added around a region on each side. 0: none."""
    point_overhead: NotNegative = 0.0
    """Time per pixel beyond the dwell (settling of a step scan), in s. 0: none."""
    row_overhead: NotNegative = 0.0
    """Time per row beyond the dwell (turnaround, settling), in s. 0: none."""
    region_overhead: NotNegative = 0.0
    """Time per region beyond its rows (moving there, staging), in s. 0: none."""
    targets: tuple[Literal["spots", "doubt", "chemistry", "precision"], ...] = ("spots",)
    """What is worth measuring again, the most wanted first. ``spots``: places that stand out from
    their surroundings in the counts. ``doubt``: places where the result is not to be trusted. ``chemistry``: places of
    an energy stack with another edge energy, or other spectra, than the rest. ``precision``: places where the relative
    uncertainty is above ``precision``."""
    elements: tuple[str, ...] = ()
    """Lines whose spots are looked for, e.g. ``[Fe_K, Zn_K]``; those that a run does not have are passed
    over. Empty, or none of them in the run: places unlike the rest of the map in any element."""
    together: tuple[str, ...] = ()
    """Lines whose counts are added up and searched as one besides, e.g. ``[Pb_L, As_K]``. Empty: none."""
    scale: Positive = 1.5
    """Expected radius of a spot in survey pixels."""
    min_score: Positive = 8.0
    """Least log-likelihood ratio of a region against background."""
    precision: Mapping[str, Share] = {}
    """Relative standard uncertainty per line that is asked for where the line is present, e.g. ``{Fe_K: 0.1}``. A
    survey's start document may ask for another (``inscan.precision``). Empty: none; every region gets
    ``dwell_factor``."""
    least_worth: Annotated[float, Field(ge=0, le=1)] = 0.1
    """A region is dropped when it promises less information per second and dose than this share of what the best
    open region promises, of this and other surveys. 0: never."""
    context: tuple[str, ...] = (
        "sample",
        "scan.energy",
        "scan.theta",
        "theta",
        "sample_z",
        "coarse",
        "detector",
    )
    """What must not change between a survey and its rescan: dotted paths in start documents, and keys of the stream
    ``baseline``. Those that a run does not have are passed over."""
    tolerance: Mapping[str, NotNegative] = {}
    """How far a number of ``context`` may differ. Those not named: a millionth of it."""
    follow_drift: bool = True
    """Whether each fine map is registered to the survey before the next region is measured; regions follow a drift."""
    max_shift: Positive = 2.0
    """Largest drift that is followed, in survey pixels. Beyond it, or where a region cannot be found again, the rest of
    the proposal is given up."""
    retries: Annotated[int, Field(ge=0, le=5)] = 0
    """How often a region whose fine scan failed may be taken again. 0: never."""
    expires: Positive = 4 * 3600.0
    """A proposal that nobody has taken for so long, in s, is closed: too much may have happened that no document
    tells."""
    plan: str = "inscan_rescan"
    """Name of the plan that becomes the queue item (``through: queue``); it gets the proposal's id."""
    energies: EnergyRescan | None = None
    """Which energies may be added to a survey of few (technique txm). null: none."""

    @field_validator("mode", mode="before")
    @classmethod
    def _off(cls, mode: object) -> object:
        # YAML takes a bare off for false; who writes it means what it says.
        return "off" if mode is False else mode

    @field_validator("elements", "together")
    @classmethod
    def _known(cls, elements: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(EmissionLine.parse(name).name for name in elements)

    @field_validator("precision")
    @classmethod
    def _known_lines(cls, precision: Mapping[str, float]) -> Mapping[str, float]:
        return {EmissionLine.parse(name).name: value for name, value in precision.items()}
