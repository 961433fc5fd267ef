"""Which detector files may be opened, and how, so that neither documents nor files lead elsewhere.

Paths come over a network. Each is mapped (`root_map` of a profile), resolved, and must then lie under a
data root; so must everything that an HDF5 file refers to: external links, virtual datasets, external storage.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import re
import socket
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

import h5py
import hdf5plugin  # noqa: F401  Registers detectors' compressors (bitshuffle, LZ4, ...) with h5py.
import numpy as np

from inscan.callbacks.hdf5_links import UnknownLink, look_up

__all__ = [
    "MOST_BYTES",
    "FileRefused",
    "NotReadable",
    "Roots",
    "check_numbers",
    "check_size",
    "open_file",
    "open_hdf5",
    "regular_file",
]

MOST_BYTES = 1 << 31
"""Largest array of one event, and largest chunk of a file, that is read; a frame stack of 2 GiB."""

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SWMR_SUPERBLOCK = 3
# Flags of a writer in its twelfth byte.
_WRITING, _SWMR = 1, 4
# How often a part of a file that does not fit its checksum is read again, the pauses being 2^n ns: 0.1 s in all.
_ATTEMPTS = 26
_DRIVE = re.compile(r"/?([A-Za-z]:)[/\\]")
# Files that a virtual dataset may be made of, and virtual datasets of virtual datasets.
_MOST_SOURCES = 10_000
_DEEPEST = 4


class FileRefused(ValueError):
    """A file that must not or cannot ever be read; the message says why."""


class NotReadable(OSError):
    """A file or rows that are not there yet; trying again may help."""


class Roots:
    """Folders under which files may be read.

    Parameters
    ----------
    roots
        Folders; symbolic links are followed before comparing.
    root_map
        Where folders named by documents are mounted here. Keys are POSIX folders (``/nsls2/data``), folders of a
        Windows machine (``C:/data``) or of another host (``//host/share``).
    """

    def __init__(self, roots: Iterable[Path], root_map: Mapping[str, Path] | None = None) -> None:
        self._roots = tuple(Path(root).resolve() for root in roots)
        mapped = [(_parts(key), Path(to)) for key, to in (root_map or {}).items()]
        self._map = sorted(mapped, key=lambda pair: len(pair[0]), reverse=True)

    def uri(self, uri: str) -> Path:
        """Return the confined path of a ``file:`` uri.

        Raises
        ------
        FileRefused
            Another scheme or host, or outside the data roots.
        """
        split = urlsplit(uri)
        if split.scheme != "file":
            raise FileRefused(f"{uri}: expected file://localhost/...")
        text = unquote(split.path)
        if split.netloc not in ("", "localhost", socket.gethostname()):
            text = f"//{split.netloc}{text}"
        return self.path(text)

    def path(self, text: str, semantics: str = "posix") -> Path:
        """Return the confined path of what a document names, links followed.

        Parameters
        ----------
        text
            Absolute, as the machine that wrote the file says it.
        semantics
            ``posix`` or ``windows``.

        Raises
        ------
        FileRefused
            Of another machine and not in ``root_map``, not absolute, or outside the data roots.
        """
        windows = semantics == "windows" or _DRIVE.match(text) is not None
        if windows:
            text = text.replace("\\", "/")
        parts = _parts(text)
        # As the document spells it: only the beginning is compared, and on Windows without case.
        spelt = PurePosixPath(text.lstrip("/") if _DRIVE.match(text) else text).parts
        for prefix, target in self._map:
            if parts[: len(prefix)] == prefix:
                return self.confine(target.joinpath(*spelt[len(prefix) :]))
        if windows or text.startswith("//"):
            kind = "a Windows path" if windows else "on another host"
            raise FileRefused(
                f"{text} is {kind}; say in root_map of the profile where its folder is mounted here"
            )
        if not text.startswith("/"):
            raise FileRefused(f"{text!r:.200} is not an absolute path")
        return self.confine(Path(text))

    def confine(self, path: Path) -> Path:
        """Return the path with links followed; FileRefused when it is outside the data roots."""
        try:
            path = path.resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise FileRefused(f"{str(path)[:200]!r} is no path: {error}") from error
        if not any(path.is_relative_to(root) for root in self._roots):
            allowed = ", ".join(map(str, self._roots)) or "none is set"
            raise FileRefused(
                f"{path} is outside the data roots ({allowed}); add its folder to data_roots in the"
                f" profile or the service's settings"
            )
        return path

    def dataset(self, file: h5py.File, name: str, path: Path) -> h5py.Dataset:
        """Return a dataset of an open file after following whatever it refers to.

        Raises
        ------
        NotReadable
            It is not there (yet).
        FileRefused
            It is no array of numbers, or leads outside the data roots.
        """
        try:
            dataset = self._look_up(file, name)
        except (FileRefused, NotReadable):
            raise
        except UnknownLink as error:
            raise FileRefused(f"{path}: {error}") from error
        except (KeyError, OSError, RuntimeError, ValueError) as error:
            raise NotReadable(f"{path}: no dataset {name[:200]!r} yet: {error}") from error
        if not isinstance(dataset, h5py.Dataset):
            raise FileRefused(f"{path}: {name!r} is not an array with a row axis")
        check_numbers(dataset.dtype, f"{path}: {name!r}")
        if dataset.chunks:
            check_size(dataset.chunks, dataset.dtype, f"a chunk of {path}: {name!r}")
        self._follow(dataset, 0)
        return dataset

    def _look_up(self, file: h5py.File, name: str) -> Any:
        def other(linking: h5py.File, named: str) -> h5py.File:
            here = self.confine(Path(linking.filename))
            found = self._confine_named(here, named)
            if not found:
                raise NotReadable(f"{here} leads to {named[:200]!r}, which is not there (yet)")
            return open_hdf5(found[0])

        return look_up(file, name, other)

    def _source(self, file: h5py.File, name: str) -> h5py.Dataset | None:
        """A dataset that a virtual one is made of; one that is missing counts as empty."""
        try:
            found = self._look_up(file, name)
        except KeyError:
            return None
        return found if isinstance(found, h5py.Dataset) else None

    def _follow(self, dataset: h5py.Dataset, depth: int) -> None:
        """Confine where a dataset's bytes come from: HDF5 can lead to other files in three ways."""
        here = self.confine(Path(dataset.file.filename))
        for other, *_ in dataset.external or ():
            for path in self._confine_named(here, str(other)):
                regular_file(path)
        if not dataset.is_virtual:
            return
        sources = {(s.file_name, s.dset_name) for s in dataset.virtual_sources()}
        if depth >= _DEEPEST or len(sources) > _MOST_SOURCES:
            raise FileRefused(f"{here}: {dataset.name} is made of too many files or layers of them")
        for file_name, dset_name in sorted(sources):
            if re.search(r"%\d*b", file_name + dset_name):
                raise FileRefused(
                    f"{here}: {dataset.name} names its files by a pattern: {file_name}"
                )
            if file_name == ".":
                inner = self._source(dataset.file, dset_name)
                if inner is not None:
                    self._follow(inner, depth + 1)
                continue
            for path in self._confine_named(here, file_name):
                with open_hdf5(path) as file:
                    inner = self._source(file, dset_name)
                    if inner is not None:
                        self._follow(inner, depth + 1)

    def _confine_named(self, here: Path, name: str) -> list[Path]:
        """Confine every file that HDF5 may take for a name that a file holds; return those there are.

        A relative name is looked for beside the file and in the current folder, an absolute one
        also by its last part beside the file.
        """
        beside = self.confine(here.parent / name)
        others = [Path.cwd() / name, here.parent / Path(name).name]
        return [beside] * beside.exists() + [self.confine(p) for p in others if p.exists()]


def _parts(text: str) -> tuple[str, ...]:
    """Parts of a folder for comparison; those of Windows know no case."""
    plain = text.replace("\\", "/") if _DRIVE.match(text) or text.startswith("\\\\") else text
    if _DRIVE.match(f"{plain}/"):
        return PurePosixPath(plain.lstrip("/").lower()).parts
    return PurePosixPath(plain).parts


def check_numbers(dtype: Any, what: str) -> None:
    """Raise FileRefused unless the values are plain real numbers."""
    if dtype.kind not in "buif" or dtype.itemsize > 16:
        raise FileRefused(f"{what} holds {dtype}; expected numbers")


def check_size(shape: Iterable[int], dtype: Any, what: str) -> int:
    """Return the bytes of an array; FileRefused when they are more than are ever read at once."""
    nbytes = np.dtype(dtype).itemsize
    for n in shape:
        nbytes *= int(n)
    if nbytes > MOST_BYTES:
        raise FileRefused(
            f"{what} of shape {tuple(shape)} has {nbytes} bytes; at most {MOST_BYTES}"
        )
    return nbytes


def regular_file(path: Path) -> int:
    """Return the size of a file in bytes.

    Opening the folder first makes a network file system ask its server anew, which it otherwise
    does not for up to a minute: a file that was missing would go on missing.

    Raises
    ------
    NotReadable
        It is not there.
    FileRefused
        It is a pipe, a device or a folder: opening those can wait for ever.
    """
    try:
        os.close(os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY))
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotReadable(f"{path} is not there yet") from error
    except OSError as error:
        raise NotReadable(f"{path}: {error}") from error
    if not stat.S_ISREG(found.st_mode):
        raise FileRefused(f"{path} is not a file")
    return found.st_size


