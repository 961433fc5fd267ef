"""`inscan replay RUN --devices`: an adaptive plan tried on last month's data, on simulated devices.

The stored run is assembled once; what it measured becomes the sample of simulated devices. The plan runs in a RunEngine
of this process, against a service of its own, under the beamline's own method and limits.
"""

import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from bluesky import RunEngine

from inscan.callbacks import connect
from inscan.callbacks.assembly import open_assembler
from inscan.callbacks.plans import coarse_to_fine
from inscan.callbacks.profile import BeamlineProfile
from inscan.callbacks.rehearsal_profile import rehearsal_profile
from inscan.callbacks.sources.interface import StoredRun
from inscan.callbacks.updates import Update
from inscan.profiles.stored_microscope import StoredMicroscope, stored_microscope
from inscan.profiles.xrf_plans import step_raster
from inscan.service.demo_service import ServiceFailed
from inscan.service.raw_writer import RawRunWriter
from inscan.service.replay_service import OwnService
from inscan.service.show import tiled_of
from inscan.service.spool import Spool

__all__ = ["Rehearsal", "RehearsalError", "RehearsalOptions", "rehearse"]

_SPOOL_BYTES = 1 << 42
_RAW_S = 60.0
Plan = Generator[Any, Any, Any]


class RehearsalError(ValueError):
    """A run on which nothing can be rehearsed, or a plan file that is none; the message says why."""


@dataclass(frozen=True)
class RehearsalOptions:
    """What was asked for.

    Attributes
    ----------
    profiles : tuple of BeamlineProfile
        The first that matches the stored run understands it.
    out : Path
        Folder of the service, its Tiled and its log.
    data_roots : tuple of Path
    factor : int
        Step of the survey in steps of the stored run.
    dwell_factor : float
        Dwell of the survey in dwells of the stored run.
    plan : Path or None
        File of a plan of one's own. None: survey, wait, measure the proposed regions as finely as the run was.
    time_scale : float
        Real seconds per simulated second; 0: as fast as it goes.
    seed : int
    timeout : float
        Seconds to wait for each result.
    """

    profiles: tuple[BeamlineProfile, ...]
    out: Path
    data_roots: tuple[Path, ...] = ()
    factor: int = 4
    dwell_factor: float = 1.0
    plan: Path | None = None
    time_scale: float = 0.0
    seed: int = 0
    timeout: float = 900.0


@dataclass
class Rehearsal:
    """What a plan finds in its file's `plan(beamline, inscan)`, beside the connection.

    Attributes
    ----------
    microscope : StoredMicroscope
        Motors, detector, ranges, step of the stored run.
    dwell : float
        Of the stored run, s.
    options : RehearsalOptions
    """

    microscope: StoredMicroscope
    dwell: float
    options: RehearsalOptions
    notes: list[str] = field(default_factory=list)

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
        factor = self.options.factor
        step = (factor * self.microscope.step[0], factor * self.microscope.step[1])
        dwell = self.options.dwell_factor * self.dwell
        ranges = (self.microscope.slow_range, self.microscope.fast_range)
        return self.raster(*ranges, step, dwell, {"purpose": "survey"})

    def fine(self, region: Mapping[str, Any], proposal: Mapping[str, Any]) -> Any:
        """Map a proposed region as finely and as long as the stored run did, but not finer than proposed."""
        wanted = proposal.get("step") or self.microscope.step
        step = (max(wanted[0], self.microscope.step[0]), max(wanted[1], self.microscope.step[1]))
        dwell = min(float(proposal.get("dwell") or self.dwell), self.dwell)
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


