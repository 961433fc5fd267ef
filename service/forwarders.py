"""The forwarders that the service itself starts, one a source of the settings: kept running, ended with it."""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from inscan.service.children import Child
from inscan.service.source_settings import SourceSettings, command
from inscan.service.source_settings import environment as environment_of
from inscan.service.source_table import SourceTable

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_LONG_S = 60.0
"""One that ran for so long begins with a short pause again."""
_log = logging.getLogger(__name__)


@dataclass
class _Member:
    child: Child
    label: str
    pause: float = _FIRST_PAUSE_S
    started: float = 0.0
    restart_at: float | None = None
    done: bool = False


class Forwarders:
    """Child processes `inscan forward`.

    Parameters
    ----------
    sources : sequence of SourceSettings
    state_dir : Path
    logs : Path
        Folder of their logs.
    table : SourceTable
        Told how each child is.
    environment : mapping or None
        Added to theirs: where their pass is.
    """

    def __init__(
        self,
        sources: Sequence[SourceSettings],
        state_dir: Path,
        logs: Path,
        table: SourceTable,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._table = table
        self._members = [
            _Member(
                Child(
                    f"source-{number}-{source.kind}",
                    command(source, state_dir, os.getpid()),
                    logs,
                    {**environment_of(source), **(environment or {})},
                ),
                source.label,
            )
            for number, source in enumerate(sources)
        ]

    def start(self) -> None:
        """Start all. From the main thread: they end with the thread that starts them."""
        for member in self._members:
            self._start(member)

    def _start(self, member: _Member) -> None:
        member.restart_at = None
        member.started = time.monotonic()
        member.child.start()
        self._table.expect(member.label, "running")

    def look_after(self) -> None:
        """Start again what has died, with growing pauses. From the thread that called `start`."""
        now = time.monotonic()
        for member in self._members:
            child = member.child
            if child.alive or member.done:
                continue
            if child.returncode == 0:
                member.done = True
                self._table.expect(member.label, "done")
                _log.info("%s has come to its end", member.label)
            elif member.restart_at is None:
                if now - member.started > _LONG_S:
                    member.pause = _FIRST_PAUSE_S
                member.restart_at = now + member.pause
                member.pause = min(2 * member.pause, _LONGEST_PAUSE_S)
                why = f"ended with status {child.returncode}; see {child.log_path}"
                self._table.expect(member.label, f"restarting: {why}")
                _log.warning("the forwarder of %s %s", member.label, why)
            elif now >= member.restart_at:
                self._start(member)

    def stop(self, grace_s: float) -> None:
        """End all, by force when their grace is over."""
        deadline = time.monotonic() + grace_s
        for member in self._members:
            member.child.terminate()
        for member in self._members:
            member.child.stop(max(0.1, deadline - time.monotonic()))
