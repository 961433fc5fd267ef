"""Conversion between the few units that motors and monochromators report."""

from __future__ import annotations

__all__ = ["convert", "scale"]

_METRES = {
    "m": 1.0,
    "cm": 1e-2,
    "mm": 1e-3,
    "um": 1e-6,
    "µm": 1e-6,
    "μm": 1e-6,
    "micron": 1e-6,
    "microns": 1e-6,
    "micrometer": 1e-6,
    "nm": 1e-9,
}
_ELECTRONVOLTS = {"eV": 1.0, "ev": 1.0, "keV": 1e3, "kev": 1e3, "KeV": 1e3, "MeV": 1e6}


def scale(source: str, target: str) -> float:
    """Return the factor that turns a number in ``source`` units into ``target`` units.

    Raises
    ------
    ValueError
        The units are different and not both lengths or both energies.
    """
    if source == target:
        return 1.0
    for family in (_METRES, _ELECTRONVOLTS):
        if source in family and target in family:
            # A ratio of powers of ten, rounded so that mm to um is 1000 and not 999.9999999999999.
            return float(f"{family[source] / family[target]:.12g}")
    raise ValueError(
        f"cannot convert {source!r} to {target!r}: known are lengths {', '.join(_METRES)}"
        f" and energies eV, keV, MeV"
    )


def convert(value: float, source: str, target: str) -> float:
    """Return ``value`` in other units; see `scale`."""
    return value * scale(source, target)
