"""Reads of detector files in a thread of their own, so that one that hangs does not hold its run.

A network disk that stops answering leaves a read in the kernel, out of reach of any signal. Documents of a run
are placed by one of a few threads of the service: were the read in that thread, a few dead mounts would stop every
run. A thread and not a process: pixels then need no way between two, no child has to start with each run, and the
next block is read while the last one is placed.

What a thread cannot help: HDF5 has one lock per process, and h5py holds Python's lock as well while HDF5 looks for a
dataset. Every read therefore begins with plain calls on the same folder and file, which hold neither: a dead mount
is met there (`file_access.regular_file`). One that dies between that and the read stops the process until it answers.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np

from inscan.callbacks.file_access import NotReadable

__all__ = ["PATIENCE_S", "FileReader"]

PATIENCE_S = 60.0
"""Time after which a read of one block (16 MB and more) is taken to hang, in s."""

# Small blocks are handed over together: passing one from thread to thread costs tens of microseconds.
_TOGETHER_BYTES = 4 << 20
_Block = tuple[int, np.ndarray]
_Work = tuple[Future[Any], Callable[[], Any]]
T = TypeVar("T")


class FileReader:
    """One thread that reads, started with the first read.

    Parameters
    ----------
    patience
        Time after which a read is taken to hang, in s.
    """

    def __init__(self, patience: float = PATIENCE_S) -> None:
        self._patience = patience
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stuck: Future[Any] | None = None
        self._closed = False

    def __call__(self, function: Callable[..., T], *args: Any) -> T:
        """Return what the function returns, called in the reading thread.

        Raises
        ------
        NotReadable
            It, or an earlier one, has not returned in time.
        """
        return self._wait(self._submit(lambda: function(*args)))

    def later(self, function: Callable[[], Any]) -> None:
        """Call a function in the reading thread after what it is doing, without waiting for it."""
        if self._thread is not None and not self._closed:
            self._work.put((Future(), function))

    def blocks(self, blocks: Iterator[_Block]) -> Iterator[_Block]:
        """Yield what an iterator yields, reading ahead by one block while the caller works.

        Raises
        ------
        NotReadable
            The next one has not come in time.
        """
        pending = self._submit(lambda: _take(blocks))
        try:
            more = True
            while more:
                found, more, error = self._wait(pending)
                if more:
                    pending = self._submit(lambda: _take(blocks))
                yield from found
                if error is not None:
                    raise error
        finally:
            # Left early: the file must be free again before anybody else reads.
            if self._stuck is None and not pending.done():
                self._wait(pending)

    def close(self, last: Callable[[], Any]) -> None:
        """Call ``last`` in the reading thread and end it; one that hangs is left behind."""
        if self._closed:
            return
        self._closed = True
        if self._thread is None:
            last()
            return
        self._work.put((Future(), last))
        self._work.put(None)
        if self._stuck is None or self._stuck.done():
            self._thread.join(self._patience)

    def _submit(self, function: Callable[[], T]) -> Future[T]:
        if self._stuck is not None:
            if not self._stuck.done():
                raise NotReadable("an earlier read of this run's files has still not returned")
            self._stuck = None
        if self._closed:
            raise NotReadable("this run's files are closed")
        if self._thread is None:
            # Not waited for at the end of the process: it may never return.
            self._thread = threading.Thread(
                target=_run, args=(self._work,), name="files", daemon=True
            )
            self._thread.start()
            # A run that is dropped without being closed takes its thread along.
            weakref.finalize(self, self._work.put, None)
        future: Future[T] = Future()
        self._work.put((future, function))
        return future

    def _wait(self, future: Future[T]) -> T:
        try:
            return future.result(self._patience)
        except TimeoutError as error:
            if future.done():
                return future.result()
            self._stuck = future
            raise NotReadable(f"a read has not returned for {self._patience:g} s") from error


def _run(work: queue.SimpleQueue[_Work | None]) -> None:
    while (item := work.get()) is not None:
        future, function = item
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001  It is raised where the result is awaited.
            future.set_exception(error)
        else:
            future.set_result(result)
            del result
        # Nothing of a run is kept while the next piece of work is waited for.
        del item, future, function


def _take(blocks: Iterator[_Block]) -> tuple[list[_Block], bool, Exception | None]:
    """Return the next blocks, whether there may be more, and what ended them if not their end."""
    found: list[_Block] = []
    nbytes = 0
    try:
        while nbytes < _TOGETHER_BYTES:
            block = next(blocks, None)
            if block is None:
                return found, False, None
            found.append(block)
            nbytes += block[1].nbytes
    except Exception as error:  # noqa: BLE001  Blocks before it are valid; it is raised after them.
        return found, False, error
    return found, True, None
