"""Runs that came with gaps, or from their middle on, completed from the Tiled catalog that has them whole.

A link may lose documents and a forwarder may be started late; whoever writes the raw run to Tiled may have had better
luck, but writes after `stop`. So a run is looked up again and again until a deadline, each time in a thread of its own,
and between the tries nobody waits for it.
"""

import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from pydantic import SecretStr

from inscan.callbacks.missing import Missing
from inscan.callbacks.sources.interface import SourceError

__all__ = ["Catalog", "Mending", "Place", "Repairs"]

Place = Callable[[str, Mapping[str, Any]], object]
"""Puts one document into the run's assembler."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 5.0
_REMEMBERED = 1000
_LONGEST_WHY = 500
_log = logging.getLogger(__name__)


@runtime_checkable
class Gappy(Protocol):
    """An assembler that knows what it lacks; see `inscan.callbacks.assembly.RunAssembler`."""

    def missing(self, stop: Mapping[str, Any], /) -> Missing: ...

    def resource_of(self, key: str, /) -> str | None: ...

    def forget_waiting(self) -> None: ...


@dataclass(frozen=True)
class Catalog:
    """Where raw runs are looked up: a Tiled of inscan, or the container of another that holds runs."""

    uri: str
    api_key: SecretStr | None = None


@dataclass
class Mending:
    """What is fetched of one run, and for how long.

    Attributes
    ----------
    due
        Monotonic seconds of the next try.
    until
        After that nobody waits any more.
    stop
        The stop document; None while the run goes on, empty when it ended without one.
    found_stop
        The catalog's.
    said
        What became of it, for people: a warning of the result and the reason in the journal.
    fetched
        Events and rows that came from the catalog.
    complete
        The run has ended in the catalog, and nothing is missing any more.
    joins
        It is the beginning that is missing.
    """

    run_uid: str
    until: float
    stop: Mapping[str, Any] | None = None
    due: float = 0.0
    said: str = ""
    fetched: int = 0
    complete: bool = False
    joins: bool = False
    found_stop: Mapping[str, Any] | None = None
    _tries: int = 0
    _trouble: str = ""
    _unread: str = ""
    _lacking: Missing = field(default_factory=Missing)


class Repairs:
    """Repairs of the runs of one service; called from several threads.

    Parameters
    ----------
    deadline_s
        Seconds to wait for a run to appear in the catalog, from its stop on.

    Attributes
    ----------
    counts
        ``runs`` repaired, ``events`` fetched, ``given up``.
    """

    def __init__(self, deadline_s: float) -> None:
        self.counts: Counter[str] = Counter()
        self._deadline_s = deadline_s
        self._catalog: Catalog | None = None
        self._lock = threading.Lock()
        self._said: OrderedDict[str, str] = OrderedDict()

    def use(self, catalog: Catalog | None) -> None:
        """Set where to look; known only when the service's own Tiled is."""
        self._catalog = catalog

    def fill(
        self, run_uid: str, assembler: object, stop: Mapping[str, Any], *, gaps: bool
    ) -> Mending | None:
        """Return what there is to mend at the end of a run, None when nothing is.

        Parameters
        ----------
        gaps
            Documents are known to have been lost, though perhaps none that matters.
        """
        if self._catalog is None or not isinstance(assembler, Gappy):
            return None
        lacking = assembler.missing(stop)
        counted = isinstance(stop.get("num_events"), Mapping)
        if not lacking and (counted or not gaps):
            return None
        _log.warning("run %s ended without %s", run_uid, lacking or "some of its documents")
        # Where nothing is known to be missing the catalog is looked at once.
        wait = self._deadline_s if lacking and stop else 0.0
        return Mending(run_uid, time.monotonic() + wait, stop, _lacking=lacking)

    def join(self, run_uid: str, *, stop: Mapping[str, Any] | None) -> Mending | None:
        """Return how a run that came without its start is begun; None without a catalog."""
        if self._catalog is None:
            return None
        wait = 0.0 if stop is None else self._deadline_s
        return Mending(run_uid, time.monotonic() + wait, stop, joins=True)

    def look(self, mending: Mending, assembler: object | None, place: Place) -> bool:
        """Look once, and hand what was missing to `place`.

        Parameters
        ----------
        assembler
            Of the run; None when its start is missing: then start and all the rest are handed on, but no stop.

        Returns
        -------
        bool
            Whether it is over, one way or the other; else try again at `mending.due`.
        """
        mending._tries += 1
        ended, placed = False, Counter[str]()

        def put(name: str, doc: Mapping[str, Any]) -> None:
            place(name, doc)
            placed[name] += 1

        try:
            ended = self._fetch(mending, assembler, put)
            mending._trouble = "" if ended else "the run is there, and not whole"
        except SourceError as error:
            mending._trouble = str(error)
        if assembler is None or _wanted(mending._lacking, mending) is None:
            mending.fetched += placed["event"]
        left = self._left(mending, assembler)
        mending.complete = ended and not left
        # What has ended in the catalog does not grow any more.
        if not ended and time.monotonic() < mending.until:
            pause = min(_FIRST_PAUSE_S * 2 ** min(mending._tries - 1, 8), _LONGEST_PAUSE_S)
            mending.due = min(time.monotonic() + pause, max(mending.until, time.monotonic()))
            return False
        self._settle(mending, assembler, left)
        return True

    def told(self, run_uid: str) -> str:
        """Return, once, what became of a run's repair; an empty text when there was none."""
        with self._lock:
            return self._said.pop(run_uid, "")

    def _fetch(self, mending: Mending, assembler: object | None, place: Place) -> bool:
        # Here, not above: Tiled's client takes two seconds to import, and most services never need it.
        from inscan.callbacks.sources.tiled_documents import RunReader
        from inscan.service.show import TiledAccess
        from inscan.service.stored_runs import open_runs

        catalog = self._catalog
        assert catalog is not None
        lacking = mending._lacking
        wanted = None if assembler is None else _wanted(lacking, mending)
        with open_runs(TiledAccess(catalog.uri, catalog.api_key)) as container:
            # Live events hold ids where Tiled has stream documents: arrays fit both.
            reader = RunReader(container, mending.run_uid, as_arrays="legacy", wanted=wanted)
            keys: dict[str, str] = {}
            streams: dict[str, str] = {}
            for name, doc in reader.news():
                if name == "stop":
                    mending.found_stop = doc
                elif not isinstance(assembler, Gappy):
                    place(name, doc)
                elif name == "stream_resource":
                    keys[doc["uid"]] = doc["data_key"]
                    if assembler.resource_of(doc["data_key"]) is None:
                        place(name, doc)
                elif name == "stream_datum":
                    stream, key = streams[doc["descriptor"]], keys[doc["stream_resource"]]
                    resource = assembler.resource_of(key) or doc["stream_resource"]
                    ranges = lacking.rows_of(stream, key) if mending.stop else None
                    for datum in _cut(doc, ranges):
                        place(name, {**datum, "stream_resource": resource})
                elif name != "start":
                    if name == "descriptor":
                        streams[doc["uid"]] = doc["name"]
                    place(name, doc)
            mending._unread = "; ".join(f"{what}: {why}" for what, why in reader.left_out.items())
            return reader.ended

    def _left(self, mending: Mending, assembler: object | None) -> Missing:
        if assembler is None or mending.stop is None or not isinstance(assembler, Gappy):
            return Missing()
        left = assembler.missing(mending.stop)
        mending.fetched = max(mending.fetched, mending._lacking.n_events - left.n_events)
        return left

    def _settle(self, mending: Mending, assembler: object | None, left: Missing) -> None:
        where = f"Tiled {self._catalog.uri}" if self._catalog else "Tiled"
        words = []
        if assembler is None and mending.fetched:
            words.append(f"joined late: its start and {mending.fetched} events are from {where}")
        elif mending.fetched:
            plural = "s" if mending.fetched > 1 else ""
            words.append(f"{mending.fetched} event{plural} repaired from {where}")
        if left:
            why = f" ({mending._trouble})" if mending._trouble else ""
            words.append(f"{left} missing, also from {where}{why}")
            self.counts["given up"] += 1
        elif mending.fetched or mending.complete:
            self.counts["runs"] += 1
        if mending._unread:
            words.append(f"{where} could not give {mending._unread[:_LONGEST_WHY]}")
        if isinstance(assembler, Gappy) and mending.complete:
            assembler.forget_waiting()
        self.counts["events"] += mending.fetched
        mending.said = "; ".join(words) or mending._trouble
        _log.log(
            logging.WARNING if left else logging.INFO, "run %s: %s", mending.run_uid, mending.said
        )
        if mending.stop is not None and words:
            with self._lock:
                self._said[mending.run_uid] = mending.said
                while len(self._said) > _REMEMBERED:
                    self._said.popitem(last=False)


def _wanted(lacking: Missing, mending: Mending) -> Callable[[str, int], bool] | None:
    # Where nobody counted them, events at the end that never came cannot be told: all are fetched.
    counted = isinstance((mending.stop or {}).get("num_events"), Mapping)
    return lacking.wants if counted and not lacking.references else None


def _cut(
    datum: Mapping[str, Any], ranges: tuple[tuple[int, int], ...] | None
) -> Iterator[dict[str, Any]]:
    """Parts of a stream_datum that stand for missing rows."""
    if ranges is None:
        yield dict(datum)
        return
    first, last = datum["seq_nums"]["start"], datum["seq_nums"]["stop"]
    shift = datum["indices"]["start"] - first
    for start, stop in ranges:
        low, high = max(start, first), min(stop, last)
        if low < high:
            yield {
                **datum,
                "uid": f"{datum['uid']}-{low}",
                "indices": {"start": low + shift, "stop": high + shift},
                "seq_nums": {"start": low, "stop": high},
            }
