"""An Xspress3-like fluorescence detector for step scans: one event per point."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from ophyd import Signal

from inscan.profiles.beam import Beam
from inscan.profiles.stage_drift import StageDrift
from inscan.profiles.stages import Stage
from inscan.profiles.waiting import Ended, after, signal_value
from inscan.profiles.xrf_counting import CountingChain, Counts
from inscan.profiles.xrf_response import Response

__all__ = ["Xspress3", "configuration"]

_PREFIX = "xs"


def configuration(
    response: Response, dwell: Signal, source: str
) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Return the configuration that step and fly detector share: key -> (value, description)."""
    text = {"source": source, "dtype": "string", "shape": []}
    number = {"source": source, "dtype": "number", "dtype_numpy": "<f8", "shape": []}
    electronvolt = {**number, "units": "eV"}
    items: dict[str, tuple[Any, dict[str, Any]]] = {}
    for index, mcaroi in enumerate(response.mcarois, start=1):
        items[f"{_PREFIX}_mcaroi{index:02d}_name"] = (mcaroi.name, text)
        items[f"{_PREFIX}_mcaroi{index:02d}_low_ev"] = (mcaroi.low_ev, electronvolt)
        items[f"{_PREFIX}_mcaroi{index:02d}_high_ev"] = (mcaroi.high_ev, electronvolt)
    items[f"{_PREFIX}_energy_per_bin"] = (response.energy_per_bin, electronvolt)
    items[f"{_PREFIX}_energy_offset"] = (response.offset_ev, electronvolt)
    items[f"{_PREFIX}_dwell"] = (signal_value(dwell), {**number, "units": "s"})
    return items


class Xspress3:
    """Counts what is at the motors' positions when it is triggered.

    Data keys, with channel and mcaroi from 01: ``xs_channel01_mcaroi01_total_rbv`` (counts),
    ``xs_channel01_live_time`` (s), and with ``spectra`` set ``xs_channel01_fluor`` (counts per
    bin).

    Parameters
    ----------
    chain
        Detector elements in front of the sample.
    beam
        Shared with all detectors.
    slow, fast
        Motors whose positions are the sample's (slow, fast), um.
    dwell
        Counting time, s; shared with the scaler that it gates.
    incident_energy
        keV; plans record it.
    time_scale
        A trigger takes ``dwell * time_scale`` seconds of real time. 0: none.
    name
        Device name; keys begin with it.
    drift
        What the sample does besides; None: nothing.
    """

    parent = None

    def __init__(
        self,
        chain: CountingChain,
        beam: Beam,
        slow: Stage,
        fast: Stage,
        dwell: Signal,
        incident_energy: float,
        *,
        time_scale: float = 1.0,
        name: str = _PREFIX,
        drift: StageDrift | None = None,
    ) -> None:
        self.name = name
        self.dwell = dwell
        self.incident_energy = incident_energy
        self.spectra = Signal(name=f"{name}_spectra", value=0)
        self.time_scale = time_scale
        self._chain, self._beam = chain, beam
        self._slow, self._fast = slow, fast
        self._drift = drift or StageDrift()
        self._counts: Counts | None = None
        self._taken = 0.0
        channels = range(1, chain.channels + 1)
        numbers = range(1, len(chain.response.mcarois) + 1)
        self._totals = [
            [f"{name}_channel{c:02d}_mcaroi{m:02d}_total_rbv" for m in numbers] for c in channels
        ]
        self._live = [f"{name}_channel{c:02d}_live_time" for c in channels]
        self._fluor = [f"{name}_channel{c:02d}_fluor" for c in channels]

    def stage(self) -> list[Any]:
        """Begin a new exposure, of a new run."""
        self._beam.begin()
        self._drift.begin_run()
        return [self]

    def unstage(self) -> list[Any]:
        """Nothing is left open."""
        return [self]

    def trigger(self) -> Any:
        """Count at the present position; the status ends after the dwell time."""
        dwell = signal_value(self.dwell)
        slow, fast = self._drift.offset
        self._drift.pass_time(dwell)
        self._counts = self._chain.count(
            np.array([self._slow.here - slow]),
            np.array([self._fast.here - fast]),
            dwell,
            np.array([self._beam.expose(self.name)]),
            spectra=bool(self.spectra.get()),
        )
        self._taken = time.time()
        wait = dwell * self.time_scale
        return after(wait) if wait > 0 else Ended()

    def read(self) -> dict[str, Any]:
        """Return the counts of the last trigger.

        Raises
        ------
        RuntimeError
            It was never triggered.
        """
        counts, taken = self._counts, self._taken
        if counts is None:
            raise RuntimeError(f"{self.name} has not counted yet: trigger it first")
        reading: dict[str, Any] = {}
        totals, live = counts.mcaroi[0].tolist(), counts.live_time[0].tolist()
        for keys, values, live_key, seconds in zip(
            self._totals, totals, self._live, live, strict=True
        ):
            for key, value in zip(keys, values, strict=True):
                reading[key] = {"value": value, "timestamp": taken}
            reading[live_key] = {"value": seconds, "timestamp": taken}
        if counts.spectra is not None:
            spectra = counts.spectra[0].astype(np.uint32)
            for key, spectrum in zip(self._fluor, spectra, strict=True):
                reading[key] = {"value": spectrum, "timestamp": taken}
        return reading

    def describe(self) -> dict[str, Any]:
        """Describe the keys of `read`."""
        base = {"source": f"sim://{self.name}", "shape": []}
        total = {**base, "dtype": "integer", "dtype_numpy": "<i8", "units": "counts"}
        live = {**base, "dtype": "number", "dtype_numpy": "<f8", "units": "s"}
        bins = len(self._chain.response.scatter)
        fluor = {
            "source": f"sim://{self.name}",
            "dtype": "array",
            "dtype_numpy": "<u4",
            "shape": [bins],
            "dims": ["bin"],
            "units": "counts",
        }
        keys: dict[str, Any] = {}
        for totals, live_key, fluor_key in zip(self._totals, self._live, self._fluor, strict=True):
            keys.update({key: dict(total) for key in totals})
            keys[live_key] = dict(live)
            if self.spectra.get():
                keys[fluor_key] = dict(fluor)
        return keys

    def read_configuration(self) -> dict[str, Any]:
        """Return windows, energy axis and dwell."""
        now = time.time()
        items = configuration(self._chain.response, self.dwell, f"sim://{self.name}")
        return {key: {"value": value, "timestamp": now} for key, (value, _) in items.items()}

    def describe_configuration(self) -> dict[str, Any]:
        """Describe the keys of `read_configuration`."""
        items = configuration(self._chain.response, self.dwell, f"sim://{self.name}")
        return {key: dict(description) for key, (_, description) in items.items()}

    @property
    def hints(self) -> Mapping[str, Any]:
        """Show the windows of the first channel."""
        return {"fields": list(self._totals[0])}
