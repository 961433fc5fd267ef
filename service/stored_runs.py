"""Runs that were recorded, wherever a beamline has them: what `replay`, `process`, `explain` and `export` are given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from inscan.callbacks.link import default_state_dir
from inscan.callbacks.sources.interface import Document, StoredRun
from inscan.callbacks.sources.tiled import open_catalog, run_documents, stored_run, tiled_runs
from inscan.service.show import TiledAccess, tiled_of

__all__ = ["find_run", "find_runs", "named_run", "open_runs", "runs_of_tiled"]

_DATABROKER = "databroker:"


def find_runs(
    what: str, *, state: Path | None = None, tiled: str | None = None, as_arrays: str = "none"
) -> list[StoredRun]:
    """Find what a person named.

    Parameters
    ----------
    what
        Path of a file of documents (all its runs); uid, first characters of a uid or scan number in Tiled; or
        ``databroker:NAME``, ``databroker:NAME/UID``.
    state
        State directory whose service's Tiled is meant; by default the user's.
    tiled
        Address of another Tiled, or of the container in it that holds the runs.
    as_arrays
        Of external data of a run in Tiled, see `inscan.callbacks.sources.tiled_documents.RunReader`.

    Raises
    ------
    LookupError
        There is no such run; one line that says where it was looked for.
    ConnectionError
        No service runs, and no Tiled is named.
    SourceError
        The file or catalog cannot be read, Tiled does not answer or refuses the key.
    """
    if what.startswith(_DATABROKER):
        # Here, not above: databroker takes seconds to import, and only old catalogs need it.
        from inscan.callbacks.sources.databroker import databroker_runs

        name, _, uid = what.removeprefix(_DATABROKER).partition("/")
        return databroker_runs(name, uid or None)
    path = Path(what).expanduser()
    if path.is_file():
        from inscan.callbacks.sources.files import stored_runs

        runs = stored_runs(path)
        if not runs:
            raise LookupError(f"{path} holds no run")
        return runs
    folder = f"{what!r} is a folder, no file: name a file of documents in it"
    if len(path.parts) > 1 or path.suffix:
        if path.is_dir():
            raise LookupError(folder)
        raise LookupError(f"there is no file {what!r}, and no run has such a uid")
    try:
        access = tiled_of(state or default_state_dir(), tiled)
        with open_runs(access) as container:
            found = stored_run(container, what)
            return [_reopening(access, found, as_arrays)]
    except (LookupError, ConnectionError):
        # A run may be named as a folder is: only what is no run is taken for one.
        if path.is_dir():
            raise LookupError(folder) from None
        raise


def find_run(
    what: str, *, state: Path | None = None, tiled: str | None = None, as_arrays: str = "none"
) -> StoredRun:
    """Find exactly one run; see `find_runs`.

    Raises
    ------
    LookupError
        There is none, or the file or catalog holds several.
    """
    runs = find_runs(what, state=state, tiled=tiled, as_arrays=as_arrays)
    if len(runs) > 1:
        some = ", ".join(run.uid[:8] for run in runs[:5])
        raise LookupError(f"{what} holds {len(runs)} runs ({some}, ...): name one of them")
    return runs[0]


def named_run(runs: Sequence[StoredRun], wanted: str, what: str) -> StoredRun:
    """The one of several runs that a person names by uid, its first characters, or scan number.

    Parameters
    ----------
    runs
        As `find_runs` returns them for ``what``.
    wanted
        What ``--run`` says.
    what
        Where they come from, for the message.

    Raises
    ------
    LookupError
        None of them is called that, or several are.
    """
    found = [
        run for run in runs if run.uid.startswith(wanted) or str(run.start.get("scan_id")) == wanted
    ]
    if len(found) != 1:
        some = ", ".join(run.uid[:8] for run in runs[:20])
        raise LookupError(
            f"--run {wanted}: {len(found)} runs of {what} are called that; it holds {some}"
        )
    return found[0]


def runs_of_tiled(
    *,
    state: Path | None = None,
    tiled: str | None = None,
    since: float | None = None,
    as_arrays: str = "none",
) -> Iterator[StoredRun]:
    """Yield all raw runs of a Tiled, oldest first; parameters and errors as in `find_runs`.

    Parameters
    ----------
    since
        Only runs that started at this time or later, seconds since 1970.
    """
    access = tiled_of(state or default_state_dir(), tiled)
    with open_runs(access) as container:
        for run in tiled_runs(container, since=since):
            yield _reopening(access, run, as_arrays)


def open_runs(access: TiledAccess) -> AbstractContextManager[Any]:
    """Connect to a Tiled; see `inscan.callbacks.sources.tiled.open_catalog`."""
    key = None if access.api_key is None else access.api_key.get_secret_value()
    return open_catalog(access.uri, key)


def _reopening(access: TiledAccess, run: StoredRun, as_arrays: str) -> StoredRun:
    """The run with a connection of its own for each reading: nobody has to close one that is not read."""

    def documents() -> Iterator[Document]:
        with open_runs(access) as container:
            yield from run_documents(container, run.uid, as_arrays=as_arrays)

    return StoredRun(run.uid, run.where, run.start, documents)
