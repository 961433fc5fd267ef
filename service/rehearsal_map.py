"""A rehearsal on a fluorescence map: survey coarsely, wait, measure again what is proposed."""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

from inscan.callbacks import Connection
from inscan.callbacks.plans import coarse_to_fine
from inscan.profiles.stored_microscope import StoredMicroscope
from inscan.profiles.xrf_plans import step_raster

__all__ = ["MapRehearsal"]

Plan = Generator[Any, Any, Any]


@dataclass
class MapRehearsal:
    """What a plan finds in its file's `plan(beamline, inscan)`, beside the connection.

    Attributes
    ----------
    microscope : StoredMicroscope
        Motors, detector, ranges, step of the stored run.
    dwell : float
        Of the stored run, s.
    factor : int
        Step of the survey in steps of the stored run.
    dwell_factor : float
        Dwell of the survey in dwells of the stored run.
    timeout : float
        Seconds to wait for an outcome.
    """

    microscope: StoredMicroscope
    dwell: float
    factor: int = 4
    dwell_factor: float = 1.0
    timeout: float = 900.0
    notes: list[str] = field(default_factory=list)

    def plan(self, inscan: Connection, tell: Callable[[str], None]) -> Any:
        """Survey, wait, measure the proposed regions as finely as the run was."""
        return coarse_to_fine(self.survey(), inscan, self.fine, timeout=self.timeout, report=tell)

    def counted(self) -> dict[str, int]:
        """What became of the exposures, see `inscan.profiles.stored_field.StoredField`."""
        field = self.microscope.detector.field
        return {
            "exposures": field.exposures,
            "masked": field.masked,
            "reused": field.reused,
            "extrapolated": field.extrapolated,
        }

    def raster(
        self,
        slow_range: tuple[float, float],
        fast_range: tuple[float, float],
        step: tuple[float, float],
        dwell: float,
        md: Mapping[str, Any],
    ) -> Any:
        """Map an area, given by the outer edges of its pixels, which are about ``step`` (slow, fast)."""
        microscope, axes = self.microscope, []
        for motor, field_range, (low, high), width in zip(
            (microscope.slow_motor, microscope.fast_motor),
            (microscope.slow_range, microscope.fast_range),
            (slow_range, fast_range),
            step,
            strict=True,
        ):
            low, high = max(low, field_range[0]), min(high, field_range[1])
            count = max(1, round((high - low) / width))
            half = (high - low) / count / 2
            axes += [motor, low + half, high - half, count]
        meta = {**microscope.metadata, **md}
        # Duck-typed stand-ins of the simulated microscope's detector and scaler.
        detector: Any = microscope.detector
        scaler: Any = _NoScaler()
        return step_raster(detector, scaler, *axes, dwell=dwell, snake=True, md=meta)

    def survey(self) -> Any:
        """Map the whole field coarsely."""
        factor = self.factor
        step = (factor * self.microscope.step[0], factor * self.microscope.step[1])
        dwell = self.dwell_factor * self.dwell
        ranges = (self.microscope.slow_range, self.microscope.fast_range)
        return self.raster(*ranges, step, dwell, {"purpose": "survey"})

    def fine(self, region: Mapping[str, Any], proposal: Mapping[str, Any]) -> Any:
        """Map a proposed region as finely and as long as the stored run did, but not finer than proposed."""
        asked = {**proposal, **region}
        wanted = asked.get("step") or self.microscope.step
        step = (max(wanted[0], self.microscope.step[0]), max(wanted[1], self.microscope.step[1]))
        dwell = min(float(asked.get("dwell") or self.dwell), self.dwell)
        return self.raster(region["slow_range"], region["fast_range"], step, dwell, {})


class _NoScaler:
    """The stored detector reads the beam monitor itself; plans want a scaler beside it."""

    parent = None
    name = "sclr"

    def read(self) -> dict[str, Any]:
        return {}

    def describe(self) -> dict[str, Any]:
        return {}

    def read_configuration(self) -> dict[str, Any]:
        return {}

    def describe_configuration(self) -> dict[str, Any]:
        return {}
