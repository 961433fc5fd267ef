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
from pathlib import Path

from inscan.callbacks.link import host_of, is_loopback
from inscan.callbacks.pass_file import ENVIRONMENT, Pass, PassError, fitting, read_pass
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
    pass_path: Path | None = None,
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
    pass_path : Path or None
        File of the pass that lets it in; None for the one that `INSCAN_PASS` names, if any.

    Returns
    -------
    int
        Exit status: 0; 3 when the broker refuses this version; 4 when it does not let in this key (any
        more); 75 when a cancelled job would not let go.

    Raises
    ------
    PassError
        If the broker is on another machine and there is no pass, or the pass cannot be used.
    """
    if parent is not None:
        children.die_with_parent(parent)
    key = _key_for(address, pass_path)
    device.choose(compute_on, threads)
    worker = Worker(
        address,
        process,
        name=f"{prefix}{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}",
        described=prepare(compute_on),
        grace_s=grace_s,
        key=key,
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


def _key_for(address: str, path: Path | None) -> Pass | None:
    named = str(path or os.environ.get(ENVIRONMENT) or "")
    if named:
        return fitting(read_pass(Path(named)), named, "worker")
    host = host_of(address)
    if host and not is_loopback(host):
        raise PassError(
            f"{address} is on another machine, and there is no pass for it: have one made there with "
            "`inscan keys new NAME --role worker`, and name its file with --pass or in INSCAN_PASS"
        )
    return None


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
