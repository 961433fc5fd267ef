"""Raw runs into Tiled, for a beamline that has no writer of its own: subscribe it to the RunEngine beside `connect()`.

In the RunEngine's thread a document is appended to a file, nothing else. A thread of this process reads the files and
writes to Tiled with bluesky's own `TiledWriter`; while Tiled is away the files wait, also over a restart.
"""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from bluesky_tiled_plugins import TiledWriter
from pydantic import SecretStr
from tiled.client import from_uri

from inscan.callbacks.document_log import DocumentLog
from inscan.callbacks.log_file import SUFFIX, LogError, LogFile
from inscan.callbacks.profile import BeamlineProfile
from inscan.callbacks.wire import WireError, unpack
from inscan.service.raw_layouts import layouts_of, writer_options
from inscan.service.tiled_http import RAW, TiledHTTP

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
_log = logging.getLogger(__name__)


@dataclass
class _Run:
    """One run on its way to Tiled."""

    log: LogFile
    offset: int = 0
    writer: TiledWriter | None = None
    pause: float = 0.0
    not_before: float = 0.0
    given_up: bool = False


@dataclass
class _State:
    """What the threads share, under `changed`."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    fresh: bool = False
    closing: bool = False
    written: set[str] = field(default_factory=set)
    problems: dict[str, str] = field(default_factory=dict)
    given_up: set[str] = field(default_factory=set)


class RawRunWriter:
    """A document consumer that never blocks or raises in the thread that calls it.

    Parameters
    ----------
    uri : str
        Tiled's address.
    api_key : SecretStr
        A key that may write.
    directory : Path
        Where documents wait, a file for each run. Files that an earlier process left are written too.
    profiles : sequence of BeamlineProfile
        Whose `datum_files` say how detector files are laid out that Tiled's writer does not know.
    """

    def __init__(
        self,
        uri: str,
        api_key: SecretStr,
        directory: Path,
        profiles: Sequence[BeamlineProfile] = (),
    ) -> None:
        self._options = writer_options(layouts_of(profiles))
        self._uri = uri
        self._api_key = api_key
        self._directory = directory
        self._documents = DocumentLog(directory)
        self._state = _State()
        self._container: Any = None
        self._runs: list[_Run] = []
        self._thread = threading.Thread(target=self._work, name="raw-writer", daemon=True)
        self._thread.start()

    @property
    def problems(self) -> dict[str, str]:
        """Run uid -> why it is not in Tiled yet, or not whole."""
        with self._state.changed:
            return dict(self._state.problems)

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take a document."""
        try:
            self._documents.append(name, doc)
        except Exception:  # noqa: BLE001 - whatever it is, it must not stop the scan
            _log.exception("a %s document is not recorded", name)
        with self._state.changed:
            self._state.fresh = True
            self._state.changed.notify_all()

    def wait(self, run_uid: str, timeout: float) -> bool:
        """Wait until a run that has ended is whole in Tiled; False when it is not after `timeout` seconds, or cannot
        be written at all (`problems` says why)."""
        state = self._state
        with state.changed:
            state.changed.wait_for(
                lambda: run_uid in state.written or run_uid in state.given_up, timeout
            )
            return run_uid in state.written

    def close(self, timeout: float = 30.0) -> bool:
        """Write what is complete and end the thread; False when something is left for next time."""
        with self._state.changed:
            self._state.closing = True
            self._state.changed.notify_all()
        self._thread.join(timeout)
        return not self._thread.is_alive() and not self._runs

    def _work(self) -> None:
        self._adopt()
        while True:
            with self._state.changed:
                self._state.fresh = False
                closing = self._state.closing
            self._documents.mend()
            self._runs += [_Run(log) for log in self._documents.take_new()]
            for run in list(self._runs):
                self._advance(run)
            if closing and not any(self._more(run) for run in self._runs):
                break
            self._sleep(closing)
        for run in self._runs:
            run.log.close()
        if self._container is not None:
            self._container.context.http_client.close()

    def _more(self, run: _Run) -> bool:
        """Whether waiting a moment may bring a run further; one that cannot be written now waits for next time."""
        return not run.pause and not run.given_up and run.offset < run.log.size

    def _sleep(self, closing: bool) -> None:
        due = [run.not_before for run in self._runs if run.pause]
        if self._documents.waiting:
            due.append(time.monotonic() + _FIRST_PAUSE_S)
        pause = max(0.0, min(due) - time.monotonic()) if due else None
        with self._state.changed:
            self._state.changed.wait_for(
                lambda: self._state.fresh or self._state.closing != closing, pause
            )

    def _adopt(self) -> None:
        for path in sorted(self._directory.glob(f"*{SUFFIX}")):
            try:
                log = LogFile.adopt(path)
            except LogError as error:
                _log.warning("%s is left alone: %s", path, error)
                continue
            if log is not None:
                self._runs.append(_Run(log))

    def _advance(self, run: _Run) -> None:
        if run.given_up or time.monotonic() < run.not_before:
            return
        try:
            if self._write(run):
                run.log.delete()
                self._runs.remove(run)
                with self._state.changed:
                    self._state.written.add(run.log.run_uid)
                    self._state.problems.pop(run.log.run_uid, None)
                    self._state.changed.notify_all()
        except (httpx.HTTPError, ConnectionError) as error:
            run.pause = min(2 * run.pause if run.pause else _FIRST_PAUSE_S, _LONGEST_PAUSE_S)
            run.not_before = time.monotonic() + run.pause
            self._trouble(run, f"Tiled does not take it ({error}); it will be tried again")
        except Exception as error:  # noqa: BLE001 - one run's defect is not the others'
            run.given_up = True
            self._trouble(
                run, f"{type(error).__name__}: {error}; its documents stay in {run.log.path}"
            )
            with self._state.changed:
                self._state.given_up.add(run.log.run_uid)
                self._state.changed.notify_all()

    def _trouble(self, run: _Run, text: str) -> None:
        # A run cannot be taken up in the middle: the next try begins at its first document.
        run.offset, run.writer = 0, None
        with self._state.changed:
            known = self._state.problems.get(run.log.run_uid)
            self._state.problems[run.log.run_uid] = text
        if known != text:
            _log.warning("raw run %s: %s", run.log.run_uid, text)

    def _write(self, run: _Run) -> bool:
        """Write what has come since the last time; True when that was all of the run."""
        while True:
            record = run.log.read(run.offset)
            if record is None:
                return False
            name, doc = _document(record.payload)
            if name == "start":
                if self._clear(doc["uid"]):
                    return True
                run.writer = TiledWriter(self._connected(), **self._options)
            if name not in ("log", "gap"):
                if run.writer is None:
                    raise ValueError("its start document is missing")
                run.writer(name, doc)
            run.offset, run.pause = record.next, 0.0
            if name == "stop":
                return True

    def _clear(self, run_uid: str) -> bool:
        """Remove what an interrupted try left in Tiled; True when the run is there whole."""
        with TiledHTTP(self._uri, self._api_key) as tiled:
            node = tiled.get(f"{RAW}/{run_uid}")
            if node is None:
                return False
            if node["metadata"].get("stop"):
                return True
            tiled.delete(f"{RAW}/{run_uid}")
            return False

    def _connected(self) -> Any:
        if self._container is None:
            with TiledHTTP(self._uri, self._api_key) as tiled:
                tiled.ensure_catalogs()
            client = from_uri(self._uri, api_key=self._api_key.get_secret_value())
            self._container = client[RAW]
        return self._container


def _document(payload: bytes) -> tuple[str, dict[str, Any]]:
    name, doc = unpack(payload)
    if not isinstance(name, str) or not isinstance(doc, dict):
        raise WireError("not a pair of name and document")
    return name, doc
