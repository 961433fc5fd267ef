"""A matched filter for compact excesses in maps of counts, and how high noise alone may reach.

The likelihood ratio for "on" counts under a template and "off" counts in a ring around it is that
of Li and Ma (1983), Astrophysical Journal 272, 317, equation 17. The threshold for the number of
places looked at follows Worsley et al. (1992), J. Cereb. Blood Flow Metab. 12, 900 (expected
number of excursions of a smooth random field).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from scipy.optimize import nnls, root_scalar
from scipy.special import xlogy

__all__ = [
    "Excess",
    "Floor",
    "Integrals",
    "excess",
    "predicted_by_others",
    "significance_threshold",
]

_TRUNCATE = 3.0  # templates end at three sigma
_SIDE_SIGMAS = 2.0
_FLOOR_ERROR = 0.03  # relative error granted to counts said to come from something else
_LEAST_OFF_PIXELS = 8
_LEAST_ON = 0.2  # share of the template that must lie on measured pixels


@dataclass(frozen=True)
class Floor:
    """Counts that something else explains, (element, row, col), and their variance."""

    mean: NDArray[np.float32]
    variance: NDArray[np.float32]


@dataclass(frozen=True)
class Excess:
    """Result of one template scale: all arrays of shape (element, row, col)."""

    significance: NDArray[np.float32]
    on: NDArray[np.float32]
    expected: NDArray[np.float32]


def significance_threshold(
    pixels: int, scales: Sequence[float], elements: int, false_alarm: float
) -> float:
    """Standard deviations above which noise alone goes with probability `false_alarm`.

    Parameters
    ----------
    pixels : int
        Measured pixels.
    scales : sequence of float
        Sigma of each template, pixels.
    elements : int
        Maps searched.
    false_alarm : float
        Between 0 and 1.

    Returns
    -------
    float
        Standard deviations.
    """
    if not 0 < false_alarm < 1:
        raise ValueError(f"false_alarm must lie between 0 and 1, got {false_alarm}")
    # White noise filtered with a gaussian of sigma s has squared gradient 1 / (2 s^2). The filter
    # cannot be smoother than the pixels it is sampled on, hence the floor.
    density = sum(1.0 / (2.0 * max(s, 0.7) ** 2) for s in scales) * pixels * elements

    def excess(z: float) -> float:
        return density * z * np.exp(-(z**2) / 2) / (2 * np.pi) ** 1.5 - false_alarm

    return float(root_scalar(excess, bracket=(1.0, 40.0)).root) if excess(1.0) > 0 else 1.0


class Integrals:
    """Sums of counts and of measured pixels over any rectangle around every pixel."""

    def __init__(self, maps: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
        self.shape = maps.shape
        self._counts = self._table(maps)
        self._pixels = self._table(mask[None].astype(np.float32))

    @staticmethod
    def _table(maps: NDArray[np.float32]) -> NDArray[np.float64]:
        table = np.zeros((maps.shape[0], maps.shape[1] + 1, maps.shape[2] + 1))
        np.cumsum(maps, axis=1, out=table[:, 1:, 1:], dtype=np.float64)
        np.cumsum(table[:, 1:, 1:], axis=2, out=table[:, 1:, 1:])
        return table

    def over(
        self, top: int, bottom: int, left: int, right: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Counts (element, row, col) and pixels (1, row, col) in rows r+top to r+bottom and
        columns c+left to c+right, ends included, clipped at the field's edge."""
        rows, cols = np.arange(self.shape[1]), np.arange(self.shape[2])
        r0 = np.clip(rows + top, 0, self.shape[1])
        r1 = np.clip(rows + bottom + 1, 0, self.shape[1])
        c0 = np.clip(cols + left, 0, self.shape[2])
        c1 = np.clip(cols + right + 1, 0, self.shape[2])
        sums = []
        for table in (self._counts, self._pixels):
            band = table[:, r1] - table[:, r0]
            sums.append(band[:, :, c1] - band[:, :, c0])
        return sums[0], sums[1]


