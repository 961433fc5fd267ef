"""What encryption costs: one array fetched from the spool server with CURVE and without, in turn, in one run.

    .venv/bin/python benchmarks/curve_cost.py [--megabytes 123] [--pairs 7] [--seed 0]

The spool server runs in a process of its own, as in a service beside a worker of another machine; both ends are on
this machine, so the line is loopback and its encryption is most of what there is to pay.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil
from machine import machine

from inscan.callbacks.pass_file import Pass, read_pass
from inscan.service import transfer
from inscan.service.gate import Gate
from inscan.service.keys import Keyring
from inscan.service.messages import ArraySpec, InferenceJob
from inscan.service.spool import Spool
from inscan.service.spool_server import SpoolServer


def serve(folder: Path, size: int, seed: int, line: Connection) -> None:
    """The service's end: one array in a spool, served with and without keys, until the line closes."""
    ring = Keyring(folder / "keys")
    spool = Spool(folder / "spool", budget=4 * size + (1 << 30), min_free=0)
    run = spool.run("run-1")
    counts = run.allocate("counts", (size,), np.dtype("u1"))
    counts[...] = np.random.default_rng(seed).integers(0, 256, size, dtype="u1")
    key = ring.new("worker", "worker")
    gate = Gate(ring, ring.make_server(), "spool")
    servers = [
        SpoolServer("tcp://127.0.0.1:0", spool, lambda *_: None, one) for one in (None, gate)
    ]
    addresses = [server.bind() for server in servers]
    for server in servers:
        server.start()
    line.send((addresses, str(key), str(run.folder), counts[::4096].tobytes()))
    with suppress(EOFError):  # the other end is gone
        line.recv()
    for server in servers:
        server.stop()


def fetch(address: str, job: InferenceJob, key: Pass | None) -> tuple[float, bytes]:
    """Seconds of one transfer, and what came."""
    begun = time.perf_counter()
    array = transfer.fetch(address, job, lambda: None, key)["counts"]
    return time.perf_counter() - begun, array[::4096].tobytes()


def measure(megabytes: int, pairs: int, seed: int) -> dict[str, object]:
    """Interleaved pairs: the fastest of each, as neighbours can only slow one down, and the CPU time of both ends."""
    size = megabytes * 1_000_000
    with tempfile.TemporaryDirectory(prefix="inscan-curve-") as name:
        near, far = multiprocessing.Pipe()
        child = multiprocessing.get_context("spawn").Process(
            target=serve, args=(Path(name), size, seed, far)
        )
        child.start()
        addresses, key_path, folder, expected = near.recv()
        spec = ArraySpec(file="counts.npy", shape=(size,), dtype="|u1", nbytes=size)
        job = InferenceJob.model_construct(
            key="0" * 64, fence=1, spool=folder, arrays={"counts": spec}
        )
        ways = {"plain": None, "curve": read_pass(Path(key_path))}
        walls: dict[str, list[float]] = {way: [] for way in ways}
        cpu = dict.fromkeys(ways, 0.0)
        ends = psutil.Process(), psutil.Process(child.pid)
        try:
            for number in range(pairs + 1):
                for address, (way, key) in zip(addresses, ways.items(), strict=True):
                    before = _used(ends)
                    wall, came = fetch(address, job, key)
                    assert came == expected, "what came is what was sent"
                    if number:  # the first fills caches
                        walls[way].append(wall)
                        cpu[way] += _used(ends) - before
        finally:
            near.send("end")
            child.join()
    ratios = sorted(c / p for p, c in zip(walls["plain"], walls["curve"], strict=True))
    plain, curve = min(walls["plain"]), min(walls["curve"])
    return {
        "megabytes": megabytes,
        "pairs": pairs,
        "seed": seed,
        "fastest_plain_s": round(plain, 3),
        "fastest_curve_s": round(curve, 3),
        "ratio_of_fastest": round(curve / plain, 2),
        "median_of_ratios": round(statistics.median(ratios), 2),
        "quartiles_of_ratios": [round(ratios[len(ratios) * n // 4], 2) for n in (1, 3)],
        "cpu_plain_s": round(cpu["plain"] / pairs, 3),
        "cpu_curve_s": round(cpu["curve"] / pairs, 3),
        "cpu_ratio": round(cpu["curve"] / cpu["plain"], 2),
        "load": [round(one, 1) for one in os.getloadavg()],
        "machine": machine(),
    }


def _used(ends: Sequence[psutil.Process]) -> float:
    return sum(times.user + times.system for times in (one.cpu_times() for one in ends))


def main() -> int:
    parser = argparse.ArgumentParser(description="What encryption costs")
    parser.add_argument("--megabytes", type=int, default=123)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(json.dumps(measure(given.megabytes, given.pairs, given.seed), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
