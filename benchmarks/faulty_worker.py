"""The light worker of the torture, which does to single runs what workers do at their worst.

`INSCAN_TORTURE` names a folder: `deeds.json` in it says what is done to which run (uid -> deed), `start.json` what
every worker does before it begins, `cgroup` which memory group it joins.
"""

import argparse
import contextlib
import ctypes
import json
import logging
import os
import resource
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from inscan.service.messages import InferenceJob
from inscan.service.processed import Processed, ResultArray
from inscan.service.worker import run_worker

EXCEPTIONS: dict[str, type[BaseException]] = {
    one.__name__: one
    for one in (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        ZeroDivisionError,
        OverflowError,
        AssertionError,
        NotImplementedError,
        RuntimeError,
        RecursionError,
        OSError,
        PermissionError,
        ConnectionError,
        TimeoutError,
        UnicodeDecodeError,
        StopIteration,
        MemoryError,
        BufferError,
        KeyboardInterrupt,
        SystemExit,
        GeneratorExit,
    )
}
Progress = Callable[[float], None]


def double(job: InferenceJob, arrays: Mapping[str, np.ndarray]) -> Processed:
    """What `torture_worker.py` makes."""
    if "counts" in arrays:
        dims, values = ("element", "row", "col"), arrays["counts"].sum(axis=0, dtype="f4")
    else:
        dims, values = ("energy", "row", "col"), np.asarray(arrays["transmission"], "f4")
    report = {"method": "double", "verdict": "pass"}
    return Processed([ResultArray("values", dims, "", 2 * values)], report)


def misbehave(deed: str, done: Processed, progress: Progress) -> Processed:
    """Do what was asked; what returns is a result all the same."""
    kind, _, detail = deed.partition(":")
    (values,) = done.arrays
    if kind == "raise":
        error = EXCEPTIONS[detail]
        raise error("utf-8", b"x", 0, 1, "torture") if error is UnicodeDecodeError else error("x")
    if kind == "abort":
        os.abort()
    if kind == "segfault":
        ctypes.string_at(0)
    if kind == "exit":
        os._exit(int(detail))
    if kind == "hang":
        threading.Event().wait()
    while kind == "deaf":  # to its cancellation, too
        with contextlib.suppress(Exception):
            progress(0.5)
        threading.Event().wait(0.05)
    if kind == "memory":  # MB that are needed, at once
        block = np.ones(int(detail) << 20, "u1")
        progress(float(block[-1]) / 2)
    if kind == "nan":
        return Processed([ResultArray("values", values.dims, "", values.values * np.nan)], {})
    if kind == "shape":
        return Processed([ResultArray("values", values.dims, "", values.values[..., :1])], {})
    if kind == "dims":
        return Processed([ResultArray("values", ("colour",), "", values.values.ravel())], {})
    if kind == "report":
        deep: object = 1
        for _ in range(600):
            deep = [deep]
        return Processed(done.arrays, {"verdict": {1: object()}, "deep": deep, "nan": np.nan})
    return done


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("--grace", type=float, default=5.0)
    parser.add_argument("--prefix", default="")
    parser.add_argument("--parent", type=int)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    folder = Path(os.environ["INSCAN_TORTURE"])
    if (folder / "cgroup").exists():
        procs = Path((folder / "cgroup").read_text().strip()) / "cgroup.procs"
        procs.write_text(str(os.getpid()))
    if (folder / "exit").exists():
        sys.exit(int((folder / "exit").read_text()))
    if (folder / "limit").exists():
        # Of this process, not of the machine: what is asked for beyond it is refused.
        limit = int((folder / "limit").read_text()) << 20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    def process(
        job: InferenceJob, arrays: Mapping[str, np.ndarray], progress: Progress
    ) -> Processed:
        progress(0.1)
        path = folder / "deeds.json"
        deeds = json.loads(path.read_text()) if path.exists() else {}
        done = double(job, arrays)
        if job.run_uid in deeds:
            return misbehave(deeds[job.run_uid], done, progress)
        if job.kind == "final":
            threading.Event().wait(0.05)
        return done

    sys.exit(
        run_worker(
            given.address,
            process=process,
            prepare=lambda device: "cpu: torture",
            grace_s=given.grace,
            prefix=given.prefix,
            parent=given.parent,
        )
    )


if __name__ == "__main__":
    main()
