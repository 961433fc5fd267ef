"""Break the lines between host, service, workers and Tiled, freeze their ends, and count what became of every run."""

import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import fault_row
from fault_row import FaultRow
from message_relay import Deed, Direction, MessageRelay
from network_rig import LEASE_S, LINES, NetworkRig
from network_space import Space, can_have_space
from rich.console import Console
from tcp_proxy import TcpProxy
from torture_rig import kill

_RECIPES = Path(__file__).resolve().parent.parent / "tests/integration/broker/small_recipes.py"
_NAMES = {
    "ingest": "host and ingest",
    "broker": "worker and broker",
    "spool": "worker and spool server",
    "tiled": "service and Tiled",
}
Act = Callable[[], int]
Trial = tuple[str, str, Act]


class Faults:
    """What is done, each as a function that keeps the rig busy meanwhile and says how often it was done."""

    def __init__(self, rig: NetworkRig, scale: float) -> None:
        self.rig = rig
        self.scale = scale
        self.relays: list[MessageRelay] = []

    def times(self, number: int) -> int:
        return max(1, round(number * self.scale))

    # Ends that freeze.

    def frozen(self, pids: Callable[[], list[int]], seconds: float, number: int) -> Act:
        def act() -> int:
            for _ in range(self.times(number)):
                chosen = [pid for pid in pids() if kill(pid, signal.SIGSTOP)]
                self.rig.go(seconds)
                for pid in chosen:
                    kill(pid, signal.SIGCONT)
                self.rig.go(3.0)
            return self.times(number)

        return act

    def slow_worker(self) -> int:
        """Jobs that take longer than a lease, and move."""
        slow = self.rig.add_worker("--pause", str(4 * LEASE_S))
        self.rig.go(5 * LEASE_S)
        slow.terminate()
        self.rig.go(1.0)
        return 1

    def hung_worker(self) -> int:
        """A job that does not move: its worker beats, and has to be ended."""
        hung = self.rig.add_worker(program=(str(_RECIPES), "hang"))
        self.rig.go(60.0, lambda: hung.poll() is not None)
        return 1

    # Lines.

    def cuts(self, line: TcpProxy, number: int, pause: tuple[float, float]) -> Act:
        def act() -> int:
            for _ in range(self.times(number)):
                self.rig.go(self.rig.rng.uniform(*pause))
                line.cut()
            return self.times(number)

        return act

    def silence(self, line: TcpProxy, seconds: float, number: int, *, kept: bool) -> Act:
        """Nothing passes and nobody is told; afterwards what was kept passes, or the line has to be made anew."""

        def act() -> int:
            for _ in range(self.times(number)):
                line.line.hold, line.line.swallow = kept, not kept
                self.rig.go(seconds)
                line.line.hold = line.line.swallow = False
                if not kept:
                    line.cut()  # what was swallowed is lost to both ends: no such line goes on
                self.rig.go(3.0)
            return self.times(number)

        return act

    def thin(self, line: TcpProxy) -> int:
        line.line.delay_s, line.line.rate = 0.2, 1e6
        self.rig.go(20.0 * self.scale)
        return 1

    def damage(self, line: TcpProxy, direction: Direction, every: float) -> Act:
        def act() -> int:
            before = line.counts["flipped"] + line.counts["truncated"]
            line.line.damaged = {direction}
            line.line.flip_every, line.line.truncate = every, 0.002
            self.rig.go(25.0 * self.scale)
            line.line.flip_every, line.line.truncate = None, 0.0
            line.cut()  # a length that was damaged leaves an end waiting for bytes that never come
            return line.counts["flipped"] + line.counts["truncated"] - before

        return act

    # Messages.

    def messages(self, name: str) -> Act:
        """Of each kind, messages 2, 9, 16... are lost, 4, 11... come twice, 6, 13... are overtaken."""
        deeds: dict[int, Deed] = {1: "drop", 3: "twice", 5: "swap"}

        def judge(direction: Direction, kind: str, before: int) -> Deed:
            return deeds.get(before % 7, "pass")

        def act() -> int:
            line = self.rig.lines[name]
            relay = MessageRelay(self.rig.targets[name], judge)
            self.relays.append(relay)
            line.retarget(relay.address)
            line.cut()
            self.rig.go(45.0 * self.scale)
            line.retarget(self.rig.targets[name])
            line.cut()
            relay.stop()
            return sum(relay.done.values())

        return act

    def done(self) -> dict[str, dict[str, int]]:
        """What was done to messages of each kind, by the latest relay."""
        found: dict[str, Counter[str]] = {}
        for (direction, kind, deed), times in self.relays[-1].done.items():
            found.setdefault(f"{kind} {direction}", Counter())[deed] = times
        return {kind: dict(deeds) for kind, deeds in sorted(found.items())}

    # A link that goes down.

    def link_down(self, space: Space) -> Act:
        def act() -> int:
            for _ in range(self.times(3)):
                space.down()
                self.rig.go(15.0)
                space.up()
                self.rig.go(6.0)
            return self.times(3)

        return act


