"""Measured maps as samples for the simulated beamline: ``.npz``, ``.h5`` and ``.tif`` files."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from inscan.profiles.xrf_samples import XRFSample

__all__ = ["line_name", "load_measured", "page_names"]

_SYMBOLS: tuple[str, ...] = tuple(
    (
        "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br"
        " Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho"
        " Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U"
    ).split()
)
# Up to here the K lines of an element are below the usual incident energies of a microprobe.
_LAST_K = _SYMBOLS.index("Zr")
# Lighter elements do not get through air and window.
_FIRST = _SYMBOLS.index("Na")
_NAME = re.compile(r"([A-Z][a-z]?)(?:[ _-]?([KLM])(?:[ _-]?([abg]|alpha|beta)\d*)?)?(?:[ _-]\d+)?")
# A TIFF file's own name may say which element it is: zagami_Fe.tif.
_WORD = re.compile(r"[A-Za-z0-9]+(?:_[KLM][ab]?\d?)?$")

_Found = dict[str, np.ndarray]


def line_name(text: str) -> str | None:
    """Return the emission line that a map's name means, None when it means no element.

    ``Fe``, ``Fe_Ka``, ``FeKa1`` and ``Fe_5`` are ``Fe_K``; ``Pb`` is ``Pb_L``; ``Fe_Kb`` stays.
    """
    match = _NAME.fullmatch(text.strip())
    if match is None or match[1] not in _SYMBOLS:
        return None
    number = _SYMBOLS.index(match[1])
    if number < _FIRST:
        return None
    shell = match[2] or ("K" if number <= _LAST_K else "L")
    group = (match[3] or "a")[0]
    return f"{match[1]}_{shell}" + ("" if group == "a" else group)


def load_measured(path: str | Path, *, width: float = 40.0, peak_rate: float = 3000.0) -> XRFSample:
    """Read element maps from a file.

    Every two-dimensional array whose name means an element is a map: arrays of an ``.npz``,
    datasets of an ``.h5``, pages of a ``.tif`` (named by page name, ImageJ labels, or for a single
    page by the end of the file's name). Others are left out and listed in ``skipped``.

    Each map is scaled by itself, because measured maps seldom share units: its 99.9th percentile
    becomes ``peak_rate``. Negative and undefined values become 0.

    Parameters
    ----------
    path
        File.
    width
        Length of the longer side in um; the field is centred at (0, 0).
    peak_rate
        Counts/s.

    Returns
    -------
    XRFSample
        Without known inclusions; ``name`` is the file's, without its ending.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        Another kind of file, a broken one, no map in it, or maps of different sizes.
    """
    path = Path(path)
    readers: dict[str, Callable[[Path], tuple[_Found, list[str]]]] = {
        ".npz": _npz,
        ".h5": _hdf5,
        ".hdf5": _hdf5,
        ".tif": _tiff,
        ".tiff": _tiff,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"sample file {path}: expected one of {', '.join(readers)}")
    if not path.is_file():
        raise FileNotFoundError(f"sample file {path}: no such file")
    found, skipped = reader(path)
    maps: dict[str, np.ndarray] = {}
    for name, values in found.items():
        line = line_name(name)
        if line is None:
            skipped.append(f"{name}: no element's name")
        elif line in maps:
            skipped.append(f"{name}: there is another map of {line}")
        elif not np.nanmax(np.where(np.isfinite(values), values, 0), initial=0) > 0:
            skipped.append(f"{name}: nothing above zero")
        else:
            maps[line] = values
    if not maps:
        seen = "; ".join(skipped) or "nothing at all"
        raise ValueError(
            f"sample file {path} has no element map. Expected 2-D arrays named like Fe, Fe_K or"
            f" Pb_L; found: {seen}"
        )
    shapes = {line: values.shape for line, values in maps.items()}
    if len(set(shapes.values())) > 1 or min(next(iter(shapes.values()))) < 2:
        raise ValueError(
            f"sample file {path}: maps must have one size, 2 x 2 or more; got {shapes}"
        )
    stack = np.stack([_rates(values, peak_rate) for values in maps.values()])
    rows, cols = stack.shape[1:]
    pixel = width / max(rows, cols)
    origin = (-(rows - 1) / 2 * pixel, -(cols - 1) / 2 * pixel)
    return XRFSample(path.stem, tuple(maps), stack, pixel, origin, (), tuple(skipped))


def _rates(values: np.ndarray, peak_rate: float) -> np.ndarray:
    clean = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0).clip(0)
    top = np.percentile(clean, 99.9)
    return (clean * (peak_rate / (top if top > 0 else clean.max()))).astype(np.float32)


def _take(name: str, values: np.ndarray, found: _Found, skipped: list[str]) -> None:
    if values.ndim != 2 or values.dtype.kind not in "uif":
        skipped.append(f"{name}: {values.dtype} of shape {values.shape}")
    else:
        found[name] = values


def _npz(path: Path) -> tuple[_Found, list[str]]:
    found: _Found = {}
    skipped: list[str] = []
    try:
        with np.load(path, allow_pickle=False) as archive:
            for name in archive.files:
                try:
                    _take(name, archive[name], found, skipped)
                except ValueError as error:
                    # Python objects in one array do not spoil the others.
                    skipped.append(f"{name}: {error}")
    except (BadZipFile, ValueError, OSError, EOFError) as error:
        raise ValueError(f"sample file {path} is not a readable .npz: {error}") from error
    return found, skipped


def _hdf5(path: Path) -> tuple[_Found, list[str]]:
    # Only here: the samples themselves need numpy and scipy alone.
    import h5py

    found: _Found = {}
    skipped: list[str] = []

    def visit(name: str, item: object) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        short = name.rsplit("/", 1)[-1]
        if item.ndim != 2 or item.dtype.kind not in "uif":
            skipped.append(f"{name}: {item.dtype} of shape {item.shape}")
        elif short in found:
            skipped.append(f"{name}: there is another dataset {short}")
        else:
            _take(short, item[...], found, skipped)

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except OSError as error:
        raise ValueError(f"sample file {path} is not a readable HDF5 file: {error}") from error
    return found, skipped


def _tiff(path: Path) -> tuple[_Found, list[str]]:
    import tifffile

    found: _Found = {}
    skipped: list[str] = []
    try:
        with tifffile.TiffFile(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata do not matter here
            for number, (page, name) in enumerate(
                zip(file.pages, page_names(file, path), strict=True)
            ):
                if name in found:
                    skipped.append(f"page {number}: there is another page {name}")
                else:
                    _take(name, np.asarray(page.asarray()), found, skipped)
    except (tifffile.TiffFileError, OSError, ValueError) as error:
        raise ValueError(f"sample file {path} is not a readable TIFF file: {error}") from error
    return found, skipped


def page_names(file: Any, path: Path) -> list[str]:
    """Return what the pages of an open TIFF file are called.

    Parameters
    ----------
    file
        `tifffile.TiffFile`.
    path
        Its name may say what a single page is.
    """
    labels = (file.imagej_metadata or {}).get("Labels") or []
    pages = list(file.pages)
    only = path if len(pages) == 1 else None
    return [_page_name(page, labels, number, only) for number, page in enumerate(pages)]


def _page_name(page: object, labels: list[str], number: int, path: Path | None) -> str:
    """Return the element's name of a page, by its labels or by the file's name."""
    tags = getattr(page, "tags", {})
    texts = [labels[number]] if number < len(labels) else []
    texts += [str(tags[key].value) for key in ("PageName", "ImageDescription") if key in tags]
    if path is not None:
        last = _WORD.search(path.stem.replace("-", "_").rsplit("_map", 1)[0])
        texts += [path.stem, *([last[0]] if last else []), path.stem.rsplit("_", 1)[-1]]
    for text in texts:
        if line_name(text) is not None:
            return text
    return texts[0][:40] if texts else f"page {number}"
