"""Which data of a file are processed, and what their axes are: what the file says, else what a person names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from inscan.service.archive_files import Archive
from inscan.service.archive_layouts import hdf5_layouts, texts
from inscan.service.archive_nexus import nexus_data, point_spectra
from inscan.service.archive_npz import named_arrays
from inscan.service.archive_types import ArchiveDataset, ArchiveError, Aside, Part, Reading

__all__ = ["DIMS", "Crop", "Naming", "aside_of", "choose", "parse_crop", "values_of"]

DIMS = {
    "channel": "detector elements, each with its own counts",
    "element": "chemical elements or lines",
    "row": "slow axis of the map",
    "col": "fast axis of the map",
    "bin": "energy bins of a detector's spectra",
    "energy": "energies of the beam",
    "sum": "added up (frames, repeats)",
}
"""Names of axes that `--dims` takes."""

Crop = tuple[int, int, int, int]
_INDEXED = re.compile(r"(.+?)\[(.+)\]")


@dataclass(frozen=True)
class Naming:
    """What a person says of a file; empty or None where the file is to say it itself.

    Attributes
    ----------
    dataset, flat, dark : tuple of str
        Paths of datasets, or patterns with `*`.
    dims : tuple of str
        Of the data; with one axis more than they have, the several datasets follow each other along the first.
    live_time, i0 : str or None
        A dataset, or `PATH[NAME]` for a column of a table.
    crop : (row0, row1, col0, col1) or None
        Half open.
    """

    dataset: tuple[str, ...] = ()
    dims: tuple[str, ...] = ()
    flat: tuple[str, ...] = ()
    dark: tuple[str, ...] = ()
    live_time: str | None = None
    i0: str | None = None
    crop: Crop | None = None


def parse_crop(text: str | None) -> Crop | None:
    """Read `R0:R1,C0:C1`; ValueError when it is something else."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+):(\d+),(\d+):(\d+)", text.replace(" ", ""))
    if match is None:
        raise ValueError(f"{text!r}: write rows and columns as R0:R1,C0:C1 (the ends left out)")
    r0, r1, c0, c1 = (int(number) for number in match.groups())
    if r0 >= r1 or c0 >= c1:
        raise ValueError(f"{text!r}: an empty part")
    return r0, r1, c0, c1


def choose(archive: Archive, naming: Naming) -> Reading:
    """Decide what is processed.

    Raises
    ------
    ArchiveError
        When the file does not say it and nobody else does; lists what there is and the options to give.
    """
    known = [*hdf5_layouts(archive), *named_arrays(archive)]
    taken = {id(dataset) for one in known for dataset in one.data}
    known += [one for one in nexus_data(archive) if id(one.data[0]) not in taken]
    if naming.dataset:
        return _named(archive, naming, known)
    if naming.dims:
        if len(known) == 1 and len(naming.dims) == len(known[0].shape):
            return _renamed(known[0], naming.dims)
        fits = [
            d for d in archive.datasets.values() if d.numeric and len(d.shape) == len(naming.dims)
        ]
        if len(fits) != 1:
            raise _unclear(
                archive,
                f"--dims has {len(naming.dims)} axes, and so have {len(fits)} arrays: name one with --dataset",
                [],
            )
        return _plain(fits[0].name, fits, naming.dims, ["the only array with so many axes"])
    clear = [one for one in known if "?" not in one.dims]
    if not clear:
        raise _unclear(archive, "nothing in it says what its axes are", known)
    best = min(one.rank for one in clear)
    first = [one for one in clear if one.rank == best]
    if len(first) > 1:
        raise _unclear(archive, "it holds several data sets: name one with --dataset", first)
    others = [one for one in clear if one is not first[0]]
    said = [f"also in the file: {one.what}, --dataset '{one.name}'" for one in others[:6]]
    return replace(first[0], said=(*first[0].said, *said))


