"""`inscan process --query ... --dask ...`: many stored runs on a Dask cluster, each by the function that serves one.

Dask schedules; this hands it runs, a few at a time, and writes down what became of each. A job that was killed
is simply started again: runs that its records call done are left out, and nothing is computed that Tiled has.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from inscan.service.batch_query import BatchQuery
from inscan.service.batch_task import BatchTask, process_one
from inscan.service.offline_job import Record
from inscan.service.show import TiledAccess
from inscan.service.stored_runs import open_runs

__all__ = ["BatchSummary", "ClusterError", "cluster", "process_batch"]

_AHEAD = 2  # runs handed out for each worker thread: one at work, one waiting
_RETRIES = 2  # of a run whose Tiled did not answer
_LOCAL = "local"


class ClusterError(ConnectionError):
    """Dask is not installed, or its scheduler does not answer."""


@dataclass
class BatchSummary:
    """What became of an archive.

    Attributes
    ----------
    runs : int
        Runs that were looked at.
    states : Counter
        Results by `done` (computed now), `there` (before, by whomever), `failed`, `passed_by`.
    failures : list of Record
    seconds : float
    """

    runs: int = 0
    states: Counter[str] = field(default_factory=Counter)
    failures: list[Record] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, records: Sequence[Record]) -> None:
        """Count one run."""
        self.runs += 1
        for record in records:
            self.states["there" if record.fate == "there" else record.state] += 1
            if record.state == "failed":
                self.failures.append(record)


@contextmanager
def cluster(address: str, *, workers: int, memory: str) -> Iterator[Any]:
    """A Dask client, closed at the end; a cluster of this machine's own with it where that is asked for.

    Parameters
    ----------
    address : str
        ``local``: worker processes on this machine, reachable from it alone. Else the address of a scheduler,
        ``tcp://HOST:8786`` or ``tls://HOST:8786`` (certificates from Dask's own configuration).
    workers : int
        Of a local cluster, one thread each.
    memory : str
        Limit of each local worker, such as ``4GiB``: Dask restarts one that passes it.

    Raises
    ------
    ClusterError
        With what to do.
    """
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise ClusterError('Dask is not installed here: pip install "inscan[dask]"') from error
    if address == _LOCAL:
        with (
            LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                memory_limit=memory,
                host="127.0.0.1",
                # Any free port: two jobs on one machine must not fight over Dask's usual one.
                dashboard_address="127.0.0.1:0",
            ) as local,
            Client(local) as client,
        ):
            yield client
        return
    try:
        client = Client(address, timeout="10s")
    except (OSError, ValueError) as error:
        raise ClusterError(f"no Dask scheduler at {address}: {error}") from error
    with client:
        yield client


def process_batch(
    client: Any,
    access: TiledAccess,
    query: BatchQuery,
    task: BatchTask,
    *,
    records: Path,
    tell: Callable[[BatchSummary, int | None], None],
    most: int | None = None,
) -> BatchSummary:
    """Process the runs of a query.

    Parameters
    ----------
    client : distributed.Client
    access : TiledAccess
        The Tiled that is asked for runs.
    query : BatchQuery
    task : BatchTask
    records : Path
        File to which the record of each result is appended, a JSON object a line, as it comes; and beside it
        ``.failed`` with those of failed runs alone, written anew. Runs that it calls done are not looked at again.
    tell : callable
        Told the summary so far and how many runs there are in all, after every run.
    most : int or None
        Stop after so many runs.

    Raises
    ------
    ConnectionError, PermissionError
        Tiled does not answer, or refuses the key.
    OSError
        The records cannot be written.
    """
    from distributed import as_completed

    began, summary = time.monotonic(), BatchSummary()
    before = set() if task.again else _done(records)
    with open_runs(access) as container:
        uids = [uid for uid in query.uids(container) if uid not in before][:most]
    waiting, total = iter(uids), len(uids)
    tell(summary, total)
    ahead = _AHEAD * max(1, sum(client.nthreads().values()))
    records.parent.mkdir(parents=True, exist_ok=True)
    asked: dict[Any, str] = {}
    finished = as_completed()

    def hand_out() -> None:
        """One more run for the cluster, so that neither it nor this process ever holds thousands."""
        uid = next(waiting, None)
        if uid is not None:
            # A name of its own for each task: Dask must not take one for another that looks alike.
            key = f"inscan-{uid}-{time.time_ns()}"
            future = client.submit(process_one, task, uid, key=key, pure=False, retries=_RETRIES)
            asked[future] = uid
            finished.add(future)

    with records.open("a+", encoding="utf-8") as file:
        _end_line(file)
        for _ in range(min(ahead, total)):
            hand_out()
        for future in finished:
            uid = asked.pop(future)
            made = _records_of(future, uid)
            future.release()
            summary.add(made)
            for record in made:
                file.write(json.dumps(asdict(record)) + "\n")
            file.flush()
            summary.seconds = time.monotonic() - began
            tell(summary, total)
            hand_out()
    _write_failures(records, summary.failures)
    return summary


def _end_line(file: TextIO) -> None:
    """A job that was killed while it wrote must not take the next record with its torn one."""
    file.seek(0)
    text = file.read()
    if text and not text.endswith("\n"):
        file.write("\n")


def _done(records: Path) -> set[str]:
    """Runs all of whose results an earlier job recorded as done; a torn last line is none."""
    states: dict[str, set[str]] = {}
    if records.exists():
        for line in records.read_text(encoding="utf-8").splitlines():
            try:
                one = json.loads(line)
                states.setdefault(one["run_uid"], set()).add(one["state"])
            except (ValueError, KeyError, TypeError):
                continue
    return {uid for uid, known in states.items() if "failed" not in known}


def _records_of(future: Any, uid: str) -> list[Record]:
    """What a task returned; a failure record where the task itself came to grief."""
    error = future.exception()
    if error is None:
        return list(future.result())
    # Among them KilledWorker: the run took several workers with it (memory), and is not tried for ever.
    return [Record(uid, "failed", f"{type(error).__name__}: {error}", retryable=True)]


def _write_failures(records: Path, failures: Sequence[Record]) -> None:
    path = records.with_name(f"{records.stem}.failed{records.suffix}")
    latest = {(one.run_uid, one.stream): one for one in failures}
    path.write_text(
        "".join(json.dumps(asdict(one)) + "\n" for one in latest.values()), encoding="utf-8"
    )
