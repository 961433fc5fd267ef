"""How far to believe a super-resolved map: intervals, the counts folded back, doubtful places.

References
----------
Split conformal prediction by bins (Mondrian): Vovk, Gammerman, Shafer, *Algorithmic Learning in a
Random World*, 2005. Degrees of freedom of an estimator from its answer to a small change of the
data: Ye, J. Am. Stat. Assoc. 93, 120 (1998); one random probe is enough for a map: Ramani, Blu,
Unser, IEEE TIP 17, 1540 (2008). Likelihood-ratio test: Wilks, Ann. Math. Stat. 9, 60 (1938).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, uniform_filter
from scipy.special import xlogy

from inscan.models.estimate import Calibration
from inscan.models.superres_input import ForwardModel

__all__ = [
    "SpreadTable",
    "degrees_of_freedom",
    "folded_figures",
    "judge",
    "unsupported",
]

LEVELS = (0.5, 0.6827, 0.8, 0.9, 0.95, 0.99)
_COUNT_EDGES = (2.0, 30.0, 300.0)  # predicted counts
_SPREAD_EDGES = (0.004, 0.008, 0.016, 0.03, 0.06)  # predicted scale over the map's
_FRACTION_EDGES = (0.03, 0.1, 0.3, 0.6, 0.85)  # predicted value over the map's scale
_ENOUGH = 800  # samples a bin needs for quantiles of its own
_SUPPORT = 9.0  # 2 log likelihood ratio that the counts must give a structure: three sigma
_APART = 1.5  # sigma by which a value must differ from its surroundings to be structure
_AROUND = 2.0  # fine pixels, width of what counts as surroundings
_CONSISTENT = (0.8, 1.2)  # reduced chi square
_PROBE = 0.5  # standard deviations of the counts, for the degrees of freedom


@dataclass(frozen=True)
class SpreadTable:
    """From the network's Laplace scale to sigma and intervals, bin by bin.

    Bins go by predicted counts, by the predicted scale and by the predicted value, the latter two
    relative to the map's brightest neighbourhood: an interval must also hold where a map is bright.

    Attributes
    ----------
    levels : ndarray of float, shape (level,)
    rms : ndarray of float, shape (bin,)
        Root mean square error over the predicted scale.
    below, above : ndarray of float, shape (level, bin)
        Ends of the intervals in units of the predicted scale, outwards.
    """

    levels: NDArray[np.float64]
    rms: NDArray[np.float64]
    below: NDArray[np.float64]
    above: NDArray[np.float64]

    @staticmethod
    def bins(
        values: NDArray[np.floating], spread: NDArray[np.floating], scale: NDArray[np.floating]
    ) -> NDArray[np.uint8]:
        """Bin of each pixel.

        Parameters
        ----------
        values, spread : ndarray of float, shape (element, row, col)
            Predicted counts and their Laplace scale.
        scale : ndarray of float, shape (element,)
            `superres_input.map_scale` of the coarse maps.
        """
        top = np.asarray(scale)[:, None, None]
        by_count = np.digitize(values, _COUNT_EDGES)
        by_spread = np.digitize(spread / top, _SPREAD_EDGES)
        by_value = np.digitize(values / top, _FRACTION_EDGES)
        per_count = (len(_SPREAD_EDGES) + 1) * (len(_FRACTION_EDGES) + 1)
        index = by_count * per_count + by_spread * (len(_FRACTION_EDGES) + 1) + by_value
        return index.astype(np.uint8)

    @classmethod
    def learn(cls, ratio: NDArray[np.floating], bins: NDArray[np.integer]) -> "SpreadTable":
        """Quantiles of (truth - value) / scale on samples with known truth.

        Parameters
        ----------
        ratio : ndarray of float, shape (n,)
        bins : ndarray of integer, shape (n,)
        """
        levels = np.array(LEVELS)
        per_spread = len(_FRACTION_EDGES) + 1
        number = (len(_COUNT_EDGES) + 1) * (len(_SPREAD_EDGES) + 1) * per_spread
        rms, below, above = np.empty(number), np.empty((6, number)), np.empty((6, number))
        at = np.concatenate([0.5 - levels / 2, 0.5 + levels / 2])
        for k in range(number):
            part = ratio[bins == k]
            if part.size < _ENOUGH:
                part = ratio[bins // per_spread == k // per_spread]
            if part.size < _ENOUGH:
                part = ratio
            tails = np.quantile(part, at)
            below[:, k] = np.maximum(-tails[:6], 0)
            above[:, k] = np.maximum(tails[6:], 0)
            # One wild pixel must not set the sigma of a bin.
            rms[k] = np.sqrt(np.mean(np.clip(part, -15, 15) ** 2))
        return cls(levels, rms, below, above)

    def to_card(self) -> dict[str, Any]:
        """JSON-able form, rounded to three digits."""
        return {key: np.round(value, 3).tolist() for key, value in vars(self).items()}

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> "SpreadTable":
        """Read from a model card; everything wider by its ``widened``, if it has one.

        Networks are surer than they should be on what is unlike their training; by how much was
        measured on maps of a kind that is neither trained on nor evaluated with.
        """
        stored = card["calibration"]
        wider = float(stored.get("widened", {}).get("by", 1.0))
        levels, rms, below, above = (
            np.asarray(stored[name], dtype=np.float64)
            for name in ("levels", "rms", "below", "above")
        )
        return cls(levels, wider * rms, wider * below, wider * above)

    def calibration(self, bins: NDArray[np.uint8]) -> Calibration:
        """What an `Estimate` needs: ends in units of sigma."""
        return Calibration(self.levels, self.below / self.rms, self.above / self.rms, bins, 0.0)


def degrees_of_freedom(
    estimate: Callable[[NDArray[np.float32]], NDArray[np.floating]],
    maps: NDArray[np.float32],
    forward: ForwardModel,
    seed: int,
) -> NDArray[np.float64]:
    """Share of the counts' noise that is left in the residual of the result folded back.

    An estimate follows part of the noise it was made from: its residual is smaller than noise, by
    n - 2 tr H + tr H H^T instead of n for the response H of the folded result to the counts. One
    small random change of the counts measures both traces.

    Parameters
    ----------
    estimate : callable
        From counts (element, row, col) to the fine map.
    maps : ndarray of float32, shape (element, row, col)
    forward : ForwardModel
    seed : int

    Returns
    -------
    ndarray of float64, shape (element,)
        Expected sum of squared residuals over the sum of counts; 1 for the truth itself.
    """
    rng = np.random.default_rng([seed, 17])
    base = forward.apply(estimate(maps))
    noise = np.sqrt(np.maximum(base, 0.05))
    change = (_PROBE * noise * rng.choice([-1.0, 1.0], maps.shape)).astype(np.float32)
    changed = np.maximum(maps + change, 0)
    # What was really changed: counts do not fall below 0.
    change = changed - maps
    answer = forward.apply(estimate(changed)) - base
    power = np.maximum((change**2).sum(axis=(1, 2), dtype=np.float64), 1e-9)
    once = (answer * change).sum(axis=(1, 2)) / power
    twice = (answer**2).sum(axis=(1, 2)) / power
    return np.clip(1 - 2 * once + twice, 0.05, 1.0)


def folded_figures(
    values: NDArray[np.floating],
    maps: NDArray[np.float32],
    mask: NDArray[np.bool_],
    forward: ForwardModel,
    left: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Reduced chi square of the result folded back, and its error of the total, by element.

    Parameters
    ----------
    values : ndarray of float, shape (element, row * factor, col * factor)
    maps : ndarray of float32, shape (element, row, col)
    mask : ndarray of bool, shape (row, col)
    forward : ForwardModel
    left : ndarray of float64, shape (element,)
        From `degrees_of_freedom`.

    Returns
    -------
    chi2, flux : ndarray of float64, shape (element,)
        Elements without counts have 1 and 0.
    """
    folded = forward.apply(values)[:, mask]
    seen = maps[:, mask].astype(np.float64)
    made, total = folded.sum(axis=1), seen.sum(axis=1)
    # Ratio of sums: a mean of ratios would be ruled by pixels without counts.
    chi2 = ((seen - folded) ** 2).sum(axis=1) / np.maximum(made * left, 1e-9)
    flux = made / np.maximum(total, 1e-9) - 1
    some = total > 0
    return np.where(some, chi2, 1.0), np.where(some, flux, 0.0)


