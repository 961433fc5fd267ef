"""The same detector in flight: rows into one HDF5 file per run, announced row by row."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ophyd import Signal
from ophyd.status import Status

from inscan.profiles.beam import Beam, Scaler
from inscan.profiles.hdf5_stream import Column, HDF5Stream
from inscan.profiles.stage_drift import StageDrift
from inscan.profiles.waiting import Ended, signal_value
from inscan.profiles.xrf_counting import CountingChain
from inscan.profiles.xspress3 import configuration

__all__ = ["FlyRow", "Xspress3Fly"]

_PREFIX = "xs"
# A pixel in flight is an average over the fast axis; three points across it do.
_ACROSS = np.array([-1.0, 0.0, 1.0]) / 3
_JITTER = 0.03  # of a step: where a trigger really falls; the encoder records it
_LARGEST = np.iinfo(np.uint16).max


@dataclass(frozen=True)
class FlyRow:
    """One row to fly.

    Attributes
    ----------
    index
        Row number from 0: decides where its pixels stand in the file.
    slow
        Position of the row, motor units.
    begin, end
        Centres of the first and last pixel in time order; ``end`` may be below ``begin``.
    count
        Number of pixels.
    """

    index: int
    slow: float
    begin: float
    end: float
    count: int


class Xspress3Fly:
    """A flyer: prepare a `FlyRow`, kick off, complete; collect announces finished rows.

    Data keys: ``xs_mcaroi`` (channel, mcaroi), ``xs_live_time`` (channel,), ``sclr_i0``, the two
    motors' names, and with ``spectra`` set ``xs_fluor`` (channel, bin). A row that was interrupted
    is taken again at the same place in the file; one that is complete is not taken twice.

    Parameters
    ----------
    chain, beam, scaler
        As of the step detector.
    motors
        Names of the slow and fast motor: their data keys.
    units
        Their units.
    dwell
        Time per pixel, s.
    incident_energy
        keV; plans record it.
    data_dir
        Where files are written.
    time_scale
        A row takes ``count * dwell * time_scale`` seconds of real time. 0: none.
    name
        Device name.
    seed
        Jitter of positions.
    drift
        What the sample does besides; None: nothing.
    """

    parent = None
    hints: Mapping[str, Any] = {}

    def __init__(
        self,
        chain: CountingChain,
        beam: Beam,
        scaler: Scaler,
        motors: tuple[str, str],
        dwell: Signal,
        incident_energy: float,
        data_dir: Path,
        *,
        units: str = "um",
        time_scale: float = 1.0,
        name: str = "xs_fly",
        seed: int = 0,
        drift: StageDrift | None = None,
    ) -> None:
        self.name = name
        self.dwell = dwell
        self.incident_energy = incident_energy
        self.spectra = Signal(name=f"{name}_spectra", value=0)
        self.time_scale = time_scale
        self.data_dir = Path(data_dir)
        self._chain, self._beam, self._scaler = chain, beam, scaler
        self._motors, self._units = motors, units
        self._rng = np.random.default_rng([seed, 13])
        self._drift = drift or StageDrift()
        self._stop = threading.Event()
        self._given_up = False
        self._file: HDF5Stream | None = None
        self._row: FlyRow | None = None
        self._flying: FlyRow | None = None
        self._flight: tuple[threading.Thread, Status] | None = None
        self._rows, self._pixels = 0, 0

    def stage(self) -> list[Any]:
        """Open a new file.

        Raises
        ------
        OSError
            It cannot be written.
        """
        self.unstage()
        self._stop.clear()
        self._rows, self._pixels, self._row = 0, 0, None
        path = self.data_dir / f"{uuid.uuid4().hex}.h5"
        self._file = HDF5Stream(path, self._columns())
        self._drift.begin_run()
        return [self]

    def unstage(self) -> list[Any]:
        """End a flight, close the file."""
        self.stop()
        if self._file is not None:
            self._file.close()
            self._file = None
        return [self]

    def stop(self, success: bool = False) -> None:
        """End a flight; its row is not recorded. Returns when nothing is written any more."""
        del success
        self._stop.set()
        if self._flight is not None:
            self._flight[0].join()
            self._flight = None

    def pause(self) -> None:
        """Give up the row in flight: it is flown again from the checkpoint before it."""
        if self._flying is not None:
            self._given_up = True
            self._stop.set()

    def prepare(self, value: FlyRow) -> Ended:
        """Take a row as the next.

        Raises
        ------
        ValueError
            Rows must be flown in order and all have pixels.
        """
        if value.count < 1 or not 0 <= value.index <= self._rows:
            raise ValueError(
                f"{self.name}: row {value.index} of {value.count} pixels, {self._rows} rows are"
                f" done; expected at least 1 pixel and the next row (or a finished one again)"
            )
        self._row = value
        return Ended()

    def kickoff(self) -> Ended:
        """Begin to fly.

        Raises
        ------
        RuntimeError
            Not staged, or no row prepared.
        """
        if self._file is None or self._row is None:
            raise RuntimeError(f"{self.name}: stage it and prepare a row before kickoff")
        # Paused and resumed: a flight that was given up ends first; a finished row is not flown again.
        if self._given_up and self._flight is not None:
            self._flight[0].join()
        if self._row.index == self._rows and self._flying is None:
            self._stop.clear()
            self._given_up = False
            self._flying = self._row
            status = Status(obj=self)
            thread = threading.Thread(
                target=self._fly, args=(self._row, self._file, status), name=f"{self.name}-row"
            )
            self._flight = (thread, status)
            thread.start()
        return Ended()

    def complete(self) -> Any:
        """Return the status of the flight; it fails when the flight failed or was stopped."""
        return Ended() if self._flight is None else self._flight[1]

    def _fly(self, row: FlyRow, file: HDF5Stream, status: Status) -> None:
        try:
            began = time.monotonic()
            dwell, light = signal_value(self.dwell), self._beam.light()
            values = self._expose(row, dwell, light, light)
            left = row.count * dwell * self.time_scale - (time.monotonic() - began)
            stopped = self._stop.wait(max(0.0, left))
            if stopped and not self._given_up:
                raise InterruptedError(f"{self.name}: row {row.index} was stopped")
            if not stopped:
                after = self._beam.light()
                if after != light:
                    values = self._expose(row, dwell, light, after)
                file.write(self._pixels, values)
                self._rows, self._pixels = row.index + 1, self._pixels + row.count
                self._drift.pass_time(row.count * dwell)
        except Exception as error:  # noqa: BLE001 - belongs to whoever waits for the row
            self._flying = None
            status.set_exception(error)
        else:
            # Before the status: the next kickoff follows it at once.
            self._flying = None
            status.set_finished()

    def _expose(
        self, row: FlyRow, dwell: float, light: float, after: float
    ) -> dict[str, np.ndarray]:
        """Count a row, with the light of its first and second half: data key -> (pixel, ...)."""
        off_slow, off_fast = self._drift.offset
        fast = np.linspace(row.begin, row.end, row.count)
        step = (row.end - row.begin) / (row.count - 1) if row.count > 1 else 0.0
        fast = fast + step * np.clip(self._rng.normal(0, _JITTER, row.count), -0.4, 0.4)
        across = fast[:, None] + step * _ACROSS
        intensity = self._beam.row(row.count)
        intensity *= np.where(np.arange(row.count) < (row.count + 1) // 2, light, after)
        counts = self._chain.count(
            np.broadcast_to(row.slow - off_slow, across.shape),
            across - off_fast,
            dwell,
            intensity,
            spectra=bool(self.spectra.get()),
            largest=_LARGEST,
        )
        values = {
            f"{_PREFIX}_mcaroi": counts.mcaroi,
            f"{_PREFIX}_live_time": counts.live_time,
            f"{self._scaler.name}_i0": self._scaler.counts(intensity, dwell),
            self._motors[0]: np.full(row.count, row.slow),
            self._motors[1]: fast,
        }
        if counts.spectra is not None:
            values[f"{_PREFIX}_fluor"] = counts.spectra
        return values

    def _columns(self) -> dict[str, Column]:
        channels, response = self._chain.channels, self._chain.response
        columns = {
            f"{_PREFIX}_mcaroi": Column(
                "entry/detector/mcaroi", (channels, len(response.mcarois)), "<u4"
            ),
            f"{_PREFIX}_live_time": Column("entry/detector/live_time", (channels,), "<f8"),
            f"{self._scaler.name}_i0": Column("entry/scaler/i0", (), "<f8"),
            self._motors[0]: Column("entry/positions/slow", (), "<f8"),
            self._motors[1]: Column("entry/positions/fast", (), "<f8"),
        }
        if self.spectra.get():
            shape = (channels, len(response.scatter))
            columns[f"{_PREFIX}_fluor"] = Column("entry/detector/fluor", shape, "<u2")
        return columns

    def describe_collect(self) -> dict[str, Any]:
        """Describe the keys of one pixel."""
        more: dict[str, dict[str, Any]] = {
            f"{_PREFIX}_mcaroi": {"units": "counts", "dims": ["channel", "mcaroi"]},
            f"{_PREFIX}_live_time": {"units": "s", "dims": ["channel"]},
            f"{_PREFIX}_fluor": {"units": "counts", "dims": ["channel", "bin"]},
            f"{self._scaler.name}_i0": {"units": "counts"},
            self._motors[0]: {"units": self._units},
            self._motors[1]: {"units": self._units},
        }
        return {
            key: {
                "source": f"sim://{self.name}/{column.path}",
                "dtype": "array" if column.shape else "number",
                "dtype_numpy": column.dtype,
                "shape": list(column.shape),
                "external": "STREAM:",
                **more[key],
            }
            for key, column in self._columns().items()
        }

    def get_index(self) -> int:
        """Return the number of pixels in finished rows."""
        return self._pixels

    def collect_asset_docs(self, index: int | None = None) -> Iterator[tuple[str, Any]]:
        """Yield stream_resource and stream_datum documents of finished rows."""
        if self._file is not None:
            done = self._pixels
            yield from self._file.documents(done if index is None else min(index, done))

    def read_configuration(self) -> dict[str, Any]:
        """Return windows, energy axis and dwell."""
        now = time.time()
        items = configuration(self._chain.response, self.dwell, f"sim://{self.name}")
        return {key: {"value": value, "timestamp": now} for key, (value, _) in items.items()}

    def describe_configuration(self) -> dict[str, Any]:
        """Describe the keys of `read_configuration`."""
        items = configuration(self._chain.response, self.dwell, f"sim://{self.name}")
        return {key: dict(description) for key, (_, description) in items.items()}
