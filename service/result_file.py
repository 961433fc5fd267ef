"""Result files: HDF5 with contiguous datasets, complete and on disk before their name exists."""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from inscan.service.digest import digest_arrays
from inscan.service.disk import blames_machine, give_back, reserve
from inscan.service.plain_hdf5 import array_in, check_heaps, member
from inscan.service.processed import BornWeights, Processed, ResultArray

FORMAT = 1
DATA = "entry/data"
"""Group of the arrays: `values` is the dataset `entry/data/values`."""
WEIGHTS = "entry/weights"
"""Group of the weights fitted to the run, if any: `safetensors` (bytes) and `card` (JSON)."""
MAX_WEIGHTS_BYTES = 64 << 20
"""More than any network of ours has; a claim beyond it is not read."""

_MARGIN = 256 << 10
"""Bytes that HDF5 may need for itself."""


DAMAGED = (
    OSError,
    KeyError,
    IndexError,
    ValueError,
    AttributeError,
    TypeError,
    OverflowError,
    RuntimeError,
    MemoryError,
)
"""What a file of any content makes HDF5 and the reading of JSON raise."""


class ResultFileError(ValueError):
    """A file that is no result of ours, or is damaged."""


@dataclass(frozen=True)
class StoredResult:
    """A result as read back: the processed arrays, and the `meta` written beside them."""

    processed: Processed
    meta: dict[str, Any]


