"""Time from a run's `stop` to its result in Tiled, split by stage, against the limit and against a naive pipeline.

The real thing: the service with one worker and its own Tiled as processes, documents through `connect()`, rows every
30 ms (frames every 20 ms) as a fast scan would. Three figures of one run of this program:

- **inscan**: from handing over `stop` to the outcome, which comes when Tiled has the result;
- **limit**: the recipe alone on arrays in memory, plus one copy of its input, plus one write of its output with sync;
- **naive**: all after `stop`: read the files, float32 over TCP to a process, the recipe, TCP back, upload to Tiled.

    python benchmarks/stop_to_result.py [--case map|stack] [--repeats 3] [--json]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml
import zmq
from tiled.client import from_uri

from inscan.callbacks import connect
from inscan.callbacks.request import request
from inscan.service.children import MALLOC_TUNING

sys.path.insert(0, str(Path(__file__).parent))
from machine import machine  # noqa: E402 - beside this file, not installed
from synthetic_runs import ELEMENTS, map_run, stack_run  # noqa: E402

SIZES = {"map": (256, 4), "stack": (512, 117)}
PACE_S = {"map": 0.03, "stack": 0.02}
_WAIT_S = 300.0


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--case", choices=tuple(SIZES), action="append")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    answer: dict[str, Any] = {"machine": machine(), "repeats": given.repeats, "cases": {}}
    with tempfile.TemporaryDirectory(prefix="inscan-bench-") as folder:
        with Service(Path(folder)) as service:
            for case in given.case or SIZES:
                answer["cases"][case] = measure(service, case, given.repeats)
                if not given.json:
                    print_case(case, answer["cases"][case])
    if given.json:
        print(json.dumps(answer, indent=2))
    else:
        print(json.dumps(answer["machine"]))


class Service:
    """`inscan serve` in a folder of its own; arrays stay in the spool for the limit's measurement."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state, self.data = folder / "state", folder / "data"
        self.data.mkdir()
        config = folder / "service.yaml"
        loopback = "tcp://127.0.0.1:0"
        settings = {"state_dir": str(self.state), "workers": 1, "keep_spool": True}
        settings |= {"ingest": loopback, "broker": loopback, "spool": loopback}
        settings |= {"data_roots": [str(self.data)], "profiles": ["sim_xrf", "sim_txm"]}
        config.write_text(yaml.safe_dump(settings))
        command = [sys.executable, "-m", "inscan.service.cli", "serve", str(config)]
        with (folder / "service.log").open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--parent", str(os.getpid())], stdout=log, stderr=log
            )

    def __enter__(self) -> "Service":
        deadline, pause = time.monotonic() + 120, threading.Event()
        while not (self.state / "service.json").exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "service.log").read_text()[-2000:])
            pause.wait(0.1)
        self.tiled = json.loads((self.state / "service.json").read_text())["tiled"]
        self.key = (self.state / "tiled" / "api_key").read_text().strip()
        self.connection = connect(state_dir=self.state)
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()
        self.process.terminate()
        self.process.wait(60)


def measure(service: Service, case: str, repeats: int) -> dict[str, Any]:
    """Measure one case; the first repetition warms up and is not counted."""
    size, depth = SIZES[case]
    ours, stages, naive, last = [], [], [], ""
    for k in range(repeats + 1):
        source = map_run if case == "map" else stack_run
        documents = list(source(service.data, size, depth, seed=k))
        took, timings = ours_once(service, documents, PACE_S[case])
        took_naive = naive_once(service, case, documents)
        if k:
            ours.append(took)
            stages.append(timings)
            naive.append(took_naive)
        last = documents[0][1]["uid"]
    limit = limit_of(service, last)
    mid = statistics.median
    total = limit["inference"] + limit["copy"] + limit["write"]
    return {
        "shape": [size, size, depth] + ([len(ELEMENTS)] if case == "map" else []),
        "limit_s": {name: round(value, 4) for name, value in limit.items()}
        | {"total": round(total, 4)},
        "inscan_s": [round(value, 4) for value in ours],
        "inscan_stages_s": {name: round(mid(one[name] for one in stages), 4) for name in stages[0]},
        "naive_s": [round(value, 4) for value in naive],
        "ratio_inscan": round(mid(ours) / total, 3),
        "ratio_naive": round(mid(naive) / total, 3),
    }


