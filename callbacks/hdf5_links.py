"""Names in an HDF5 file, followed link by link.

HDF5 follows links by itself, and opens whatever file they name: outside the data roots, or a pipe that nobody ever
writes to, with Python's lock held. Here every file is opened by us, after it was confined.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import h5py

__all__ = ["UnknownLink", "look_up"]

_MOST_LINKS = 32


class UnknownLink(ValueError):
    """A link that is followed by code of its own, or one of too many; the message says which."""


def look_up(file: h5py.Group, name: str, other: Callable[[h5py.File, str], h5py.File]) -> Any:
    """Return the object that a name leads to.

    Parameters
    ----------
    file : h5py.File or Group
    name : str
        As in ``file[name]``.
    other : callable
        (file, name of another file) -> that file, opened; called for every link out of a file.

    Raises
    ------
    KeyError
        There is no such object.
    UnknownLink
        It takes too many links, or one of a kind that is not known.
    """
    return _Walk(other).to(file, name)


class _Walk:
    def __init__(self, other: Callable[[h5py.File, str], h5py.File]) -> None:
        self._other = other
        self._left = _MOST_LINKS

    def to(self, start: h5py.Group, name: str) -> Any:
        node: Any = start.file if name.startswith("/") else start
        for part in name.split("/"):
            if part in ("", "."):
                continue
            if not isinstance(node, h5py.Group):
                raise KeyError(f"{node.name} is no group that could hold {part[:80]!r}")
            node = self._step(node, part)
        return node

    def _step(self, group: h5py.Group, part: str) -> Any:
        try:
            link: Any = group.get(part, getlink=True)
        except TypeError as error:
            raise UnknownLink(f"{group.name}/{part[:80]}: {error}") from error
        if link is None:
            raise KeyError(f"{group.name} holds no {part[:80]!r}")
        if isinstance(link, h5py.HardLink):
            return group[part]
        self._left -= 1
        if self._left < 0:
            raise UnknownLink(f"{group.name}/{part[:80]}: more than {_MOST_LINKS} links")
        if isinstance(link, h5py.ExternalLink):
            return self.to(self._other(group.file, str(link.filename)), str(link.path))
        return self.to(group, str(link.path))
