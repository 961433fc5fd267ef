"""One result of one run, offline: the job a service would have made, done here, and its record."""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from inscan.callbacks.link import host_id
from inscan.callbacks.updates import Update
from inscan.service.digest import digest_arrays
from inscan.service.messages import (
    ArraySpec,
    Fail,
    InferenceJob,
    InferenceResult,
    derived_uid,
    job_key,
)
from inscan.service.offline_store import ResultStore
from inscan.service.result_file import ResultFileError, read_result
from inscan.service.result_view import digest_of
from inscan.service.spool import SpoolRun, load
from inscan.service.tiled_http import TiledRefusedKey, TiledRejected, TiledUnavailable
from inscan.service.worker_job import execute, explain

State = Literal["done", "failed", "passed_by"]
Progress = Callable[[float, str], None]
"""Called with the fraction done, 0 to 1, and what is being done."""


@dataclass(frozen=True)
class Record:
    """What became of one result of one run.

    Attributes
    ----------
    run_uid, scan_id, stream, recipe
        What it is of; `stream` and `recipe` are empty where the run did not get that far.
    state : str
        `done`; `failed`; `passed_by`: not a run for inscan.
    reason : str
        Why it failed or was passed by; empty when done.
    retryable : bool
        For a failure: whether another try could end otherwise.
    key, result_uid : str
        Of the job, and of the derived run that holds the result in Tiled.
    path : str
        The result file; empty where it was only uploaded.
    digest, input_digest : str
        Of the result's arrays, and of what they were computed from.
    fate : str
        In Tiled: `written`; `same` or `differs` when it got there first by another way; `there` when it was there
        before, and nothing was computed. Empty without Tiled.
    verdict : str
    notes : tuple of str
        Reasons of the verdict, and warnings.
    seconds : float
    """

    run_uid: str
    state: State
    reason: str = ""
    scan_id: int | None = None
    stream: str = ""
    recipe: str = ""
    retryable: bool = False
    key: str = ""
    result_uid: str = ""
    path: str = ""
    digest: str = ""
    input_digest: str = ""
    fate: str = ""
    verdict: str = ""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Place:
    """Where one run is processed: its spool folder, where its results go, and how."""

    spool: SpoolRun
    results: Path
    again: bool
    store: ResultStore | None
    start: Mapping[str, Any]
    blank: Record


def result_of(
    update: Update,
    recipe: Any,
    parameters: dict[str, Any],
    arrays: dict[str, ArraySpec],
    refines: str,
    place: Place,
    progress: Progress,
) -> Record:
    """Compute and commit one result, unless it is there already.

    Parameters
    ----------
    update : Update
        The final of a run, or what stands for one.
    recipe, parameters
        As in `inscan.service.messages.InferenceJob`; the key follows from them.
    arrays : dict of str to ArraySpec
        Of `place.spool`.
    refines : str
        Key of the result that this one is to supersede, or empty.

    Raises
    ------
    TiledUnavailable, TiledRefusedKey
        As `inscan.service.offline.process_run`.
    ValueError
        When the request itself cannot be put into words.
    """
    key = job_key(update.run_uid, update.stream, recipe, parameters)
    record = replace(
        place.blank,
        stream=update.stream,
        recipe=recipe,
        key=key,
        notes=tuple(str(text) for text in update.meta.get("warnings", [])),
    )
    there = None if place.store is None or place.again else place.store.find(key)
    if there is not None:
        return _there(record, there)
    path = place.results / _file_name(update, recipe, key, place.store is not None)
    if place.store is None and not place.again and _holds(path, key):
        return _kept(record, path)
    job = InferenceJob(
        key=key,
        run_uid=update.run_uid,
        stream=update.stream,
        kind="final",
        recipe=recipe,
        parameters=parameters,
        meta=update.meta,
        spool=str(place.spool.folder),
        arrays=arrays,
        input_digest="",
        result_path=str(path),
        refines=refines,
        host_id=host_id(),
    )
    try:
        # Here: loading torch takes seconds, which a command that finds everything done does not have to spend.
        from inscan.service.recipes import process

        job = job.model_copy(
            update={"input_digest": digest_arrays(load(place.spool.folder, arrays))}
        )
        result = execute(job, process, lambda share: progress(share, recipe), "")
    except Exception as error:  # noqa: BLE001 - one run's defect is not the others'
        why = explain(job, error)
        return _failed(record, job, why, place)
    return _committed(replace(record, input_digest=job.input_digest), job, result, place)


def _committed(record: Record, job: InferenceJob, result: InferenceResult, place: Place) -> Record:
    done = replace(
        record,
        state="done",
        path=result.result_path,
        digest=result.digest,
        verdict=str(result.report.get("verdict") or ""),
        notes=(*map(str, result.report.get("reasons", [])), *record.notes),
    )
    if place.store is None:
        return done
    path = Path(result.result_path)
    try:
        fate = place.store.commit(job, result, place.start)
    except (TiledUnavailable, TiledRefusedKey):
        path.unlink(missing_ok=True)
        raise
    except (ValueError, OSError) as error:
        return replace(record, reason=f"{type(error).__name__}: {error}")
    stays = place.store.keeps(path) and path.exists()
    if fate == "differs":
        text = "Tiled had another result of the same request, which stands"
        done = replace(done, notes=(*done.notes, text))
    return replace(done, fate=fate, result_uid=derived_uid(job.key), path=str(path) * stays)


def _failed(record: Record, job: InferenceJob, why: Fail, place: Place) -> Record:
    """As live, a failure that another try would not mend is recorded in Tiled."""
    record = replace(record, reason=why.message, retryable=why.retryable)
    if place.store is None or why.retryable:
        return record
    try:
        place.store.fail(job, why, place.start)
    except TiledRejected as error:
        return replace(record, notes=(*record.notes, f"the failure is not in Tiled: {error}"))
    return record


def _there(record: Record, start: Mapping[str, Any]) -> Record:
    report = start.get("report") or {}
    return replace(
        record,
        state="done",
        fate="there",
        result_uid=str(start["uid"]),
        digest=str(start.get("result_digest", "")),
        input_digest=str((start.get("provenance") or {}).get("input_digest", "")),
        verdict=str(start.get("verdict") or ""),
        notes=(*map(str, report.get("reasons", [])), *map(str, start.get("warnings", []))),
    )


def _kept(record: Record, path: Path) -> Record:
    report = read_result(path).processed.report
    return replace(
        record,
        state="done",
        fate="there",
        path=str(path),
        digest=digest_of(path),
        verdict=str(report.get("verdict") or ""),
        notes=(*map(str, report.get("reasons", [])), *record.notes),
    )


def _holds(path: Path, key: str) -> bool:
    """Whether a file is the whole result of a job."""
    try:
        return path.exists() and read_result(path).meta.get("key") == key
    except ResultFileError:
        return False


def _file_name(update: Update, recipe: str, key: str, shared: bool) -> str:
    """A name for people; or one that no other writer of the same result has, in a folder that Tiled reads."""
    if shared:
        return f"{key}.offline-{uuid.uuid4().hex[:12]}.h5"
    plain = "".join(
        letter if letter.isalnum() or letter in "-_" else "_" for letter in update.stream
    )
    name = str(update.meta.get("file_stem") or update.run_uid[:8])
    return f"{name}-{plain}-{recipe}-{key[:8]}.h5"
