"""A Tiled catalog as a source of live documents.

What is new is looked for in the catalog itself, again and again: a subscription misses runs (a restart, a message too
large, a cache that was full), so Tiled's live stream only says when it is worth looking at once. Data never travel over
it, and a Tiled without one is looked at as often as the clock says.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

import httpx
from tiled.queries import Comparison

from inscan.callbacks.sources.interface import Sink, SourceError
from inscan.callbacks.sources.tiled import is_derived, open_catalog
from inscan.callbacks.sources.tiled_documents import RunReader

__all__ = ["TiledSource"]

_MOST_MESSAGE = 16 << 20
_LONGEST_PAUSE_S = 30.0
_TICK_S = 0.2
_GRACE_S = 10.0
# A reader that costs much to ask is asked less often: at most a fifth of the time goes into reading.
_REST = 4.0
_MARGIN_S = 86_400.0
_log = logging.getLogger(__name__)


class TiledSource:
    """Runs as they appear in a catalog, each handed on once, and followed while it goes on.

    Parameters
    ----------
    uri
        Address of a Tiled with runs in ``raw``, or of the container that holds the runs.
    api_key
        A key that may read.
    known
        Run uids -> those of them that need not be handed on, for instance because the service has processed them.
    since
        Runs that started before are left alone, seconds since 1970; by default a day before now.
    poll_s
        Longest time between looks at the catalog.

    Attributes
    ----------
    label, ready, counts
        See `inscan.callbacks.sources.interface.Source`. Counted are ``documents``, ``runs`` (ended and handed on
        whole), ``known``, ``derived`` (results of inscan), ``hints`` (of the live stream), ``lost`` (the catalog did
        not answer) and ``garbage`` (runs that cannot be read).
    last_garbage : str
        Why the latest of them could not.
    """

    def __init__(
        self,
        uri: str,
        api_key: str | None = None,
        *,
        known: Callable[[Sequence[str]], Collection[str]] = lambda uids: (),
        since: float | None = None,
        poll_s: float = 5.0,
    ) -> None:
        self.label = f"Tiled {uri}"
        self.ready = threading.Event()
        self.counts: Counter[str] = Counter()
        self.last_garbage = ""
        self._uri = uri
        self._key = api_key
        self._known = known
        self._since = time.time() - _MARGIN_S if since is None else since
        self._poll_s = poll_s
        self._seen: set[str] = set()
        self._open: dict[str, RunReader] = {}
        self._failures: Counter[str] = Counter()
        self._wake = threading.Event()

    def run(self, sink: Sink, stop: threading.Event) -> None:
        """Hand on what comes until ``stop`` is set.

        Raises
        ------
        SourceError
            At the beginning: Tiled does not answer, refuses the key or has no such container. Later it is waited for.
        """
        hints = _Hints(self._wake, self.counts)
        try:
            with open_catalog(self._uri, self._key) as container:
                try:
                    self._follow(container, hints, sink, stop)
                finally:
                    hints.close()
        finally:
            self.ready.clear()

    def _follow(self, container: Any, hints: _Hints, sink: Sink, stop: threading.Event) -> None:
        pause = 0.0
        while not stop.is_set():
            began = time.monotonic()
            self._wake.clear()
            try:
                # Plainly: Tiled's client asks a server that is gone for half a minute.
                container.context.http_client.get(container.uri).raise_for_status()
                self._look(container, sink, stop)
            except httpx.HTTPError as error:
                self._lost(error)
                pause = min(max(2 * pause, 0.5), _LONGEST_PAUSE_S)
                self._rest(pause, stop)
                continue
            pause = 0.0
            self.ready.set()
            hints.keep(container)
            rest = max(self._poll_s, _REST * (time.monotonic() - began))
            self._rest(min(rest, max(_LONGEST_PAUSE_S, self._poll_s)), stop)

    def _rest(self, seconds: float, stop: threading.Event) -> None:
        until = time.monotonic() + seconds
        while not stop.is_set() and time.monotonic() < until and not self._wake.wait(_TICK_S):
            pass

    def _lost(self, error: Exception) -> None:
        if self.ready.is_set() or not self.counts["lost"]:
            _log.warning("%s does not answer (%s); it is asked again", self.label, error)
        self.counts["lost"] += 1
        self.ready.clear()

    def _look(self, container: Any, sink: Sink, stop: threading.Event) -> None:
        self._find(container)
        for uid, reader in list(self._open.items()):
            try:
                for name, doc in reader.news():
                    sink(name, doc)
                    self.counts["documents"] += 1
                    if stop.is_set():
                        return
            except SourceError as error:
                self._unreadable(uid, error)
                continue
            self._failures.pop(uid, None)
            if reader.ended:
                self.counts["runs"] += 1
                del self._open[uid]

    def _find(self, container: Any) -> None:
        """Begin with runs that are new."""
        fresh: dict[str, float] = {}
        for run in container.search(Comparison("ge", "start.time", self._since)).values():
            start = run.metadata.get("start") or {}
            uid = start.get("uid")
            if not isinstance(uid, str) or uid in self._seen:
                continue
            if is_derived(start):
                self._seen.add(uid)
                self.counts["derived"] += 1
                continue
            fresh[uid] = float(start.get("time") or 0.0)
        if not fresh:
            return
        done = set(self._known(list(fresh)))
        for uid in fresh:
            self._seen.add(uid)
            if uid in done:
                self.counts["known"] += 1
            else:
                self._open[uid] = RunReader(container, uid)
        # Scans last hours, writers are late: what is older than a day before the latest is not looked through again.
        self._since = max(self._since, max(fresh.values()) - _MARGIN_S)

    def _unreadable(self, uid: str, error: SourceError) -> None:
        """A run that fails three times while others can be read is given up."""
        if isinstance(error.__cause__, httpx.TransportError):
            raise error.__cause__
        self._failures[uid] += 1
        if self._failures[uid] < 3:
            return
        self.counts["garbage"] += 1
        self.last_garbage = f"run {uid}: {error}"
        _log.warning("%s", self.last_garbage)
        del self._open[uid], self._failures[uid]


class _Hints:
    """Tiled's live stream of a container: something has happened, look now.

    The thread is ours: Tiled's own way to start one waits forever for a server that has no stream.
    """

    def __init__(self, wake: threading.Event, counts: Counter[str]) -> None:
        self._wake = wake
        self._counts = counts
        self._subscription: Any = None
        self._thread: threading.Thread | None = None
        self._none = False

    def keep(self, container: Any) -> None:
        """Subscribe, unless that is done or the server has told that it has no stream."""
        if self._none or (self._thread is not None and self._thread.is_alive()):
            return
        self.close()
        subscription = container.subscribe()
        # Tiled refers to callbacks weakly: a bound method lives as long as we do.
        subscription.child_created.add_callback(self._hint)
        subscription.child_metadata_updated.add_callback(self._hint)
        self._subscription = subscription
        self._thread = threading.Thread(
            target=self._listen, args=(subscription,), name="inscan-tiled-hints", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """End the subscription."""
        if self._subscription is not None:
            self._subscription.disconnect()
            self._subscription = None
        if self._thread is not None:
            self._thread.join(_GRACE_S)
            self._thread = None

    def _hint(self, update: object) -> None:
        del update
        self._counts["hints"] += 1
        self._wake.set()

    def _listen(self, subscription: Any) -> None:
        try:
            subscription.start(None, max_size=_MOST_MESSAGE)
        except Exception as error:  # noqa: BLE001 - without it the catalog is looked at by the clock
            status = getattr(getattr(error, "response", None), "status_code", None)
            if status is not None:
                self._none = True
                _log.info("Tiled has no live stream (%s): it is looked at by the clock", status)
        self._wake.set()
