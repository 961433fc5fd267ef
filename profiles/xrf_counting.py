"""From rates to counts: channels with their own gain, dead time, Poisson noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from inscan.profiles.xrf_response import Response
from inscan.profiles.xrf_samples import XRFSample

__all__ = ["Counts", "CountingChain"]


@dataclass(frozen=True, eq=False)
class Counts:
    """What the detector reports for n exposures.

    Attributes
    ----------
    mcaroi
        (n, channel, mcaroi) int64: counts in the windows.
    live_time
        (n, channel) float64: s.
    spectra
        (n, channel, bin) int64 or None.
    """

    mcaroi: np.ndarray
    live_time: np.ndarray
    spectra: np.ndarray | None


class CountingChain:
    """Detector elements and their electronics in front of a sample.

    Channel c sees the share ``gain_c / sum(gain)`` of all counts. With an input rate R it counts
    during live time = dwell / (1 + R * dead_time) (non-paralysable; Knoll, Radiation Detection and
    Measurement, ch. 4), so that counts / live time is an unbiased rate.

    Parameters
    ----------
    sample
        What is in front of the detector; blurred by the probe once, here.
    response
        Its spectra; built for the elements of the sample.
    channels
        1 to 16.
    seed
        Gains and noise; same seed and same calls, same counts.
    dead_time
        s per detected photon.
    probe_fwhm
        Size of the beam on the sample, um.

    Raises
    ------
    ValueError
        Too many channels, or a response for other elements.
    """

    def __init__(
        self,
        sample: XRFSample,
        response: Response,
        *,
        channels: int,
        seed: int,
        dead_time: float = 1.5e-6,
        probe_fwhm: float = 0.2,
    ) -> None:
        if not 1 <= channels <= 16:
            raise ValueError(f"{channels} detector channels; expected 1 to 16")
        if response.elements != sample.elements:
            raise ValueError(
                f"a response for {response.elements}, but the sample has {sample.elements}"
            )
        if dead_time < 0:
            raise ValueError(f"dead time {dead_time} s; expected 0 or more")
        self._rng = np.random.default_rng([seed, 10])
        gains = self._rng.uniform(0.6, 1.4, channels)
        self._share = gains / gains.sum()
        self._sample = sample.seen(probe_fwhm)
        self._dead_time = dead_time
        self.response = response
        # Every edge of a window starts a new segment: counts in disjoint segments are independent,
        # and overlapping windows share the counts of the segments that they share.
        ends = np.unique(np.append(response.bins, [0, len(response.scatter)]))
        self._segments = self._sums(ends)
        members = (ends[:-1, None] >= response.bins[:, 0]) & (ends[1:, None] <= response.bins[:, 1])
        self._members = members.astype(np.int64)
        # Line templates and the scatter as the last row: one product gives a whole spectrum.
        self._full = np.vstack([response.templates, response.scatter])
        self._total = self._full.sum(axis=1)

    @property
    def channels(self) -> int:
        """Number of detector channels."""
        return len(self._share)

    def _sums(self, ends: np.ndarray) -> np.ndarray:
        rows = np.vstack([self.response.templates, self.response.scatter])
        cumulative = np.concatenate([np.zeros((len(rows), 1)), np.cumsum(rows, axis=1)], axis=1)
        return np.diff(cumulative[:, ends], axis=1)

    def count(
        self,
        slow: np.ndarray,
        fast: np.ndarray,
        dwell: float,
        intensity: np.ndarray,
        *,
        spectra: bool = False,
        largest: int | None = None,
    ) -> Counts:
        """Expose n pixels.

        Parameters
        ----------
        slow, fast
            (n,) or (n, m): position of each pixel in um, or m positions that it is averaged over
            (a pixel that was taken in flight).
        dwell
            s.
        intensity
            (n,): beam relative to the nominal one.
        spectra
            Also full spectra; the windows are then sums of the same counts.
        largest
            Largest value that a spectrum bin can hold; counts beyond are lost. None: any.
        """
        slow, fast = np.asarray(slow), np.asarray(fast)
        rates = self._sample.rate(slow.ravel(), fast.ravel())
        rates = rates.reshape(len(rates), len(slow), -1).mean(axis=2)
        # (n, element + 1): the scatter is always there.
        weights = np.column_stack([rates.T, np.ones(len(slow))]) * intensity[:, None]
        arriving = (weights @ self._total)[:, None] * self._share
        live_time = dwell / (1 + arriving * self._dead_time)
        scale = (self._share * live_time)[:, :, None]
        if not spectra:
            parts = self._rng.poisson((weights @ self._segments)[:, None, :] * scale)
            return Counts(parts @ self._members, live_time, None)
        counts = self._rng.poisson((weights @ self._full)[:, None, :] * scale)
        if largest is not None:
            np.minimum(counts, largest, out=counts)
        sums = [counts[..., a:b].sum(axis=2) for a, b in self.response.bins]
        empty = np.zeros((*live_time.shape, 0), np.int64)
        return Counts(np.stack(sums, axis=-1) if sums else empty, live_time, counts)
