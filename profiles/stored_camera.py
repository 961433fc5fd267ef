"""A transmission microscope whose sample is a stored energy stack: its frames again, at energies between those taken.

Frames at a stored energy are the stored ones; between two they are interpolated, and outside of them there are none.
Shorter exposures thin the photons of both the images and the flats (see `inscan.profiles.stored_field`); longer ones
are not offered. Noise that the stored frames have stays in them: a rehearsal shows what fewer energies or less light
would have cost, not what more would have gained.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import numpy as np
from bluesky.utils import Msg
from ophyd import Signal

from inscan.profiles.stages import Stage
from inscan.profiles.waiting import Ended, after

__all__ = ["StoredCamera", "StoredStack", "stored_stack"]

Kind = Literal["dark", "flat", "primary"]
Plan = Generator[Msg, Any, Any]
_IMAGE = "camera_image"


class StoredCamera:
    """Shows the stored frames of the energy where the monochromator stands.

    Parameters
    ----------
    frames
        (energy, row, col) mean frames, ADU; NaN where nothing was measured.
    dark
        (row, col), ADU.
    flats
        (energy, row, col), ADU.
    energies_ev
        (energy,) rising.
    energy
        Monochromator, keV.
    adu_per_photon
        Gain, for thinning.
    share
        Exposure relative to that of the run, at most 1.
    dwell
        Time of one frame, s.
    time_scale
        Real seconds per simulated second.
    seed
        Of the thinning.
    """

    parent = None
    name = "camera"

    def __init__(
        self,
        frames: np.ndarray,
        dark: np.ndarray,
        flats: np.ndarray,
        energies_ev: np.ndarray,
        energy: Stage,
        *,
        adu_per_photon: float,
        share: float,
        dwell: float,
        time_scale: float,
        seed: int,
    ) -> None:
        self.kind = Signal(name="camera_kind", value="primary")
        self.interpolated = 0
        self._frames, self._dark, self._flats = frames, dark, flats
        self._energies, self._energy = energies_ev, energy
        self._gain, self._share = adu_per_photon, share
        self._wait = dwell * time_scale
        self._rng = np.random.default_rng([seed, 22])
        self._image: np.ndarray | None = None
        self._taken = 0.0

    def trigger(self) -> Any:
        """Take one frame; the status ends after the exposure."""
        kind: Any = self.kind.get()
        self._image = self._take(kind)[None].astype(np.float32)
        self._taken = time.time()
        return after(self._wait) if self._wait > 0 else Ended()

    def _take(self, kind: Kind) -> np.ndarray:
        if kind == "dark":
            return self._dark
        stored = self._flats if kind == "flat" else self._frames
        first, share = self._place(self._energy.here * 1000)
        image = stored[first]
        if share > 0:
            image = (1 - share) * image + share * stored[first + 1]
            self.interpolated += kind == "primary"
        if self._share >= 1:
            return image
        photons = np.nan_to_num((image - self._dark) / self._gain).clip(0)
        kept = self._rng.binomial(np.rint(photons).astype(np.int64), self._share)
        return np.where(np.isfinite(image), self._dark + kept * self._gain, np.nan)

    def _place(self, energy_ev: float) -> tuple[int, float]:
        """Stored energy below, and how far towards the next one; 0 where it is a stored one."""
        at = float(np.interp(energy_ev, self._energies, np.arange(len(self._energies))))
        first = min(int(at + 1e-6), len(self._energies) - 1)
        share = at - first
        return (first, 0.0) if abs(share) < 1e-6 else (first, share)

    def read(self) -> dict[str, Any]:
        """Return the last frame.

        Raises
        ------
        RuntimeError
            It was never triggered.
        """
        if self._image is None:
            raise RuntimeError(f"{self.name} has no frame yet: trigger it first")
        return {_IMAGE: {"value": self._image, "timestamp": self._taken}}

    def describe(self) -> dict[str, Any]:
        """Describe the frame."""
        shape = [1, *self._dark.shape]
        key = {
            "source": "stored run",
            "dtype": "array",
            "dtype_numpy": "<f4",
            "shape": shape,
            "units": "ADU",
        }
        return {_IMAGE: key}

    def read_configuration(self) -> dict[str, Any]:
        """Return nothing: all of it is the stored run's."""
        return {}

    def describe_configuration(self) -> dict[str, Any]:
        """Describe nothing."""
        return {}


