"""What a scan loses by inscan while something is broken: `python benchmarks/torture_scan.py [--pairs N]`.

A RunEngine on one core scans the simulated beamlines with inscan subscribed and without, in pairs in the order
A B B A; service, workers, Tiled and whatever breaks them are on another core. inscan's own thread in the RunEngine's
process is on the RunEngine's core. The fault is put on in both scans of a pair.

Scans of one to two seconds of measuring time give the ratio; the same without dwell, as fast as the devices go, give
microseconds for each event.
"""

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import fault_row
import numpy as np
from fault_row import FaultRow
from runengine_cost import median_interval
from scan_faults import Fault, Proxy, Service, Stage, faults, possible

LIMIT = 1.02
_MIDDLE_S = 0.5  # after a scan began, when its fault is put on
_HOST = Path(__file__).with_name("scan_host.py")
PLANS = (("step", "sim_xrf"), ("fly", "sim_xrf"), ("rows", "sim_xrf"), ("frames", "sim_xrf"))
STACK = ("stack", "sim_txm")

Pair = tuple[dict[str, Any], dict[str, Any]]


class Host:
    """The RunEngine's process."""

    def __init__(self, folder: Path, core: int) -> None:
        command = [sys.executable, str(_HOST), str(folder), str(core)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the RunEngine's process ended: {self._process.wait()}")
        return json.loads(line)

    def scan(self, asked: dict[str, Any], fault: Fault, stage: Stage) -> dict[str, Any]:
        """One scan, with its fault in the middle."""
        assert self._process.stdin is not None
        fault.before(stage)
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        self._answer()
        timer = threading.Timer(0.0 if asked["zero"] else _MIDDLE_S, fault.during, (stage,))
        timer.start()
        found = self._answer()
        timer.join()
        fault.after(stage)
        return found

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def pairs_of(
    host: Host, fault: Fault, stage: Stage, plans: Sequence[tuple[str, str]], *, zero: bool
) -> list[Pair]:
    """A scan without and one with inscan for each plan, in the order A B B A."""
    found = []
    for number, plan in enumerate(plans):
        both: dict[bool, dict[str, Any]] = {}
        for subscribed in (False, True) if number % 2 == 0 else (True, False):
            asked = {"plan": plan[0], "beamline": plan[1], "zero": zero, "subscribed": subscribed}
            asked |= {"address": fault.address(stage), "wait": fault.wait}
            asked |= {"pass": None if fault.key is None else str(fault.key)}
            both[subscribed] = host.scan(asked, fault, stage)
        found.append((both[False], both[True]))
    return found


def row_of(
    fault: Fault,
    timed: list[Pair],
    still: list[Pair],
    seconds: float,
) -> FaultRow:
    """The line of the table."""
    subscribed = [b for _, b in [*timed, *still]]
    raised = [one["raised"] for pair in [*timed, *still] for one in pair if one["raised"]]
    ratio, low, high = median_interval([b["wall"] / a["wall"] for a, b in timed])
    per_plan = {}
    for name in dict.fromkeys(a["plan"] for a, _ in timed):
        theirs = [b["wall"] / a["wall"] for a, b in timed if a["plan"] == name]
        per_plan[name] = round(statistics.median(theirs), 4)
    added = [1e6 * (b["cpu"] - a["cpu"]) / max(1, b["events"]) for a, b in [*timed, *still]]
    calls = np.array([call for b in subscribed for call in b["calls_cpu"]]) * 1e6
    walls = np.array([call for b in subscribed for call in b["calls_wall"]]) * 1e6
    zero = [1e6 * (b["wall"] - a["wall"]) / max(1, b["events"]) for a, b in still] or [0.0]
    figures = {
        "pairs": len(timed),
        "ratio": round(ratio, 4),
        "interval": [round(low, 4), round(high, 4)],
        "ratio_by_plan": per_plan,
        "within": ratio <= LIMIT,
        "re_thread_cpu_added_us_per_event": [round(v, 1) for v in median_interval(added)],
        "callback_cpu_us": _percentiles(calls),
        "callback_wall_us": _percentiles(walls),
        "no_dwell_added_us_per_event": [round(v, 1) for v in median_interval(zero)],
        "no_dwell_pairs": len(still),
        "raised": raised[:3],
        "not_recorded": sum(b.get("lost", 0) + b.get("defects", 0) for b in subscribed),
    }
    remarks = (
        f"ratio {ratio:.4f} [{low:.4f}, {high:.4f}] of {len(timed)} pairs; callback "
        f"{figures['callback_cpu_us']['p50']:.0f} us of CPU a document (p99 "
        f"{figures['callback_cpu_us']['p99']:.0f})"
    )
    if raised:
        remarks += f"; RAISED {raised[0]}"
    if ratio > LIMIT:
        remarks += f"; ABOVE {LIMIT}"
    return FaultRow(
        fault=f"scan: {fault.name}",
        how=fault.how,
        times=2 * (len(timed) + len(still)),
        runs=len(subscribed),
        results=sum(not b["raised"] for b in subscribed),
        failures=0,
        lost=sum(bool(b["raised"]) for b in subscribed),
        duplicated=0,
        seconds=round(seconds, 1),
        remarks=remarks,
        figures=figures,
    )


def _percentiles(values: np.ndarray) -> dict[str, float]:
    names = (50, 90, 99, 100)
    return {
        f"p{p}": round(float(v), 1)
        for p, v in zip(names, np.percentile(values, names), strict=True)
    }


def run(seed: int, pairs: int, only: str) -> Iterator[FaultRow]:
    """All faults, or those whose name holds `only`, one by one."""
    folder = Path(tempfile.mkdtemp(prefix="inscan-scan-"))
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})  # and whatever is started from here
    order = random.Random(seed)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        host = Host(folder, cores[0])
        stack.callback(host.close)
        proxy = Proxy()
        service = Service(folder / "service")
        stack.callback(service.close)
        warm = Stage(service, folder / "state", proxy)
        service.start()
        for plan in (*PLANS, STACK):  # imports and caches
            for zero in (False, True):
                pairs_of(host, Fault("", ""), warm, [plan], zero=zero)
        for fault in faults(folder):
            if only not in fault.name:
                continue
            if not possible(fault):
                print(f"{fault.name}: not possible here ({fault.needs})", file=sys.stderr)
                continue
            try:
                row = _row(fault, host, warm, pairs, order)
            except subprocess.CalledProcessError as error:
                print(f"{fault.name}: not possible here: {error}", file=sys.stderr)
                continue
            yield row


def _row(fault: Fault, host: Host, usual: Stage, pairs: int, order: random.Random) -> FaultRow:
    began = time.monotonic()
    stage = usual
    with ExitStack() as stack:
        if fault.settings:
            service = Service(usual.host.parent / "other", **dict(fault.settings))
            stack.callback(service.close)
            stage = Stage(service, usual.host, usual.proxy)
        stage.service.start()
        if fault.around is not None:
            stack.enter_context(fault.around(stage))
        plans = [plan for plan in (*PLANS, STACK) for _ in range(max(1, pairs // 5))]
        plans += [PLANS[0]] * max(0, pairs - len(plans))
        order.shuffle(plans)
        timed = pairs_of(host, fault, stage, plans, zero=False)
        fast = [PLANS[0], PLANS[3]] * max(1, pairs // 5)
        still = pairs_of(host, fault, stage, fast, zero=True)
    return row_of(fault, timed, still, time.monotonic() - began)


if __name__ == "__main__":
    sys.exit(
        fault_row.main(
            "scan",
            run,
            pairs=(int, 9, "pairs of scans for each fault"),
            only=(str, "", "part of the name of the faults to be tried; empty: all"),
        )
    )
