"""An array in a file, as the readers of archives hand it around."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Part = tuple[slice, ...]
"""Which part of an array is read: one slice for each of its first axes."""


class ArchiveError(ValueError):
    """A file that is not understood, or not alone: the message says what is in it and which option helps."""


@dataclass(frozen=True)
class ArchiveDataset:
    """One array of a file.

    Attributes
    ----------
    name : str
        Its path in the file.
    shape : tuple of int
    dtype : dtype
    attrs : mapping
        What the file says of it.
    read : callable
        `read(part)` -> ndarray; `()` for all of it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    attrs: Mapping[str, Any]
    read: Callable[[Part], np.ndarray]

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def numeric(self) -> bool:
        """Whether it holds real numbers."""
        return self.dtype.kind in "biuf"

    @property
    def text(self) -> str:
        """Shape and dtype for people."""
        kind = "text" if self.dtype.kind in "SUO" else str(self.dtype)
        return f"{self.shape if self.shape else 'scalar'} {kind}"


@dataclass(frozen=True)
class Aside:
    """An array that goes with the data: live times, I0, positions; `dims` as of `Reading`."""

    data: ArchiveDataset
    dims: tuple[str, ...]


@dataclass(frozen=True)
class Reading:
    """What data of a file are taken for.

    Attributes
    ----------
    name : str
        What `--dataset` takes to choose it.
    what : str
        For people.
    data : tuple of ArchiveDataset
        Several have one shape, and `dims` names the axis along which they follow each other first.
    dims : tuple of str
        `channel`, `element`, `row`, `col`, `bin`, `energy`, `sum`, or `?` for an axis that the file does not explain.
    said : tuple of str
        From where each of it is known: printed, and kept with the result.
    rank : int
        The rawest data have the lowest: spectra of detectors before sums, sums before fits.
    elements : tuple of str
        Names along `element`.
    energies_ev : ndarray or None
        Along `energy`.
    bin_ev : (float, float) or None
        Energy of the centre of the first bin, and the width of a bin, in eV.
    live_time, i0 : Aside or None
    positions : mapping of str to (ndarray, str)
        `row` and `col`: centres of the pixels, and their units.
    """

    name: str
    what: str
    data: tuple[ArchiveDataset, ...]
    dims: tuple[str, ...]
    said: tuple[str, ...]
    rank: int = 0
    elements: tuple[str, ...] = ()
    energies_ev: np.ndarray | None = None
    bin_ev: tuple[float, float] | None = None
    live_time: Aside | None = None
    i0: Aside | None = None
    positions: Mapping[str, tuple[np.ndarray, str]] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the data, with the axis along which several follow each other."""
        first = self.data[0].shape
        return first if len(self.dims) == len(first) else (len(self.data), *first)
