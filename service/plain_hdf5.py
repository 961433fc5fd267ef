"""What lies in an HDF5 file itself. A result file may come from a worker of another machine; it is read here, and
given to Tiled, with our rights: nothing in it may lead to another file, or unfold to more than the file holds."""

from typing import Any

import h5py

__all__ = ["array_in", "member"]


def member(group: h5py.Group, name: str) -> Any:
    """Return an object of a file by its path, without following any link.

    Raises
    ------
    KeyError
        When there is none, or a link is on the way.
    """
    node: Any = group
    for part in name.split("/"):
        if not isinstance(node, h5py.Group):
            raise KeyError(f"{node.name} is no group")
        link = node.get(part, getlink=True)
        if link is None:
            raise KeyError(f"{node.name} holds no {part[:80]!r}")
        if not isinstance(link, h5py.HardLink):
            raise KeyError(f"{node.name}/{part[:80]} is a link; a result holds its arrays itself")
        node = node[part]
    return node


def array_in(group: h5py.Group, name: str) -> h5py.Dataset:
    """Return an array that lies in the file as it is: in one piece, not compressed, not made of other files.

    Raises
    ------
    KeyError
        When it is anything else.
    """
    dataset = member(group, name)
    if not isinstance(dataset, h5py.Dataset):
        raise KeyError(f"{group.name}/{name[:80]} is no array")
    if dataset.is_virtual or dataset.external:
        raise KeyError(f"{dataset.name} is made of other files")
    if dataset.dtype.kind not in "biuf":
        raise KeyError(f"{dataset.name} holds {dataset.dtype}; expected numbers")
    if dataset.size and dataset.id.get_offset() is None:
        raise KeyError(f"{dataset.name} of shape {dataset.shape} is not stored in one piece")
    return dataset
