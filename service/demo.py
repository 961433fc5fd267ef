"""`inscan demo`: the whole loop on a simulated beamline, with real processes, and a report at the end.

What happens on the way to a rescan is what happens at a beamline; the truth is opened only when everything is over.
"""

import concurrent.futures
import os
import sys
import threading
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from rich.console import Console

from inscan.callbacks import Connection
from inscan.callbacks.plans import CoarseToFine, coarse_to_fine
from inscan.service.demo_beamline import RowWatch, data_folder, load_startup, run_plan
from inscan.service.demo_report import Report, print_report, write_html
from inscan.service.demo_results import RunResult, read_results
from inscan.service.demo_service import DemoService, ServiceFailed
from inscan.service.demo_watch import Watch
from inscan.service.raw_writer import RawRunWriter

_OUTCOME_S = 180.0
_RAW_S = 60.0
_TIME_SCALE = 0.25
"""Real seconds per second of dwell: slow enough to watch, fast enough for a demo."""


@dataclass(frozen=True)
class DemoOptions:
    """What `inscan demo` was asked for.

    Attributes
    ----------
    profile : str
        `sim_xrf` or `sim_txm`.
    sample : str or None
        Built-in sample, chemistry, or file of measured maps; None for the profile's own.
    out : Path
        New or empty folder for everything that is written.
    seed : int
    keep : bool
        Leave Tiled running at the end, until Ctrl-C.
    quiet : bool
        Everything for people goes to stderr; stdout is left to the caller.
    """

    profile: str
    sample: str | None
    out: Path
    seed: int
    keep: bool
    quiet: bool


@dataclass
class Course:
    """How a demo went, as far as it went."""

    uids: list[str] = field(default_factory=list)
    fine_uids: list[str] = field(default_factory=list)
    outcomes: dict[str, dict[str, Any]] = field(default_factory=dict)
    regions: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    interrupted: bool = False
    tiled: str = ""


def run(options: DemoOptions) -> dict[str, Any]:
    """Run the demo.

    Returns
    -------
    dict
        `runs` (uid, result_uid, purpose, verdict, ...), `figures` (against the truth), `tiled`, `report`, `problems`
        (empty when all went well) and `interrupted`.

    Raises
    ------
    OSError, ValueError
        When the folder cannot be used or the sample is none; before anything is started.
    """
    console = Console(stderr=options.quiet)
    _prepare(options.out)
    course = Course()
    with ExitStack() as stack:
        try:
            results = _scan(options, course, console, stack)
        except KeyboardInterrupt:
            course.interrupted = True
            results = []
        except ServiceFailed as error:
            course.problems.append(str(error))
            results = []
        if course.interrupted:
            course.problems.append("stopped by Ctrl-C: what had not been measured is missing")
        answer = _report(options, course, results, console)
        if options.keep and not course.interrupted and course.tiled:
            console.print("Tiled stays up until Ctrl-C", markup=False)
            try:
                threading.Event().wait()
            except KeyboardInterrupt:
                pass
    return answer


def _scan(
    options: DemoOptions, course: Course, console: Console, stack: ExitStack
) -> list[RunResult]:
    service = DemoService(options.out, options.profile, data_folder(options.out))
    stack.callback(service.stop)
    with console.status("starting Tiled, the service and a worker"):
        # The service needs seconds to come up; the beamline loads meanwhile, and fails first if it must.
        service.launch()
        beamline = _load_beamline(options)
        addresses = service.wait()
    course.tiled = addresses["tiled"]
    key = service.tiled_key()
    run_engine, connection = beamline["RE"], beamline["inscan"]
    assert isinstance(connection, Connection)
    stack.callback(connection.close)
    raw = RawRunWriter(course.tiled, SecretStr(key), options.out / "raw-documents")
    stack.callback(raw.close)
    run_engine.subscribe(raw)
    with Watch(console) as watch:
        watch.follow(connection)
        run_engine.subscribe(RowWatch(watch.step))

        def tell(text: str) -> None:
            course.notes.append(text)
            watch.say(text)

        run_engine.subscribe(lambda _, doc: course.uids.append(doc["uid"]), "start")
        if options.profile == "sim_xrf":
            done: list[CoarseToFine] = []

            def plan() -> Any:
                found = yield from coarse_to_fine(
                    beamline["survey"](),
                    connection,
                    beamline["fine"],
                    timeout=_OUTCOME_S,
                    report=tell,
                )
                done.append(found)

            finished = run_plan(run_engine, plan())
            if done:
                course.fine_uids = done[0].fine_uids
                course.regions = [
                    region
                    for outcome in done[0].outcomes
                    for proposal in outcome.get("proposals") or ()
                    for region in proposal.get("regions") or ()
                ]
        else:
            finished = run_plan(run_engine, beamline["xanes"]())
        if not finished:
            course.interrupted = True
            tell("Ctrl-C: the running scan was aborted and its run closed")
        _await_outcomes(course, connection, watch, service)
    for uid in course.uids:
        if not raw.wait(uid, _RAW_S):
            why = raw.problems.get(uid, f"not whole after {_RAW_S:g} s")
            course.problems.append(f"raw run {uid} is not in Tiled: {why}")
    pairs = [
        (uid, outcome["result_uid"])
        for uid, outcome in course.outcomes.items()
        if outcome.get("result_uid")
    ]
    return read_results(course.tiled, key, pairs)


