"""What the processes that forward documents say of themselves."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_FRESH_S = 10.0
"""A source unheard of for so long is not ready, whatever it said last."""
_MAX_SOURCES = 64
_MAX_TEXT = 300
_MAX_COUNTS = 40


@dataclass
class _Row:
    said: dict[str, Any] = field(default_factory=dict)
    heard: float | None = None
    state: str = ""


class SourceTable:
    """Sources by label. Safe to be used from several threads."""

    def __init__(self) -> None:
        self._rows: dict[str, _Row] = {}
        self._lock = threading.Lock()

    def report(
        self,
        label: str,
        ready: bool,
        counts: Mapping[str, int],
        pid: int,
        host: str,
        age_s: float | None = None,
        note: str = "",
    ) -> Mapping[str, Any]:
        """Take down what a source says; one a label, the latest counts.

        Raises
        ------
        ValueError
            When it is not what a source says, or there are too many.
        """
        if not isinstance(label, str) or not 0 < len(label) <= _MAX_TEXT:
            raise ValueError(f"a source has a label of 1 to {_MAX_TEXT} characters")
        said = {
            "pid": int(pid),
            "host": str(host)[:_MAX_TEXT],
            "ready": bool(ready),
            "counts": {str(k)[:40]: int(n) for k, n in list(dict(counts).items())[:_MAX_COUNTS]},
            "age_s": None if age_s is None else float(age_s),
            "note": str(note)[:_MAX_TEXT],
        }
        with self._lock:
            if label not in self._rows and len(self._rows) >= _MAX_SOURCES:
                self._forget_one()
            row = self._rows.setdefault(label, _Row())
            row.said, row.heard = said, time.monotonic()
        return {}

    def expect(self, label: str, state: str) -> None:
        """Note how the service's own child for a source is: `starting`, `running`, `restarting: why`."""
        with self._lock:
            row = self._rows.setdefault(label, _Row())
            if state == "running":
                row.heard = None  # what its predecessor said does not hold any more
            row.state = state

    def rows(self) -> list[dict[str, Any]]:
        """One mapping a source: label, ready, documents, garbage, seconds since its last document, and more."""
        now = time.monotonic()
        with self._lock:
            return [_told(label, row, now) for label, row in sorted(self._rows.items())]

    def _forget_one(self) -> None:
        gone = [label for label, row in self._rows.items() if not row.state]
        if not gone:
            raise ValueError(f"{_MAX_SOURCES} sources report already")
        oldest = min(gone, key=lambda label: self._rows[label].heard or 0.0)
        if time.monotonic() - (self._rows[oldest].heard or 0.0) < _FRESH_S:
            raise ValueError(f"{_MAX_SOURCES} sources report already")
        del self._rows[oldest]


def _told(label: str, row: _Row, now: float) -> dict[str, Any]:
    seen = None if row.heard is None else now - row.heard
    fresh = seen is not None and seen < _FRESH_S
    said = row.said
    state = row.state or ("running" if fresh else "gone")
    counts: dict[str, int] = said.get("counts", {})
    age = said.get("age_s")
    return {
        "label": label,
        "ready": bool(said.get("ready")) and (state == "done" or (fresh and state == "running")),
        "state": state,
        "documents": counts.get("documents", 0),
        "garbage": counts.get("garbage", 0),
        "age_s": None if age is None or seen is None else round(age + seen, 1),
        "seen_s": None if seen is None else round(seen, 1),
        "pid": said.get("pid"),
        "host": said.get("host"),
        "counts": counts,
        "note": said.get("note", ""),
    }
