"""From the channels of a detector to one Poisson map for each element.

Channels see the same place with different gains (geometry, window, area). The best estimate of
a common rate from Poisson counts is their plain sum over the summed gain and exposure, Σy / Σgt,
not the mean of normalised channels, which lets the weakest channel's noise in.

What is estimated is the mean of that sum. Nothing in it assumes that all channels have the same
mean image: where they differ (topography seen from two sides, shadows) the sum is the average over
their views, its counts are Poisson still, and the notes say so.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inscan.models.channel_health import blocks, gain_field, misfit, noise_ratio, scatter

__all__ = ["ChannelSum", "sum_channels"]

_DEAD = 0.02  # of the median channel's counts
_HOT = 20.0
_ODD = 0.5  # structure not shared with the other channels, relative to what is shared
_APART = 0.05  # the same, worth a remark
_DRIFT = 2.5  # change of gain over the map that geometry does not explain
_UNEVEN = 1.3  # worth a remark
_NOISY = 2.0  # times the scatter of the typical channel
_SURE = 6.0  # standard errors

_Test = Callable[[NDArray, NDArray, NDArray], tuple[float, float]]


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
        What was left out and why, and what else a reader should know.
    unevenness : ndarray of float64, shape (channel,)
        Largest over smallest gain of each channel over the field, 1 where the data show no change.
    scatter : float
        Variance of the noise between the used channels over that of Poisson counts, different
        views of the sample taken off; 1 for a single channel.
    scatter_error : float
        Its standard error; infinite for a single channel.
    """

    counts: NDArray[np.float32]
    exposure: NDArray[np.float32]
    gains: NDArray[np.float64]
    used: NDArray[np.bool_]
    notes: tuple[str, ...]
    unevenness: NDArray[np.float64]
    scatter: float
    scatter_error: float


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
    number = len(counts)
    checked = _Checked(counts, exposure)
    used, notes = checked.healthy()
    gains = _gains(counts, exposure, used)
    fields = checked.fields(used)
    unevenness = np.ones(number)
    for channel, field in fields.items():
        unevenness[channel] = float(field.max() / field.min())
    notes += checked.remarks(used, unevenness)
    total = counts[used].sum(axis=0, dtype=np.float32)
    together = np.zeros(total.shape, dtype=np.float64)
    even = np.zeros(total.shape, dtype=np.float64)
    for channel in np.flatnonzero(used):
        gain = gains[channel][:, None, None] * fields.get(int(channel), 1.0)
        together += gain * exposure[channel]
        even += gain
    # Relative to all channels at full exposure: a gain field by itself changes nothing.
    together /= np.maximum(even, 1e-12)
    spread, error = checked.noise(used)
    return ChannelSum(
        total, together.astype(np.float32), gains, used, tuple(notes), unevenness, spread, error
    )


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


