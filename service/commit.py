"""One derived run into Tiled, exactly once: created, filled, and its stop document last.

Whoever reads ignores runs without a stop. A run that is there already is compared, a half-written one is completed.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from inscan.service.derived import Axis, DerivedRun
from inscan.service.result_file import ResultFileError
from inscan.service.result_view import StoredArray, digest_of
from inscan.service.tiled_http import PROCESSED, TiledHTTP, TiledRejected

STREAM = "primary"
_BLOCK_BYTES = 32 << 20
_AT_ONCE = 4
_HDF5 = "application/x-hdf5"
_ZARR = "application/x-zarr"
_RUN_SPEC = {"name": "BlueskyRun", "version": "3.0"}
_STREAM_SPECS = [{"name": "BlueskyEventStream", "version": "3.0"}, {"name": "composite", "version": None}]

Outcome = Literal["written", "same", "differs"]


class DamagedResult(ResultFileError):
    """A result file whose content is not what its worker reported."""


class Committer:
    """Writes derived runs through one connection.

    Parameters
    ----------
    tiled : TiledHTTP
    readable : sequence of Path
        Folders that this Tiled may read: result files in them are registered where they lie.
    shared : Path or None
        Folder of `readable` into which other result files are copied first. None: they are uploaded, about ten times
        slower.
    """

    def __init__(
        self, tiled: TiledHTTP, *, readable: Sequence[Path] = (), shared: Path | None = None
    ) -> None:
        self._tiled = tiled
        self._readable = [folder.resolve() for folder in readable]
        self._shared = None if shared is None else shared.resolve()
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="commit")

    def close(self) -> None:
        """End the helper threads; requests under way are finished first."""
        self._pool.shutdown()

    def commit(
        self, run: DerivedRun, axes: Sequence[Axis] = (), path: Path | None = None, digest: str = ""
    ) -> Outcome:
        """Write one derived run.

        Parameters
        ----------
        run : DerivedRun
        axes : sequence of Axis
            Stored beside the arrays, as coordinates.
        path : Path or None
            The result file; None for a failure.
        digest : str
            What the arrays in `path` must hash to.

        Returns
        -------
        str
            `written`; `same` when the run was there with the same content; `differs` when it was there with another, which
            stands.

        Raises
        ------
        DamagedResult
            When the file does not hash to `digest`; the run is left without its stop.
        TiledUnavailable, TiledRefusedKey, TiledRejected
            See `inscan.service.tiled_http`.
        """
        node = f"{PROCESSED}/{run.uid}"
        there = self._open(run, node)
        if there is not None:
            return there
        if path is not None and run.descriptor is not None:
            # The check reads the whole file; meanwhile Tiled learns where its arrays are.
            check = self._pool.submit(_verify, path, digest)
            try:
                self._fill(run, node, axes, path)
            finally:
                error = check.exception()
            if error is not None:
                raise error
        self._tiled.update_metadata(node, {"stop": run.stop})
        return "written"

    def _open(self, run: DerivedRun, node: str) -> Outcome | None:
        """Make the run's node, or learn what is there already: None means that there is writing to do."""
        specs = [{"name": name, "version": None} for name in run.specs]
        tags = run.access_tags
        if self._tiled.create(
            PROCESSED,
            run.uid,
            metadata={"start": run.start},
            specs=[*specs, _RUN_SPEC],
            access_tags=tags,
        ):
            return None
        attributes = self._tiled.get(node)
        if attributes is None:
            raise TiledRejected(f"Tiled says that {node} exists and does not show it")
        found = attributes["metadata"]
        stop = found.get("stop") or {}
        ours, theirs = run.start.get("result_digest"), found["start"].get("result_digest")
        if stop.get("exit_status") == "success" or (stop and run.descriptor is None):
            return "same" if ours == theirs else "differs"
        # Half-written, or an earlier failure that has been overcome: what is new replaces what was said.
        gone = {name: None for name in found["start"] if name not in run.start}
        self._tiled.update_metadata(node, {"start": {**gone, **run.start}, "stop": None})
        return None

    def _fill(self, run: DerivedRun, node: str, axes: Sequence[Axis], path: Path) -> None:
        tags = run.access_tags
        assert run.descriptor is not None
        self._tiled.create(
            node, STREAM, metadata=run.descriptor, specs=_STREAM_SPECS, access_tags=tags
        )
        if self._in_reach(path) or self._shared is not None:
            path = self._brought(path)
            beside = _write_axes(path, axes)
            sources = {array.name: _registered(path, array) for array in run.arrays}
            for axis in axes:
                sources.setdefault(axis.dim, _registered(beside, _axis_array(axis)))
            write = self._register
        else:
            sources = {array.name: (array, path) for array in run.arrays}
            for axis in axes:
                sources.setdefault(axis.dim, (_axis_array(axis), axis.values))
            write = self._upload
        keys = run.descriptor["data_keys"]
        jobs: list[Callable[[], None]] = [
            lambda name=name, source=source: write(f"{node}/{STREAM}", name, source, keys[name], tags)
            for name, source in sources.items()
        ]
        for done in [self._pool.submit(job) for job in jobs]:
            done.result()

    def _register(
        self, parent: str, name: str, source: Any, key: dict[str, Any], tags: Sequence[str] | None
    ) -> None:
        self._tiled.create(
            parent, name, family="array", metadata=key, data_sources=[source], access_tags=tags
        )

    def _upload(
        self, parent: str, name: str, source: Any, key: dict[str, Any], tags: Sequence[str] | None
    ) -> None:
        array, where = source
        structure = _structure(array)
        self._tiled.create(
            parent,
            name,
            family="array",
            metadata=key,
            data_sources=[
                {
                    "structure_family": "array",
                    "structure": structure,
                    "mimetype": _ZARR,
                    "parameters": {},
                    "assets": [],
                    "management": "writable",
                }
            ],
            access_tags=tags,
        )
        rest = (0,) * (len(array.shape) - 1)
        first = 0
        for block, rows in enumerate(structure["chunks"][0]):
            part = _read(where, array, first, first + rows)
            self._tiled.put_block(f"{parent}/{name}", (block, *rest), part.tobytes())
            first += rows

    def _in_reach(self, path: Path) -> bool:
        return any(path.resolve().is_relative_to(folder) for folder in self._readable)

    def _brought(self, path: Path) -> Path:
        if self._in_reach(path) or self._shared is None:
            return path
        target = self._shared / path.name
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copyfile(path, temporary)
        _sync(temporary)
        os.replace(temporary, target)
        return target


