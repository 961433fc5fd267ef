"""What is tortured: a service, workers and beamline hosts, each a process of its own, and ways to see them end.

Start everything from one thread that lives to the end: the kernel ends these processes with the thread that started
them, so that a torture that is killed leaves nothing behind.
"""

import json
import math
import os
import queue
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from torture_check import Ends, JobRow, RunRow, TiledReader, ends_of

HERE = Path(__file__).resolve().parent
_given: set[int] = set()
_PHASES = (
    "SELECT state, count(*) FROM jobs WHERE state IN ('queued','leased','computed') GROUP BY state"
)


def until(condition: Callable[[], Any], what: str, deadline_s: float = 60.0) -> Any:
    """Wait for a condition and return what it returned.

    Raises
    ------
    TimeoutError
        Naming what did not come.
    """
    end = time.monotonic() + deadline_s
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {deadline_s:g} s: {what}")
        threading.Event().wait(0.02)
    return value


def free_port() -> int:
    """A port that nobody listens on, outside the range from which the kernel gives them out."""
    for port in random.sample(range(20_000, 32_000), 1000):
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in _given:
            _given.add(port)
            return port
    raise OSError("no free port between 20000 and 32000")


def runs_now(process: subprocess.Popen[Any] | None) -> bool:
    """Whether a process of ours runs."""
    return process is not None and process.poll() is None


def kill(pid: int, number: int = signal.SIGKILL) -> bool:
    """Send a signal; False when there is no such process any more."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def begun(pid: int) -> float:
    """When a process was started, seconds since the epoch; infinitely late when it is gone."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return math.inf


@dataclass(frozen=True)
class Relative:
    """A child of the service: `kind` is `worker`, `tiled` or `other`."""

    pid: int
    kind: str


