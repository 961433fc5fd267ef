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
from scipy.ndimage import correlate1d, gaussian_filter, gaussian_filter1d
from scipy.optimize import nnls, root_scalar
from scipy.special import ndtr, xlogy

__all__ = [
    "Excess",
    "Floor",
    "Integrals",
    "Sums",
    "excess",
    "predicted_by_others",
    "ring",
    "significance_threshold",
    "template",
    "templated",
]

_TRUNCATE = 3.0  # templates end at three sigma
_SIDE_SIGMAS = 2.0
_FLOOR_ERROR = 0.03  # relative error granted to counts said to come from something else
_STEADY = 0.01  # relative error granted to what the surroundings predict: I0, dead time, exposure
_LEAST_OFF_PIXELS = 8
_LEAST_ON = 0.2  # share of the template, as far as it is in the field, that must be measured


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
    pixels: int, scales: Sequence[float], elements: int, false_alarm: float, sides: int = 0
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
    sides : int
        Rows and columns of the field together: half its circumference, which matters in narrow
        fields. 0: only the area counts.

    Returns
    -------
    float
        Standard deviations.
    """
    if not 0 < false_alarm < 1:
        raise ValueError(f"false_alarm must lie between 0 and 1, got {false_alarm}")
    # White noise filtered with a gaussian of sigma s has squared gradient 1 / (2 s^2). The filter
    # cannot be smoother than the pixels it is sampled on, hence the floor.
    slopes = [1.0 / (np.sqrt(2.0) * max(s, 0.7)) for s in scales]
    density = sum(slope**2 for slope in slopes) * pixels * elements
    length = sum(slopes) * sides * elements

    def excess(z: float) -> float:
        area = density * z * np.exp(-(z**2) / 2) / (2 * np.pi) ** 1.5
        line = length * np.exp(-(z**2) / 2) / (2 * np.pi)
        point = len(slopes) * elements * float(ndtr(-z)) if sides else 0.0
        return area + line + point - false_alarm

    return float(root_scalar(excess, bracket=(1.0, 40.0)).root) if excess(1.0) > 0 else 1.0


@dataclass(frozen=True)
class Sums:
    """Over one rectangle around every pixel, clipped at the field's edge."""

    counts: NDArray[np.float64]
    """Shape (element, row, col)."""
    light: NDArray[np.float64]
    """Exposure, shape (1 or element, row, col)."""
    pixels: NDArray[np.float64]
    """Measured pixels, shape (1, row, col)."""


class Integrals:
    """Sums of counts, exposure and measured pixels over any rectangle around every pixel.

    Parameters
    ----------
    maps : ndarray of float32, shape (element, row, col)
        Counts, 0 where not measured.
    light : ndarray of float32, shape (1 or element, row, col)
        Exposure relative to the typical one, 0 where not measured.
    """

    def __init__(self, maps: NDArray[np.float32], light: NDArray[np.float32]) -> None:
        self.shape = maps.shape
        there = np.asarray((light > 0).any(axis=0, keepdims=True), dtype=np.float32)
        self._tables = [self._table(one) for one in (maps, light, there)]

    @staticmethod
    def _table(maps: NDArray[np.floating]) -> NDArray[np.float64]:
        table = np.zeros((maps.shape[0], maps.shape[1] + 1, maps.shape[2] + 1))
        np.cumsum(maps, axis=1, out=table[:, 1:, 1:], dtype=np.float64)
        np.cumsum(table[:, 1:, 1:], axis=2, out=table[:, 1:, 1:])
        return table

    def over(self, top: int, bottom: int, left: int, right: int) -> Sums:
        """Sums over rows r+top to r+bottom and columns c+left to c+right, ends included."""
        rows, cols = np.arange(self.shape[1]), np.arange(self.shape[2])
        r0 = np.clip(rows + top, 0, self.shape[1])
        r1 = np.clip(rows + bottom + 1, 0, self.shape[1])
        c0 = np.clip(cols + left, 0, self.shape[2])
        c1 = np.clip(cols + right + 1, 0, self.shape[2])
        bands = [table[:, r1] - table[:, r0] for table in self._tables]
        return Sums(*(band[:, :, c1] - band[:, :, c0] for band in bands))


def ring(sums: Integrals, inner: int, outer: int) -> tuple[Sums, Sums, Sums, Sums]:
    """Four rectangles beyond `inner` and up to `outer` pixels around every pixel, as the arms of a pinwheel."""
    return (
        sums.over(-outer, -inner - 1, -outer, inner),
        sums.over(-outer, inner, inner + 1, outer),
        sums.over(inner + 1, outer, -inner, outer),
        sums.over(-inner, outer, -outer, -inner - 1),
    )


def template(scale: float) -> NDArray[np.float64]:
    """A gaussian over its peak value, along one axis; it ends at three sigma."""
    reach = int(_TRUNCATE * scale + 0.5)
    line = gaussian_filter1d(
        np.eye(1, 2 * reach + 1, reach)[0], scale, mode="constant", truncate=_TRUNCATE
    )
    return np.asarray(line / line.max())


def templated(x: NDArray[np.floating], line: NDArray[np.float64]) -> NDArray[np.floating]:
    """Sums over the template around every pixel of the last two axes, of the type of `x`."""
    down = correlate1d(x, line, axis=-2, mode="constant")
    return np.asarray(correlate1d(down, line, axis=-1, mode="constant"))


