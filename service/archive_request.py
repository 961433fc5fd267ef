"""What a person wants of a file of measured data, and what was made of it before any method runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from inscan.callbacks.geometry import GeometryError, ScanGeometry
from inscan.service.archive_choice import Crop, Naming
from inscan.service.archive_types import ArchiveError, Reading

Quantity = Literal["transmission", "density", "counts"]
Kind = Literal["maps", "spectra", "stack"]

FITS: Mapping[Kind, tuple[str, ...]] = {
    "maps": ("n2n", "superres"),
    "spectra": ("n2n", "superres", "spectral"),
    "stack": ("subspace",),
}
"""Which methods take what."""
_STEP_TOLERANCE = 0.3


@dataclass(frozen=True)
class Asked:
    """How a file is processed, on the command line or by a profile.

    Attributes
    ----------
    naming : Naming
        Which data, and their axes.
    method : str or None
        None: the one that fits counts of that kind.
    parameters : mapping
        Keyword arguments of the method.
    lines : tuple of str
        Lines whose maps are taken from spectra.
    elements : tuple of str
        Names of maps along `element`; of maps that have names, a choice of them.
    ev_per_bin, ev_offset : float or None
        Energy axis of spectra: width of a bin, and the centre of bin 0.
    resolution_ev, window_fwhm : float
        Of the detector at 5.9 keV; half width of a line's window.
    incident_energy_ev : float or None
        Scatter is kept out of the background then.
    bins : int
        Most bins of spectra that are kept for spectral; neighbours are added up.
    low_ev, high_ev : float or None
        Range of them.
    energies_ev : ndarray or None
        Of a stack.
    quantity : str or None
        What the values of a stack are, where no flat and no empty part makes transmission of them.
    empty : (row0, row1, col0, col1) or None
        Part of the field without sample.
    flat_factor : float
        Exposure of a frame over that of a flat.
    pixel_um : float or None
    references : tuple of (name, energies_ev, absorption)
    """

    naming: Naming = field(default_factory=Naming)
    method: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    lines: tuple[str, ...] = ()
    elements: tuple[str, ...] = ()
    ev_per_bin: float | None = None
    ev_offset: float | None = None
    resolution_ev: float = 150.0
    window_fwhm: float = 1.0
    incident_energy_ev: float | None = None
    bins: int = 512
    low_ev: float | None = None
    high_ev: float | None = None
    energies_ev: np.ndarray | None = None
    quantity: Quantity | None = None
    empty: Crop | None = None
    flat_factor: float = 1.0
    pixel_um: float | None = None
    references: tuple[tuple[str, np.ndarray, np.ndarray], ...] = ()


@dataclass(frozen=True)
class Prepared:
    """What a method is given.

    Attributes
    ----------
    kind : str
    recipe : str
    arrays, meta : dict
        As an assembler makes them of a run.
    said : tuple of str
        What was taken for what.
    """

    kind: Kind
    recipe: str
    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]
    said: tuple[str, ...]


def method_for(
    kind: Kind, asked: Asked, *, counts: bool, channels: int = 1, values: str = ""
) -> str:
    """The method: as asked for, else the one for counts of that kind.

    Parameters
    ----------
    counts : bool
        Whether the values are whole numbers, none of them negative.
    values : str
        What they are instead, for people.

    Raises
    ------
    ArchiveError
        When the method does not fit, or there is none for such values.
    """
    fits = FITS[kind]
    if asked.method is not None:
        if asked.method not in fits:
            raise ArchiveError(
                f"--method {asked.method} does not take {kind}; these do: {', '.join(fits)}"
                + (" (spectra need --dims with bin)" if asked.method == "spectral" else "")
            )
        return asked.method
    if kind == "stack":
        return "subspace"
    if not counts:
        few = (
            " n2n besides judges by comparing detector elements, and this is only one."
            if channels < 2
            else ""
        )
        raise ArchiveError(
            f"these {kind} are no counts: {values}. They were corrected, divided, fitted or averaged before, and the "
            f"methods here ({', '.join(fits)}) take the noise of counts, so that none is chosen for you.{few} Give the "
            f"counts, or name a method (--method {fits[-1]}) and see what its verdict says."
        )
    if kind == "spectra":
        return "n2n" if asked.lines and channels > 1 else "spectral"
    return "n2n"


def geometry_of(reading: Reading, crop: Crop | None, shape: tuple[int, int]) -> tuple[Any, str]:
    """The raster by the file's positions: (`ScanGeometry.to_dict()` or None, why there is none)."""
    if not {"row", "col"} <= set(reading.positions):
        return None, ""
    ends, units = [], []
    for dim, count, (first, stop) in zip(
        ("row", "col"),
        shape,
        ((crop[0], crop[1]), (crop[2], crop[3])) if crop else ((0, None), (0, None)),
        strict=True,
    ):
        values, unit = reading.positions[dim]
        values = values[first:stop]
        if values.shape != (count,) or not np.isfinite(values).all():
            return None, f"positions of the {dim}s do not fit the map and were left out"
        steps = np.diff(values)
        if count > 1 and np.abs(steps - steps.mean()).max() > _STEP_TOLERANCE * abs(steps.mean()):
            return None, f"positions of the {dim}s are not evenly spaced and were left out"
        ends += [float(values[0]), float(values[-1])]
        units.append(unit)
    try:
        raster = ScanGeometry(shape, "y", "x", *units, *ends, snaking=False)
    except GeometryError as error:
        return None, f"positions were left out: {error}"
    return raster.to_dict(), ""
