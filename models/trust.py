"""How far to believe an estimate: calibrated sigma and intervals, and a verdict with reasons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from inscan.models.estimate import Calibration
from inscan.models.noise import anscombe, anscombe_mean, anscombe_variance, poisson_deviance

__all__ = [
    "LEVELS",
    "CountTable",
    "Verdict",
    "calibrate_counts",
    "heldout_figures",
    "judge",
    "residual_figures",
]

LEVELS = (0.5, 0.6827, 0.8, 0.9, 0.95, 0.99)
_COUNT_EDGES = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 40.0, 120.0)
_SPREAD_BINS = 4
_ENOUGH = 3000  # samples a bin needs for its outer quantiles
_LAGS = ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0))


@dataclass(frozen=True)
class CountTable:
    """Calibration of the network's spread, by predicted counts and by the spread itself.

    Attributes
    ----------
    count_edges : ndarray of float, shape (a,)
        Predicted counts of a pixel that part the bins.
    spread_edges : ndarray of float, shape (b,)
        Predicted spread on the stabilised scale (1 is the noise of a raw pixel).
    levels : ndarray of float, shape (level,)
    scale : ndarray of float, shape (bin,)
        Root mean square of error over predicted sigma.
    below, above : ndarray of float, shape (level, bin)
        Ends of the intervals in calibrated sigmas; bin = count bin × (b + 1) + spread bin.
    """

    count_edges: NDArray[np.float64]
    spread_edges: NDArray[np.float64]
    levels: NDArray[np.float64]
    scale: NDArray[np.float64]
    below: NDArray[np.float64]
    above: NDArray[np.float64]

    def bins(self, counts: ArrayLike, spread: ArrayLike) -> NDArray[np.uint8]:
        """Bin of each pixel from its predicted counts and spread; any shape."""
        by_count = np.searchsorted(self.count_edges, np.asarray(counts))
        by_spread = np.searchsorted(self.spread_edges, np.asarray(spread))
        return (by_count * (len(self.spread_edges) + 1) + by_spread).astype(np.uint8)

    def calibration(self, bins: NDArray[np.uint8], floor: float | None) -> Calibration:
        """What an `Estimate` needs to give intervals."""
        return Calibration(self.levels, self.below, self.above, bins, floor)

    def to_card(self) -> dict[str, Any]:
        """JSON-able form, rounded to four digits."""
        return {key: np.round(value, 4).tolist() for key, value in vars(self).items()}

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> "CountTable":
        """Read from a model card.

        Raises
        ------
        ValueError
            If the card holds no calibration.
        """
        stored = card.get("calibration")
        if not stored:
            raise ValueError(f"weights {card.get('name')!r} were never calibrated: no sigma")
        return cls(**{key: np.asarray(value, dtype=np.float64) for key, value in stored.items()})


def calibrate_counts(
    truth: ArrayLike, counts: ArrayLike, sigma: ArrayLike, spread: ArrayLike
) -> CountTable:
    """Learn the table from predictions on samples with known truth.

    Parameters
    ----------
    truth, counts : array of float, shape (n,)
        Mean counts of each pixel, true and predicted.
    sigma : array of float, shape (n,)
        Predicted standard deviation of `counts`, uncalibrated.
    spread : array of float, shape (n,)
        The same on the stabilised scale.

    Returns
    -------
    CountTable
    """
    error = np.asarray(truth, dtype=np.float64) - np.asarray(counts, dtype=np.float64)
    z = error / np.maximum(np.asarray(sigma, dtype=np.float64), 1e-9)
    edges = np.asarray(_COUNT_EDGES)
    spread = np.asarray(spread, dtype=np.float64)
    spread_edges = np.quantile(spread, np.arange(1, _SPREAD_BINS) / _SPREAD_BINS)
    levels = np.asarray(LEVELS)
    number = (len(edges) + 1) * _SPREAD_BINS
    table = CountTable(edges, spread_edges, levels, *(np.zeros((0,)),) * 3)
    bins = table.bins(counts, spread)
    scale = np.ones(number)
    below, above = np.zeros((len(levels), number)), np.zeros((len(levels), number))
    for index in range(number):
        inside = z[bins == index]
        if inside.size < _ENOUGH:
            inside = z[bins // _SPREAD_BINS == index // _SPREAD_BINS]
        if inside.size < _ENOUGH:
            inside = z
        # One wild pixel must not set the sigma of a bin.
        inside = np.clip(inside, -12.0, 12.0)
        scale[index] = max(float(np.sqrt(np.mean(inside**2))), 0.05)
        tails = np.quantile(
            inside / scale[index], np.concatenate([0.5 - levels / 2, 0.5 + levels / 2])
        )
        below[:, index] = -tails[: len(levels)]
        above[:, index] = tails[len(levels) :]
    return CountTable(edges, spread_edges, levels, scale, below, above)


@dataclass(frozen=True)
class Verdict:
    """`pass`, `warn` or `block`, why, and the figures behind it."""

    level: str
    reasons: tuple[str, ...]
    figures: Mapping[str, Any] = field(default_factory=dict)


def residual_figures(
    counts: NDArray[np.floating], mean: NDArray[np.floating], measured: NDArray[np.bool_]
) -> dict[str, float]:
    """Is what was taken away white, and as strong as counting noise?

    Parameters
    ----------
    counts, mean : ndarray of float, shape (row, col)
        Measured and predicted counts of one element.
    measured : ndarray of bool, shape (row, col)

    Returns
    -------
    dict
        `residual_variance`: variance of the stabilised residual over that of Poisson counts;
        a little below 1 is right (the estimate follows some of the noise).
        `residual_correlation`: highest correlation of the residual with itself one or two pixels
        away; 0 for white noise, positive where structure was smoothed away or the noise of the
        detector is not white. `residual_z`: the same in standard errors.
    """
    expected = anscombe_variance(mean)
    residual = np.where(measured, anscombe(counts) - anscombe_mean(mean), 0.0)
    total = float(measured.sum())
    if total < 4:
        return {"residual_variance": 1.0, "residual_correlation": 0.0, "residual_z": 0.0}
    variance = float((residual**2).sum()) / max(float(expected[measured].sum()), 1e-9)
    unit = residual / np.sqrt(np.maximum(expected, 1e-6))
    worst, worst_z = 0.0, 0.0
    for down, right in _LAGS:
        a, am = _shifted(unit, down, right), _shifted(measured, down, right)
        both = am[0] & am[1]
        pairs = float(both.sum())
        if pairs < 16:
            continue
        power = max(float((unit[measured] ** 2).mean()), 1e-9)
        correlation = float((a[0] * a[1])[both].mean()) / power
        if correlation > worst:
            worst, worst_z = correlation, correlation * np.sqrt(pairs)
    return {
        "residual_variance": variance,
        "residual_correlation": worst,
        "residual_z": float(worst_z),
    }


def heldout_figures(
    held: NDArray[np.floating], mean: NDArray[np.floating], measured: NDArray[np.bool_]
) -> dict[str, float]:
    """Score a prediction on counts it never saw.

    Parameters
    ----------
    held, mean : ndarray of float, shape (row, col)
        Held-out counts and their predicted mean.
    measured : ndarray of bool, shape (row, col)

    Returns
    -------
    dict
        `heldout_chi2`: reduced χ², 1 when the prediction is perfect and the noise Poisson.
        `heldout_chi2_z`: its distance from 1 in standard errors. `heldout_deviance`: mean
        Poisson deviance of a pixel.
    """
    y = np.asarray(held, dtype=np.float64)[measured]
    m = np.maximum(np.asarray(mean, dtype=np.float64)[measured], 1e-6)
    if y.size == 0 or m.sum() <= 0:
        return {"heldout_chi2": 1.0, "heldout_chi2_z": 0.0, "heldout_deviance": 0.0}
    # Pooled, not averaged over pixels: dividing each by a tiny mean would let single counts rule.
    excess = (y - m) ** 2 - m
    error = np.sqrt(float((2 * m**2 + m).sum()))
    return {
        "heldout_chi2": 1.0 + float(excess.sum() / m.sum()),
        "heldout_chi2_z": float(excess.sum() / error),
        "heldout_deviance": float(poisson_deviance(y, m).mean()),
    }


def judge(
    labels: Sequence[str],
    figures: Sequence[Mapping[str, float]],
    notes: Sequence[str] = (),
) -> Verdict:
    """Turn figures into a verdict. Effects must be both large and significant.

    Parameters
    ----------
    labels : sequence of str
        Name of each element, for the reasons.
    figures : sequence of mapping
        For each element the figures above, and `counts` (total) and `flux_factor` (observed over
        predicted total, before the prediction was scaled to it).
    notes : sequence of str
        Reasons to warn that are already known (channels left out...).

    Returns
    -------
    Verdict
    """
    block: list[str] = []
    warn: list[str] = list(notes)
    for label, seen in zip(labels, figures, strict=True):
        total = seen.get("counts", np.inf)
        if total < 30:
            warn.append(f"{label}: only {total:.0f} counts in the whole map")
            continue
        correlation, z = seen.get("residual_correlation", 0.0), seen.get("residual_z", 0.0)
        if correlation > 0.25 and z > 8:
            block.append(
                f"{label}: what was removed is not noise (neighbouring residuals correlate by "
                f"{correlation:.2f}): structure was smoothed away, or the noise is not white"
            )
        elif correlation > 0.08 and z > 6:
            warn.append(f"{label}: residuals of neighbouring pixels correlate by {correlation:.2f}")
        chi2, chi2_z = seen.get("heldout_chi2", 1.0), seen.get("heldout_chi2_z", 0.0)
        if chi2 > 2.0 and chi2_z > 8:
            block.append(f"{label}: held-out counts scatter {chi2:.1f} times wider than predicted")
        elif chi2 > 1.15 and chi2_z > 6:
            warn.append(f"{label}: held-out counts scatter {chi2:.2f} times wider than predicted")
        spread = seen.get("residual_variance", 1.0)
        if spread < 0.6:
            warn.append(
                f"{label}: the data scatter less than Poisson counts would ({spread:.2f}): they "
                "were smoothed, averaged or scaled before"
            )
        factor = seen.get("flux_factor", 1.0)
        if abs(factor - 1) > max(0.02, 4 / np.sqrt(max(total, 1.0))):
            warn.append(f"{label}: the network's flux was off by {100 * (1 / factor - 1):+.1f} %")
    level = "block" if block else "warn" if warn else "pass"
    return Verdict(level, tuple(block + warn), {})


def _shifted(image: NDArray, down: int, right: int) -> tuple[NDArray, NDArray]:
    rows, cols = image.shape
    first = image[: rows - down, max(0, -right) : cols - max(0, right)]
    second = image[down:, max(0, right) : cols + min(0, right)]
    return first, second