def unsupported(
    values: NDArray[np.floating],
    sigma: NDArray[np.floating],
    maps: NDArray[np.float32],
    forward: ForwardModel,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Structure that the counts do not vouch for, and places that disagree with them.

    Parameters
    ----------
    values, sigma : ndarray of float, shape (element, row * factor, col * factor)
    maps : ndarray of float32, shape (element, row, col)
    forward : ForwardModel

    Returns
    -------
    invented, contradicted : ndarray of bool, shape of `values`
        Where a value stands out from its surroundings by more than its sigma, though the counts are hardly
        likelier with it than without (2 log likelihood ratio below 9 over 3 x 3 coarse pixels); and where
        the counts of 5 x 5 coarse pixels lie further from the result than counting explains.
    """
    factor = forward.factor
    plain = gaussian_filter(values, (0, _AROUND, _AROUND), mode="nearest")
    folded = np.maximum(forward.apply(values), 1e-3)
    without = np.maximum(forward.apply(plain), 1e-3)
    counts = maps.astype(np.float64)
    gain = xlogy(counts, folded / without) - (folded - without)
    support = 2 * 9 * uniform_filter(gain, 3, axes=(1, 2), mode="nearest")
    stands_out = np.abs(values - plain) > _APART * sigma
    invented = stands_out & ~_fine(support > _SUPPORT, factor)
    square = (counts - folded) ** 2 / np.maximum(folded, 1.0)
    local = uniform_filter(square, 5, axes=(1, 2), mode="nearest")
    contradicted = _fine(local > 1 + 6 * np.sqrt(2 / 25), factor)
    return invented, contradicted


def judge(
    report: dict[str, Any],
    values: NDArray[np.floating],
    sigma: NDArray[np.floating],
    maps: NDArray[np.float32],
    mask: NDArray[np.bool_],
    forward: ForwardModel,
    estimate: Callable[[NDArray[np.float32]], NDArray[np.floating]],
    seed: int,
) -> NDArray[np.bool_]:
    """Fold the result back to the scan, compare with its counts, and say where not to trust it.

    Parameters
    ----------
    report : dict
        Receives figures, verdict, reasons and doubt.
    values, sigma : ndarray of float, shape (element, row * factor, col * factor)
    maps : ndarray of float32, shape (element, row, col)
        Gaps filled.
    mask : ndarray of bool, shape (row, col)
    forward : ForwardModel
    estimate : callable
        How `values` came from `maps`, for the degrees of freedom.
    seed : int

    Returns
    -------
    ndarray of bool, shape of `values`
        Doubtful.
    """
    left = degrees_of_freedom(estimate, maps, forward, seed)
    chi2, flux = folded_figures(values, maps, mask, forward, left)
    figures = report["figures"]
    figures["consistency_chi2"] = _rounded(chi2)
    figures["share_of_noise_followed"] = _rounded(1 - left)
    figures["flux_bias"] = _rounded(flux)
    # What scatters by chance: reduced chi square of n pixels has a spread of root 2 / n.
    slack = 4 * np.sqrt(2 / max(int(mask.sum()), 1))
    low = _CONSISTENT[0] - slack
    # And what sigma admits: an error of the mean over a coarse pixel is at most that of its pixels.
    counted = np.maximum(left * maps[:, mask].sum(axis=1, dtype=np.float64), 1e-9)
    admitted = forward.apply(np.square(sigma))[:, mask].sum(axis=1) / counted
    high = _CONSISTENT[1] + slack + admitted
    figures["consistency_chi2_admitted"] = _rounded(high)
    for e in np.flatnonzero((maps[:, mask].sum(axis=1) > 0) & ((chi2 < low) | (chi2 > high))):
        report["verdict"] = "warn"
        what = "is closer to the counts than noise lets it be" if chi2[e] < 1 else "disagrees with"
        what += "" if chi2[e] < 1 else " the counts it came from"
        report["reasons"].append(
            f"element {e}: folded back, the result {what} (reduced chi square {chi2[e]:.2f}, "
            f"expected {low:.2f} to {high[e]:.2f})"
        )
    if (~mask).any():
        figures["pixels_not_measured"] = int((~mask).sum())
    invented, contradicted = unsupported(values, sigma, maps, forward)
    inside = np.broadcast_to(_fine(mask[None], forward.factor), values.shape)
    doubtful = (invented | contradicted) & inside
    reasons = [
        f"{100 * where[inside].mean():.1f} % of the pixels {what}"
        for where, what in (
            (invented, "show structure that the counts do not vouch for"),
            (contradicted, "lie where the counts disagree with the result"),
        )
        if where[inside].any()
    ]
    share = float(doubtful[inside].mean()) if inside.any() else 0.0
    report["doubt"] = {"share": round(share, 5), "reasons": reasons}
    return doubtful


def _rounded(values: NDArray[np.floating]) -> list[float]:
    return [round(float(value), 5) for value in values]


def _fine(coarse: NDArray[np.bool_], factor: int) -> NDArray[np.bool_]:
    return coarse.repeat(factor, axis=1).repeat(factor, axis=2)
