"""What names say in files without axes: arrays called like elements, a stack beside its energies, sparse spectra."""

import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from inscan.profiles.measured import line_name
from inscan.service.archive_files import MOST_BYTES, Archive
from inscan.service.archive_nexus import electronvolts
from inscan.service.archive_types import ArchiveDataset, ArchiveError, Part, Reading

__all__ = ["named_arrays", "numbers_in"]

_ENERGY_NAME = re.compile(r"(energ(y|ies)|ev|kev)([_ ].*)?", re.IGNORECASE)
_LABEL = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(eV|keV)\s*", re.IGNORECASE)


def named_arrays(archive: Archive) -> list[Reading]:
    """What the names of arrays and of pages say."""
    found = [_sparse(archive), *_element_maps(archive), _stack(archive), *_pages(archive)]
    return [one for one in found if one is not None]


def numbers_in(path: Path) -> np.ndarray:
    """Numbers of a text file, one or more a line; of several columns the first.

    Raises
    ------
    ArchiveError
        When there is no such file, or something else in it.
    """
    try:
        values = np.loadtxt(path, delimiter="," if path.suffix == ".csv" else None, ndmin=2)
    except (OSError, ValueError) as error:
        raise ArchiveError(f"{path}: expected a text file of numbers: {error}") from error
    values = values[:, 0] if values.shape[0] > 1 else values[0]
    if not values.size or not np.isfinite(values).all():
        raise ArchiveError(f"{path}: expected finite numbers, one a line")
    return values


def _sparse(archive: Archive) -> Reading | None:
    """Spectra as indices and values: `idx`, `val`, `shape`, and `keV0_dkeV` for the energies."""
    parts = [archive.datasets.get(name) for name in ("idx", "val", "shape")]
    idx, val, shape = parts
    if idx is None or val is None or shape is None or shape.shape != (3,):
        return None
    if idx.shape != val.shape or len(idx.shape) != 1:
        return None
    rows, cols, bins = (int(n) for n in shape.read(()))
    if min(rows, cols, bins) < 1 or rows * cols * bins * val.dtype.itemsize > MOST_BYTES:
        raise ArchiveError(
            f"{archive.path}: shape ({rows}, {cols}, {bins}) is none that can be read"
        )

    def read(part: Part) -> np.ndarray:
        first, stop, _ = (part[0] if part else slice(None)).indices(rows)
        index, values = idx.read(()).astype(np.int64), val.read(())
        inside = (index >= first * cols * bins) & (index < stop * cols * bins)
        dense = np.zeros((stop - first) * cols * bins, dtype=val.dtype)
        dense[index[inside] - first * cols * bins] = values[inside]
        return dense.reshape(stop - first, cols, bins)[(slice(None), *part[1:])]

    said = ["sparse spectra: idx, val and shape make (row, col, bin)"]
    scale = archive.datasets.get("keV0_dkeV")
    axis = None
    if scale is not None and scale.shape == (2,):
        low, step = (1e3 * float(value) for value in scale.read(()))
        axis = (low, step)
        said.append(f"energies from keV0_dkeV: bin 0 at {low:g} eV, {step:g} eV a bin")
    dense = ArchiveDataset("idx", (rows, cols, bins), val.dtype, {}, read)
    dims = ("row", "col", "bin")
    return Reading("idx", "spectra", (dense,), dims, tuple(said), bin_ev=axis)


def _element_maps(archive: Archive) -> list[Reading]:
    """Two-dimensional arrays of one shape that are called like elements, in one group."""
    groups: dict[tuple[str, tuple[int, ...]], list[ArchiveDataset]] = defaultdict(list)
    left_out: dict[str, list[str]] = defaultdict(list)
    for name, dataset in archive.datasets.items():
        parent, _, short = name.rpartition("/")
        if not dataset.numeric or len(dataset.shape) < 2:
            continue
        if len(dataset.shape) == 2 and line_name(short) is not None:
            groups[parent, dataset.shape].append(dataset)
        else:
            left_out[parent].append(f"{short} {dataset.shape}")
    readings = []
    for (parent, _), members in groups.items():
        lines = tuple(str(line_name(one.name.rpartition("/")[2])) for one in members)
        if len(set(lines)) < len(lines):
            continue
        short = ", ".join(
            f"{one.name.rpartition('/')[2]} is {line}"
            for one, line in zip(members, lines, strict=True)
        )
        said = [f"maps named after elements: {short}"]
        if left_out[parent]:
            said.append(f"left out, no element's name: {', '.join(left_out[parent][:8])}")
        name = f"{parent}/*".lstrip("/")
        dims = ("element", "row", "col")
        what = "maps of elements"
        readings.append(Reading(name, what, tuple(members), dims, tuple(said), 2, elements=lines))
    return readings


