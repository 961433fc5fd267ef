"""Child processes of the service: started in their own session, logged, stopped with grace, never
outliving it."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LOG_LIMIT_BYTES = 8 << 20
MALLOC_TUNING = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=4294967296"
"""Keeps torch's large buffers between layers instead of returning them page by page: twice the
speed on a CPU."""


class Child:
    """One child process.

    Parameters
    ----------
    name : str
        Names its log, `<logs>/<name>.log`.
    command : sequence of str
    logs : Path
        Folder of the logs; it exists.
    env : mapping or None
        Added to this process's environment.
    without : collection of str
        Variables of this process's environment that it does not get.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        logs: Path,
        env: Mapping[str, str] | None = None,
        without: Collection[str] = (),
    ) -> None:
        self.name = name
        self.log_path = logs / f"{name}.log"
        self._command = list(command)
        inherited = {key: value for key, value in os.environ.items() if key not in without}
        self._env = {**inherited, **(env or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the latest start."""
        return None if self._process is None else self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status, or None while it runs or was never started."""
        return None if self._process is None else self._process.poll()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, or start it again.

        Call it from a thread that lives as long as the service: the kernel takes the end of the
        starting thread for the death of the parent.
        """
        if self.log_path.exists() and self.log_path.stat().st_size > _LOG_LIMIT_BYTES:
            os.replace(self.log_path, self.log_path.with_suffix(".log.1"))
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C in a terminal is for the service alone; it ends its children in its own
                # order.
                start_new_session=True,
            )

    def terminate(self) -> None:
        """Ask it to end."""
        if self.alive and self._process is not None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; False when it still runs."""
        if self._process is None:
            return True
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self, grace_s: float) -> None:
        """SIGTERM, and SIGKILL after `grace_s` seconds."""
        self.terminate()
        if not self.wait(grace_s) and self._process is not None:
            self._process.kill()
            self._process.wait()


def die_with_parent(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send this process `by` when its parent is gone; end at once when it already is."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, by)
    if os.getppid() != parent:
        sys.exit(1)
