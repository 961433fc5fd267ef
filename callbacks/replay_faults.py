"""What goes wrong on the way from a beamline, done to documents on purpose: seeded, counted, in any combination.

Each fault is a generator over documents. They are applied in one order, whatever order they are asked for in, and each
draws its own random numbers, so that one does not change what another does. The start document always comes
first, the stop document last, and both come once: a run without them is no run to anybody.
"""

from __future__ import annotations

import heapq
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from inscan.callbacks.recording import DATA, Due
from inscan.callbacks.replay import Closing

__all__ = ["FAULTS", "Fault", "Lines", "inject", "parse_fault", "words"]

# Whatever needs a descriptor or resource that has not come belongs to nobody, so those keep their places.
_MOVING = (*DATA, "datum", "datum_page")
_LOSABLE = (*_MOVING, "resource", "stream_resource")
_WINDOW = 20
_MOST_WINDOW = 10_000


@dataclass(frozen=True)
class Fault:
    """A fault and how much of it.

    Attributes
    ----------
    name
        One of `FAULTS`.
    amount
        Share of documents or of the run, number of documents or lines, or seconds; `FAULTS` says which.
    """

    name: str
    amount: float

    def __str__(self) -> str:
        return f"{self.name}={self.amount:g}"


@dataclass(frozen=True)
class Lines:
    """Which values belong to which line of a map, for ``dead_lines``.

    Attributes
    ----------
    rows
        Lines of the map.
    per_event
        Pixels in a line over pixels in an event: 1 where an event is a line, the columns where it is a pixel.
    channel
        Data key -> number of the detector channel whose counts it holds, 0 for counts of all channels, None for
        anything else.
    """

    rows: int
    per_event: int
    channel: Callable[[str], int | None]


@dataclass(frozen=True)
class _Kind:
    text: str
    default: float | None
    low: float
    high: float
    whole: bool = False


FAULTS: dict[str, _Kind] = {
    "dead_lines": _Kind("lines in which one detector channel counts nothing", 1, 1, 1e6, True),
    "truncated": _Kind("share of documents with a field missing or an array cut", 0.05, 0, 1),
    "dropped": _Kind("share of documents that never arrive", 0.05, 0, 1),
    "duplicated": _Kind("share of documents that arrive twice", 0.05, 0, 1),
    "reordered": _Kind("documents may come this many places late", _WINDOW, 1, _MOST_WINDOW, True),
    "delayed": _Kind("documents may come this many seconds late", 2.0, 0, 3600),
    "aborted": _Kind("the run is aborted after this share of it", 0.5, 0, 1),
}
"""Faults in the order in which they are applied."""


def parse_fault(text: str) -> Fault:
    """Read ``dropped=0.05``, ``delayed=2s``, ``reordered``.

    Raises
    ------
    ValueError
        No such fault, or an amount out of range; the message lists what there is.
    """
    name, given, amount = text.partition("=")
    kind = FAULTS.get(name)
    if kind is None:
        known = "; ".join(f"{one}: {kind.text}" for one, kind in FAULTS.items())
        raise ValueError(f"--fault {text}: no such fault. There are {known}")
    if not given and kind.default is not None:
        return Fault(name, kind.default)
    try:
        value = float(amount.removesuffix("s") if name == "delayed" else amount)
    except ValueError:
        value = math.nan
    if not kind.low <= value <= kind.high or (kind.whole and value != int(value)):
        number = "a whole number" if kind.whole else "a number"
        raise ValueError(
            f"--fault {text}: {name} takes {number} from {kind.low:g} to {kind.high:g}: {kind.text}"
        )
    return Fault(name, value)


