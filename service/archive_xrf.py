"""Fluorescence of a file: maps of elements, and spectra, as a run's assembler would hand them on."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from inscan.callbacks.cube import cube_axis
from inscan.callbacks.lines import EmissionLine
from inscan.callbacks.windows import SpectrumWindows, spectrum_windows
from inscan.callbacks.xrf_sections import Cube
from inscan.profiles.measured import line_name
from inscan.service.archive_choice import aside_of, values_of
from inscan.service.archive_files import Archive
from inscan.service.archive_request import Asked, Prepared, geometry_of, method_for
from inscan.service.archive_types import ArchiveError, Aside, Reading

_NOISE_PEAK_EV = 120.0
"""Below there is nothing but a detector's electronic noise, the peak at zero energy."""
_ALL = "all bins"


def prepare_fluorescence(archive: Archive, reading: Reading, asked: Asked) -> Prepared:
    """Read maps or spectra and make the arrays of a method.

    Raises
    ------
    ArchiveError
        When something is missing that nobody has said; names the option.
    """
    values, dims = values_of(reading, asked.naming.crop)
    spectra = "bin" in dims
    wanted = ("channel", "row", "col", "bin") if spectra else ("channel", "element", "row", "col")
    values = _ordered(values, dims, wanted)
    said = list(reading.said)
    good = _good(values, spectra)
    channels, (rows, cols) = values.shape[0], good.shape[1:]
    whole = values.dtype.kind in "bu" or bool(
        (np.rint(values[np.isfinite(values)]) == values[np.isfinite(values)]).all()
    )
    text = _described(values, whole, good)
    kind = "spectra" if spectra else "maps"
    recipe = method_for(kind, asked, counts=whole, channels=channels, values=text)
    warnings = []
    if not whole:
        warnings.append(f"no counts: {text}")
    exposure, told = _exposure(archive, reading, asked, (channels, rows, cols))
    said += told
    if not told:
        warnings.append("neither live time nor I0 is known: one pixel is one unit of exposure")
    measured = np.asarray(good.all(axis=0) & (exposure > 0).all(axis=0))
    if not measured.any():
        raise ArchiveError(
            f"{archive.path}: {reading.name} holds no pixel that was measured: {text}"
        )
    if not measured.all():
        said.append(
            f"{int((~measured).sum())} of {rows * cols} pixels are masked: negative or not finite"
        )
    arrays: dict[str, np.ndarray] = {"exposure": exposure, "measured": measured}
    meta: dict[str, Any] = {"channels": list(range(1, channels + 1)), "source": kind}
    if spectra:
        clean = values if measured.all() else np.where(measured[None, ..., None], values, 0)
        more, about, told = _from_spectra(clean, reading, asked, recipe)
        said += told
    else:
        more, about, told = _from_maps(values, measured, reading, asked)
        said += told
    raster, why = geometry_of(reading, asked.naming.crop, (rows, cols))
    if why:
        said.append(why)
    meta |= about | {
        "technique": "xrf",
        "geometry": raster,
        "pixel_size_um": asked.pixel_um,
        "units": "counts",
        "quantity": "window sums, not concentrations" if whole else "as stored, no counts",
        "warnings": warnings,
        "rows_done": rows,
    }
    return Prepared(kind, recipe, arrays | more, meta, tuple(said))


def _ordered(values: np.ndarray, dims: tuple[str, ...], wanted: tuple[str, ...]) -> np.ndarray:
    """The axes in the order wanted; those that the data lack have the length 1."""
    foreign = [dim for dim in dims if dim not in wanted]
    if foreign or not {"row", "col"} & set(dims):
        raise ArchiveError(
            f"axes {', '.join(dims)} make neither maps (channel, element, row, col) nor spectra (channel, row, col, "
            "bin)"
        )
    present = [dim for dim in wanted if dim in dims]
    values = values.transpose([dims.index(dim) for dim in present])
    return values[tuple(slice(None) if dim in dims else None for dim in wanted)]


def _good(values: np.ndarray, spectra: bool) -> np.ndarray:
    """(channel, row, col): nothing negative, nothing infinite."""
    if values.dtype.kind in "bu":
        shape = values.shape[:3] if spectra else (values.shape[0], *values.shape[2:])
        return np.ones(shape, dtype=bool)
    fine = np.isfinite(values) & (values >= 0)
    return np.asarray(fine.all(axis=3 if spectra else 1))


