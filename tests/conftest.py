"""Every test leaves no thread and no child process behind."""

import threading
import time
from collections.abc import Callable

import psutil
import pytest

_GRACE_S = 5.0
# Pools that libraries keep for the life of the process; they belong to nobody's test.
_SHARED = (
    "tqdm",
    "asyncio_",
    "AnyIO",
    "ThreadPoolExecutor",
    "bluesky-run-engine",
    "pytest_timeout",
    "ophyd",
    "zarr_io",
    "Dask-Offload",
)


def _threads() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if not t.name.startswith(_SHARED)}


def _nobodys(child: psutil.Process) -> bool:
    """Whether a process is over, or is the one that Python itself keeps beside its spawned ones."""
    try:
        return child.status() == psutil.STATUS_ZOMBIE or any(
            "resource_tracker" in word for word in child.cmdline()
        )
    except psutil.NoSuchProcess:
        return True


@pytest.fixture(scope="session")
def lives() -> Callable[[int], bool]:
    """`lives(pid)`: whether a process runs. One whose parent was killed stays in the table until whatever adopted it
    looks, in a container perhaps for ever."""

    def look(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        except psutil.NoSuchProcess:
            return False

    return look


@pytest.fixture(autouse=True)
def nothing_left_behind():
    threads = _threads()
    children = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    deadline = time.monotonic() + _GRACE_S
    while True:
        left_threads = [t.name for t in _threads() - threads if t.is_alive()]
        left_children = [
            f"{child.pid} {child.name()}"
            for child in psutil.Process().children(recursive=True)
            if child.pid not in children and not _nobodys(child)
        ]
        if not left_threads and not left_children:
            return
        if time.monotonic() > deadline:
            pytest.fail(f"left behind: threads {left_threads}, processes {left_children}")
        threading.Event().wait(0.02)