class _Checked:
    """The channels' sums over all elements, whole and in blocks, and the tests made on them."""

    def __init__(self, counts: NDArray[np.float32], exposure: NDArray[np.float32]) -> None:
        self.counts = counts.sum(axis=1, dtype=np.float64)
        self.time = exposure.mean(axis=1, dtype=np.float64)
        # What each channel is worth: a weak one that was off for a while changes little.
        everyone = np.ones(len(counts), dtype=bool)
        weight = counts.sum(axis=(0, 2, 3), dtype=np.float64) + 1e-9
        gains = np.average(_gains(counts, exposure, everyone), axis=1, weights=weight)
        self.light = self.time * np.maximum(gains, 1e-6)[:, None, None]
        self.pooled = np.stack([blocks(image) for image in self.counts])
        self.lit = np.stack([blocks(image) for image in self.light])

    def healthy(self) -> tuple[NDArray[np.bool_], list[str]]:
        """Which channels to use: not dead, hot, noisy, drifting, nor with structure of their own."""
        number = len(self.counts)
        used, notes = np.ones(number, dtype=bool), []
        if number < 3:
            return used, notes
        level, light = self.counts.sum(axis=(1, 2)), self.time.sum(axis=(1, 2))
        rate = np.where(light > 0, level / np.maximum(light, 1e-12), 0.0)
        typical = float(np.median(rate))
        for channel in range(number):
            if typical * light[channel] > 100 and rate[channel] < _DEAD * typical:
                used[channel] = False
                notes.append(f"channel {channel + 1} left out: dead ({level[channel]:.0f} counts)")
            elif typical > 0 and rate[channel] > _HOT * typical and level[channel] > 100:
                used[channel] = False
                ratio = rate[channel] / typical
                notes.append(f"channel {channel + 1} left out: {ratio:.0f} times the typical rate")
        while used.sum() >= 3:
            worst = self._worst(used)
            if worst is None:
                break
            channel, why = worst
            used[channel] = False
            notes.append(f"channel {channel + 1} left out: {why}")
        return used, notes

    def _worst(self, used: NDArray[np.bool_]) -> tuple[int, str] | None:
        """The channel that fits the others least, if one does not fit at all.

        A bad channel is part of what the good ones are held against: only the worst is judged.
        """
        found: list[tuple[float, int, str]] = []
        scatters = {int(c): self._scatter(int(c), used) for c in np.flatnonzero(used)}
        usual = float(np.median([value for value, _ in scatters.values()]))
        for channel, (value, error) in scatters.items():
            field = self.field(channel, used)
            change = 1.0 if field is None else float(np.exp(np.ptp(np.log(field))))
            fit = self._misfit(channel, used, field)
            if fit.relative > _ODD and fit.z > _SURE:
                why = f"{100 * fit.relative:.0f} % of its structure is not in the other channels"
                found.append((fit.relative / _ODD, channel, why))
            if change > _DRIFT:
                why = f"it drifts: its gain changes by a factor {change:.1f} over the map"
                found.append((change / _DRIFT, channel, why))
            if value > _NOISY * max(usual, 1.0) and value - usual > _SURE * error:
                why = f"noisy: it scatters {value:.1f} times wider than counting noise"
                found.append((value / (_NOISY * max(usual, 1.0)), channel, why))
        if not found:
            return None
        _, channel, why = max(found)
        return channel, why

    def field(self, channel: int, used: NDArray[np.bool_]) -> NDArray[np.float64] | None:
        """Gain of a channel over the field against the other used ones, where it changes."""
        others = self._others(channel, used)
        if not others.any():
            return None
        shape = (self.counts.shape[1], self.counts.shape[2])
        ratio = self._ratio(self.lit[channel], self.lit[others].sum(axis=0))
        return gain_field(self.pooled[channel], self.pooled[others].sum(axis=0), ratio, shape)

    def fields(self, used: NDArray[np.bool_]) -> dict[int, NDArray[np.float64]]:
        """Gain fields of the used channels against the mean of all, where they change."""
        share = self.counts.sum(axis=(1, 2)) / max(float(self.counts[used].sum()), 1e-12)
        found = {}
        for channel in np.flatnonzero(used):
            field = self.field(int(channel), used)
            if field is not None:
                # The others are the mean of all less this channel: it changes less against all.
                found[int(channel)] = field ** (1 - share[channel])
        return found

    def remarks(
        self,
        used: NDArray[np.bool_],
        unevenness: NDArray[np.float64],
    ) -> list[str]:
        """What is odd about the channels that are used."""
        notes = []
        for channel in np.flatnonzero(used):
            if unevenness[channel] > _UNEVEN:
                notes.append(
                    f"channel {channel + 1}: its gain changes by a factor "
                    f"{unevenness[channel]:.2f} over the map (geometry or drift): modelled"
                )
        if used.sum() < 2:
            return notes
        apart = {
            int(c): self._misfit(int(c), used, self.field(int(c), used))
            for c in np.flatnonzero(used)
        }
        channel = max(apart, key=lambda c: apart[c].z)
        if apart[channel].z > _SURE and apart[channel].relative > _APART:
            notes.append(
                f"the channels do not see one mean image (channel {channel + 1} differs by "
                f"{100 * apart[channel].relative:.0f} % beyond noise): the result is the average "
                "over their views"
            )
        return notes

    def noise(self, used: NDArray[np.bool_]) -> tuple[float, float]:
        """Noise between the used channels over counting noise, and its standard error."""
        if used.sum() < 2:
            return 1.0, np.inf
        each = [self._scatter(int(c), used, noise_ratio) for c in np.flatnonzero(used)]
        values, errors = np.array(each).T
        return float(values.mean()), float(errors.mean() / np.sqrt(max(used.sum() - 1, 1)))

    def _others(self, channel: int, used: NDArray[np.bool_]) -> NDArray[np.bool_]:
        others = used.copy()
        others[channel] = False
        return others

    def _misfit(self, channel: int, used: NDArray[np.bool_], field: NDArray[np.float64] | None):
        others = self._others(channel, used)
        lit = self.lit[channel] if field is None else blocks(self.light[channel] * field)
        ratio = self._ratio(lit, self.lit[others].sum(axis=0))
        return misfit(self.pooled[channel], self.pooled[others].sum(axis=0), ratio)

    def _scatter(
        self, channel: int, used: NDArray[np.bool_], test: _Test = scatter
    ) -> tuple[float, float]:
        others = self._others(channel, used)
        one, rest = self.counts[channel], self.counts[others].sum(axis=0)
        ratio = self._ratio(self.light[channel], self.light[others].sum(axis=0))
        share = one.sum() / max(float((rest * ratio).sum()), 1e-12)
        return test(one, rest, ratio * share)

    @staticmethod
    def _ratio(one: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(others > 0, one / np.maximum(others, 1e-12), 0.0)