def _described(values: np.ndarray, whole: bool, good: np.ndarray) -> str:
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if not finite.size:
        return "not one finite value"
    what = "whole numbers" if whole else "not whole numbers"
    negative = ", some negative" if not good.all() and finite.min() < 0 else ""
    return f"{what}, {finite.min():.4g} to {finite.max():.4g}{negative}"


def _exposure(
    archive: Archive, reading: Reading, asked: Asked, shape: tuple[int, int, int]
) -> tuple[np.ndarray, list[str]]:
    """(channel, row, col): live time and I0 over its median, as far as they are known."""
    exposure, said = np.ones(shape, dtype=np.float32), []
    named = asked.naming
    for what, aside in (
        (
            "live time",
            aside_of(archive, reading, named.live_time, "--live-time") or reading.live_time,
        ),
        ("I0", aside_of(archive, reading, named.i0, "--i0") or reading.i0),
    ):
        if aside is None:
            continue
        values = _aside_values(aside, reading, asked)
        if what == "I0":
            values = values / np.median(values[values > 0]) if (values > 0).any() else values
        exposure = exposure * np.where(np.isfinite(values), values, 0).astype(np.float32)
        said.append(f"{what}: {aside.data.name} ({', '.join(aside.dims)})")
    return np.ascontiguousarray(exposure), said


def _aside_values(aside: Aside, reading: Reading, asked: Asked) -> np.ndarray:
    crop = asked.naming.crop
    values = np.asarray(aside.data.read(()), dtype=np.float64)
    if crop is not None:
        cuts = {"row": slice(crop[0], crop[1]), "col": slice(crop[2], crop[3])}
        values = values[tuple(cuts.get(dim, slice(None)) for dim in aside.dims)]
    order = [dim for dim in ("channel", "row", "col") if dim in aside.dims]
    values = values.transpose([aside.dims.index(dim) for dim in order])
    return values[tuple(slice(None) if dim in order else None for dim in ("channel", "row", "col"))]


def _from_maps(
    values: np.ndarray, measured: np.ndarray, reading: Reading, asked: Asked
) -> tuple[dict[str, np.ndarray], dict[str, Any], list[str]]:
    count = values.shape[1]
    names, said = list(reading.elements), []
    index = list(range(count))
    if len(names) == count:
        if asked.elements:
            index = [_position(name, names) for name in asked.elements]
        else:
            index = [i for i, name in enumerate(names) if line_name(name) is not None] or index
            if len(index) < count:
                left = [name for i, name in enumerate(names) if i not in index]
                said.append(f"maps left out, no element's name: {', '.join(left[:10])}")
    elif len(asked.elements) == count:
        names = list(asked.elements)
    else:
        raise ArchiveError(
            f"the data hold {count} maps without names: name them with --elements Fe,Ca,..."
        )
    kept = [line_name(names[i]) or names[i] for i in index]
    if len(set(kept)) < len(kept):
        kept = [names[i] for i in index]
    counts = np.where(measured, values[:, index], 0).astype(np.float32)
    return {"counts": counts}, {"elements": kept}, said


def _position(wanted: str, names: Sequence[str]) -> int:
    for i, name in enumerate(names):
        if wanted in (name, line_name(name)) or line_name(wanted) == line_name(name) is not None:
            return i
    raise ArchiveError(f"--elements: no map {wanted!r}; there are {', '.join(names[:40])}")


