"""Runs that databroker knows: of its v1 `Broker`, of ``catalog.v1``, and so of the days when runs were kept in MongoDB.

databroker 2 is a client of Tiled with the names of old: ``Broker.named(NAME)`` is the Tiled profile NAME, and
``catalog.v1`` of any catalog of runs is the same `Broker`. It warns of its own end all the time; that stays in here.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from bluesky_tiled_plugins import BlueskyRun
from event_model import unpack_datum_page, unpack_event_page
from tiled.client.container import DEFAULT_STRUCTURE_CLIENT_DISPATCH

from inscan.callbacks.sources.decode import Arrays, DecodeError, check_document
from inscan.callbacks.sources.interface import Document, SourceError, StoredRun

__all__ = ["broker_runs", "close_broker", "databroker_runs", "open_broker", "stored_run"]

_log = logging.getLogger(__name__)
# What Tiled's client and server, MongoDB's adapters and httpx raise when something is wrong at their side.
_FAILURES = (httpx.HTTPError, OSError, LookupError, TypeError, ValueError, RuntimeError)


def open_broker(name: str) -> Any:
    """Open a catalog by its name.

    Parameters
    ----------
    name
        Of a Tiled profile (``tiled profile list``), with the runs in it or in its ``raw``.

    Returns
    -------
    databroker.v1.Broker
        Close it with `close_broker`.

    Raises
    ------
    LookupError
        There is no such profile.
    SourceError
        databroker is not installed whole, or the catalog cannot be reached.
    """
    with _quiet():
        try:
            from databroker.v1 import Broker
            from tiled.profiles import list_profiles

            with warnings.catch_warnings(record=True, action="always") as said:
                known = sorted(list_profiles())
        except (ImportError, OSError, ValueError) as error:
            raise SourceError(
                f"databroker cannot be used: {error}; install databroker[client,back-compat]"
            ) from error
        if name != "temp" and name not in known:
            raise LookupError(
                f"no databroker catalog {name!r}: it is the name of a Tiled profile, and there are"
                f" {', '.join(known) or 'none'} (`tiled profile create` makes one)"
                + "".join(f"; {one.message}" for one in said)
            )
        try:
            return Broker.named(name)
        except (ImportError, *_FAILURES) as error:
            raise SourceError(
                f"databroker catalog {name!r} cannot be opened: {_said(error)}"
            ) from error


def close_broker(broker: Any) -> None:
    """End the connection of a broker."""
    with _quiet():
        broker.v2.context.close()


def databroker_runs(name: str, wanted: str | int | None = None) -> list[StoredRun]:
    """Runs of a catalog by its name; each reading of one has a connection of its own.

    Parameters
    ----------
    name
        See `open_broker`.
    wanted
        See `stored_run`; None for all, the oldest first.

    Raises
    ------
    LookupError, SourceError
        See `open_broker` and `stored_run`.
    """
    broker = open_broker(name)
    try:
        found = list(broker_runs(broker)) if wanted is None else [stored_run(broker, wanted)]
    finally:
        close_broker(broker)
    return [_reopening(name, run) for run in found]


def _reopening(name: str, run: StoredRun) -> StoredRun:
    def documents() -> Iterator[Document]:
        broker = open_broker(name)
        try:
            yield from stored_run(broker, run.uid).documents()
        finally:
            close_broker(broker)

    return StoredRun(run.uid, f"databroker {name}", run.start, documents)


def stored_run(broker: Any, wanted: str | int) -> StoredRun:
    """Return a run.

    Parameters
    ----------
    broker
        `databroker.v1.Broker`, also as ``catalog.v1``.
    wanted
        Uid, its first five or more characters, or a scan number: of several runs the latest.

    Raises
    ------
    LookupError
        There is none.
    SourceError
        The catalog does not answer.
    """
    text = str(wanted)
    key = int(text) if text.isdigit() and len(text) < 10 else text
    with _quiet():
        try:
            return _stored(broker, broker[key])
        except (AttributeError, KeyError, ValueError) as error:
            # AttributeError: something of that name is there, and is no run.
            raise LookupError(f"no run {text!r} in {_where(broker)}: {_said(error)}") from error
        except _FAILURES as error:
            raise SourceError(f"{_where(broker)} does not answer: {_said(error)}") from error


def broker_runs(broker: Any) -> Iterator[StoredRun]:
    """Yield all runs of a broker, the oldest first; what else is in its catalog is left out.

    Raises
    ------
    SourceError
        The catalog does not answer.
    """
    uids = _steps(broker, iter(broker.v2))
    for uid in uids:
        try:
            run = stored_run(broker, uid)
        except LookupError as error:
            _log.warning("left out: %s", error)
            continue
        yield run


def _stored(broker: Any, header: Any) -> StoredRun:
    start = dict(header.start)
    return StoredRun(
        uid=str(start["uid"]),
        where=_where(broker),
        start=start,
        documents=lambda: _documents(broker, header),
    )


def _documents(broker: Any, header: Any) -> Iterator[Document]:
    """Yield the documents as they were stored, but arrays as ndarrays: MongoDB and JSON keep them as lists."""
    arrays = Arrays()
    with _quiet():
        # Not the header's own: its documents stumble over a run that has not ended. Not filled: references are wanted.
        documents = header.v2.documents(fill=False)
    for name, given in _steps(broker, documents):
        if name == "stop" and not given:
            return  # a run that has not ended
        doc = dict(given)
        try:
            check_document(name, doc)
            single = _singles(name, doc)
        except (DecodeError, LookupError, TypeError, ValueError) as error:
            _log.warning("%s: a %s is left out: %s", _where(broker), name, error)
            continue
        for one in single:
            yield arrays(*one)


def _singles(name: str, doc: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The events and datums of a page, as they were before the server packed them."""
    if name == "event_page":
        return [("event", dict(one)) for one in unpack_event_page(doc)]  # type: ignore[arg-type]
    if name == "datum_page":
        return [("datum", dict(one)) for one in unpack_datum_page(doc)]  # type: ignore[arg-type]
    return [(name, doc)]


def _steps(broker: Any, items: Iterator[Any]) -> Iterator[Any]:
    """Iterate without letting warnings or foreign exceptions out."""
    while True:
        with _quiet():
            try:
                item = next(items)
            except StopIteration:
                return
            except _FAILURES as error:
                raise SourceError(f"{_where(broker)} cannot be read: {_said(error)}") from error
        yield item


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep in here what databroker warns of, and what it does to Tiled's client.

    Its ``v2`` makes old-style runs the kind that every catalog of this process hands out from then on
    (bluesky-tiled-plugins 2.0 changes a mapping that it has copied but shares).
    """
    with warnings.catch_warnings(action="ignore"):
        try:
            yield
        finally:
            for kind in DEFAULT_STRUCTURE_CLIENT_DISPATCH.values():
                kind.set("BlueskyRun", lambda: BlueskyRun)


def _where(broker: Any) -> str:
    return f"databroker {broker.v2.uri}"


def _said(error: BaseException) -> str:
    text = str(error.args[0]) if error.args else type(error).__name__
    return text.strip().splitlines()[0][:300] if text.strip() else type(error).__name__
