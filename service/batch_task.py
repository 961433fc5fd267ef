"""What is sent to a Dask worker for one run, and what the worker does with it.

Everything here goes over the network as a pickle, because that is how Dask works; so it holds no secret. A worker finds
Tiled's key where the service's own tools find it: in its environment, or in the state directory.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inscan.callbacks.profile import BeamlineProfile
from inscan.service.offline import Wanted, process_run
from inscan.service.offline_job import Record
from inscan.service.offline_store import ResultStore
from inscan.service.show import tiled_of
from inscan.service.stored_runs import find_run

__all__ = ["BatchTask", "process_one"]


@dataclass(frozen=True)
class BatchTask:
    """How the runs of an archive are processed; the same for all of them.

    Attributes
    ----------
    uri : str
        Address of the Tiled that holds the runs and gets the results.
    state : Path
        State directory in which a worker finds its key, unless the environment has `INSCAN_TILED_API_KEY`.
    profiles : tuple of dict
        Content of the profiles, each with the `folder` against which its files are read.
    data_roots : tuple of Path
    readable : Path or None
        Folder that this Tiled may read: result files are written there and registered. None: they are uploaded.
    again : bool
        Whether results that are there are computed once more, and compared.
    threads : int
        Threads that torch may use for one run.
    """

    uri: str
    state: Path
    profiles: tuple[Mapping[str, Any], ...]
    data_roots: tuple[Path, ...] = ()
    readable: Path | None = None
    again: bool = False
    threads: int = 1


def process_one(task: BatchTask, run_uid: str) -> list[Record]:
    """Process one run and commit its results; the function that Dask runs.

    Results that are in Tiled already are not computed, so that a task that is run twice, here or by a live service,
    does no harm.

    Raises
    ------
    ConnectionError, PermissionError
        Tiled does not answer, or refuses the key: no fault of the run.
    """
    # Set before torch is loaded: it reads this once.
    os.environ.setdefault("OMP_NUM_THREADS", str(task.threads))
    access = tiled_of(task.state, task.uri)
    try:
        stored = find_run(run_uid, state=task.state, tiled=task.uri)
    except LookupError as error:
        return [Record(run_uid, "failed", str(error))]
    profiles = tuple(BeamlineProfile(**content) for content in task.profiles)
    with tempfile.TemporaryDirectory(prefix="inscan-run-") as scratch:
        wanted = Wanted(
            profiles,
            folder=task.readable,
            data_roots=task.data_roots,
            scratch=Path(scratch),
            again=task.again,
        )
        readable: Sequence[Path] = () if task.readable is None else (task.readable,)
        with ResultStore(access.uri, access.api_key, readable=readable) as store:
            return process_run(stored, wanted, store)
