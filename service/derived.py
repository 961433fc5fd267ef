"""The derived run: what a result is in Bluesky's words. Pure composition, no files, no network."""

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inscan.callbacks.geometry import ScanGeometry
from inscan.service.messages import NAMESPACE, InferenceJob, InferenceResult, derived_uid
from inscan.service.provenance import provenance_of
from inscan.service.result_view import StoredArray

ACCESS_KEYS = ("data_session", "proposal", "tiled_access_tags", "cycle", "project", "facility")
"""Copied verbatim from the raw start document: who may see the raw run may see the result, and nobody else."""
COPIED_KEYS = (
    "scan_id",
    "beamline_id",
    "sample",
    "purpose",
    "group",
    "owner",
    "parent_uid",
    "region",
    "rescan_proposal",
    "replay_of",
)
"""Copied from the raw start document where it has them, so that people find both runs by the same words."""
SPECS = {
    "n2n": "XRFDenoisedMap",
    "superres": "XRFSuperResolvedMap",
    "subspace": "XANESDenoisedStack",
    "spectral": "XRFDenoisedSpectra",
    "composite": "InscanComposite",
}
FAILED_SPEC = "InscanFailure"
_DIMS = {"row": "y", "col": "x"}
_OBJECT = "inscan"


@dataclass(frozen=True)
class Axis:
    """Positions along one dimension: `values` float64 (n,), in `units` of `motor` (empty when it is no motor)."""

    dim: str
    values: np.ndarray
    units: str
    motor: str = ""


@dataclass(frozen=True)
class DerivedRun:
    """Documents of one derived run, and where its arrays go.

    Attributes
    ----------
    uid : str
        Follows from the job's key.
    specs : tuple of str
        Its kind, most specific first; `BlueskyRun` is added by whoever writes it.
    access_tags : tuple of str or None
    start, stop : dict
    descriptor : dict or None
        None for a failure, which has no data.
    arrays : tuple of StoredArray
        With `dims` as they are called in Tiled.
    """

    uid: str
    specs: tuple[str, ...]
    access_tags: tuple[str, ...] | None
    start: dict[str, Any]
    descriptor: dict[str, Any] | None
    stop: dict[str, Any]
    arrays: tuple[StoredArray, ...] = ()


def compose(
    job: InferenceJob,
    result: InferenceResult,
    arrays: Sequence[StoredArray],
    raw_start: Mapping[str, Any],
    now: float,
) -> DerivedRun:
    """Compose the derived run of a result.

    Parameters
    ----------
    arrays : sequence of StoredArray
        As in the result file.
    raw_start : mapping
        Start document of the raw run.
    now : float
        Seconds since the epoch: time of the derived run.

    Returns
    -------
    DerivedRun
        One event of stream `primary` whose data keys are the arrays, in the result file.
    """
    placed = tuple(name_dims(arrays))
    start = {
        **_start(job.key, job.run_uid, job.stream, job.recipe, raw_start, now),
        "technique": job.meta.get("technique"),
        "quantity": job.meta.get("quantity"),
        "elements": job.meta.get("elements"),
        "references": [one["name"] for one in job.meta.get("references") or []] or None,
        "complete": job.meta.get("complete"),
        "warnings": job.meta.get("warnings", []),
        "geometry": job.meta.get("geometry"),
        "verdict": result.report.get("verdict"),
        "report": result.report,
        "result_digest": result.digest,
        "provenance": provenance_of(job, result),
    }
    uid = start["uid"]
    return DerivedRun(
        uid=uid,
        specs=(SPECS[job.recipe],),
        access_tags=_access_tags(raw_start),
        start=plain({key: value for key, value in start.items() if value is not None}),
        descriptor=plain(_descriptor(job, placed, axes_of(job.meta, result.report, placed), now)),
        stop=plain(_stop(job.key, uid, now, "success", "", {"primary": 1})),
        arrays=placed,
    )


def compose_failure(
    key: str,
    run_uid: str,
    stream: str,
    recipe: str,
    raw_start: Mapping[str, Any],
    code: str,
    reason: str,
    now: float,
) -> DerivedRun:
    """Compose the record of a job that failed: a derived run without data whose stop says why."""
    start = {
        **_start(key, run_uid, stream, recipe, raw_start, now),
        "failure": {"code": code, "reason": reason},
        "provenance": {"key": key, "method": recipe},
    }
    return DerivedRun(
        uid=start["uid"],
        specs=(FAILED_SPEC,),
        access_tags=_access_tags(raw_start),
        start=plain(start),
        descriptor=None,
        stop=plain(_stop(key, start["uid"], now, "fail", f"{code}: {reason}", {})),
    )


def name_dims(arrays: Sequence[StoredArray]) -> list[StoredArray]:
    """Rename row and col to y and x, and give axes of one name but different lengths different names.

    A reader that joins arrays by the names of their axes (xarray does) would otherwise refuse them, or worse.
    """
    lengths: dict[str, int] = {}
    named = []
    for array in arrays:
        dims: list[str] = []
        for dim, length in zip(array.dims, array.shape, strict=True):
            name = _DIMS.get(dim, dim)
            if lengths.setdefault(name, length) != length or name in dims:
                name = f"{name}_{array.name}"
                name += f"_{dims.count(name) + 1}" if name in dims else ""
                lengths[name] = length
            dims.append(name)
        named.append(
            StoredArray(
                array.name,
                array.dataset,
                array.shape,
                array.dtype,
                tuple(dims),
                array.units,
                array.labels,
            )
        )
    return named


