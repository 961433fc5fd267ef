"""Runs of a Tiled catalog."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import httpx
from tiled.queries import Comparison, Eq, Like

from inscan.callbacks.sources.interface import Document, SourceError, StoredRun
from inscan.callbacks.sources.tiled_documents import RunReader

__all__ = ["is_derived", "run_documents", "stored_run", "tiled_runs"]

_SHORTEST_UID = 5
_UID_LENGTH = 36


def run_documents(container: Any, uid: str, *, as_arrays: str = "none") -> Iterator[Document]:
    """Yield the documents of a run; see `inscan.callbacks.sources.tiled_documents.RunReader`.

    A run that has not ended yields no stop.

    Raises
    ------
    SourceError
        Tiled does not answer, or holds no such run.
    """
    return RunReader(container, uid, as_arrays=as_arrays).news()


def stored_run(container: Any, wanted: str | int, *, as_arrays: str = "none") -> StoredRun:
    """Return a run of a catalog.

    Parameters
    ----------
    container
        Tiled's client of the container that holds the runs, such as ``from_uri(...)["raw"]``.
    wanted
        Uid, the first five or more characters of one, or a scan number: of several runs of a number the latest.
    as_arrays
        Of external data, see `inscan.callbacks.sources.tiled_documents.RunReader`.

    Raises
    ------
    LookupError
        There is no such run, or the uid is not complete enough to choose one.
    SourceError
        Tiled does not answer.
    """
    text = str(wanted)
    try:
        found = _matching(container, text)
    except httpx.HTTPError as error:
        raise SourceError(
            f"Tiled at {container.uri} cannot be asked for {text}: {error}"
        ) from error
    if not found:
        raise LookupError(f"no run {text!r} in {container.uri}, by scan number or uid")
    if len(found) > 1 and not text.isdigit():
        raise LookupError(f"{text!r} begins the uids of several runs; give more of it")
    newest = max(found, key=lambda run: run.metadata["start"].get("time", 0.0))
    return _stored(container, newest, as_arrays)


def tiled_runs(
    container: Any, *, since: float | None = None, as_arrays: str = "none"
) -> Iterator[StoredRun]:
    """Yield the runs of a catalog in the order of their writing, but not results of inscan.

    Parameters
    ----------
    container
        As `stored_run`.
    since
        Only runs that started at this time or later, seconds since 1970.
    as_arrays
        As `stored_run`.

    Raises
    ------
    SourceError
        Tiled does not answer.
    """
    try:
        runs = (
            container if since is None else container.search(Comparison("ge", "start.time", since))
        )
        for run in runs.values():
            if "start" in run.metadata and not is_derived(run.metadata["start"]):
                yield _stored(container, run, as_arrays)
    except httpx.HTTPError as error:
        raise SourceError(f"Tiled at {container.uri} cannot be read: {error}") from error


def is_derived(start: Mapping[str, Any]) -> bool:
    """Return whether a start document is that of a result, not of a measurement."""
    return "raw_uid" in start


def _matching(container: Any, text: str) -> list[Any]:
    if len(text) == _UID_LENGTH:
        found = list(container.search(Eq("start.uid", text)).values().head(1))
        if found:
            return found
    found = []
    if text.isdigit():
        found = list(container.search(Eq("start.scan_id", int(text))).values())
    if not found and len(text) >= _SHORTEST_UID:
        found = list(container.search(Like("start.uid", f"{text}%")).values().head(2))
    return found


def _stored(container: Any, run: Any, as_arrays: str) -> StoredRun:
    start = dict(run.metadata["start"])
    uid = str(start.get("uid") or run.item["id"])
    return StoredRun(
        uid=uid,
        where=f"Tiled {container.uri}",
        start=start,
        documents=lambda: run_documents(container, uid, as_arrays=as_arrays),
    )
