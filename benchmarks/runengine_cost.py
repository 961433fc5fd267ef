"""What inscan costs a RunEngine: the same scan with and without it, in turn, as ratios.

Run: ``python benchmarks/runengine_cost.py [--pairs N] [--seed S] [--json]``

Two clocks per scan, both divided by its events: the CPU time of the RunEngine's own thread (what
inscan's callback takes from it) and wall time (which also has the shipper thread of the same
process and, on few cores, the service in it). Besides, each call for an event is timed by itself,
which tells small costs from noise. ``logged`` is without a service, ``shipped`` with one in a
process of its own. ``nothing`` subscribes a function that does nothing: what the measurement itself
cannot tell from zero.
"""

import argparse
import json
import math
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bluesky.plans as bp
import numpy as np
from bluesky import RunEngine
from machine import machine
from ophyd.sim import SynAxis, SynGauss

from inscan.callbacks import Connection, connect
from inscan.callbacks.updates import Update
from inscan.service.ingest import Ingest
from inscan.service.intake import Uses
from inscan.service.mailbox import Mailbox

_DEADLINE_S = 60.0
_SCALARS = 28


class Source:
    """A detector that is ready at once and always reads the same."""

    parent = None

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.name = "source"
        self._values = values

    def read(self) -> dict[str, Any]:
        now = time.time()
        return {key: {"value": value, "timestamp": now} for key, value in self._values.items()}

    def describe(self) -> dict[str, Any]:
        found = {}
        for key, value in self._values.items():
            shape = list(np.shape(value))
            found[key] = {"source": "x", "dtype": "array" if shape else "number", "shape": shape}
        return found

    def read_configuration(self) -> dict[str, Any]:
        return {}

    def describe_configuration(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Case:
    """A scan: its name, how many events, and the plan."""

    name: str
    events: int
    plan: Callable[[int], Any]


def cases(seed: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    scalars = {f"xs_{i:02d}": float(v) for i, v in enumerate(rng.poisson(20, _SCALARS))}
    row = {"row": rng.poisson(5, (7, 1000)).astype(np.float32)}
    frame = {"frame": rng.integers(0, 4096, (512, 1024), dtype=np.uint16)}
    motor: Any = SynAxis(name="motor")
    gauss: Any = SynGauss("det", motor, "motor", center=0, Imax=1, noise=None)

    def source(values: Mapping[str, Any]) -> Callable[[int], Any]:
        detector: Any = Source(values)
        return lambda events: bp.count([detector], num=events)

    return [
        Case("ophyd.sim scan, 3 scalars", 150, lambda n: bp.scan([gauss], motor, -1, 1, n)),
        Case(f"{_SCALARS} scalars", 400, source(scalars)),
        Case("28 kB row", 400, source(row)),
        Case("1 MB frame", 60, source(frame)),
    ]


def scan(engine: RunEngine, case: Case) -> tuple[float, float]:
    """(CPU seconds of the RunEngine's thread, wall seconds) per event."""
    spent: list[float] = []

    def timed() -> Any:
        # A plan runs in the RunEngine's own thread.
        cpu, wall = time.thread_time(), time.perf_counter()
        yield from case.plan(case.events)
        spent.extend((time.thread_time() - cpu, time.perf_counter() - wall))

    engine(timed())
    return spent[0] / case.events, spent[1] / case.events


def wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the service did not take the documents over in a minute")
        threading.Event().wait(0.01)


class Timed:
    """A subscriber and what each of its calls for an event took: CPU and wall seconds."""

    def __init__(self, subscriber: Callable[[str, Any], None]) -> None:
        self._subscriber = subscriber
        self.calls: list[tuple[float, float]] = []

    def __call__(self, name: str, doc: Any) -> None:
        cpu, wall = time.thread_time(), time.perf_counter()
        self._subscriber(name, doc)
        if name == "event":
            self.calls.append((time.thread_time() - cpu, time.perf_counter() - wall))


@contextmanager
def nothing(engine: RunEngine, address: str) -> Iterator[Timed]:
    del address
    timed = Timed(lambda name, doc: None)
    token = engine.subscribe(timed)
    yield timed
    engine.unsubscribe(token)


@contextmanager
def logged(engine: RunEngine, address: str) -> Iterator[Timed]:
    del address
    with _subscribed(engine, "tcp://127.0.0.1:1") as (_, timed):
        yield timed


@contextmanager
def shipped(engine: RunEngine, address: str) -> Iterator[Timed]:
    with _subscribed(engine, address) as (connection, timed):
        wait_until(lambda: connection.connected)
        yield timed
        # What is still under way must not burden the scan without inscan that follows.
        wait_until(lambda: not any((connection.state_dir / "log").iterdir()))


@contextmanager
def _subscribed(engine: RunEngine, address: str) -> Iterator[tuple[Connection, Timed]]:
    folder = Path(tempfile.mkdtemp(prefix="inscan-cost-"))
    connection = connect(address, state_dir=folder)
    timed = Timed(connection)
    token = engine.subscribe(timed)
    try:
        yield connection, timed
    finally:
        engine.unsubscribe(token)
        connection.close(0.0)
        if connection.lost or connection.defects:
            raise RuntimeError(f"{connection.lost} documents lost, {connection.defects} defects")
        shutil.rmtree(folder)


def median_interval(values: list[float]) -> tuple[float, float, float]:
    """Median, and the pair of order statistics that encloses it with 95 % probability."""
    ordered, n = sorted(values), len(values)
    below, total = 0, 0.0
    while (total := total + math.comb(n, below) / 2**n) <= 0.025 and below < n // 2:
        below += 1
    low = max(0, below - 1)
    return statistics.median(ordered), ordered[low], ordered[n - 1 - low]


def compare(
    case: Case, mode: Any, address: str, pairs: int, order: random.Random
) -> dict[str, Any]:
    """Interleaved pairs of one scan without and one with a subscription, in random order."""
    engine = RunEngine({}, context_managers=[])
    scan(engine, case)  # imports and caches
    bare: list[tuple[float, float]] = []
    with_it: list[tuple[float, float]] = []
    calls: list[tuple[float, float]] = []
    for _ in range(pairs):
        first = order.random() < 0.5
        if first:
            bare.append(scan(engine, case))
        with mode(engine, address) as timed:
            with_it.append(scan(engine, case))
        calls += timed.calls
        if not first:
            bare.append(scan(engine, case))
    result: dict[str, Any] = {"case": case.name, "mode": mode.__name__, "events": case.events}
    for clock, index in (("cpu", 0), ("wall", 1)):
        ratios = [b[index] / a[index] for a, b in zip(bare, with_it, strict=True)]
        added = [1e6 * (b[index] - a[index]) for a, b in zip(bare, with_it, strict=True)]
        each = np.array([call[index] for call in calls]) * 1e6
        result[clock] = {
            "call_us": dict(
                zip(("p50", "p90", "p99"), np.percentile(each, (50, 90, 99)).tolist(), strict=True)
            ),
            "bare_us": 1e6 * statistics.median(a[index] for a in bare),
            "added_us": median_interval(added),
            "ratio": median_interval(ratios),
        }
    return result


def ingest_process() -> None:
    """A real ingest that throws away what it has taken, until its standard input ends."""
    closed: set[str] = set()

    class Shredder:
        def __init__(self, start: Mapping[str, Any]) -> None:
            self.run_uid = start["uid"]

        def __call__(self, name: str, doc: Mapping[str, Any], /) -> list[Update]:
            return []

        def finish(self, reason: str, /) -> list[Update]:
            return []

        def close(self) -> None:
            return

    def ignore(*_: Any) -> None:
        return

    mailbox = Mailbox()
    ingest = Ingest(
        "tcp://127.0.0.1:0",
        Uses(Shredder, ignore, closed.add, ignore, ignore),
        is_closed=closed.__contains__,
        on_incomplete=ignore,
        outcome_of=lambda run_uid: None,
        handle_request=lambda op, fields, peer: {},
        mailbox=mailbox,
    )
    print(ingest.bind(), flush=True)
    ingest.start()
    sys.stdin.read()
    ingest.stop()
    mailbox.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="What inscan costs a RunEngine.")
    parser.add_argument("--pairs", type=int, default=15, help="pairs of scans for each figure")
    parser.add_argument("--seed", type=int, default=0, help="of the data and the order in pairs")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--ingest", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ingest:
        ingest_process()
        return
    order = random.Random(arguments.seed)
    command = [sys.executable, __file__, "--ingest"]
    service = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert service.stdout is not None
    try:
        address = service.stdout.readline().strip()
        figures = [
            compare(case, mode, address, arguments.pairs, order)
            for case in cases(arguments.seed)
            for mode in (nothing, logged, shipped)
        ]
    finally:
        service.communicate(timeout=_DEADLINE_S)
    report = {"machine": machine(), "seed": arguments.seed, "pairs": arguments.pairs}
    if arguments.json:
        print(json.dumps({**report, "figures": figures}, indent=2))
        return
    print(json.dumps(report))
    print("per event; median [95 % interval of the median] over pairs; call: percentiles")
    for figure in figures:
        print(f"{figure['case']}, {figure['mode']}:")
        for clock in ("cpu", "wall"):
            values = figure[clock]
            ratio, low, high = values["ratio"]
            added, least, most = values["added_us"]
            call = "  ".join(f"{name} {value:.0f}" for name, value in values["call_us"].items())
            print(
                f"  {clock:5} bare {values['bare_us']:6.0f} us  ratio {ratio:.3f}"
                f" [{low:.3f}, {high:.3f}]  added {added:5.0f} us [{least:.0f}, {most:.0f}]"
                f"  call {call} us"
            )


if __name__ == "__main__":
    main()
