"""One derived run into Tiled, exactly once: created, filled, and its stop document last.

Whoever reads ignores runs without a stop. A run that is there already is compared, a half-written one is made again.
Making a node takes Tiled 30 ms, so as much as is known is made while the scan still runs (`Committer.prepare`).
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from inscan.service import tiled_sources
from inscan.service.derived import Axis, DerivedRun
from inscan.service.result_file import ResultFileError
from inscan.service.result_view import StoredArray, digest_of
from inscan.service.tiled_http import (
    PROCESSED,
    TiledHTTP,
    TiledRejected,
    TiledSilent,
    TiledUnavailable,
)

STREAM = "primary"
_AT_ONCE = 4
_ATTEMPTS = 3
_OTHER_S = 3.0
"""How long another writer of the same result is waited for: a half-written run no older than that is being written."""
_LOOK_S = 0.05
_REMEMBERED = 64
_RUN_SPEC = {"name": "BlueskyRun", "version": "3.0"}
_STREAM_SPECS = [
    {"name": "BlueskyEventStream", "version": "3.0"},
    {"name": "composite", "version": None},
]

Fate = Literal["written", "same", "differs"]


class DamagedResult(ResultFileError):
    """A result file whose content is not what its worker reported."""


@dataclass
class _Prepared:
    """What this connection has made of a run: the stream's keys, the data source of each node, the file of axes."""

    keys: dict[str, Any] | None = None
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    axes: dict[str, bytes] = field(default_factory=dict)