def excess(
    maps: NDArray[np.float32],
    mask: NDArray[np.bool_],
    sums: Integrals,
    floor: Floor | None,
    scale: float,
) -> Excess:
    """Li-Ma significance of a gaussian template of one scale at every pixel.

    Parameters
    ----------
    maps : ndarray of float32, shape (element, row, col)
        Counts, 0 where not measured.
    mask : ndarray of bool, shape (row, col)
        Measured pixels.
    sums : Integrals
        Of the same maps and mask.
    floor : Floor or None
        Counts explained otherwise; the local surroundings count where they are higher.
    scale : float
        Sigma of the template, pixels.

    Returns
    -------
    Excess
    """
    line = gaussian_filter1d(
        np.eye(1, 2 * int(_TRUNCATE * scale + 0.5) + 1, int(_TRUNCATE * scale + 0.5))[0],
        scale,
        mode="constant",
        truncate=_TRUNCATE,
    )
    top = float(line.max()) ** 2  # the template is the gaussian over its peak value
    # A weighted sum of Poisson counts has variance below its mean; divided by `gain` it has the
    # mean and variance of a Poisson count again.
    gain = float((line**2).sum()) ** 2 / top

    def templated(x: NDArray[np.float32]) -> NDArray[np.float32]:
        spread = (0.0,) * (x.ndim - 2) + (scale, scale)
        smooth = gaussian_filter(x, spread, mode="constant", truncate=_TRUNCATE)
        return (smooth / top).astype(np.float32)

    on = templated(maps)
    covered = templated(mask.astype(np.float32))
    inner = int(np.ceil(2.5 * scale))
    outer = inner + max(3, int(np.ceil(2.5 * scale)))
    sides = [  # four rectangles that make up the ring, as the arms of a pinwheel
        sums.over(-outer, -inner - 1, -outer, inner),
        sums.over(-outer, inner, inner + 1, outer),
        sums.over(inner + 1, outer, -inner, outer),
        sums.over(-inner, outer, -outer, -inner - 1),
    ]
    off = np.sum([s for s, _ in sides], axis=0)
    pixels = np.sum([p for _, p in sides], axis=0)
    usable = (pixels >= _LEAST_OFF_PIXELS) & mask & (covered >= _LEAST_ON / top)
    pixels = np.maximum(pixels, 1.0)
    # One count more than seen: where the ring holds next to nothing, nothing is known of it, and
    # single counts would look significant.
    level = (off + 1.0) / pixels
    for s, p in sides:
        # On the bright side of an edge the ring's mean is too low: the brighter side counts,
        # by as much as is beyond its own noise.
        here = s / np.maximum(p, 1.0)
        sure = here - _SIDE_SIGMAS * np.sqrt(np.maximum(s, 1.0)) / np.maximum(p, 1.0)
        level = np.where(p >= _LEAST_OFF_PIXELS, np.maximum(level, sure), level)
    covered = np.maximum(covered, 1e-6)
    expected = level * covered
    n_off, ratio = level * pixels, covered / gain / pixels
    if floor is not None:
        known = templated(floor.mean)
        # Written as an off count of the same relative uncertainty.
        spread = gain * templated(floor.variance) + (_FLOOR_ERROR * known) ** 2
        certain = known**2 / np.maximum(spread, 1e-12)
        higher = known > expected
        expected = np.where(higher, known, expected)
        n_off = np.where(higher, certain, n_off)
        ratio = np.where(higher, known / gain / np.maximum(certain, 1e-12), ratio)
    n_on = on / gain
    total = n_on + n_off
    score = xlogy(n_on, (1 + ratio) / ratio * n_on / np.maximum(total, 1e-12)) + xlogy(
        n_off, (1 + ratio) * n_off / np.maximum(total, 1e-12)
    )
    z = np.sqrt(2 * np.maximum(score, 0)) * (n_on > ratio * n_off) * usable
    return Excess(z.astype(np.float32), on.astype(np.float32), expected.astype(np.float32))


def predicted_by_others(maps: NDArray[np.float32], mask: NDArray[np.bool_]) -> Floor:
    """Each element's counts as a non-negative combination of the others' maps and a constant."""
    floor = Floor(np.zeros_like(maps), np.zeros_like(maps))
    if maps.shape[0] < 2:
        return floor
    weight = np.maximum(gaussian_filter(mask.astype(np.float32), 1.0), 1e-3)
    smooth = gaussian_filter(maps, (0, 1.0, 1.0)) / weight
    columns = smooth[:, mask].astype(np.float64)
    for e in range(maps.shape[0]):
        others = [k for k in range(maps.shape[0]) if k != e]
        design = np.vstack([columns[others], np.ones(columns.shape[1])]).T
        spread = 1.0 / np.sqrt(columns[e] + 0.5)  # Poisson weights
        share, _ = nnls(design * spread[:, None], columns[e] * spread)
        # The counts themselves, not smoothed: the template smooths both sides alike.
        floor.mean[e] = (np.tensordot(share[:-1], maps[others], axes=1) + share[-1]) * mask
        floor.variance[e] = np.tensordot(share[:-1] ** 2, maps[others], axes=1)
    return floor
