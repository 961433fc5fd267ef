"""Figures against a known truth, for the demo's table. Nothing before the end of a demo imports this."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


@dataclass(frozen=True)
class MapScore:
    """One element's map (or one kind of map) against the truth.

    Attributes
    ----------
    psnr_raw, psnr_result : float
        10 log10(peak² / MSE) in dB, with the truth's largest value as peak.
    dwell_equivalent : float
        MSE of the raw map over MSE of the result: how many times longer the scan would have to dwell for a raw map of
        the same error (Poisson variance falls as 1/dwell).
    flux_bias : float
        Sum of the result over sum of the truth, minus 1.
    coverage : float
        Share of pixels whose truth lies in the 90 % interval.
    """

    name: str
    psnr_raw: float
    psnr_result: float
    dwell_equivalent: float
    flux_bias: float
    coverage: float


@dataclass(frozen=True)
class RegionScore:
    """Whether the rescanned regions hold the inclusions.

    Attributes
    ----------
    found, inclusions : int
        Inclusions inside a region, and all inside the surveyed field.
    area_fraction : float
        Area of the regions' union over that of the field.
    """

    found: int
    inclusions: int
    area_fraction: float

    @property
    def recall(self) -> float:
        return self.found / self.inclusions if self.inclusions else float("nan")


@dataclass(frozen=True)
class ChemistryScore:
    """An edge-energy map against the truth: root mean square error in eV, correlation, regression slope."""

    name: str
    rmse_ev: float
    correlation: float
    slope: float
    pixels: int


def score_map(
    name: str,
    result: Array,
    raw: Array,
    truth: Array,
    low: Array,
    high: Array,
    measured: NDArray[np.bool_],
) -> MapScore:
    """Score one map; all arrays have shape (row, col) and the same units, only measured pixels count.

    Raises
    ------
    ValueError
        If nothing was measured.
    """
    use = measured & np.isfinite(result) & np.isfinite(raw)
    if not use.any():
        raise ValueError(f"map {name!r}: no pixel is measured in both raw and result")
    r, y, t = (np.asarray(a, dtype=np.float64)[use] for a in (result, raw, truth))
    error_raw, error = float(np.mean((y - t) ** 2)), float(np.mean((r - t) ** 2))
    peak = float(t.max())
    inside = (t >= low[use]) & (t <= high[use])
    return MapScore(
        name,
        _psnr(peak, error_raw),
        _psnr(peak, error),
        error_raw / error if error > 0 else float("inf"),
        float(r.sum() / t.sum() - 1.0) if t.sum() > 0 else float("nan"),
        float(inside.mean()),
    )


def score_regions(
    boxes: Sequence[tuple[float, float, float, float]],
    inclusions: Sequence[tuple[float, float]],
    field: tuple[float, float, float, float],
    cells: int = 400,
) -> RegionScore:
    """Score rescanned boxes.

    Parameters
    ----------
    boxes : sequence of (slow0, slow1, fast0, fast1)
        Motor units.
    inclusions : sequence of (slow, fast)
        True centres, motor units; those outside the field do not count.
    field : (slow0, slow1, fast0, fast1)
        What the survey covered.
    cells : int
        Samples per axis for the area of the union.
    """

    def inside(slow: Array, fast: Array) -> NDArray[np.bool_]:
        hit = np.zeros(np.broadcast(slow, fast).shape, dtype=bool)
        for s0, s1, f0, f1 in boxes:
            hit |= (slow >= s0) & (slow <= s1) & (fast >= f0) & (fast <= f1)
        return hit

    s0, s1, f0, f1 = field
    points = np.array(
        [p for p in inclusions if s0 <= p[0] <= s1 and f0 <= p[1] <= f1], dtype=float
    ).reshape(-1, 2)
    slow = s0 + (np.arange(cells) + 0.5) / cells * (s1 - s0)
    fast = f0 + (np.arange(cells) + 0.5) / cells * (f1 - f0)
    area = float(inside(slow[:, None], fast[None, :]).mean())
    return RegionScore(int(inside(points[:, 0], points[:, 1]).sum()), len(points), area)


def score_chemistry(name: str, edge: Array, truth: Array, use: NDArray[np.bool_]) -> ChemistryScore:
    """Score an edge-energy map in eV, shape (row, col), over the pixels in `use` where it is finite.

    A map that shrinks towards its mean can still correlate well, so the slope of map against truth stands beside it.
    """
    use = use & np.isfinite(edge) & np.isfinite(truth)
    e, t = edge[use].astype(np.float64), truth[use].astype(np.float64)
    if e.size < 3 or np.ptp(t) == 0:
        return ChemistryScore(name, float("nan"), float("nan"), float("nan"), int(e.size))
    centred = t - t.mean()
    slope = float(np.dot(centred, e - e.mean()) / np.dot(centred, centred))
    correlation = float(np.corrcoef(e, t)[0, 1]) if np.ptp(e) > 0 else 0.0
    return ChemistryScore(
        name, float(np.sqrt(np.mean((e - t) ** 2))), correlation, slope, int(e.size)
    )


def _psnr(peak: float, error: float) -> float:
    return float(10.0 * np.log10(peak**2 / error)) if error > 0 else float("inf")
