"""One trial: runs keep coming while processes are killed at random moments; then all is let end and counted."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from own_tiled import OwnTiled
from torture_check import Ends, NotNow, Watch
from torture_end import count, left_behind, spool_to_clean
from torture_rig import Host, Rig, begun, kill, runs_now
from torture_runs import KINDS, Kind, expected, uid_of
from torture_setup import PHASES, Kill, Setup, Victim

_MOST_OPEN = 8
_AIM_S = 2.0
_RESULT_S = 10.0
_DRAIN_S = 200.0
_REFERENCES = 2


class Trial:
    """See the module; `run` does it all.

    Parameters
    ----------
    folder : Path
        Empty; everything is written there.
    setup : Setup
    kills : int
    seed : int
    told : callable
        Called after each kill.
    """

    def __init__(
        self, folder: Path, setup: Setup, kills: int, seed: int, told: Callable[[Kill], None]
    ) -> None:
        self._told = told
        self.setup = setup
        self.kills = kills
        self.log: list[Kill] = []
        self.problems: list[str] = []
        self.left: list[str] = []
        self.ends = Ends()
        self.asked: dict[str, tuple[Kind, int]] = {}
        self.opened: set[str] = set()
        self.stopped: set[str] = set()
        self.reference: dict[tuple[Kind, int], np.ndarray] = {}
        self._folder = folder
        self.seed = seed
        self._rng = random.Random(seed)
        self._number = 0
        self._feeding = True
        self._hosts: list[tuple[str, Host]] = []
        self._service_due: float | None = None
        self._tiled_due: float | None = None
        self._over = threading.Event()
        self.watch = Watch(self.expected)
        self.own_tiled = OwnTiled(folder / "tiled", folder / "state") if setup.foreign else None
        settings: dict[str, Any] = {}
        if self.own_tiled is not None:
            storage = str(folder / "state" / "results")
            settings["tiled"] = {
                "uri": self.own_tiled.uri,
                "api_key": self.own_tiled.key,
                "readable_storage": storage,
            }
        self.rig = Rig(folder, settings, None if setup.real else 0.3)

    def expected(self, run_uid: str) -> np.ndarray | None:
        """Values that the result of a run must have."""
        asked = self.asked.get(run_uid)
        if asked is not None:
            return self.reference.get(asked) if self.setup.real else expected(*asked)
        path = self._folder / "expected" / f"{run_uid}.npy"
        return np.load(path) if path.exists() else None

    def run(self) -> None:
        """Start everything, kill, let end, count, end everything."""
        reader = threading.Thread(target=self._read, name="tiled-reader")
        try:
            if self.own_tiled is not None:
                self.own_tiled.launch()
            self.rig.start()
            self._add_workers()
            kinds = ["play"] * self.setup.plays + ["engine"] * self.setup.engines
            self._hosts = [(kind, Host(self.rig, kind)) for kind in kinds]
            reader.start()
            if self.setup.real:
                self._refer()
            try:
                for victim in self._order():
                    self._kill(victim)
                self._drain()
            except TimeoutError as error:
                self.problems.append(str(error))
            gone = {pid for one in self.log for pid in one.pids}
            self.ends = count(self.rig, self._wanted(), self.stopped, self.expected, gone)
            for problem in self.watch.problems:
                self.ends.lose(f"a reader saw: {problem}")
        finally:
            self._over.set()
            if reader.ident is not None:
                reader.join()
            self._close()

    def _order(self) -> list[Victim]:
        given = self.setup.victims
        if len(given) == self.kills:
            return list(given)
        order: list[Victim] = [given[k % len(given)] for k in range(self.kills)]
        self._rng.shuffle(order)
        return order

    # What goes on all the time.

    def turn(self) -> None:
        """Take in what hosts say, start again what nobody else does, keep runs coming."""
        now = time.monotonic()
        for number, (kind, host) in enumerate(self._hosts):
            self._hear(host)
            if not host.alive:
                self._hosts[number] = (kind, Host(self.rig, kind))
        for worker in list(self.rig.workers):
            if worker.poll() is not None:
                self.rig.workers.remove(worker)
        self._add_workers()
        if self.own_tiled is not None and not runs_now(self.own_tiled.process):
            self._tiled_due = self._tiled_due or now + self._rng.uniform(0, 2.0)
            if now >= self._tiled_due:
                self.own_tiled.launch()
                self._tiled_due = None
        if not runs_now(self.rig.process):
            self._service_due = self._service_due or now + self._rng.uniform(0, 0.5)
            if now >= self._service_due:
                self._ended_by_itself()
                self.rig.launch()
                self._service_due = None
        if self._feeding:
            self._feed()
        threading.Event().wait(0.04)

    def _add_workers(self) -> None:
        wanted = self.setup.workers
        if self.setup.real:
            while len(self.rig.workers) < wanted:
                self.rig.add_worker()
        elif not self.rig.workers and wanted:
            self.rig.add_worker(keep=wanted)

    def _hear(self, host: Host) -> None:
        host.look()
        self.opened |= host.opened
        self.stopped |= host.stopped
        if host.raised:
            self.problems += [f"the plan was hurt: {text}" for text in host.raised]
            host.raised.clear()
        if host.lost:
            self.problems.append(f"host {host.name} lost {host.lost} documents")
            host.lost = 0

    def _ended_by_itself(self) -> None:
        process = self.rig.process
        if process is not None and not any(process.pid in one.pids for one in self.log):
            words = self.rig.log.read_text(errors="replace")[-1500:]
            self.problems.append(f"the service ended with {process.returncode}: {words}")

    def _feed(self) -> None:
        idle = [(kind, host) for kind, host in self._hosts if host.alive and not host.busy]
        if not idle or self._under_way() >= _MOST_OPEN:
            return
        kind, host = self._rng.choice(idle)
        if kind == "engine":
            host.tell("scan", step=self._rng.choice((4.0, 5.0, 7.0)))
            return
        runs = [self._next_run() for _ in range(self._rng.choice((1, 1, 2, 3)))]
        host.tell("play", runs=runs, pause=self._rng.choice((0.0, 0.001, 0.005)))

    def _next_run(self, content: int | None = None, kind: Kind | None = None) -> dict[str, Any]:
        self._number += 1
        if content is None:
            content = self._number % _REFERENCES if self.setup.real else self._number
        kind = kind or self._rng.choice(KINDS)
        uid = uid_of(self.seed, self._number)
        self.asked[uid] = (kind, content)
        return {"kind": kind, "uid": uid, "content": content}

    def _under_way(self) -> int:
        known = self.rig.rows("SELECT count(*) FROM runs")
        return sum(self.rig.phases().values()) + len(self.opened) - (known[0][0] if known else 0)

    def _read(self) -> None:
        """Tiled's reader, in a thread of its own: whatever it can see must be whole and right."""
        while not self._over.is_set():
            try:
                tiled = self.rig.tiled()
            except (KeyError, OSError):
                self._over.wait(0.2)
                continue
            try:
                while not self._over.wait(0.5):
                    self.watch.look(tiled)
            except NotNow:
                self._over.wait(0.2)
            finally:
                tiled.close()

    # Kills.

    def _kill(self, victim: Victim) -> None:
        rng = self._rng
        if rng.random() < 0.85 or victim not in ("service", "all"):
            self._until(self._whole, "everything is back")
        # One in some kills meets a service that is just starting.
        self._pause(rng.uniform(0.0, self.setup.gap_s))
        if rng.random() < 0.6:
            before = len(self._committed())
            self._soon(lambda: len(self._committed()) > before, _RESULT_S)
        aim = rng.choice((*PHASES, ""))
        if aim:
            self._soon(lambda: self.rig.phases().get(aim), _AIM_S)
        if victim == "worker" and rng.random() < 0.7:
            self._soon(self._busy, _AIM_S)
        one = Kill(time.time(), victim, self.rig.phases())
        if victim == "worker":
            pids = [self._worker()]
        elif victim == "host":
            chosen = rng.choice([host for _, host in self._hosts if host.alive])
            pids = [chosen.process.pid]
        elif victim == "tiled":
            pids = [self._tiled_pid() or 0]
        elif victim == "service":
            pids = [self.rig.process.pid] if self.rig.process else []
        else:
            pids = self._everything()
        # Its children end with a service, through no fault of their jobs.
        gone = [child.pid for child in self.rig.family()] if victim == "service" else []
        one.pids = [pid for pid in pids if pid and kill(pid)] + gone
        if victim in ("service", "all") and self.rig.process is not None:
            self.rig.process.wait()
        for _, host in self._hosts:
            if host.process.pid in one.pids:
                host.finish()
        self.log.append(one)
        self._told(one)

    def _worker(self) -> int:
        """One that is at work, mostly; else the oldest, which is not just starting."""
        busy = self._busy()
        if busy and self._rng.random() < 0.8:
            return self._rng.choice(busy)
        return min(self._workers(), key=begun, default=0)

    def _workers(self) -> list[int]:
        own = [child.pid for child in self.rig.family() if child.kind == "worker"]
        return [*own, *self.rig.outside()]

    def _busy(self) -> list[int]:
        """Workers that hold a job."""
        names = [row[0] for row in self.rig.rows("SELECT worker FROM jobs WHERE state = 'leased'")]
        if not names:
            return []
        return [pid for pid in self._workers() if any(f"-{pid}-" in name for name in names)]

    def _tiled_pid(self) -> int | None:
        if self.own_tiled is not None:
            process = self.own_tiled.process
            return process.pid if process is not None and runs_now(process) else None
        return next((child.pid for child in self.rig.family() if child.kind == "tiled"), None)

    def _everything(self) -> list[int]:
        pids = [] if self.rig.process is None else [self.rig.process.pid]
        pids += [child.pid for child in self.rig.family()]
        pids += [*(worker.pid for worker in self.rig.workers), *self.rig.outside()]
        pids += [host.process.pid for _, host in self._hosts]
        if self.own_tiled is not None and self.own_tiled.process is not None:
            pids.append(self.own_tiled.process.pid)
        return pids

    def _whole(self) -> bool:
        """Whether everything runs that is to be killed next."""
        try:
            ready = self.rig.ready()
        except RuntimeError:
            return False  # it is started again, and told as a problem, by `turn`
        return ready and self._tiled_pid() is not None and any(h.alive for _, h in self._hosts)

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.turn()

    def _soon(self, condition: Callable[[], Any], seconds: float) -> None:
        """Go on for so long at most, until a condition holds."""
        end = time.monotonic() + seconds
        while not condition() and time.monotonic() < end:
            self.turn()

    def _until(self, condition: Any, what: str, deadline_s: float = 300.0) -> None:
        end = time.monotonic() + deadline_s
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"not within {deadline_s:g} s: {what}")
            self.turn()

    # The end.

    def _refer(self) -> None:
        """What real workers make of each content while nothing is killed."""
        runs = [self._next_run(content, kind) for content in range(_REFERENCES) for kind in KINDS]
        self._feeding = False
        host = self._hosts[0][1]
        host.tell("play", runs=runs)
        uids = {run["uid"] for run in runs}
        self._until(lambda: self._committed() >= uids, "references are made", 300.0)
        tiled = self.rig.tiled()
        for node in tiled.nodes():
            self.reference[self.asked[node.raw_uid]] = tiled.arrays(node.uid)["values"]
        tiled.close()
        self._feeding = True

    def _committed(self) -> set[str]:
        return {row[0] for row in self.rig.rows("SELECT run_uid FROM jobs WHERE state='committed'")}

    def _drain(self) -> None:
        """No more runs; wait until every log is taken over, every job has ended, the spool is empty."""
        self._feeding = False
        self._until(lambda: not any(host.busy for _, host in self._hosts), "hosts are done")
        self._until(self._whole, "everything is back")
        try:
            self._until(lambda: not self._unfinished(), "all runs have ended", _DRAIN_S)
        except TimeoutError:
            pass  # counted as lost, and named
        for host in self._hosts:
            self._hear(host[1])

    def _unfinished(self) -> bool:
        if any((self.rig.state / "log").glob("*.log")) or any(self.rig.phases().values()):
            return True
        if spool_to_clean(self.rig):
            return True
        try:
            return bool(self.rig.ends(self._wanted()).lost)
        except (NotNow, KeyError, OSError):
            return True

    def _wanted(self) -> set[str]:
        """Runs whose start had reached a log: those the hosts know of, and those only the journal or a log does."""
        known = {row[0] for row in self.rig.rows("SELECT run_uid FROM runs")}
        left = {path.stem for path in (self.rig.state / "log").glob("*.log")}
        return self.opened | known | left

    def _close(self) -> None:
        for _, host in self._hosts:
            host.close()
            self._hear(host)
        for worker in self.rig.workers:
            worker.kill()
            worker.wait()
        if runs_now(self.rig.process) and self.rig.stop() != 0:
            self.left.append(f"the service did not end in order: {self.rig.process}")
        if self.own_tiled is not None and self.own_tiled.process is not None:
            self.own_tiled.process.kill()
            self.own_tiled.process.wait()
        self.left += left_behind(self.rig)

    def longest_pause(self) -> float:
        """Longest time from a kill to the next result in the journal, seconds."""
        commits = sorted(
            row[0] for row in self.rig.rows("SELECT updated FROM jobs WHERE state = 'committed'")
        )
        after = [next((at - one.at for at in commits if at > one.at), 0.0) for one in self.log]
        return max(after, default=0.0)

    def hits(self) -> Counter[str]:
        """How many kills met runs or jobs in each phase."""
        return Counter(
            phase for one in self.log for phase in PHASES if one.phases.get(phase, 0) > 0
        )

    def quarantined(self) -> int:
        """Jobs that two killed workers had in their hands."""
        return len(self.rig.rows("SELECT key FROM jobs WHERE code = 'quarantined'"))
