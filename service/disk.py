"""Disks that fill up: room taken before it is needed, and which errors are the machine's and not the work's."""

import ctypes
import errno
import os
from pathlib import Path

_FALLOC_FL_KEEP_SIZE = 1
_PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE})
_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


def blames_machine(error: BaseException) -> bool:
    """Whether an error of a file speaks of the machine: the file itself, or what was to be written, may be whole.

    HDF5 raises errors of the system with their number, and complaints of its own about a file without one.
    """
    return isinstance(error, OSError) and error.errno is not None


def will_pass(error: BaseException) -> bool:
    """Whether an error says that the machine is full or closed for now: no room, no more open files, read-only."""
    return isinstance(error, OSError) and error.errno in _PASSING


def reserve(path: Path, nbytes: int) -> None:
    """Take `nbytes` of the disk for a file that exists, whose length stays as it is.

    HDF5 that meets a full disk while it closes a file may take the process with it.

    Raises
    ------
    OSError
        When there is no such room (ENOSPC, EDQUOT). File systems that cannot reserve, as NFS, are only asked how much
        is free.
    """
    descriptor = os.open(path, os.O_WRONLY)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        long = ctypes.c_int64
        failed = libc.fallocate(descriptor, _FALLOC_FL_KEEP_SIZE, long(0), long(nbytes))
        number = ctypes.get_errno() if failed else 0
        if number in _UNSUPPORTED:
            status = os.fstatvfs(descriptor)
            number = errno.ENOSPC if status.f_bavail * status.f_frsize < nbytes else 0
        if number:
            raise OSError(number, f"{os.strerror(number)}: {nbytes} bytes are needed", str(path))
    finally:
        os.close(descriptor)


def give_back(path: Path) -> None:
    """Let go of what `reserve` took beyond the end of a file."""
    os.truncate(path, path.stat().st_size)