def write_result(
    path: Path,
    processed: Processed,
    meta: dict[str, Any],
    *,
    timings: dict[str, float] | None = None,
) -> str:
    """Write a result so that nobody ever sees half of it.

    Parameters
    ----------
    path : Path
        Its final name; the folder exists. An older file of that name is replaced in one step.
    processed : Processed
        Arrays of any shape, float32 or bool; report and regions that JSON can hold.
    meta : dict
        What belongs beside the arrays: key, run_uid, geometry, units.
    timings : dict or None
        Receives `written` and `synced`, in seconds.

    Returns
    -------
    str
        Digest of the arrays (`inscan.service.digest`): equal for equal results, whatever their
        report says.

    Raises
    ------
    OSError
        When the file cannot be written; nothing is left behind.
    """
    started = time.monotonic()
    arrays = {array.name: np.ascontiguousarray(array.values) for array in processed.arrays}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    _sweep_up(path)
    # The digest is taken while the disk works: neither waits for the other.
    digests: list[str] = []
    digester = threading.Thread(target=lambda: digests.append(digest_arrays(arrays)), name="digest")
    digester.start()
    try:
        _write(temporary, processed, arrays, meta)
        written = time.monotonic()
        sync_path(temporary)
        os.replace(temporary, path)
        sync_path(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        digester.join()
    if timings is not None:
        timings["written"] = written - started
        timings["synced"] = time.monotonic() - written
    return digests[0] if digests else digest_arrays(arrays)


def _write(
    path: Path, processed: Processed, arrays: dict[str, np.ndarray], meta: dict[str, Any]
) -> None:
    texts = _texts(processed, meta)
    weights = b"" if processed.weights is None else processed.weights.blob
    needed = _MARGIN + len(weights) + sum(array.nbytes for array in arrays.values())
    needed += 2 * sum(len(text.encode()) for text in texts.values())
    path.touch()
    reserve(path, needed)
    with h5py.File(path, "w") as file:
        # Opening it anew has given the room back; from here on HDF5 finds all that it asks for.
        file.flush()
        reserve(path, needed)
        _fill(file, processed, arrays, texts)
    give_back(path)


def _sweep_up(path: Path) -> None:
    """Remove what a process that died left of the same job: while the service runs nobody else would."""
    for left in path.parent.glob(f".{path.name.partition('.')[0]}.*.tmp"):
        owner = left.name.split(".")[-3]
        if owner.isdigit() and not Path("/proc", owner).exists():
            left.unlink(missing_ok=True)


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """Open a result file to be read in a `with`, once what could hang HDF5 has been looked for.

    Raises
    ------
    FileNotFoundError
        When there is none.
    ResultFileError
        When it is no result file, or damaged, also where that is noticed within the `with`.
    OSError
        When the disk fails.
    """
    if not path.exists():
        raise FileNotFoundError(f"no result file {path}")
    try:
        check_heaps(path)
        with h5py.File(path, "r") as file:
            yield file
    except DAMAGED as error:
        if blames_machine(error) or isinstance(error, ResultFileError):
            raise
        raise ResultFileError(f"{path} is no result file of inscan, or damaged: {error}") from error


def read_result(path: Path) -> StoredResult:
    """Read a result file whole.

    Raises
    ------
    FileNotFoundError, ResultFileError, OSError
        As `opened`; also for a file of another format.
    """
    with opened(path) as file:
        found = str(file.attrs["inscan_format"])
        if found != str(FORMAT):
            raise ResultFileError(f"{path}: result format {found}, this version reads {FORMAT}")
        group = member(file, DATA)
        arrays = [_read_array(name, group) for name in json.loads(str(group.attrs["order"]))]
        report, regions, meta = (_json(file, name) for name in ("report", "regions", "meta"))
    return StoredResult(Processed(arrays, report, regions), meta)


def read_weights(path: Path) -> BornWeights | None:
    """Read the weights that a result was made with, where they were fitted to its run.

    Raises
    ------
    ResultFileError
        When the file is damaged, or what should be weights is far too large.
    FileNotFoundError
        When there is none.
    """
    if not path.exists():
        raise FileNotFoundError(f"no result file {path}")
    try:
        check_heaps(path)
        with h5py.File(path, "r") as file:
            if WEIGHTS not in file:
                return None
            stored = array_in(file, f"{WEIGHTS}/safetensors")
            if (count := int(stored.size or 0)) > MAX_WEIGHTS_BYTES:
                raise ResultFileError(f"{path}: {count} bytes of weights are too many")
            return BornWeights(np.asarray(stored[...]).tobytes(), _json(file, "weights/card"))
    except DAMAGED as error:
        if isinstance(error, ResultFileError):
            raise
        raise ResultFileError(f"{path}: its weights cannot be read: {error}") from error


def _texts(processed: Processed, meta: dict[str, Any]) -> dict[str, str]:
    """What is stored as JSON, by its name in the file."""
    texts = {
        "entry/report": json.dumps(processed.report),
        "entry/regions": json.dumps(processed.regions),
        "entry/meta": json.dumps(meta),
    }
    if processed.weights is not None:
        texts[f"{WEIGHTS}/card"] = json.dumps(processed.weights.card)
    return texts


def _fill(
    file: h5py.File, processed: Processed, arrays: dict[str, np.ndarray], texts: dict[str, str]
) -> None:
    file.attrs["inscan_format"] = FORMAT
    group = file.create_group(DATA)
    group.attrs["order"] = json.dumps([array.name for array in processed.arrays])
    for array in processed.arrays:
        dataset = group.create_dataset(array.name, data=arrays[array.name])
        dataset.attrs["dims"] = json.dumps(array.dims)
        dataset.attrs["units"] = array.units
        if array.labels is not None:
            dataset.attrs["labels"] = json.dumps(array.labels)
    # Datasets, not attributes: an attribute may not pass 64 KiB, and a report can.
    text = h5py.string_dtype("utf-8")
    for name, value in texts.items():
        file.create_dataset(name, data=value, dtype=text)
    if processed.weights is not None:
        blob = np.frombuffer(processed.weights.blob, np.uint8)
        file.create_dataset(f"{WEIGHTS}/safetensors", data=blob)


def _read_array(name: str, group: h5py.Group) -> ResultArray:
    dataset = array_in(group, name)
    labels = dataset.attrs.get("labels")
    return ResultArray(
        name=name,
        dims=tuple(json.loads(str(dataset.attrs["dims"]))),
        units=str(dataset.attrs["units"]),
        values=np.asarray(dataset[...]),
        labels=None if labels is None else json.loads(str(labels)),
    )


def _json(file: h5py.File, name: str) -> Any:
    dataset = member(file, f"entry/{name}")
    return json.loads(str(dataset.asstr()[()]))


def sync_path(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
