"""The process in which a RunEngine scans the simulated beamlines, with inscan subscribed or without.

Started by torture_scan.py as ``scan_host.py FOLDER CORE``. One JSON object a line on standard input asks for one
scan; two lines come back: ``{"began": ...}`` when its plan begins, and what it took.
"""

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import bluesky.plans as bp
import numpy as np
from bluesky import RunEngine

from inscan.callbacks import Connection, connect
from inscan.profiles.samples import xanes_sample, xrf_sample
from inscan.profiles.simulation import sim_txm, sim_xrf
from inscan.profiles.txm_plans import xanes_scan
from inscan.profiles.waiting import after
from inscan.profiles.xrf_plans import fly_raster, step_raster

Plan = Generator[Any, Any, Any]
_CONNECT_S = 20.0


class Camera:
    """A detector that reads one array at each trigger, which is part of the event."""

    parent = None

    def __init__(self, name: str, shape: tuple[int, ...], dtype: str, seconds: float) -> None:
        self.name = name
        self._seconds = seconds
        self._value = np.random.default_rng(1).integers(0, 4000, shape).astype(dtype)

    def trigger(self) -> Any:
        return after(self._seconds)

    def read(self) -> dict[str, Any]:
        return {self.name: {"value": self._value.copy(), "timestamp": time.time()}}

    def describe(self) -> dict[str, Any]:
        return {self.name: {"source": "x", "dtype": "array", "shape": list(self._value.shape)}}

    def read_configuration(self) -> dict[str, Any]:
        return {}

    def describe_configuration(self) -> dict[str, Any]:
        return {}


def plans(folder: Path, scale: float) -> dict[str, Callable[[], Plan]]:
    """Scans of one to two seconds: maps point by point and in flight, rows and frames as they are, an energy stack."""
    folder.mkdir(parents=True, exist_ok=True)
    xrf = sim_xrf(xrf_sample("cells", seed=0), folder, time_scale=scale, dwell=0.02)
    txm = sim_txm(xanes_sample("battery_smooth", seed=0, size=128), folder, time_scale=scale)
    row: Any = Camera("row", (7, 1000), "f4", 0.05 * scale)
    frame: Any = Camera("frame", (512, 1024), "u2", 0.05 * scale)
    y, x = xrf.sample_y, xrf.sample_x
    energies = [8300.0 + 10 * number for number in range(12)]
    return {
        "step": lambda: step_raster(xrf.xs, xrf.sclr, y, -5, 5, 5, x, -5, 5, 12, dwell=0.02),
        "fly": lambda: fly_raster(xrf.xs_fly, y, -5, 5, 12, x, -5, 5, 100, dwell=0.001),
        "rows": lambda: bp.count([row], num=24),
        "frames": lambda: bp.count([frame], num=24),
        "stack": lambda: xanes_scan(txm.microscope, energies, frames_per_energy=1, exposure=0.04),
    }


class Meter:
    """A subscriber, and the CPU and wall seconds that each of its calls took."""

    def __init__(self, subscriber: Callable[[str, Any], object] | None) -> None:
        self._subscriber = subscriber
        self.cpu: list[float] = []
        self.wall: list[float] = []
        self.events = 0

    def __call__(self, name: str, doc: Any) -> None:
        self.events += name in ("event", "stream_datum")
        if self._subscriber is None:
            return
        cpu, wall = time.thread_time(), time.perf_counter()
        self._subscriber(name, doc)
        self.cpu.append(time.thread_time() - cpu)
        self.wall.append(time.perf_counter() - wall)


def scan(engine: RunEngine, plan: Plan, meter: Meter, asked: dict[str, Any]) -> dict[str, Any]:
    """Run one scan; what it took, and whether it raised."""
    cpu: list[float] = []

    def timed() -> Plan:
        # A plan runs in the RunEngine's own thread, and so do its subscribers.
        print(json.dumps({"began": time.time()}), flush=True)
        cpu.append(time.thread_time())
        yield from plan
        cpu.append(time.thread_time())

    raised = ""
    before = time.perf_counter()
    try:
        engine(timed())
    except Exception as error:  # noqa: BLE001 - that is what is counted
        raised = f"{type(error).__name__}: {error}"
    wall = time.perf_counter() - before
    return {
        **asked,
        "wall": wall,
        "cpu": cpu[-1] - cpu[0] if len(cpu) == 2 else 0.0,
        "events": meter.events,
        "raised": raised,
        "calls_cpu": meter.cpu,
        "calls_wall": meter.wall,
    }


def connected(state: Path, address: str, wait: bool) -> Connection:
    """A connection; with `wait` one that the service has answered."""
    connection = connect(address, state_dir=state)
    deadline = time.monotonic() + _CONNECT_S
    while wait and not connection.connected:
        if time.monotonic() > deadline:
            raise TimeoutError(f"no service answers at {address}")
        threading.Event().wait(0.01)
    return connection


def main() -> None:
    """Scan what is asked for until standard input ends."""
    folder = Path(sys.argv[1])
    os.sched_setaffinity(0, {int(sys.argv[2])})
    logging.basicConfig(level=logging.WARNING, filename=folder / "host.log")
    known = {True: plans(folder / "still", 0.0), False: plans(folder / "data", 1.0)}
    print(json.dumps({"plans": list(known[True])}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        engine = RunEngine({"beamline_id": asked["beamline"]}, context_managers=[])
        connection = None
        os.environ.pop("INSCAN_PASS", None)
        if asked["pass"]:
            os.environ["INSCAN_PASS"] = asked["pass"]
        if asked["subscribed"]:
            connection = connected(folder / "state", asked["address"], asked["wait"])
        meter = Meter(connection)
        engine.subscribe(meter)
        plan = known[asked["zero"]][asked["plan"]]
        found = scan(engine, plan(), meter, asked)
        if connection is not None:
            found |= {"lost": connection.lost, "defects": connection.defects}
            found["left"] = connection.left_out
            connection.close(0.0)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
