"""Synthetic energy scans with the documents and files that NSLS-II FXI makes.

Follows the beamline's own plans and detector class as they were public in 2023 (NSLS-II profile
collection `fxi-profile-collection`, `_xanes_per_step`, `_take_bkg_image`, `AndorKlass`), their slips
included: `plan_args.eng_list` is the text ``eng_list``, and the start document of `xanes_scan` has
`out_r` and `out_z` exchanged.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from event_model import compose_run

__all__ = ["FXIPlan", "FXIScan"]

FXIPlan = Literal["xanes_scan", "xanes_scan2", "multipos_2D_xanes_scan2"]
Document = tuple[str, dict[str, Any]]

_CAMERA = "Andor_image"
_STAMPS = "Andor_hdf5_time_stamp"
_OFFSET, _GAIN, _READ = 100.0, 2.5, 3.0
# Zone plate and camera in mm: a magnification of about 320.
_ZONE_PLATE, _DETECTOR = 75.0, 2500.0


@dataclass
class FXIScan:
    """One scan: what the camera saw, and how the beamline says so.

    Parameters
    ----------
    truth
        Transmission, (position, energy, row, col). One position unless the plan is a multi-position
        one.
    energies_kev
        Energies in the order they are taken, keV: repeated or falling ones as well.
    plan
        ``xanes_scan``: all flats after all images, all of them in one file. ``xanes_scan2``: a flat
        after each image, the camera staged anew (a file, a resource) each time.
        ``multipos_2D_xanes_scan2``: the same with all positions in turn before each flat.
    chunk
        Frames per event.
    repeats
        How often all energies are taken (multi-position scans alone).
    energy_units
        Units of the energy that is read back, and what its data key says.
    flat_exposure
        Exposure of flats relative to that of the images; recorded in the camera's configuration.
    baseline
        Whether zone plate and detector are read before and after.
    time_stamps
        Whether the frames' times are announced too, as a second kind of resource.
    own_flat_file
        Whether `xanes_scan` stages the camera anew before its flats.
    restaged
        Whether `xanes_scan2` stages the camera anew before and after each flat. Else images and flats take
        turns in one file.
    metadata
        Added to the start document.
    seed
        For photon and read noise.
    """

    truth: np.ndarray
    energies_kev: Sequence[float]
    plan: FXIPlan = "xanes_scan2"
    chunk: int = 3
    repeats: int = 1
    energy_units: Literal["keV", "eV", ""] = "keV"
    flat_exposure: float = 1.0
    baseline: bool = True
    time_stamps: bool = True
    own_flat_file: bool = False
    restaged: bool = True
    metadata: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        positions, energies, *size = self.truth.shape
        if energies != len(self.energies_kev):
            raise ValueError(f"truth has {energies} energies, {len(self.energies_kev)} are planned")
        many = self.plan == "multipos_2D_xanes_scan2"
        if not many and (positions, self.repeats) != (1, 1):
            raise ValueError(f"{self.plan} has one position and one repeat")
        rng = np.random.default_rng(self.seed)
        beam = rng.uniform(3000, 5000, size)
        # The beam weakens a little with every energy, and is not the same in the next repeat.
        drift = 1 - 0.02 * np.arange(self.repeats * energies).reshape(self.repeats, energies)
        beams = drift[:, :, None, None] * beam
        self.dark = self._shots(rng, np.zeros((1, *size)))[0]
        self.flats = self._shots(rng, beams * self.flat_exposure)
        seen = beams[:, :, None] * self.truth.transpose(1, 0, 2, 3)
        self.images = self._shots(rng, seen)

    def _shots(self, rng: np.random.Generator, level: np.ndarray) -> np.ndarray:
        """Camera frames (..., frame, row, col) uint16 of light levels (..., row, col)."""
        wide = np.repeat(level[..., None, :, :], self.chunk, axis=-3)
        values = _OFFSET + _GAIN * rng.poisson(wide / _GAIN) + rng.normal(0, _READ, wide.shape)
        return np.rint(values).clip(0, 65535).astype(np.uint16)

    def transmission(self) -> np.ndarray:
        """Return what the beamline's own export computes, (repeat, position, energy, row, col)."""
        dark = self.dark.mean(axis=0)
        flat = (self.flats.mean(axis=2) - dark) / self.flat_exposure
        seen = self.images.mean(axis=3).transpose(0, 2, 1, 3, 4) - dark
        return seen / flat[:, None]

    def start(self) -> dict[str, Any]:
        """Return the start document's content, but for uid, time and what ``metadata`` replaces."""
        many = self.plan == "multipos_2D_xanes_scan2"
        energies = [float(energy) for energy in self.energies_kev]
        places = {
            "x_list": [10.0 * k for k in range(len(self.truth))],
            "y_list": [5.0 * k for k in range(len(self.truth))],
            "z_list": [0.0] * len(self.truth),
            "r_list": [0.0] * len(self.truth),
        }
        content: dict[str, Any] = {
            "detectors": ["Andor", "ic3"],
            "motors": ["XEng", "zps_sx", "zps_sy", "zps_sz", "zps_pi_r"],
            "num_eng": len(energies),
            "num_bkg_images": self.chunk,
            "num_dark_images": self.chunk,
            "chunk_size": self.chunk,
            "out_x": 1000.0,
            "out_y": 0.0,
            "exposure_time": 0.05,
            "eng_list": energies,
            "XEng": energies[0],
            "plan_args": {
                "eng_list": "eng_list",
                **(places if many else {}),
                "out_x": 1000.0,
                "out_r": 7.0,
                "exposure_time": 0.05,
                "chunk_size": self.chunk,
                **({"repeat_num": self.repeats} if many else {}),
            },
            "plan_name": self.plan,
            "hints": {"dimensions": [[["XEng"], "primary"]]},
            "operator": "FXI",
            "note": "None",
        }
        if many:
            content["num_pos"] = len(self.truth)
        elif self.plan == "xanes_scan":
            content |= {"out_z": 7.0, "out_r": None, "relative_move_flag": 1}
        return content | dict(self.metadata)

    def documents(
        self, folder: Path, *, stop: Literal["success", "abort", None] = "success"
    ) -> Iterator[Document]:
        """Write the files and yield the documents in the order of a RunEngine.

        Parameters
        ----------
        folder
            Where the camera's files go.
        stop
            Exit status; None: no stop document.
        """
        writer = _Writer(self, folder)
        yield "start", writer.start
        yield from writer.read_baseline()
        yield from writer.stage()
        yield from writer.event("dark", self.dark, self.energies_kev[0])
        yield from writer.stage()
        if self.plan == "xanes_scan":
            for energy, images in zip(self.energies_kev, self.images[0], strict=True):
                yield from writer.event("primary", images[0], energy)
            if self.own_flat_file:
                yield from writer.stage()
            for energy, flat in zip(self.energies_kev, self.flats[0], strict=True):
                yield from writer.event("flat", flat, energy, x=1000.0)
        else:
            for images, flats in zip(self.images, self.flats, strict=True):
                for energy, at, flat in zip(self.energies_kev, images, flats, strict=True):
                    for position, frames in enumerate(at):
                        yield from writer.event("primary", frames, energy, x=10.0 * position)
                    if self.restaged:
                        yield from writer.stage()
                    yield from writer.event("flat", flat, energy, x=1000.0)
                    if self.restaged:
                        yield from writer.stage()
        yield from writer.read_baseline()
        writer.close()
        if stop is not None:
            yield "stop", writer.run.compose_stop(exit_status=stop)


