"""A service that writes to a Tiled of its own choosing through a proxy, runs sent to it, and how each of them ended."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
from http_proxy import HttpProxy
from own_tiled import OwnTiled
from torture_check import Ends, NotNow, misfit
from torture_rig import Host, Rig, runs_now, until
from torture_runs import KINDS, Kind, expected, uid_of

from inscan.callbacks.request import request


class FaultyRig(Rig):
    """The service with the faulty worker (`faulty_worker.py`), which is told in `folder/torture` what to do.

    Attributes
    ----------
    environment : dict
        Added to that of the service and of its children.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.torture = folder / "torture"
        self.torture.mkdir(parents=True, exist_ok=True)
        self.environment: dict[str, str] = {"INSCAN_TORTURE": str(self.torture)}
        super().__init__(folder, settings, 0.0)

    def launch(self) -> subprocess.Popen[bytes]:
        """Start the service, without waiting for it."""
        script = Path(__file__).with_name("faulty_service.py")
        command = [sys.executable, str(script), str(self.folder / "settings.yaml")]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, str(os.getpid())],
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
            )
        self.starts += 1
        return self.process

    def order(self, deeds: Mapping[str, str]) -> None:
        """Say what is done to which run: uid -> deed."""
        path = self.torture / "deeds.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps({**known, **deeds}))
        temporary.replace(path)