def rehearse(
    stored: StoredRun, options: RehearsalOptions, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Rebuild the devices of a stored run and run a plan on them.

    Parameters
    ----------
    stored : StoredRun
    options : RehearsalOptions
    tell : callable
        Gets one sentence at each step.

    Returns
    -------
    dict
        `run` (uid of the stored run), `survey_uids`, `fine_uids`, `outcomes`, `notes`; `time_s` of the rehearsal in
        the beamline's seconds beside `full_time_s` of the stored run, `pixels`, and how many `exposures` were
        `masked`, `reused` and `extrapolated` (`inscan.profiles.stored_field.StoredField`); `state`, `tiled`.

    Raises
    ------
    RehearsalError
        The run is not understood, holds no map, or the plan's file is none.
    OSError
        The folder or the service cannot be used.
    """
    own_plan = None if options.plan is None else _plan_of(options.plan)
    with tempfile.TemporaryDirectory(prefix="inscan-rehearsal-") as scratch:
        spool = Spool(Path(scratch), budget=_SPOOL_BYTES, min_free=0)
        final, profile = _assembled(stored, options, spool)
        microscope = stored_microscope(
            final.arrays, final.meta, seed=options.seed, time_scale=options.time_scale
        )
    pixels = int(final.meta["pixels_done"])
    full_time = microscope.detector.field.dwell * pixels
    rules, notes = rehearsal_profile(profile, final.meta, full_time)
    for note in notes:
        tell(f"note: {note}")
    rehearsal = Rehearsal(microscope, microscope.detector.field.dwell, options, notes)
    service = _service(options.out, rules)
    try:
        service.launch()
        tell(f"service and Tiled start in {options.out}")
        try:
            service.wait()
        except ServiceFailed as error:
            raise OSError(str(error)) from error
        answer = _run(rehearsal, service, own_plan, tell)
    finally:
        service.stop()
    exposed = microscope.detector.field
    return {
        "run": stored.uid,
        **answer,
        "notes": rehearsal.notes,
        "full_time_s": full_time,
        "pixels": pixels,
        "exposures": exposed.exposures,
        "masked": exposed.masked,
        "reused": exposed.reused,
        "extrapolated": exposed.extrapolated,
        "state": str(service.state_dir),
    }


def _run(
    rehearsal: Rehearsal,
    service: OwnService,
    own_plan: Callable[..., Plan] | None,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    access = tiled_of(service.state_dir)
    assert access.api_key is not None
    options = rehearsal.options
    engine = RunEngine({}, context_managers=[])
    seconds = _BeamTime(rehearsal)
    raw = RawRunWriter(access.uri, access.api_key, options.out / "raw-log")
    inscan = connect(state_dir=service.state_dir)
    try:
        for callback in (inscan, raw, seconds):
            engine.subscribe(callback)
        if own_plan is not None:
            plan = own_plan(rehearsal, inscan)
        else:
            plan = coarse_to_fine(
                rehearsal.survey(), inscan, rehearsal.fine, timeout=options.timeout, report=tell
            )
        results: list[Any] = []
        engine(_returning(plan, results))
        done = results[0] if results else None
        began, outcomes = time.monotonic(), {}
        for uid in seconds.uids:
            left = max(1.0, options.timeout - (time.monotonic() - began))
            outcomes[uid] = inscan.future(uid).result(timeout=left)
            raw.wait(uid, _RAW_S)
    finally:
        inscan.close()
        raw.close()
    rehearsal.notes.extend(getattr(done, "notes", []))
    return {
        "survey_uids": list(getattr(done, "survey_uids", [])),
        "fine_uids": list(getattr(done, "fine_uids", [])),
        "outcomes": outcomes,
        "time_s": seconds.total,
        "tiled": access.uri,
    }


class _BeamTime:
    """Adds up the dwell of every point that was measured, and remembers the runs."""

    def __init__(self, rehearsal: Rehearsal) -> None:
        self.total = 0.0
        self.uids: list[str] = []
        self._dwell: float = rehearsal.dwell

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        if name == "start":
            self.uids.append(doc["uid"])
            self._dwell = float(doc.get("scan", {}).get("dwell", self._dwell))
        elif name == "event":
            self.total += self._dwell


def _returning(plan: Plan, results: list[Any]) -> Plan:
    results.append((yield from plan))


def _assembled(
    stored: StoredRun, options: RehearsalOptions, spool: Spool
) -> tuple[Update, BeamlineProfile]:
    """The run's map, in memory, and the profile that understood it."""
    run = spool.run("run")
    # NotUnderstood is a ValueError that says it all.
    assembler = open_assembler(
        stored.start, options.profiles, run.allocate, data_roots=options.data_roots
    )
    updates: list[Update] = []
    for name, doc in stored.documents():
        updates += [u for u in assembler(name, doc) if u.kind != "snapshot"]
    updates += assembler.finish("its documents have no stop")
    maps = [u for u in updates if u.kind == "final" and u.meta["technique"] == "xrf"]
    if not maps:
        reasons = "; ".join(str(u.meta.get("reason") or u.meta["technique"]) for u in updates)
        raise RehearsalError(
            f"run {stored.uid[:8]} holds no fluorescence map to rehearse on ({reasons})"
        )
    profile = next(one for one in options.profiles if one.name == maps[0].meta["profile"])
    return maps[0], profile


def _service(out: Path, rules: BeamlineProfile) -> OwnService:
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty: give another folder")
    path = out / "rehearsal.yaml"
    content = rules.model_dump(mode="json", exclude_none=True, exclude={"folder"})
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return OwnService(out, {"profiles": [str(path)], "data_roots": []})


def _plan_of(path: Path) -> Any:
    """`plan(beamline, inscan)` of a file, executed as a startup file is."""
    namespace: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), namespace)
    found: Any = namespace.get("plan")
    if not callable(found):
        raise RehearsalError(
            f"{path}: no function plan(beamline, inscan); it gets the rebuilt devices and the connection, and yields"
            " messages"
        )
    return found