def excess(
    maps: NDArray[np.float32],
    light: NDArray[np.float32],
    sums: Integrals,
    floor: Floor | None,
    scale: float,
) -> Excess:
    """Li-Ma significance of a gaussian template of one scale at every pixel.

    Parameters
    ----------
    maps : ndarray of float32, shape (element, row, col)
        Counts, 0 where not measured.
    light : ndarray of float32, shape (1 or element, row, col)
        Exposure relative to the typical one: expected counts go with it. 0 where not measured.
    sums : Integrals
        Of the same maps and exposure.
    floor : Floor or None
        Counts explained otherwise; the local surroundings count where they are higher.
    scale : float
        Sigma of the template, pixels.

    Returns
    -------
    Excess
    """
    line = template(scale)
    mask = np.asarray((light > 0).any(axis=0, keepdims=True))
    on = templated(maps, line)
    covered = templated(light, line)
    pixels_on = templated(np.asarray(mask, dtype=np.float32), line)
    possible = templated(np.ones(mask.shape, np.float32), line)
    # A weighted sum of Poisson counts has variance below its mean; divided by `gain` it has the
    # mean and variance of a Poisson count again.
    gain = templated(light, line**2) / np.maximum(covered, 1e-9)
    gain = np.where(covered > 1e-6, gain, 1.0).astype(np.float64)
    inner = int(np.ceil(2.5 * scale))
    # A ring around a pixel of a narrow field has little width: it must reach further.
    width = min(*maps.shape[1:], 2 * inner + 1)
    outer = inner + max(3, int(np.ceil(2.5 * scale)), int(np.ceil(_LEAST_OFF_PIXELS / width)))
    sides = ring(sums, inner, outer)
    off = np.sum([side.counts for side in sides], axis=0)
    lit = np.sum([side.light for side in sides], axis=0)
    pixels = np.sum([side.pixels for side in sides], axis=0)
    usable = (pixels >= _LEAST_OFF_PIXELS) & mask & (pixels_on >= _LEAST_ON * possible)
    lit = np.maximum(lit, 1e-6)
    # One count more than seen: where the ring holds next to nothing, nothing is known of it, and
    # single counts would look significant.
    level = (off + 1.0) / lit
    for side in sides:
        # On the bright side of an edge the ring's mean is too low: the brighter side counts,
        # by as much as is beyond its own noise.
        there = np.maximum(side.light, 1e-6)
        sure = (side.counts - _SIDE_SIGMAS * np.sqrt(np.maximum(side.counts, 1.0))) / there
        level = np.where(side.pixels >= _LEAST_OFF_PIXELS, np.maximum(level, sure), level)
    covered = np.maximum(covered, 1e-6).astype(np.float64)
    expected = level * covered
    n_off = level * lit
    # However many counts there are, neighbours are not known to agree better than this.
    n_off = n_off / (1 + _STEADY**2 * n_off)
    if floor is not None:
        known = templated(floor.mean, line).astype(np.float64)
        # Written as an off count of the same relative uncertainty.
        spread = templated(floor.variance, line**2) + (_FLOOR_ERROR * known) ** 2
        higher = known > expected
        expected = np.where(higher, known, expected)
        n_off = np.where(higher, known**2 / np.maximum(spread, 1e-12), n_off)
    ratio = expected / gain / np.maximum(n_off, 1e-12)
    n_on = on / gain
    total = np.maximum(n_on + n_off, 1e-12)
    score = xlogy(n_on, (1 + ratio) / ratio * n_on / total) + xlogy(
        n_off, (1 + ratio) * n_off / total
    )
    z = np.sqrt(2 * np.maximum(score, 0)) * (n_on > ratio * n_off) * usable
    return Excess(z.astype(np.float32), on.astype(np.float32), expected.astype(np.float32))


def predicted_by_others(
    maps: NDArray[np.float32],
    light: NDArray[np.float32],
    members: Sequence[Sequence[int]] | None = None,
) -> Floor:
    """Each map's counts as a non-negative combination of the others' and of the exposure.

    Parameters
    ----------
    maps : ndarray of float32, shape (map, row, col)
        Counts, 0 where not measured.
    light : ndarray of float32, shape (1 or map, row, col)
        Exposure relative to the typical one, 0 where not measured.
    members : sequence of sequence of int, optional
        Which elements each map is made of, where some are sums of others: no map predicts one
        that it is part of, and sums predict nothing. By default each map is an element.

    Returns
    -------
    Floor
        0 where there are no others.
    """
    floor = Floor(np.zeros_like(maps), np.zeros_like(maps))
    groups = [(k,) for k in range(len(maps))] if members is None else [tuple(m) for m in members]
    single = [k for k, group in enumerate(groups) if len(group) == 1]
    lit = np.broadcast_to(light, maps.shape)
    mask = (light > 0).any(axis=0)
    weight = np.maximum(gaussian_filter(mask.astype(np.float32), 1.0), 1e-3)
    smooth = gaussian_filter(maps, (0, 1.0, 1.0)) / weight
    columns = smooth[:, mask].astype(np.float64)
    constant = (gaussian_filter(lit, (0, 1.0, 1.0)) / weight)[:, mask].astype(np.float64)
    for e, group in enumerate(groups):
        others = [k for k in single if groups[k][0] not in group]
        if not others:
            continue
        design = np.vstack([columns[others], constant[e : e + 1]]).T
        spread = 1.0 / np.sqrt(columns[e] + 0.5)  # Poisson weights
        share, _ = nnls(design * spread[:, None], columns[e] * spread)
        # The counts themselves, not smoothed: the template smooths both sides alike.
        floor.mean[e] = np.tensordot(share[:-1], maps[others], axes=1) + share[-1] * lit[e]
        floor.variance[e] = np.tensordot(share[:-1] ** 2, maps[others], axes=1)
    return floor