@dataclass(frozen=True)
class StoredStack:
    """Devices built from a stored energy stack.

    Attributes
    ----------
    camera, energy
        Devices; the energy (keV) moves within the stored range.
    energies_ev
        Of the stored run, in its order.
    dwell
        Exposure per energy of the stored run, s.
    metadata
        For every start document.
    """

    camera: StoredCamera
    energy: Stage
    energies_ev: tuple[float, ...]
    dwell: float
    metadata: Mapping[str, Any]

    def scan(self, energies_ev: Sequence[float], md: Mapping[str, Any]) -> Plan:
        """Take a stack at some energies: dark, a flat and an image at each.

        Raises
        ------
        LimitError
            An energy outside those of the run; nothing has moved then.
        """
        energies = [float(energy) / 1000 for energy in energies_ev]
        for energy in energies:
            self.energy.check_value(energy)
        meta = {
            "plan_name": "stored_stack",
            "eng_list": energies,
            "exposure_time": self.dwell,
            **self.metadata,
            **md,
        }

        @bpp.run_decorator(md=meta)
        def streams() -> Plan:
            for kind, at in (("dark", energies[:1]), ("flat", energies), ("primary", energies)):
                yield from bps.mv(self.camera.kind, kind)
                for energy in at:
                    yield from bps.checkpoint()
                    yield from bps.mv(self.energy, energy)
                    yield from bps.trigger_and_read([self.camera, self.energy], name=kind)

        return (yield from streams())


def stored_stack(
    arrays: Mapping[str, np.ndarray],
    meta: Mapping[str, Any],
    *,
    share: float = 1.0,
    seed: int = 0,
    time_scale: float = 0.0,
) -> StoredStack:
    """Build the microscope of an assembled stack.

    Parameters
    ----------
    arrays
        ``frames`` (energy, row, col), ``dark`` (row, col), ``flat`` (row, col) or ``flat_per_energy`` (energy, row,
        col), ``measured`` (energy, row, col), as an assembler makes them.
    meta
        ``energies_ev``, ``adu_per_photon``, ``dwell``, ``run_uid``, ...
    share
        Exposure relative to that of the run.
    seed, time_scale
        See `StoredCamera`.

    Raises
    ------
    ValueError
        Fewer than two energies, or a share that is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise ValueError(
            f"exposure {share:g} of the stored one: expected above 0 and at most 1, a stored frame has no more light"
        )
    measured = np.asarray(arrays["measured"], bool)
    energies = np.asarray(meta["energies_ev"], float)
    order = np.argsort(energies, kind="stable")
    there = order[measured[order].any(axis=(1, 2))]
    if len(there) < 2:
        raise ValueError(f"run {str(meta['run_uid'])[:8]} has {len(there)} measured energies")
    frames = np.where(measured[there], np.asarray(arrays["frames"])[there], np.nan)
    flat = np.asarray(arrays["flat_per_energy"] if "flat_per_energy" in arrays else arrays["flat"])
    flats = flat[there] if flat.ndim == 3 else np.broadcast_to(flat, frames.shape)
    dark = np.asarray(arrays["dark"])
    dark = dark if dark.ndim == 2 else dark.mean(axis=0)
    rising = energies[there]
    dwell = float(meta.get("dwell") or 1.0) * share
    energy = Stage(
        "energy", "keV", (rising[0] / 1000 - 1e-9, rising[-1] / 1000 + 1e-9), rising[0] / 1000
    )
    camera = StoredCamera(
        frames,
        dark,
        flats,
        rising,
        energy,
        adu_per_photon=float(meta.get("adu_per_photon") or 1.0),
        share=share,
        dwell=dwell,
        time_scale=time_scale,
        seed=seed,
    )
    marks = {
        "simulated": True,
        "rehearsal_of": meta["run_uid"],
        **{key: meta[key] for key in ("sample",) if key in meta},
    }
    kept = tuple(float(e) for i, e in enumerate(energies) if i in set(there.tolist()))
    return StoredStack(camera, energy, kept, dwell, marks)