def _load_beamline(options: DemoOptions) -> dict[str, Any]:
    environment = {
        "INSCAN_STATE": str(options.out / "state"),
        "INSCAN_SIM_DATA": str(data_folder(options.out)),
        "INSCAN_SIM_SEED": str(options.seed),
        "INSCAN_SIM_TIME_SCALE": str(_TIME_SCALE),
    }
    if options.sample is not None:
        environment["INSCAN_SIM_SAMPLE"] = options.sample
    return load_startup(options.profile, environment)


def _await_outcomes(
    course: Course, connection: Connection, watch: Watch, service: DemoService
) -> None:
    """Wait for what became of every run; what does not come is a problem, not an error."""
    for uid in course.uids:
        try:
            outcome = connection.future(uid).result(timeout=_OUTCOME_S)
        except concurrent.futures.TimeoutError:
            course.problems.append(f"run {uid}: no outcome within {_OUTCOME_S:g} s")
            if not service.alive:
                course.problems.append(f"the service is gone\n{service.log_tail()}")
                return
            continue
        course.outcomes[uid] = outcome
        if outcome.get("status") != "done":
            course.problems.append(f"run {uid}: {outcome.get('status')}: {outcome.get('reason')}")
        else:
            watch.say(f"result of {uid[:8]} is in Tiled, verdict {outcome.get('verdict')}")


def _prepare(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise FileExistsError(f"--out {out} is not a folder: give a new or empty one") from error
    except PermissionError as error:
        raise PermissionError(f"--out {out} cannot be made: {error.strerror}") from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise PermissionError(f"--out {out}: no permission to write there; give another folder")
    if any(out.iterdir()):
        raise FileExistsError(
            f"--out {out} is not empty: give a new folder, or remove what is in it"
        )


def _report(
    options: DemoOptions, course: Course, results: list[RunResult], console: Console
) -> dict[str, Any]:
    # Only here, after the last scan, may anything know the truth.
    from inscan.service.demo_truth import evaluate

    picture = options.out / "report.png"
    blocks, figures = evaluate(
        options.profile, options.sample, options.seed, results, course.regions, picture
    )
    report = Report(
        title=f"inscan demo: {options.profile}",
        blocks=blocks,
        notes=course.notes,
        problems=course.problems,
        opening=_opening(options, course, results),
        picture=picture.name if picture.exists() else None,
        links=[
            (
                "Tiled",
                f"{course.tiled} (its key is in {options.out / 'state' / 'tiled' / 'api_key'})",
            ),
            (
                "start it again",
                f"{sys.executable} -m inscan.service.cli serve {options.out / 'service.yaml'}",
            ),
            ("report", str(options.out / "report.html")),
        ],
    )
    write_html(report, options.out / "report.html")
    print_report(report, console)
    return {
        "runs": [_run_entry(result) for result in results],
        "figures": figures,
        "tiled": course.tiled,
        "state": str(options.out / "state"),
        "report": str(options.out / "report.html"),
        "notes": course.notes,
        "problems": course.problems,
        "interrupted": course.interrupted,
    }


def _run_entry(result: RunResult) -> dict[str, Any]:
    return {
        "uid": result.run_uid,
        "scan_id": result.raw_start.get("scan_id"),
        "purpose": result.purpose,
        "parent_uid": result.raw_start.get("parent_uid"),
        "region": result.raw_start.get("region"),
        "proposal": result.raw_start.get("proposal"),
        "result_uid": result.result_uid,
        "verdict": result.verdict,
        "reasons": result.reasons,
    }


def _opening(options: DemoOptions, course: Course, results: list[RunResult]) -> str:
    if not results:
        return ""
    key = options.out / "state" / "tiled" / "api_key"
    return (
        "from tiled.client import from_uri\n"
        f'client = from_uri("{course.tiled}", api_key=open("{key}").read().strip())\n'
        f'client["processed"]["{results[0].result_uid}"]["primary"]["values"].read()'
    )