def open_file(path: Path) -> BinaryIO:
    """Open a confined file (`Roots.confine`) for reading, not what has been put in its place since.

    Raises
    ------
    NotReadable
        It is not there, or was replaced in this very moment.
    FileRefused
        It has become a link to elsewhere, or is a pipe, a device or a folder.
    """
    regular_file(path)
    try:
        file = open(path, "rb", opener=_without_waiting)
    except FileNotFoundError as error:
        raise NotReadable(f"{path} is not there yet") from error
    except OSError as error:
        raise NotReadable(f"{path}: {error}") from error
    try:
        _check_opened(file.fileno(), path)
    except BaseException:
        file.close()
        raise
    return file


def _without_waiting(path: str, flags: int) -> int:
    # What was a file may be a pipe by now, and opening that would wait.
    return os.open(path, flags | os.O_NONBLOCK)


def _check_opened(descriptor: int, path: Path) -> None:
    """Hold what was opened against what was confined: between the two its name can be made to lead elsewhere."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise FileRefused(f"{path} is not a file")
    opened = os.readlink(f"/proc/self/fd/{descriptor}")
    if opened == str(path):
        return
    if os.path.dirname(opened) == str(path.parent):
        raise NotReadable(f"{path} was replaced while it was opened")
    raise FileRefused(f"{path} has become a link to {opened}, which is not opened")


def open_hdf5(path: Path) -> h5py.File:
    """Open for reading without holding a lock that could stop the detector's writer.

    Handlers of the ecosystem open with HDF5's own lock: a detector that wants to append then fails.
    Files that can be read while they are written (superblock 3) carry a mark while a writer has
    them, which says whether it writes for readers. Older ones have only the writer's lock.

    Parameters
    ----------
    path
        Without links, as `Roots.confine` returns it.

    Raises
    ------
    NotReadable
        Missing, held by its writer, incomplete, or not HDF5 (yet).
    FileRefused
        Not a regular file, or has become a link to elsewhere.
    """
    try:
        with open_file(path) as raw:
            head = raw.read(12)
            if len(head) < 12 or head[:8] != _SIGNATURE:
                raise NotReadable(f"{path} is not HDF5 (yet)")
            writing = head[11] & (_WRITING | _SWMR) if head[8] >= _SWMR_SUPERBLOCK else 0
            if writing == _WRITING:
                raise NotReadable(f"{path} is still being written")
            if head[8] < _SWMR_SUPERBLOCK:
                # Held for microseconds, and only on a file whose writer has let go of it.
                fcntl.flock(raw, fcntl.LOCK_SH | fcntl.LOCK_NB)
                fcntl.flock(raw, fcntl.LOCK_UN)
        try:
            file = _open(path, bool(writing), lockless=True)
        except OSError as error:
            # HDF5 wants one locking flag per file and process: the writer lives in this one.
            if "locking flag" not in str(error):
                raise
            file = _open(path, bool(writing), lockless=False)
        try:
            _check_opened(file.id.get_vfd_handle(), path)
        except BaseException:
            file.close()
            raise
        return file
    except (FileRefused, NotReadable):
        raise
    except FileNotFoundError as error:
        raise NotReadable(f"{path} is not there yet") from error
    except BlockingIOError as error:
        raise NotReadable(f"{path} is still being written") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise NotReadable(f"{path}: {error}") from error


def _open(path: Path, swmr: bool, *, lockless: bool) -> h5py.File:
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    if lockless:
        access.set_file_locking(False, False)
    flags = h5py.h5f.ACC_RDONLY
    if swmr:
        flags |= h5py.h5f.ACC_SWMR_READ
        access.set_libver_bounds(h5py.h5f.LIBVER_LATEST, h5py.h5f.LIBVER_LATEST)
        # Of a file whose writer died half way HDF5 would read each damaged part a hundred times, twice as late each
        # time, for minutes and with Python's lock held: all of the service would stand still.
        library = _library()
        if library is not None:
            library.H5Pset_metadata_read_attempts(ctypes.c_int64(access.id), _ATTEMPTS)
    return h5py.File(h5py.h5f.open(os.fsencode(path), flags, access))


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The HDF5 library that h5py has loaded: one setting is missing from h5py's own interface."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.rpartition(" ")[2]
        if re.fullmatch(r".*/libhdf5-?[^/_]*\.so[^/]*", path):
            library = ctypes.CDLL(path)
            if hasattr(library, "H5Pset_metadata_read_attempts"):
                return library
    return None
