"""The part of a map that was measured: cut out, gaps filled, total kept, and put back in its place."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from inscan.models.channels import ChannelSum

__all__ = ["Field", "Place", "bounding_place", "filled_field", "keep_flux", "unfold", "unfold_onto"]

Place = tuple[slice, slice]


def bounding_place(exposure: NDArray[np.float32]) -> Place | None:
    """The smallest rectangle that holds all that was measured."""
    known = (exposure > 0).any(axis=0)
    rows, cols = np.unique(np.nonzero(known)[0]), np.unique(np.nonzero(known)[1])
    if rows.size == 0:
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1)


@dataclass(frozen=True)
class Field:
    """Counts and exposure, float32 of shape (element, row, col), holes filled from the nearest pixel."""

    counts: NDArray[np.float32]
    exposure: NDArray[np.float32]


def filled_field(summed: ChannelSum, place: Place) -> tuple[Field, NDArray[np.bool_]]:
    """Cut to the measured rectangle; the network needs something in holes, so take the nearest."""
    counts = summed.counts[:, place[0], place[1]].copy()
    exposure = summed.exposure[:, place[0], place[1]].copy()
    seen = exposure > 0
    for element in range(len(counts)):
        hole = ~seen[element]
        if hole.all():
            exposure[element] = 1.0
        elif hole.any():
            nearest = distance_transform_edt(hole, return_distances=False, return_indices=True)
            at = tuple(np.asarray(nearest))
            counts[element], exposure[element] = counts[element][at], exposure[element][at]
    return Field(counts, exposure), seen


def keep_flux(
    counts: NDArray[np.float32], mean: NDArray[np.float64], seen: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scale each element so that its total is the one measured: the best estimate of a total."""
    observed = np.where(seen, counts, 0).sum(axis=(1, 2), dtype=np.float64)
    predicted = np.where(seen, mean, 0).sum(axis=(1, 2), dtype=np.float64)
    factor = np.where(predicted > 0, observed / np.maximum(predicted, 1e-12), 1.0)
    return mean * factor[:, None, None], factor


def unfold(
    values: NDArray[np.floating], place: Place, shape: tuple[int, ...], known: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Values in the whole field, NaN where not known."""
    out = np.full(shape, np.nan, dtype=np.float32)
    out[:, place[0], place[1]] = values
    out[~known] = np.nan
    return out


def unfold_onto(whole: NDArray, part: NDArray, place: Place) -> NDArray:
    """A part written into the whole, which is returned."""
    whole[:, place[0], place[1]] = part
    return whole
