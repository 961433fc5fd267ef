"""The spool: the arrays of a run as mapped files, which are the assembly buffer and the jobs' input
at once."""

import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inscan.service.messages import ArraySpec, InferenceJob
from inscan.service.result_file import sync_path

META = "meta.json"
METAS = "meta*.json"
_REMEMBERED_S = 120.0  # a run that was refused is tried again every 30 s
_MOST_REFUSALS = 256
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,99}")
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")


class SpoolError(OSError):
    """Spool files that cannot be made, read or believed; the message names the path."""


class NoDiskSpace(SpoolError):
    """Too little space for what a run declares; says how much is needed and how much is there."""


@dataclass
class _Refusal:
    """Why something was refused, how many bytes were missing that nobody has heard of yet, and when."""

    said: str
    missing: int
    at: float


class Spool:
    """All spool folders under one root, with a size budget.

    Parameters
    ----------
    root : Path
        `<state>/spool`; made when missing.
    budget : int
        Most bytes that all folders together may hold.
    min_free : int
        Bytes of the disk that stay free whatever the budget says.
    """

    def __init__(self, root: Path, *, budget: int, min_free: int) -> None:
        self.root = root
        self._budget = budget
        self._min_free = min_free
        self._open: dict[str, SpoolRun] = {}
        self._lock = threading.Lock()
        self._refused: dict[Path, _Refusal] = {}
        root.mkdir(parents=True, exist_ok=True)

    def run(self, run_uid: str) -> "SpoolRun":
        """Folder of a run, made when missing; the same object until `forget` or `delete`.

        Raises
        ------
        SpoolError
            When the uid is no plain name: it would lead out of the spool.
        """
        if not _RUN.fullmatch(run_uid):
            raise SpoolError(f"run uid {run_uid!r} cannot name a folder: letters, digits, . _ -")
        with self._lock:
            run = self._open.get(run_uid)
            if run is None:
                folder = self.root / run_uid
                folder.mkdir(exist_ok=True)
                run = self._open[run_uid] = SpoolRun(folder, self)
        return run

    def forget(self, run_uid: str) -> None:
        """Let go of a run's mappings; its files stay."""
        with self._lock:
            self._open.pop(run_uid, None)

    def folder(self, run_uid: str) -> Path | None:
        """Folder of a run where there is one."""
        folder = self.root / run_uid
        return folder if _RUN.fullmatch(run_uid) and folder.is_dir() else None

    def delete(self, run_uid: str) -> None:
        """Remove a run's arrays. Whoever still maps them keeps what he sees."""
        self.forget(run_uid)
        folder = self.folder(run_uid)
        if folder is not None:
            shutil.rmtree(folder)
        with self._lock:
            for path in [one for one in self._refused if one.parent.name == run_uid]:
                del self._refused[path]

    def runs(self) -> list[str]:
        """Uids of the runs that have a folder."""
        return sorted(path.name for path in self.root.iterdir() if path.is_dir())

    def used(self) -> int:
        """Bytes that all folders hold on the disk; pages never written are not counted."""
        return _bytes_in(self.root)

    @property
    def budget(self) -> int:
        """Most bytes that all folders together may hold."""
        return self._budget

    def size(self, run_uid: str) -> int:
        """Bytes that a run's folder holds on the disk."""
        folder = self.folder(run_uid)
        return 0 if folder is None else _bytes_in(folder)

    def status(self) -> dict[str, Any]:
        """For `inscan status`: how much there is, and a `warning` while runs wait for room."""
        found: dict[str, Any] = {"runs": len(self.runs()), "bytes": self.used()}
        now = time.monotonic()
        with self._lock:
            for path in [p for p, one in self._refused.items() if now - one.at > _REMEMBERED_S]:
                del self._refused[path]
            runs = {path.parent.name for path in self._refused}
            latest = next(reversed(self._refused.values()), None)
        if latest is not None:
            found["warning"] = (
                f"{len(runs)} runs wait for room, their documents stay in their logs: {latest.said}"
            )
        return found

    def take_shortage(self) -> int:
        """Bytes that were missing where something was refused; each refusal is told once."""
        with self._lock:
            missing = sum(one.missing for one in self._refused.values())
            for one in self._refused.values():
                one.missing = 0
        return missing

    def require(self, path: Path, nbytes: int) -> None:
        """Refuse what would not fit.

        Raises
        ------
        NoDiskSpace
            Naming the path, the bytes needed and the bytes there are.
        """
        status = os.statvfs(self.root)
        free = status.f_bavail * status.f_frsize - self._min_free
        if nbytes > free:
            raise self._no_room(
                path,
                nbytes - free,
                f"no disk space for {path}: {_mib(nbytes)} needed, {_mib(max(0, free))} free "
                "beyond "
                f"the {_mib(self._min_free)} kept (setting min_free); free some or move state_dir",
            )
        left = self._budget - self.used()
        if nbytes > left:
            raise self._no_room(
                path,
                nbytes - left,
                f"no room in the spool for {path}: {_mib(nbytes)} needed, {_mib(max(0, left))} "
                "left "
                f"of spool_budget {_mib(self._budget)}; results that wait for Tiled hold their "
                "input",
            )
        with self._lock:
            self._refused.pop(path, None)

    def _no_room(self, path: Path, missing: int, text: str) -> NoDiskSpace:
        with self._lock:
            self._refused.pop(path, None)
            while len(self._refused) >= _MOST_REFUSALS:
                del self._refused[next(iter(self._refused))]
            self._refused[path] = _Refusal(text, missing, time.monotonic())
        return NoDiskSpace(text)


