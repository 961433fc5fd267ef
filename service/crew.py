"""The workers that the service itself starts: kept running, told apart, ended in order."""

import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from inscan.service.children import MALLOC_TUNING, Child
from inscan.service.events import WorkerLost
from inscan.service.key_file import NOT_FOR_WORKERS
from inscan.service.mailbox import Mailbox
from inscan.service.worker_loop import EXIT_STUCK

PREFIX = "child-"
"""Begins the names of the service's own workers: when a service starts, those of an earlier life are gone."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_log = logging.getLogger(__name__)


@dataclass
class _Member:
    child: Child
    pause: float = _FIRST_PAUSE_S
    started: float = 0.0
    restart_at: float | None = None
    reason: str = ""
    killed_before: int = 0  # by the kernel, of all processes, when it was started


class Crew:
    """Child workers.

    Parameters
    ----------
    count : int
        How many.
    address : str
        The broker's.
    logs : Path
        Folder of their logs.
    broker : Mailbox
        Told at once when one is lost.
    threads : int or None
        Threads of each; None shares the cores out among them.
    grace_s : float
        Time to finish a job when told to stop.
    command : sequence of str or None
        The program and its first arguments; None for `python -m inscan.service.worker`.
    environment : mapping or None
        Added to theirs: where their pass is.
    """

    def __init__(
        self,
        count: int,
        address: str,
        logs: Path,
        broker: Mailbox,
        *,
        threads: int | None,
        grace_s: float,
        command: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        share = threads or max(1, len(os.sched_getaffinity(0)) // max(1, count))
        self._broker = broker
        self._grace_s = grace_s
        program = command or (sys.executable, "-m", "inscan.service.worker")
        arguments = [
            *program,
            address,
            *("--prefix", PREFIX),
            *("--parent", str(os.getpid())),
            *("--grace", str(grace_s)),
            *("--threads", str(share)),
        ]
        env = {"GLIBC_TUNABLES": MALLOC_TUNING, "OMP_NUM_THREADS": str(share)}
        env |= environment or {}
        self._members = [
            _Member(Child(f"worker-{number}", arguments, logs, env, NOT_FOR_WORKERS))
            for number in range(count)
        ]

    def start(self) -> None:
        """Start all. From the main thread: they end with the thread that starts them."""
        for member in self._members:
            self._start(member)

    def _start(self, member: _Member) -> None:
        member.restart_at = None
        member.started = time.monotonic()
        member.killed_before = _killed_for_memory()
        try:
            member.child.start()
        except OSError as error:
            # No memory, no process or no open file to be had: of the machine, and it passes.
            self._again_after(member, f"{member.child.name} cannot be started: {error}")

    def _again_after(self, member: _Member, reason: str) -> None:
        member.restart_at = time.monotonic() + member.pause
        member.reason = reason
        _log.warning("%s; tried again in %g s", reason, member.pause)
        member.pause = min(2 * member.pause, _LONGEST_PAUSE_S)

    @property
    def troubles(self) -> dict[str, str]:
        """Workers that are down: why, and when they are started again."""
        now = time.monotonic()
        return {
            member.child.name: f"{member.reason}; started again in {max(0.0, due - now):.0f} s"
            for member in self._members
            if (due := member.restart_at) is not None
        }

    def look_after(self) -> None:
        """Start again what has ended, with growing pauses. From the thread that called `start`."""
        now = time.monotonic()
        for member in self._members:
            child = member.child
            if child.alive:
                continue
            if member.restart_at is None:
                reason = f"{child.name} {_ended(child.returncode, member.killed_before)}"
                if child.pid is not None:
                    self._broker.post(WorkerLost(child.pid, reason))
                if child.returncode == EXIT_STUCK or now - member.started > 2 * _LONGEST_PAUSE_S:
                    member.pause = _FIRST_PAUSE_S
                self._again_after(member, f"{reason}; see {child.log_path}")
            elif now >= member.restart_at:
                self._start(member)

    def dismiss(self) -> None:
        """Tell all to finish their jobs and leave."""
        for member in self._members:
            member.child.terminate()

    def stop(self) -> None:
        """Wait for the end of all, by force when their grace is over."""
        deadline = time.monotonic() + self._grace_s + 2.0
        self.dismiss()
        for member in self._members:
            member.child.stop(max(0.1, deadline - time.monotonic()))


def _ended(status: int | None, killed_before: int) -> str:
    """How a process ended, for people: it becomes the reason of a job in quarantine."""
    if status is None or status >= 0:
        return f"ended with status {status}"
    text = f"was killed by {signal.Signals(-status).name}"
    if -status != signal.SIGKILL:
        return text
    if _killed_for_memory() > killed_before:
        return f"{text}: memory ran out, the kernel killed what took most"
    return f"{text}, by somebody or for want of memory"


def _killed_for_memory() -> int:
    """How many processes this machine's kernel has killed because memory ran out."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