def axes_of(
    meta: Mapping[str, Any], report: Mapping[str, Any], arrays: Sequence[StoredArray]
) -> list[Axis]:
    """Positions along y, x, energy and bin, for the lengths that the arrays have.

    A stack that was cut short has fewer energies than were planned: the report names those it has. A super-resolved map
    has more pixels than the survey on the same field: its axes are the centres of the small pixels.
    """
    lengths = {dim: n for array in arrays for dim, n in zip(array.dims, array.shape, strict=True)}
    axes = []
    if meta.get("geometry"):
        geometry = ScanGeometry.from_dict(meta["geometry"])
        centres = geometry.positions()
        for dim, known, first, step, units, motor in (
            (
                "y",
                centres[0, :, 0],
                geometry.slow_first,
                geometry.slow_step,
                geometry.slow_units,
                geometry.slow_motor,
            ),
            (
                "x",
                centres[1, 0],
                geometry.fast_first,
                geometry.fast_step,
                geometry.fast_units,
                geometry.fast_motor,
            ),
        ):
            length = lengths.get(dim)
            if length is None:
                continue
            values = known
            if length != len(known):
                finer = len(known) / length
                values = first + step * ((np.arange(length) + 0.5) * finer - 0.5)
            axes.append(Axis(dim, values, units, motor))
    energies = report.get("energies_ev") or meta.get("energies_ev")
    if energies is not None and lengths.get("energy") == len(energies):
        axes.append(Axis("energy", np.asarray(energies, dtype=float), "eV"))
    bins = meta.get("bin_energies_ev")
    if bins is not None and lengths.get("bin") == len(bins):
        axes.append(Axis("bin", np.asarray(bins, dtype=float), "eV"))
    pixel = meta.get("pixel_size_um")
    if pixel and not meta.get("geometry"):
        axes += [
            Axis(dim, np.arange(lengths[dim]) * float(pixel), "um")
            for dim in ("y", "x")
            if dim in lengths
        ]
    return axes


def plain(value: Any) -> Any:
    """The same with nothing in it that JSON cannot hold or a document forbids.

    Numpy scalars and arrays become numbers and lists, NaN and infinities None; `.` and `/` in keys become `_`.
    """
    if isinstance(value, Mapping):
        return {
            str(key).replace(".", "_").replace("/", "_"): plain(item) for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, bool, int)):
        return value
    return str(value)


def _start(
    key: str, run_uid: str, stream: str, recipe: str, raw_start: Mapping[str, Any], now: float
) -> dict[str, Any]:
    copied = {name: raw_start[name] for name in (*COPIED_KEYS, *ACCESS_KEYS) if name in raw_start}
    copied.pop("tiled_access_tags", None)  # they are the node's own, as for a raw run
    composed: dict[str, Any] = {}
    if raw_start.get("purpose") == "composite":
        # Nobody measured it: it is found as a result of its survey, and names all that are in it.
        composed = {"composite_uid": run_uid, "raw_uids": list(raw_start.get("raw_uids") or ())}
        run_uid = str(raw_start.get("parent_uid"))
    return {
        **copied,
        **composed,
        "uid": derived_uid(key),
        "time": now,
        "plan_name": "inscan",
        "raw_uid": run_uid,
        "raw_stream": stream,
        "recipe": recipe,
        "job_key": key,
    }


def _access_tags(raw_start: Mapping[str, Any]) -> tuple[str, ...] | None:
    tags = raw_start.get("tiled_access_tags")
    return None if tags is None else tuple(str(tag) for tag in tags)


def _descriptor(
    job: InferenceJob, arrays: Sequence[StoredArray], axes: Sequence[Axis], now: float
) -> dict[str, Any]:
    keys = {array.name: _data_key(array) for array in arrays}
    for axis in axes:
        keys.setdefault(axis.dim, _axis_key(axis))
    labels = {f"{array.dims[0]}_labels": list(array.labels) for array in arrays if array.labels}
    configuration = {
        name: {"source": _OBJECT, "dtype": "array", "shape": [len(value)]}
        for name, value in labels.items()
    }
    return {
        "uid": _uid(job.key, "descriptor"),
        "time": now,
        "data_keys": keys,
        "configuration": {
            _OBJECT: {
                "data": labels,
                "timestamps": dict.fromkeys(labels, now),
                "data_keys": configuration,
            }
        },
        "hints": {_OBJECT: {"fields": [array.name for array in arrays[:2]]}},
    }


def _data_key(array: StoredArray) -> dict[str, Any]:
    key: dict[str, Any] = {
        "source": _OBJECT,
        "object_name": _OBJECT,
        "dtype": "array",
        "dtype_numpy": array.dtype,
        "shape": list(array.shape),
        "dims": list(array.dims),
        "units": array.units,
        "external": "STREAM:",
    }
    if array.labels is not None:
        key["labels"] = list(array.labels)
    return key


def _axis_key(axis: Axis) -> dict[str, Any]:
    return {
        "source": axis.motor or _OBJECT,
        "object_name": _OBJECT,
        "dtype": "array",
        "dtype_numpy": "<f8",
        "shape": [len(axis.values)],
        "dims": [axis.dim],
        "units": axis.units,
        "external": "STREAM:",
        "motor": axis.motor,
    }


def _stop(
    key: str, uid: str, now: float, status: str, reason: str, events: dict[str, int]
) -> dict[str, Any]:
    return {
        "uid": _uid(key, "stop"),
        "run_start": uid,
        "time": now,
        "exit_status": status,
        "reason": reason,
        "num_events": events,
    }


def _uid(key: str, what: str) -> str:
    return str(uuid.uuid5(NAMESPACE, f"{key}/{what}"))
