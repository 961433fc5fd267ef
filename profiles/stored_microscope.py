"""A fluorescence microscope whose sample is a stored run: the same motors, and its photons again.

Documents look like those of the simulated microscope with step scans, so that every plan that maps with
`inscan.profiles.xrf_plans.step_raster` runs here; what was measured decides what is counted.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ophyd import Signal

from inscan.profiles.stages import Stage
from inscan.profiles.stored_field import StoredExposure, StoredField
from inscan.profiles.waiting import Ended, after, signal_value

__all__ = ["StoredDetector", "StoredMicroscope", "stored_microscope"]

_PREFIX = "xs"
_I0_RATE = 1e6


class StoredDetector:
    """Takes photons out of a stored field where the motors stand.

    Keys as of `inscan.profiles.xspress3.Xspress3`, and ``sclr_i0``; a position outside what was measured has a live
    time of 0, which assemblers take for a pixel that was not measured.

    Parameters
    ----------
    field
        What is exposed.
    slow, fast
        Motors.
    elements
        Names of the windows.
    windows_ev
        (low, high) of each window, eV.
    dwell
        Counting time, s.
    incident_energy
        keV; None: unknown.
    time_scale
        Real seconds per simulated second. 0: as fast as it goes.
    """

    parent = None
    name = _PREFIX

    def __init__(
        self,
        field: StoredField,
        slow: Stage,
        fast: Stage,
        elements: Sequence[str],
        windows_ev: Sequence[tuple[float, float]],
        dwell: Signal,
        incident_energy: float | None,
        time_scale: float,
    ) -> None:
        self.field = field
        self.dwell = dwell
        self.incident_energy = incident_energy
        self.time_scale = time_scale
        self._slow, self._fast = slow, fast
        self._elements, self._windows = tuple(elements), tuple(windows_ev)
        self._shot: StoredExposure | None = None
        self._taken, self._seconds = 0.0, 0.0

    def stage(self) -> list[Any]:
        """Nothing to prepare."""
        return [self]

    def unstage(self) -> list[Any]:
        """Nothing is left open."""
        return [self]

    def trigger(self) -> Any:
        """Expose the present position; the status ends after the dwell time."""
        self._seconds = signal_value(self.dwell)
        self._shot = self.field.expose(self._slow.here, self._fast.here, self._seconds)
        self._taken = time.time()
        wait = self._seconds * self.time_scale
        return after(wait) if wait > 0 else Ended()

    def read(self) -> dict[str, Any]:
        """Return the last exposure.

        Raises
        ------
        RuntimeError
            It was never triggered.
        """
        if self._shot is None:
            raise RuntimeError(f"{self.name} has not counted yet: trigger it first")
        reading: dict[str, Any] = {}
        for channel, seconds in enumerate(self._shot.live_time.tolist()):
            for window, counts in enumerate(self._shot.counts[channel].tolist()):
                reading[_total(channel, window)] = counts
            reading[_live(channel)] = seconds
        reading["sclr_i0"] = self._shot.intensity * _I0_RATE * self._seconds
        return {key: {"value": v, "timestamp": self._taken} for key, v in reading.items()}

    def describe(self) -> dict[str, Any]:
        """Describe the keys of `read`."""
        number = {
            "source": "stored run",
            "dtype": "number",
            "dtype_numpy": "<f8",
            "shape": [],
            "units": "s",
        }
        total = {**number, "dtype": "integer", "dtype_numpy": "<i8", "units": "counts"}
        keys: dict[str, Any] = {}
        for channel in range(len(self.field.live_time)):
            keys |= {_total(channel, window): dict(total) for window in range(len(self._elements))}
            keys[_live(channel)] = dict(number)
        keys["sclr_i0"] = {**number, "units": "counts"}
        return keys

    def read_configuration(self) -> dict[str, Any]:
        """Return names and edges of the windows, and the dwell time."""
        items: dict[str, Any] = {f"{_PREFIX}_dwell": signal_value(self.dwell)}
        for number, (name, (low, high)) in enumerate(
            zip(self._elements, self._windows, strict=True), 1
        ):
            items[f"{_PREFIX}_mcaroi{number:02d}_name"] = name
            items[f"{_PREFIX}_mcaroi{number:02d}_low_ev"] = low
            items[f"{_PREFIX}_mcaroi{number:02d}_high_ev"] = high
        now = time.time()
        return {key: {"value": value, "timestamp": now} for key, value in items.items()}

    def describe_configuration(self) -> dict[str, Any]:
        """Describe the keys of `read_configuration`."""
        kinds = {str: "string", float: "number"}
        return {
            key: {"source": "stored run", "dtype": kinds[type(entry["value"])], "shape": []}
            for key, entry in self.read_configuration().items()
        }

    @property
    def hints(self) -> Mapping[str, Any]:
        """Show the windows of the first channel."""
        return {"fields": [_total(0, window) for window in range(len(self._elements))]}


def _total(channel: int, window: int) -> str:
    return f"{_PREFIX}_channel{channel + 1:02d}_mcaroi{window + 1:02d}_total_rbv"


def _live(channel: int) -> str:
    return f"{_PREFIX}_channel{channel + 1:02d}_live_time"


@dataclass(frozen=True)
class StoredMicroscope:
    """Devices built from a stored run.

    Attributes
    ----------
    slow_motor, fast_motor
        Named and limited as in the run; they reach to the outer edges of its field.
    detector
        Shares the run's photons.
    slow_range, fast_range
        Outer edges of the field, motor units.
    step
        (slow, fast): pixel of the run.
    metadata
        For every start document: that this is simulated, and from what.
    """

    slow_motor: Stage
    fast_motor: Stage
    detector: StoredDetector
    slow_range: tuple[float, float]
    fast_range: tuple[float, float]
    step: tuple[float, float]
    metadata: Mapping[str, Any]


def stored_microscope(
    arrays: Mapping[str, np.ndarray],
    meta: Mapping[str, Any],
    *,
    seed: int = 0,
    time_scale: float = 0.0,
    dwell: float | None = None,
) -> StoredMicroscope:
    """Build the microscope of an assembled map.

    Parameters
    ----------
    arrays
        ``counts`` (channel, element, row, col), ``exposure`` (channel, row, col) = live time times beam relative to
        the run's reference, ``measured`` (row, col), as an assembler makes them.
    meta
        What the assembler says of them: ``geometry``, ``elements``, ``windows_ev``, ``dwell``, ``run_uid``, ...
    seed
        Same seed and same plans, same data.
    time_scale
        Real seconds per simulated second.
    dwell
        Dwell time of the run, s, where its documents do not say it.

    Raises
    ------
    ValueError
        The dwell time is unknown.
    """
    geometry = meta["geometry"]
    seconds = meta.get("dwell") or dwell
    if not seconds:
        raise ValueError(
            f"run {str(meta['run_uid'])[:8]} does not say how long it dwelt on a pixel: name the key in the profile"
            " (xrf.dwell)"
        )
    rows, cols = geometry["shape"]
    slow = np.linspace(geometry["slow_first"], geometry["slow_last"], rows)
    fast = np.linspace(geometry["fast_first"], geometry["fast_last"], cols)
    exposure = np.asarray(arrays["exposure"], float)
    field = StoredField(
        counts=np.asarray(arrays["counts"]),
        # Live time and beam come as their product, which is all that a rate needs: the beam is taken as constant.
        live_time=exposure,
        intensity=np.ones((rows, cols)),
        measured=np.asarray(arrays["measured"], bool),
        dwell=float(seconds),
        slow=slow,
        fast=fast,
        seed=seed,
    )
    stages, ranges, steps = [], [], []
    for axis, centres in (("slow", slow), ("fast", fast)):
        step = abs(float(centres[-1] - centres[0])) / max(len(centres) - 1, 1) or 1.0
        low, high = (
            float(centres.min() - step / 2),
            float(centres.max() + step / 2),
        )
        name, units = geometry[f"{axis}_motor"], geometry[f"{axis}_units"]
        stages.append(Stage(name, units, (low, high), float(centres[0])))
        ranges.append((low, high))
        steps.append(step)
    energy = meta.get("incident_energy_ev")
    detector = StoredDetector(
        field,
        stages[0],
        stages[1],
        elements=meta["elements"],
        windows_ev=[(float(low), float(high)) for low, high in meta["windows_ev"]],
        dwell=Signal(name=f"{_PREFIX}_dwell", value=float(seconds)),
        incident_energy=None if energy is None else energy / 1000,
        time_scale=time_scale,
    )
    marks = {
        "simulated": True,
        "rehearsal_of": meta["run_uid"],
        **{key: meta[key] for key in ("sample",) if key in meta},
    }
    return StoredMicroscope(
        stages[0], stages[1], detector, ranges[0], ranges[1], (steps[0], steps[1]), marks
    )
