"""How late the RunEngine's event loop is while a plan waits for inscan, beside how late it is on its own.

A probe asks the loop to call it every 2 ms and notes how much later that happens. Segments of an idle loop and of a
plan that waits alternate in one run, so that both see the same machine; the service (its own process, with Tiled and a
worker that has nothing to do) runs all the time. What is waited for:

- **outcome**: `wait_for_outcome` on a run that nobody finishes, looking at the service's health every second;
- **device**: the trigger of a `RoiDevice`;
- **answers**: requests to the service one after the other, as before each region;
- **blocking**: `Future.result()` in the plan, which is what must not be done.

    python benchmarks/plan_waiting.py [--seconds 5] [--repeats 3] [--json]
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from concurrent.futures import TimeoutError as NotDone
from contextlib import suppress
from pathlib import Path
from typing import Any

import bluesky.plan_stubs as bps
import numpy as np
from bluesky import RunEngine
from bluesky.utils import FailedStatus

from inscan.callbacks import Connection, connect
from inscan.callbacks.devices import RoiDevice
from inscan.callbacks.plan_waiting import ask
from inscan.callbacks.plans import OutcomeTimeout, wait_for_outcome
from inscan.service.demo_service import DemoService

sys.path.insert(0, str(Path(__file__).parent))
from machine import machine  # noqa: E402 - beside this file, not installed

_PERIOD_S = 0.002
LIMIT_MS = 5.0
Plan = Generator[Any, Any, Any]


def main() -> None:
    """Read the command line, measure, print; exit code 1 when waiting adds more than the limit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each segment")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="inscan-bench-") as folder:
        service = DemoService(Path(folder), "sim_xrf", Path(folder))
        service.launch()
        try:
            service.wait()
            connection = connect(state_dir=service.state_dir)
            try:
                late = measure(connection, given.seconds, given.repeats)
            finally:
                connection.close()
        finally:
            service.stop()
    answer = {"machine": machine(), "seconds": given.seconds, "repeats": given.repeats}
    answer["lateness_ms"] = {name: figures(values) for name, values in late.items()}
    idle = answer["lateness_ms"]["idle"]
    answer["added_ms"] = {
        name: {key: round(found[key] - idle[key], 3) for key in ("p99", "max")}
        for name, found in answer["lateness_ms"].items()
        if name not in ("idle", "blocking")
    }
    answer["limit_ms"] = LIMIT_MS
    answer["within"] = all(one["p99"] <= LIMIT_MS for one in answer["added_ms"].values())
    if given.json:
        print(json.dumps(answer, indent=2))
    else:
        print(answer["machine"])
        for name, found in answer["lateness_ms"].items():
            words = ", ".join(f"{key} {found[key]} ms" for key in ("p50", "p99", "max"))
            print(f"{name:>9}: {words} ({found['calls']} calls)")
        print(
            f"added while waiting: {answer['added_ms']}, at most {LIMIT_MS} ms: {answer['within']}"
        )
    sys.exit(0 if answer["within"] else 1)


def measure(connection: Connection, seconds: float, repeats: int) -> dict[str, list[float]]:
    """Lateness of the loop in s: segments of each kind in turn."""
    engine = RunEngine({}, context_managers=[])
    engine.subscribe(connection)
    while not connection.connected:
        time.sleep(0.05)
    device: Any = RoiDevice(connection, timeout=seconds, name="roi")
    kinds: dict[str, Callable[[], Plan] | None] = {
        "idle": None,
        "outcome": lambda: waiting_for_an_outcome(connection, seconds),
        "device": lambda: waiting_for_a_device(device),
        "answers": lambda: asking(connection, seconds),
        "blocking": lambda: blocking(connection, seconds),
    }
    late: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(repeats):
        for name, plan in kinds.items():
            probe = Probe(engine.loop)
            if plan is None:
                time.sleep(seconds)
            else:
                engine(plan())
            late[name] += probe.end()
    return late


class Probe:
    """Asks a loop to call it again and again, and notes how late it does."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._late: list[float] = []
        self._over = False
        loop.call_soon_threadsafe(self._call, None)

    def _call(self, due: float | None) -> None:
        now = self._loop.time()
        if due is not None:
            self._late.append(now - due)
        if not self._over:
            self._loop.call_at(now + _PERIOD_S, self._call, now + _PERIOD_S)

    def end(self) -> list[float]:
        """Stop, and return the lateness of each call, s."""
        self._over = True
        time.sleep(2 * _PERIOD_S)
        return self._late


def waiting_for_an_outcome(connection: Connection, seconds: float) -> Plan:
    with suppress(OutcomeTimeout):
        yield from wait_for_outcome(connection, "a run that nobody finishes", seconds)


def waiting_for_a_device(device: Any) -> Plan:
    yield from bps.mv(device.run_uid, "a run that nobody finishes")
    with suppress(FailedStatus):  # it gives up after the time of a segment
        yield from bps.trigger(device, wait=True)


def asking(connection: Connection, seconds: float) -> Plan:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield from ask(connection, "proposals")
        yield from bps.sleep(0.05)


def blocking(connection: Connection, seconds: float) -> Plan:
    yield from bps.null()
    with suppress(NotDone):
        connection.future("a run that nobody finishes").result(timeout=seconds / 2)
    yield from bps.sleep(seconds / 2)


def figures(late: list[float]) -> dict[str, float]:
    """Median, 99th percentile and largest of these, in ms."""
    values = 1000 * np.array(late)
    return {
        "p50": round(float(np.median(values)), 3),
        "p99": round(float(np.percentile(values, 99)), 3),
        "max": round(float(values.max()), 3),
        "calls": len(late),
    }


if __name__ == "__main__":
    main()