class _Writer:
    """Composes documents, and writes one file per staging of the camera."""

    def __init__(self, scan: FXIScan, folder: Path) -> None:
        self._scan = scan
        self._folder = folder
        self.run: Any = compose_run(metadata=scan.start())
        self.start: dict[str, Any] = self.run.start_doc
        self._bundles: dict[str, Any] = {}
        self._baseline: Any = None
        self._file: Any = None
        self._resources: dict[str, Any] = {}
        self._point = 0
        self._clock = float(self.start["time"])

    def read_baseline(self) -> Iterator[Document]:
        """Where zone plate and camera stand, before and after the scan."""
        if not self._scan.baseline:
            return
        values = {"zp_z": _ZONE_PLATE, "DetU_z": _DETECTOR}
        if self._baseline is None:
            keys = {key: _scalar(key, "mm") for key in values}
            self._baseline = self.run.compose_descriptor(name="baseline", data_keys=keys)
            yield "descriptor", self._baseline.descriptor_doc
        yield "event", self._event(self._baseline, values)

    def stage(self) -> Iterator[Document]:
        """Open another file. Staging writes the camera's settings, so that descriptors come anew."""
        self.close()
        name = f"{uuid.uuid4()}.h5"
        self._file = h5py.File(self._folder / name, "w")
        size = self._scan.truth.shape[2:]
        self._file.create_dataset(
            "entry/data/data", (0, *size), np.uint16, maxshape=(None, *size), chunks=(1, *size)
        )
        for column in ("NDArrayEpicsTSSec", "NDArrayEpicsTSnSec"):
            path = f"entry/instrument/NDAttributes/{column}"
            self._file.create_dataset(path, (0,), np.uint32, maxshape=(None,))
        self._point, self._bundles = 0, {}
        self._resources = {
            key: self.run.compose_resource(
                spec=spec,
                root=str(self._folder),
                resource_path=name,
                resource_kwargs={"frame_per_point": self._scan.chunk},
            )
            for key, spec in ((_CAMERA, "AD_HDF5"), (_STAMPS, "AD_HDF5_TS"))
            if key == _CAMERA or self._scan.time_stamps
        }
        for resource in self._resources.values():
            yield "resource", resource.resource_doc

    def event(
        self, stream: str, frames: np.ndarray, energy_kev: float, x: float = 0.0
    ) -> Iterator[Document]:
        """Write the frames of one event, (frame, row, col), and say so."""
        self._append("entry/data/data", frames)
        seconds, rest = divmod(self._clock, 1.0)
        for column, value in (("Sec", seconds), ("nSec", rest * 1e9)):
            path = f"entry/instrument/NDAttributes/NDArrayEpicsTS{column}"
            self._append(path, np.full(len(frames), int(value), np.uint32))
        data: dict[str, Any] = {}
        for key, resource in self._resources.items():
            datum = resource.compose_datum(datum_kwargs={"point_number": self._point})
            yield "datum", datum
            data[key] = datum["datum_id"]
        self._point += 1
        if stream not in self._bundles:
            self._bundles[stream] = self._describe(stream, frames.shape)
            yield "descriptor", self._bundles[stream].descriptor_doc
        data |= {
            "ic3": 1.0e5,
            "XEng": energy_kev * (1000.0 if self._scan.energy_units == "eV" else 1.0),
            "zps_sx": x,
            "zps_sy": 0.5 * x,
            "zps_sz": 0.0,
            "zps_pi_r": 0.0,
        }
        yield "event", self._event(self._bundles[stream], data)

    def close(self) -> None:
        """Close the file that is being written."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _append(self, path: str, values: np.ndarray) -> None:
        dataset = self._file[path]
        dataset.resize(len(dataset) + len(values), axis=0)
        dataset[-len(values) :] = values

    def _describe(self, stream: str, shape: tuple[int, ...]) -> Any:
        external = {"dtype": "array", "source": "PV:Andor", "external": "FILESTORE:"}
        units = self._scan.energy_units
        exposure = 0.05 * (self._scan.flat_exposure if stream == "flat" else 1.0)
        settings = {"Andor_cam_acquire_time": exposure, "Andor_cam_num_images": shape[0]}
        files = {_CAMERA: external | {"shape": list(shape), "dtype_str": "<u2"}}
        if self._scan.time_stamps:
            files[_STAMPS] = external | {"shape": [shape[0]], "dtype_str": "<f8"}
        return self.run.compose_descriptor(
            name=stream,
            data_keys={
                **files,
                "ic3": _scalar("ic3"),
                "XEng": _scalar("XEng", units),
                **{key: _scalar(key, "um") for key in ("zps_sx", "zps_sy", "zps_sz")},
                "zps_pi_r": _scalar("zps_pi_r", "deg"),
            },
            configuration={
                "Andor": {
                    "data": settings,
                    "timestamps": dict.fromkeys(settings, self._clock),
                    "data_keys": {key: _scalar(key) for key in settings},
                }
            },
            object_keys={"Andor": list(files), "ic3": ["ic3"], "XEng": ["XEng"]},
        )

    def _event(self, bundle: Any, data: Mapping[str, Any]) -> dict[str, Any]:
        self._clock += 1.0
        return bundle.compose_event(
            data=dict(data),
            timestamps=dict.fromkeys(data, self._clock),
            filled={key: False for key in (_CAMERA, _STAMPS) if key in data},
            time=self._clock,
        )


def _scalar(key: str, units: str = "") -> dict[str, Any]:
    described: dict[str, Any] = {"dtype": "number", "shape": [], "source": f"PV:{key}"}
    return described | ({"units": units} if units else {})