class Bench:
    """Everything together; `with Bench(folder, seed) as bench`.

    Parameters
    ----------
    folder : Path
        Empty.
    seed : int
    upload : bool
        Tiled cannot read result files: they are uploaded.
    tiled_folder : Path or None
        Where Tiled keeps its files; None for `folder/tiled`.
    launch : bool
        Start Tiled before the service.
    faulty : bool
        With the faulty worker.
    **settings
        Of the service.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        *,
        upload: bool = False,
        tiled_folder: Path | None = None,
        launch: bool = True,
        faulty: bool = False,
        **settings: Any,
    ) -> None:
        self.folder = folder
        self._seed = seed
        self._asked: dict[str, tuple[Kind, int]] = {}
        self.tiled = OwnTiled(tiled_folder or folder / "tiled", folder / "state")
        if launch:
            self.tiled.launch()
        self.proxy = HttpProxy(self.tiled.uri)
        given: dict[str, Any] = {"uri": self.proxy.uri, "api_key": self.tiled.key}
        if not upload:
            given["readable_storage"] = str(folder / "state" / "results")
        both = {"tiled": given, **settings}
        self.rig = FaultyRig(folder, both) if faulty else Rig(folder, both, 0.0)
        self.host: Host | None = None
        self.began = time.monotonic()

    def __enter__(self) -> "Bench":
        try:
            self.rig.start(600.0)
            self.host = Host(self.rig, "play")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self.began = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.host is not None:
            self.host.close()
        self.rig.close()
        self.proxy.close()
        self.end_tiled()

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self.began, 1)

    def end_tiled(self) -> None:
        """Kill -9 of Tiled, if it runs."""
        if self.tiled.process is not None and runs_now(self.tiled.process):
            self.tiled.process.kill()
            self.tiled.process.wait()

    def empty_tiled(self) -> None:
        """End Tiled and take its catalogue and all that was uploaded away."""
        self.end_tiled()
        for path in self.tiled.folder.glob("catalog.db*"):
            path.unlink()
        shutil.rmtree(self.tiled.folder / "data")
        (self.tiled.folder / "data").mkdir()

    def send(self, count: int, kind: Kind | None = None, at_once: int = 4) -> list[str]:
        """Have whole runs played, and wait until the host has recorded them; their uids."""
        runs = self.plan(count, kind)
        self.play(runs, at_once)
        return [run["uid"] for run in runs]

    def _heard(self) -> bool:
        assert self.host is not None
        self.host.look()
        return not self.host.busy

    def jobs(self, uids: Iterable[str], *states: str) -> int:
        """How many of these runs have a job in one of these states."""
        wanted = set(uids)
        rows = self.rig.rows("SELECT run_uid, state FROM jobs")
        return sum(uid in wanted and state in states for uid, state in rows)

    def computed(self, uids: list[str], deadline_s: float = 300.0) -> None:
        """Wait until all are computed, at least."""
        until(
            lambda: self.jobs(uids, "computed", "committed", "failed") >= len(uids),
            f"{len(uids)} runs are computed",
            deadline_s,
        )

    def settle(self, uids: list[str], deadline_s: float = 300.0) -> Ends:
        """Wait until all have ended, and until Tiled has what the journal says; then count, values included."""

        def over() -> bool:
            try:
                return not self.rig.ends(uids).lost
            except (NotNow, OSError, KeyError, ValueError):
                return False

        try:
            until(
                lambda: self.jobs(uids, "committed", "failed") >= len(uids) and over(),
                "all runs have ended",
                deadline_s,
            )
        except TimeoutError:
            pass  # counted as lost, and named
        return self.count(uids)

    def count(self, uids: list[str]) -> Ends:
        """How these runs ended, and whether their values are right."""
        wanted = set(uids)
        ends = self.rig.ends(wanted)
        tiled = self.rig.tiled()
        try:
            for node in tiled.nodes():
                if node.status != "success" or node.raw_uid not in wanted:
                    continue
                try:
                    wrong = misfit(
                        node, tiled.arrays(node.uid), expected(*self._asked[node.raw_uid])
                    )
                except ValueError as error:
                    wrong = str(error)
                if wrong or not node.complete:
                    ends.lose(f"result of run {node.raw_uid}: {wrong or 'incomplete'}")
        finally:
            tiled.close()
        if not runs_now(self.rig.process):
            ends.lose("the service has ended")
        if self.host is not None and (self.host.raised or self.host.lost):
            ends.lose(f"the plan was hurt: {self.host.raised}, {self.host.lost} documents lost")
        return ends

    def in_order(self, uids: list[str]) -> bool:
        """Whether the results went into Tiled in the order of their jobs."""
        wanted = set(uids)
        rows = self.rig.rows(
            "SELECT run_uid FROM jobs WHERE state = 'committed' ORDER BY updated, seq"
        )
        by_time = [uid for (uid,) in rows if uid in wanted]
        rows = self.rig.rows("SELECT run_uid FROM jobs WHERE state = 'committed' ORDER BY seq")
        return by_time == [uid for (uid,) in rows if uid in wanted]

    def ask(self, op: str = "status", **fields: Any) -> dict[str, Any]:
        """Ask the service."""
        return request(self.rig.state, op, timeout=60.0, **fields)

    def status(self) -> dict[str, Any]:
        """What `inscan status` has of the writer."""
        return self.ask()["writer"]

    @property
    def faulty(self) -> FaultyRig:
        """The rig, where it is one with the faulty worker."""
        if not isinstance(self.rig, FaultyRig):
            raise TypeError("this bench has the light worker")
        return self.rig

    def plan(self, count: int, kind: Kind | None = None) -> list[dict[str, Any]]:
        """Runs to be played: known here, not yet sent."""
        runs: list[dict[str, Any]] = []
        for _ in range(count):
            number = len(self._asked) + 1
            uid = uid_of(self._seed, number)
            one: Kind = kind or KINDS[number % 2]
            self._asked[uid] = (one, number)
            runs.append({"kind": one, "uid": uid, "content": number})
        return runs

    def play(self, runs: list[dict[str, Any]], at_once: int = 4) -> None:
        """Have planned runs played, and wait until the host has recorded them."""
        assert self.host is not None
        for first in range(0, len(runs), at_once):
            self.host.tell("play", runs=runs[first : first + at_once])
        until(self._heard, "the host has played all runs", 300.0)

    def memory(self) -> float:
        """Resident memory of the service, MB."""
        assert self.rig.process is not None
        return round(psutil.Process(self.rig.process.pid).memory_info().rss / 1e6, 1)