def inject(
    documents: Iterable[Due],
    faults: Sequence[Fault],
    seed: int,
    done: Counter[str],
    *,
    data: int,
    lines: Lines | None = None,
) -> Iterator[Due]:
    """Documents of one run with faults.

    Parameters
    ----------
    documents
        In order of emission; they are not changed, their replacements are new.
    faults
        At most one of each name.
    seed
        Same documents, faults and seed: same result.
    done
        What has been done is counted here: ``dropped event``, ``truncated stream_datum``, ...
    data
        Number of documents of `recording.DATA` among them, of which ``aborted`` takes its share.
    lines
        For ``dead_lines``; without it that fault is counted as not possible.

    Raises
    ------
    ValueError
        A fault is asked for twice.
    """
    asked = {fault.name: fault.amount for fault in faults}
    if len(asked) != len(faults):
        raise ValueError(f"--fault: each at most once, got {', '.join(map(str, faults))}")
    found = iter(documents)
    for name in FAULTS:
        if name not in asked:
            continue
        amount = asked[name]
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        if name == "dead_lines":
            found = _dead_lines(found, int(amount), rng, done, lines)
        elif name == "truncated":
            found = _truncated(found, amount, rng, done)
        elif name == "dropped":
            found = _dropped(found, amount, rng, done)
        elif name == "duplicated":
            found = _duplicated(found, amount, rng, done)
        elif name == "reordered":
            found = _reordered(found, int(amount), rng, done)
        elif name == "delayed":
            found = _delayed(found, amount, rng, done)
        else:
            found = _aborted(found, amount, data, done)
    return found


def words(done: Mapping[str, int]) -> list[str]:
    """What was done, for people: ``dropped 12 events``."""
    found = []
    for what, times in sorted(done.items()):
        if times:
            verb, _, noun = what.rpartition(": ") if ": " in what else what.partition(" ")
            colon = ":" if ": " in what else ""
            plural = "s" if times != 1 else ""
            found.append(f"{verb}{colon} {times} {noun}{plural}")
    return found


def _dropped(
    documents: Iterator[Due], rate: float, rng: np.random.Generator, done: Counter[str]
) -> Iterator[Due]:
    for due in documents:
        if due.name in _LOSABLE and rng.random() < rate:
            done[f"dropped {due.name}"] += 1
        else:
            yield due


def _duplicated(
    documents: Iterator[Due], rate: float, rng: np.random.Generator, done: Counter[str]
) -> Iterator[Due]:
    again: list[tuple[int, int, Due]] = []
    for number, due in enumerate(documents):
        if due.name == "stop":
            while again:
                yield replace(heapq.heappop(again)[2], at=due.at)
        yield due
        if due.name in _LOSABLE and rng.random() < rate:
            done[f"duplicated {due.name}"] += 1
            heapq.heappush(again, (number + int(rng.integers(0, _WINDOW)), number, due))
        while again and again[0][0] <= number:
            yield replace(heapq.heappop(again)[2], at=due.at)


def _reordered(
    documents: Iterator[Due], window: int, rng: np.random.Generator, done: Counter[str]
) -> Iterator[Due]:
    """Let each document come up to `window` places late, across streams; later ones then come before it."""
    held: list[tuple[float, int, Due]] = []
    last = -1
    for number, due in enumerate(documents):
        if due.name in _MOVING:
            heapq.heappush(held, (number + float(rng.uniform(0, window)), number, due))
        while held and (held[0][0] <= number or due.name == "stop"):
            _, was, one = heapq.heappop(held)
            done[f"reordered {one.name}"] += was < last
            last = max(last, was)
            yield replace(one, at=due.at)
        if due.name not in _MOVING:
            yield due
    while held:
        yield heapq.heappop(held)[2]


def _delayed(
    documents: Iterator[Due], seconds: float, rng: np.random.Generator, done: Counter[str]
) -> Iterator[Due]:
    held: list[tuple[float, int, Due]] = []
    last = 0.0
    for number, due in enumerate(documents):
        while held and (held[0][0] <= due.at or due.name == "stop"):
            last = held[0][0]
            yield heapq.heappop(held)[2]
        due = replace(due, at=max(due.at, last))
        if due.name in _MOVING:
            late = due.at + float(rng.uniform(0, seconds))
            done[f"delayed {due.name}"] += 1
            heapq.heappush(held, (late, number, replace(due, at=late)))
        else:
            yield due
    while held:
        yield heapq.heappop(held)[2]


