"""What a search for places gets: counts, and the light that each pixel got, where there was any."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["counted"]

_LIT = 0.05  # of the typical exposure: what got less light says nothing
_DEAD_ROW = 20.0  # counts of a typical row, below which an empty one may be chance


def counted(
    counts: ArrayLike, measured: ArrayLike | None, exposure: ArrayLike | None
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Check counts and exposure, and make one field of what was measured.

    Parameters
    ----------
    counts : array of shape (element, row, col) or (row, col)
        Raw counts; not finite where not measured.
    measured : array of bool, shape (row, col), or None
    exposure : array of shape (row, col) or that of `counts`, or None
        Relative exposure.

    Returns
    -------
    maps : ndarray of float32, shape (element, row, col)
        Counts, 0 where not measured.
    light : ndarray of float32, shape (1 or element, row, col)
        Exposure over the typical one; 0 where not measured, where there was next to no light, and
        in rows that are empty in all elements between others that are not.
    alive : ndarray of bool, shape (element,)
        Which elements have a finite pixel at all.

    Raises
    ------
    ValueError
        On wrong shapes, negative counts or exposures.
    """
    maps = np.asarray(counts, dtype=np.float32)
    if maps.ndim == 2:
        maps = maps[None]
    if maps.ndim != 3 or maps.size == 0:
        raise ValueError(f"counts must have shape (element, row, col), got {maps.shape}")
    finite = np.isfinite(maps)
    alive = np.asarray(finite.any(axis=(1, 2)))
    mask = np.asarray(finite[alive].all(axis=0)) if alive.any() else np.zeros(maps.shape[1:], bool)
    if measured is not None:
        given = np.asarray(measured, dtype=bool)
        if given.shape != maps.shape[1:]:
            raise ValueError(f"measured has shape {given.shape}, the map {maps.shape[1:]}")
        mask &= given
    maps = np.where(mask & alive[:, None, None], maps, np.float32(0))
    if maps.min() < 0:
        raise ValueError(
            f"counts must be >= 0, the least is {maps.min():g}; give raw counts, not values with "
            "background subtracted (that goes in `background`)"
        )
    light = mask[None].astype(np.float32)
    if exposure is not None:
        light = light * _relative(exposure, maps.shape, mask)
        maps = np.where(light > 0, maps, np.float32(0))
    return maps, light * _rows_alive(maps, light), alive


def _relative(
    exposure: ArrayLike, shape: tuple[int, ...], mask: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Exposure over the typical one, shape (1 or element, row, col), 0 where there was next to none."""
    given = np.asarray(exposure, dtype=np.float64)
    if given.shape not in (shape, shape[1:]):
        raise ValueError(f"exposure has shape {given.shape}, the map {shape}")
    given = np.where(np.isfinite(given), given, 0.0).reshape(-1, *shape[1:])
    if given.min() < 0:
        raise ValueError(f"exposure must be >= 0, the least is {given.min():g}")
    relative = np.zeros(given.shape, dtype=np.float32)
    for one, out in zip(given, relative, strict=True):
        lit = one[mask & (one > 0)]
        if lit.size:
            out[...] = one / float(np.median(lit))
    # What hardly got light in one element was not measured for any: the maps share one field.
    return relative * (relative >= _LIT).all(axis=0)


def _rows_alive(maps: NDArray[np.float32], light: NDArray[np.float32]) -> NDArray[np.bool_]:
    """False in rows that are empty in all elements between others that are not: a detector that was off."""
    by_row = maps.sum(axis=(0, 2), dtype=np.float64)
    measured = light.any(axis=(0, 2))
    alive = np.ones((len(by_row), 1), dtype=bool)
    rows = np.flatnonzero(measured & (by_row > 0))
    if rows.size:
        typical = float(np.median(by_row[rows]))
        between = np.arange(rows[0], rows[-1] + 1)
        if typical >= _DEAD_ROW:
            alive[between[by_row[between] == 0]] = False
    return alive
