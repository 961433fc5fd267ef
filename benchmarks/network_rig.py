"""A service all of whose lines go through proxies, beamline hosts that keep it busy, and the ends of their runs."""

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from fault_row import FaultRow
from own_tiled import OwnTiled
from tcp_proxy import Line, TcpProxy
from torture_check import Node, NotNow, TiledReader, Watch, ends_of
from torture_rig import HERE, Host, Rig, until
from torture_runs import KINDS, Kind, expected, uid_of

from inscan.callbacks.request import NoServiceError, request

LINES = ("ingest", "broker", "spool", "tiled")
"""Host to ingest, worker to broker, worker to spool server, service to Tiled."""
LEASE_S = 6.0
_END_S = 240.0


class NetworkRig:
    """Service, Tiled, hosts and workers of "other machines", each line through a proxy.

    Parameters
    ----------
    folder : Path
        Empty.
    seed : int
    workers, hosts : int
    """

    def __init__(self, folder: Path, seed: int, *, workers: int = 2, hosts: int = 2) -> None:
        self.rng = random.Random(seed)
        self.tiled = OwnTiled(folder / "tiled", folder / "state")
        self.tiled.launch()
        tiled = TcpProxy(self.tiled.uri, seed=seed)
        settings = {
            "workers": 0,
            "lease_s": LEASE_S,
            "hb_s": 0.5,
            "progress_s": 10.0,
            "incomplete_after": 600.0,
            "tiled": {
                "uri": f"http://{tiled.address}",
                "api_key": self.tiled.key,
                "readable_storage": str(folder / "state" / "results"),
            },
        }
        self.rig = Rig(folder, settings, pause_s=0.3)
        targets = {name: self.rig.settings[name] for name in ("ingest", "broker", "spool")}
        self.lines = {name: TcpProxy(to, seed=seed) for name, to in targets.items()}
        self.lines["tiled"] = tiled
        self.targets = {**targets, "tiled": self.tiled.uri}
        self.asked: dict[str, tuple[Kind, int]] = {}
        self.most_open = 4
        self.problems: list[str] = []
        self._far = folder / "far"
        self._far.mkdir()
        self._folder = folder
        self._seed = seed
        self._number = 0
        self._opened: set[str] = set()
        self._over: set[str] = set()
        self._looked = 0.0
        self._known: dict[str, Node] = {}
        self._watch = Watch(self.expected)
        self._reader = TiledReader(self.tiled.uri, self.tiled.key)
        self.hosts: list[Host] = []
        try:
            self.rig.start()
            for _ in range(workers):
                self.add_worker()
            self.hosts += [self.add_host(f"host-{n}") for n in range(hosts)]
        except BaseException:
            self.close()
            raise

    def add_worker(
        self, *options: str, program: Sequence[str] = (), lines: dict[str, TcpProxy] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a worker of another machine; `program` instead of the usual one."""
        lines = lines or self.lines
        spool, broker = (f"tcp://{lines[name].address}" for name in ("spool", "broker"))
        command = [*(program or (str(HERE / "far_worker.py"), spool)), broker]
        if not program:
            command += ["--pause", "0.3", "--parent", str(os.getpid()), "--threads", "1"]
        with (self._folder / "workers.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *command, *options], stdout=log, stderr=log, cwd=HERE
            )
        self.rig.workers.append(process)
        return process

    def add_host(self, name: str, line: TcpProxy | None = None) -> Host:
        """Start a beamline host, which dials ingest through a line."""
        state = self._far / name
        state.mkdir()
        to = {"ingest": f"tcp://{(line or self.lines['ingest']).address}"}
        (state / "service.json").write_text(json.dumps(to))
        place: Any = SimpleNamespace(state=state, folder=self._folder)
        return Host(place, name)

    def expected(self, run_uid: str) -> np.ndarray | None:
        """Values that the result of a run must have."""
        asked = self.asked.get(run_uid)
        return None if asked is None else expected(*asked)

    # What goes on all the time.

    def go(self, seconds: float, condition: Callable[[], Any] | None = None) -> bool:
        """Keep everything busy for so long, or until a condition holds; whether it does."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._turn(feed=True)
            if condition is not None and condition():
                return True
        return condition is None

    def _turn(self, *, feed: bool) -> None:
        for host in self.hosts:
            host.look()
            self._opened |= host.opened
            self.problems += [f"the plan was hurt: {text}" for text in host.raised]
            host.raised.clear()
        now = time.monotonic()
        if now - self._looked > 0.3:
            self._looked = now
            ended = "SELECT run_uid FROM jobs WHERE state IN ('committed', 'failed')"
            self._over = {row[0] for row in self.rig.rows(ended)}
        idle = [host for host in self.hosts if not host.busy]
        if feed and idle and len(self._opened - self._over) < self.most_open:
            runs = [self._next() for _ in range(self.rng.choice((1, 1, 2)))]
            self.rng.choice(idle).tell("play", runs=runs, pause=self.rng.choice((0.0, 0.002)))
        threading.Event().wait(0.02)

    def _next(self) -> dict[str, Any]:
        self._number += 1
        uid, kind = uid_of(self._seed, self._number), self.rng.choice(KINDS)
        self.asked[uid] = (kind, self._number)
        return {"kind": kind, "uid": uid, "content": self._number}

    def counts(self) -> Counter[str]:
        """Messages as the service counts them."""
        try:
            told = request(self.rig.settings["ingest"], "status", timeout=20.0)
        except NoServiceError:
            return Counter()
        return Counter(told["messages"])

    # One fault.

    def trial(
        self,
        fault: str,
        how: str,
        act: Callable[[], int],
        *,
        may_fail: Iterable[str] = (),
        note: Callable[[], dict[str, Any]] = dict,
    ) -> FaultRow:
        """Do something while runs keep coming, then let them end, and count.

        Parameters
        ----------
        act : callable
            Does it, by way of `go`; says how often.
        may_fail : iterable of str
            Codes of failures that are as they should be.
        note : callable
            More for the record, asked at the end.
        """
        started, before = time.monotonic(), set(self._opened)
        counted, self.problems = self.counts(), []
        passed = {name: Counter(line.counts) for name, line in self.lines.items()}
        times = act()
        for line in self.lines.values():
            line.line = Line()
        healed = time.monotonic()
        self._wait_for_end()
        uids = self._opened - before
        runs, jobs = self.rig.journal()
        self._watch.look(self._reader)
        ends = ends_of(uids, runs, jobs, [n for n in self._nodes() if n.raw_uid in uids])
        for job in jobs:
            if job.run_uid in uids and job.state == "failed" and job.code not in may_fail:
                ends.lose(f"job {job.key[:12]} failed for nothing: {job.code}, {job.reason}")
        defects = (self.counts() - counted)["defects"]
        if defects:
            self.problems.append(f"{defects} defects: exceptions that nobody expected; see the log")
        for problem in (*self._watch.problems, *self.problems):
            ends.lose(problem)
        self._watch.problems.clear()
        seconds = time.monotonic() - started
        told = {k: n for k, n in (self.counts() - counted).items() if k in _TOLD}
        lines = {
            name: {k: n for k, n in (line.counts - passed[name]).items() if k in _DONE}
            for name, line in self.lines.items()
        }
        figures = {
            "until_all_ended_s": round(time.monotonic() - healed, 1),
            "service_counted": told,
            "lines": {name: counts for name, counts in lines.items() if counts},
            "values_checked": self._watch.exact,
            "problems": ends.problems,
            **note(),
        }
        said = ", ".join(f"{name} {n}" for name, n in sorted(told.items()))
        return FaultRow(
            fault,
            how,
            times,
            ends.runs,
            ends.results,
            ends.failures,
            ends.lost,
            ends.duplicated,
            round(seconds, 1),
            f"all ended {figures['until_all_ended_s']:.0f} s after the last; counted: {said or '-'}",
            figures,
        )

    def _wait_for_end(self) -> None:
        end = time.monotonic() + _END_S
        while time.monotonic() < end:
            for _ in range(10):
                self._turn(feed=False)
            if not any(host.busy for host in self.hosts) and not self._unfinished():
                return
        self.problems.append(f"not all had ended after {_END_S:g} s: {self._unfinished()}")

    def _unfinished(self) -> str:
        """What is not over; empty when all is."""
        logs = [path.name for path in self._far.glob("*/log/*.log")]
        phases = {name: n for name, n in self.rig.phases().items() if n}
        if logs or phases or not self._opened <= self._over | self._other_ends():
            return f"logs {logs}, {phases}"
        try:
            return "" if {n.raw_uid for n in self._nodes()} >= self._opened else "Tiled"
        except NotNow as error:
            return str(error)

    def _nodes(self) -> list[Node]:
        """All derived runs; those that have ended do not change any more, and are asked for once."""
        for uid in self._reader.uids():
            if uid not in self._known or self._known[uid].status is None:
                node = self._reader.node(uid)
                if node is not None:
                    self._known[uid] = node
        return list(self._known.values())

    def _other_ends(self) -> set[str]:
        rows = self.rig.rows("SELECT run_uid FROM runs WHERE state IN ('failed', 'passed_by')")
        return {row[0] for row in rows}

    def close(self) -> None:
        """End everything."""
        for host in self.hosts:
            host.close()
        self.rig.close()
        for line in self.lines.values():
            line.stop()
        self._reader.close()
        if self.tiled.process is not None:
            self.tiled.process.kill()
            self.tiled.process.wait()


_TOLD = (
    "damaged",
    "garbage",
    "refused",
    "repeated",
    "gaps",
    "unsent",
    "defects",
    "again",
    "late",
    "same",
    "differs",
    "journal_errors",
)
_DONE = ("cut", "flipped", "truncated", "connections")

__all__ = ["LEASE_S", "LINES", "NetworkRig", "until"]
