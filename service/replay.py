"""`inscan replay`: stored runs through a service once more, and what came of it beside what came of the run itself."""

from __future__ import annotations

import concurrent.futures
import math
import secrets
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from inscan.callbacks import Connection, connect
from inscan.callbacks.profile import BeamlineProfile, load_profile, shipped_profiles
from inscan.callbacks.recording import Due, Recording
from inscan.callbacks.replay import Closing, Identity, identity, renamed
from inscan.callbacks.replay_clock import play
from inscan.callbacks.replay_faults import Fault, inject, words
from inscan.callbacks.replay_lines import lines_of
from inscan.callbacks.request import request
from inscan.callbacks.sources.interface import StoredRun
from inscan.service.raw_writer import RawRunWriter
from inscan.service.replay_compare import compare
from inscan.service.replay_service import Through, through
from inscan.service.show import TiledAccess, tiled_of
from inscan.service.stored_runs import find_runs, named_run

__all__ = ["ReplayOptions", "replay"]

_HURRY_S = 30.0
"""After Ctrl-C: what an aborted run takes to be processed, and no more."""
_LOOK_S = 0.1
_RAW_S = 120.0
_ENDED = ("committed", "failed")


@dataclass(frozen=True)
class ReplayOptions:
    """What `inscan replay` was asked for; the command's help describes each.

    Attributes
    ----------
    what, run : str, str or None
    state : Path
    tiled : str or None
    out : Path or None
    profiles, data_roots, threads
        For a service of its own.
    speed : float
        Infinity for as fast as it goes.
    faults : tuple of Fault
    seed : int or None
    raw : bool
    timeout : float
        Seconds to wait for results of each run.
    """

    what: str
    run: str | None
    state: Path
    tiled: str | None
    out: Path | None = None
    profiles: tuple[str, ...] = ()
    data_roots: tuple[Path, ...] = ()
    threads: int | None = None
    speed: float = 1.0
    faults: tuple[Fault, ...] = ()
    seed: int | None = None
    raw: bool = False
    timeout: float = 900.0


@dataclass
class _Interrupt:
    """Ctrl-C while documents go out stops them in order; at any other time it is KeyboardInterrupt."""

    stop: threading.Event = field(default_factory=threading.Event)
    _playing: bool = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def playing(self) -> Iterator[threading.Event]:
        self._playing = True
        try:
            yield self.stop
        finally:
            self._playing = False

    def _on_signal(self, number: int, frame: object) -> None:
        if not self._playing or self.stop.is_set():
            raise KeyboardInterrupt
        self.stop.set()


@dataclass(frozen=True)
class _Session:
    options: ReplayOptions
    service: Through
    connection: Connection
    raw: RawRunWriter | None
    console: Console
    interrupt: _Interrupt
    elsewhere: Sequence[TiledAccess]
    profiles: Sequence[BeamlineProfile]


def replay(options: ReplayOptions, console: Console) -> dict[str, Any]:
    """Replay runs.

    Returns
    -------
    dict
        ``runs`` (one entry for each, in order), ``state``, ``tiled``, ``own`` (a service was started for it), ``seed``,
        ``interrupted``.

    Raises
    ------
    LookupError, OSError, ValueError
        The run is not found or not readable, or the service cannot be used; before anything is sent.
    """
    runs = _chosen(options)
    seed = options.seed
    if seed is None and options.faults:
        seed = secrets.randbelow(1 << 31)
    who = {run.uid: _who(run, options) for run in runs}
    profiles = [load_profile(name) for name in options.profiles or shipped_profiles()]
    interrupt, done = _Interrupt(), []
    with ExitStack() as stack:
        stack.enter_context(interrupt.handled())
        with console.status("looking for the service, or starting one"):
            service = stack.enter_context(
                through(
                    options.state,
                    options.out,
                    profiles=options.profiles,
                    data_roots=options.data_roots,
                    threads=options.threads,
                )
            )
        session = _Session(
            options,
            service,
            stack.enter_context(connect(state_dir=service.state)),
            _raw_writer(service, profiles, stack) if options.raw else None,
            console,
            interrupt,
            _elsewhere(options, service),
            profiles,
        )
        for run in runs:
            done.append(_one(session, run, who, seed))
            if interrupt.stop.is_set():
                break
        return {
            "runs": done,
            "state": str(service.state),
            "tiled": service.tiled.uri,
            "own": service.own,
            "seed": seed,
            "interrupted": interrupt.stop.is_set(),
        }


def _chosen(options: ReplayOptions) -> list[StoredRun]:
    runs = find_runs(options.what, state=options.state, tiled=options.tiled)
    return runs if options.run is None else [named_run(runs, options.run, options.what)]


def _who(run: StoredRun, options: ReplayOptions) -> Identity:
    # With a seed of the user's, the same replay again is the same run: the service has its result already.
    text = " ".join(sorted(map(str, options.faults)))
    return identity(run.uid, seed=options.seed, of=text)


def _elsewhere(options: ReplayOptions, service: Through) -> list[TiledAccess]:
    """Where results of the stored run may be, besides the Tiled of the service."""
    try:
        other = tiled_of(options.state, options.tiled)
    except ConnectionError:
        return []
    return [] if other.uri == service.tiled.uri else [other]


def _raw_writer(
    service: Through, profiles: Sequence[BeamlineProfile], stack: ExitStack
) -> RawRunWriter:
    folder = service.state / "replayed-documents"
    key = service.tiled.api_key
    if key is None:
        raise ValueError("--raw needs a key that may write to Tiled: set INSCAN_TILED_API_KEY")
    writer = RawRunWriter(service.tiled.uri, SecretStr(key.get_secret_value()), folder, profiles)
    stack.callback(writer.close)
    return writer


