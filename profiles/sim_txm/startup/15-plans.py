# ruff: noqa: F821 - names come from earlier files of this folder
"""Plans for users: one energy stack over the Ni K edge."""

from inscan.profiles.samples import ni_energies_ev
from inscan.profiles.txm_plans import xanes_scan


def xanes(
    energies_ev: list = [],  # noqa: B006 - never changed; queueserver needs plain defaults
    frames_per_energy: int = 2,
    exposure: float = 0.0,
    order: list = ["dark", "flat", "primary"],  # noqa: B006
    md=None,
):
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
