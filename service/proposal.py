"""What a rescan proposal is made of: regions with their scans, costs, and refusals that name their rule."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from inscan.callbacks.geometry import RegionOfInterest

Mode = Literal["off", "suggest", "approve", "auto"]


@dataclass(frozen=True)
class Refusal:
    """Why a region, or a whole rescan, is not proposed.

    Attributes
    ----------
    rule : str
        Key of the profile's `rescan` section, or `verdict`, `regions`, `overlap`, `geometry`, `units`, `dwell`,
        `state_changed`, `expired`, `replay`.
    text : str
        The sentence for people.
    limit, value : float or None
        What is allowed and what would have been, in `units`.
    region : str
        Label of the region, empty for the whole proposal.
    """

    rule: str
    text: str
    limit: float | None = None
    value: float | None = None
    units: str = ""
    region: str = ""


@dataclass(frozen=True)
class FineRegion:
    """A region with the scan that would measure it.

    Attributes
    ----------
    region : RegionOfInterest
    shape : (int, int)
        Rows and columns.
    extents : ((float, float), (float, float))
        Centres of the first and last pixel, slow axis first, in motor units.
    step : (float, float)
        Slow and fast step, in motor units.
    dwell : float
        Seconds per pixel.
    time_s : float
        Predicted duration.
    exposure_s : float
        Dwell of all pixels.
    area_um2 : float
    dose : float
        Exposure per area relative to the survey's.
    target : str
        What was looked for: a word of the profile's `rescan.targets`, or `like` where a person chose.
    information : float
        Expected gain, in nats (`inscan.service.rescan_worth`).
    worth : float
        Expected information per second, lowered by the dose: what regions are ranked by.
    predicted : mapping
        What the fine map is expected to give, to be compared afterwards.
    """

    region: RegionOfInterest
    shape: tuple[int, int]
    extents: tuple[tuple[float, float], tuple[float, float]]
    step: tuple[float, float]
    dwell: float
    time_s: float
    exposure_s: float
    area_um2: float
    dose: float
    target: str = "spots"
    information: float = 0.0
    worth: float = 0.0
    predicted: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The region's own mapping, and the scan beside it."""
        return {
            **self.region.to_dict(),
            "shape": list(self.shape),
            "extents": [list(axis) for axis in self.extents],
            "step": list(self.step),
            "dwell": self.dwell,
            "time_s": self.time_s,
            "exposure_s": self.exposure_s,
            "area_um2": self.area_um2,
            "dose": self.dose,
            "target": self.target,
            "information": self.information,
            "worth": self.worth,
            "predicted": dict(self.predicted),
        }


@dataclass(frozen=True)
class RescanProposal:
    """Regions, how they would be measured, what that costs, and whether it may be done.

    Attributes
    ----------
    state : str
        `suggested`, `approved` (mode auto) or `refused`; see `inscan.service.rescan_states` for what follows.
    step : (float, float)
        Slow and fast step, in motor units.
    dwell : float
        Seconds per pixel.
    dose : float
        Exposure per area relative to the survey's, the largest of its regions.
    dropped : tuple of Refusal
        Regions that were found and are not proposed.
    context : mapping
        State of the beamline in the survey's start document.
    kind : str
        `map`: its regions are measured finely. `energies`: these energies are added to a stack.
    survey_uid : str
        The survey that all of it began with; empty: `run_uid`. A later round's `run_uid` is a composite's.
    round : int
        1 for what the survey itself gave rise to.
    energies_ev : tuple of float
        Energies to add, eV.
    exposure_factor : float
        Exposure of a frame at these energies, in the survey's.
    follow_drift : bool
        Whether each fine map is found in the survey again before the next region is measured.
    max_shift : (float, float)
        Largest drift that is followed, slow and fast, in motor units.
    margin : (float, float)
        Added around each region on each side, in motor units: a drift beyond it misses the region.
    retries : int
        How often a region may be taken again.
    survey_step : (float, float)
        Step of the survey, slow and fast, in motor units: drifts are counted in it.
    energies_time_s, energies_exposure_s, energies_area_um2 : float
        What the added energies cost.
    """

    id: str
    run_uid: str
    result_uid: str
    mode: Mode
    state: str
    reason: str
    regions: tuple[FineRegion, ...] = ()
    dropped: tuple[Refusal, ...] = ()
    motors: tuple[str, str] = ("", "")
    units: tuple[str, str] = ("", "")
    step: tuple[float, float] = (0.0, 0.0)
    dwell: float = 0.0
    dose: float = 0.0
    context: Mapping[str, Any] = field(default_factory=dict)
    kind: Literal["map", "energies"] = "map"
    survey_uid: str = ""
    round: int = 1
    energies_ev: tuple[float, ...] = ()
    exposure_factor: float = 1.0
    follow_drift: bool = False
    max_shift: tuple[float, float] = (0.0, 0.0)
    margin: tuple[float, float] = (0.0, 0.0)
    retries: int = 0
    survey_step: tuple[float, float] = (0.0, 0.0)
    energies_time_s: float = 0.0
    energies_exposure_s: float = 0.0
    energies_area_um2: float = 0.0

    @property
    def time_s(self) -> float:
        """Predicted duration of all regions and energies, in seconds."""
        return sum(region.time_s for region in self.regions) + self.energies_time_s

    @property
    def exposure_s(self) -> float:
        """Dwell of all pixels and frames, in seconds."""
        return sum(region.exposure_s for region in self.regions) + self.energies_exposure_s

    @property
    def area_um2(self) -> float:
        """Area of all regions, or of the field, in um^2."""
        return sum(region.area_um2 for region in self.regions) + self.energies_area_um2

    def to_dict(self) -> dict[str, Any]:
        """What the journal, the command line and plans get: JSON-able, `who` is inscan."""
        return {
            "id": self.id,
            "run_uid": self.run_uid,
            "result_uid": self.result_uid,
            "mode": self.mode,
            "state": self.state,
            "who": "inscan",
            "reason": self.reason,
            "regions": [region.to_dict() for region in self.regions],
            "dropped": [asdict(refusal) for refusal in self.dropped],
            "motors": list(self.motors),
            "units": list(self.units),
            "step": list(self.step),
            "dwell": self.dwell,
            "dose": self.dose,
            "time_s": self.time_s,
            "exposure_s": self.exposure_s,
            "area_um2": self.area_um2,
            "context": dict(self.context),
            "kind": self.kind,
            "survey_uid": self.survey_uid or self.run_uid,
            "round": self.round,
            "energies_ev": list(self.energies_ev),
            "exposure_factor": self.exposure_factor,
            "survey_step": list(self.survey_step),
            "follow_drift": self.follow_drift,
            "max_shift": list(self.max_shift),
            "margin": list(self.margin),
            "retries": self.retries,
        }