def can_name(run_uid: str) -> bool:
    """Return whether a run's uid can name its folder."""
    return bool(_RUN.fullmatch(run_uid))


class SpoolRun:
    """The folder of one run: `NAME.npy` files, mapped, and a `meta*.json` for each of its maps or stacks."""

    def __init__(self, folder: Path, spool: Spool) -> None:
        self.folder = folder
        self._spool = spool
        self._arrays: dict[str, np.memmap] = {}

    def allocate(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """A mapped array in C order: zeros, or what it held before where the service restarted.

        A file of the same shape and dtype is taken up again. Documents sent once more land on the
        same pixels, so that what is there already does no harm, and a job that maps the file sees
        nothing vanish.

        Parameters
        ----------
        name : str
            Letters, digits, `_`, `.`, `@` and `-`.
        shape : tuple of int
            Slow axis first.
        dtype : dtype
            A plain number or bool.

        Raises
        ------
        NoDiskSpace
            Before anything is written.
        SpoolError
            For names and dtypes that cannot be.
        """
        dtype = np.dtype(dtype)
        if not _NAME.fullmatch(name):
            raise SpoolError(f"array name {name!r} cannot name a file: letters, digits, _ . @ -")
        if dtype.kind not in "biuf" or any(length < 0 for length in shape):
            raise SpoolError(f"array {name!r}: cannot map shape {shape} of {dtype}")
        path = self.folder / f"{name}.npy"
        array = _reopen(path, shape, dtype)
        if array is None:
            array = self._create(path, shape, dtype)
        self._arrays[name] = array
        return array

    def _create(self, path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
        nbytes = int(np.prod(shape, dtype=object)) * dtype.itemsize
        self._spool.require(path, nbytes)
        temporary = path.with_suffix(".tmp")
        np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape).flush()
        _reserve(temporary)
        # Renamed into place: a worker that maps an older file of that name keeps its own.
        os.replace(temporary, path)
        mapped = _reopen(path, shape, dtype)
        if mapped is None:
            raise SpoolError(f"{path} is not what was just written to it")
        return mapped

    def store(self, name: str, values: np.ndarray) -> ArraySpec:
        """Write an array that was not allocated here, in one step, and describe it."""
        path = self.folder / f"{name}.npy"
        if not _NAME.fullmatch(name):
            raise SpoolError(f"array name {name!r} cannot name a file: letters, digits, _ . @ -")
        self._spool.require(path, values.nbytes)
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            np.save(file, np.ascontiguousarray(values), allow_pickle=False)
        os.replace(temporary, path)
        return _spec(path.name, values)

    def spec(self, name: str, values: np.ndarray, *, scope: str = "") -> ArraySpec:
        """Describe an array of an update: mapped here already, or stored now.

        Parameters
        ----------
        name : str
            What the array is to a method.
        values : ndarray
        scope : str
            Which of a run's maps or stacks it belongs to: of several, each has arrays of the same names.
        """
        # By place in memory, not by name.
        for own, mapped in self._arrays.items():
            if values is mapped or (
                values.shape == mapped.shape
                and values.dtype == mapped.dtype
                and values.flags.c_contiguous
                and values.ctypes.data == mapped.ctypes.data
            ):
                return _spec(f"{own}.npy", values)
        return self.store(f"{name}.{_short(scope)}" if scope else name, values)

    def write_meta(self, meta: Mapping[str, Any], *, scope: str = "") -> None:
        """Write in one step what the arrays of one scope are: for people, jobs have it with them."""
        path = self.folder / (f"meta.{_short(scope)}.json" if scope else META)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(meta), encoding="utf-8")
        os.replace(temporary, path)


