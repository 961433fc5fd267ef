"""The worker process: `inscan worker ADDRESS`, and what the service starts as its children."""

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import types
import uuid
from collections.abc import Callable

from inscan.service import children, device
from inscan.service.worker_job import Process
from inscan.service.worker_loop import Worker


def run_worker(
    address: str,
    *,
    process: Process,
    prepare: Callable[[str | None], str] = device.warm_up,
    compute_on: str | None = None,
    threads: int | None = None,
    grace_s: float = 20.0,
    prefix: str = "",
    parent: int | None = None,
) -> int:
    """Run a worker in this process until SIGTERM or SIGINT.

    Parameters
    ----------
    address : str
        Broker, `tcp://HOST:PORT`.
    process : callable
        The recipe to run: `(job, arrays, progress) -> Processed`.
    prepare : callable
        Called once before the worker offers itself, with `compute_on`; says what it computes on.
    compute_on : str or None
        `cpu`, `cuda` or `cuda:N`; None for CUDA where there is one.
    threads : int or None
        Threads of the numerical libraries; None for all cores.
    grace_s : float
        Time to finish the present job when told to stop.
    prefix : str
        Begins the worker's name; the service knows its own children by it.
    parent : int or None
        Process with which this one ends, however that one ends.

    Returns
    -------
    int
        Exit status: 0; 3 when the broker refuses this version; 75 when a cancelled job would not
        let go.
    """
    if parent is not None:
        children.die_with_parent(parent)
    device.choose(compute_on, threads)
    worker = Worker(
        address,
        process,
        name=f"{prefix}{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}",
        described=prepare(compute_on),
        grace_s=grace_s,
    )

    def told(number: int, frame: types.FrameType | None) -> None:
        worker.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, told)
    status = worker.run()
    if threading.active_count() > 1:
        # The compute thread still holds a job that was handed back: nothing here is worth waiting
        # for.
        logging.shutdown()
        os._exit(status)
    return status


def main() -> None:
    """What the service starts as a child: `python -m inscan.service.worker ADDRESS ...`."""
    parser = argparse.ArgumentParser(prog="inscan worker")
    parser.add_argument("address")
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--grace", type=float, default=20.0)
    parser.add_argument("--prefix", default="")
    parser.add_argument("--parent", type=int)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    from inscan.service.recipes import process

    sys.exit(
        run_worker(
            given.address,
            process=process,
            compute_on=given.device,
            threads=given.threads,
            grace_s=given.grace,
            prefix=given.prefix,
            parent=given.parent,
        )
    )


if __name__ == "__main__":
    main()
