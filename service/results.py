"""Results read back, from Tiled by scan number or uid, or from a snapshot's file, as what can be drawn."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import SecretStr
from tiled.client import from_uri
from tiled.queries import Eq, Like

from inscan.service.composite_job import COMPOSITE
from inscan.service.derived import Axis, axes_of, name_dims
from inscan.service.result_file import read_result
from inscan.service.result_view import describe
from inscan.service.tiled_http import PROCESSED, RAW, TiledHTTP

_SHORTEST_UID = 5
_MOST_ENERGIES = 3


class NoSuchRun(LookupError):
    """Neither a raw run nor a result has this number or uid."""


class NoResult(LookupError):
    """The run is known and has no result; the message says what is known of it."""


@dataclass(frozen=True)
class Shown:
    """A result as it is shown.

    Attributes
    ----------
    start : dict
        Start document of the derived run; for a snapshot what its file says, under the same keys.
    arrays : dict of str to ndarray
        Maps of XRF: `values`, `sigma`, `raw`, `doubtful` (element, y, x), `measured` (y, x); of a composite besides
        `disagrees` and `source`. Of a stack the planes named in `labels`, and its chemistry.
    units : dict of str to str
    labels : list of str
        Of the first axis of `values`.
    axes : dict of str to Axis
    rows_done : int or None
        For a snapshot.
    """

    start: dict[str, Any]
    arrays: dict[str, np.ndarray]
    units: dict[str, str]
    labels: list[str]
    axes: dict[str, Axis] = field(default_factory=dict)
    rows_done: int | None = None


class Results:
    """Derived runs in one Tiled. Use it as a context manager.

    Parameters
    ----------
    uri : str
    api_key : SecretStr or None

    Raises
    ------
    ConnectionError
        When Tiled does not answer.
    PermissionError
        When it refuses the key.
    """

    def __init__(self, uri: str, api_key: SecretStr | None) -> None:
        # Asked first over a connection of our own: the client leaves its open when it is refused.
        with TiledHTTP(uri, api_key) as tiled:
            if tiled.get(PROCESSED) is None or tiled.get(RAW) is None:
                raise ConnectionError(f"Tiled at {uri} holds no results of inscan")
        self._client = from_uri(uri, api_key=api_key and api_key.get_secret_value())
        self._processed, self._raw = self._client[PROCESSED], self._client[RAW]

    def close(self) -> None:
        """End the connection."""
        self._client.context.http_client.close()

    def __enter__(self) -> "Results":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def latest(self, wanted: str, stream: str | None = None) -> Any:
        """The latest result of a run, as Tiled's client.

        Parameters
        ----------
        wanted : str
            Scan number, or uid of a raw run or of a result, or the first characters of one.
        stream : str or None
            Which of several maps or stacks of the run, as `primary@2`; None for the first of them.

        Raises
        ------
        NoSuchRun, NoResult
            With what is known.
        """
        found = self._matching(
            self._processed, wanted, "start.uid", "start.raw_uid", "start.composite_uid"
        )
        complete = [run for run in found if run.metadata.get("stop")]
        good = [run for run in complete if _succeeded(run)]
        if good:
            newest = max(good, key=_time)
            raw_uid = newest.metadata["start"]["raw_uid"]
            others = {run.metadata["start"]["raw_uid"] for run in good} - {raw_uid}
            # A scan number may come again with another user; a partial uid must not choose for us.
            if others and not wanted.isdigit():
                raise NoSuchRun(
                    f"{wanted!r} begins the uids of {len(others) + 1} runs; give more of it"
                )
            if stream is not None:
                # Asked for by the uid of another of its results it is the run's all the same.
                found = self._of_run(raw_uid)
            return _newest_of(found, raw_uid, wanted, stream)
        if complete:
            stop = max(complete, key=_time).metadata["stop"]
            raise NoResult(f"run {wanted} has no result, it failed: {stop.get('reason')}")
        if found:
            raise NoResult(f"run {wanted} has no result yet: it is being scanned or computed")
        if self._matching(self._raw, wanted, "start.uid"):
            raise NoResult(
                f"run {wanted} is in Tiled and has no result; `inscan jobs` says whether one is on its way"
            )
        raise NoSuchRun(f"no run {wanted!r} in Tiled, neither by scan number nor by uid")

    def other_streams(self, run: Any) -> list[str]:
        """Streams of the other maps or stacks of a result's run that have results too, the first one first."""
        start = run.metadata["start"]
        good = [one for one in self._of_run(start["raw_uid"]) if _succeeded(one)]
        return [stream for stream in _streams(good) if stream != start["raw_stream"]]

    def raw_start(self, uid: str) -> dict[str, Any]:
        """Start document of a raw run; empty where it is not in this Tiled."""
        return dict(self._raw[uid].metadata["start"]) if uid in self._raw else {}

    def read(self, run: Any) -> Shown:
        """Read what is drawn of a result: all of a map, three energies of a stack."""
        start = dict(run.metadata["start"])
        stream = run["primary"]
        keys: Mapping[str, Any] = stream.metadata["data_keys"]
        labels = list(keys["values"].get("labels") or [])
        count = keys["values"]["shape"][0]
        which = _chosen(count, keys["values"]["dims"][0])
        arrays = {}
        for name in _wanted(keys):
            # One request each: what is cut out is cut out by Tiled.
            whole = keys[name]["dims"][:1] == ["element"] or len(keys[name]["shape"]) < 3
            node = stream[name]
            arrays[name] = (
                np.asarray(node.read())
                if whole or keys[name]["dims"][0] == "reference"
                else np.stack([np.asarray(node[index]) for index in which])
            )
        axes = {
            name: Axis(name, np.asarray(stream[name].read()), key["units"], key.get("motor", ""))
            for name, key in keys.items()
            if name in ("y", "x")
        }
        units = {name: keys[name].get("units") or "" for name in arrays}
        start["reference_labels"] = list(keys.get("fractions", {}).get("labels") or [])
        return Shown(start, arrays, units, [labels[i] if labels else str(i) for i in which], axes)

    def _of_run(self, raw_uid: str) -> list[Any]:
        return [run for _, run in self._processed.search(Eq("start.raw_uid", raw_uid)).items()]

    def _matching(self, catalog: Any, wanted: str, *keys: str) -> list[Any]:
        queries = []
        if wanted.isdigit():
            queries.append(Eq("start.scan_id", int(wanted)))
        if len(wanted) >= _SHORTEST_UID:
            queries += [Like(key, f"{wanted}%") for key in keys]
        found = {}
        for query in queries:
            for key, run in catalog.search(query).items():
                found[key] = run
        return list(found.values())


