"""Thousands of runs through one service and one connection: how each ends, and what grows meanwhile.

`python benchmarks/torture_soak.py [--runs N]`. Runs come in batches of a hundred: one after the other, twenty in turn,
all at once; some are aborted, some fail, some have no stop, some are taken by a real RunEngine. After each batch,
when all of it has ended, memory, files, threads and folders are looked at. Growth is the slope of a straight line
through the second half of these looks, with its 95 % interval.
"""

import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import fault_row
import numpy as np
import psutil
from fault_row import FaultRow
from torture_rig import HERE, Rig, until
from torture_runs import KINDS, uid_of

_BATCH = 100
_SCANS = 2  # of each batch, by a real RunEngine
_ENDS = ("success",) * 17 + ("abort", "fail", "none")
_BATCH_S = 600.0
_LOOKS = 4  # at least, for a slope
_FLAT = 20e3  # bytes for each run: more is growth, whatever the interval says


class Host:
    """The process that has the connection."""

    def __init__(self, rig: Rig) -> None:
        command = [
            sys.executable,
            str(HERE / "soak_host.py"),
            str(rig.state),
            str(psutil.Process().pid),
        ]
        with (rig.folder / "host.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self.lost = 0

    def ask(self, **command: Any) -> list[str]:
        """Have something done; the uids of its runs."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps(command), file=self.process.stdin, flush=True)
        told = json.loads(self.process.stdout.readline())
        self.lost = told["lost"] + told["defects"]
        return told["uids"]

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def look(rig: Rig, host: Host) -> dict[str, float]:
    """Memory, files and threads of each process, and what lies in the folders."""
    assert rig.process is not None
    pids = {"host": host.process.pid, "service": rig.process.pid}
    for one in rig.family():
        pids.setdefault(one.kind, one.pid)
    found: dict[str, float] = {}
    for name, pid in pids.items():
        process = psutil.Process(pid)
        found[f"{name} rss"] = process.memory_info().rss
        found[f"{name} files"] = process.num_fds()
        found[f"{name} threads"] = process.num_threads()
    found["journal bytes"] = (rig.state / "journal.db").stat().st_size
    for folder in ("log", "spool", "live"):
        found[f"{folder} entries"] = sum(1 for _ in (rig.state / folder).iterdir())
    results = [path.stat().st_size for path in (rig.state / "results").glob("*.h5")]
    found["results"], found["results bytes"] = len(results), sum(results)
    return found


def line(runs: np.ndarray, values: np.ndarray) -> dict[str, float] | None:
    """Slope of the second half of the looks, with the interval that holds it with 95 %; None where they are too few."""
    half = len(runs) // 2
    if len(runs) - half < _LOOKS:
        return None
    x, y = runs[half:].astype(float), values[half:].astype(float)
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    rest = y - y.mean() - slope * centred
    error = float(np.sqrt(rest @ rest / (len(x) - 2) / (centred @ centred)))
    wide = 2.2 * error  # Student's for a dozen looks
    return {
        name: round(v, 3)
        for name, v in zip(
            ("per_run", "low", "high"), (slope, slope - wide, slope + wide), strict=True
        )
    }


def batch(rng: random.Random, seed: int, first: int, count: int) -> list[dict[str, Any]]:
    """So many runs to be played."""
    return [
        {
            "kind": rng.choice(KINDS),
            "uid": uid_of(seed, number),
            "content": number,
            "end": rng.choice(_ENDS),
        }
        for number in range(first, first + count)
    ]


def finished(rig: Rig, wanted: int) -> bool:
    """Whether so many runs have come, and nothing of any is open or on its way."""
    runs = rig.rows("SELECT count(*), sum(state = 'open') FROM runs")
    if not runs or runs[0][0] < wanted or runs[0][1]:
        return False
    if rig.rows("SELECT 1 FROM jobs WHERE state NOT IN ('committed', 'failed') LIMIT 1"):
        return False
    return not any((rig.state / "log").iterdir())


def settle(rig: Rig, host: Host, wanted: int) -> None:
    """Wait until all of that is so, with runs ended that went quiet, and the spool is empty."""

    def over() -> bool:
        host.ask(op="end quiet runs")
        return finished(rig, wanted)

    until(over, f"{wanted} runs have ended", _BATCH_S)
    until(lambda: not any((rig.state / "spool").iterdir()), "the spool is empty", 30.0)


def run(seed: int, runs: int, real: int) -> list[FaultRow]:
    """The soak."""
    rng = random.Random(seed)
    folder = Path(tempfile.mkdtemp(prefix="inscan-soak-"))
    began = time.monotonic()
    looks: list[dict[str, float]] = []
    uids: list[str] = []
    modes = {"one after the other": 1, "twenty in turn": 20, "all at once": _BATCH}
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        rig = Rig(folder, {"keep_spool": False}, pause_s=0.0)
        stack.callback(rig.close)
        rig.start()
        if real:
            rig.pause_s = None
            rig.add_worker()
            rig.pause_s = 0.0
        host = Host(rig)
        stack.callback(host.close)
        paces: dict[str, list[float]] = {mode: [] for mode in modes}
        while len(uids) < runs:
            mode, together = list(modes.items())[len(looks) % len(modes)]
            before = time.monotonic()
            played = batch(rng, seed, len(uids), _BATCH - _SCANS)
            uids += host.ask(op="play", runs=played, together=together)
            uids += host.ask(op="scan", times=_SCANS)
            settle(rig, host, len(uids))
            paces[mode].append(_BATCH / (time.monotonic() - before))
            looks.append({"runs": len(uids), **look(rig, host)})
            print(
                f"{len(uids)} runs, {paces[mode][-1]:.1f} a second {mode}; "
                + ", ".join(
                    f"{k[:-4]} {v / 2**20:.0f} MB"
                    for k, v in looks[-1].items()
                    if k.endswith("rss")
                ),
                file=sys.stderr,
                flush=True,
            )
        ends = rig.ends(uids)
        lost = host.lost
    return [_row(looks, ends, lost, paces, time.monotonic() - began)]


def _row(
    looks: list[dict[str, float]],
    ends: Any,
    lost: int,
    paces: dict[str, list[float]],
    seconds: float,
) -> FaultRow:
    x = np.array([one["runs"] for one in looks])
    slopes = {
        name: line(x, np.array([one.get(name, 0.0) for one in looks]))
        for name in looks[-1]
        if name != "runs"
    }
    memory = {name: fit for name, fit in slopes.items() if name.endswith("rss") and fit is not None}
    growing = [name for name, fit in memory.items() if fit["low"] > 0 and fit["per_run"] > _FLAT]
    words = ", ".join(f"{name[:-4]} {fit['per_run'] / 1e3:+.1f} kB" for name, fit in memory.items())
    remarks = f"memory for each run, second half: {words or 'too few runs to tell'}"
    if growing:
        remarks += f"; GROWS: {', '.join(growing)}"
    if lost:
        remarks += f"; {lost} documents not recorded"
    figures = {
        "slopes": slopes,
        "last": {name: round(value, 1) for name, value in looks[-1].items()},
        "runs_per_second": {mode: round(float(np.median(p)), 2) for mode, p in paces.items() if p},
        "looks": len(looks),
        "problems": list(ends.problems)[:5],
        "flat": bool(memory) and not growing,
        "memory": [
            {name: round(v / 2**20, 1) for name, v in one.items() if name.endswith("rss")}
            for one in looks
        ],
    }
    return FaultRow(
        fault="soak: thousands of runs",
        how="batches of 100 by one connection: in order, 20 in turn, at once; some aborted, failed or without a stop",
        times=len(looks),
        runs=ends.runs,
        results=ends.results,
        failures=ends.failures,
        lost=ends.lost + lost,
        duplicated=ends.duplicated,
        seconds=round(seconds, 1),
        remarks=remarks,
        figures=figures,
    )


if __name__ == "__main__":
    sys.exit(
        fault_row.main(
            "soak",
            run,
            runs=(int, 3000, "runs"),
            real=(int, 0, "1: a worker with the real recipes takes its share"),
        )
    )
