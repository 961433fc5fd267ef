"""Scores that need no truth: against counts that the method did not see, and pictures to look at."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.special import xlogy

from inscan.models.estimate import Estimate

__all__ = [
    "Panel",
    "Result",
    "best_gaussian",
    "counts_scores",
    "describe",
    "picture",
    "pit_coverage",
]

_LEVELS = (0.5, 0.6827, 0.8, 0.9, 0.95, 0.99)
_DRAWS = 64
_MAXCOVERAGE = Image.Quantize.MAXCOVERAGE
_SIGMAS = (0.4, 0.6, 0.8, 1.0, 1.3, 1.7, 2.2, 3.0, 4.0, 6.0)


@dataclass(frozen=True)
class Result:
    """One method on one set of data.

    Attributes
    ----------
    data, method, how : str
        `how` says what was held out.
    figures : mapping of str to float
    verdict, reasons, doubt
        As the method's report gives them; empty for baselines.
    """

    data: str
    method: str
    how: str
    figures: Mapping[str, float]
    verdict: str = ""
    reasons: Sequence[str] = ()
    doubt: Mapping[str, Any] = field(default_factory=dict)


def describe(data: str, how: str, figures: Mapping[str, float], estimate: Estimate) -> Result:
    """A result with what the estimate says of itself."""
    report = estimate.report
    name = str(report["method"])
    if report.get("recipe") not in (None, "best"):
        name += f" {report['recipe']}"
    return Result(
        data,
        name,
        how,
        figures,
        report["verdict"],
        list(report["reasons"]),
        dict(report.get("doubt") or {}),
    )


def counts_scores(
    held: NDArray[np.floating],
    raw: NDArray[np.floating],
    found: NDArray[np.floating],
    estimate: Estimate | None = None,
    rng: np.random.Generator | None = None,
) -> dict[str, float]:
    """Score a prediction of held-out Poisson counts.

    Parameters
    ----------
    held : ndarray, shape (element, ...)
        Independent counts of the same place.
    raw : ndarray of that shape
        The counts the method saw. The scale between `raw` and `held` is that of their totals,
        element by element: gains of detectors are not the method's business.
    found : ndarray of that shape
        What the method made of `raw`, in its units.
    estimate : Estimate, optional
        With intervals, for their coverage; of the shape of `found`.
    rng : numpy.random.Generator, optional
        For the coverage.

    Returns
    -------
    dict
        "gain x": mean squared error of `raw` over that of `found`, both estimated without bias by
        taking off the Poisson variance of the held-out counts; geometric mean over elements.
        "deviance": mean Poisson deviance of the held-out counts under the prediction. "coverage",
        "coverage without sigma": share of held-out counts inside the 90 % interval convolved with
        their own Poisson noise, and inside that noise alone.
    """
    axes = tuple(range(1, held.ndim))
    keep = (np.isfinite(found) & np.isfinite(held)).reshape(len(held), -1)
    held, raw, found = (np.asarray(z, dtype=np.float64) for z in (held, raw, found))
    total_raw = np.where(np.isfinite(raw), raw, 0).sum(axis=axes, keepdims=True)
    scale = np.where(np.isfinite(held), held, 0).sum(axis=axes, keepdims=True) / total_raw
    gains, deviance = [], []
    for y, x, z, good in zip(held, raw * scale, found * scale, keep, strict=True):
        y, x, z = (a.reshape(-1)[good] for a in (y, x, z))
        # The error of the raw counts is their own Poisson noise, scaled.
        factor = float(scale.reshape(len(held))[len(gains)])
        before = factor * float(x.mean())
        after = float(((z - y) ** 2 - y).mean())
        gains.append(before / max(after, 0.02 * before))
        m = np.maximum(z, 1e-6)
        deviance.append(float((2 * (xlogy(y, np.maximum(y, 1e-9) / m) - (y - m))).mean()))
    figures = {
        "gain x": float(np.exp(np.mean(np.log(gains)))),
        "deviance": float(np.mean(deviance)),
    }
    if estimate is not None:
        rng = rng or np.random.default_rng(0)
        figures["coverage"] = pit_coverage(held, estimate, scale, rng)
        figures["coverage without sigma"] = pit_coverage(held, estimate, scale, rng, noise=False)
    return figures


def pit_coverage(
    held: NDArray[np.floating],
    estimate: Estimate,
    scale: NDArray[np.floating],
    rng: np.random.Generator,
    noise: bool = True,
) -> float:
    """Share of held-out counts between the 5 % and 95 % points of what was predicted for them.

    The prediction mixes Poisson laws over the estimate's own distribution (its intervals at all
    levels, interpolated). Counts are whole: the transform is randomised between neighbours, so that
    a perfect prediction gives 0.90 at any count.
    """
    ends = [estimate.interval(level) for level in _LEVELS]
    knots = np.concatenate([[0.5 - level / 2 for level in _LEVELS[::-1]], [0.5]])
    knots = np.concatenate([knots, [0.5 + level / 2 for level in _LEVELS]])
    quantiles = np.stack(
        [low for low, _ in ends[::-1]] + [estimate.values] + [high for _, high in ends]
    )
    # The point estimate need not be the median; quantiles must rise.
    quantiles = np.maximum.accumulate(quantiles, axis=0)
    below, equal = np.zeros(held.shape), np.zeros(held.shape)
    for _ in range(_DRAWS):
        if noise:
            at = np.interp(rng.random(held.shape), knots, np.arange(len(knots), dtype=float))
            low = np.floor(at).astype(int).clip(0, len(knots) - 2)
            pick = np.take_along_axis(quantiles, low[None], 0)[0]
            above = np.take_along_axis(quantiles, low[None] + 1, 0)[0]
            rate = pick + (at - low) * (above - pick)
        else:
            rate = estimate.values
        drawn = rng.poisson(np.nan_to_num(np.maximum(rate * scale, 0)))
        below += drawn < held
        equal += drawn == held
    u = (below + rng.random(held.shape) * (equal + 1)) / (_DRAWS + 1)
    good = np.isfinite(estimate.values) & np.isfinite(held)
    return float(((u > 0.05) & (u < 0.95))[good].mean())


def best_gaussian(
    raw: NDArray[np.number],
    score: Callable[[NDArray[np.floating]], float],
    axes: int = 2,
    extra: Sequence[float] = (0.0,),
    widths: Sequence[float] = _SIGMAS,
) -> tuple[NDArray[np.floating], str]:
    """The Gaussian filter with the best score: tuned on what it is then judged by.

    Parameters
    ----------
    raw : ndarray
        Filtered over its last two axes, or (`axes` = 3) over the first two and, by the widths
        of `extra`, the last.
    widths : sequence of float
    score : callable
        Lower is better.
    """
    best: tuple[float, NDArray[np.floating], str] | None = None
    for width in widths:
        for along in extra:
            sigma = (width, width, along) if axes == 3 else (0.0,) * (raw.ndim - 2) + (width, width)
            soft = gaussian_filter(np.asarray(raw, dtype=np.float32), sigma, mode="nearest")
            found = score(soft)
            if best is None or found < best[0]:
                best = (found, soft, f"{width:g} px" + (f", {along:g} bins" if along else ""))
    assert best is not None
    return best[1], best[2]


@dataclass(frozen=True)
class Panel:
    """One image of a picture; `like` takes the colour scale of an earlier panel."""

    title: str
    image: NDArray[np.floating]
    like: int | None = None
    diverging: bool = False


def picture(path: Path, title: str, rows: Sequence[Sequence[Panel]]) -> None:
    """Draw rows of panels into a PNG of at most 250 kB."""
    columns = max(len(row) for row in rows)
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(2.5 * columns, 2.35 * len(rows) + 0.4), squeeze=False
    )
    for line, row in zip(axes, rows, strict=True):
        limits = []
        for axis in line:
            axis.set_axis_off()
        for axis, panel in zip(line, row, strict=False):
            image = np.asarray(panel.image, dtype=float)
            low, high = (float(q) for q in np.nanpercentile(image, (0.5, 99.5)))
            if panel.diverging:
                high = max(abs(low), abs(high), 1e-12)
                low = -high
            if panel.like is not None:
                low, high = limits[panel.like]
            limits.append((low, high))
            drawn = axis.imshow(
                image,
                vmin=low,
                vmax=max(high, low + 1e-12),
                cmap="RdBu_r" if panel.diverging else "viridis",
                interpolation="nearest",
            )
            axis.set_title(panel.title, fontsize=8)
            bar = figure.colorbar(drawn, ax=axis, fraction=0.046, pad=0.02)
            bar.ax.tick_params(labelsize=6)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=95)
    plt.close(figure)
    # 256 colours hold what the scales show, at a third of the size.
    Image.open(path).convert("RGB").quantize(256, _MAXCOVERAGE).save(path, optimize=True)