def sync_arrays(folder: Path, arrays: Mapping[str, ArraySpec]) -> None:
    """Bring the arrays of a job to the disk, pages written through a mapping included, and their names."""
    for path in (*(folder / spec.file for spec in arrays.values()), *folder.glob(METAS)):
        sync_path(path)
    sync_path(folder)
    sync_path(folder.parent)


def load(folder: Path, arrays: Mapping[str, ArraySpec]) -> dict[str, np.ndarray]:
    """Map the arrays of a job, read-only.

    Raises
    ------
    SpoolError
        When a file is missing, or its shape or dtype is not what the job says.
    """
    loaded: dict[str, np.ndarray] = {}
    for name, spec in arrays.items():
        path = folder / spec.file
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise SpoolError(f"{path} cannot be mapped: {error}") from error
        if array.shape != spec.shape or array.dtype != np.dtype(spec.dtype):
            raise SpoolError(
                f"{path}: expected {spec.shape} {spec.dtype}, found {array.shape} {array.dtype.str}"
            )
        loaded[name] = array
    return loaded


def _bytes_in(folder: Path) -> int:
    """Bytes that files take on the disk; what another thread deletes meanwhile is not counted."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(where, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def _reopen(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap | None:
    if not path.exists():
        return None
    try:
        mapped = np.lib.format.open_memmap(path, mode="r+")
    except (ValueError, OSError):
        return None  # torn before its header was whole: it holds nothing yet
    if mapped.shape != shape or mapped.dtype != dtype or mapped.flags.fnc:
        return None
    return mapped


def _reserve(path: Path) -> None:
    """Give every page of a file its place on the disk: writing to a mapped page without one kills
    the process when the disk is full, and no handler can tell whose page it was."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.posix_fallocate(descriptor, 0, os.fstat(descriptor).st_size)
    except OSError as error:
        path.unlink()
        raise NoDiskSpace(f"no disk space for {path.with_suffix('.npy')}: {error}") from error
    finally:
        os.close(descriptor)


def _short(scope: str) -> str:
    """A part of a file name for any text."""
    return hashlib.sha256(scope.encode()).hexdigest()[:8]


def _spec(file: str, values: np.ndarray) -> ArraySpec:
    return ArraySpec(
        file=file, shape=values.shape, dtype=values.dtype.str, nbytes=int(values.nbytes)
    )


def _mib(nbytes: int) -> str:
    return f"{nbytes / (1 << 20):,.0f} MiB"


def discard_frozen(job: InferenceJob) -> None:
    """Remove the files made for one snapshot alone (`NAME@ROWS.npy`)."""
    for spec in job.arrays.values():
        if "@" in spec.file:
            (Path(job.spool) / spec.file).unlink(missing_ok=True)
