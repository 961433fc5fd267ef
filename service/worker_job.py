"""One job on a worker: arrays in, recipe, result file out. No sockets of its own, no thread of its
own."""

import logging
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from inscan.callbacks.link import host_id
from inscan.callbacks.pass_file import Pass
from inscan.service import device, disk, spool, transfer
from inscan.service.messages import Fail, InferenceJob, InferenceResult
from inscan.service.processed import Processed
from inscan.service.result_file import write_result

Process = Callable[[InferenceJob, Mapping[str, np.ndarray], Callable[[float], None]], Processed]
_log = logging.getLogger(__name__)


class Cancelled(Exception):
    """The broker wants this job no longer."""


class BadResult(ValueError):
    """What a recipe returned is no result."""


def execute(
    job: InferenceJob,
    process: Process,
    progress: Callable[[float], None],
    spool_address: str,
    key: Pass | None = None,
) -> InferenceResult:
    """Run a job to the end.

    Parameters
    ----------
    process : callable
        The recipe: `(job, arrays, progress) -> Processed`.
    progress : callable
        Called with the fraction done; raises `Cancelled` when the job is not wanted any more.
    spool_address : str
        Where to fetch from and put to when this process does not see the job's files.
    key : Pass or None
        What lets this worker in there.
    """
    timings: dict[str, float] = {}
    here = job.host_id == host_id() and Path(job.spool).is_dir()
    started = time.monotonic()
    if here:
        arrays = spool.load(Path(job.spool), job.arrays)
    else:
        arrays = transfer.fetch(spool_address, job, lambda: progress(0.0), key)
    timings["mapped"] = time.monotonic() - started
    started = time.monotonic()
    processed = process(job, arrays, progress)
    check(processed, arrays)
    processed = replace(processed, report=plain(processed.report), regions=plain(processed.regions))
    timings["inference"] = time.monotonic() - started
    progress(1.0)
    meta = _meta(job)
    if here:
        digest = write_result(Path(job.result_path), processed, meta, timings=timings)
    else:
        with tempfile.TemporaryDirectory(prefix="inscan-") as folder:
            path = Path(folder) / "result.h5"
            digest = write_result(path, processed, meta, timings=timings)
            started = time.monotonic()
            transfer.put(spool_address, job, path, lambda: progress(1.0), key)
            timings["sent"] = time.monotonic() - started
    return InferenceResult(
        key=job.key,
        fence=job.fence,
        result_path=job.result_path,
        digest=digest,
        report=processed.report,
        regions=processed.regions,
        timings=timings,
    )


def explain(job: InferenceJob, error: BaseException) -> Fail:
    """What an exception means for the job: whether another try could end otherwise."""
    text = f"{type(error).__name__}: {error}"[:4000]
    if isinstance(error, Cancelled):
        code, retryable = "cancelled", True
    elif isinstance(error, BadResult):
        code, retryable = "bad_result", False
    elif device.is_out_of_memory(error):
        code, retryable = "too_large", False
    elif disk.will_pass(error):
        # Of the machine, for as long as it lasts: it must not use up the job's tries.
        code, retryable = "machine", True
    elif isinstance(error, OSError):
        code, retryable = "io", True
    elif isinstance(error, (ValueError, TypeError, LookupError, ArithmeticError, AssertionError)):
        # The same arrays and the same parameters would say the same again.
        code, retryable = "bad_input", False
    else:
        code, retryable = "error", True
    return Fail(key=job.key, fence=job.fence, code=code, message=text, retryable=retryable)


def check(processed: Processed, arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse a result of NaN alone where something was measured: nobody should look for an error in the sample.

    Raises
    ------
    BadResult
        Saying how much was measured.
    """
    measured = int(np.count_nonzero(arrays.get("measured", 0)))
    for array in processed.arrays:
        if array.name == "values" and measured and not np.isfinite(array.values).any():
            raise BadResult(f"no value is a number, though {measured} pixels were measured")


def plain(value: Any) -> Any:
    """The same as JSON can hold it: numpy's numbers and arrays as Python's, NaN and infinities as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def _meta(job: InferenceJob) -> dict[str, Any]:
    return {
        "key": job.key,
        "run_uid": job.run_uid,
        "stream": job.stream,
        "kind": job.kind,
        "recipe": job.recipe,
        "parameters": job.parameters,
        "assembled": job.meta,
    }
