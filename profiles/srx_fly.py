"""A fly scan like NSLS-II SRX's, as devices and a plan for a RunEngine.

Documents, keys and files are those of `inscan.profiles.srx_documents`: an event per row in ``stream0`` with spectra,
position capture and scalers in new files for each row, the slow motor in ``primary``. There they are composed from a
map that is given; here a RunEngine makes them of a sample that is looked at where the motors are sent, so that a plan
can go on where inscan says.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import numpy as np
from bluesky.utils import Msg
from ophyd import Signal

from inscan.profiles.beam import Beam
from inscan.profiles.samples import XRFSample
from inscan.profiles.srx_files import SPECTRA, data_key, row_files, row_keys, scan_of, write_file
from inscan.profiles.stages import Stage
from inscan.profiles.waiting import Ended
from inscan.profiles.xrf_counting import CountingChain
from inscan.profiles.xrf_response import build_response

__all__ = ["Row", "SRXBeamline", "SRXFlyer", "region_and_fly", "scan_and_fly", "srx_beamline"]

Plan = Generator[Msg, Any, Any]
_KEY = "xs_fluor"
_I0_HZ = 2e6
_ENCODER_NOISE = 0.01  # um
# A pixel in flight is an average over the fast axis; three points across it do.
_ACROSS = np.array([-1.0, 0.0, 1.0]) / 3


@dataclass(frozen=True)
class Row:
    """One row to fly.

    Attributes
    ----------
    slow
        Position, um.
    begin, end
        Centres of the first and last pixel in time order, um.
    count
        Number of pixels.
    dwell
        Time per pixel, s.
    """

    slow: float
    begin: float
    end: float
    count: int
    dwell: float


class SRXFlyer:
    """Position capture, scalers and detector of a fly scan, as one flyer: prepare, kick off, complete, collect a row.

    Parameters
    ----------
    chain
        Detector and sample.
    beam
        Intensity, pixel by pixel.
    motors
        Names of the slow and fast motor.
    folder
        Of its files; it must exist.
    seed
        Of the encoders' noise.
    """

    parent = None
    name = "nanoZebra"

    def __init__(
        self,
        chain: CountingChain,
        beam: Beam,
        motors: tuple[str, str],
        folder: Path,
        *,
        seed: int = 0,
    ) -> None:
        self._chain, self._beam, self._motors, self._folder = chain, beam, motors, Path(folder)
        self._rng = np.random.default_rng([seed, 19])
        self._row: Row | None = None
        self._count = 0
        self._new: list[tuple[str, dict[str, Any]]] = []
        self._event: dict[str, Any] | None = None

    def prepare(self, value: Row) -> Ended:
        """Take a row as the next.

        Raises
        ------
        ValueError
            It has no pixels, or no time.
        """
        if value.count < 1 or not value.dwell > 0:
            raise ValueError(f"{self.name}: a row of {value.count} pixels of {value.dwell} s")
        self._row, self._count = value, value.count
        return Ended()

    def kickoff(self) -> Ended:
        """Fly the prepared row; its files are written on return.

        Raises
        ------
        RuntimeError
            No row is prepared.
        """
        if self._row is None:
            raise RuntimeError(f"{self.name}: prepare a row before kickoff")
        row, self._row = self._row, None
        fast = np.linspace(row.begin, row.end, row.count)
        step = (row.end - row.begin) / (row.count - 1) if row.count > 1 else 0.0
        across = fast[:, None] + step * _ACROSS
        intensity = self._beam.row(row.count)
        counts = self._chain.count(
            np.full(across.shape, row.slow), across, row.dwell, intensity, spectra=True
        )
        assert counts.spectra is not None
        slow_motor, fast_motor = self._motors
        places = {slow_motor: np.full(row.count, row.slow), fast_motor: fast}
        encoders = {
            motor: where + self._rng.normal(0, _ENCODER_NOISE, row.count)
            for motor, where in places.items()
        }
        i0 = self._rng.poisson(intensity * _I0_HZ * row.dwell)
        self._write(row_files(encoders, counts.spectra.astype(np.uint32), i0, row.dwell))
        return Ended()

    def _write(self, files: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Write a row's files, and note the documents that tell of it."""
        self._new, data = [], {}
        for spec, datasets in files.items():
            resource = str(uuid.uuid4())
            path = write_file(self._folder, datasets)
            document = {
                "uid": resource,
                "spec": spec,
                "root": "/",
                "resource_path": str(path)[1:],
                "resource_kwargs": {},
                "path_semantics": "posix",
            }
            self._new.append(("resource", document))
            for number, dataset in enumerate(datasets):
                key = data_key(dataset, _KEY)
                kwargs = {} if key == _KEY else {"column": dataset}
                data[key] = f"{resource}/{number}"
                datum = {"resource": resource, "datum_id": data[key], "datum_kwargs": kwargs}
                self._new.append(("datum", datum))
        now = time.time()
        stamps: dict[str, Any] = dict(data)
        # Window sums as they stand when the row is over: the last pixel's, not one per pixel.
        for channel, spectrum in enumerate(files["XSP3_FLY"][SPECTRA][-1], 1):
            key = f"xs_channel{channel:02d}_mcaroi01_total_rbv"
            data[key], stamps[key] = float(spectrum.sum()), now
        self._event = {"data": data, "timestamps": stamps, "time": now}

    def complete(self) -> Ended:
        """Return when the row is over: at once."""
        return Ended()

    def collect_asset_docs(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the row's resource and datum documents, once."""
        yield from self._new
        self._new = []

    def collect(self) -> Iterator[dict[str, Any]]:
        """Yield the row's event, once."""
        if self._event is not None:
            yield self._event
            self._event = None

    def describe_collect(self) -> dict[str, dict[str, Any]]:
        """Describe ``stream0``; the number of pixels is the planned one."""
        bins = len(self._chain.response.scatter)
        return {"stream0": row_keys(_KEY, self._count, self._chain.channels, bins)}


@dataclass(frozen=True, eq=False)
class SRXBeamline:
    """What a fly scan needs; see `srx_beamline`.

    Attributes
    ----------
    nano_stage_sx, nano_stage_sy
        Motors, um.
    flyer
        Detectors.
    ring_current
        Read before and after each scan, mA.
    monitor
        A signal that SRX monitors and asks nobody to keep.
    interferometer
        Read with the slow motor, um.
    energy_kev
        Incident energy.
    sample
        Name of the sample.
    """

    nano_stage_sx: Stage
    nano_stage_sy: Stage
    flyer: SRXFlyer
    ring_current: Signal
    monitor: Signal
    interferometer: Signal
    energy_kev: float
    sample: str


def srx_beamline(
    sample: XRFSample,
    folder: Path,
    *,
    channels: int = 4,
    bins: int = 4096,
    energy_kev: float = 12.0,
    limits: float = 50.0,
    seed: int = 0,
) -> SRXBeamline:
    """Build the beamline.

    Parameters
    ----------
    sample
        What is at the focus.
    folder
        Of the files; it must exist.
    channels, bins
        Detector elements, and length of a spectrum; 10 eV per bin.
    energy_kev
        Incident energy.
    limits
        Soft limits of both motors are +- this, um.
    seed
        Of counts, beam and encoders.
    """
    response = build_response(sample.elements, incident_ev=1000 * energy_kev, bins=bins)
    chain = CountingChain(sample, response, channels=channels, seed=seed)
    slow = Stage("nano_stage_sy", "um", (-limits, limits))
    fast = Stage("nano_stage_sx", "um", (-limits, limits))
    flyer = SRXFlyer(chain, Beam(seed), (slow.name, fast.name), folder, seed=seed)
    return SRXBeamline(
        fast,
        slow,
        flyer,
        Signal(name="ring_current", value=400.0),
        Signal(name="DONOTSAVE_xs", value=1.0),
        Signal(name="nanoKB_interferometer_posX", value=0.0),
        energy_kev,
        sample.name,
    )


def scan_and_fly(
    beamline: SRXBeamline,
    xstart: float,
    xstop: float,
    xnum: int,
    ystart: float,
    ystop: float,
    ynum: int,
    dwell: float,
    *,
    snake: bool = False,
    md: Mapping[str, Any] | None = None,
) -> Plan:
    """Take a map in flight: rows along x, the fast axis.

    May be paused between rows, stopped and aborted anywhere.

    Parameters
    ----------
    beamline
        See `srx_beamline`.
    xstart, xstop, xnum, ystart, ystop, ynum
        Centres of the first and last pixel of each axis, um, and their number.
    dwell
        Time per pixel, s.
    snake
        Every second row backwards.
    md
        Added to the start document.

    Raises
    ------
    LimitError
        A corner outside the soft limits; nothing has moved then.
    """
    fast, slow = beamline.nano_stage_sx, beamline.nano_stage_sy
    # ophyd's devices are Bluesky's by what they do, not by their declared types.
    read: list[Any] = [slow, beamline.interferometer]
    for motor, ends in ((fast, (xstart, xstop)), (slow, (ystart, ystop))):
        for end in ends:
            motor.check_value(end)
    scan = scan_of(
        fast.name,
        slow.name,
        ((ystart, ystop), (xstart, xstop)),
        (ynum, xnum),
        dwell,
        snake=snake,
        energy_kev=beamline.energy_kev,
        sample=beamline.sample,
    )
    given = {
        "plan_name": "nano_scan_and_fly",
        "md_version": "1.2",
        "sample": {"name": beamline.sample},
        "scan": scan,
        **(md or {}),
    }

    @bpp.baseline_decorator([beamline.ring_current])
    @bpp.monitor_during_decorator([beamline.monitor])
    @bpp.run_decorator(md=given)
    def rows() -> Plan:
        for number, where in enumerate(np.linspace(ystart, ystop, ynum)):
            begin, end = (xstop, xstart) if snake and number % 2 else (xstart, xstop)
            yield from bps.checkpoint()
            yield from bps.mv(slow, float(where), fast, begin)
            yield from bps.trigger_and_read(read, name="primary")
            row = Row(slow.here, begin, end, xnum, dwell)
            yield from bps.prepare(beamline.flyer, row, wait=True)
            yield from bps.kickoff(beamline.flyer, wait=True)
            yield from bps.mv(fast, end)
            yield from bps.complete(beamline.flyer, wait=True)
            yield from bps.collect(beamline.flyer)

    return (yield from rows())


def region_and_fly(
    beamline: SRXBeamline, region: Mapping[str, Any], *, snake: bool = False
) -> Plan:
    """Map a region that inscan proposes.

    Parameters
    ----------
    beamline
        See `srx_beamline`.
    region
        ``slow_range`` and ``fast_range``: outer edges in um; ``step`` (slow, fast) in um and ``dwell`` in s.
    snake
        Every second row backwards.
    """
    axes: list[tuple[float, float, int]] = []
    for (low, high), step in zip(
        (region["slow_range"], region["fast_range"]), region["step"], strict=True
    ):
        count = max(1, round((high - low) / step))
        half = (high - low) / count / 2
        axes.append((low + half, high - half, count))
    slow, fast = axes
    return (yield from scan_and_fly(beamline, *fast, *slow, region["dwell"], snake=snake))
