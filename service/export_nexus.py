"""A result as NeXus: an NXdata for each array with its axes and errors, and an NXprocess that says how it was made.

There is no application definition for fluorescence maps in NeXus; NXdata and NXprocess are base classes that every
NeXus reader knows (manual.nexusformat.org, classes NXdata and NXprocess).
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from inscan.service.export_result import ExportArray, ExportResult

__all__ = ["write_nexus"]

_ERRORS = "_errors"
# What belongs to `values` in the same NXdata: name of the array -> name of the field.
_BESIDE = {"sigma": f"values{_ERRORS}", "lower": "lower", "upper": "upper", "raw": "raw"}


def write_nexus(path: Path, result: ExportResult, step: Callable[[], None]) -> None:
    """Write one result.

    Parameters
    ----------
    path : Path
        Written under this name directly: give a temporary one.
    result : ExportResult
    step : callable
        Called after each part.

    Raises
    ------
    OSError
        When it cannot be written.
    """
    start = result.start
    with h5py.File(path, "w") as file:
        _class(file, "NXroot", default="entry", creator="inscan", creator_version=version("inscan"))
        entry = _class(file.create_group("entry"), "NXentry", default="values")
        _text(entry, "entry_identifier_uuid", start["uid"])
        _text(entry, "title", f"{result.stem} {start.get('recipe', '')}")
        _text(entry, "start_time", _time(result.raw_start.get("time", start.get("time"))))
        if start.get("scan_id") is not None:
            entry["entry_identifier"] = str(start["scan_id"])
        sample = start.get("sample")
        if sample is not None:
            group = _class(entry.create_group("sample"), "NXsample")
            _text(group, "name", sample if isinstance(sample, str) else json.dumps(sample))
        data = _class(entry.create_group("values"), "NXdata")
        values = result.arrays["values"]
        _field(data, "values", values, step)
        for name, field in _BESIDE.items():
            array = result.arrays.get(name)
            if array is not None and array.shape == values.shape:
                _field(data, field, array, step)
        _axes(data, "values", values, result)
        for name, array in result.arrays.items():
            if name in data or name in _BESIDE or name.endswith("_sigma") or not array.shape:
                continue
            other = _class(entry.create_group(name), "NXdata")
            _field(other, name, array, step)
            _axes(other, name, array, result)
            errors = result.arrays.get(f"{name}_sigma")
            if errors is not None and errors.shape == array.shape:
                _field(other, f"{name}{_ERRORS}", errors, step)
        _process(entry, result)


def _process(entry: h5py.Group, result: ExportResult) -> None:
    start = result.start
    group = _class(entry.create_group("process"), "NXprocess")
    provenance = start.get("provenance") or {}
    _text(group, "program", "inscan")
    _text(group, "version", (provenance.get("versions") or {}).get("inscan") or version("inscan"))
    _text(group, "date", _time(start.get("time")))
    _text(group, "raw_uid", start.get("raw_uid", ""))
    _text(group, "verdict", start.get("verdict") or "")
    for name in ("provenance", "report", "warnings", "geometry"):
        note = _class(group.create_group(name), "NXnote")
        _text(note, "type", "application/json")
        _text(note, "data", json.dumps(start.get(name)))


def _axes(group: h5py.Group, signal: str, array: ExportArray, result: ExportResult) -> None:
    group.attrs["signal"] = signal
    group.attrs["axes"] = list(array.dims)
    for index, (dim, length) in enumerate(zip(array.dims, array.shape, strict=True)):
        if dim in group:
            continue
        if index == 0 and array.labels and dim not in result.axes:
            group.create_dataset(dim, data=list(array.labels), dtype=h5py.string_dtype())
        else:
            axis = result.axis(dim, length)
            dataset = group.create_dataset(dim, data=axis.values)
            dataset.attrs["units"] = axis.units
            if axis.motor:
                dataset.attrs["long_name"] = axis.motor
        group.attrs[f"{dim}_indices"] = index


def _field(group: h5py.Group, name: str, array: ExportArray, step: Callable[[], None]) -> None:
    # NeXus has no booleans; 0 and 1 are what its readers expect.
    kind = np.dtype("u1") if array.dtype.kind == "b" else array.dtype
    dataset = group.create_dataset(name, array.shape, kind)
    dataset.attrs["units"] = array.units
    for index, part in array.parts():
        dataset[index] = part
        step()


def _class(group: Any, name: str, **attributes: str) -> Any:
    group.attrs["NX_class"] = name
    for key, value in attributes.items():
        group.attrs[key] = value
    return group


def _text(group: h5py.Group, name: str, text: Any) -> None:
    # A dataset, not an attribute: those may not pass 64 KiB.
    group.create_dataset(name, data=str(text), dtype=h5py.string_dtype())


def _time(seconds: Any) -> str:
    known = isinstance(seconds, int | float)
    return datetime.fromtimestamp(seconds, UTC).isoformat() if known else ""
