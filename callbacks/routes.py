"""Which run does a document belong to?

Documents name their run in different ways: an event through its descriptor, a stream_datum
through its stream_resource, a datum through its resource. One table per process answers for runs
that interleave, and forgets a run with everything that pointed to it when its stop has passed.
A run that was joined late, so that its start was never seen, begins with the first document that
names it: a descriptor, a resource or the stop.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

# Name of a document -> (field naming what it refers to, field holding its own uid or None).
_LINKS: dict[str, tuple[tuple[str, ...], str | None]] = {
    "descriptor": (("run_start",), "uid"),
    "event": (("descriptor",), None),
    "event_page": (("descriptor",), None),
    "stream_resource": (("run_start",), "uid"),
    "stream_datum": (("stream_resource", "descriptor"), None),
    "resource": (("run_start",), "uid"),
    "datum": (("resource",), None),
    "datum_page": (("resource",), None),
    "stop": (("run_start",), None),
}
_UNLINKED = ("stream_resource", "resource")
_LONGEST_UID = 256  # what the service takes
_REMEMBERED = 10_000  # runs that are over


class Routes:
    """Table from document uids to run uids."""

    def __init__(self) -> None:
        self._runs: dict[str, tuple[str, ...]] = {}  # uid of anything -> its runs
        self._members: dict[str, list[str]] = {}  # open run -> uids that point to it
        self._over: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._runs)

    def of(self, name: str, doc: Mapping[str, Any]) -> tuple[str, ...]:
        """Runs that a document belongs to, and remember its uid for later ones.

        Returns
        -------
        tuple of str
            One run uid as a rule. None for a document of no open run, or of one that is over
            (sources may repeat documents). Every open run for a
            resource that names none (``run_start`` is optional in event-model): a reader leaves
            unused resources alone, but a missing one would cost the data.
        """
        if name == "start":
            return self._open(doc["uid"])
        if name not in _LINKS:
            return ()
        fields, own = _LINKS[name]
        runs: tuple[str, ...] = ()
        for field in fields:
            runs = self._runs.get(doc.get(field, ""), ())
            if runs:
                break
        named = doc.get("run_start")
        if not runs and name in _UNLINKED and not named:
            runs = tuple(self._members)
        elif not runs and fields == ("run_start",) and named:
            runs = self._open(named)
        if own is not None and runs and self._runs.get(doc[own]) != runs:
            uid = doc[own]
            self._runs[uid] = runs
            for run in runs:
                self._members[run].append(uid)
        return runs

    def over(self, name: str, doc: Mapping[str, Any]) -> bool:
        """Whether a document says by itself that it belongs to a run that is over."""
        return doc.get("uid" if name == "start" else "run_start") in self._over

    def _open(self, run_uid: str) -> tuple[str, ...]:
        if not isinstance(run_uid, str) or not 0 < len(run_uid) <= _LONGEST_UID:
            raise ValueError(f"a run is named by a text of 1 to {_LONGEST_UID} characters")
        if run_uid in self._over:
            return ()
        if run_uid not in self._members:
            self._runs[run_uid] = (run_uid,)
            self._members[run_uid] = [run_uid]
        return (run_uid,)

    def close(self, run_uid: str) -> None:
        """Forget a run and whatever pointed to it alone; it is over, and stays so."""
        self._over[run_uid] = None
        while len(self._over) > _REMEMBERED:
            self._over.popitem(last=False)
        for uid in self._members.pop(run_uid, ()):
            left = tuple(run for run in self._runs.get(uid, ()) if run != run_uid)
            if left:
                self._runs[uid] = left
            else:
                self._runs.pop(uid, None)
