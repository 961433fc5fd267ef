"""Grids of a composite: a survey's pixels cut into equal parts, and counts added up on them.

Counts are moved as whole pixels, each to the part that holds its centre: what is added up stays Poisson counts. The
price is a position that is off by half a part at most.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inscan.models.composite_layer import Layer, Placement

__all__ = ["Box", "Summed", "clusters", "footprint", "level_of", "on_grid", "placed_index"]

_KEPT = 0.5  # parts: how far pixels may run from the parts they are counted to, over a whole layer

Box = tuple[int, int, int, int]
"""(row start, row stop, column start, column stop), stops exclusive."""
Level = tuple[int, int]
"""Parts of a survey pixel along rows and columns."""


@dataclass
class Summed:
    """Counts of several layers on one grid.

    Attributes
    ----------
    counts : ndarray of float32, shape (channel, element, row, col)
    exposure : ndarray of float32, shape (channel, element, row, col)
        In the survey's units; per element, because one that does not agree is not added up.
    background, background_variance : ndarray of float32, shape of `counts`, or None
    layers : ndarray of uint8, shape (element, row, col)
        How many layers are in it.
    replaced : ndarray of bool, shape (element, row, col)
        Places where an older layer gave way to a newer one.
    """

    counts: NDArray[np.float32]
    exposure: NDArray[np.float32]
    background: NDArray[np.float32] | None
    background_variance: NDArray[np.float32] | None
    layers: NDArray[np.uint8]
    replaced: NDArray[np.bool_]

    def total(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Counts of all channels, mean exposure of a channel, and background; each (element, row, col)."""
        counts = self.counts.sum(axis=0, dtype=np.float64)
        exposure = self.exposure.mean(axis=0, dtype=np.float64)
        behind = np.zeros_like(counts)
        if self.background is not None:
            behind = self.background.sum(axis=0, dtype=np.float64)
        return counts, exposure, behind

    def add(self, newer: "Summed", gives_way: NDArray[np.bool_]) -> None:
        """Add what is newer; where `gives_way` says so, shape (element, row, col), it stands alone."""
        away = gives_way & (newer.layers > 0) & (self.layers > 0)
        for name in ("counts", "exposure", "background", "background_variance"):
            values, more = getattr(self, name), getattr(newer, name)
            if values is not None:
                values[:, away] = 0
            if values is None and more is not None:
                values = np.zeros_like(self.counts)
                setattr(self, name, values)
            if more is not None:
                values += more
        self.layers[away] = 0
        self.layers += newer.layers
        self.replaced |= away | newer.replaced


def level_of(survey: Layer, fine: Layer) -> Level:
    """Into how many parts a survey pixel is cut for a layer: no part is smaller than its pixels, lest holes be left."""
    parts = []
    for own, finer, count in zip(
        np.abs(survey.steps), np.abs(fine.steps), np.shape(fine.exposure), strict=True
    ):
        near = max(1, round(own / finer))
        parts.append(near if _matched(own / near, finer, count) else max(1, int(own / finer)))
    return parts[0], parts[1]


def _matched(part: float, step: float, count: int) -> bool:
    return abs(part - step) * count < _KEPT * part


def placed_index(survey: Layer, placement: Placement, level: Level) -> list[NDArray[np.int64]]:
    """Part that each row, and each column, of a layer is counted to; may lie outside the field."""
    layer = placement.layer
    found = []
    for axis, (own, at) in enumerate(((survey.rows, layer.rows), (survey.cols, layer.cols))):
        step, moved = (
            survey.steps[axis],
            np.linspace(at[0], at[-1], len(at)) + placement.shift[axis],
        )
        where = ((moved - own[0]) / step + 0.5) * level[axis] - 0.5
        direction = 1 if where[-1] > where[0] else -1
        if _matched(abs(step) / level[axis], abs(layer.steps[axis]), len(at)):
            # One pixel, one part: rounding each by itself could leave a hole and fill its neighbour twice.
            index = np.arange(len(at)) * direction
            found.append(index + int(np.rint(np.mean(where - index))))
        else:
            found.append(np.rint(where).astype(np.int64))
    return found


def clusters(boxes: Sequence[Box]) -> list[tuple[Box, list[int]]]:
    """Boxes that overlap or touch joined into one, with the numbers of those in it."""
    groups: list[tuple[Box, list[int]]] = []
    for number, box in enumerate(boxes):
        members = [number]
        grown = True
        while grown:
            grown = False
            for other in list(groups):
                if _touch(other[0], box):
                    groups.remove(other)
                    a = other[0]
                    box = (
                        min(a[0], box[0]),
                        max(a[1], box[1]),
                        min(a[2], box[2]),
                        max(a[3], box[3]),
                    )
                    members += other[1]
                    grown = True
        groups.append((box, sorted(members)))
    return sorted(groups)


def _touch(a: Box, b: Box) -> bool:
    return a[0] <= b[1] and b[0] <= a[1] and a[2] <= b[3] and b[2] <= a[3]


def on_grid(box: Box, layer: Layer, factor: float, index: Sequence[NDArray[np.int64]]) -> Summed:
    """One layer on a part of a grid.

    Parameters
    ----------
    box : tuple of int
        The part that is wanted.
    factor : float
        Its exposure in the survey's units.
    index : (rows, cols)
        From `placed_index`.
    """
    split, elements = layer.split(), len(layer.elements)
    shape = (len(split.counts), elements, box[1] - box[0], box[3] - box[2])
    rows, cols = index[0] - box[0], index[1] - box[2]
    cut = np.ix_((rows >= 0) & (rows < shape[2]), (cols >= 0) & (cols < shape[3]))
    at = (rows[cut[0]], cols[cut[1]])
    seen = layer.seen()[cut]

    def counted(values: NDArray[np.floating] | None) -> NDArray[np.float32] | None:
        if values is None:
            return None
        out = np.zeros(shape, dtype=np.float32)
        some = np.where(seen, np.nan_to_num(np.asarray(values))[:, :, *cut], 0.0)
        for target, plane in zip(
            out.reshape(-1, *shape[2:]), some.reshape(-1, *some.shape[2:]), strict=True
        ):
            np.add.at(target, at, plane.astype(np.float32))
        return out

    light = np.where(seen, np.nan_to_num(np.asarray(split.exposure))[:, *cut], 0.0) * factor
    exposure = np.zeros((shape[0], *shape[2:]), dtype=np.float32)
    for target, plane in zip(exposure, light, strict=True):
        np.add.at(target, at, plane.astype(np.float32))
    covered = np.zeros(shape[2:], dtype=bool)
    covered[at] |= seen
    counts = counted(split.counts)
    assert counts is not None
    return Summed(
        counts,
        np.repeat(exposure[:, None], elements, axis=1),
        counted(split.background),
        counted(split.background_variance),
        np.repeat(covered[None].astype(np.uint8), elements, axis=0),
        np.zeros(shape[1:], dtype=bool),
    )


def footprint(parts: int, integrated: bool) -> NDArray[np.float64]:
    """What each part of a survey pixel contributes to its counts, along one axis; adds up to 1.

    Parameters
    ----------
    parts : int
    integrated : bool
        The pixel averages over its width; otherwise it sees its centre: one part, or the two next to it.
    """
    weights = np.zeros(parts)
    if integrated:
        weights[:] = 1.0
    else:
        weights[(parts - 1) // 2 : parts // 2 + 1] = 1.0
    return weights / weights.sum()