def from_file(path: Path) -> Shown:
    """Read a result file, for example the newest snapshot of a running scan.

    Raises
    ------
    FileNotFoundError, ResultFileError
        See `inscan.service.result_file.read_result`.
    """
    stored = read_result(path)
    meta = stored.meta.get("assembled", {})
    report = stored.processed.report
    axes = {axis.dim: axis for axis in axes_of(meta, report, name_dims(describe(path)))}
    by_name = {array.name: array for array in stored.processed.arrays}
    values = by_name["values"]
    which = _chosen(values.values.shape[0], values.dims[0])
    arrays = {
        name: array.values[which]
        if array.dims[0] == "energy" and array.values.ndim == 3
        else array.values
        for name, array in by_name.items()
    }
    fractions = by_name.get("fractions")
    start = {
        "uid": "",
        "raw_uid": stored.meta.get("run_uid", ""),
        "scan_id": meta.get("scan_id"),
        "verdict": report.get("verdict"),
        "report": report,
        "warnings": meta.get("warnings", []),
        "reference_labels": list((fractions.labels if fractions else None) or []),
    }
    labels = list(values.labels or map(str, range(values.values.shape[0])))
    return Shown(
        start,
        arrays,
        {array.name: array.units for array in stored.processed.arrays},
        [labels[index] for index in which],
        axes,
        None if meta.get("complete") else meta.get("rows_done"),
    )


def _newest_of(found: Sequence[Any], raw_uid: str, wanted: str, stream: str | None) -> Any:
    """The newest result of one stream of one run."""
    ours = [run for run in found if run.metadata["start"]["raw_uid"] == raw_uid]
    streams = _streams(ours)
    if stream is not None and stream not in streams:
        there = f"there are {', '.join(streams)}"
        if stream == COMPOSITE:
            there += "; a composite comes with the first fine map of a region"
        raise NoResult(f"run {wanted} has no stream {stream!r}: {there}")
    first = stream or streams[0]
    mine = [run for run in ours if run.metadata["start"]["raw_stream"] == first]
    good = [run for run in mine if _succeeded(run)]
    if good:
        return max(good, key=_time)
    ended = [run for run in mine if run.metadata.get("stop")]
    why = (
        f"it failed: {max(ended, key=_time).metadata['stop'].get('reason')}"
        if ended
        else "it is being scanned or computed"
    )
    others = _streams([run for run in ours if _succeeded(run)])
    raise NoResult(
        f"run {wanted} has no result of {first}: {why}; there is one of {', '.join(others)}, which"
        " --stream takes"
    )


def _succeeded(run: Any) -> bool:
    return (run.metadata.get("stop") or {}).get("exit_status") == "success"


def _time(run: Any) -> float:
    return run.metadata["start"]["time"]


def _streams(runs: Sequence[Any]) -> list[str]:
    """Streams of results, the first map or stack first: `primary`, `primary@2`, ..."""
    since: dict[str, float] = {}
    for run in runs:
        stream = run.metadata["start"]["raw_stream"]
        since[stream] = min(since.get(stream, math.inf), _time(run))

    def place(stream: str) -> tuple[int, float]:
        number = stream.rpartition("@")[2] if "@" in stream else "1"
        return (int(number) if number.isdecimal() else 1, since[stream])

    return sorted(since, key=place)


def _wanted(keys: Mapping[str, Any]) -> list[str]:
    shown = ("values", "sigma", "raw", "doubtful", "measured", "source", "disagrees")
    return [name for name in keys if name in shown or name.startswith(("edge_energy", "fractions"))]


def _chosen(count: int, dim: str) -> list[int]:
    """Indices of the planes that are shown: all elements; the first, middle and last energy."""
    if dim != "energy":
        return list(range(count))
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, _MOST_ENERGIES))})
