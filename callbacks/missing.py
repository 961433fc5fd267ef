"""What a run's documents lack when it ends: kept in few numbers while they come, said in words afterwards."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

__all__ = ["Missing", "Spans"]

# Documents may number events as they please; so many islands are no scan any more.
_MOST_SPANS = 100_000
_SHOWN = 3


class Spans:
    """Whole numbers that have been seen, as half-open intervals."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._starts)

    @property
    def stop(self) -> int:
        """One past the largest number seen; 1 when there is none."""
        return self._stops[-1] if self._stops else 1

    def add(self, start: int, stop: int) -> None:
        """Add the numbers from `start` to `stop` - 1; beyond a hundred thousand islands new ones are not kept."""
        if stop <= start:
            return
        if self._stops and self._starts[-1] <= start <= self._stops[-1]:
            self._stops[-1] = max(self._stops[-1], stop)
            return
        first = bisect_left(self._stops, start)
        last = bisect_right(self._starts, stop)
        if first == last and len(self._starts) >= _MOST_SPANS:
            return
        if first < last:
            start = min(start, self._starts[first])
            stop = max(stop, self._stops[last - 1])
        self._starts[first:last] = [start]
        self._stops[first:last] = [stop]

    def discard(self, number: int) -> None:
        """Take one number out again."""
        place = bisect_right(self._starts, number) - 1
        if place < 0 or number >= self._stops[place]:
            return
        start, stop = self._starts[place], self._stops[place]
        del self._starts[place], self._stops[place]
        self.add(start, number)
        self.add(number + 1, stop)

    def copy(self) -> Spans:
        """Return another one of the same numbers."""
        other = Spans()
        other._starts, other._stops = list(self._starts), list(self._stops)
        return other

    def holes(self, stop: int) -> tuple[tuple[int, int], ...]:
        """Return what is not there of the numbers from 1 to `stop` - 1, as (start, stop)."""
        found, next_one = [], 1
        for start, after in zip(self._starts, self._stops, strict=True):
            if start >= stop:
                break
            if start > next_one:
                found.append((next_one, start))
            next_one = max(next_one, after)
        if next_one < stop:
            found.append((next_one, stop))
        return tuple(found)


@dataclass(frozen=True)
class Missing:
    """What did not come.

    Attributes
    ----------
    events
        Stream -> ranges (start, stop) of seq_nums whose events did not come, or came with ids of data that did not.
    rows
        (stream, data key) -> ranges of seq_nums whose rows no stream_datum announced.
    streams
        Stream without descriptor -> number of its events according to the stop document.
    references
        Kind of document -> how many were referred to and did not come.
    """

    events: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    rows: Mapping[tuple[str, str], tuple[tuple[int, int], ...]] = field(default_factory=dict)
    streams: Mapping[str, int] = field(default_factory=dict)
    references: Mapping[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.events or self.rows or self.streams or self.references)

    @property
    def n_events(self) -> int:
        """Number of events and announced rows."""
        ranges = (*self.events.values(), *self.rows.values())
        known = sum(stop - start for spans in ranges for start, stop in spans)
        return known + sum(self.streams.values())

    def wants(self, stream: str, seq_num: int) -> bool:
        """Return whether an event is among what is missing."""
        if stream in self.streams:
            return True
        return any(start <= seq_num < stop for start, stop in self.events.get(stream, ()))

    def rows_of(self, stream: str, key: str) -> tuple[tuple[int, int], ...] | None:
        """Return missing ranges of a data key's rows; None where all of the stream is missing."""
        return None if stream in self.streams else self.rows.get((stream, key), ())

    def __str__(self) -> str:
        return "; ".join(self._words())

    def _words(self) -> Iterator[str]:
        for stream, spans in sorted(self.events.items()):
            yield f"{_count(spans)} of {stream} (seq_num {_ranges(spans)})"
        for (stream, key), spans in sorted(self.rows.items()):
            yield f"{_count(spans, 'row')} of {key} in {stream} (seq_num {_ranges(spans)})"
        for stream, count in sorted(self.streams.items()):
            yield f"the descriptor and {count} events of {stream}"
        for kind, times in sorted(self.references.items()):
            yield f"{times} {kind} document" + ("s" if times > 1 else "")


def _count(spans: tuple[tuple[int, int], ...], what: str = "event") -> str:
    n = sum(stop - start for start, stop in spans)
    return f"{n} {what}" + ("s" if n > 1 else "")


def _ranges(spans: tuple[tuple[int, int], ...]) -> str:
    shown = [str(a) if b - a == 1 else f"{a} to {b - 1}" for a, b in spans[:_SHOWN]]
    return ", ".join(shown) + (", ..." if len(spans) > _SHOWN else "")
