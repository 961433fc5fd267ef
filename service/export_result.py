"""A result in Tiled, read plane by plane, for those who write it into the files that other programs load."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from inscan.service.derived import Axis

__all__ = ["ExportArray", "ExportResult", "NotExportable", "export_result"]

AXES = ("y", "x", "energy", "bin")


class NotExportable(ValueError):
    """A result that a format has no place for; the message says why, and which format has."""


@dataclass(frozen=True)
class ExportArray:
    """One array of a result.

    Attributes
    ----------
    name : str
        As in Tiled: `values`, `sigma`, ...
    dims : tuple of str
        Names of the axes, slow axis first.
    units : str
    shape : tuple of int
    dtype : numpy dtype
    labels : tuple of str
        Names along the first axis; empty where it has none.
    read : callable
        Index expression -> that part as an ndarray; one request to Tiled each.
    """

    name: str
    dims: tuple[str, ...]
    units: str
    shape: tuple[int, ...]
    dtype: np.dtype
    labels: tuple[str, ...]
    read: Callable[[Any], np.ndarray]

    def parts(self) -> Iterator[tuple[Any, np.ndarray]]:
        """Index and content of one plane after the other; of all of it where it is one plane."""
        if len(self.shape) < 3:
            yield (), self.read(())
            return
        for index in range(self.shape[0]):
            yield index, self.read(index)

    def whole(self) -> np.ndarray:
        """All of it in memory."""
        return self.read(())


@dataclass(frozen=True)
class ExportResult:
    """A result and what is known of it.

    Attributes
    ----------
    start : dict
        Start document of the derived run: provenance, verdict, report.
    raw_start : dict
        Start document of the raw run; empty where it is not in the same Tiled.
    arrays : dict of str to ExportArray
    axes : dict of str to Axis
        Those of `y`, `x`, `energy`, `bin` that the result has.
    """

    start: Mapping[str, Any]
    raw_start: Mapping[str, Any]
    arrays: Mapping[str, ExportArray]
    axes: Mapping[str, Axis]

    @property
    def maps(self) -> bool:
        """Elements over a field, in contrast to an energy stack."""
        return self.arrays["values"].dims[:1] == ("element",)

    @property
    def stem(self) -> str:
        """Beginning of the names of its files: scan number and the first characters of its uid."""
        scan = self.start.get("scan_id")
        return f"scan{'' if scan is None else f'_{scan}'}_{str(self.start['uid'])[:8]}"

    def axis(self, dim: str, length: int) -> Axis:
        """Positions along a dimension; numbers of the pixels where nothing is known of it."""
        known = self.axes.get(dim)
        if known is not None and len(known.values) == length:
            return known
        return Axis(dim, np.arange(length, dtype=float), "")


def export_result(run: Any, raw_start: Mapping[str, Any]) -> ExportResult:
    """Describe a derived run; nothing but its axes is read yet.

    Parameters
    ----------
    run : tiled client
        A complete derived run, as `inscan.service.results.Results.latest` returns it.
    raw_start : mapping
        Start document of the raw run, or nothing.
    """
    stream = run["primary"]
    keys: Mapping[str, Any] = stream.metadata["data_keys"]
    arrays, axes = {}, {}
    for name, key in keys.items():
        if name in AXES:
            values = np.asarray(stream[name].read(), dtype=float)
            axes[name] = Axis(name, values, key.get("units") or "", key.get("motor") or "")
        else:
            arrays[name] = ExportArray(
                name=name,
                dims=tuple(key["dims"]),
                units=key.get("units") or "",
                shape=tuple(key["shape"]),
                dtype=np.dtype(key["dtype_numpy"]),
                labels=tuple(key.get("labels") or ()),
                read=_reader(stream[name]),
            )
    return ExportResult(dict(run.metadata["start"]), dict(raw_start), arrays, axes)


def _reader(node: Any) -> Callable[[Any], np.ndarray]:
    return lambda index: np.asarray(node.read() if index == () else node[index])