class Committer:
    """Writes derived runs through one connection; for one thread.

    Parameters
    ----------
    tiled : TiledHTTP
    readable : sequence of Path
        Folders that this Tiled may read: result files in them are registered where they lie.
    shared : Path or None
        A folder this Tiled may read, into which result files from elsewhere are copied. None: they are uploaded, about
        ten times slower.
    """

    def __init__(
        self, tiled: TiledHTTP, *, readable: Sequence[Path] = (), shared: Path | None = None
    ) -> None:
        self._tiled = tiled
        self._shared = None if shared is None else shared.resolve()
        self._readable = [folder.resolve() for folder in (*readable, *([shared] if shared else []))]
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="commit")
        self._prepared: OrderedDict[str, _Prepared] = OrderedDict()

    def close(self) -> None:
        """End the helper threads; requests under way are finished first."""
        self._pool.shutdown()

    def prepare(self, run: DerivedRun, axes: Sequence[Axis], path: Path) -> None:
        """Make the nodes of a run whose result file `path` is yet to come; it gets no stop document.

        May be called again when more is known. Does nothing where the result would have to be copied or uploaded.

        Raises
        ------
        TiledUnavailable, TiledRefusedKey, TiledRejected
            See `inscan.service.tiled_http`.
        """
        path = path.resolve()
        if not self._in_reach(path):
            return
        if run.uid not in self._prepared and self._open(run) is not None:
            return
        self._register(run, axes, path)

    def commit(
        self, run: DerivedRun, axes: Sequence[Axis] = (), path: Path | None = None, digest: str = ""
    ) -> Fate:
        """Write one derived run.

        Parameters
        ----------
        run : DerivedRun
        axes : sequence of Axis
            Stored beside the arrays, as coordinates.
        path : Path or None
            The result file; None for a failure.
        digest : str
            What the arrays in `path` must hash to.

        Returns
        -------
        str
            `written`; `same` when the run was there with the same content; `differs` when it was there with another,
            which stands.

        Raises
        ------
        DamagedResult
            When the file does not hash to `digest`; the run is left without its stop.
        TiledUnavailable, TiledRefusedKey, TiledRejected
            See `inscan.service.tiled_http`.
        """
        for left in reversed(range(_ATTEMPTS)):
            try:
                return self._commit(run, axes, path, digest)
            except TiledSilent:
                self._prepared.pop(run.uid, None)
                raise
            except (TiledRejected, TiledUnavailable):
                # Whoever writes the same result at the same time, offline for instance, may have taken away what was
                # made here; an answer may have been lost behind what it answers; or the catalog was emptied.
                self._prepared.pop(run.uid, None)
                there = self._let_finish(run)
                if there is not None:
                    return there
                if not left:
                    raise
                self._tiled.ensure_catalogs()
        raise AssertionError("the last attempt returns or raises")

    def _let_finish(self, run: DerivedRun) -> Fate | None:
        """Wait while another writer is at the same run, which it has begun a moment ago."""
        deadline = time.monotonic() + _OTHER_S
        while (there := self._fate(run)) is None and time.monotonic() < deadline:
            found = self._tiled.get(f"{PROCESSED}/{run.uid}")
            if found is None or found["metadata"].get("stop"):
                break
            begun = _start_of(found).get("time")
            ours = run.start["time"]
            # The very same time is our own beginning, of which the answer was lost.
            if not isinstance(begun, int | float) or not 0 < abs(ours - begun) <= _OTHER_S:
                break
            threading.Event().wait(_LOOK_S)
        return there

    def _fate(self, run: DerivedRun) -> Fate | None:
        """What a run that is there whole means for this one; None where it is not there, or not whole."""
        attributes = self._tiled.get(f"{PROCESSED}/{run.uid}")
        stop = None if attributes is None else attributes["metadata"].get("stop")
        if attributes is None or not isinstance(stop, dict) or not stop:
            return None
        if stop.get("exit_status") != "success" and run.descriptor is not None:
            return None
        there = _start_of(attributes)
        if stop.get("exit_status") != "success" and there.get("failure") != run.start.get(
            "failure"
        ):
            return None  # it was tried again, and failed in another way
        ours, theirs = run.start.get("result_digest"), there.get("result_digest")
        return "same" if ours == theirs else "differs"

    def _commit(
        self, run: DerivedRun, axes: Sequence[Axis], path: Path | None, digest: str
    ) -> Fate:
        node = f"{PROCESSED}/{run.uid}"
        if run.descriptor is None:
            self._prepared.pop(run.uid, None)
        # The check reads the whole file; meanwhile Tiled learns where its arrays are.
        check = None if path is None else self._pool.submit(_verify, path, digest)
        try:
            # What was prepared long ago may have been written by another since.
            there = self._fate(run) if run.uid in self._prepared else self._open(run)
            if there is not None:
                self._prepared.pop(run.uid, None)
                return there
            if path is not None:
                self._fill(run, axes, path.resolve())
        finally:
            damage = None if check is None else check.exception()
        if damage is not None:
            raise damage
        self._tiled.update_metadata(node, {"start": run.start, "stop": run.stop})
        self._prepared.pop(run.uid, None)
        # What is read back is what counts: after this the journal calls it done, and its input is deleted.
        there = self._fate(run)
        if there is None:
            raise TiledUnavailable(
                f"Tiled at {self._tiled.uri} says that it has {node}, and has not when asked"
            )
        return "written" if there == "same" else there

    def _open(self, run: DerivedRun) -> Fate | None:
        """Make the run's node, or learn what is there already: None means that there is writing to do."""
        if not self._make(run):
            node = f"{PROCESSED}/{run.uid}"
            there = self._let_finish(run)
            if there is not None:
                return there
            # Half-written, or a failure that has been overcome: nothing of what was said then may stay.
            self._tiled.delete(node)
            if not self._make(run):
                raise TiledUnavailable(
                    f"Tiled at {self._tiled.uri} neither makes nor lets go of {node}"
                )
        self._prepared[run.uid] = _Prepared()
        while len(self._prepared) > _REMEMBERED:
            self._prepared.popitem(last=False)
        return None

    def _make(self, run: DerivedRun) -> bool:
        return self._tiled.create(
            PROCESSED,
            run.uid,
            metadata={"start": run.start},
            specs=[*({"name": name, "version": None} for name in run.specs), _RUN_SPEC],
            access_tags=run.access_tags,
        )

    def _fill(self, run: DerivedRun, axes: Sequence[Axis], path: Path) -> None:
        if not self._in_reach(path) and self._shared is not None:
            path = tiled_sources.brought(path, self._shared)
        if self._in_reach(path):
            self._register(run, axes, path)
        else:
            self._upload(run, axes, path)

    def _register(self, run: DerivedRun, axes: Sequence[Axis], path: Path) -> None:
        beside = tiled_sources.axes_path(path)
        sources = {array.name: tiled_sources.registered(path, array) for array in run.arrays}
        for axis in axes:
            source = tiled_sources.registered(beside, tiled_sources.axis_array(axis))
            sources.setdefault(axis.dim, source)
        written = {axis.dim: axis.values.tobytes() for axis in axes}
        if self._prepared[run.uid].axes != written:
            tiled_sources.write_axes(path, axes)
            self._prepared[run.uid].axes = written
        self._nodes(run, sources)

    def _upload(self, run: DerivedRun, axes: Sequence[Axis], path: Path) -> None:
        arrays: dict[str, tuple[StoredArray, Path | np.ndarray]]
        arrays = {array.name: (array, path) for array in run.arrays}
        for axis in axes:
            arrays.setdefault(axis.dim, (tiled_sources.axis_array(axis), axis.values))
        self._nodes(
            run, {name: tiled_sources.uploaded(array) for name, (array, _) in arrays.items()}
        )
        for name, (array, where) in arrays.items():
            for block, data in tiled_sources.blocks(array, where):
                self._tiled.put_block(f"{PROCESSED}/{run.uid}/{STREAM}/{name}", block, data)

    def _nodes(self, run: DerivedRun, sources: dict[str, dict[str, Any]]) -> None:
        """Make the stream and its arrays, or whatever of them is missing or has changed since `prepare`."""
        assert run.descriptor is not None
        node = f"{PROCESSED}/{run.uid}"
        prepared = self._prepared[run.uid]
        keys = run.descriptor["data_keys"]
        if prepared.keys is None:
            self._tiled.create(
                node,
                STREAM,
                metadata=run.descriptor,
                specs=_STREAM_SPECS,
                access_tags=run.access_tags,
            )
        elif prepared.keys != keys:
            self._tiled.replace_metadata(f"{node}/{STREAM}", run.descriptor)
        prepared.keys = keys
        stale = [name for name, source in prepared.sources.items() if sources.get(name) != source]
        for name in stale:
            self._tiled.delete(f"{node}/{STREAM}/{name}")
            del prepared.sources[name]
        wanted = [name for name in sources if name not in prepared.sources]
        jobs: list[Callable[[], None]] = [
            lambda name=name: self._array(run, name, sources[name], keys[name]) for name in wanted
        ]
        for done in [self._pool.submit(job) for job in jobs]:
            done.result()
        prepared.sources = sources

    def _array(
        self, run: DerivedRun, name: str, source: dict[str, Any], key: dict[str, Any]
    ) -> None:
        self._tiled.create(
            f"{PROCESSED}/{run.uid}/{STREAM}",
            name,
            family="array",
            metadata={"units": key["units"], "dims": key["dims"]},
            data_sources=[source],
            access_tags=run.access_tags,
        )

    def _in_reach(self, path: Path) -> bool:
        return any(path.is_relative_to(folder) for folder in self._readable)


def _start_of(attributes: dict[str, Any]) -> dict[str, Any]:
    start = attributes["metadata"].get("start")
    return start if isinstance(start, dict) else {}


def _verify(path: Path, digest: str) -> None:
    found = digest_of(path)
    if found != digest:
        raise DamagedResult(
            f"result file {path}: its arrays hash to {found}, the worker reported {digest}"
        )
