"""An energy scan like NSLS-II FXI's, as devices and a plan for a RunEngine.

Documents, keys and files are those of `inscan.profiles.fxi_documents` (from the beamline's own plans as they were
public in 2023): a camera that is staged anew for every flat, one file and one resource per staging. There they are
composed, for many kinds of scans; here a RunEngine makes them, so that a plan can go on where inscan says.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import numpy as np
from bluesky.utils import Msg
from ophyd import Signal

from inscan.profiles.hdf5_stream import Column, HDF5Stream
from inscan.profiles.samples import XANESSample
from inscan.profiles.stages import Stage
from inscan.profiles.waiting import Ended, signal_value

__all__ = ["Andor", "FXIBeamline", "fxi_beamline", "xanes_scan2"]

Plan = Generator[Msg, Any, Any]
_IMAGE, _STAMPS = "Andor_image", "Andor_hdf5_time_stamp"
_ATTRIBUTES = "entry/instrument/NDAttributes/NDArrayEpicsTS"
_OFFSET, _GAIN, _READ = 100.0, 2.5, 3.0
# Zone plate and camera in mm: a magnification of about 320.
_ZONE_PLATE, _DETECTOR = 75.0, 2500.0
_OUT = 1000.0


class Andor:
    """The camera: several frames per trigger, in a new file each time it is staged.

    Parameters
    ----------
    sample
        What is in the beam.
    energy
        Monochromator, keV.
    sample_x
        Motor that takes the sample out of the beam, um.
    shutter
        0: closed.
    folder
        Of its files.
    flux
        Photons/s in a pixel of the open beam.
    seed
        Of photons and read noise.
    """

    parent = None
    name = "Andor"

    def __init__(
        self,
        sample: XANESSample,
        energy: Stage,
        sample_x: Stage,
        shutter: Signal,
        folder: Path,
        *,
        flux: float = 12_000.0,
        seed: int = 0,
    ) -> None:
        self.exposure = Signal(name="Andor_cam_acquire_time", value=0.05)
        self.num_images = Signal(name="Andor_cam_num_images", value=3)
        self._sample, self._energy, self._sample_x = sample, energy, sample_x
        self._shutter, self._folder, self._flux = shutter, Path(folder), flux
        self._rng = np.random.default_rng([seed, 18])
        self._beam = self._rng.uniform(0.75, 1.25, sample.shape)
        self._drift = 1.0
        self._file: HDF5Stream | None = None
        self._name = ""
        self._point = 0
        self._new: list[tuple[str, dict[str, Any]]] = []
        self._resources: dict[str, str] = {}
        self._reading: dict[str, str] = {}

    def stage(self) -> list[Any]:
        """Open another file."""
        self.unstage()
        self._name = f"{uuid.uuid4()}.h5"
        columns = {
            _IMAGE: Column("entry/data/data", self._sample.shape, "<u2"),
            "seconds": Column(f"{_ATTRIBUTES}Sec", (), "<u4"),
            "rest": Column(f"{_ATTRIBUTES}nSec", (), "<u4"),
        }
        self._file = HDF5Stream(self._folder / self._name, columns)
        self._point, self._resources = 0, {}
        return [self]

    def unstage(self) -> list[Any]:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
        return [self]

    def trigger(self) -> Ended:
        """Take frames; they are in the file on return.

        Raises
        ------
        RuntimeError
            It is not staged.
        """
        if self._file is None:
            raise RuntimeError(f"{self.name}: stage it before a trigger")
        count = int(signal_value(self.num_images))
        if not self._resources:
            for key, spec in ((_IMAGE, "AD_HDF5"), (_STAMPS, "AD_HDF5_TS")):
                self._resources[key] = str(uuid.uuid4())
                resource = {
                    "uid": self._resources[key],
                    "spec": spec,
                    "root": str(self._folder.resolve()),
                    "resource_path": self._name,
                    "resource_kwargs": {"frame_per_point": count},
                    "path_semantics": "posix",
                }
                self._new.append(("resource", resource))
        frames, now = self._frames(count), time.time()
        stamps = np.full(count, int(now), np.uint32), np.full(count, int(now % 1 * 1e9), np.uint32)
        rows = {_IMAGE: frames, "seconds": stamps[0], "rest": stamps[1]}
        self._file.write(self._point * count, rows)
        for key, resource in self._resources.items():
            self._reading[key] = f"{resource}/{self._point}"
            datum = {
                "resource": resource,
                "datum_id": self._reading[key],
                "datum_kwargs": {"point_number": self._point},
            }
            self._new.append(("datum", datum))
        self._point += 1
        return Ended()

    def _frames(self, count: int) -> np.ndarray:
        """(frame, row, col) uint16."""
        light = np.zeros(self._sample.shape)
        if self._shutter.get():
            # The beam weakens a little with every exposure.
            self._drift *= 0.9995
            light = self._flux * signal_value(self.exposure) * self._drift * self._beam
            if abs(self._sample_x.here) < _OUT / 2:
                density = self._sample.optical_density(1000 * self._energy.here)[0]
                light = light * np.exp(-density)
        shape = (count, *self._sample.shape)
        photons = self._rng.poisson(np.broadcast_to(light, shape))
        values = _OFFSET + _GAIN * photons + self._rng.normal(0, _READ, shape)
        return np.rint(values).clip(0, 65535).astype(np.uint16)

    def collect_asset_docs(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield resources and datums of the frames since the last time."""
        new, self._new = self._new, []
        yield from new

    def read(self) -> dict[str, Any]:
        """Return the datum ids of the last frames."""
        now = time.time()
        return {key: {"value": datum, "timestamp": now} for key, datum in self._reading.items()}

    def describe(self) -> dict[str, Any]:
        """Describe frames and their times."""
        count = int(signal_value(self.num_images))
        external = {"dtype": "array", "source": "PV:Andor", "external": "FILESTORE:"}
        return {
            _IMAGE: external | {"shape": [count, *self._sample.shape], "dtype_str": "<u2"},
            _STAMPS: external | {"shape": [count], "dtype_str": "<f8"},
        }

    def read_configuration(self) -> dict[str, Any]:
        """Return exposure and number of frames."""
        now = time.time()
        values = {
            self.exposure.name: signal_value(self.exposure),
            self.num_images.name: int(signal_value(self.num_images)),
        }
        return {key: {"value": value, "timestamp": now} for key, value in values.items()}

    def describe_configuration(self) -> dict[str, Any]:
        """Describe the keys of `read_configuration`."""
        number = {"dtype": "number", "shape": [], "source": "PV:Andor"}
        return {signal.name: dict(number) for signal in (self.exposure, self.num_images)}


