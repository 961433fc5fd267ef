"""Coarse and fine scans of one place, found among the raw runs in Tiled and assembled again from their documents.

A fine run names its survey in `parent_uid`; every rescan makes such a pair. Documents and detector files are read as
the service read them during the scan, by the same assemblers, so that a map is the same byte for byte.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import SecretStr
from tiled.client import from_uri
from tiled.queries import Eq, Like

from inscan.callbacks.assembly import open_assembler
from inscan.callbacks.geometry import ScanGeometry
from inscan.callbacks.profile import BeamlineProfile
from inscan.callbacks.updates import NotUnderstood, Update
from inscan.models.channels import sum_channels
from inscan.models.pairs import MeasuredMap, Pair, prepare
from inscan.models.superres_input import Sampling
from inscan.service.tiled_http import RAW, TiledHTTP

_SHORTEST_UID = 5


class UnfitRun(ValueError):
    """A run from which no map can be made; the message says why."""


@dataclass(frozen=True)
class Wanted:
    """Which runs to look at.

    Attributes
    ----------
    runs : tuple of str
        Scan numbers or uids (or their first characters), of surveys or of fine runs; empty for all that the others
        leave.
    since : float or None
        Only fine runs from then on, seconds since the epoch.
    sample : str or None
        Only fine runs of the sample of that name.
    """

    runs: tuple[str, ...] = ()
    since: float | None = None
    sample: str | None = None


@dataclass(frozen=True)
class Found:
    """A coarse and a fine run, and whether they are fit to train with.

    Attributes
    ----------
    coarse, fine : dict
        Start documents; `coarse` is empty when the survey is not in Tiled.
    pair : Pair or None
        None when they are not fit.
    reasons : tuple of str
        Why not; for a pair, what to bear in mind.
    figures : mapping
        See `inscan.models.pairs.Preparation`.
    """

    coarse: dict[str, Any]
    fine: dict[str, Any]
    pair: Pair | None
    reasons: tuple[str, ...]
    figures: Mapping[str, Any]


class RawRuns:
    """Raw runs of one Tiled. Use it as a context manager.

    Parameters
    ----------
    uri : str
    api_key : SecretStr or None
    catalog : str
        Path of the catalog of raw runs.

    Raises
    ------
    ConnectionError
        When Tiled does not answer, or has no such catalog.
    PermissionError
        When it refuses the key.
    """

    def __init__(self, uri: str, api_key: SecretStr | None, catalog: str = RAW) -> None:
        with TiledHTTP(uri, api_key) as tiled:
            if tiled.get(catalog) is None:
                raise ConnectionError(f"Tiled at {uri} has no catalog {catalog!r} of raw runs")
        self._client = from_uri(uri, api_key=api_key and api_key.get_secret_value())
        self._raw: Any = self._client[catalog]

    def close(self) -> None:
        """End the connection."""
        self._client.context.http_client.close()

    def __enter__(self) -> "RawRuns":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def get(self, uid: str) -> Any | None:
        """A run by its whole uid, None where there is none."""
        found = list(self._raw.search(Eq("start.uid", uid)).values())
        return found[0] if found else None

    def fine_runs(self, wanted: Wanted) -> list[Any]:
        """Fine runs, the oldest first.

        Raises
        ------
        LookupError
            When a run that was named is not there, or its name is that of several.
        """
        found: dict[str, Any] = {}
        if wanted.runs:
            for name in wanted.runs:
                run = self._named(name)
                start = run.metadata["start"]
                if start.get("parent_uid"):
                    found[start["uid"]] = run
                else:
                    children = self._raw.search(Eq("start.parent_uid", start["uid"]))
                    found |= {one.metadata["start"]["uid"]: one for one in children.values()}
        else:
            # A query for a key that must be there: fine runs are those that have a parent.
            catalog = self._raw.search(Like("start.parent_uid", "%"))
            found = {one.metadata["start"]["uid"]: one for one in catalog.values()}
        chosen = [run for run in found.values() if _chosen(run.metadata["start"], wanted)]
        return sorted(chosen, key=lambda run: run.metadata["start"]["time"])

    def _named(self, name: str) -> Any:
        queries: list[Any] = [Eq("start.scan_id", int(name))] if name.isdigit() else []
        if len(name) >= _SHORTEST_UID:
            queries.append(Like("start.uid", f"{name}%"))
        runs = {
            run.metadata["start"]["uid"]: run
            for query in queries
            for run in self._raw.search(query).values()
        }
        if len(runs) != 1:
            raise LookupError(
                f"{name!r} names {len(runs)} raw runs in Tiled; give the scan number, or the first "
                f"{_SHORTEST_UID} or more characters of the uid, of one"
            )
        return next(iter(runs.values()))


def read_map(run: Any, profiles: Sequence[BeamlineProfile], data_roots: Sequence[Path]) -> Update:
    """Assemble a raw run again.

    Parameters
    ----------
    run : BlueskyRun of Tiled's client
    profiles : sequence of BeamlineProfile
        The first that matches is used.
    data_roots : sequence of Path
        Folders under which detector files may be read, besides the profile's.

    Returns
    -------
    Update
        The run's final.

    Raises
    ------
    UnfitRun
        When no profile matches, or nothing was measured.
    """
    start = dict(run.metadata["start"])
    try:
        assembler = open_assembler(start, profiles, data_roots=data_roots)
    except NotUnderstood as error:
        raise UnfitRun(str(error)) from error
    updates: list[Update] = []
    try:
        for name, document in run.documents():
            updates += [one for one in assembler(name, dict(document)) if one.kind != "snapshot"]
        updates += assembler.finish("its documents in Tiled have no stop")
    finally:
        assembler.close()
    if not updates or updates[-1].kind == "rejected":
        reason = updates[-1].meta.get("reason") if updates else "it has no documents"
        raise UnfitRun(f"run {start['uid'][:8]} gives no map: {reason}")
    if updates[-1].meta["technique"] != "xrf":
        raise UnfitRun(f"run {start['uid'][:8]} is no fluorescence map")
    return updates[-1]


def measured_maps(coarse: Update, fine: Update) -> tuple[MeasuredMap, MeasuredMap]:
    """Both scans as maps of the same channels and elements.

    Each has its own median of I0 as the unit of exposure: whether a monitor counts over the dwell or gives a rate is
    not known here. What the beam did between the two is one factor common to all elements: registration finds it.

    Raises
    ------
    UnfitRun
        When they share neither channels nor elements, or their motors differ.
    """
    grids = [ScanGeometry.from_dict(one.meta["geometry"]) for one in (coarse, fine)]
    for name in ("slow_motor", "fast_motor", "slow_units", "fast_units"):
        if getattr(grids[0], name) != getattr(grids[1], name):
            raise UnfitRun(
                f"{name} is {getattr(grids[0], name)!r} in the survey and "
                f"{getattr(grids[1], name)!r} in the fine run"
            )
    used = [_healthy(one) for one in (coarse, fine)]
    channels = sorted(used[0] & used[1])
    if not channels:
        raise UnfitRun(f"no channel is good in both: {sorted(used[0])} and {sorted(used[1])}")
    elements = [name for name in coarse.meta["elements"] if name in fine.meta["elements"]]
    if not elements:
        raise UnfitRun(f"no element in common: {coarse.meta['elements']}, {fine.meta['elements']}")
    low, high = (
        _summed(one, grid, channels, elements)
        for one, grid in zip((coarse, fine), grids, strict=True)
    )
    return low, high


def find_pairs(
    runs: RawRuns,
    wanted: Wanted,
    profiles: Sequence[BeamlineProfile],
    data_roots: Sequence[Path],
    *,
    factor: int,
    sampling: Sampling,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Iterator[Found]:
    """Find coarse and fine runs, put them on top of each other, and say which are fit to train with.

    Surveys that were read last are kept for the fine runs that follow; everything else is let go.

    Parameters
    ----------
    factor : int
        How many times finer than the survey the network is to be.
    sampling : {"box", "point", "fly"}
        How the survey sampled.
    progress : callable
        Told how many fine runs are done, of how many.

    Raises
    ------
    LookupError
        See `RawRuns.fine_runs`.
    """
    found = runs.fine_runs(wanted)
    read: dict[str, Update | UnfitRun] = {}
    progress(0, len(found))
    for done, fine in enumerate(found, start=1):
        start = dict(fine.metadata["start"])
        parent = str(start["parent_uid"])
        if parent not in read:
            read = {parent: _survey(runs, parent, profiles, data_roots)}
        survey = read[parent]
        if isinstance(survey, UnfitRun):
            yield Found({}, start, None, (str(survey),), {})
        else:
            yield _pair(survey, fine, start, profiles, data_roots, factor, sampling)
        progress(done, len(found))


def _survey(
    runs: RawRuns, uid: str, profiles: Sequence[BeamlineProfile], data_roots: Sequence[Path]
) -> Update | UnfitRun:
    coarse = runs.get(uid)
    if coarse is None:
        return UnfitRun(f"its survey {uid[:8]} is not in Tiled")
    try:
        return read_map(coarse, profiles, data_roots)
    except UnfitRun as error:
        return error


def _pair(
    survey: Update,
    fine: Any,
    start: dict[str, Any],
    profiles: Sequence[BeamlineProfile],
    data_roots: Sequence[Path],
    factor: int,
    sampling: Sampling,
) -> Found:
    coarse = {"uid": survey.run_uid, "scan_id": survey.meta.get("scan_id")}
    try:
        low, high = measured_maps(survey, read_map(fine, profiles, data_roots))
        made = prepare(low, high, factor=factor, sampling=sampling)
    except ValueError as error:
        # One run that is out of order must not keep the others from training.
        return Found(coarse, start, None, (str(error),), {})
    return Found(coarse, start, made.pair, made.reasons, made.figures)


def _chosen(start: Mapping[str, Any], wanted: Wanted) -> bool:
    sample = start.get("sample")
    name = sample.get("name") if isinstance(sample, Mapping) else sample
    return (wanted.since is None or float(start["time"]) >= wanted.since) and (
        wanted.sample is None or name == wanted.sample
    )


def _healthy(one: Update) -> set[int]:
    counts = np.where(one.arrays["measured"], one.arrays["counts"], 0).astype(np.float32)
    light = np.where(one.arrays["measured"], one.arrays["exposure"], 0).astype(np.float32)
    summed = sum_channels(counts, np.broadcast_to(light[:, None], counts.shape))
    return {int(one.meta["channels"][k]) for k in np.flatnonzero(summed.used)}


def _summed(
    one: Update, grid: ScanGeometry, channels: list[int], elements: list[str]
) -> MeasuredMap:
    which = [one.meta["channels"].index(number) for number in channels]
    rows = [one.meta["elements"].index(name) for name in elements]
    measured = np.asarray(one.arrays["measured"], dtype=bool)
    exposure = one.arrays["exposure"][which]
    # A pixel that one of the channels missed has another sum than its neighbours.
    whole = measured & (exposure > 0).all(axis=0)
    counts = one.arrays["counts"][which].sum(axis=0, dtype=np.float64)[rows]
    return MeasuredMap(
        one.run_uid,
        tuple(elements),
        np.where(whole, counts, 0.0),
        exposure.sum(axis=0, dtype=np.float64),
        (grid.slow_first, grid.slow_last),
        (grid.fast_first, grid.fast_last),
        whole,
    )
