"""The derived run of a scan that is still growing, as far as it is known from a snapshot."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inscan.service import derived
from inscan.service.derived import Axis, DerivedRun
from inscan.service.messages import InferenceJob, InferenceResult, job_key
from inscan.service.result_view import StoredArray, describe


def expected(
    job: InferenceJob, snapshot: Path, results: Path, raw_start: Mapping[str, Any], now: float
) -> tuple[DerivedRun, Sequence[Axis], Path]:
    """What the final of a snapshot's run will be in Tiled.

    Parameters
    ----------
    job : InferenceJob
        Of the snapshot.
    snapshot : Path
        Its result.
    results : Path
        Folder of finals.

    Returns
    -------
    (DerivedRun, sequence of Axis, Path)
        And the file in which its arrays will be.

    Raises
    ------
    ResultFileError, FileNotFoundError
        As `inscan.service.result_view.describe`: a newer snapshot may have come.
    """
    key = job_key(job.run_uid, job.stream, job.recipe, job.parameters)
    path = results / f"{key}.h5"
    report: dict[str, Any] = {}
    if job.meta.get("energies_ev") is not None:
        report = {"energies_ev": job.meta["energies_ev"]}
    final = job.model_copy(
        update={"key": key, "kind": "final", "result_path": str(path), "fence": 0}
    )
    result = InferenceResult(
        key=key,
        fence=0,
        result_path=str(path),
        digest="",
        report=report,
        regions=[],
        timings={},
    )
    arrays = [_grown(array, job.meta) for array in describe(snapshot)]
    run = derived.compose(final, result, arrays, raw_start, now)
    return run, derived.axes_of(job.meta, report, run.arrays), path


def _grown(array: StoredArray, meta: dict[str, Any]) -> StoredArray:
    """An array of a stack's snapshot as the final will have it: with all energies."""
    energies = meta.get("energies_ev")
    if energies is None or array.dims[:1] != ("energy",):
        return array
    labels = tuple(f"{float(energy):.2f} eV" for energy in energies)
    return dataclasses.replace(array, shape=(len(energies), *array.shape[1:]), labels=labels)
