"""What lies in an HDF5 file itself. A result file may come from a worker of another machine; it is read here, and
given to Tiled, with our rights: nothing in it may lead to another file, or unfold to more than the file holds."""

import struct
from pathlib import Path
from typing import Any, BinaryIO

import h5py

__all__ = ["array_in", "check_heaps", "member"]

_BLOCK = 1 << 24
_HEAP = (
    b"GCOL\x01\x00\x00\x00"  # signature and version of a heap of texts; on a boundary of 8 bytes
)
_HEAP_HEAD, _OBJECT_HEAD = struct.Struct("<8xQ"), struct.Struct("<HH4xQ")
_MOST_HEAP = 1 << 26


def check_heaps(path: Path) -> None:
    """Refuse a file with a damaged heap of texts: HDF5 (2.0) walks through some of them for ever, and holds the lock of
    all files of this process meanwhile.

    Raises
    ------
    ValueError
        Naming the byte at which the heap lies.
    """
    with path.open("rb") as file:
        start, left = 0, b""
        while block := file.read(_BLOCK):
            data = left + block
            at = data.find(_HEAP)
            while at >= 0:
                if not (start + at) % 8:
                    _check_heap(file, start + at)
                at = data.find(_HEAP, at + 1)
            left = data[-len(_HEAP) + 1 :]
            start += len(data) - len(left)
            file.seek(start + len(left))


def _check_heap(file: BinaryIO, at: int) -> None:
    file.seek(at)
    head = file.read(_HEAP_HEAD.size)
    size = _HEAP_HEAD.unpack(head)[0] if len(head) == _HEAP_HEAD.size else 0
    heap = file.read(size - len(head)) if len(head) < size <= _MOST_HEAP else b""
    position = 0
    while len(heap) - position >= _OBJECT_HEAD.size:
        index, _, length = _OBJECT_HEAD.unpack_from(heap, position)
        # What is free (index 0) counts with its head, and goes on to the end.
        step = length if index == 0 else _OBJECT_HEAD.size + -(-length // 8) * 8
        if not _OBJECT_HEAD.size <= step <= len(heap) - position:
            break
        position += step
    else:
        if heap:
            return
    raise ValueError(f"its heap of texts at byte {at} is damaged")


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
