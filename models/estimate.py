"""What every method returns: values, their uncertainty, and an account of how they came about."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

__all__ = ["Calibration", "Estimate", "gaussian_calibration"]


@dataclass(frozen=True)
class Calibration:
    """How many sigma below and above a value its interval reaches, bin by bin.

    The factors are quantiles of (truth − value) / sigma, seen on samples with known truth that
    took no part in training (split conformal prediction, separately for each bin: Mondrian;
    Vovk, Gammerman, Shafer, *Algorithmic Learning in a Random World*, 2005). Bins go by what is
    known at prediction time, the predicted intensity for instance.

    Attributes
    ----------
    levels : ndarray of float, shape (level,)
        Nominal coverage, rising, between 0 and 1.
    below, above : ndarray of float, shape (level, bin)
        Distance to the ends of the interval in units of sigma, positive outwards.
    bins : ndarray of integer, shape that of the values, or shape ()
        Which bin each value belongs to; shape () when there is one for all.
    floor : float or None
        No interval reaches below this: 0 for counts, None where negative values make sense.
    """

    levels: NDArray[np.float64]
    below: NDArray[np.float64]
    above: NDArray[np.float64]
    bins: NDArray[np.integer]
    floor: float | None = None


@dataclass(frozen=True)
class Estimate:
    """Denoised or super-resolved values.

    Attributes
    ----------
    values : ndarray of float32
        Shape and units as the method documents. NaN where nothing was measured.
    sigma : ndarray of float32, shape of `values`
        Standard deviation of the error of `values`, in their units. NaN where nothing was measured.
    report : mapping
        JSON-able account: method, weights and their SHA-256, figures, verdict and reasons, time.
    calibration : Calibration
        From sigma to intervals with the promised coverage.
    doubtful : ndarray of bool, shape of `values`, or None
        True where a value is finite and should still not be trusted; `report["doubt"]` says how
        much of the field that is and why. None where a method does not tell.
    """

    values: NDArray[np.float32]
    sigma: NDArray[np.float32]
    report: Mapping[str, Any]
    calibration: Calibration
    doubtful: NDArray[np.bool_] | None = None

    def interval(self, level: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Interval that holds the truth with probability `level`.

        Parameters
        ----------
        level : float
            Coverage, between the lowest and highest calibrated level (0.5 and 0.99 for the
            shipped weights). Between calibrated levels the factors are interpolated on the
            normal quantile scale.

        Returns
        -------
        low, high : ndarray of float32
            Shape and units of `values`; NaN where nothing was measured.

        Raises
        ------
        ValueError
            If the level lies outside the calibrated range.
        """
        calibration = self.calibration
        lowest, highest = float(calibration.levels[0]), float(calibration.levels[-1])
        if not lowest <= level <= highest:
            raise ValueError(
                f"interval level {level} was not calibrated: give one between {lowest:g} "
                f"and {highest:g}"
            )
        at = ndtri(0.5 + 0.5 * level)
        known = ndtri(0.5 + 0.5 * calibration.levels)
        ends = []
        for table in (calibration.below, calibration.above):
            per_bin = np.array([np.interp(at, known, column) for column in table.T])
            ends.append(per_bin[calibration.bins] * self.sigma)
        low = self.values - ends[0]
        high = self.values + ends[1]
        if calibration.floor is not None:
            low = np.maximum(low, calibration.floor)
        return low.astype(np.float32), high.astype(np.float32)


def gaussian_calibration(floor: float | None = None) -> Calibration:
    """One bin with the quantiles of the normal distribution, for errors known to follow it."""
    levels = np.array([0.5, 0.6827, 0.8, 0.9, 0.95, 0.99])
    factors = ndtri(0.5 + 0.5 * levels)[:, None]
    return Calibration(levels, factors, factors, np.zeros((), dtype=np.uint8), floor)
