"""How far to believe an estimate: calibrated sigma and intervals, and a verdict with reasons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from inscan.models.estimate import Calibration
from inscan.models.noise import anscombe, anscombe_mean, anscombe_variance, poisson_deviance

__all__ = [
    "LEVELS",
    "UNLIKE",
    "CountTable",
    "Verdict",
    "brightness",
    "calibrate_counts",
    "heldout_figures",
    "judge",
    "residual_figures",
    "run_factors",
]

LEVELS = (0.5, 0.6827, 0.8, 0.9, 0.95, 0.99)
UNLIKE = 1.8
"""Score of `inscan.models.novelty` above which a map is unlike all that was calibrated on."""
_COUNT_EDGES = (0.25, 1.0, 4.0, 16.0, 64.0)
_BRIGHT_EDGES = (0.3,)  # predicted counts over the 99th percentile of their map
_SPREAD_BINS = 3
_ENOUGH = 1500  # samples a bin needs for its outer quantiles
_LAGS = ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0))
_FACTORS = (0.4, 4.0)  # range of the variance factor that a run's own counts may ask for


@dataclass(frozen=True)
class CountTable:
    """Calibration of the network's spread.

    Bins go by predicted counts, by how bright that is within its map (the brightest places of a map
    are lowered most), and by the spread itself.

    Attributes
    ----------
    count_edges : ndarray of float, shape (a,)
        Predicted counts of a pixel that part the bins.
    bright_edges : ndarray of float, shape (b,)
        Predicted counts over the 99th percentile of the map; see `brightness`.
    spread_edges : ndarray of float, shape (c,)
        Predicted spread on the stabilised scale (1 is the noise of a raw pixel).
    levels : ndarray of float, shape (level,)
    scale : ndarray of float, shape (bin,)
        Root mean square of error over predicted sigma.
    below, above : ndarray of float, shape (level, bin)
        Ends of the intervals in calibrated sigmas; bin = (count bin × (b + 1) + bright bin) ×
        (c + 1) + spread bin.
    between : ndarray of float, shape ()
        Standard deviation between maps of their mean squared error over that expected.
    """

    count_edges: NDArray[np.float64]
    bright_edges: NDArray[np.float64]
    spread_edges: NDArray[np.float64]
    levels: NDArray[np.float64]
    scale: NDArray[np.float64]
    below: NDArray[np.float64]
    above: NDArray[np.float64]
    between: NDArray[np.float64]

    def bins(self, counts: ArrayLike, spread: ArrayLike, bright: ArrayLike) -> NDArray[np.uint8]:
        """Bin of each pixel from its predicted counts, spread and `brightness`; any shape."""
        by_count = np.searchsorted(self.count_edges, np.asarray(counts))
        by_bright = np.searchsorted(self.bright_edges, np.asarray(bright))
        by_spread = np.searchsorted(self.spread_edges, np.asarray(spread))
        row = by_count * (len(self.bright_edges) + 1) + by_bright
        return (row * (len(self.spread_edges) + 1) + by_spread).astype(np.uint8)

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
            If the card holds no calibration, or one of another kind.
        """
        stored = card.get("calibration")
        if not stored:
            raise ValueError(f"weights {card.get('name')!r} were never calibrated: no sigma")
        names = [entry.name for entry in fields(cls)]
        missing = [name for name in names if name not in stored]
        if missing:
            raise ValueError(
                f"the calibration of weights {card.get('name')!r} lacks {', '.join(missing)}: "
                "calibrate them again"
            )
        return cls(**{name: np.asarray(stored[name], dtype=np.float64) for name in names})


def brightness(counts: NDArray[np.floating]) -> NDArray[np.float64]:
    """Predicted counts over the 99th percentile of their map; shape (element, row, col)."""
    top = np.quantile(counts, 0.99, axis=(1, 2), keepdims=True)
    return np.asarray(counts / np.maximum(top, 1e-9), dtype=np.float64)


