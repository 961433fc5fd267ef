"""Where a map lies: seq_num to pixel to motor position, and back.

What start documents say is read by `inscan.callbacks.geometry_start`. Rows are the slow axis. A
pixel's position is its centre; a region's range reaches to the outer edges of its pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from inscan.callbacks.geometry_start import GeometryError, Raster, read_start
from inscan.callbacks.profile_sections import Geometry
from inscan.callbacks.region import RegionOfInterest

__all__ = ["GeometryError", "RegionOfInterest", "ScanGeometry", "region_from_box"]

# A pixel in a start document costs memory here; no instrument comes near this.
_MOST_PIXELS = 1 << 28
# In any unit that motors have, m to nm; its square and its inverse are numbers.
_LEAST_STEP = 1e-18


@dataclass(frozen=True)
class ScanGeometry:
    """A raster of ``shape`` pixels.

    Attributes
    ----------
    shape
        (row, col): number of slow and fast positions, each at least 1.
    slow_motor, fast_motor
        Names of the motors.
    slow_units, fast_units
        Units of the motors, ``""`` when unknown.
    slow_first, slow_last, fast_first, fast_last
        Positions of the centres of the first and last pixel, in motor units. The last may be below
        the first: the scan then goes down.
    snaking
        Every second row was taken from last to first.
    slow_centres, fast_centres
        Centres of all rows and columns where they are not evenly spaced, rising or falling all
        the way; empty: evenly spaced. First and last are theirs.
    planned
        Whether the positions are known before the scan. Otherwise only readbacks tell: those of a
        relative scan count from an unknown start, and points anywhere have none.
    """

    shape: tuple[int, int]
    slow_motor: str
    fast_motor: str
    slow_units: str
    fast_units: str
    slow_first: float
    slow_last: float
    fast_first: float
    fast_last: float
    snaking: bool
    slow_centres: tuple[float, ...] = ()
    fast_centres: tuple[float, ...] = ()
    planned: bool = True

    def __post_init__(self) -> None:
        rows, cols = self.shape
        if rows < 1 or cols < 1 or rows * cols > _MOST_PIXELS:
            raise GeometryError(
                f"shape {self.shape}: expected (row, col), each at least 1, at most"
                f" {_MOST_PIXELS} pixels"
            )
        given = (self.slow_first, self.slow_last, self.fast_first, self.fast_last)
        if not all(math.isfinite(end) for end in given):
            raise GeometryError(f"extents {given}: every position must be finite")
        for name, count, first, last in (
            (self.slow_motor, rows, self.slow_first, self.slow_last),
            (self.fast_motor, cols, self.fast_first, self.fast_last),
        ):
            if count > 1 and first == last:
                raise GeometryError(f"{name}: {count} positions, but all of them at {first}")
            step = (last - first) / max(count - 1, 1)
            if count > 1 and not _LEAST_STEP < abs(step) < 1 / _LEAST_STEP:
                raise GeometryError(
                    f"{name}: {count} positions from {first} to {last} are steps of {step}, which"
                    " no motor takes: the extents must be finite and sensible"
                )
        for name, centres, count, ends in (
            (self.slow_motor, self.slow_centres, rows, given[:2]),
            (self.fast_motor, self.fast_centres, cols, given[2:]),
        ):
            steps = np.diff(centres)
            if centres and not (
                len(centres) == count
                and (centres[0], centres[-1]) == ends
                and ((steps > 0).all() or (steps < 0).all())
            ):
                raise GeometryError(
                    f"{name}: {len(centres)} uneven centres are no {count} in order"
                )

    @property
    def size(self) -> int:
        """Number of pixels."""
        return self.shape[0] * self.shape[1]

    @property
    def slow_step(self) -> float:
        """Signed (mean) distance of rows. One row: the width of a column, unsigned, else 1."""
        return self._steps()[0]

    @property
    def fast_step(self) -> float:
        """Signed (mean) distance of columns. One column: the height of a row, unsigned, else 1."""
        return self._steps()[1]

    def _steps(self) -> tuple[float, float]:
        rows, cols = self.shape
        slow = (self.slow_last - self.slow_first) / (rows - 1) if rows > 1 else 0.0
        fast = (self.fast_last - self.fast_first) / (cols - 1) if cols > 1 else 0.0
        return slow or abs(fast) or 1.0, fast or abs(slow) or 1.0

    def pixel_of(self, seq_num: int) -> tuple[int, int]:
        """Return (row, col) of an event; IndexError outside 1 ... size."""
        if not 1 <= seq_num <= self.size:
            raise IndexError(f"seq_num {seq_num}: a map of {self.shape} has 1 to {self.size}")
        row, col = divmod(seq_num - 1, self.shape[1])
        return row, self.shape[1] - 1 - col if self.snaking and row % 2 else col

    def flat_pixels(self, first: int, stop: int) -> np.ndarray:
        """Return row * n_col + col of seq_nums ``first`` to ``stop`` - 1, (n,) int64."""
        index = np.arange(first - 1, stop - 1)
        row, col = np.divmod(index, self.shape[1])
        if self.snaking:
            col = np.where(row % 2 == 1, self.shape[1] - 1 - col, col)
        return row * self.shape[1] + col

    def seq_num_of(self, row: int, col: int) -> int:
        """Return the seq_num of a pixel; IndexError outside the map."""
        self._check(row, col)
        if self.snaking and row % 2:
            col = self.shape[1] - 1 - col
        return row * self.shape[1] + col + 1

    def position_of(self, row: int, col: int) -> tuple[float, float]:
        """Return (slow, fast) of a pixel's centre in motor units; IndexError outside the map."""
        self._check(row, col)
        slow, fast = self.slow_centres, self.fast_centres
        return (
            slow[row] if slow else _between(self.slow_first, self.slow_last, row, self.shape[0]),
            fast[col] if fast else _between(self.fast_first, self.fast_last, col, self.shape[1]),
        )

    def positions(self) -> np.ndarray:
        """Return the centres of all pixels, (2, row, col) float64: slow, fast in motor units; NaN
        where they are not planned."""
        if not self.planned:
            return np.full((2, *self.shape), np.nan)
        slow = self.slow_centres or np.linspace(self.slow_first, self.slow_last, self.shape[0])
        fast = self.fast_centres or np.linspace(self.fast_first, self.fast_last, self.shape[1])
        return np.stack(np.meshgrid(slow, fast, indexing="ij"))

    def pixel_at(self, slow: float, fast: float) -> tuple[int, int]:
        """Return the pixel around a position (motor units); ValueError outside the field."""
        row, col = self._index(0, slow), self._index(1, fast)
        for name, index, count in (
            (self.slow_motor, row, self.shape[0]),
            (self.fast_motor, col, self.shape[1]),
        ):
            # A hair more than the half pixel: the outer edges belong to the field.
            if not -0.5 - 1e-9 <= index <= count - 0.5 + 1e-9:
                low, high = self.field()[0 if name == self.slow_motor else 1]
                raise ValueError(
                    f"({slow}, {fast}): {name} lies outside the field {low} ... {high}"
                )
        return (
            min(max(math.floor(row + 0.5), 0), self.shape[0] - 1),
            min(max(math.floor(col + 0.5), 0), self.shape[1] - 1),
        )

    def field(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return ((low, high) slow, (low, high) fast): outer edges in motor units."""
        return self.ranges((0, self.shape[0], 0, self.shape[1]))

    def ranges(
        self, box: tuple[float, float, float, float]
    ) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return the outer edges ((low, high) slow, (low, high) fast) of a half-open pixel box.

        ``box`` is (row0, row1, col0, col1); fractions of a pixel are allowed.
        """
        slow = [self._edge(0, edge) for edge in box[:2]]
        fast = [self._edge(1, edge) for edge in box[2:]]
        return (min(slow), max(slow)), (min(fast), max(fast))

    def _edge(self, axis: int, edge: float) -> float:
        """Position of an edge, counted in pixels from the outer edge of the first."""
        first = (self.slow_first, self.fast_first)[axis]
        centres = (self.slow_centres, self.fast_centres)[axis]
        if not centres:
            return first + (edge - 0.5) * self._steps()[axis]
        return _interpolated(np.arange(len(centres) + 1.0), _edges(centres), edge)

    def _index(self, axis: int, position: float) -> float:
        """Pixel, with its fraction, at a position: whole numbers are centres."""
        first = (self.slow_first, self.fast_first)[axis]
        centres = (self.slow_centres, self.fast_centres)[axis]
        if not centres:
            return (position - first) / self._steps()[axis]
        edges = _edges(centres)
        sign = 1.0 if edges[-1] > edges[0] else -1.0
        return _interpolated(sign * edges, np.arange(len(edges)) - 0.5, sign * position)

    def with_units(self, units: Mapping[str, str]) -> ScanGeometry:
        """Return the same raster with the motors' units taken from ``units`` where they are named.

        The numbers stay: a plan's extents are in the motors' own units.
        """
        return replace(
            self,
            slow_units=units.get(self.slow_motor, self.slow_units),
            fast_units=units.get(self.fast_motor, self.fast_units),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able mapping; `from_dict` reads it."""
        lists = ("shape", "slow_centres", "fast_centres")
        return {**asdict(self), **{name: list(getattr(self, name)) for name in lists}}

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> ScanGeometry:
        """Read what `to_dict` wrote; GeometryError when it is something else."""
        try:
            rows, cols = mapping["shape"]
            centres = {
                name: tuple(float(centre) for centre in mapping.get(name, ()))
                for name in ("slow_centres", "fast_centres")
            }
            return cls(**{**mapping, **centres, "shape": (int(rows), int(cols))})
        except (KeyError, TypeError, ValueError) as error:
            raise GeometryError(f"not a scan geometry: {error}") from error

    @classmethod
    def from_start(
        cls,
        start: Mapping[str, Any],
        keys: Geometry | None = None,
        units: Mapping[str, str] | None = None,
    ) -> ScanGeometry:
        """Read the raster from a start document.

        Parameters
        ----------
        start
            Start document.
        keys
            Where it says what; None: as Bluesky's grid plans write it.
        units
            Units per motor, from a descriptor; None: not known yet.

        Raises
        ------
        GeometryError
            A key is missing or does not describe a raster of two axes.
        """
        keys = keys or Geometry()
        layout = read_start(start, keys)
        if not isinstance(layout, Raster):
            raise GeometryError(
                f"the start document has no {keys.shape!r} of rows (profile key geometry.shape): the"
                f" points of {layout.pattern!r} are no raster"
            )
        return cls.of(layout).with_units(units or {})

    @classmethod
    def of(cls, raster: Raster) -> ScanGeometry:
        """Return the geometry of what a start document says; GeometryError when it cannot be."""
        return cls(
            shape=raster.shape,
            slow_motor=raster.motors[0],
            fast_motor=raster.motors[1],
            slow_units=raster.units[0],
            fast_units=raster.units[1],
            slow_first=raster.slow[0],
            slow_last=raster.slow[1],
            fast_first=raster.fast[0],
            fast_last=raster.fast[1],
            snaking=raster.snaking,
            slow_centres=raster.slow_centres,
            fast_centres=raster.fast_centres,
            planned=not raster.relative,
        )

    def shifted(self, slow: float, fast: float) -> ScanGeometry:
        """Return the same raster, moved (motor units), with positions that are known."""
        return replace(
            self,
            slow_first=self.slow_first + slow,
            slow_last=self.slow_last + slow,
            fast_first=self.fast_first + fast,
            fast_last=self.fast_last + fast,
            slow_centres=tuple(centre + slow for centre in self.slow_centres),
            fast_centres=tuple(centre + fast for centre in self.fast_centres),
            planned=True,
        )

    def _check(self, row: int, col: int) -> None:
        if not (0 <= row < self.shape[0] and 0 <= col < self.shape[1]):
            raise IndexError(f"pixel ({row}, {col}) is outside a map of {self.shape}")


def _between(first: float, last: float, index: int, count: int) -> float:
    """Same arithmetic as numpy.linspace: the same position for the same pixel, to the bit."""
    if count == 1:
        return first
    if index == count - 1:
        return last
    return index * ((last - first) / (count - 1)) + first


def _edges(centres: tuple[float, ...]) -> np.ndarray:
    """Outer edges of pixels, (n + 1,): half way between centres, the outermost as far outside."""
    middle = np.asarray(centres)
    if len(middle) == 1:
        return np.array([middle[0] - 0.5, middle[0] + 0.5])
    inner = (middle[1:] + middle[:-1]) / 2
    return np.concatenate([[2 * middle[0] - inner[0]], inner, [2 * middle[-1] - inner[-1]]])


def _interpolated(x: np.ndarray, y: np.ndarray, at: float) -> float:
    """Linear interpolation over rising x, going on straight beyond both ends."""
    index = min(max(int(np.searchsorted(x, at, side="right")) - 1, 0), len(x) - 2)
    slope = (y[index + 1] - y[index]) / (x[index + 1] - x[index])
    return float(y[index] + (at - x[index]) * slope)


def region_from_box(
    geometry: ScanGeometry,
    box: tuple[int, int, int, int],
    *,
    padding: float = 0.0,
    score: float = 0.0,
    reason: str = "",
    label: str = "",
) -> RegionOfInterest:
    """Return the region of a pixel box, padded and clipped to the field of the map.

    Parameters
    ----------
    geometry
        Raster of the survey.
    box
        (row0, row1, col0, col1), half open, in survey pixels.
    padding
        Survey pixels added on each side.
    score, reason, label
        See `RegionOfInterest`.

    Raises
    ------
    ValueError
        The box is empty or outside the map, or the padding is negative.
    """
    row0, row1, col0, col1 = box
    rows, cols = geometry.shape
    if not (0 <= row0 < row1 <= rows and 0 <= col0 < col1 <= cols):
        raise ValueError(f"box {box}: expected 0 <= start < stop within {geometry.shape}")
    if not padding >= 0:
        raise ValueError(f"padding {padding}: expected 0 or more survey pixels")
    slow, fast = geometry.ranges(
        (
            max(row0 - padding, 0),
            min(row1 + padding, rows),
            max(col0 - padding, 0),
            min(col1 + padding, cols),
        )
    )
    return RegionOfInterest(slow, fast, (row0, row1, col0, col1), score, reason, label)
