"""A camera behind a full-field transmission microscope."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ophyd import Signal
from ophyd.status import Status
from scipy.ndimage import gaussian_filter, shift

from inscan.profiles.hdf5_stream import Column, HDF5Stream
from inscan.profiles.stages import Stage
from inscan.profiles.waiting import Ended, signal_value
from inscan.profiles.xanes_samples import NI_EDGE_EV, XANESSample

__all__ = ["FrameStream", "TXMCamera"]

FrameStream = Literal["dark", "flat", "primary"]
_KEEP = float(np.exp(-1 / 40.0))  # beam and optics drift over some forty exposures


class TXMCamera:
    """Takes several frames of the sample, of the empty beam or in the dark, per trigger.

    A frame is Poisson(flux(E) * flat * T * exposure) * adu_per_photon + offset + read noise, as
    uint16. The flat field has structure that moves slowly, the flux follows the energy and
    drifts, and the sample trembles. The sample is where the motors put it: moved far enough, it is
    out of the beam.

    Data key: ``<name>_image`` (frame, y, x), external, one HDF5 file per stream. `prepare` names
    the stream whose frames come next.

    Parameters
    ----------
    sample
        What is in the beam; its shape is the camera's, its pixel size the image's.
    energy
        Motor, keV.
    sample_x, sample_y
        Motors of the sample, um; (0, 0) is the middle of the field.
    shutter
        Signal: 0 closed, 1 open.
    data_dir
        Where files are written.
    seed
        Same seed and same triggers, same frames.
    flux
        Photons/s per pixel in the middle of the field.
    adu_per_photon, offset, read_noise
        Camera: ADU per photon, ADU, ADU (standard deviation).
    jitter
        Movement of the sample from trigger to trigger, standard deviation in pixels per axis.
        0: it stands still.
    time_scale
        A trigger takes ``frames * exposure_time * time_scale`` seconds of real time. 0: none.
    name
        Device name.

    Raises
    ------
    ValueError
        A parameter out of range.
    """

    parent = None

    def __init__(
        self,
        sample: XANESSample,
        energy: Stage,
        sample_x: Stage,
        sample_y: Stage,
        shutter: Signal,
        data_dir: Path,
        *,
        seed: int = 0,
        flux: float = 6_000.0,
        adu_per_photon: float = 5.0,
        offset: float = 100.0,
        read_noise: float = 2.5,
        jitter: float = 0.3,
        time_scale: float = 1.0,
        name: str = "txm",
    ) -> None:
        if not (flux > 0 and adu_per_photon > 0 and min(offset, read_noise, jitter) >= 0):
            raise ValueError(
                f"{name}: flux {flux}, adu_per_photon {adu_per_photon}: expected above 0; offset"
                f" {offset}, read_noise {read_noise}, jitter {jitter}: expected 0 or more"
            )
        self.name = name
        self.data_dir = Path(data_dir)
        self.time_scale = time_scale
        self.exposure_time = Signal(name=f"{name}_exposure_time", value=0.05)
        self.num_images = Signal(name=f"{name}_num_images", value=4)
        self._sample = sample
        self._energy, self._motors, self._shutter = energy, (sample_y, sample_x), shutter
        self._flux, self._gain, self._read_noise = flux, adu_per_photon, read_noise
        self._jitter = jitter
        self._rng = np.random.default_rng([seed, 20])
        pattern = self._rng.standard_normal((2, *sample.shape))
        self._lights = _flat_fields(pattern)
        columns = self._rng.normal(0, 1.5, sample.shape[1])
        self._offset = offset + np.broadcast_to(columns, sample.shape)
        self._drift = np.zeros(2)
        self._file: HDF5Stream | None = None
        self._exposing: threading.Thread | None = None
        self._written, self._announced = 0, 0

    @property
    def image_shape(self) -> tuple[int, int]:
        """(y, x) in pixels."""
        return self._sample.shape

    def stage(self) -> list[Any]:
        """Make ready; the stream is named by `prepare`."""
        self.unstage()
        return [self]

    def unstage(self) -> list[Any]:
        """Wait for an exposure to end, close the file."""
        self._settle()
        if self._file is not None:
            self._file.close()
            self._file = None
        return [self]

    def prepare(self, value: FrameStream) -> Ended:
        """Begin a new file for a stream: "dark", "flat" or "primary".

        Raises
        ------
        ValueError
            Another stream.
        OSError
            The file cannot be written.
        """
        if value not in ("dark", "flat", "primary"):
            raise ValueError(f"{self.name}: stream {value!r}; expected dark, flat or primary")
        self.unstage()
        self._written = self._announced = 0
        path = self.data_dir / f"{uuid.uuid4().hex}_{value}.h5"
        self._file = HDF5Stream(path, {self._key: self._column()})
        return Ended()

    @property
    def _key(self) -> str:
        return f"{self.name}_image"

    def _column(self) -> Column:
        frames = int(signal_value(self.num_images))
        return Column("entry/data/data", (frames, *self._sample.shape), "<u2")

    def trigger(self) -> Status:
        """Expose; the status ends when the frames are in the file.

        Raises
        ------
        RuntimeError
            No stream is prepared.
        """
        if self._file is None:
            raise RuntimeError(f"{self.name}: stage it and prepare a stream before a trigger")
        self._settle()
        # Frames that were taken but never announced (an event interrupted by a pause) are replaced.
        self._written = self._announced
        status = Status(obj=self)
        self._exposing = threading.Thread(
            target=self._expose, args=(self._file, status), name=f"{self.name}-exposure"
        )
        self._exposing.start()
        return status

    def _settle(self) -> None:
        if self._exposing is not None:
            self._exposing.join()
            self._exposing = None

    def _expose(self, file: HDF5Stream, status: Status) -> None:
        try:
            began = time.monotonic()
            frames = self._frames()
            wait = len(frames) * signal_value(self.exposure_time) * self.time_scale
            threading.Event().wait(max(0.0, wait - (time.monotonic() - began)))
            file.write(self._written, {self._key: frames[None]})
            self._written += 1
        except Exception as error:  # noqa: BLE001 - belongs to whoever waits for the frames
            status.set_exception(error)
        else:
            status.set_finished()

    def _frames(self) -> np.ndarray:
        """Return (frame, y, x) uint16."""
        count = int(signal_value(self.num_images))
        shape = (count, *self._sample.shape)
        self._drift = _KEEP * self._drift + self._rng.normal(0, np.sqrt(1 - _KEEP**2), 2)
        tremble = self._rng.normal(0, self._jitter, 2)
        photons = np.zeros(shape)
        if self._shutter.get():
            energy_ev = 1000.0 * self._energy.here
            mean = self._light(energy_ev) * self._transmission(energy_ev, tremble)
            photons = self._rng.poisson(np.broadcast_to(mean, shape))
        noise = self._rng.normal(0, self._read_noise, shape)
        return np.clip(np.rint(photons * self._gain + self._offset + noise), 0, 65535).astype(
            np.uint16
        )

    def _light(self, energy_ev: float) -> np.ndarray:
        """Photons per frame without sample, (y, x)."""
        first, second = self._lights
        blend = 0.5 + 0.15 * self._drift[0]
        # The source, the monochromator and the condenser have their own slow energy dependence.
        x = (energy_ev - NI_EDGE_EV) / 100.0
        flux = self._flux * (1 + 0.06 * x - 0.02 * x * x + 0.01 * np.sin(7.0 * x))
        flux *= 1 + 0.005 * self._drift[1]
        return (
            max(flux, 0.0)
            * signal_value(self.exposure_time)
            * (first * blend + second * (1 - blend))
        )

    def _transmission(self, energy_ev: float, tremble: np.ndarray) -> np.ndarray:
        """exp(-optical density) of the sample where the motors have it, (y, x)."""
        pixels = [motor.here / self._sample.pixel_size for motor in self._motors] + tremble
        if (abs(pixels) >= self._sample.shape).any():
            return np.ones(self._sample.shape)
        density = self._sample.optical_density(energy_ev)[0]
        if pixels.any():
            density = shift(density, pixels, order=3, mode="constant")
        return np.exp(-np.clip(density, 0, None))

    def read(self) -> dict[str, Any]:
        """Return nothing: frames are in the file."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Describe ``<name>_image``."""
        column = self._column()
        return {
            self._key: {
                "source": f"sim://{self.name}",
                "dtype": "array",
                "dtype_numpy": column.dtype,
                "shape": list(column.shape),
                "dims": ["frame", "y", "x"],
                "units": "ADU",
                "external": "STREAM:",
            }
        }

    def get_index(self) -> int:
        """Return the number of triggers whose frames are in the file."""
        return self._written

    def collect_asset_docs(self, index: int | None = None) -> Iterator[tuple[str, Any]]:
        """Yield stream_resource and stream_datum documents of what is in the file."""
        if self._file is not None:
            self._announced = self._written if index is None else min(index, self._written)
            yield from self._file.documents(self._announced)

    def read_configuration(self) -> dict[str, Any]:
        """Return exposure time, number of images and pixel size."""
        now = time.time()
        values = {
            f"{self.name}_exposure_time": signal_value(self.exposure_time),
            f"{self.name}_num_images": int(signal_value(self.num_images)),
            f"{self.name}_pixel_size": self._sample.pixel_size,
        }
        return {key: {"value": value, "timestamp": now} for key, value in values.items()}

    def describe_configuration(self) -> dict[str, Any]:
        """Describe the keys of `read_configuration`."""
        source, number = f"sim://{self.name}", {"dtype": "number", "dtype_numpy": "<f8"}
        integer = {"dtype": "integer", "dtype_numpy": "<i8"}
        return {
            f"{self.name}_exposure_time": {
                "source": source,
                "shape": [],
                "units": "s",
                **number,
            },
            f"{self.name}_num_images": {"source": source, "shape": [], **integer},
            f"{self.name}_pixel_size": {"source": source, "shape": [], "units": "um", **number},
        }

    @property
    def hints(self) -> Mapping[str, Any]:
        """Show nothing: there are no numbers."""
        return {"fields": []}


def _flat_fields(pattern: np.ndarray) -> np.ndarray:
    """Two states of the illumination, (2, y, x): beam profile, mirror stripes, speckle."""
    _, rows, cols = pattern.shape
    y, x = np.linspace(-1, 1, rows)[:, None], np.linspace(-1, 1, cols)[None, :]
    profile = np.exp(-0.35 * (x**2 + y**2))
    stripes = gaussian_filter(pattern[..., :1], (0, max(1.0, rows / 80), 0))
    speckle = gaussian_filter(pattern, (0, 2.0, 2.0))
    speckle[1] = 0.8 * speckle[0] + 0.6 * speckle[1]
    stripes = 0.05 * stripes / stripes.std() * np.array([1.0, 0.8])[:, None, None]
    return profile * np.clip(1 + stripes + 0.04 * speckle / speckle.std(), 0.3, None)