def calibrate_counts(
    truth: ArrayLike,
    counts: ArrayLike,
    sigma: ArrayLike,
    spread: ArrayLike,
    bright: ArrayLike,
    *,
    scale: NDArray[np.floating] | None = None,
    between: float = 0.0,
) -> CountTable:
    """Learn the table from predictions on samples with known truth.

    Parameters
    ----------
    truth, counts : array of float, shape (n,)
        Mean counts of each pixel, true and predicted.
    sigma : array of float, shape (n,)
        Predicted standard deviation of `counts`. Uncalibrated, or where `scale` is given already
        multiplied by it and by what `run_factors` says of the run.
    spread : array of float, shape (n,)
        The same on the stabilised scale, uncalibrated.
    bright : array of float, shape (n,)
        See `brightness`.
    scale : ndarray of float, shape (bin,), optional
        Scale of an earlier table of the same predictions, to be kept.
    between : float
        See `CountTable`.

    Returns
    -------
    CountTable
    """
    error = np.asarray(truth, dtype=np.float64) - np.asarray(counts, dtype=np.float64)
    z = error / np.maximum(np.asarray(sigma, dtype=np.float64), 1e-9)
    edges, bright_edges = np.asarray(_COUNT_EDGES), np.asarray(_BRIGHT_EDGES)
    spread = np.asarray(spread, dtype=np.float64)
    spread_edges = np.quantile(spread, np.arange(1, _SPREAD_BINS) / _SPREAD_BINS)
    levels = np.asarray(LEVELS)
    per_count = (len(bright_edges) + 1) * _SPREAD_BINS
    number = (len(edges) + 1) * per_count
    empty = np.zeros(0)
    table = CountTable(
        edges, bright_edges, spread_edges, levels, empty, empty, empty, np.asarray(between)
    )
    bins = table.bins(counts, spread, bright)
    found = np.ones(number)
    below, above = np.zeros((len(levels), number)), np.zeros((len(levels), number))
    for index in range(number):
        inside = z[bins == index]
        if inside.size < _ENOUGH:
            inside = z[bins // _SPREAD_BINS == index // _SPREAD_BINS]
        if inside.size < _ENOUGH:
            inside = z[bins // per_count == index // per_count]
        if inside.size < _ENOUGH:
            inside = z
        # One wild pixel must not set the sigma of a bin.
        inside = np.clip(inside, -12.0, 12.0)
        found[index] = max(float(np.sqrt(np.mean(inside**2))), 0.05)
        unit = found[index] if scale is None else 1.0
        tails = np.quantile(inside / unit, np.concatenate([0.5 - levels / 2, 0.5 + levels / 2]))
        below[:, index] = -tails[: len(levels)]
        above[:, index] = tails[len(levels) :]
    kept = found if scale is None else np.asarray(scale, dtype=np.float64)
    return CountTable(
        edges, bright_edges, spread_edges, levels, kept, below, above, np.asarray(between)
    )


def run_factors(
    held: NDArray[np.floating],
    mean: NDArray[np.floating],
    sigma: NDArray[np.floating],
    measured: NDArray[np.bool_],
    between: float,
) -> NDArray[np.float64]:
    """By how much this run's errors differ from those expected, from counts held out.

    (held − mean)² − mean is an unbiased estimate of the squared error of `mean` whatever the error
    (counts held out by thinning are independent of the rest). It is noisy: all elements together
    are drawn towards 1, and each towards all, as far as the noise is larger than what maps
    differ by (James-Stein).

    Parameters
    ----------
    held, mean : ndarray of float, shape (element, row, col)
        Counts held out, and their predicted mean.
    sigma : ndarray of float, same shape
        Calibrated standard deviation of the error of `mean`.
    measured : ndarray of bool, same shape
    between : float
        `CountTable.between`.

    Returns
    -------
    ndarray of float64, shape (element,)
        Factors for sigma.
    """
    mean = np.where(measured, mean, 0.0)
    excess = np.where(measured, (held - mean) ** 2 - mean, 0.0).sum(axis=(1, 2))
    expected = np.where(measured, sigma**2, 0.0).sum(axis=(1, 2))
    noise = (2 * mean**2 + mean).sum(axis=(1, 2))
    usable = expected > 0
    if not usable.any() or between <= 0:
        return np.ones(len(held))
    # Each element has a say as its counts allow.
    share = np.where(usable, expected / np.maximum(noise, 1e-12), 0.0)
    weight = float((share * expected).sum())
    common = _drawn(float((share * excess).sum()) / max(weight, 1e-12), 1.0, weight, between)
    out = np.ones(len(held))
    for k in np.flatnonzero(usable):
        own = float(expected[k] ** 2 / max(noise[k], 1e-12))
        out[k] = _drawn(float(excess[k] / expected[k]), common, own, between)
    return np.sqrt(np.clip(out, *_FACTORS))


def _drawn(value: float, towards: float, precision: float, between: float) -> float:
    trust = between**2 / (between**2 + 1 / max(precision, 1e-12))
    return towards + trust * (value - towards)


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
        if chi2 > 3.0 and chi2_z > 8:
            block.append(f"{label}: held-out counts scatter {chi2:.1f} times wider than predicted")
        elif chi2 > 1.5 and chi2_z > 6:
            warn.append(f"{label}: held-out counts scatter {chi2:.2f} times wider than predicted")
        spread = seen.get("residual_variance", 1.0)
        if spread < 0.6:
            warn.append(
                f"{label}: the data scatter less than Poisson counts would ({spread:.2f}): they "
                "were smoothed, averaged or scaled before"
            )
        if seen.get("out_of_distribution", 0.0) > UNLIKE:
            warn.append(
                f"{label}: unlike all that the uncertainty was calibrated on (distance "
                f"{seen['out_of_distribution']:.1f} where 1 is rare)"
            )
        if seen.get("error_over_expected", 1.0) > 1.6:
            warn.append(
                f"{label}: held-out counts show errors {seen['error_over_expected']:.1f} times those "
                "usual at such counts; sigma is widened"
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