def ours_once(
    service: Service, documents: list[tuple[str, dict[str, Any]]], pace: float
) -> tuple[float, dict[str, float]]:
    """Play a run at the pace of a scan; return seconds from stop to outcome, and the stages."""
    uid = documents[0][1]["uid"]
    future = service.connection.future(uid)
    steps = sum(name == "stream_datum" for name, _ in documents)
    resources = sum(name == "stream_resource" for name, _ in documents)
    per_step = max(1, resources if steps % max(resources, 1) == 0 and resources == 5 else 1)
    due, seen, pause = time.monotonic(), 0, threading.Event()
    stopped = due
    for name, doc in documents:
        if name == "stream_datum":
            seen += 1
            if seen % per_step == 1 or per_step == 1:
                due += pace
                pause.wait(max(0.0, due - time.monotonic()))
        if name == "stop":
            stopped = time.monotonic()
        service.connection(name, doc)
    outcome = future.result(timeout=_WAIT_S)
    took = time.monotonic() - stopped
    if outcome["status"] != "done":
        raise RuntimeError(f"run {uid}: {outcome}")
    jobs = request(service.state, "jobs")["jobs"]
    timings = next(job["timings"] for job in jobs if job["run_uid"] == uid)
    timings = dict(timings)
    timings["rest"] = took - sum(timings.values())
    return took, timings


def naive_once(service: Service, case: str, documents: list[tuple[str, dict[str, Any]]]) -> float:
    """What one would write first; the worker process is warm, as ours is."""
    start = documents[0][1]
    child = subprocess.Popen(
        [sys.executable, __file__.replace("stop_to_result", "naive_worker"), case],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    assert child.stdout is not None
    port = int(child.stdout.readline())
    client = from_uri(service.tiled, api_key=service.key)
    context = zmq.Context()
    socket = context.socket(zmq.REQ)
    socket.connect(f"tcp://127.0.0.1:{port}")
    began = time.monotonic()
    path = next(d["uri"] for n, d in documents if n == "stream_resource").removeprefix(
        "file://localhost"
    )
    with h5py.File(path) as file:
        entry = file["entry"]
        if case == "map":
            rows, cols = start["shape"]
            raw = np.asarray(entry["xs_mcaroi"], dtype=np.float32)  # type: ignore[index]
            stack = raw.reshape(rows, cols, *raw.shape[1:]).transpose(2, 3, 0, 1)
        else:
            dark, flat, frames = (
                np.asarray(entry[name], dtype=np.float32)[:, 0]  # type: ignore[index]
                for name in ("dark", "flat", "primary")
            )
            stack = (frames - dark.mean(0)) / (flat.mean(0) - dark.mean(0))
    stack = np.ascontiguousarray(stack, dtype=np.float32)
    socket.send_multipart([json.dumps(stack.shape).encode(), stack.tobytes()])
    shapes, *buffers = socket.recv_multipart()
    container = client["processed"]
    for shape, buffer in zip(json.loads(shapes), buffers, strict=True):
        container.write_array(np.frombuffer(buffer, dtype=np.float32).reshape(shape))
    took = time.monotonic() - began
    socket.close(linger=0)
    context.term()
    child.wait(30)
    child.stdout.close()
    client.context.http_client.close()
    return took


def limit_of(service: Service, run_uid: str) -> dict[str, float]:
    """The recipe alone in a fresh process with the worker's own settings, and copy and write of its arrays."""
    jobs = request(service.state, "jobs")["jobs"]
    key = next(job["key"] for job in jobs if job["run_uid"] == run_uid)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "limit.py"), str(service.state), key],
        check=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "GLIBC_TUNABLES": MALLOC_TUNING},
    )
    return json.loads(done.stdout)


def print_case(case: str, found: dict[str, Any]) -> None:
    """Print one case for people."""
    print(f"\n{case} {found['shape']}")
    print(f"  limit   {found['limit_s']}")
    print(f"  inscan  {found['inscan_s']}  = {found['ratio_inscan']} x limit")
    print(f"  stages  {found['inscan_stages_s']}")
    print(f"  naive   {found['naive_s']}  = {found['ratio_naive']} x limit")


if __name__ == "__main__":
    main()
