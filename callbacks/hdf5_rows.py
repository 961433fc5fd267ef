"""Rows of a dataset in an HDF5 file: which belong to which event, and the reading of slices of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from inscan.callbacks.file_access import FileRefused, NotReadable, check_size

__all__ = ["JOIN_METHODS", "ROWS_BY", "Selection", "read_blocks", "row_selection"]

JOIN_METHODS = ("stack", "concat", "append")
"""How events follow each other in a file: the shapes say which, so that a name is only checked."""

ROWS_BY = "rows_by"
"""Parameter of a stream_resource: how it is known which rows are whose where that was not recorded."""

# Large enough to amortise a read, small enough to stay in cache between reading and placing.
_BLOCK_BYTES = 16 << 20


@dataclass(frozen=True)
class Selection:
    """What one event is in a dataset.

    Attributes
    ----------
    per_event
        Rows of the dataset (its first axis) that make one event.
    inner
        What is taken of the other axes.
    shape
        Declared shape of one event.
    """

    per_event: int
    inner: tuple[int | slice, ...]
    shape: tuple[int, ...]


def row_selection(
    dataset: h5py.Dataset,
    shape: tuple[int, ...],
    parameters: Mapping[str, Any],
    data_key: str,
) -> Selection:
    """Return how the events of a data key lie in a dataset.

    Parameters
    ----------
    dataset
        Its first axis is the row axis.
    shape
        Declared shape of one event in the descriptor.
    parameters
        Of the resource: ``slice`` (of the whole dataset, as ``:,0,:``), ``multiplier`` or ``frame_per_point``
        (frames per event) and ``join_method`` are heeded.
    data_key
        For messages.

    Raises
    ------
    FileRefused
        The dataset does not hold events of the declared shape, or one is too large.
    """
    where = f"{data_key}: {dataset.file.filename}"
    if not dataset.shape:
        raise FileRefused(f"{where}: {dataset.name} is not an array with a row axis")
    join = parameters.get("join_method")
    if join is not None and join not in JOIN_METHODS:
        raise FileRefused(f"{where}: join_method {join!r}; expected one of {JOIN_METHODS}")
    check_size(shape, dataset.dtype, f"{where}: one event")
    inner, left = _inner(dataset.shape, parameters.get("slice"), where)
    frames = parameters.get("multiplier") or parameters.get("frame_per_point")
    if frames is not None and (not isinstance(frames, int) or frames < 1):
        raise FileRefused(f"{where}: {frames!r} frames per event; expected 1 or more")
    if frames is not None and frames > 1 and (not shape or shape[0] != frames):
        raise FileRefused(
            f"{where}: its resource says {frames} frames per event, the descriptor declares {shape}"
        )
    # One frame may or may not have an axis of its own, in the file and in the descriptor.
    if _plain(left) == _plain(shape):
        return Selection(1, inner, shape)
    if shape and _plain(left) == _plain(shape[1:]):
        if frames == 1:
            raise FileRefused(
                f"{where}: its resource says one frame per event, the descriptor declares {shape}"
            )
        return Selection(shape[0], inner, shape)
    raise FileRefused(f"{where} holds rows of {left}, the descriptor declares {shape}")


def _plain(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


def _inner(
    shape: tuple[int, ...], text: Any, where: str
) -> tuple[tuple[int | slice, ...], tuple[int, ...]]:
    """Parse a resource's ``slice``; return what is taken of the inner axes, and the shape left."""
    if not text:
        return (), shape[1:]
    parts = list(text) if isinstance(text, list | tuple) else str(text).strip("()[] ").split(",")
    parts = [str(part).strip() for part in parts]
    wrong = f"{where}: slice {str(text)[:60]!r} of {shape}; expected :, then a number or : per axis"
    if not parts or parts[0] not in (":", "...") or len(parts) > len(shape):
        raise FileRefused(wrong)
    inner: list[int | slice] = []
    left: list[int] = []
    for part, n in zip(parts[1:], shape[1:], strict=False):
        if part == ":":
            inner.append(slice(None))
            left.append(n)
        elif part.isascii() and part.isdigit() and len(part) < 12 and int(part) < n:
            inner.append(int(part))
        else:
            raise FileRefused(wrong)
    return tuple(inner), (*left, *shape[len(parts) :])


def read_blocks(
    dataset: h5py.Dataset, selection: Selection, start: int, stop: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield events ``start`` to ``stop`` - 1 block by block, whole chunks of the file at a time.

    Yields
    ------
    start : int
        Index of the first event of the block.
    block : ndarray
        (n, *shape), as stored.

    Raises
    ------
    NotReadable
        They are not there yet. Blocks yielded before stay valid.
    """
    per_event, path = selection.per_event, dataset.file.filename
    if len(dataset) < stop * per_event:
        raise NotReadable(f"{path}: {dataset.name} has {len(dataset) // per_event} of {stop} rows")
    nbytes = max(1, math.prod(selection.shape) * dataset.dtype.itemsize)
    chunk = 1 if not dataset.chunks else -(-dataset.chunks[0] // per_event)
    # A chunk is unpacked as a whole: ending a block inside it would unpack it twice.
    step = max(1, _BLOCK_BYTES // nbytes)
    step = max(step - step % chunk, 1) if step > chunk else step
    first = start
    while first < stop:
        after = min(first + step - (first % chunk if step > chunk else 0), stop)
        try:
            block = dataset[(slice(first * per_event, after * per_event), *selection.inner)]
        except OSError as error:
            raise NotReadable(f"{path}: {error}") from error
        yield first, block.reshape(after - first, *selection.shape)
        first = after
