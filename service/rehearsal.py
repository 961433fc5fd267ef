"""`inscan replay RUN --devices`: an adaptive plan tried on last month's data, on simulated devices.

The stored run is assembled once; what it measured becomes the sample of simulated devices. The plan runs in a RunEngine
of this process, against a service of its own, under the beamline's own method and limits.
"""

import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from bluesky import RunEngine

from inscan.callbacks import connect
from inscan.callbacks.assembly import open_assembler
from inscan.callbacks.profile import BeamlineProfile
from inscan.callbacks.rehearsal_profile import map_rehearsal_profile, stack_rehearsal_profile
from inscan.callbacks.sources.interface import StoredRun
from inscan.callbacks.updates import Update
from inscan.profiles.stored_camera import stored_stack
from inscan.profiles.stored_microscope import stored_microscope
from inscan.service.demo_service import ServiceFailed
from inscan.service.raw_writer import RawRunWriter
from inscan.service.rehearsal_map import MapRehearsal
from inscan.service.rehearsal_stack import StackRehearsal
from inscan.service.replay_service import OwnService
from inscan.service.show import tiled_of
from inscan.service.spool import Spool

__all__ = ["RehearsalError", "RehearsalOptions", "rehearse"]

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
        Step of the survey in steps of the stored run; of a stack, every so many energies.
    dwell_factor : float
        Dwell of the survey in dwells of the stored run; of a stack, exposure of each frame.
    plan : Path or None
        File of a plan of one's own. None: that of `MapRehearsal` or `StackRehearsal`.
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
        `run` (uid of the stored run), `survey_uids`, `fine_uids`, `outcomes` (of each run), `composites` (outcomes of a
        survey and what was added to it, in the order of the rounds), `notes`; `time_s` of the rehearsal in
        the beamline's seconds beside `full_time_s` of the stored run, `points` (pixels or energies of that run),
        `counted` (how honest the exposures were); `state`, `tiled`.

    Raises
    ------
    RehearsalError
        The run holds neither map nor stack, or the plan's file is none.
    OSError
        The folder or the service cannot be used.
    """
    own_plan = None if options.plan is None else _plan_of(options.plan)
    with tempfile.TemporaryDirectory(prefix="inscan-rehearsal-") as scratch:
        spool = Spool(Path(scratch), budget=_SPOOL_BYTES, min_free=0)
        final, profile = _assembled(stored, options, spool)
        rehearsal, rules, notes, points, full_time = _rebuilt(final, profile, options)
    for note in notes:
        tell(f"note: {note}")
    rehearsal.notes.extend(notes)
    service = _service(options.out, rules)
    try:
        service.launch()
        tell(f"service and Tiled start in {options.out}")
        try:
            service.wait()
        except ServiceFailed as error:
            raise OSError(str(error)) from error
        answer = _run(rehearsal, service, own_plan, options, tell)
    finally:
        service.stop()
    return {
        "run": stored.uid,
        **answer,
        "notes": rehearsal.notes,
        "full_time_s": full_time,
        "points": points,
        "counted": rehearsal.counted(),
        "state": str(service.state_dir),
    }


def _rebuilt(
    final: Update, profile: BeamlineProfile, options: RehearsalOptions
) -> tuple[MapRehearsal | StackRehearsal, BeamlineProfile, list[str], int, float]:
    """Devices, rules and notes; and how many points the stored run has, and the seconds that they took."""
    how: dict[str, Any] = {"seed": options.seed, "time_scale": options.time_scale}
    if final.meta["technique"] == "xrf":
        microscope = stored_microscope(final.arrays, final.meta, **how)
        dwell, points = microscope.detector.field.dwell, int(final.meta["pixels_done"])
        rules, notes = map_rehearsal_profile(profile, final.meta, dwell * points)
        rehearsal = MapRehearsal(
            microscope, dwell, options.factor, options.dwell_factor, options.timeout
        )
        return rehearsal, rules, notes, points, dwell * points
    stack = stored_stack(final.arrays, final.meta, share=options.dwell_factor, **how)
    points = len(stack.energies_ev)
    full_time = points * stack.dwell / options.dwell_factor
    rules, notes = stack_rehearsal_profile(profile, final.meta, full_time)
    rehearsal = StackRehearsal(stack, options.factor, options.timeout)
    return rehearsal, rules, notes, points, full_time


def _run(
    rehearsal: MapRehearsal | StackRehearsal,
    service: OwnService,
    own_plan: Callable[..., Plan] | None,
    options: RehearsalOptions,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    access = tiled_of(service.state_dir)
    assert access.api_key is not None
    engine = RunEngine({}, context_managers=[])
    seconds = _BeamTime()
    raw = RawRunWriter(access.uri, access.api_key, options.out / "raw-log")
    inscan = connect(state_dir=service.state_dir)
    try:
        for callback in (inscan, raw, seconds):
            engine.subscribe(callback)
        plan = rehearsal.plan(inscan, tell) if own_plan is None else own_plan(rehearsal, inscan)
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
        "composites": [
            one for one in getattr(done, "outcomes", []) if one.get("run") not in outcomes
        ],
        "time_s": seconds.total,
        "tiled": access.uri,
    }


class _BeamTime:
    """Adds up the dwell of every point that was measured, and remembers the runs."""

    def __init__(self) -> None:
        self.total = 0.0
        self.uids: list[str] = []
        self._dwell = 0.0
        self._primary = ""

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        if name == "start":
            self.uids.append(doc["uid"])
            self._dwell = float(doc.get("exposure_time") or doc["scan"]["dwell"])
        elif name == "descriptor" and doc["name"] == "primary":
            self._primary = doc["uid"]
        elif name == "event" and doc["descriptor"] == self._primary:
            self.total += self._dwell


def _returning(plan: Plan, results: list[Any]) -> Plan:
    results.append((yield from plan))


def _assembled(
    stored: StoredRun, options: RehearsalOptions, spool: Spool
) -> tuple[Update, BeamlineProfile]:
    """The run's first map or stack, and the profile that understood it."""
    run = spool.run("run")
    # NotUnderstood is a ValueError that says it all.
    assembler = open_assembler(
        stored.start, options.profiles, run.allocate, data_roots=options.data_roots
    )
    updates: list[Update] = []
    for name, doc in stored.documents():
        updates += [u for u in assembler(name, doc) if u.kind != "snapshot"]
    updates += assembler.finish("its documents have no stop")
    finals = [u for u in updates if u.kind == "final"]
    if not finals:
        reasons = "; ".join(str(u.meta.get("reason")) for u in updates)
        raise RehearsalError(f"run {stored.uid[:8]} holds nothing to rehearse on: {reasons}")
    profile = next(one for one in options.profiles if one.name == finals[0].meta["profile"])
    return finals[0], profile


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