@dataclass(frozen=True)
class FXIBeamline:
    """Devices of the scan, under the names that its documents have."""

    andor: Andor
    ic3: Signal
    x_eng: Stage
    zps_sx: Stage
    zps_sy: Stage
    zps_sz: Stage
    zps_pi_r: Stage
    zp_z: Stage
    det_z: Stage
    shutter: Signal


def fxi_beamline(
    sample: XANESSample,
    folder: Path,
    *,
    limits_kev: tuple[float, float] = (5.0, 12.0),
    seed: int = 0,
    flux: float = 12_000.0,
) -> FXIBeamline:
    """Build the devices; see `Andor`.

    Parameters
    ----------
    limits_kev
        Soft limits of the monochromator.
    """
    x_eng = Stage("XEng", "keV", limits_kev, 8.333)
    zps_sx = Stage("zps_sx", "um", (-2 * _OUT, 2 * _OUT))
    shutter = Signal(name="shutter", value=0)
    return FXIBeamline(
        andor=Andor(sample, x_eng, zps_sx, shutter, folder, flux=flux, seed=seed),
        ic3=Signal(name="ic3", value=1.0e5),
        x_eng=x_eng,
        zps_sx=zps_sx,
        zps_sy=Stage("zps_sy", "um", (-2 * _OUT, 2 * _OUT)),
        zps_sz=Stage("zps_sz", "um", (-2 * _OUT, 2 * _OUT)),
        zps_pi_r=Stage("zps_pi_r", "deg", (-90.0, 90.0)),
        zp_z=Stage("zp_z", "mm", (0.0, 200.0), _ZONE_PLATE),
        det_z=Stage("DetU_z", "mm", (0.0, 5000.0), _DETECTOR),
        shutter=shutter,
    )


def xanes_scan2(
    beamline: FXIBeamline,
    eng_list: Sequence[float],
    *,
    exposure_time: float = 0.05,
    chunk_size: int = 3,
    md: Mapping[str, Any] | None = None,
) -> Plan:
    """Take a stack as the beamline's `xanes_scan2` does: dark first, after each image a flat.

    Parameters
    ----------
    beamline
        Devices.
    eng_list
        Energies, keV.
    exposure_time
        Time per frame, s.
    chunk_size
        Frames per event.
    md
        Added to the start document.

    Raises
    ------
    ValueError
        No energies.
    LimitError
        An energy outside the soft limits; nothing has moved then.
    """
    energies = [float(energy) for energy in eng_list]
    if not energies:
        raise ValueError("eng_list has no energies")
    for energy in energies:
        beamline.x_eng.check_value(energy)
    andor, motors = beamline.andor, [beamline.x_eng, beamline.zps_sx, beamline.zps_sy]
    motors += [beamline.zps_sz, beamline.zps_pi_r]
    # As the beamline writes it, the text in plan_args included.
    meta = {
        "detectors": [andor.name, beamline.ic3.name],
        "motors": [motor.name for motor in motors],
        "num_eng": len(energies),
        "num_bkg_images": chunk_size,
        "num_dark_images": chunk_size,
        "chunk_size": chunk_size,
        "out_x": _OUT,
        "out_y": 0.0,
        "exposure_time": exposure_time,
        "eng_list": energies,
        "XEng": energies[0],
        "plan_args": {
            "eng_list": "eng_list",
            "out_x": _OUT,
            "out_r": 7.0,
            "exposure_time": exposure_time,
            "chunk_size": chunk_size,
        },
        "plan_name": "xanes_scan2",
        "hints": {"dimensions": [[["XEng"], "primary"]]},
        "operator": "FXI",
        "note": "None",
        **(md or {}),
    }

    read: list[Any] = [andor, beamline.ic3, *motors]

    def take(stream: str) -> Plan:
        yield from bps.stage(andor)
        yield from bps.trigger_and_read(read, name=stream)
        yield from bps.unstage(andor)

    @bpp.baseline_decorator([beamline.zp_z, beamline.det_z])
    @bpp.run_decorator(md=meta)
    def streams() -> Plan:
        yield from bps.mv(beamline.shutter, 0)
        yield from take("dark")
        yield from bps.mv(beamline.shutter, 1)
        for energy in energies:
            yield from bps.checkpoint()
            yield from bps.mv(beamline.x_eng, energy)
            yield from take("primary")
            yield from bps.mv(beamline.zps_sx, _OUT)
            yield from take("flat")
            yield from bps.mv(beamline.zps_sx, 0.0)

    def leave() -> Plan:
        yield from bps.unstage(andor)
        yield from bps.mv(beamline.shutter, 0)
        yield from bps.mv(beamline.zps_sx, 0.0)

    yield from bps.mv(andor.exposure, exposure_time, andor.num_images, chunk_size)
    return (yield from bpp.finalize_wrapper(streams(), leave))
