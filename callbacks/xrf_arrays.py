"""The arrays of a fluorescence map, and how values get into them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from inscan.callbacks.geometry import ScanGeometry
from inscan.callbacks.readings import MOST
from inscan.callbacks.updates import Allocate, Notes
from inscan.callbacks.xrf_columns import Column
from inscan.callbacks.xrf_layout import XRFLayout
from inscan.callbacks.xrf_readers import RowValues, channel_values, column_sums

__all__ = ["XRFArrays"]

_BAD = "pixels with counts or live times that are negative or not finite: masked"
_FAINT = "pixels with too little beam (I0 beside its median) for an exposure: masked"
_NO_BEAM = "pixels without beam (I0 not positive): masked"


class XRFArrays:
    """Values by pixel; a pixel is its index row * n_col + col.

    Arrays of an update: ``counts`` (channel, element, row, col) float32, raw; from spectra also
    ``background`` and ``background_variance`` alike; ``exposure`` (channel, row, col) float32, live
    time (s) times I0 over its reference, 0 where a channel did not measure; ``measured`` (row, col)
    bool, at least one channel did; ``position`` (2, row, col) float64, slow and fast readbacks (the
    planned centres where none are recorded), NaN where not measured. Where spectra are kept: ``cube``
    (channel, row, col, bin) float32, raw counts.

    The I0 reference is the median over the measured pixels. That of the first snapshot stays for
    all snapshots of the run, so that pictures keep their scale; the final takes its own.

    Parameters
    ----------
    layout, geometry
        What is recorded, and where.
    required
        Groups of keys without which a pixel is not measured. Keys of a group arrive together:
        group 0 is what events carry, each key in a file has its own.
    constant_live_s
        Live time where none is recorded, s.
    allocate, notes
        See `inscan.callbacks.assembly.open_assembler`.
    """

    def __init__(
        self,
        layout: XRFLayout,
        geometry: ScanGeometry,
        required: frozenset[int],
        constant_live_s: float,
        allocate: Allocate,
        notes: Notes,
    ) -> None:
        self.i0_reference: float | None = None
        self._layout = layout
        self._geometry = geometry
        self._notes = notes
        n_channels, n_elements = len(layout.channels), len(layout.elements)
        rows, cols = geometry.shape
        f4, f8 = np.dtype(np.float32), np.dtype(np.float64)
        names = ["counts"]
        if layout.windows is not None and layout.windows.has_background:
            names += ["background", "background_variance"]
        self._out = {
            name: allocate(name, (n_channels, n_elements, rows, cols), f4) for name in names
        }
        self._out["exposure"] = allocate("exposure", (n_channels, rows, cols), f4)
        self._out["measured"] = allocate("measured", (rows, cols), np.dtype(bool))
        self._out["position"] = allocate("position", (2, rows, cols), f8)
        self._out["position"][...] = np.nan
        self._cube: np.ndarray | None = None
        if layout.cube is not None:
            shape = (n_channels, rows, cols, layout.cube.bins)
            self._out["cube"] = allocate("cube", shape, f4)
            self._cube = np.asarray(self._out["cube"]).reshape(n_channels, -1, layout.cube.bins)
        # The same memory by pixel.
        # Plain arrays: a memmap costs microseconds for every index.
        plain = {name: np.asarray(array) for name, array in self._out.items()}
        self._counts = [plain[name].reshape(n_channels, n_elements, -1) for name in names]
        self._position = plain["position"].reshape(2, -1)
        roles = {column.role for column in layout.columns.values()}
        self._computed = [axis for axis, role in enumerate(("slow", "fast")) if role not in roles]
        size = geometry.size
        self._live = np.zeros((n_channels, size), np.float32)
        if "live_time" not in roles:
            self._live[...] = constant_live_s
        self._has_i0 = "i0" in roles
        self._i0 = np.zeros(size) if self._has_i0 else np.ones(size)
        self._bad = np.zeros((n_channels, size), bool)
        self._all = np.uint64(sum(1 << group for group in required))
        self._arrived = np.zeros(size, np.uint64)
        self._taken = np.full(size, -np.inf)

    def place_event(self, pixel: int, taken: float, values: Mapping[str, np.ndarray]) -> None:
        """Place what one event carries.

        Of several events of a pixel (a plan goes back to its last checkpoint after a pause) the one
        taken last counts; one without a single good channel never counts.

        Parameters
        ----------
        pixel
            Index of the pixel.
        taken
            Time of the event, s.
        values
            By role: ``mcaroi`` (channel, element), ``spectrum`` (channel, bin), ``live_time``
            (channel,), ``i0``, ``slow``, ``fast`` (), float64 or counts.
        """
        if taken <= self._taken[pixel]:
            return
        sums: list[np.ndarray] = []
        if "mcaroi" in values:
            sums = [values["mcaroi"]]
        elif "spectrum" in values and self._layout.windows is not None:
            sums = [array[0] for array in self._layout.windows.sums(values["spectrum"][None])]
        live, i0 = values.get("live_time"), values.get("i0")
        if i0 is not None and not 0 < i0 < MOST:
            self._notes.add(_NO_BEAM)
            return
        if _plausible(sums, live):
            good = None
        else:
            good = np.ones(len(self._layout.channels), bool)
            if sums:
                good &= _all_good(sums[0])
            if live is not None:
                good &= (live > 0) & (live < MOST)
        if good is not None and not good.all():
            self._notes.add(_BAD)
            if not good.any():
                return
            sums = [np.where(good[:, None], array, 0) for array in sums]
            live = None if live is None else np.where(good, live, 0)
        for target, source in zip(self._counts, sums, strict=False):
            target[:, :, pixel] = source
        if self._cube is not None and self._layout.cube is not None and "spectrum" in values:
            spectra = self._layout.cube.sums(values["spectrum"])
            self._cube[:, pixel] = spectra if good is None else np.where(good[:, None], spectra, 0)
        self._bad[:, pixel] = False if good is None else ~good
        if live is not None:
            self._live[:, pixel] = live
        if i0 is not None:
            self._i0[pixel] = i0
        if "slow" in values:
            self._position[0, pixel] = _place(values["slow"])
        if "fast" in values:
            self._position[1, pixel] = _place(values["fast"])
        self._taken[pixel] = taken
        self._arrived[pixel] |= _EVENTS

    def place_row(self, pixels: np.ndarray, taken: float, row: RowValues) -> None:
        """Place what one event carries that holds a row; the same rules as for `place_event`.

        Parameters
        ----------
        pixels
            (n,) int64: where the pixels of the row belong, each at most once.
        taken
            Time of the event, s.
        row
            Its values.
        """
        use = taken > self._taken[pixels]
        if row.i0 is not None:
            beam = (row.i0 > 0) & (row.i0 < MOST)
            dark = use & ~beam
            if dark.any():
                self._notes.add(_NO_BEAM, times=int(dark.sum()))
            use &= beam
        good = np.ones((row.n, len(self._layout.channels)), bool)
        if row.sums:
            good &= _all_good(row.sums[0])
        if row.live is not None:
            good &= (row.live > 0) & (row.live < MOST)
        bad = use & ~good.all(axis=1)
        if bad.any():
            self._notes.add(_BAD, times=int(bad.sum()))
        use &= good.any(axis=1)
        at, good = pixels[use], good[use]
        for target, source in zip(self._counts, row.sums, strict=False):
            target[:, :, at] = np.where(good[..., None], source[use], 0).transpose(1, 2, 0)
        if self._cube is not None and row.cube is not None:
            clean = np.where(good[..., None], row.cube[use], np.float32(0))
            self._cube[:, at] = clean.transpose(1, 0, 2)
        self._bad[:, at] = ~good.T
        if row.live is not None:
            self._live[:, at] = np.where(good, row.live[use], 0).T
        if row.i0 is not None:
            self._i0[at] = row.i0[use]
        for axis, position in row.positions.items():
            self._position[axis, at] = _place(position[use])
        self._taken[at] = taken
        self._arrived[at] |= _EVENTS

    def place_rows(
        self, column: Column, group: int, pixels: np.ndarray, values: np.ndarray
    ) -> None:
        """Place the values of one file key.

        Parameters
        ----------
        column, group
            What the key is, and its group.
        pixels
            (n,) int64, each at most once.
        values
            (n, *column.shape) as stored.
        """
        if column.role in ("mcaroi", "spectrum"):
            self._place_counts(column, pixels, values)
        elif column.role == "live_time":
            live = values * column.factor
            if column.channel is None and not column.shape:
                live = np.repeat(live[:, None], len(self._live), axis=1)
            else:
                live = channel_values(self._layout, column, live)
            good = (live > 0) & (live < MOST)
            self._count_bad(good)
            one = column.channel
            which = slice(None) if one is None else slice(one, one + 1)
            self._live[which, pixels] = np.where(good, live, 0).T
        elif column.role == "i0":
            beam = values.astype(np.float64)
            good = (beam > 0) & (beam < MOST)
            if not good.all():
                self._notes.add(_NO_BEAM, times=int((~good).sum()))
            self._i0[pixels] = np.where(good, beam, 0)
        else:
            axis = 0 if column.role == "slow" else 1
            self._position[axis, pixels] = _place(values.astype(np.float64) * column.factor)
        self._arrived[pixels] |= _bit(group)

    def _place_counts(self, column: Column, pixels: np.ndarray, values: np.ndarray) -> None:
        values = channel_values(self._layout, column, values)
        sums, channel, element = column_sums(self._layout, column, values)
        good = _all_good(sums[0])
        self._count_bad(good)
        for target, source in zip(self._counts, sums, strict=False):
            clean = source if good.all() else np.where(good[..., None], source, 0)
            target[channel, element, pixels] = clean.transpose(1, 2, 0)
        if self._cube is not None and self._layout.cube is not None:
            spectra = self._layout.cube.sums(values)
            clean = spectra if good.all() else np.where(good[..., None], spectra, 0)
            self._cube[channel, pixels] = clean.transpose(1, 0, 2)
        if not good.all():
            self._bad[channel, pixels] |= ~good.T

    def live_time(self) -> float | None:
        """Return the median live time of the channels that measured, s; None before any has."""
        arrived = (self._arrived & self._all) == self._all
        live = self._live[:, arrived]
        live = live[live > 0]
        return float(np.median(live)) if live.size else None

    def _count_bad(self, good: np.ndarray) -> None:
        if not good.all():
            pixels = ~good if good.ndim == 1 else ~good.all(axis=1)
            self._notes.add(_BAD, times=int(pixels.sum()))

    def take(self, final: bool, slow: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Return the arrays of an update.

        Parameters
        ----------
        final
            Nothing will be placed any more.
        slow
            (row,) slow position of each row, NaN where it is not known, for a map without slow
            positions per pixel. None: none is known.
        """
        live = np.where(self._bad, np.float32(0), self._live)
        arrived = (self._arrived & self._all) == self._all
        measured = arrived & (self._i0 > 0) & (live > 0).any(axis=0)
        if self._has_i0 and measured.any() and (final or self.i0_reference is None):
            self.i0_reference = float(np.median(self._i0[measured]))
        relative = np.where(measured, self._i0 / (self.i0_reference or 1.0), 0)
        exposure = self._out["exposure"].reshape(live.shape)
        with np.errstate(over="ignore", under="ignore"):
            np.multiply(live, relative, out=exposure, casting="same_kind")
        exposure[~(exposure < MOST)] = 0
        unlit = measured & ~(exposure > 0).any(axis=0)
        if unlit.any():
            # So little beam that the exposure is none: nothing can be divided by it.
            measured &= ~unlit
            self._notes.set(_FAINT, int(unlit.sum()))
        self._out["measured"].reshape(-1)[...] = measured
        for axis in self._computed:
            planned = self._geometry.positions()[axis]
            if axis == 0 and slow is not None:
                planned = np.where(np.isnan(slow[:, None]), planned, slow[:, None])
            self._position[axis] = planned.reshape(-1)
        # A channel without exposure has no counts. Before the end, rows are still on their way; where
        # nothing ever came there are zeros, and a large map that was cut short has much of that.
        came = (self._arrived & self._all) != 0 if final else arrived
        empty = (exposure == 0) & came
        if empty.any():
            for counts in self._counts:
                counts.transpose(0, 2, 1)[empty] = 0
            if self._cube is not None:
                self._cube[empty] = 0
        if final:
            self._position[:, ~measured] = np.nan
        return dict(self._out)


def _plausible(sums: list[np.ndarray], live: np.ndarray | None) -> bool:
    """Whether nothing is wrong with any channel; the quick way, for the usual case."""
    # A comparison with nan is false, also that of an extreme of values with nan among them.
    if sums and not (sums[0].min() >= 0 and sums[0].max() < MOST):
        return False
    return live is None or bool(live.min() > 0 and live.max() < MOST)


def _all_good(counts: np.ndarray) -> np.ndarray:
    """Where every element (last axis) is finite and not negative."""
    return np.logical_and.reduce((counts >= 0) & (counts < MOST), axis=-1)


def _place(position: Any) -> Any:
    """Positions, NaN where nothing can be."""
    return np.where(np.abs(position) < MOST, position, np.nan)


def _bit(group: int) -> np.uint64:
    return np.uint64(1 << group)


_EVENTS = _bit(0)