class Rig:
    """The real service in `folder/state`, started and killed at will; always at the same ports.

    Parameters
    ----------
    folder : Path
        Gets settings, logs and the state directory.
    settings : mapping
        Over those that suit a torture: short leases, no rescans, one worker.
    pause_s : float or None
        Longest time of a job of the light worker; None for the real workers with their recipes.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any] | None = None, pause_s: float | None = 0.3
    ) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.pause_s = pause_s
        self.log = folder / "service.log"
        self.starts = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.workers: list[subprocess.Popen[bytes]] = []
        self.state.mkdir(parents=True, exist_ok=True)
        here = "tcp://127.0.0.1"
        self.settings: dict[str, Any] = {
            "state_dir": str(self.state),
            **{name: f"{here}:{free_port()}" for name in ("ingest", "broker", "spool")},
            "workers": 1,
            "lease_s": 6.0,
            "hb_s": 0.5,
            "drain_s": 5.0,
            "min_free": 0,
            "rescan": "off",
            "incomplete_after": 60.0,
            "repair": {"deadline": 1.0},
            **(settings or {}),
        }
        self._config = folder / "settings.yaml"
        self._config.write_text(yaml.safe_dump(self.settings), encoding="utf-8")

    def launch(self) -> subprocess.Popen[bytes]:
        """Start the service, without waiting for it."""
        pause = "real" if self.pause_s is None else str(self.pause_s)
        command = [str(HERE / "torture_service.py"), str(self._config), str(os.getpid()), pause]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([sys.executable, *command], stdout=log, stderr=log)
        self.starts += 1
        return self.process

    def start(self, deadline_s: float = 300.0) -> None:
        """Start the service and wait until it says that it is ready."""
        self.launch()
        until(self.ready, "the service is ready", deadline_s)

    def ready(self) -> bool:
        """Whether the present service is ready.

        Raises
        ------
        RuntimeError
            When it has ended by itself, with the end of its log.
        """
        if self.process is None:
            return False
        code = self.process.poll()
        if code is not None and code != -signal.SIGKILL:
            words = self.log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"the service ended with status {code}: {words}")
        return self.addresses.get("pid") == self.process.pid

    @property
    def addresses(self) -> dict[str, Any]:
        """What `service.json` says; empty where there is none. A killed service leaves its own behind."""
        try:
            return json.loads((self.state / "service.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def family(self) -> list[Relative]:
        """The service's children that run."""
        if not runs_now(self.process) or self.process is None:
            return []
        found = []
        try:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                words = " ".join(child.cmdline())
                known = {"tiled_child": "tiled", "_worker.py": "worker", "service.worker": "worker"}
                kind = next((kind for word, kind in known.items() if word in words), "other")
                if words:  # empty for one that only waits to be reaped
                    found.append(Relative(child.pid, kind))
        except psutil.NoSuchProcess:
            pass
        return found

    def add_worker(self, keep: int = 0) -> subprocess.Popen[bytes]:
        """Start a worker that is no child of the service; or, with the light recipe, what keeps so many."""
        if self.pause_s is None:
            command = ["-m", "inscan.service.worker"]
        else:
            command = [str(HERE / "torture_worker.py"), "--pause", str(self.pause_s)]
            command += ["--keep", str(keep)] if keep else []
        command += [self.settings["broker"], "--parent", str(os.getpid()), "--threads", "1"]
        with (self.folder / "workers.log").open("ab") as log:
            process = subprocess.Popen([sys.executable, *command], stdout=log, stderr=log)
        self.workers.append(process)
        return process

    def outside(self) -> list[int]:
        """Workers that are not the service's children and run."""
        found: list[int] = []
        for worker in self.workers:
            if runs_now(worker):
                copies = psutil.Process(worker.pid).children()
                found += [one.pid for one in copies] or [worker.pid]
        return found

    def kill(self, family: bool = False) -> list[int]:
        """Kill -9 the service, with all its children if wanted; the pids that were killed."""
        pids = [one.pid for one in self.family()] if family else []
        if runs_now(self.process) and self.process is not None:
            pids.insert(0, self.process.pid)
        killed = [pid for pid in pids if kill(pid)]
        if self.process is not None:
            self.process.wait()
        return killed

    def stop(self, deadline_s: float = 60.0) -> int | None:
        """SIGTERM; its exit status, or None when it had to be killed."""
        if self.process is None:
            return None
        self.process.terminate()
        try:
            return self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            self.kill(family=True)
            return None

    def close(self) -> None:
        """End everything of the rig that still runs."""
        for worker in self.workers:
            worker.kill()
            worker.wait()
        if runs_now(self.process):
            self.stop()

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Read the journal from outside, as it is on the disk now; nothing while there is none."""
        path = self.state / "journal.db"
        if not path.exists():
            return []
        try:
            connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5.0)
        except sqlite3.OperationalError:
            return []
        try:
            return connection.execute(query, values).fetchall()
        except sqlite3.OperationalError:
            return []  # just being made, or taken into possession after a kill
        finally:
            connection.close()

    def journal(self) -> tuple[list[RunRow], list[JobRow]]:
        """All runs and jobs of the journal."""
        runs = self.rows("SELECT run_uid, state, reason FROM runs")
        jobs = self.rows(
            "SELECT key, run_uid, state, code, reason, crashes, result_uid, updated FROM jobs"
        )
        return (
            [RunRow(uid, state, reason) for uid, state, reason in runs],
            [
                JobRow(key, uid, state, code, reason, tuple(json.loads(crashes)), result, updated)
                for key, uid, state, code, reason, crashes, result, updated in jobs
            ],
        )

    def tiled(self) -> TiledReader:
        """A reader of the Tiled that the service writes to."""
        given = self.settings.get("tiled") or {}
        key = given.get("api_key") or (self.state / "tiled" / "api_key").read_text().strip()
        return TiledReader(given.get("uri") or self.addresses["tiled"], key)

    def ends(self, run_uids: Iterable[str]) -> Ends:
        """How these runs ended, by the journal and by Tiled, which must answer."""
        tiled = self.tiled()
        try:
            nodes = tiled.nodes()
        finally:
            tiled.close()
        return ends_of(run_uids, *self.journal(), nodes)

    def phases(self) -> dict[str, int]:
        """How many runs are being assembled, and how many jobs are queued, running and committing."""
        named = {"queued": "queued", "leased": "running", "computed": "committing"}
        jobs = {named[state]: count for state, count in self.rows(_PHASES)}
        open_runs = self.rows("SELECT count(*) FROM runs WHERE state = 'open'")
        return {"assembly": open_runs[0][0] if open_runs else 0, **jobs}


class Host:
    """A process with a connection to inscan, told what to run; see `torture_host.py`.

    Attributes
    ----------
    opened, stopped : set of str
        Uids of runs whose start and stop have been recorded.
    raised : list of str
        What came back at the RunEngine. Must stay empty.
    busy : bool
        A command is being carried out.
    """

    def __init__(self, rig: Rig, name: str) -> None:
        self.name = name
        self.opened: set[str] = set()
        self.stopped: set[str] = set()
        self.raised: list[str] = []
        self.lost = 0
        self.closed_all: bool | None = None
        self.asked = self.answered = 0
        command = [str(HERE / "torture_host.py"), str(rig.state), str(os.getpid())]
        with (rig.folder / "hosts.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name=f"host-{name}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)

    def look(self) -> None:
        """Take in what the process has said since the last look."""
        while not self._lines.empty():
            try:
                told = json.loads(self._lines.get())
            except ValueError:
                continue  # torn by a kill
            match told["said"]:
                case "opened":
                    self.opened.add(told["uid"])
                case "stopped":
                    self.stopped.add(told["uid"])
                case "raised":
                    self.raised.append(told["text"])
                case "done":
                    self.answered += 1
                    self.lost = told["lost"]
                    if told["defects"]:
                        self.raised.append(f"{told['defects']} documents could not be looked at")
                case "closed":
                    self.closed_all = told["all"]

    @property
    def busy(self) -> bool:
        return self.asked > self.answered

    @property
    def alive(self) -> bool:
        return runs_now(self.process)

    def tell(self, op: str, **fields: Any) -> bool:
        """Give a command; False when the process is gone."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"op": op, **fields}) + "\n")
            self.process.stdin.flush()
        except (BrokenPipeError, ValueError):
            return False
        self.asked += 1
        return True

    def kill(self) -> int:
        """Kill -9; the pid."""
        self.process.kill()
        self.finish()
        return self.process.pid

    def close(self, deadline_s: float = 60.0) -> None:
        """Let it send what it has and end."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.finish()

    def finish(self) -> None:
        """Wait for the end of the process and take in its last words."""
        self.process.wait()
        self._reader.join()
        self.look()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    pass  # what was still to be said to it