def _verify(path: Path, digest: str) -> None:
    found = digest_of(path)
    if found != digest:
        raise DamagedResult(
            f"result file {path}: its arrays hash to {found}, the worker reported {digest}"
        )


def _structure(array: StoredArray) -> dict[str, Any]:
    dtype = np.dtype(array.dtype)
    rows = array.shape[0] if array.shape else 1
    per_row = max(1, array.nbytes // max(1, rows))
    step = max(1, min(rows, _BLOCK_BYTES // per_row))
    full, rest = divmod(rows, step)
    chunks = [[step] * full + ([rest] if rest else []), *([length] for length in array.shape[1:])]
    return {
        "data_type": {
            "endianness": {"<": "little", ">": "big"}.get(dtype.str[0], "not_applicable"),
            "kind": dtype.kind,
            "itemsize": dtype.itemsize,
            "dt_units": None,
        },
        "shape": list(array.shape),
        "chunks": chunks,
        "dims": list(array.dims),
        "resizable": False,
    }


def _registered(path: Path, array: StoredArray) -> dict[str, Any]:
    return {
        "structure_family": "array",
        "structure": _structure(array),
        "mimetype": _HDF5,
        "parameters": {"dataset": array.dataset},
        "properties": {},
        "assets": [
            {
                "data_uri": f"file://localhost{path.resolve().as_posix()}",
                "is_directory": False,
                "parameter": "data_uris",
                "num": 0,
            }
        ],
        "management": "external",
    }


def _axis_array(axis: Axis) -> StoredArray:
    return StoredArray(axis.dim, axis.dim, axis.values.shape, "<f8", (axis.dim,), axis.units, None)


def _write_axes(path: Path, axes: Sequence[Axis]) -> Path:
    """A small file beside the result, which itself must not change any more."""
    target = path.with_suffix(".axes.h5")
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    with h5py.File(temporary, "w") as file:
        for axis in axes:
            dataset = file.create_dataset(axis.dim, data=np.asarray(axis.values, dtype="<f8"))
            dataset.attrs["units"] = axis.units
            dataset.attrs["motor"] = axis.motor
    _sync(temporary)
    os.replace(temporary, target)
    return target


def _read(where: Path | np.ndarray, array: StoredArray, first: int, stop: int) -> np.ndarray:
    if isinstance(where, np.ndarray):
        return np.ascontiguousarray(where[first:stop])
    with h5py.File(where, "r") as file:
        dataset = file[array.dataset]
        assert isinstance(dataset, h5py.Dataset)
        return np.ascontiguousarray(dataset[first:stop])


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