def _from_spectra(
    spectra: np.ndarray, reading: Reading, asked: Asked, recipe: str
) -> tuple[dict[str, np.ndarray], dict[str, Any], list[str]]:
    channels, rows, cols, bins = spectra.shape
    offset, step, said = _axis(reading, asked, recipe)
    if not asked.lines and recipe != "spectral":
        raise ArchiveError(
            f"{recipe} takes maps: name the lines whose windows are summed with --lines Fe_K,Ca_K,..."
        )
    windows = _windows(asked, bins, offset, step or 1.0)
    arrays: dict[str, np.ndarray] = {}
    about: dict[str, Any] = {
        "elements": [EmissionLine.parse(name).name for name in asked.lines] or [_ALL],
        "windows_ev": [list(pair) for pair in windows.windows_ev],
    }
    if asked.lines:
        sums = windows.sums(spectra.transpose(1, 2, 0, 3).reshape(-1, channels, bins))
        counts, background, variance = (
            np.ascontiguousarray(
                one.reshape(rows, cols, channels, -1).transpose(2, 3, 0, 1), dtype=np.float32
            )
            for one in sums
        )
        arrays["counts"] = counts
        if windows.has_background:
            arrays |= {"background": background, "background_variance": variance}
        ranges = ", ".join(
            f"{name} {low:.0f} to {high:.0f} eV"
            for name, (low, high) in zip(about["elements"], windows.windows_ev, strict=True)
        )
        said.append(f"windows: {ranges}")
        if windows.without_background:
            said.append(
                f"background unknown, no room beside: {', '.join(windows.without_background)}"
            )
    else:
        arrays["counts"] = spectra.sum(axis=3, dtype=np.float64)[:, None].astype(np.float32)
    if recipe == "spectral":
        more, extra, told = _cube(spectra, windows, asked, offset, step)
        arrays |= more
        about |= extra
        said += told
    return arrays, about, said


def _axis(reading: Reading, asked: Asked, recipe: str) -> tuple[float, float | None, list[str]]:
    """Energy of bin 0 and width of a bin in eV; a width of None: unknown."""
    if asked.ev_per_bin is not None:
        offset = asked.ev_offset or 0.0
        return (
            offset,
            asked.ev_per_bin,
            [f"energy of bin i: {offset:g} + {asked.ev_per_bin:g} i eV, as named"],
        )
    if reading.bin_ev is not None:
        return reading.bin_ev[0], reading.bin_ev[1], []
    if asked.lines or asked.low_ev or asked.high_ev:
        raise ArchiveError(
            f"{reading.name}: the energies of the bins are not in the file: --ev-per-bin 10 (and --ev-offset where bin "
            "0 is not at 0 eV)"
        )
    return (
        0.0,
        None,
        ["the energies of the bins are unknown: bins are numbered (--ev-per-bin names them)"],
    )


def _windows(asked: Asked, bins: int, offset: float, step: float) -> SpectrumWindows:
    try:
        return spectrum_windows(
            [EmissionLine.parse(name) for name in asked.lines],
            n_bins=bins,
            ev_per_bin=step,
            offset_ev=offset,
            resolution_ev=asked.resolution_ev,
            half_width_fwhm=asked.window_fwhm,
            incident_energy_ev=asked.incident_energy_ev,
            background=True,
        )
    except ValueError as error:
        raise ArchiveError(f"--lines: {error}") from error


def _cube(
    spectra: np.ndarray, windows: SpectrumWindows, asked: Asked, offset: float, step: float | None
) -> tuple[dict[str, np.ndarray], Mapping[str, Any], list[str]]:
    said, low = [], asked.low_ev
    if low is None and step is not None and offset < _NOISE_PEAK_EV:
        low = _NOISE_PEAK_EV
        said.append(f"bins below {low:g} eV left out, they hold electronic noise (--low-ev)")
    if step is None:
        low = None
    bins = spectra.shape[3]
    wanted = Cube(bins=min(1024, max(8, asked.bins)), low_ev=low or 0.0, high_ev=asked.high_ev)
    try:
        axis = cube_axis(
            wanted,
            windows,
            n_bins=bins,
            ev_per_bin=step or 1.0,
            offset_ev=offset,
            incident_energy_ev=asked.incident_energy_ev,
        )
    except ValueError as error:
        raise ArchiveError(f"--low-ev, --high-ev: {error}") from error
    if axis.width > 1:
        said.append(f"{axis.width} neighbouring bins added up: {axis.bins} of {bins} (--bins)")
    weights = axis.line_weights if asked.lines else np.ones((1, axis.bins))
    about: dict[str, Any] = {"line_weights": weights.tolist()}
    if step is not None:
        about["bin_energies_ev"] = axis.energies_ev.tolist()
    return {"cube": axis.sums(spectra)}, about, said
