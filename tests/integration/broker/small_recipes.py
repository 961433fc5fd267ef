"""Recipes for workers under test, run as `python small_recipes.py NAME ADDRESS [FOLDER] [OPTIONS]`: real, and small."""

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest import mock

import numpy as np

from inscan.service import worker_job
from inscan.service.messages import InferenceJob
from inscan.service.processed import Processed, ResultArray
from inscan.service.worker import run_worker

Arrays = Mapping[str, np.ndarray]
Progress = Callable[[float], None]


def double(job: InferenceJob, arrays: Arrays, progress: Progress) -> Processed:
    progress(0.5)
    counts = np.asarray(arrays["counts"], dtype="f4")
    values = 2 * (counts.sum(axis=0, dtype="f4") if counts.ndim == 4 else counts)
    report = {"method": "double", "verdict": "pass", "sum": np.float32(values.sum())}
    return Processed([ResultArray("values", ("element", "row", "col"), "counts", values)], report)


def slowly(job: InferenceJob, arrays: Arrays, progress: Progress) -> Processed:
    """Long enough to be met by what happens to workers."""
    for step in range(10):
        progress(step / 10)
        threading.Event().wait(0.02)
    return double(job, arrays, progress)


def noisy(job: InferenceJob, arrays: Arrays, progress: Progress) -> Processed:
    """Differs with each process: what a method that is not deterministic would hand in."""
    done = double(job, arrays, progress)
    values = done.arrays[0].values + os.getpid()
    return Processed([ResultArray("values", ("element", "row", "col"), "counts", values)], {})


def wait_for_go(folder: Path, job: InferenceJob, progress: Progress) -> None:
    """Say that it has begun, and go on when the test says so; moves all the time."""
    (folder / f"begun-{os.getpid()}").write_text(job.key)
    while not (folder / "go").exists():
        progress(0.1)
        threading.Event().wait(0.02)


def die(job: InferenceJob, arrays: Arrays, progress: Progress) -> Processed:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def refuse(job: InferenceJob, arrays: Arrays, progress: Progress) -> Processed:
    raise ValueError("counts are negative at row 3")


def stumble(job: InferenceJob, arrays: Arrays, progress: Progress) -> Processed:
    raise RuntimeError("the device is busy")


def out_of_memory(job: InferenceJob, arrays: Arrays, progress: Progress) -> Processed:
    raise MemoryError("unable to allocate 3 TiB")


def hang(job: InferenceJob, arrays: Arrays, progress: Progress) -> Processed:
    threading.Event().wait()
    raise AssertionError("unreachable")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("address")
    parser.add_argument("folder", type=Path, nargs="?", default=os.environ.get("SMALL_RECIPES"))
    parser.add_argument("--elsewhere", action="store_true", help="see no files of the service")
    parser.add_argument("--grace", type=float, default=5.0)
    parser.add_argument("--prefix", default="")
    parser.add_argument("--parent", type=int)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO)

    def wait(job: InferenceJob, arrays: Arrays, progress: Progress) -> Processed:
        wait_for_go(Path(given.folder), job, progress)
        return double(job, arrays, progress)

    def wait_noisy(job: InferenceJob, arrays: Arrays, progress: Progress) -> Processed:
        wait_for_go(Path(given.folder), job, progress)
        return noisy(job, arrays, progress)

    known = (double, slowly, noisy, die, refuse, stumble, out_of_memory, hang)
    recipes = {recipe.__name__: recipe for recipe in known} | {
        "wait": wait,
        "wait_noisy": wait_noisy,
    }
    options = {
        "prepare": lambda device: "cpu: test",
        "grace_s": given.grace,
        "prefix": given.prefix,
    }
    if given.elsewhere:
        # The one thing that tells a worker of another machine: its host's name for itself.
        with mock.patch.object(worker_job, "host_id", lambda: "elsewhere"):
            sys.exit(run_worker(given.address, process=recipes[given.name], **options))
    sys.exit(run_worker(given.address, process=recipes[given.name], parent=given.parent, **options))


if __name__ == "__main__":
    main()
