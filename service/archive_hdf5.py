"""The arrays of an HDF5 file, links within it followed, links out of it only beside it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from inscan.callbacks.file_access import Roots, open_hdf5
from inscan.callbacks.hdf5_links import look_up
from inscan.service.archive_types import ArchiveDataset, ArchiveError, Part

_MOST_NODES = 20_000
_DEEPEST = 32

Found = tuple[dict[str, ArchiveDataset], dict[str, Mapping[str, Any]]]


@contextmanager
def hdf5_datasets(path: Path, most_bytes: int) -> Iterator[Found]:
    """Open an HDF5 file and list its datasets and groups.

    Raises
    ------
    ArchiveError
        Not a readable HDF5 file, or one with far too many nodes.
    """
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ArchiveError(f"{path} is not a readable HDF5 file: {error}") from error
    with file:
        datasets: dict[str, ArchiveDataset] = {}
        groups: dict[str, Mapping[str, Any]] = {"": attributes(file)}
        try:
            _walk(file, "", path, most_bytes, datasets, groups, [])
        except (OSError, RuntimeError, KeyError) as error:
            raise ArchiveError(f"{path} is a damaged HDF5 file: {error}") from error
        yield datasets, groups


def attributes(node: h5py.Group | h5py.Dataset) -> dict[str, Any]:
    """Attributes of a node, bytes as text, arrays of text as lists; what cannot be read is left out."""
    found: dict[str, Any] = {}
    for name in node.attrs:
        try:
            found[name] = plain_text(node.attrs[name])
        except (OSError, TypeError, ValueError):
            found[name] = None
    return found


def plain_text(value: Any) -> Any:
    """Bytes as text, also in arrays; everything else as it is."""
    if isinstance(value, bytes | np.bytes_):
        return bytes(value).decode("utf-8", "replace")
    if isinstance(value, np.ndarray) and value.dtype.kind in "SUO":
        return [plain_text(item) for item in value.ravel().tolist()]
    return value.item() if isinstance(value, np.generic) else value


def _walk(
    group: h5py.Group,
    prefix: str,
    path: Path,
    most_bytes: int,
    datasets: dict[str, ArchiveDataset],
    groups: dict[str, Mapping[str, Any]],
    above: list[h5py.Group],
) -> None:
    # A group may hold a link to one above it.
    if group in above or len(above) > _DEEPEST:
        return
    for name in map(str, group):
        full = f"{prefix}{name}"
        if len(datasets) + len(groups) > _MOST_NODES:
            raise ArchiveError(f"{path}: more than {_MOST_NODES} nodes; name the --dataset")
        node = _node(group, name, path)
        if isinstance(node, h5py.Dataset):
            if node.dtype.kind in "biufSUO" and node.shape is not None:
                datasets[full] = ArchiveDataset(
                    full, node.shape, node.dtype, attributes(node), _reader(node, path, most_bytes)
                )
        elif isinstance(node, h5py.Group):
            groups[full] = attributes(node)
            _walk(node, f"{full}/", path, most_bytes, datasets, groups, [*above, group])


def _node(group: h5py.Group, name: str, path: Path) -> Any:
    """What a name leads to; None for a link that is broken, or leads to a file elsewhere, also by way of others."""
    roots = Roots([path.parent])

    def beside(linking: h5py.File, named: str) -> h5py.File:
        return open_hdf5(roots.confine(Path(linking.filename).resolve().parent / named))

    try:
        found = look_up(group, name, beside)
        if isinstance(found, h5py.Dataset) and (found.is_virtual or found.external):
            inside = str(found.name)
            return roots.dataset(found.file, inside, Path(found.file.filename))
        return found
    except (KeyError, OSError, ValueError):
        return None


def _reader(dataset: h5py.Dataset, path: Path, most_bytes: int) -> Callable[[Part], np.ndarray]:
    def read(part: Part) -> np.ndarray:
        wanted = [
            len(range(*cut.indices(length)))
            for cut, length in zip(part, dataset.shape, strict=False)
        ]
        count = int(np.prod([*wanted, *dataset.shape[len(wanted) :]], dtype=object))
        if count * max(dataset.dtype.itemsize, 4) > most_bytes:
            raise ArchiveError(
                f"{path}: {dataset.name} {dataset.shape} is too large to be read at once (at most {most_bytes} bytes): "
                "take a part with --crop"
            )
        try:
            values = dataset[part] if part else dataset[()]
        except OSError as error:
            raise ArchiveError(f"{path}: {dataset.name} cannot be read: {error}") from error
        if dataset.dtype.kind in "SUO":
            return np.asarray(plain_text(np.atleast_1d(np.asarray(values))))
        return np.asarray(values)

    return read
