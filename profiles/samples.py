"""Samples with known truth: what networks train on and what simulated beamlines hold.

The families behind `training_maps` and the built-in samples are kept apart: no network has seen
anything like the samples that demo and evaluation use.
"""

from __future__ import annotations

from typing import get_args

from inscan.profiles.measured import load_measured
from inscan.profiles.sample_families import training_maps
from inscan.profiles.xanes_samples import (
    NI_EDGE_EV,
    NI_STATES,
    Chemistry,
    Spectrum,
    XANESSample,
    battery_xanes,
    ni_energies_ev,
)
from inscan.profiles.xrf_samples import (
    Inclusion,
    XRFSample,
    battery_particles,
    cells,
    siemens_star,
)

__all__ = [
    "NI_EDGE_EV",
    "NI_STATES",
    "Chemistry",
    "Inclusion",
    "Spectrum",
    "XANESSample",
    "XRFSample",
    "battery_particles",
    "battery_xanes",
    "cells",
    "load_measured",
    "ni_energies_ev",
    "siemens_star",
    "training_maps",
    "xanes_sample",
    "xrf_sample",
]


def xrf_sample(name: str, *, seed: int = 0) -> XRFSample:
    """Return a built-in sample (cells, siemens_star, battery_particles), or read a measured one.

    Anything with a file's ending or a folder in its name is a file, see `load_measured`.

    Raises
    ------
    ValueError
        No such sample; or the file is not one.
    FileNotFoundError
        No such file.
    """
    built_in = {
        "cells": cells,
        "siemens_star": siemens_star,
        "battery_particles": battery_particles,
    }
    if name in built_in:
        return built_in[name](seed)
    if "." in name or "/" in name:
        return load_measured(name)
    raise ValueError(
        f"no sample {name!r}: expected {', '.join(built_in)}, or a .npz, .h5 or .tif file"
    )


def xanes_sample(name: str, *, seed: int = 0, size: int = 256) -> XANESSample:
    """Return battery particles by name: battery_smooth, battery_fine or battery_random.

    Raises
    ------
    ValueError
        No such sample.
    """
    for chemistry in get_args(Chemistry):
        if name == f"battery_{chemistry}":
            return battery_xanes(seed, chemistry=chemistry, size=size)
    known = ", ".join(f"battery_{chemistry}" for chemistry in get_args(Chemistry))
    raise ValueError(f"no sample {name!r} for an energy stack: expected one of {known}")
