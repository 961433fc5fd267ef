"""Values of events by what they mean: of one pixel, or of a whole row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import numpy as np

from inscan.callbacks.readings import reading, readings
from inscan.callbacks.xrf_columns import Column
from inscan.callbacks.xrf_layout import XRFLayout

__all__ = [
    "Read",
    "RowValues",
    "channel_values",
    "column_sums",
    "counts",
    "event_readers",
    "read_row",
]

Read = Callable[[Mapping[str, Any]], np.ndarray]


@dataclass
class RowValues:
    """What one event says of the pixels of a row, in the order in which they are stored.

    Attributes
    ----------
    n
        Number of pixels.
    recorded
        Number of pixels in the longest of its arrays, and in the shortest of the counts.
    sums
        (n, channel, element) each: counts, then background and its variance if there are any.
    cube
        (n, channel, bin) float32.
    live
        (n, channel), s.
    i0
        (n,).
    positions
        Axis (0 slow, 1 fast) -> (n,) float64, NaN where none were recorded.
    """

    n: int
    recorded: int
    sums: list[np.ndarray] = field(default_factory=list)
    cube: np.ndarray | None = None
    live: np.ndarray | None = None
    i0: np.ndarray | None = None
    positions: dict[int, np.ndarray] = field(default_factory=dict)


def counts(column: Column) -> bool:
    """Return whether a pixel is measured only with this key: motors alone are no measurement."""
    return column.role not in ("slow", "fast")


def channel_values(layout: XRFLayout, column: Column, values: np.ndarray) -> np.ndarray:
    """Return (n, *column.shape) as (n, channel, ...), the channels that are used."""
    if column.channel is not None:
        return values[:, None]
    if layout.channels == tuple(range(1, values.shape[1] + 1)):
        return values  # no copy: this may be a row of spectra
    return values[:, np.array(layout.channels) - 1]


def column_sums(
    layout: XRFLayout, column: Column, values: np.ndarray
) -> tuple[tuple[np.ndarray, ...], slice, slice]:
    """Return the sums of a key's counts, and where they belong.

    Parameters
    ----------
    layout, column
        What the key is.
    values
        (n, channel, bin or window), as `channel_values` returns it.

    Returns
    -------
    sums
        (n, channel, element) each, of the channels and elements that the key holds.
    channel, element : slice
        Those channels and elements.
    """
    if column.role == "spectrum":
        # The caller has made sure that a spectrum comes with windows.
        sums = layout.windows.sums(values)  # type: ignore[union-attr]
    elif column.element is not None:
        sums = (values[..., None],)
    else:
        sums = (values[..., np.array(layout.mcarois, np.int64) - 1],)
    return sums, _part(column.channel), _part(column.element)


def _part(index: int | None) -> slice:
    return slice(None) if index is None else slice(index, index + 1)


def read_row(layout: XRFLayout, data: Mapping[str, Any], most: int) -> RowValues:
    """Read an event that holds a row.

    Parameters
    ----------
    layout
        What its keys are.
    data
        Of the event, arrays in place of datum ids.
    most
        Pixels that a row has: what is beyond is left out.

    Raises
    ------
    KeyError
        It lacks counts, live time or I0.
    ValueError
        An array has another shape than the descriptor declares, the number of pixels aside.
    """
    own = {key: column for key, column in layout.columns.items() if not column.external}
    arrays = {
        key: column.row(key, data[key])
        for key, column in own.items()
        if column.pixels and (counts(column) or key in data)
    }
    lengths = [len(arrays[key]) for key, column in own.items() if counts(column)]
    n = min([most, *lengths])
    row = RowValues(n, max(lengths, default=most) if n == most else n)
    n_channels, n_elements = len(layout.channels), len(layout.elements)
    for key, column in own.items():
        if key not in arrays:
            if key in data:  # one slow position for all
                row.positions[0] = np.full(n, reading(data[key]) * column.factor)
            continue
        values = arrays[key][:n]
        if column.role in ("mcaroi", "spectrum"):
            values = channel_values(layout, column, values)
            sums, channel, element = column_sums(layout, column, values)
            row.sums = row.sums or [np.zeros((n, n_channels, n_elements)) for _ in sums]
            for target, source in zip(row.sums, sums, strict=True):
                target[:, channel, element] = source
            if layout.cube is not None:
                if row.cube is None:
                    row.cube = np.zeros((n, n_channels, layout.cube.bins), np.float32)
                row.cube[:, channel] = layout.cube.sums(values)
        elif column.role == "live_time":
            live = values.astype(np.float64) * column.factor
            if row.live is None:
                row.live = np.empty((n, n_channels))
            shared = column.channel is None and not column.shape
            part = live[:, None] if shared else channel_values(layout, column, live)
            row.live[:, _part(column.channel)] = part
        elif column.role == "i0":
            row.i0 = values.astype(np.float64)
        else:
            position = np.full(n, np.nan)
            position[: len(values)] = values.astype(np.float64) * column.factor
            row.positions[0 if column.role == "slow" else 1] = position
    return row


def event_readers(layout: XRFLayout) -> dict[str, Read]:
    """Return, per role, how its values are taken from the data of an event that is one pixel."""
    channels = np.array(layout.channels) - 1
    mcarois = np.array(layout.mcarois, np.int64) - 1
    readers: dict[str, Read] = {}
    for role in dict.fromkeys(c.role for c in layout.columns.values() if not c.external):
        columns = {k: c for k, c in layout.columns.items() if c.role == role and not c.external}
        first = next(iter(columns.values()))
        if role in ("i0", "slow", "fast"):
            readers[role] = _scalar(next(iter(columns)), first.factor)
            continue
        if role == "live_time" and first.channel is None and not first.shape:
            shared = _scalar(next(iter(columns)), first.factor)
            readers[role] = _repeated(shared, len(layout.channels))
            continue
        lead = tuple(
            count
            for count, index in (
                (len(layout.channels), first.channel),
                (len(layout.elements), first.element),
            )
            if index is not None
        )
        stacked = _stacked(tuple(columns), lead, first)
        if first.channel is None and role == "mcaroi" and first.element is None:
            readers[role] = _select(stacked, np.ix_(channels, mcarois))
        elif first.channel is None and first.element is None:
            readers[role] = _select(stacked, channels)
        elif first.channel is None:
            # {mcaroi} keys that each hold all channels: (element, channel).
            readers[role] = _select(
                stacked, np.ix_(np.arange(len(layout.elements)), channels), True
            )
        elif role == "mcaroi" and first.element is None:
            readers[role] = _select(stacked, np.ix_(np.arange(len(channels)), mcarois))
        else:
            readers[role] = stacked
    return readers


def _scalar(key: str, factor: float) -> Read:
    def read(data: Mapping[str, Any]) -> np.ndarray:
        return reading(data[key]) * factor  # type: ignore[return-value]

    return read


def _repeated(read: Read, n: int) -> Read:
    return lambda data: np.full(n, read(data))


def _stacked(keys: tuple[str, ...], lead: tuple[int, ...], column: Column) -> Read:
    """Values of keys, (*lead, *column.shape)."""
    shape = (*lead, *column.shape)
    get = itemgetter(*keys)
    if not column.shape:
        if column.factor == 1.0:
            return lambda data: readings(get(data)).reshape(shape)
        return lambda data: readings(get(data)).reshape(shape) * column.factor

    def read(data: Mapping[str, Any]) -> np.ndarray:
        parts = [np.asarray(data[key]) for key in keys]
        for key, part in zip(keys, parts, strict=True):
            if part.shape not in (column.stored, column.declared) or part.dtype.kind not in "buif":
                raise ValueError(
                    f"{key} has shape {part.shape} of {part.dtype}, the descriptor declares numbers"
                    f" of shape {column.declared}"
                )
        stacked = column.ordered(np.stack(parts).reshape(len(parts), *column.stored))
        # Times the factor only where there is one: counts keep the type they come in.
        return (stacked if column.factor == 1.0 else stacked * column.factor).reshape(shape)

    return read


def _select(read: Read, index: Any, transpose: bool = False) -> Read:
    if transpose:
        return lambda data: read(data)[index].T
    return lambda data: read(data)[index]
