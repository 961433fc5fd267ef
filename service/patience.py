"""Whom the writer has put off: results and failures that Tiled does not take while it takes others."""

import time
from collections.abc import Collection
from dataclasses import dataclass

_TOLD = 3


@dataclass
class _Entry:
    since: float
    settled: int
    tries: int = 0
    due: float = 0.0
    reason: str = ""


class Patience:
    """Pauses of single jobs, each growing by itself; used by one thread.

    Parameters
    ----------
    first_pause_s : float
    longest_pause_s : float
        While nothing else is dealt with: it may be Tiled, which will be back.
    longest_alone_s : float
        Of one that is the only trouble.
    """

    def __init__(
        self, first_pause_s: float, longest_pause_s: float, longest_alone_s: float
    ) -> None:
        self._first_pause_s = first_pause_s
        self._longest_pause_s = longest_pause_s
        self._longest_alone_s = longest_alone_s
        self._entries: dict[str, _Entry] = {}
        self._settled = 0

    def due(self, key: str) -> bool:
        """Whether a job may be tried now."""
        entry = self._entries.get(key)
        return entry is None or time.monotonic() >= entry.due

    def tries(self, key: str) -> int:
        """How often a job has failed."""
        entry = self._entries.get(key)
        return 0 if entry is None else entry.tries

    def next_due(self) -> float | None:
        """Seconds until one that was put off may be tried again; None when there is none."""
        if not self._entries:
            return None
        return max(0.0, min(entry.due for entry in self._entries.values()) - time.monotonic())

    def failed(self, key: str, reason: str) -> int:
        """Put a job off; how often it has failed."""
        now = time.monotonic()
        entry = self._entries.setdefault(key, _Entry(now, self._settled))
        entry.tries += 1
        entry.reason = reason
        pause = self._first_pause_s * 2.0 ** min(entry.tries - 1, 30)
        alone = self.others_went(key)
        entry.due = now + min(pause, self._longest_alone_s if alone else self._longest_pause_s)
        return entry.tries

    def settled(self, key: str) -> None:
        """A job was dealt with."""
        self._entries.pop(key, None)
        self._settled += 1

    def others_went(self, key: str) -> bool:
        """Whether others were dealt with since this one failed first: then it alone is the trouble."""
        return self._settled > self._entries[key].settled

    def keep_only(self, keys: Collection[str]) -> None:
        """Forget those that are gone by other ways."""
        for key in set(self._entries).difference(keys):
            del self._entries[key]

    def waiting_since(self) -> float | None:
        """When the oldest of them failed first, by the monotonic clock."""
        return min((entry.since for entry in self._entries.values()), default=None)

    def told(self) -> str:
        """What fails and why, for people: the first few; empty when nothing does."""
        reasons = [entry.reason for entry in self._entries.values()]
        more = len(reasons) - _TOLD
        return "; ".join([*reasons[:_TOLD], *([f"and {more} more"] if more > 0 else [])])
