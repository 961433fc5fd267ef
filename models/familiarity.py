"""Whether a map looks like those the super-resolution network was trained and calibrated on.

A handful of figures of each element's map and result, and how far they lie from their distribution
over the calibration samples (Mahalanobis distance; Hotelling, Ann. Math. Stat. 2, 360 (1931)).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inscan.models.noise import noise_sigma

__all__ = ["Familiarity", "describe"]

_RARE = 0.995  # share of calibration maps that are nearer


def describe(
    maps: NDArray[np.floating],
    values: NDArray[np.floating],
    spread: NDArray[np.floating],
    scale: NDArray[np.floating],
) -> NDArray[np.float64]:
    """Figures of each element.

    Parameters
    ----------
    maps : ndarray of float, shape (element, row, col)
        Coarse counts.
    values, spread : ndarray of float, shape (element, fine row, fine col)
        Result and its predicted scale.
    scale : ndarray of float, shape (element,)
        `superres_input.map_scale` of the maps.

    Returns
    -------
    ndarray of float64, shape (element, 5)
        Logarithm of the scale; of the variance of the finest differences over the mean count (0
        for Poisson noise alone); of the mean predicted scale over the map's; mean value over the
        scale; logarithm of the result's mean curvature over the scale.
    """
    mean = np.maximum(maps.mean(axis=(1, 2), dtype=np.float64), 1e-3)
    noise = noise_sigma(maps) if min(maps.shape[1:]) > 1 else np.sqrt(mean)
    curved = np.zeros(len(maps))
    for axis in (1, 2):
        if values.shape[axis] > 2:
            curved += np.abs(np.diff(values, 2, axis=axis)).mean(axis=(1, 2))
    return np.stack(
        [
            np.log(scale),
            np.log(np.maximum(noise, 0.05) ** 2 / mean),
            np.log(np.maximum(spread.mean(axis=(1, 2)) / scale, 1e-6)),
            values.mean(axis=(1, 2)) / scale,
            np.log(np.maximum(curved / scale, 1e-6)),
        ],
        axis=1,
    ).astype(np.float64)


@dataclass(frozen=True)
class Familiarity:
    """Distribution of `describe` over calibration maps.

    Attributes
    ----------
    mean : ndarray of float64, shape (figure,)
    precision : ndarray of float64, shape (figure, figure)
    far : float
        Squared distance that one calibration map in 200 exceeds.
    """

    mean: NDArray[np.float64]
    precision: NDArray[np.float64]
    far: float

    @classmethod
    def learn(cls, figures: NDArray[np.float64]) -> "Familiarity":
        """From figures of calibration maps, shape (map, figure), more maps than figures."""
        mean = figures.mean(axis=0)
        covariance = np.cov(figures.T) + 1e-4 * np.eye(figures.shape[1])
        precision = np.asarray(np.linalg.inv(covariance), dtype=np.float64)
        apart = figures - mean
        distance = np.einsum("nf,fg,ng->n", apart, precision, apart)
        return cls(mean, precision, float(np.quantile(distance, _RARE)))

    def to_card(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "mean": np.round(self.mean, 5).tolist(),
            "precision": np.round(self.precision, 5).tolist(),
            "far": round(self.far, 3),
        }

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> "Familiarity":
        """Read from a model card."""
        stored = card["familiarity"]
        return cls(np.array(stored["mean"]), np.array(stored["precision"]), float(stored["far"]))

    def score(self, figures: NDArray[np.float64]) -> NDArray[np.float64]:
        """Distance over that of one calibration map in 200, shape (map,); above 1: unlike them."""
        apart = figures - self.mean
        return np.sqrt(np.einsum("nf,fg,ng->n", apart, self.precision, apart) / self.far)

    def judge(
        self,
        report: dict[str, Any],
        maps: NDArray[np.float32],
        values: NDArray[np.floating],
        spread: NDArray[np.floating],
        scale: NDArray[np.floating],
    ) -> None:
        """Put the score of every element into the report; warn of those that are unlike.

        Elements without counts are not judged: their result is an empty map whatever the network.
        """
        scores = self.score(describe(maps, values, spread, scale))
        scores = np.where(maps.sum(axis=(1, 2)) > 0, scores, 0.0)
        report["figures"]["out_of_distribution"] = [round(float(s), 3) for s in scores]
        for e in np.flatnonzero(scores > 1):
            report["verdict"] = "warn" if report["verdict"] == "pass" else report["verdict"]
            report["reasons"].append(
                f"element {e}: unlike the maps the network was trained and calibrated on (score "
                f"{scores[e]:.2f}, at most 1 expected): sigma may be wrong"
            )