def _stack(archive: Archive) -> Reading | None:
    """The only three-dimensional array, beside the only list of energies, which fits one of its axes."""
    if archive.kind != "npz":
        return None
    stacks = [d for d in archive.datasets.values() if len(d.shape) == 3 and d.numeric]
    lists = [
        d
        for d in archive.datasets.values()
        if len(d.shape) == 1 and d.numeric and _ENERGY_NAME.fullmatch(d.name)
    ]
    if len(stacks) != 1 or len(lists) != 1:
        return None
    (stack,), (energies,) = stacks, lists
    fits = [axis for axis, length in enumerate(stack.shape) if (length,) == energies.shape]
    if len(fits) != 1:
        return None
    dims = ["row", "col"]
    dims.insert(fits[0], "energy")
    units = (
        "keV" if "kev" in energies.name.lower() else "eV" if "ev" in energies.name.lower() else ""
    )
    values, guess = electronvolts(np.asarray(energies.read(()), np.float64), units)
    said = (
        f"energies taken from {energies.name} {energies.shape}, which fits axis {fits[0]} of {stack.name} "
        f"{stack.shape} and no other",
        *([guess] if guess else []),
    )
    return Reading(
        stack.name,
        "a stack over energy",
        (stack,),
        tuple(dims),
        said,
        energies_ev=values,
    )


def _pages(archive: Archive) -> list[Reading]:
    """TIFF pages whose labels, or the text file beside them, name elements or energies."""
    pages = archive.datasets.get("pages")
    if archive.kind != "TIFF" or pages is None or len(pages.shape) not in (2, 3):
        return []
    labels = [str(text) for text in pages.attrs.get("labels") or []]
    count = pages.shape[0] if len(pages.shape) == 3 else 1
    source = "the labels of its pages"
    beside = _beside(archive.path, "elements")
    if beside is not None:
        labels = beside.read_text(encoding="utf-8").split()
        source = beside.name
    lines = [line_name(text) for text in labels]
    if len(lines) == count and all(lines) and len(set(lines)) == count:
        dims = ("element", "row", "col") if len(pages.shape) == 3 else ("row", "col")
        said = (f"pages are maps of {', '.join(map(str, lines))}, by {source}",)
        names = tuple(str(line) for line in lines)
        return [Reading("pages", "maps of elements", (pages,), dims, said, elements=names)]
    if len(pages.shape) != 3:
        return []
    energies, source, guess = _page_energies(archive.path, labels, count)
    if energies is None:
        return []
    said = (f"energies of the pages taken from {source}", *([guess] if guess else []))
    dims = ("energy", "row", "col")
    return [Reading("pages", "a stack over energy", (pages,), dims, said, energies_ev=energies)]


def _page_energies(path: Path, labels: list[str], count: int) -> tuple[np.ndarray | None, str, str]:
    matches = [_LABEL.fullmatch(text) for text in labels]
    if len(labels) == count and all(matches):
        values = [float(m[1]) * (1e3 if m[2].lower() == "kev" else 1) for m in matches if m]
        return np.asarray(values), "the labels of the pages", ""
    beside = _beside(path, "energies")
    if beside is None:
        return None, "", ""
    values = numbers_in(beside)
    if values.shape != (count,):
        return None, "", ""
    values, guess = electronvolts(values, "")
    return values, beside.name, guess


def _beside(path: Path, what: str) -> Path | None:
    """`STEM_energies.txt` beside `STEM_values.tif` or `STEM.tif`: how inscan and others export stacks."""
    stem = re.sub(r"_(values|raw)$", "", path.stem)
    beside = path.with_name(f"{stem}_{what}.txt")
    return beside if beside.is_file() else None
