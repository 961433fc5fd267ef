"""From options of the command line, and a profile, to what is asked of a file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from inscan.callbacks.lines import EmissionLine
from inscan.callbacks.profile import BeamlineProfile, load_profile
from inscan.callbacks.units import scale
from inscan.service.archive_choice import Naming, parse_crop
from inscan.service.archive_npz import numbers_in
from inscan.service.archive_request import FITS, Asked, Quantity

_METHODS = sorted({name for names in FITS.values() for name in names})


def asked_for(
    *,
    dataset: str | None = None,
    dims: str | None = None,
    elements: str | None = None,
    lines: str | None = None,
    energies: str | None = None,
    energy_units: str = "eV",
    flat: str | None = None,
    dark: str | None = None,
    empty: str | None = None,
    quantity: str | None = None,
    crop: str | None = None,
    live_time: str | None = None,
    i0: str | None = None,
    method: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    profiles: Sequence[str] = (),
    **numbers: Any,
) -> Asked:
    """Read options; what they leave open is taken from the profile, where one is named.

    Parameters
    ----------
    dataset, dims, elements, lines, flat, dark : str or None
        Names with commas between them.
    energies : str or None
        A text file, or numbers with commas between them.
    **numbers
        Fields of `Asked`; None is passed over.

    Raises
    ------
    ValueError
        An option that makes no sense; says which, and what it takes.
    FileNotFoundError
        No such profile.
    """
    if len(profiles) > 1:
        raise ValueError("a file of data is processed with one --profile at most")
    if method is not None and method not in _METHODS:
        raise ValueError(f"no method {method!r}: --method takes {', '.join(_METHODS)}")
    if quantity is not None and quantity not in get_args(Quantity):
        raise ValueError(f"--quantity {quantity!r}: one of {', '.join(get_args(Quantity))}")
    named = Naming(
        dataset=_names(dataset),
        dims=_names(dims),
        flat=_names(flat),
        dark=_names(dark),
        live_time=live_time,
        i0=i0,
        crop=parse_crop(crop),
    )
    given: dict[str, Any] = {key: value for key, value in numbers.items() if value is not None}
    if lines is not None:
        given["lines"] = tuple(EmissionLine.parse(name).name for name in _names(lines))
    if elements is not None:
        given["elements"] = _names(elements)
    if energies is not None:
        given["energies_ev"] = _energies(energies, energy_units)
    if quantity is not None:
        given["quantity"] = quantity
    if method is not None:
        given["method"] = method
    if parameters:
        given["parameters"] = dict(parameters)
    base = _from_profile(load_profile(profiles[0]), given) if profiles else {}
    return Asked(**{**base, **given, "naming": named, "empty": parse_crop(empty)})


def _from_profile(profile: BeamlineProfile, given: Mapping[str, Any]) -> dict[str, Any]:
    """Lines, energy axis, method and standards of a beamline; a profile's data keys mean nothing in a file."""
    found: dict[str, Any] = {}
    if "method" not in given or given["method"] == profile.method.name:
        found |= {
            "method": profile.method.name,
            "parameters": {**profile.method.parameters, **given.get("parameters", {})},
        }
    if profile.xrf is not None:
        wanted = profile.xrf.elements
        found |= {
            "lines": wanted.lines,
            "resolution_ev": wanted.resolution_ev,
            "window_fwhm": wanted.window_fwhm,
        }
        if isinstance(wanted.energy_per_bin_ev, float):
            found["ev_per_bin"] = wanted.energy_per_bin_ev
        if isinstance(wanted.energy_offset_ev, float):
            found["ev_offset"] = wanted.energy_offset_ev
        if profile.xrf.cube is not None:
            cube = profile.xrf.cube
            found |= {"bins": cube.bins, "low_ev": cube.low_ev, "high_ev": cube.high_ev}
    if profile.txm is not None:
        found["pixel_um"] = profile.txm.pixel_size_um
        found["references"] = tuple(
            (one.name, one.energies_ev, one.absorption) for one in profile.references()
        )
    return found


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def _energies(text: str, units: str) -> np.ndarray:
    if units not in ("eV", "keV"):
        raise ValueError(f"--energy-units {units!r}: eV or keV")
    path = Path(text).expanduser()
    if path.is_file():
        values = numbers_in(path)
    else:
        try:
            values = np.array([float(part) for part in _names(text)])
        except ValueError:
            raise ValueError(
                f"--energies {text!r}: neither a text file of energies nor numbers with commas between them"
            ) from None
    values = values * scale(units, "eV")
    if not values.size or not np.isfinite(values).all() or values.min() <= 0:
        raise ValueError(f"--energies {text!r}: expected numbers above 0")
    if values.max() < 100:
        raise ValueError(
            f"--energies: {values.min():g} to {values.max():g} eV is no range of X-rays: --energy-units keV?"
        )
    return values
