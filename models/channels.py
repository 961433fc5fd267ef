"""From the channels of a detector to one Poisson map for each element.

Channels see the same place with different gains (geometry, window, area). The best estimate of
a common rate from Poisson counts is their plain sum over the summed gain and exposure, Σy / Σgt,
not the mean of normalised channels, which lets the weakest channel's noise in.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["ChannelSum", "sum_channels"]

_BLOCK = 8  # pixels on a side, pooled so that low counts still tell a sick channel from noise
_DEAD = 0.02  # of the median channel's counts
_HOT = 20.0
_ODD = 0.5  # structure not shared with the other channels, relative to what is shared


@dataclass(frozen=True)
class ChannelSum:
    """Counts of the healthy channels together.

    Attributes
    ----------
    counts : ndarray of float32, shape (element, row, col)
        Sum of the used channels; 0 where nothing was measured.
    exposure : ndarray of float32, shape (element, row, col)
        Gain-weighted mean exposure of the used channels, 1 at reference; 0 where not measured.
    gains : ndarray of float64, shape (channel, element)
        Relative to the mean over used channels; 0 for channels left out.
    used : ndarray of bool, shape (channel,)
    notes : tuple of str
        What was left out and why.
    """

    counts: NDArray[np.float32]
    exposure: NDArray[np.float32]
    gains: NDArray[np.float64]
    used: NDArray[np.bool_]
    notes: tuple[str, ...]


def sum_channels(counts: NDArray[np.float32], exposure: NDArray[np.float32]) -> ChannelSum:
    """Estimate gains, leave out bad channels, add up the rest.

    Parameters
    ----------
    counts : ndarray of float32, shape (channel, element, row, col)
        Raw counts; 0 where `exposure` is 0.
    exposure : ndarray of float32, shape (channel, element, row, col)
        Live time × I0 relative to the reference; 0 marks what was not measured. May be a
        broadcast view.

    Returns
    -------
    ChannelSum
    """
    used = np.ones(len(counts), dtype=bool)
    notes: list[str] = []
    gains = _gains(counts, exposure, used)
    if len(counts) >= 3:
        used, notes = _healthy(counts, exposure)
        gains = _gains(counts, exposure, used)
    total = counts[used].sum(axis=0, dtype=np.float32)
    together = np.zeros(total.shape, dtype=np.float64)
    for channel in np.flatnonzero(used):
        together += gains[channel][:, None, None] * exposure[channel]
    together /= np.maximum(gains[used].sum(axis=0), 1e-12)[:, None, None]
    return ChannelSum(total, together.astype(np.float32), gains, used, tuple(notes))


def _gains(
    counts: NDArray[np.float32], exposure: NDArray[np.float32], used: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Gain of each channel for each element; pooled over elements where counts are few."""
    gains = np.ones(counts.shape[:2])
    per_element = counts.sum(axis=(2, 3), dtype=np.float64)
    for _ in range(2):  # exposures differ little between channels: this converges at once
        expected = np.zeros_like(gains)
        for element in range(counts.shape[1]):
            weight = np.zeros(counts.shape[2:])
            for channel in np.flatnonzero(used):
                weight += gains[channel, element] * exposure[channel, element]
            rate = counts[used, element].sum(axis=0, dtype=np.float64) / np.maximum(weight, 1e-12)
            rate[weight <= 0] = 0.0
            expected[:, element] = np.tensordot(exposure[:, element], rate, 2)
        pooled = per_element.sum(axis=1) / np.maximum(expected.sum(axis=1), 1e-12)
        # 400 counts settle a gain to 5 %; below that the other elements know it better.
        prior = 400.0
        share = expected / np.maximum(expected.mean(axis=0, keepdims=True), 1e-12)
        gains = (per_element + prior * pooled[:, None] * share) / np.maximum(
            expected + prior * share, 1e-12
        )
        gains[~used] = 0.0
        mean = gains[used].mean(axis=0, keepdims=True)
        gains = np.where(mean > 0, gains / np.maximum(mean, 1e-12), used[:, None].astype(float))
    return gains


def _healthy(
    counts: NDArray[np.float32], exposure: NDArray[np.float32]
) -> tuple[NDArray[np.bool_], list[str]]:
    """Which channels to use: neither dead, nor hot, nor with structure the others lack."""
    number = len(counts)
    used = np.ones(number, dtype=bool)
    notes: list[str] = []
    level = counts.sum(axis=(1, 2, 3), dtype=np.float64)
    light = exposure.sum(axis=(1, 2, 3), dtype=np.float64)
    rate = np.where(light > 0, level / np.maximum(light, 1e-12), 0.0)
    typical = float(np.median(rate))
    expected = typical * light
    for channel in range(number):
        if expected[channel] > 100 and rate[channel] < _DEAD * typical:
            used[channel] = False
            notes.append(f"channel {channel + 1} left out: dead ({level[channel]:.0f} counts)")
        elif typical > 0 and rate[channel] > _HOT * typical and level[channel] > 100:
            used[channel] = False
            ratio = rate[channel] / typical
            notes.append(f"channel {channel + 1} left out: {ratio:.0f} times the typical rate")
    pooled = np.stack([_blocks(counts[c].sum(axis=0)) for c in range(number)])
    lit = np.stack([_blocks(exposure[c].mean(axis=0)) for c in range(number)])
    while used.sum() >= 3:
        worst, oddness, excess = -1, 0.0, 0.0
        for channel in np.flatnonzero(used):
            others = used.copy()
            others[channel] = False
            odd, significant = _oddness(pooled, lit, int(channel), others)
            if significant and odd > max(oddness, _ODD):
                worst, oddness, excess = int(channel), odd, odd
        if worst < 0:
            break
        used[worst] = False
        notes.append(
            f"channel {worst + 1} left out: {100 * excess:.0f} % of its structure is not "
            "in the other channels"
        )
    return used, notes


def _oddness(
    pooled: NDArray[np.float64],
    lit: NDArray[np.float64],
    channel: int,
    others: NDArray[np.bool_],
) -> tuple[float, bool]:
    """Misfit of one channel to the sum of the others beyond counting noise, and if it is real."""
    y, light = pooled[channel].ravel(), lit[channel].ravel()
    reference = pooled[others].sum(axis=0).ravel()
    reference_light = np.maximum(lit[others].sum(axis=0).ravel(), 1e-12)
    ratio = light / reference_light
    share = y.sum() / max(float((reference * ratio).sum()), 1e-12)
    expected = share * ratio * reference
    variance = expected * (1 + share * ratio) + 1e-12
    seen = (reference + y > 0) & (light > 0)
    if seen.sum() < 4:
        return 0.0, False
    residual = (y - expected)[seen]
    variance = variance[seen] + 1.0 / 12.0
    misfit = residual**2 - variance
    z = misfit.sum() / np.sqrt(2.0 * (variance**2).sum() + (variance).sum())
    relative = np.sqrt(
        max(float(misfit.sum()), 0.0) / max(float((expected[seen] ** 2).sum()), 1e-12)
    )
    return float(relative), bool(z > 6.0)


def _blocks(image: NDArray[np.floating]) -> NDArray[np.float64]:
    """Sums over blocks; a last, smaller block takes what is left over."""
    rows = np.arange(0, image.shape[0], _BLOCK)
    cols = np.arange(0, image.shape[1], _BLOCK)
    return np.add.reduceat(np.add.reduceat(image.astype(np.float64), rows, axis=0), cols, axis=1)
