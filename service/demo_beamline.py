"""The demo's beamline: a profile's startup folder, executed as IPython and queueserver do, in this process."""

import logging
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bluesky import RunEngine
from bluesky.utils import RunEngineInterrupted

from inscan.callbacks.profile import shipped_profiles
from inscan.service.demo_interrupt import Interrupts

_CONNECTS = "60"
"""Files from this number on connect to the service."""


class StartupError(ValueError):
    """A startup file failed; the message names it and the error."""


def load_startup(
    profile: str, environment: Mapping[str, str], before_connecting: Callable[[], object]
) -> dict[str, Any]:
    """Execute `startup/NN-topic.py` of a shipped profile in one namespace, in the order of their names.

    Parameters
    ----------
    profile : str
        `sim_xrf` or `sim_txm`.
    environment : mapping of str
        Set in the environment while the files run: it is how startup files take their parameters.
    before_connecting : callable
        Called before the file that connects to the service, which may still be on its way until then.

    Returns
    -------
    dict
        The namespace: `RE`, `inscan` (the connection) and the plans.

    Raises
    ------
    ValueError, FileNotFoundError
        As a startup file raised it (a sample file without maps, a wrong parameter).
    StartupError
        For any other error in a startup file.
    Exception
        Whatever `before_connecting` raises.
    """
    folder = shipped_profiles()[profile].parent / "startup"
    namespace: dict[str, Any] = {}
    waiting = True
    with _set(environment):
        for path in sorted(folder.glob("[0-9][0-9]-*.py")):
            if waiting and path.name >= _CONNECTS:
                waiting = False
                before_connecting()
            try:
                namespace |= {"__name__": path.stem, "__file__": str(path)}
                # One namespace for all files, as in IPython: a later file sees and may replace names of an earlier.
                exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), namespace)
            except (ValueError, OSError):
                raise
            except Exception as error:
                raise StartupError(f"{path.name}: {type(error).__name__}: {error}") from error
    return namespace


def run_plan(run_engine: RunEngine, plan: Generator[Any, Any, Any], interrupts: Interrupts) -> None:
    """Run a plan; Ctrl-C aborts it at once, so that its run is closed. `interrupts.asked` says that it came."""

    def news(record: logging.LogRecord) -> bool:
        return not interrupts.asked  # that a plan which is being aborted fails is none

    logger, previous = run_engine.log.logger, run_engine.context_managers
    logger.addFilter(news)
    run_engine.context_managers = [interrupts.pausing]
    try:
        run_engine(plan)
    except RunEngineInterrupted:
        # Where nothing can be rewound a pause is an abort already.
        if run_engine.state == "paused":
            run_engine.abort("Ctrl-C")
    finally:
        run_engine.context_managers = previous
        logger.removeFilter(news)


@contextmanager
def _set(environment: Mapping[str, str]) -> Generator[None, None, None]:
    before = {key: os.environ.get(key) for key in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


class RowWatch:
    """Counts finished pixels, rows or energies of running scans from their documents, for a progress bar.

    Parameters
    ----------
    tell : callable
        (run uid, start document, done, expected) after each step; called in the RunEngine's thread, must be quick.
    """

    def __init__(self, tell: Callable[[str, dict[str, Any], int, int], None]) -> None:
        self._tell = tell
        self._starts: dict[str, dict[str, Any]] = {}
        self._streams: dict[str, tuple[str, str]] = {}
        self._done: dict[str, int] = {}

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        if name == "start":
            self._starts[doc["uid"]] = dict(doc)
            self._done[doc["uid"]] = 0
            self._tell(doc["uid"], self._starts[doc["uid"]], 0, self._expected(doc))
        elif name == "descriptor":
            self._streams[doc["uid"]] = (doc["run_start"], doc["name"])
        elif name == "event":
            run, stream = self._streams.get(doc["descriptor"], ("", ""))
            if stream == "primary":
                self._step(run, doc["seq_num"])
        elif name == "stream_datum":
            run, stream = self._streams.get(doc["descriptor"], ("", ""))
            if stream == "primary":
                self._step(run, doc["seq_nums"]["stop"] - 1)
        elif name == "stop":
            self._starts.pop(doc["run_start"], None)

    def _step(self, run: str, done: int) -> None:
        start = self._starts.get(run)
        if start is not None and done > self._done[run]:
            self._done[run] = done
            self._tell(run, start, done, self._expected(start))

    @staticmethod
    def _expected(start: Mapping[str, Any]) -> int:
        if "eng_list" in start:
            return len(start["eng_list"])
        shape = start.get("shape") or [1, 1]
        return int(shape[0]) * int(shape[1])


def data_folder(out: Path) -> Path:
    """Folder of the simulated detector's files."""
    folder = out / "data"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
