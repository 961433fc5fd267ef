"""Is a map of the kind the uncertainty was calibrated on? A distance of a few statistics.

What is compared needs no truth: brightness, how much of the noise was removed, how rough the answer
is, and what the residual looks like. Maps unlike all calibration samples are not wrong, but nothing
is known of the errors made on them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FEATURES", "Familiar", "features"]

FEATURES = (
    "log mean counts",
    "log share of the noise that is left",
    "log roughness of the estimate",
    "log contrast of the estimate",
    "log variance of the residual over that of counts",
    "correlation of neighbouring residuals",
)
_FAR = 0.99  # quantile of the calibration samples' own distances


@dataclass(frozen=True)
class Familiar:
    """Statistics of the calibration samples.

    Attributes
    ----------
    mean : ndarray of float, shape (feature,)
    precision : ndarray of float, shape (feature, feature)
        Inverse covariance.
    far : float
        Distance that one calibration sample in a hundred exceeds.
    """

    mean: NDArray[np.float64]
    precision: NDArray[np.float64]
    far: float

    @classmethod
    def learn(cls, samples: NDArray[np.float64]) -> "Familiar":
        """From features of samples, shape (sample, feature)."""
        mean = np.median(samples, axis=0)
        # Few samples, correlated features: a tenth of the diagonal keeps the inverse tame.
        covariance = np.cov(samples, rowvar=False)
        covariance = (
            0.9 * covariance + 0.1 * np.diag(np.diag(covariance)) + 1e-6 * np.eye(len(mean))
        )
        known = cls(mean, np.asarray(np.linalg.inv(covariance), np.float64), 1.0)
        return cls(mean, known.precision, float(np.quantile(known._distance(samples), _FAR)))

    def score(self, samples: NDArray[np.float64]) -> NDArray[np.float64]:
        """Distance of each sample over `far`: above 1 is unusual, above 2 unlike all seen."""
        return self._distance(samples) / max(self.far, 1e-9)

    def oddest(self, sample: NDArray[np.float64]) -> str:
        """Which feature is furthest from usual."""
        spread = 1 / np.sqrt(np.diag(self.precision))
        return FEATURES[int(np.argmax(np.abs(sample - self.mean) / spread))]

    def _distance(self, samples: NDArray[np.float64]) -> NDArray[np.float64]:
        off = samples - self.mean
        return np.sqrt(np.einsum("si,ij,sj->s", off, self.precision, off))

    def to_card(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "features": list(FEATURES),
            "mean": np.round(self.mean, 5).tolist(),
            "precision": np.round(self.precision, 5).tolist(),
            "far": round(self.far, 4),
        }

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> "Familiar | None":
        """Read from a model card; None if it holds none, or of other features."""
        stored = (card.get("calibration") or {}).get("familiar")
        if not stored or tuple(stored["features"]) != FEATURES:
            return None
        mean, precision = (np.asarray(stored[k], dtype=np.float64) for k in ("mean", "precision"))
        return cls(mean, precision, float(stored["far"]))


def features(
    counts: NDArray[np.floating],
    mean: NDArray[np.floating],
    spread: NDArray[np.floating],
    measured: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Statistics of one map of one element.

    Parameters
    ----------
    counts, mean : ndarray of float, shape (row, col)
        Measured and estimated counts.
    spread : ndarray of float, shape (row, col)
        Predicted standard deviation of the error on the Anscombe scale.
    measured : ndarray of bool, shape (row, col)

    Returns
    -------
    ndarray of float64, shape (feature,)
    """
    inside = measured if measured.any() else np.ones_like(measured)
    level = max(float(mean[inside].mean()), 1e-4)
    variance = float(mean[inside].var())
    steps = [np.diff(mean, axis=axis) for axis in (0, 1) if mean.shape[axis] > 1]
    rough = float(np.mean([np.mean(step**2) for step in steps])) if steps else 0.0
    unit = np.where(inside, (counts - mean) / np.sqrt(np.maximum(mean, 0.05)), 0.0)
    power = max(float((unit[inside] ** 2).mean()), 1e-6)
    products = [
        np.mean(np.delete(unit, 0, axis) * np.delete(unit, -1, axis))
        for axis in (0, 1)
        if unit.shape[axis] > 1
    ]
    correlation = float(np.mean(products)) / power if products else 0.0
    return np.array(
        [
            np.log(level),
            2 * np.log(max(float(np.sqrt(np.mean(spread[inside] ** 2))), 1e-3)),
            np.log(rough / max(variance, 1e-9) + 1e-4),
            np.log(variance / level**2 + 1e-3),
            np.log(max(power, 1e-3)),
            np.clip(correlation, -1, 1) * 10,
        ]
    )
