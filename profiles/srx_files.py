"""Files, data keys and metadata of fly scans as NSLS-II SRX has them; see `inscan.profiles.srx_documents`."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

__all__ = [
    "BEAM",
    "ENCODERS",
    "NUMBER",
    "SPECTRA",
    "data_key",
    "row_files",
    "row_keys",
    "scan_axes",
    "scan_of",
    "write_file",
]

ENCODERS = {"nano_stage_sx": "enc1", "nano_stage_sy": "enc2", "nano_stage_sz": "enc3"}
"""Encoder inputs of the position capture, by motor; coarse stages have none."""
BEAM = {"i0": 1.0, "im": 0.8, "it": 0.3}
"""Scalers: counts in those of the first."""
SPECTRA = "entry/instrument/detector/data"
NUMBER = {"dtype": "number", "shape": [], "source": "PV:sim", "dtype_numpy": "<f8"}
_CLOCK_HZ = 50e6


def scan_of(
    fast: str,
    slow: str,
    ends: tuple[tuple[float, float], tuple[float, float]],
    shape: tuple[int, int],
    dwell: float,
    *,
    snake: bool,
    energy_kev: float,
    sample: str,
) -> dict[str, Any]:
    """Return what the start document of a fly scan says of it in ``scan``: fast axis first.

    Parameters
    ----------
    fast, slow
        Motors.
    ends
        (first, last) of the slow and of the fast axis, um.
    shape
        (row, col).
    dwell
        Dwell per pixel, s.
    snake, energy_kev, sample
        See `fly` and `SRXMap`.
    """
    (rows, cols), (slow_ends, fast_ends) = shape, ends
    return scan_axes(fast, slow, shape, snake, energy_kev, sample) | {
        "type": "XRF_FLY",
        "scan_input": [*fast_ends, cols, *slow_ends, rows, dwell],
        "detectors": ["nanoZebra", "sclr1", "xs"],
        "dwell": dwell,
    }


def scan_axes(
    fast: str, slow: str, shape: Sequence[int], snake: bool, energy_kev: float, sample: str
) -> dict[str, Any]:
    """Return what the start documents of all scans say of their axes in ``scan``; parameters as for `scan_of`."""
    rows, cols = shape
    return {
        "fast_axis": {"motor_name": fast, "units": "um"},
        "slow_axis": {"motor_name": slow, "units": "um"},
        "snake": 1 if snake else 0,
        "shape": [cols, rows],
        "theta": {"val": 0.0, "units": "mdeg"},
        "delta": {"val": 0.0, "units": "um"},
        "energy": energy_kev,
        "sample_name": sample,
    }


def row_files(
    positions: Mapping[str, np.ndarray], spectra: np.ndarray, i0: np.ndarray, dwell: float
) -> dict[str, dict[str, np.ndarray]]:
    """Return what the files of a row hold: spec -> dataset -> values in the order of time.

    Parameters
    ----------
    positions
        Motor -> (pixel,), um; motors without an encoder leave no trace.
    spectra
        (pixel, channel, bin), counts.
    i0
        (pixel,), counts of the beam monitor.
    dwell
        Dwell per pixel, s.
    """
    count = len(i0)
    encoders = {enc: positions.get(motor, np.zeros(count)) for motor, enc in ENCODERS.items()}
    scaler = {name: i0 * part for name, part in BEAM.items()}
    return {
        "ZEBRA_HDF51": {"zebra_time": np.arange(count) * dwell, **encoders},
        "SIS_HDF51": {"sis_time": np.full(count, dwell * _CLOCK_HZ), **scaler},
        "XSP3_FLY": {SPECTRA: spectra},
    }


def data_key(dataset: str, spectra: str) -> str:
    """Return the data key of a dataset of `row_files`; ``spectra`` is that of the spectra."""
    return {"sis_time": "i0_time", SPECTRA: spectra}.get(dataset, dataset)


def row_keys(key: str, cols: int, channels: int, bins: int) -> dict[str, Any]:
    """Return the data keys of a row of a fly scan, as its descriptor has them; ``key`` is that of the spectra."""
    external = {"source": "FileStore::sim", "dtype": "array", "external": "FileStore:"}
    names = ("zebra_time", "enc1", "enc2", "enc3", "i0_time", "i0", "im", "it")
    keys = {name: external | {"shape": [cols], "dtype_str": "<f4"} for name in names}
    keys[key] = external | {"shape": [cols, channels, bins], "dtype_str": "<u4"}
    for channel in range(1, channels + 1):
        keys[f"xs_channel{channel:02d}_mcaroi01_total_rbv"] = dict(NUMBER)
    return keys


def write_file(folder: Path, datasets: Mapping[str, np.ndarray]) -> Path:
    """Write a new file; scalers and encoders as 32-bit floats, as the beamline does. Return where it is."""
    path = folder / f"{uuid.uuid4().hex}.h5"
    with h5py.File(path, "x") as file:
        for name, values in datasets.items():
            file[name] = values if values.ndim > 1 else values.astype(np.float32)
    return path.resolve()
