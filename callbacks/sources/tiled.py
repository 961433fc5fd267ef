"""Runs of a Tiled catalog."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
from tiled.client import from_uri
from tiled.queries import Comparison, Eq, Like

from inscan.callbacks.sources.interface import Document, SourceError, StoredRun
from inscan.callbacks.sources.tiled_documents import RunReader

__all__ = ["is_derived", "open_catalog", "run_documents", "stored_run", "tiled_runs"]

_SHORTEST_UID = 5
_UID_LENGTH = 36
_RAW = "raw"
_API = "/api/v1"
_TIMEOUT_S = 20.0


@contextmanager
def open_catalog(uri: str, api_key: str | None) -> Iterator[Any]:
    """Connect to a Tiled; yields the client of its container of runs, and closes the connection.

    That is ``raw`` where there is one, as in a Tiled of inscan, else what the address names.

    Parameters
    ----------
    uri
        ``http://HOST:PORT``, or the address of a container in it, ``http://HOST:PORT/api/v1/metadata/raw``.
    api_key
        A key that may read, where one is needed.

    Raises
    ------
    SourceError
        Tiled does not answer, refuses the key, or has no such container.
    """
    try:
        # Asked plainly first: Tiled's client tries for half a minute, and leaves its connection open when refused.
        _ask(uri, api_key)
        client: Any = from_uri(uri, api_key=api_key)
    except (httpx.HTTPError, httpx.InvalidURL, RuntimeError, ValueError, KeyError) as error:
        if isinstance(error, httpx.HTTPStatusError) and error.response.status_code in (401, 403):
            key = "wants a key" if api_key is None else "refuses the key"
            raise SourceError(
                f"Tiled at {uri} {key} ({error.response.status_code}): set INSCAN_SOURCE_TILED_API_KEY for "
                "`inscan forward` (api_key of a source in the settings), INSCAN_TILED_API_KEY for other commands"
            ) from error
        why = str(error).partition("\n")[0]
        raise SourceError(
            f"Tiled at {uri} cannot be used ({why}): start it, or correct address and key"
        ) from error
    try:
        yield client[_RAW] if _RAW in client else client
    except httpx.TransportError as error:
        raise SourceError(f"Tiled at {uri} does not answer any more ({error})") from error
    finally:
        client.context.http_client.close()


def _ask(uri: str, api_key: str | None) -> None:
    parts = urlsplit(uri)
    path = parts.path.rstrip("/")
    if not path.endswith(_API) and f"{_API}/" not in path:
        path += _API
    if path.endswith(_API):
        path += "/metadata/"
    headers = {} if api_key is None else {"Authorization": f"Apikey {api_key}"}
    with httpx.Client(timeout=_TIMEOUT_S, trust_env=False, headers=headers) as http:
        http.get(urlunsplit(parts._replace(path=path))).raise_for_status()


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