def _one(
    session: _Session, run: StoredRun, who: Mapping[str, Identity], seed: int | None
) -> dict[str, Any]:
    options, mine, injected = session.options, who[run.uid], Counter[str]()
    mark: dict[str, Any] = {"time": time.time(), "from": run.where}
    if options.faults:
        mark |= {"faults": [str(fault) for fault in options.faults], "seed": seed}
    uids = {old: new.uid for old, new in who.items()}
    closing = Closing(mine.uid)

    def sink(name: str, doc: Mapping[str, Any]) -> None:
        session.connection(name, doc)
        if session.raw is not None:
            session.raw(name, doc)

    with tempfile.TemporaryDirectory(prefix="inscan-replay-") as folder, ExitStack() as stack:
        with session.console.status(f"reading run {run.uid[:8]} from {run.where}"):
            recording = stack.enter_context(Recording(run.documents(), Path(folder)))
        if not recording.counts["start"]:
            raise LookupError(f"run {run.uid[:8]} of {run.where} has no start document")
        documents = _renamed(recording, mine, mark, uids)
        if options.faults:
            most = max(recording.streams.values(), default=0)
            documents = inject(
                documents,
                options.faults,
                seed or 0,
                injected,
                data=recording.data,
                lines=lines_of(recording.start, session.profiles, most),
            )
        # Asked for before the first document: snapshots come to those who wait.
        future = session.connection.future(mine.uid)
        with _bar(session, run, recording) as progress, session.interrupt.playing() as stop:
            begun = time.monotonic()
            whole = play(
                documents, sink, closing, speed=options.speed, stop=stop, progress=progress
            )
            took = time.monotonic() - begun
        sent, files = dict(recording.counts), sorted(recording.files)
    outcome = _outcome(session, mine.uid, future)
    said = {
        "run": run.uid,
        "scan_id": run.start.get("scan_id"),
        "replay": mine.uid,
        "from": run.where,
        "documents": sent,
        "seconds": round(took, 3),
        "whole": whole,
        "injected": words(injected),
        "files": files,
        "status": outcome.get("status", "none"),
        "reason": outcome.get("reason") or "",
        "verdict": outcome.get("verdict"),
        "result_uid": outcome.get("result_uid"),
        "proposals": _would_be(outcome),
        "results": [],
    }
    if session.raw is not None and not session.raw.wait(mine.uid, _RAW_S):
        said["raw_problem"] = session.raw.problems.get(mine.uid, "not whole yet")
    if said["status"] == "done":
        said["results"] = compare(run.uid, mine.uid, session.service.tiled, session.elsewhere)
    return said


def _renamed(
    recording: Recording, who: Identity, mark: Mapping[str, Any], runs: Mapping[str, str]
) -> Iterator[Due]:
    at = 0.0

    def documents() -> Iterator[tuple[str, Mapping[str, Any]]]:
        nonlocal at
        for due in recording:
            at = due.at
            yield due.name, due.doc

    for name, doc in renamed(documents(), who, mark, runs=runs):
        yield Due(at, name, doc)


@contextmanager
def _bar(
    session: _Session, run: StoredRun, recording: Recording
) -> Iterator[Callable[[Due], None]]:
    """A bar in the run's own time, or in documents where that does not count."""
    timed = math.isfinite(session.options.speed) and recording.duration > 0
    total = recording.duration / session.options.speed if timed else len(recording)
    count = 0
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]} of {task.fields[whole]} documents"),
        TimeRemainingColumn(),
        console=session.console,
    ) as bars:
        number = run.start.get("scan_id")
        name = f"replay of {run.uid[:8]}" + (f" (scan {number})" if number is not None else "")
        task = bars.add_task(name, total=total, count=0, whole=len(recording))

        def progress(due: Due) -> None:
            nonlocal count
            count += 1
            reached = due.at / session.options.speed if timed else count
            # Documents that a fault sends twice come on top of those that are stored.
            bars.update(task, completed=reached, count=count, whole=max(count, len(recording)))

        yield progress


def _outcome(
    session: _Session, uid: str, future: concurrent.futures.Future[dict[str, Any]]
) -> dict[str, Any]:
    """What became of a run, once all that was asked for it has ended."""
    hurry = session.interrupt.stop.is_set()
    limit = min(session.options.timeout, _HURRY_S) if hurry else session.options.timeout
    deadline, pause = time.monotonic() + limit, threading.Event()
    with session.console.status(f"waiting for the result of {uid[:8]}"):
        while not future.done():
            # In short steps: a signal has to get through.
            try:
                future.result(timeout=_LOOK_S)
            except concurrent.futures.TimeoutError:
                if time.monotonic() > deadline:
                    reason = f"no outcome within {limit:g} s; `inscan jobs` says what it waits for"
                    return {"status": "none", "reason": reason}
        while not _settled(session, uid) and time.monotonic() < deadline:
            pause.wait(_LOOK_S)
    return future.result()


def _settled(session: _Session, uid: str) -> bool:
    jobs = request(session.service.state, "jobs", run_uid=uid)["jobs"]
    return all(job["state"] in _ENDED for job in jobs)


def _would_be(outcome: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Regions that would have been proposed; the service refuses those of a replay."""
    proposals = list(outcome.get("proposals") or [])
    return [
        {"id": one.get("id"), "regions": len(one.get("regions") or []), "time_s": one.get("time_s")}
        for one in proposals
    ]