def _trials(faults: Faults, rig: NetworkRig) -> Iterator[Trial]:
    def service() -> list[int]:
        return [] if rig.rig.process is None else [rig.rig.process.pid]

    def worker() -> list[int]:
        return [rig.rng.choice([one.pid for one in rig.rig.workers if one.poll() is None])]

    def tiled() -> list[int]:
        return [] if rig.tiled.process is None else [rig.tiled.process.pid]

    def host() -> list[int]:
        return [rig.rng.choice(rig.hosts).process.pid]

    frozen = faults.frozen
    long = f"SIGSTOP for {1.5 * LEASE_S:g} s, leases last {LEASE_S:g} s; SIGCONT"
    yield "a frozen worker", long, frozen(worker, 1.5 * LEASE_S, 3)
    yield (
        "a frozen service",
        "SIGSTOP for 13 s, longer than leases and silences",
        frozen(service, 13.0, 3),
    )
    yield "a frozen host", "SIGSTOP for 12 s in the middle of its runs", frozen(host, 12.0, 2)
    yield "a frozen Tiled", "SIGSTOP for 15 s", frozen(tiled, 15.0, 2)
    yield "a slow worker", "jobs of up to four leases that move all the time", faults.slow_worker
    yield "a worker that stands still", "beats, its job does not move for 10 s", faults.hung_worker
    for name in LINES:
        between, line = _NAMES[name], rig.lines[name]
        yield (
            f"cuts between {between}",
            "all connections at random moments",
            faults.cuts(line, 8, (0.3, 3.0)),
        )
        yield (
            f"half-open line between {between}",
            "25 s without a byte or a word, then a new line",
            faults.silence(line, 25.0, 1, kept=False),
        )
        yield (
            f"link down between {between}",
            "nothing passes for 12 s, then everything does",
            faults.silence(line, 12.0, 2, kept=True),
        )
        yield (
            f"thin line between {between}",
            "200 ms each way, 1 MB/s",
            lambda line=line: faults.thin(line),
        )
        yield (
            f"flapping line between {between}",
            "cut every 3 s for a minute",
            faults.cuts(line, 20, (3.0, 3.0)),
        )
    ways: tuple[Direction, ...] = ("up", "down")
    for name in ("ingest", "broker", "spool"):
        for way in ways:
            yield (
                f"flipped bits and lost ends between {_NAMES[name]}, {way}",
                "one bit in about 15 kB, one block in 500 cut short; framing, headers and payload alike",
                faults.damage(rig.lines[name], way, 15e3),
            )
        yield (
            f"single messages between {_NAMES[name]}",
            "of each kind every seventh is lost, comes twice, is overtaken by its successor",
            faults.messages(name),
        )


def run(seed: int, scale: float, folder: str, only: str) -> Iterator[FaultRow]:
    """Do all faults with one service; one row each."""
    with tempfile.TemporaryDirectory(prefix="inscan-network-", dir=folder or None) as place:
        rig = NetworkRig(Path(place), seed)
        try:
            faults = Faults(rig, scale)
            for fault, how, act in _trials(faults, rig):
                if only in fault:
                    note = faults.done if fault.startswith("single") else dict
                    may = ("quarantined",) if "frozen worker" in fault else ()
                    yield _say(rig.trial(fault, how, act, note=note, may_fail=may))
        finally:
            rig.close()
    if only in "link of a network namespace" and can_have_space():
        with tempfile.TemporaryDirectory(prefix="inscan-network-", dir=folder or None) as place:
            yield _say(_in_space(Path(place), seed, scale))


def _in_space(folder: Path, seed: int, scale: float) -> FaultRow:
    rig = NetworkRig(folder, seed, workers=0, hosts=0)
    space = Space(f"inscan{os.getpid()}")
    lines: dict[str, TcpProxy] = {}
    try:
        space.make()
        names = ("ingest", "broker", "spool")
        lines |= {name: TcpProxy(rig.targets[name], host=space.here) for name in names}
        with space.inside():
            for _ in range(2):
                rig.add_worker(lines=lines)
            rig.hosts += [rig.add_host(f"inside-{n}", lines["ingest"]) for n in range(2)]
        return rig.trial(
            "link of a network namespace",
            "hosts and workers behind a veth pair, which goes down for 15 s",
            Faults(rig, scale).link_down(space),
        )
    finally:
        rig.close()
        for line in lines.values():
            line.stop()
        space.remove()


def _say(row: FaultRow) -> FaultRow:
    said = Console(stderr=True)
    said.print(
        f"{time.strftime('%H:%M:%S')} {row.fault}: {row.times} times, {row.runs} runs,"
        f" {row.results} results, {row.failures} failures, {row.lost} lost, {row.duplicated}"
        f" duplicated, {row.seconds:.0f} s. {row.remarks}",
        markup=False,
        soft_wrap=True,
    )
    for problem in row.figures["problems"]:
        said.print(f"  {problem}", style="red", markup=False, soft_wrap=True)
    return row


if __name__ == "__main__":
    sys.exit(
        fault_row.main(
            "network",
            run,
            scale=(float, 1.0, "how long and how often, as a factor"),
            folder=(str, "", "where the files go; by default the system's"),
            only=(str, "", "only faults whose name has this in it"),
        )
    )
