"""`inscan demo`: the whole loop on a simulated beamline, with real processes, and a report at the end.

What happens on the way to a rescan is what happens at a beamline; the truth is opened only when everything is over.
"""

import concurrent.futures
import os
import sys
import threading
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from rich.console import Console

from inscan.callbacks import Connection
from inscan.callbacks.composite_uid import composite_uid
from inscan.callbacks.plans import coarse_to_fine
from inscan.service.demo_beamline import RowWatch, data_folder, load_startup, run_plan
from inscan.service.demo_composite import composite_answer, composite_block
from inscan.service.demo_course import Course
from inscan.service.demo_interrupt import Interrupts
from inscan.service.demo_report import Report, print_report, write_html
from inscan.service.demo_results import RunResult, read_results
from inscan.service.demo_service import DemoService, ServiceFailed
from inscan.service.demo_watch import Watch
from inscan.service.raw_writer import RawRunWriter

_OUTCOME_S = 180.0
_RAW_S = 60.0
_HURRY_S = 30.0
"""After Ctrl-C: what an aborted run takes to be processed, and no more."""
_TIME_SCALE = {"sim_xrf": 0.25, "sim_txm": 1.0}
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


@dataclass(frozen=True)
class _Session:
    """What runs during a demo besides the demo itself."""

    service: DemoService
    beamline: dict[str, Any]
    raw: RawRunWriter
    tiled_key: str

    @property
    def connection(self) -> Connection:
        return self.beamline["inscan"]


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
        When the folder cannot be used, or a sample or parameter is wrong; before anything is started.
    """
    console = Console(stderr=options.quiet)
    if options.sample is None and os.environ.get("INSCAN_SIM_SAMPLE"):
        options = replace(options, sample=os.environ["INSCAN_SIM_SAMPLE"])
    course, stack = Course(), ExitStack()
    made = _prepare(options.out)
    with Interrupts() as interrupts:
        try:
            session = _measure(options, made, course, console, stack, interrupts)
            results = [] if session is None else _collect(course, session, console, interrupts)
            with interrupts.held():
                answer = _report(options, course, results, console, interrupts.asked)
            if options.keep and not interrupts.asked and course.tiled:
                console.print("Tiled stays up until Ctrl-C", markup=False)
                with suppress(KeyboardInterrupt):
                    threading.Event().wait()
        finally:
            with interrupts.held():
                stack.close()
    return answer


def _measure(
    options: DemoOptions,
    made: list[Path],
    course: Course,
    console: Console,
    stack: ExitStack,
    interrupts: Interrupts,
) -> _Session | None:
    """Start everything and take the scans; None when it did not come to that."""
    session = None
    try:
        session = _open(options, made, course, console, stack)
        run_engine, beamline = session.beamline["RE"], session.beamline
        with Watch(console) as watch:
            watch.follow(session.connection)
            run_engine.subscribe(RowWatch(watch.step))

            def tell(text: str) -> None:
                course.notes.append(text)
                watch.say(text)

            if options.profile == "sim_xrf":
                plan = coarse_to_fine(
                    beamline["survey"](),
                    session.connection,
                    beamline["fine"],
                    timeout=_OUTCOME_S,
                    report=tell,
                )
            else:
                plan = beamline["xanes"]()
            try:
                run_plan(run_engine, plan, interrupts)
            except Exception as error:  # noqa: BLE001 - plans and devices raise anything; what is measured stays
                # A device that is stopped in the middle of a row says so by failing: that is no news after Ctrl-C.
                if not interrupts.asked:
                    course.problems.append(f"the scan failed: {type(error).__name__}: {error}")
            if interrupts.asked and course.exits:
                tell("Ctrl-C: the running scan was aborted and its run closed")
    except KeyboardInterrupt:
        pass  # interrupts.asked says so
    except ServiceFailed as error:
        course.problems.append(str(error))
    return session


def _open(
    options: DemoOptions,
    made: list[Path],
    course: Course,
    console: Console,
    stack: ExitStack,
) -> _Session:
    service = DemoService(options.out, options.profile, data_folder(options.out))
    launched = False

    def start_service() -> None:
        nonlocal launched
        launched = True
        stack.callback(service.stop)
        service.launch()
        course.tiled = service.wait()["tiled"]

    with console.status("starting Tiled, the service and a worker"):
        # What can be wrong with the input comes to light before the service is started; and the connection is made
        # when there is a service, or it would look for another one.
        try:
            beamline = load_startup(options.profile, _environment(options), start_service)
        except (OSError, ValueError):
            if not launched:
                _leave_as_found(options.out, made)
            raise
    connection = beamline["inscan"]
    assert isinstance(connection, Connection)
    stack.callback(connection.close)
    key = service.tiled_key()
    raw = RawRunWriter(course.tiled, SecretStr(key), options.out / "raw-documents")
    stack.callback(raw.close)
    beamline["RE"].subscribe(raw)
    beamline["RE"].subscribe(course.record)
    return _Session(service, beamline, raw, key)


def _environment(options: DemoOptions) -> dict[str, str]:
    """Parameters of the beamline: the demo's own; what else there is of `INSCAN_SIM_*` is the user's."""
    return {
        "INSCAN_STATE": str(options.out / "state"),
        "INSCAN_SERVICE": "",  # the one of the state directory
        "INSCAN_SIM_DATA": str(data_folder(options.out)),
        "INSCAN_SIM_SEED": str(options.seed),
        "INSCAN_SIM_TIME_SCALE": os.environ.get("INSCAN_SIM_TIME_SCALE")
        or str(_TIME_SCALE[options.profile]),
        "INSCAN_SIM_SAMPLE": options.sample or "",
    }


def _collect(
    course: Course, session: _Session, console: Console, interrupts: Interrupts
) -> list[RunResult]:
    """Wait for what became of every run, and read it; what does not come is a problem, not an error."""
    while True:
        problems: list[str] = []
        try:
            results = _results(course, session, console, problems, hurry=interrupts.asked)
        except KeyboardInterrupt:
            continue  # once more with less patience; a second signal raises nothing
        break
    course.problems += problems
    return results


def _results(
    course: Course, session: _Session, console: Console, problems: list[str], *, hurry: bool
) -> list[RunResult]:
    for uid in course.starts:
        timeout = _HURRY_S if hurry else _OUTCOME_S
        try:
            outcome = session.connection.future(uid).result(timeout=timeout)
        except concurrent.futures.TimeoutError:
            problems.append(f"{course.name(uid)}: no outcome within {timeout:g} s")
            if not session.service.alive:
                problems.append(f"the service is gone\n{session.service.log_tail()}")
                return []
            continue
        if outcome.get("status") != "done":
            problems.append(f"{course.name(uid)}: {outcome.get('status')}: {outcome.get('reason')}")
        elif uid not in course.outcomes:
            verdict = outcome.get("verdict")
            console.print(
                f"result of {uid[:8]} is in Tiled, verdict {verdict}", markup=False, highlight=False
            )
        course.outcomes[uid] = outcome
    if course.fines and not hurry:
        _together(course, session, problems)
    for uid in course.starts:
        timeout = _HURRY_S if hurry else _RAW_S
        if not session.raw.wait(uid, timeout):
            why = session.raw.problems.get(uid, f"not whole after {timeout:g} s")
            problems.append(f"raw run {uid} is not in Tiled: {why}")
    pairs = [
        (uid, outcome["result_uid"])
        for uid, outcome in course.outcomes.items()
        if outcome.get("result_uid")
    ]
    try:
        return read_results(course.tiled, session.tiled_key, pairs)
    except (KeyError, OSError) as error:
        problems.append(f"results cannot be read from Tiled: {type(error).__name__}: {error}")
        return []


def _together(course: Course, session: _Session, problems: list[str]) -> None:
    """Wait for the composite of the survey and all fine runs."""
    survey = str(course.starts[course.fines[0]]["parent_uid"])
    try:
        future = session.connection.future(composite_uid(survey, course.fines))
        outcome = future.result(timeout=_OUTCOME_S)
    except concurrent.futures.TimeoutError:
        problems.append(f"no composite of survey and fine maps within {_OUTCOME_S:g} s")
        return
    if outcome.get("status") == "done":
        course.composite = outcome
    else:
        problems.append(f"composite: {outcome.get('status')}: {outcome.get('reason')}")


def _prepare(out: Path) -> list[Path]:
    """Make the folder; return those that were made for it, innermost first."""
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
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
    return made


def _leave_as_found(out: Path, made: list[Path]) -> None:
    """Take back what bad input left: only if nothing else is in it."""
    (out / "service.yaml").unlink(missing_ok=True)
    with suppress(OSError):
        for folder in (out / "data", *made):
            folder.rmdir()


def _report(
    options: DemoOptions, course: Course, results: list[RunResult], console: Console, asked: bool
) -> dict[str, Any]:
    # Only here, after the last scan, may anything know the truth.
    from inscan.service.demo_truth import evaluate

    course.problems[:0] = course.missing() if asked else []
    picture = options.out / "report.png"
    first = next(iter(course.starts), None)
    # Without the survey there is nothing to hold fine maps against.
    whole = results if results and results[0].run_uid == first else []
    blocks, figures = evaluate(
        options.profile, options.sample, options.seed, whole, course.regions, picture
    )
    if course.composite is not None:
        blocks = [*blocks, composite_block(course.composite)]
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
        "runs": [course.entry(uid, results) for uid in course.starts],
        "composite": composite_answer(course.composite),
        "figures": figures,
        "tiled": course.tiled,
        "state": str(options.out / "state"),
        "report": str(options.out / "report.html"),
        "notes": course.notes,
        "problems": course.problems,
        "interrupted": asked,
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
