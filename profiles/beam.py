"""The beam that all detectors of a simulated beamline share, and the scaler that monitors it."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from ophyd import Signal
from scipy.signal import lfilter

from inscan.profiles.waiting import Ended, signal_value

__all__ = ["Beam", "Light", "Scaler"]

_KEEP = float(np.exp(-1 / 3000.0))  # the drift forgets where it was after 3000 exposures


class Light:
    """What decides whether there is any beam: the storage ring, and the shutter behind it.

    Parameters
    ----------
    shutter
        1: open, 0: closed.
    ring_current
        In mA.
    nominal
        Current at which the beam has its nominal intensity, mA.
    """

    def __init__(self, shutter: Signal, ring_current: Signal, nominal: float = 400.0) -> None:
        self.shutter, self.ring_current = shutter, ring_current
        self._nominal = nominal

    def now(self) -> float:
        """Return the share of the nominal beam that comes through."""
        if not signal_value(self.shutter):
            return 0.0
        return max(0.0, signal_value(self.ring_current)) / self._nominal


class Beam:
    """Intensity of the beam, exposure by exposure.

    Two detectors that are triggered for the same point must see the same beam. They are triggered
    one after the other, so the beam knows who has seen the present exposure: whoever asks twice
    begins the next one.

    Parameters
    ----------
    seed
        Same seed, same beam.
    drift
        Standard deviation of the slow drift, relative.
    fluctuation
        Standard deviation from exposure to exposure, relative.
    light
        Shutter and storage ring; without, they are as they should be.

    Raises
    ------
    ValueError
        Drift and fluctuation so large that the beam would vanish.
    """

    def __init__(
        self,
        seed: int,
        *,
        drift: float = 0.03,
        fluctuation: float = 0.005,
        light: Light | None = None,
    ) -> None:
        if not (0 <= drift <= 0.2 and 0 <= fluctuation <= 0.1):
            raise ValueError(
                f"drift {drift}, fluctuation {fluctuation}; expected 0 to 0.2 and 0 to 0.1"
            )
        self._rng = np.random.default_rng([seed, 11])
        self._drift, self._fluctuation = drift, fluctuation
        # Memory of the filter that makes the drift: it begins in its steady state.
        self._state = np.array([_KEEP * self._rng.normal()])
        self._seen: set[str] = set()
        self._present = 1.0
        self._light = light
        self._through = 1.0
        self._lock = threading.Lock()

    def light(self) -> float:
        """Return the share of the nominal beam that shutter and storage ring let through now."""
        return 1.0 if self._light is None else self._light.now()

    def begin(self) -> None:
        """Begin a new exposure: whatever was seen before this is over."""
        with self._lock:
            self._present = self._next(1)[0]
            self._seen.clear()

    def expose(self, who: str) -> float:
        """Return the intensity of the present exposure, relative to nominal."""
        with self._lock:
            if who in self._seen:
                self._present = self._next(1)[0]
                self._seen.clear()
            if not self._seen:
                self._through = self.light()
            self._seen.add(who)
            return float(self._present * self._through)

    def row(self, count: int) -> np.ndarray:
        """Return the intensities of the next exposures with all light, (count,) float64."""
        with self._lock:
            self._seen.clear()
            return self._next(count)

    def _next(self, count: int) -> np.ndarray:
        steps = self._rng.normal(0, np.sqrt(1 - _KEEP**2), count)
        drift, self._state = lfilter([1.0], [1.0, -_KEEP], steps, zi=self._state)
        noise = self._rng.normal(0, self._fluctuation, count)
        return np.clip(1 + self._drift * drift + noise, 0.2, 2.0)


class Scaler:
    """Ion chamber in front of the sample, gated by the detector: reads ``<name>_i0`` in counts.

    Parameters
    ----------
    beam
        What it monitors.
    dwell
        Signal with the counting time in s: that of the detector.
    name
        Device name.
    rate
        Counts/s at the nominal beam.
    seed
        Noise.
    """

    parent = None

    def __init__(
        self, beam: Beam, dwell: Signal, *, name: str = "sclr", rate: float = 2e6, seed: int = 0
    ) -> None:
        self.name = name
        self.rate = rate
        self._beam, self._dwell = beam, dwell
        self._rng = np.random.default_rng([seed, 12])
        self._reading: tuple[float, float] | None = None

    def counts(self, intensity: np.ndarray, dwell: float) -> np.ndarray:
        """Return counts for intensities, float64 of the same shape."""
        return np.asarray(self._rng.poisson(intensity * self.rate * dwell), np.float64)

    def stage(self) -> list[Any]:
        """Begin a new exposure."""
        self._beam.begin()
        return [self]

    def unstage(self) -> list[Any]:
        """Nothing is left open."""
        return [self]

    def trigger(self) -> Ended:
        """Count the present exposure."""
        intensity = np.array(self._beam.expose(self.name))
        self._reading = (float(self.counts(intensity, signal_value(self._dwell))), time.time())
        return Ended()

    def read(self) -> dict[str, Any]:
        """Return the last count.

        Raises
        ------
        RuntimeError
            It was never triggered.
        """
        if self._reading is None:
            raise RuntimeError(f"{self.name} has not counted yet: trigger it first")
        value, timestamp = self._reading
        return {f"{self.name}_i0": {"value": value, "timestamp": timestamp}}

    def describe(self) -> dict[str, Any]:
        """Describe ``<name>_i0``."""
        return {f"{self.name}_i0": {**self.data_key, "shape": []}}

    @property
    def data_key(self) -> Mapping[str, Any]:
        """What ``<name>_i0`` is, without its shape."""
        return {
            "source": f"sim://{self.name}/i0",
            "dtype": "number",
            "dtype_numpy": "<f8",
            "units": "counts",
        }

    def read_configuration(self) -> dict[str, Any]:
        """Return nothing: the counting time is the detector's."""
        return {}

    def describe_configuration(self) -> dict[str, Any]:
        """Describe nothing."""
        return {}

    @property
    def hints(self) -> dict[str, Any]:
        """Show the counts."""
        return {"fields": [f"{self.name}_i0"]}
