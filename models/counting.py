"""Denoise maps of counts: stabilise, guide each element by the others, run, undo.

All maps here are whole rectangles without gaps; `inscan.models.n2n` cuts and fills them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from inscan.models.infer import Denoiser, standard_guide
from inscan.models.noise import anscombe, anscombe_slope, inverse_anscombe

__all__ = ["CountPrediction", "denoise_counts", "element_guides", "network_planes"]

_BLUR = 1.5  # pixels; noise of correlations falls 28-fold, structure of the maps hardly


@dataclass(frozen=True)
class CountPrediction:
    """What the network says of a set of maps.

    Attributes
    ----------
    stabilised : ndarray of float32, shape (element, row, col)
        Estimate on the Anscombe scale of the counts of each pixel.
    spread : ndarray of float32, shape (element, row, col)
        Predicted standard deviation of its error, same scale, not yet calibrated.
    """

    stabilised: NDArray[np.float32]
    spread: NDArray[np.float32]

    @property
    def counts(self) -> NDArray[np.float64]:
        """Mean counts of each pixel at its own exposure, shape (element, row, col)."""
        return inverse_anscombe(self.stabilised)

    @property
    def sigma(self) -> NDArray[np.float64]:
        """Standard deviation of the error of `counts`, same units."""
        return anscombe_slope(self.stabilised) * self.spread


def denoise_counts(
    denoiser: Denoiser,
    counts: NDArray[np.floating],
    exposure: NDArray[np.floating],
    tta: bool | int = True,
) -> CountPrediction:
    """Denoise every element of one place.

    Parameters
    ----------
    denoiser : Denoiser
    counts : ndarray of float, shape (element, row, col)
        Poisson counts.
    exposure : ndarray of float, shape (element, row, col)
        Above 0; counts over exposure is the rate whose structure is sought.
    tta : bool or int
        As `Denoiser.run` takes it.

    Returns
    -------
    CountPrediction
    """
    planes, scale = network_planes(counts, exposure)
    out = denoiser.run(planes, tta) * scale[:, None]
    root = np.sqrt(exposure)
    return CountPrediction(
        (out[:, 0] * root).astype(np.float32), (out[:, 1] * root).astype(np.float32)
    )


def network_planes(
    counts: NDArray[np.floating], exposure: NDArray[np.floating]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Network input for maps of counts.

    Parameters
    ----------
    counts, exposure : ndarray of float, shape (element, row, col)

    Returns
    -------
    planes : ndarray of float32, shape (element, 4, row, col)
    scale : ndarray of float32, shape (element, 1, 1)
        Multiply the network's output by it to get stabilised counts over √exposure.
    """
    root = np.sqrt(exposure).astype(np.float32)
    stabilised = (anscombe(counts) / root).astype(np.float32)
    sigma = 1.0 / root
    guide, guide_sigma = element_guides(stabilised, sigma)
    scale = np.sqrt(np.mean(np.square(stabilised), axis=(1, 2), keepdims=True))
    planes = np.stack([stabilised / scale, sigma / scale, guide, guide_sigma], axis=1)
    return planes.astype(np.float32), scale.astype(np.float32)


def element_guides(
    maps: NDArray[np.float32], sigma: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """For each element, the combination of the other elements that predicts it best.

    Weights come from least squares on slightly blurred maps, so that an element which shares
    nothing with the target gets none, however strong it is. Where the combination says nothing
    significant about the target there is no guide at all.

    Parameters
    ----------
    maps : ndarray of float32, shape (element, row, col)
        Noisy maps with noise of constant order.
    sigma : ndarray of float32, shape (element, row, col)
        Standard deviation of their noise.

    Returns
    -------
    guide, guide_sigma : ndarray of float32, shape (element, row, col)
        Standardised as `standard_guide` does; zero where there is no guide.
    """
    guides, spreads = np.zeros_like(maps), np.zeros_like(maps)
    number, rows, cols = maps.shape
    if number < 2:
        return guides, spreads
    soft = gaussian_filter(maps, (0, _BLUR, _BLUR), mode="nearest").reshape(number, -1)
    soft = soft - soft.mean(axis=1, keepdims=True)
    shared = (soft @ soft.T).astype(np.float64) / soft.shape[1]
    independent = max(rows * cols / (4 * np.pi * _BLUR**2), 1.0)
    for element in range(number):
        others = np.array([k for k in range(number) if k != element])
        among = shared[np.ix_(others, others)]
        ridge = 1e-3 * np.trace(among) / len(others) + 1e-12
        weights = np.linalg.solve(among + ridge * np.eye(len(others)), shared[others, element])
        explained = float(weights @ shared[others, element])
        if explained * independent <= 16.0 * shared[element, element]:
            continue  # a correlation below four standard errors
        guide = np.tensordot(weights, maps[others], 1)
        variance = np.tensordot(weights**2, sigma[others] ** 2, 1)
        guides[element], spreads[element] = (
            plane[0] for plane in standard_guide(guide[None], np.sqrt(variance)[None])
        )
    return guides, spreads
