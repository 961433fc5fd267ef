# ruff: noqa: F821 - names come from earlier files of this folder
"""Plans for users: one energy stack over the Ni K edge, one of few energies, and one of those that are added."""

from typing import Any

from bluesky.utils import MsgGenerator

from inscan.profiles.samples import ni_energies_ev
from inscan.profiles.txm_plans import xanes_scan


def xanes(
    energies_ev: list[float] = [],  # noqa: B006 - never changed; queueserver needs plain defaults
    frames_per_energy: int = 2,
    exposure: float = 0.0,
    order: list[str] = ["dark", "flat", "primary"],  # noqa: B006
    md: dict[str, Any] | None = None,
) -> MsgGenerator:
    """Take dark, flat and primary frames at each energy.

    Parameters
    ----------
    energies_ev
        Energies, eV. Empty: 61 over the Ni K edge.
    frames_per_energy
        Frames per event.
    exposure
        Time per frame, s. 0: the default of this beamline.
    order
        Order of the three streams.
    md
        Added to the start document.
    """
    yield from xanes_scan(
        microscope,
        energies_ev or [float(energy) for energy in ni_energies_ev()],
        frames_per_energy=frames_per_energy,
        exposure=exposure or parameters.dwell,
        order=order,
        md={"sample": {"name": sample_name}, **(md or {})},
    )


def survey(
    count: int = 12,
    frames_per_energy: int = 2,
    exposure: float = 0.0,
    md: dict[str, Any] | None = None,
) -> MsgGenerator:
    """Take a stack of few energies.

    Parameters
    ----------
    count
        Number of energies, 12 or more, half of them at the edge.
    frames_per_energy, exposure, md
        As for `xanes`.
    """
    energies = [float(energy) for energy in ni_energies_ev(count)]
    yield from xanes(energies, frames_per_energy, exposure, md={"purpose": "survey", **(md or {})})


def more_energies(
    energies_ev: list[float],
    proposal: dict[str, Any] = {},  # noqa: B006 - never changed; queueserver needs plain defaults
    frames_per_energy: int = 2,
    exposure: float = 0.0,
    md: dict[str, Any] | None = None,
) -> MsgGenerator:
    """Take energies that a survey lacks, at the same place.

    Parameters
    ----------
    energies_ev
        Energies, eV.
    proposal
        Where the exposure comes from unless it is given: its ``exposure_factor`` times the default.
    frames_per_energy, exposure, md
        As for `xanes`.
    """
    asked = parameters.dwell * float(proposal.get("exposure_factor") or 1.0)
    yield from xanes(
        energies_ev, frames_per_energy, exposure or asked, md={"purpose": "fine", **(md or {})}
    )
