"""Files that several streams of a run share: which of their rows belong to which event.

A camera that goes on with one file while a plan takes images and then flats has both in one dataset. The documents say
which rows are whose; Tiled keeps how many each stream has, and no more. Where the events of all streams together are
as many as the file holds, their times say it: frames are written in the order in which they are taken.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np

from inscan.callbacks.file_access import Roots, open_hdf5
from inscan.callbacks.hdf5_rows import row_selection
from inscan.callbacks.sources.tiled_files import External

__all__ = ["Owner", "place_rows", "sharing"]

Owner = tuple[str, str]
"""Stream and data key."""

_File = tuple[str, str]


def sharing(externals: Mapping[str, Mapping[str, External]]) -> dict[Owner, External]:
    """Return the external data that lie in a dataset of which another stream has rows too.

    Parameters
    ----------
    externals
        Stream -> data key -> what lies in files.
    """
    users: dict[_File, set[Owner]] = defaultdict(set)
    for stream, keys in externals.items():
        for key, one in keys.items():
            for uri in one.files:
                users[uri, one.dataset].add((stream, key))
    found = {
        owner
        for owners in users.values()
        if len({stream for stream, _ in owners}) > 1
        for owner in owners
    }
    return {(stream, key): externals[stream][key] for stream, key in sorted(found)}


def place_rows(
    shared: Mapping[Owner, External],
    times: Mapping[str, np.ndarray],
    announced: Mapping[Owner, int],
) -> dict[Owner, str]:
    """Tell each of them the rows of its events (`External.place`), where these are certain.

    Parameters
    ----------
    shared
        As `sharing` finds it; the run has ended.
    times
        Stream -> (n,) float64, when its events 1, 2, ... n were taken; streams where that is not known are left out.
    announced
        Events whose rows have been handed on while the run went on, as those of nobody else.

    Returns
    -------
    dict
        For those that it was not told: why not.
    """
    unplaced: dict[Owner, str] = {}
    events: dict[_File, list[tuple[float, Owner, int]]] = defaultdict(list)
    owners: dict[_File, list[Owner]] = defaultdict(list)
    for owner, one in shared.items():
        for uri in one.files:
            owners[uri, one.dataset].append(owner)
        taken = times.get(owner[0])
        if taken is None or len(taken) != one.count:
            known = 0 if taken is None else len(taken)
            unplaced[owner] = f"the times of {known} of its {one.count} events are known"
        elif len(one.files) not in (1, one.count):
            unplaced[owner] = f"its {one.count} events lie in {len(one.files)} files"
        else:
            for index, at in enumerate(taken):
                uri = one.files[index if len(one.files) > 1 else 0]
                events[uri, one.dataset].append((float(at), owner, index))
    rows: dict[Owner, dict[int, int]] = {owner: {} for owner in shared}
    for file, its in owners.items():
        if all(owner not in unplaced for owner in its):
            ranked = sorted(events[file])
            why = _why_not(*file, ranked, [shared[owner] for owner in its])
            for row, (_, owner, index) in enumerate(ranked):
                rows[owner][index] = row
                if index < announced.get(owner, 0) and row != index:
                    why = "rows were handed on before another stream was known to have some"
            if why:
                unplaced |= dict.fromkeys(its, why)
    _spread(unplaced, owners.values())
    for owner, one in shared.items():
        if owner not in unplaced:
            one.place(np.array([rows[owner][i] for i in range(one.count)], dtype=np.int64))
    return unplaced


def _spread(unplaced: dict[Owner, str], together: Collection[Sequence[Owner]]) -> None:
    """Whoever shares a file with one that is not placed cannot be either."""
    before = -1
    while len(unplaced) > before:
        before = len(unplaced)
        for owners in together:
            why = next((unplaced[owner] for owner in owners if owner in unplaced), None)
            if why is not None:
                unplaced |= {owner: why for owner in owners if owner not in unplaced}


def _why_not(
    uri: str, dataset: str, events: list[tuple[float, Owner, int]], owners: list[External]
) -> str:
    """Why the order of the events is not that of the rows of a file; empty where it is."""
    times = [taken for taken, _, _ in events]
    streams = {stream for _, (stream, _), _ in events}
    if len(streams) < len(owners):
        return f"{uri} holds several keys of one stream"
    if len(set(times)) < len(times):
        return f"events of {uri} were taken at the same time"
    if not all(one.is_here for one in owners):
        return f"{uri} cannot be read here"
    try:
        path = Path(unquote(urlsplit(uri).path)).resolve()
        with open_hdf5(path) as file:
            found = Roots([path.parent]).dataset(file, dataset, path)
            frames = {row_selection(found, one.shape, {}, one.key).per_event for one in owners}
            length = len(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{uri} cannot be read: {error}"
    if len(frames) != 1 or len(events) * min(frames) != length:
        each = " or ".join(map(str, sorted(frames)))
        return f"{uri} has {length} rows, its {len(events)} events have {each} each"
    return ""