def values_of(reading: Reading, crop: Crop | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Read the data, cropped, with what is to be added up added up; returns them and their axes."""
    dims = reading.dims
    several = len(dims) > len(reading.data[0].shape)
    own = dims[1:] if several else dims
    part = _part(own, reading.data[0].shape, crop)
    if several:
        values = np.stack([one.read(part) for one in reading.data])
    else:
        values = np.asarray(reading.data[0].read(part))
    while "sum" in dims:
        axis = dims.index("sum")
        # Counts in the detector's own small type would overflow.
        kind = np.uint64 if values.dtype.kind in "bu" else None
        values = values.sum(axis=axis, dtype=kind)
        dims = dims[:axis] + dims[axis + 1 :]
    return values, dims


def aside_of(archive: Archive, reading: Reading, named: str | None, what: str) -> Aside | None:
    """An array that goes with the pixels, as a person names it.

    Raises
    ------
    ArchiveError
        When there is none, or its axes do not fit the data's.
    """
    if named is None:
        return None
    match = _INDEXED.fullmatch(named)
    lengths = dict(zip(reading.dims, reading.shape, strict=True))
    pixels = tuple(dim for dim in reading.dims if dim in ("channel", "row", "col"))
    options = [pixels, tuple(dim for dim in pixels if dim != "channel"), ("channel",)]
    exact = named.strip("/") in archive.datasets
    dataset = archive.named(named if match is None or exact else match[1])[0]
    if match is not None and not exact:
        dataset = _column(archive, dataset, match[2], [lengths[dim] for dim in options[1]])
    for dims in options:
        if dims and dataset.shape == tuple(lengths[dim] for dim in dims):
            return Aside(dataset, dims)
    raise ArchiveError(
        f"{archive.path}: {what} {dataset.name} has shape {dataset.shape}; expected one of "
        + ", ".join(f"{dims} {tuple(lengths[d] for d in dims)}" for dims in options if dims)
    )


def _column(
    archive: Archive, table: ArchiveDataset, wanted: str, pixels: list[int]
) -> ArchiveDataset:
    """One column of a table (row, col, name) or (name, row, col), by number or by name."""
    if list(table.shape[:-1]) == pixels:
        axis = len(table.shape) - 1
    elif list(table.shape[1:]) == pixels:
        axis = 0
    else:
        raise ArchiveError(
            f"{archive.path}: {table.name} {table.shape} is no table of maps of {tuple(pixels)} pixels"
        )
    count = table.shape[axis]
    if wanted.isdigit():
        index = int(wanted)
        if index >= count:
            raise ArchiveError(f"{archive.path}: {table.name} has columns 0 to {count - 1}")
    else:
        lists = [d for d in archive.datasets.values() if d.shape == (count,)]
        names = [texts(one) for one in lists]
        hits = [one.index(wanted) for one in names if wanted in one]
        if not hits:
            known = next((one for one in names if one), [])
            raise ArchiveError(
                f"{archive.path}: no column {wanted!r} of {table.name}; there are {', '.join(known[:80]) or 'no names'}"
            )
        index = hits[0]
    shape = table.shape[:axis] + table.shape[axis + 1 :]

    def read(part: Part) -> np.ndarray:
        return np.take(table.read(()), index, axis=axis)[part]

    return ArchiveDataset(f"{table.name}[{wanted}]", shape, table.dtype, {}, read)


def _part(dims: Sequence[str], shape: Sequence[int], crop: Crop | None) -> Part:
    if crop is None:
        return ()
    ranges = {"row": slice(crop[0], crop[1]), "col": slice(crop[2], crop[3])}
    for dim, length in zip(dims, shape, strict=True):
        if dim in ranges and ranges[dim].stop > length:
            raise ArchiveError(f"--crop ends at {dim} {ranges[dim].stop}, there are {length}")
    return tuple(ranges.get(dim, slice(None)) for dim in dims)


def _named(archive: Archive, naming: Naming, known: list[Reading]) -> Reading:
    data = [one for name in naming.dataset for one in archive.named(name)]
    for one in data:
        if not one.numeric:
            raise ArchiveError(f"{archive.path}: {one.name} holds {one.text}, no numbers")
    if len({one.shape for one in data}) > 1:
        shapes = ", ".join(f"{one.name} {one.shape}" for one in data[:6])
        raise ArchiveError(f"{archive.path}: several datasets must have one shape: {shapes}")
    names = [one.name for one in data]
    match = next(
        (
            one
            for one in known
            if [d.name for d in one.data] == names or [one.name] == list(naming.dataset)
        ),
        None,
    )
    if match is not None:
        if naming.dims:
            return _renamed(match, naming.dims)
        if "?" not in match.dims:
            return match
    if not naming.dims:
        several = f" of {len(data)} datasets, which come first" if len(data) > 1 else ""
        shape = data[0].shape if len(data) == 1 else (len(data), *data[0].shape)
        raise ArchiveError(
            f"{archive.path}: what the axes {shape}{several} of {names[0]} are is not in the file; name them, for "
            f"example --dims {_example(shape)}\n{_vocabulary()}"
        )
    return _plain(names[0], data, naming.dims, [])


def _plain(
    name: str, data: list[ArchiveDataset], dims: tuple[str, ...], said: list[str]
) -> Reading:
    _check_dims(dims, len(data[0].shape), len(data))
    shapes = f"{len(data)} x {data[0].shape}" if len(data) > 1 else str(data[0].shape)
    told = (f"{name} {shapes}: axes named {', '.join(dims)} by --dims", *said)
    return Reading(name, "data", tuple(data), dims, told)


def _renamed(reading: Reading, dims: tuple[str, ...]) -> Reading:
    _check_dims(dims, len(reading.data[0].shape), len(reading.data))
    told = f"axes named {', '.join(dims)} by --dims (the file: {', '.join(reading.dims)})"
    return replace(reading, dims=dims, said=(*reading.said, told))


def _check_dims(dims: tuple[str, ...], axes: int, several: int) -> None:
    unknown = [dim for dim in dims if dim not in DIMS]
    if unknown:
        raise ArchiveError(f"--dims: {unknown[0]!r} is none of the axes\n{_vocabulary()}")
    twice = [dim for dim in set(dims) if dim != "sum" and dims.count(dim) > 1]
    if twice:
        raise ArchiveError(f"--dims names {twice[0]} twice")
    wanted = axes + (1 if several > 1 else 0)
    if len(dims) != wanted and not (several == 1 and len(dims) == axes + 1):
        first = " (the first one counts the datasets)" if several > 1 else ""
        raise ArchiveError(f"--dims names {len(dims)} axes, the data have {wanted}{first}")


def _unclear(archive: Archive, why: str, known: list[Reading]) -> ArchiveError:
    """An error that shows what there is and what to do."""
    lines = [f"{archive.path}: {why}"]
    for one in known:
        axes = f"{one.shape} ({', '.join(one.dims)})"
        unknown = " -- name what ? is with --dims" if "?" in one.dims else ""
        lines.append(f"  --dataset '{one.name}': {one.what} {axes}{unknown}")
    points = point_spectra(archive)
    if not known and points:
        name, length, axis = points[0]
        lines.append(
            f"  {len(points)} spectra of single points, such as {name} with {length} values over {axis}: these are no "
            "maps, and no method here applies to them. (A list of them can be read as a line with --dataset 'PATTERN' "
            "--dims col,energy.)"
        )
    lines.append(archive.listing())
    if not known:
        large = max(
            (d for d in archive.datasets.values() if d.numeric), key=lambda d: d.size, default=None
        )
        if large is not None and len(large.shape) > 1:
            lines.append(f"for example: --dataset '{large.name}' --dims {_example(large.shape)}")
        lines.append(_vocabulary())
    return ArchiveError("\n".join(lines))


def _example(shape: tuple[int, ...]) -> str:
    """Axes that an array of such a shape often has: an example, never taken by itself."""
    wide = shape[-1] > 256 and shape[-1] == max(shape) and shape.count(shape[-1]) == 1
    if len(shape) == 2:
        return "col,bin" if wide and shape[-1] > 8 * shape[0] else "row,col"
    if len(shape) == 3 and not wide:
        return "energy,row,col"
    if len(shape) == 3:
        return "col,channel,bin" if shape[1] < 8 < shape[0] else "row,col,bin"
    # The longest axis are bins, the shortest other one detectors; the last two of the rest the map.
    names = ["sum"] * len(shape)
    names[shape.index(max(shape))] = "bin"
    rest = [axis for axis, name in enumerate(names) if name == "sum"]
    names[min(rest, key=lambda axis: shape[axis])] = "channel"
    places = [axis for axis, name in enumerate(names) if name == "sum"][-2:]
    for axis, dim in zip(places, ("row", "col"), strict=False):
        names[axis] = dim
    return ",".join(names)


def _vocabulary() -> str:
    return "axes: " + "; ".join(f"{name} ({text})" for name, text in DIMS.items())
