"""The simulated beamlines, put together; and their parameters from the environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ophyd import Signal

from inscan.profiles.beam import Beam, Light, Scaler
from inscan.profiles.samples import XANESSample, XRFSample
from inscan.profiles.stage_drift import StageDrift
from inscan.profiles.stages import Stage
from inscan.profiles.txm_camera import TXMCamera
from inscan.profiles.txm_plans import Microscope
from inscan.profiles.xrf_counting import CountingChain
from inscan.profiles.xrf_response import build_response
from inscan.profiles.xspress3 import Xspress3
from inscan.profiles.xspress3_fly import Xspress3Fly

__all__ = ["Parameters", "SimTXM", "SimXRF", "sim_txm", "sim_xrf"]


@dataclass(frozen=True)
class Parameters:
    """What a simulated beamline is told through environment variables.

    Attributes
    ----------
    sample
        ``INSCAN_SIM_SAMPLE``: name of a built-in sample, or a file of measured maps. Empty: the
        beamline's own default.
    seed
        ``INSCAN_SIM_SEED``: sample, noise and beam.
    channels
        ``INSCAN_SIM_CHANNELS``: detector channels, 1 to 16.
    dwell
        ``INSCAN_SIM_DWELL``: default dwell (exposure) time in s.
    time_scale
        ``INSCAN_SIM_TIME_SCALE``: real seconds per simulated second. 0: as fast as it goes.
    spectra
        ``INSCAN_SIM_SPECTRA``: 1 records full spectra, 0 window sums only.
    size
        ``INSCAN_SIM_SIZE``: camera rows and columns.
    drift
        ``INSCAN_SIM_DRIFT``: how the sample moves on its stage, ``20 um/h`` of exposure, or ``0.6 um`` once after
        the first run; the seed decides where to. Empty: it stays.
    data_dir
        ``INSCAN_SIM_DATA``: folder of detector files; default ``data`` in the state folder.
    state_dir
        ``INSCAN_STATE``: state folder; default ``$XDG_STATE_HOME/inscan``.
    """

    sample: str
    seed: int
    channels: int
    dwell: float
    time_scale: float
    spectra: bool
    size: int
    drift: str
    data_dir: Path
    state_dir: Path

    @classmethod
    def read(
        cls, environment: Mapping[str, str] | None = None, *, dwell: float = 0.02
    ) -> Parameters:
        """Read the environment; ``dwell`` is its default.

        Raises
        ------
        ValueError
            A value that is no number, or out of range; names the variable.
        """
        env = os.environ if environment is None else environment

        def number(name: str, default: float, kind: Callable[[str], Any], low: float, high: float):
            text = env.get(name, str(default))
            try:
                value = kind(text)
            except ValueError as error:
                raise ValueError(f"{name}={text!r}: expected {kind.__name__}") from error
            if not low <= value <= high:
                raise ValueError(f"{name}={text}: expected {low} to {high}")
            return value

        drift = env.get("INSCAN_SIM_DRIFT", "")
        try:
            StageDrift.parse(drift, 0)
        except ValueError as error:
            raise ValueError(f"INSCAN_SIM_DRIFT={error}") from error
        home = Path(env.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        state = Path(env.get("INSCAN_STATE") or home / "inscan")
        return cls(
            sample=env.get("INSCAN_SIM_SAMPLE", ""),
            seed=number("INSCAN_SIM_SEED", 0, int, 0, 2**31),
            channels=number("INSCAN_SIM_CHANNELS", 4, int, 1, 16),
            dwell=number("INSCAN_SIM_DWELL", dwell, float, 1e-6, 3600),
            time_scale=number("INSCAN_SIM_TIME_SCALE", 1.0, float, 0, 100),
            spectra=bool(number("INSCAN_SIM_SPECTRA", 0, int, 0, 1)),
            size=number("INSCAN_SIM_SIZE", 256, int, 16, 4096),
            drift=drift,
            data_dir=Path(env.get("INSCAN_SIM_DATA") or state / "data"),
            state_dir=state,
        )


@dataclass(frozen=True)
class SimXRF:
    """Devices of the simulated fluorescence microscope; the sample is behind them, unseen."""

    sample_x: Stage
    sample_y: Stage
    xs: Xspress3
    xs_fly: Xspress3Fly
    sclr: Scaler
    shutter: Signal
    ring_current: Signal


def sim_xrf(
    sample: XRFSample,
    data_dir: Path,
    *,
    channels: int = 4,
    seed: int = 0,
    time_scale: float = 1.0,
    dwell: float = 0.02,
    bins: int = 4096,
    energy_per_bin: float = 10.0,
    incident_kev: float = 12.0,
    scatter_rate: float = 3000.0,
    dead_time: float = 1.5e-6,
    probe_fwhm: float = 0.2,
    limits: float = 500.0,
    drift: StageDrift | None = None,
) -> SimXRF:
    """Build the fluorescence microscope.

    Parameters
    ----------
    sample
        What is at the focus.
    data_dir
        Folder of the fly scans' files.
    channels, bins, energy_per_bin, dead_time
        Detector: 1 to 16 channels, spectrum bins and their width in eV, s per photon.
    seed
        Same seed and same plans, same data.
    time_scale
        Real seconds per simulated second.
    dwell
        Default dwell, s.
    incident_kev, scatter_rate, probe_fwhm
        Beam energy, scattered counts/s in all channels, beam size in um.
    limits
        Soft limits of both motors are +- this, um.
    drift
        How the sample moves on its stage; None: it stays.
    """
    response = build_response(
        sample.elements,
        incident_ev=1000 * incident_kev,
        bins=bins,
        energy_per_bin=energy_per_bin,
        scatter_rate=scatter_rate,
    )
    chain = CountingChain(
        sample, response, channels=channels, seed=seed, dead_time=dead_time, probe_fwhm=probe_fwhm
    )
    shutter = Signal(name="shutter", value=1)
    ring_current = Signal(name="ring_current", value=400.0)
    beam = Beam(seed, light=Light(shutter, ring_current))
    sample_x = Stage("sample_x", "um", (-limits, limits))
    sample_y = Stage("sample_y", "um", (-limits, limits))
    gate = Signal(name="xs_dwell", value=dwell)
    sclr = Scaler(beam, gate, seed=seed)
    xs = Xspress3(
        chain,
        beam,
        sample_y,
        sample_x,
        gate,
        incident_kev,
        time_scale=time_scale,
        name="xs",
        drift=drift,
    )
    xs_fly = Xspress3Fly(
        chain,
        beam,
        sclr,
        (sample_y.name, sample_x.name),
        gate,
        incident_kev,
        data_dir,
        time_scale=time_scale,
        seed=seed,
        drift=drift,
    )
    return SimXRF(sample_x, sample_y, xs, xs_fly, sclr, shutter, ring_current)


@dataclass(frozen=True)
class SimTXM:
    """Devices of the simulated transmission microscope."""

    mono_energy: Stage
    zps_sx: Stage
    zps_sy: Stage
    shutter: Signal
    txm: TXMCamera
    microscope: Microscope


def sim_txm(sample: XANESSample, data_dir: Path, **camera: Any) -> SimTXM:
    """Build the transmission microscope.

    Parameters
    ----------
    sample
        What is in the beam.
    data_dir
        Folder of the camera's files.
    **camera
        Further parameters of `TXMCamera`: seed, flux, jitter, time_scale, ...
    """
    mono_energy = Stage("mono_energy", "keV", (5.0, 12.0), 8.333)
    out = 1.5 * sample.pixel_size * max(sample.shape)
    zps_sx = Stage("zps_sx", "um", (-2 * out, 2 * out))
    zps_sy = Stage("zps_sy", "um", (-2 * out, 2 * out))
    shutter = Signal(name="shutter", value=0)
    txm = TXMCamera(sample, mono_energy, zps_sx, zps_sy, shutter, data_dir, **camera)
    microscope = Microscope(txm, mono_energy, zps_sx, zps_sy, shutter, out)
    return SimTXM(mono_energy, zps_sx, zps_sy, shutter, txm, microscope)
