"""A worker that doubles what it is given, without torch: `python torture_worker.py [--pause S] ADDRESS [OPTIONS]`.

Everything but the recipe is the real worker. It is up in half a second, and what it makes can be checked to the last
bit (`torture_runs.expected`). With `--keep N` it is no worker but keeps N of them: processes of their own, each
replaced at once by a copy of this one, which has everything imported.
"""

import argparse
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping

import numpy as np

from inscan.service.children import die_with_parent
from inscan.service.messages import InferenceJob
from inscan.service.processed import Processed, ResultArray
from inscan.service.worker import run_worker

_STEP_S = 0.02


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds that a job takes at most")
    parser.add_argument("--grace", type=float, default=5.0)
    parser.add_argument("--prefix", default="")
    parser.add_argument("--parent", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--keep", type=int, default=0, help="how many workers to keep")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")

    def double(
        job: InferenceJob, arrays: Mapping[str, np.ndarray], progress: Callable[[float], None]
    ) -> Processed:
        # Some jobs are over at once, some can be met in the middle; which is which stays.
        steps = round(given.pause / _STEP_S * int(job.key[:4], 16) / 0xFFFF)
        for step in range(steps):
            progress(step / steps)
            threading.Event().wait(_STEP_S)
        if "counts" in arrays:
            dims, values = ("element", "row", "col"), arrays["counts"].sum(axis=0, dtype="f4")
        else:
            dims, values = ("energy", "row", "col"), np.asarray(arrays["transmission"], "f4")
        report = {"method": "double", "verdict": "pass"}
        return Processed([ResultArray("values", dims, "", 2 * values)], report)

    def work(parent: int | None) -> int:
        return run_worker(
            given.address,
            process=double,
            prepare=lambda device: "cpu: torture",
            grace_s=given.grace,
            prefix=given.prefix,
            parent=parent,
        )

    if given.keep:
        if given.parent is not None:
            die_with_parent(given.parent)
        keep(given.keep, work)
    sys.exit(work(given.parent))


def keep(count: int, work: Callable[[int | None], int]) -> None:
    """Have so many copies of this process work, for ever."""
    own, copies = os.getpid(), set[int]()
    while True:
        while len(copies) < count:
            pid = os.fork()
            if pid == 0:
                os._exit(work(own))
            copies.add(pid)
        copies.discard(os.wait()[0])


if __name__ == "__main__":
    main()