def _aborted(
    documents: Iterator[Due], share: float, data: int, done: Counter[str]
) -> Iterator[Due]:
    left, closing, run = math.floor(share * data), None, ""
    for due in documents:
        if due.name == "start":
            run = str(due.doc.get("uid"))
            closing = Closing(run)
        if closing is None or due.name == "stop" or (due.name in DATA and left == 0):
            if closing is not None and due.name != "stop":
                done["aborted run"] += 1
                reason = f"replayed with a fault: aborted after {100 * share:g} % of the run"
                yield Due(due.at, "stop", closing.stop("abort", reason))
                return
            yield due
            continue
        left -= due.name in DATA
        closing(due.name, due.doc)
        yield due


def _truncated(
    documents: Iterator[Due], rate: float, rng: np.random.Generator, done: Counter[str]
) -> Iterator[Due]:
    for due in documents:
        if due.name in _MOVING and rng.random() < rate:
            done[f"truncated {due.name}"] += 1
            yield replace(due, doc=_cut(due.doc, rng))
        else:
            yield due


# Fields that say whose the document is stay: without them it is simply dropped, which is another fault.
_ROUTING = ("descriptor", "stream_resource", "resource")


def _cut(doc: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """A copy with one field gone, one value of its data gone, or one of its arrays (or texts) cut in half."""
    new = dict(doc)
    fields = [key for key in new if key not in _ROUTING]
    inner = [key for key in ("data", "indices", "datum_kwargs") if new.get(key)]
    if inner and rng.random() < 0.7:
        outer = inner[int(rng.integers(len(inner)))]
        values = dict(new[outer]) if isinstance(new[outer], Mapping) else {}
        if values:
            key = list(values)[int(rng.integers(len(values)))]
            if isinstance(values[key], list | str | np.ndarray) and np.ndim(values[key]) < 2:
                values[key] = values[key][: len(values[key]) // 2]  # type: ignore[index]
            elif isinstance(values[key], list | np.ndarray):
                values[key] = values[key][: len(values[key]) // 2]
            else:
                del values[key]
            new[outer] = values
            return new
    if fields:
        del new[fields[int(rng.integers(len(fields)))]]
    return new


def _dead_lines(
    documents: Iterator[Due],
    count: int,
    rng: np.random.Generator,
    done: Counter[str],
    lines: Lines | None,
) -> Iterator[Due]:
    """Let a channel count nothing in some lines: zero, as a detector that has lost its high voltage."""
    if lines is None or lines.rows < 1:
        done["lines left alive, no raster is known: run"] += 1
        yield from documents
        return
    dead = rng.choice(lines.rows, min(count, lines.rows), replace=False)
    draw: dict[int, float] = {int(row): float(rng.random()) for row in dead}
    channels: list[int] = []
    killed: set[int] = set()
    for due in documents:
        if due.name == "descriptor":
            keys = due.doc.get("data_keys")
            found = {lines.channel(key) for key in keys} if isinstance(keys, Mapping) else set()
            channels = sorted({one for one in found if one} | set(channels))
        if due.name == "stop" and len(draw) > len(killed):
            # Counts of detectors that write files are not in the documents.
            done["lines left alive, no event has their counts: line"] += len(draw) - len(killed)
        if due.name != "event" or not isinstance(due.doc.get("data"), Mapping):
            yield due
            continue
        number = due.doc.get("seq_num")
        row = (number - 1) // lines.per_event if isinstance(number, int) else -1
        if row not in draw:
            yield due
            continue
        channel = channels[int(draw[row] * len(channels))] if channels else 0
        data = {
            key: _nothing(value) if lines.channel(key) in (0, channel) else value
            for key, value in due.doc["data"].items()
        }
        if any(data[key] is not value for key, value in due.doc["data"].items()):
            if row not in killed:
                killed.add(row)
                done["killed detector line"] += 1
        yield replace(due, doc={**due.doc, "data": data})


def _nothing(value: Any) -> Any:
    """Zero in place of counts; references to files stay."""
    if isinstance(value, np.ndarray):
        return np.zeros_like(value)
    if isinstance(value, list | tuple):
        return [_nothing(one) for one in value]
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return value
    return type(value)(0)
