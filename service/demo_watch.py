"""What the demo shows while it runs: rows that arrive and snapshots that get better."""

import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from inscan.callbacks import Connection
from inscan.service.result_file import ResultFileError, read_result

_LOOK_S = 0.15


class Watch:
    """Progress bars for runs, and a line for each new snapshot. Use it as a context manager.

    Parameters
    ----------
    console : Console
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._seen: dict[str, int] = {}
        self._connection: Connection | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="demo-watch", daemon=True)

    def __enter__(self) -> "Watch":
        self._bars.start()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._bars.stop()

    def follow(self, connection: Connection) -> None:
        """Look for snapshots of the runs of this connection."""
        self._connection = connection

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def step(self, run: str, start: Mapping[str, Any], done: int, expected: int) -> None:
        """Advance a run's bar; called in the RunEngine's thread."""
        task = self._tasks.get(run)
        if task is None:
            what = "energies" if "eng_list" in start else "pixels"
            name = f"{start.get('purpose', 'scan')} {start.get('scan_id', '')}: {what}"
            self._tasks[run] = self._bars.add_task(name, total=expected, completed=done)
            if self._connection is not None:
                self._connection.future(run)  # asks the service for this run's snapshots as well
        else:
            self._bars.update(task, completed=done)

    def _look(self) -> None:
        while not self._ended.wait(_LOOK_S):
            if self._connection is None:
                continue
            for run in list(self._tasks):
                snapshot = self._connection.snapshot(run)
                if snapshot and snapshot["rows"] > self._seen.get(run, 0):
                    self._seen[run] = snapshot["rows"]
                    self.say(f"  snapshot after {snapshot['rows']} rows: {_quality(snapshot)}")


def _quality(snapshot: Mapping[str, Any]) -> str:
    """How sure the snapshot is, from its own sigma (nothing here knows the truth)."""
    try:
        arrays = {
            array.name: array.values
            for array in read_result(Path(snapshot["path"])).processed.arrays
        }
    except (ResultFileError, OSError):
        return "replaced by a newer one"
    values, sigma = arrays["values"], arrays["sigma"]
    known = np.isfinite(values) & np.isfinite(sigma)
    if not known.any():
        return "nothing measured yet"
    scale = np.percentile(np.abs(values[known]), 99)
    share = 100 * float(np.median(sigma[known])) / scale if scale > 0 else float("nan")
    return f"{100 * known.mean():.0f} % of the field, typical sigma {share:.1f} % of the peak"
