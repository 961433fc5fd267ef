"""One run's log on disk: records ``u32 length | u32 crc32 | payload``, only ever appended.

The first record is ``("log", {...})`` and names the run; the others are ``(name, doc)`` of its
documents. ``("gap", {...})`` stands where documents could not be written. Whoever holds the lock of
the file owns it: the process that writes it, or, once that is gone, the one that sends it.
"""

import errno
import fcntl
import hashlib
import os
import re
import socket
import struct
import threading
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from inscan.callbacks.wire import MAX_DOCUMENT_BYTES, Buffer, WireError, pack_parts, unpack

SUFFIX = ".log"
_HEAD = struct.Struct("<II")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_IOV_MAX = 512


class LogError(OSError):
    """A document log that cannot be written or read; says which and why."""


@dataclass(frozen=True)
class Record:
    """One record as stored.

    Attributes
    ----------
    offset, next : int
        Where it starts and where the next one does, in bytes.
    payload : bytes
        What `inscan.callbacks.wire.unpack` reads.
    """

    offset: int
    next: int
    payload: bytes


def file_name(run_uid: str) -> str:
    """Name of a run's log: the uid itself when it is a safe file name, else its digest."""
    if _FILE_NAME.fullmatch(run_uid):
        return run_uid + SUFFIX
    return hashlib.sha256(run_uid.encode("utf-8", "backslashreplace")).hexdigest() + SUFFIX


class LogFile:
    """An owned log: appended to in one thread; read, closed and deleted in another, the same always.

    Use `create` for a new run and `adopt` for a file that a dead process left.
    """

    def __init__(self, path: Path, fd: int, run_uid: str, size: int, *, live: bool) -> None:
        self.path = path
        self.run_uid = run_uid
        self.live = live
        """More documents may come; false after the run's stop and for adopted files."""
        self.unwanted = False
        """Nobody needs further documents of this run (the service released it while it ran)."""
        self._fd = fd
        self._size = size
        # Closing must not meet an append: the number of a closed file is reused at once.
        self._lock = threading.Lock()

    @classmethod
    def create(cls, directory: Path, run_uid: str) -> "LogFile":
        """Create the log of a new run and write its first record.

        Raises
        ------
        OSError
            If it cannot be created, or the run has a log already.
        """
        path = directory / file_name(run_uid)
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(path, flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            log = cls(path, fd, run_uid, 0, live=True)
            # The id tells logs apart that one process keeps of one run.
            head = {"version": 1, "run_uid": run_uid, "id": uuid.uuid4().hex}
            head |= {"host": socket.gethostname()}
            log.append(pack_parts(["log", {**head, "pid": os.getpid()}]))
        except BaseException:
            path.unlink(missing_ok=True)
            os.close(fd)
            raise
        return log

    @classmethod
    def adopt(cls, path: Path) -> "LogFile | None":
        """Own a log that nobody owns.

        Returns
        -------
        LogFile or None
            None if somebody owns it or it has just been deleted.

        Raises
        ------
        LogError
            If it is no document log.
        """
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_ino != os.stat(path).st_ino:
                os.close(fd)
                return None
        except (BlockingIOError, FileNotFoundError):
            os.close(fd)
            return None
        size = os.fstat(fd).st_size
        log = cls(path, fd, "", size, live=False)
        try:
            first = log.read(0)
            name, doc = unpack(first.payload) if first else ("", {})
            if name != "log" or not isinstance(doc.get("run_uid"), str):
                raise LogError(errno.EINVAL, "no document log (its first record is missing)")
            log.run_uid = doc["run_uid"]
        except (WireError, ValueError, TypeError, AttributeError, LogError) as error:
            log.close()
            raise LogError(errno.EINVAL, f"{path} cannot be read as a document log: {error}") from (
                error
            )
        return log

    @classmethod
    def reopen(cls, path: Path) -> "LogFile | None":
        """Own a log that nobody owns and go on writing to it, behind its last whole record.

        Returns
        -------
        LogFile or None
            None if somebody owns it or it has just been deleted.

        Raises
        ------
        LogError
            If it is no document log, or damaged.
        """
        log = cls.adopt(path)
        if log is None:
            return None
        try:
            offset = 0
            while (record := log.read(offset)) is not None:
                offset = record.next
            os.ftruncate(log._fd, offset)  # a torn record was never sent
            log._size = offset
            flags = fcntl.fcntl(log._fd, fcntl.F_GETFL)
            fcntl.fcntl(log._fd, fcntl.F_SETFL, flags | os.O_APPEND)
        except BaseException:
            log.close()
            raise
        log.live = True
        return log

    @property
    def size(self) -> int:
        """Bytes of whole records."""
        return self._size

    def append(self, parts: Sequence[Buffer]) -> None:
        """Append one record; all of it or nothing. Never syncs.

        Raises
        ------
        OSError
            As from the operating system, disk full above all; the file is as it was before.
        """
        length = sum(len(part) for part in parts)
        if length > MAX_DOCUMENT_BYTES:
            raise LogError(
                errno.EFBIG, f"a document of {length} bytes, {MAX_DOCUMENT_BYTES} at most"
            )
        crc = 0
        for part in parts:
            crc = zlib.crc32(part, crc)
        buffers: list[Buffer] = [_HEAD.pack(length, crc), *parts]
        if len(buffers) > _IOV_MAX:
            buffers = [b"".join(buffers)]
        total = length + _HEAD.size
        with self._lock:
            if self.unwanted:
                return
            if self._fd < 0:
                raise LogError(errno.EBADF, f"{self.path} is closed")
            try:
                written = os.writev(self._fd, buffers)
                if written != total:
                    raise LogError(errno.ENOSPC, f"{written} of {total} bytes written")
                self._size += total
            except (
                BaseException
            ):  # KeyboardInterrupt, too: what follows must not stand behind half a record
                os.ftruncate(self._fd, self._size)
                raise

    def read(self, offset: int) -> Record | None:
        """Record at an offset.

        Returns
        -------
        Record or None
            None at the end, which in a dead writer's file may be in the middle of a record.

        Raises
        ------
        LogError
            If the record is damaged; `skip` says where the next one is.
        """
        head = self._head(offset)
        if head is None:
            return None
        length, crc = head
        end = offset + _HEAD.size + length
        if end > self._size:
            return None
        payload = os.pread(self._fd, length, offset + _HEAD.size)
        if len(payload) < length:
            return None
        if length == 0 or zlib.crc32(payload) != crc:
            raise LogError(errno.EIO, f"{self.path}: damaged record at byte {offset}")
        return Record(offset, end, payload)

    def skip(self, offset: int) -> int | None:
        """Offset behind a damaged record, or None if nothing readable follows."""
        head = self._head(offset)
        if head is None or head[0] == 0:
            return None
        end = offset + _HEAD.size + head[0]
        if end >= self._size:
            return None
        try:
            return end if self.read(end) is not None else None
        except LogError:
            return None

    def _head(self, offset: int) -> tuple[int, int] | None:
        if self._fd < 0 or offset + _HEAD.size > self._size:
            return None
        head = os.pread(self._fd, _HEAD.size, offset)
        return _HEAD.unpack(head) if len(head) == _HEAD.size else None

    def close(self) -> None:
        """Give up the file; another process may adopt it."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def abandon(self) -> None:
        """Close the file in a fork of the process that owns it, which would own it as well; takes no lock, for whoever
        held it does not exist here."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def delete(self) -> None:
        """Remove the file: its content is safe elsewhere or unwanted. Later appends do nothing."""
        self.unwanted = True
        self.path.unlink(missing_ok=True)
        self.close()
