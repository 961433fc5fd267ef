"""Samples to train on: several elements of one place, some alike, some alone.

The families themselves come from `inscan.profiles.sample_families`; cells, Siemens stars and
battery particles, on which the methods are judged, are not among them.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from inscan.profiles.sample_families import FAMILIES

__all__ = ["POOL_VERSION", "training_pool"]

POOL_VERSION = 1
"""Raise when the same seed no longer gives the same samples; recorded in model cards."""


def training_pool(count: int, *, side: int = 128, seed: int = 0) -> list[NDArray[np.float32]]:
    """Draw samples.

    Each is made of two to four layers from different families. An element is a mixture of some of
    them, so that elements share structure in part, as on real samples; some elements copy
    another, some hold a layer that no other shows.

    Parameters
    ----------
    count : int
        Number of samples.
    side : int
        Rows and columns of each.
    seed : int

    Returns
    -------
    list of ndarray of float32, shape (element, side, side)
        2 to 6 elements each, values 0 to 1.
    """
    rng = np.random.default_rng(seed)
    return [_sample(rng, side) for _ in range(count)]


def _sample(rng: np.random.Generator, side: int) -> NDArray[np.float32]:
    layers = [_layer(rng, side) for _ in range(int(rng.integers(2, 5)))]
    if rng.random() < 0.4:
        layers.append(_unit(layers[0] * layers[1]))
    elements = []
    for _ in range(int(rng.integers(2, 6))):
        weights = rng.random(len(layers)) ** 2 * (rng.random(len(layers)) < 0.6)
        if not weights.any():
            weights[int(rng.integers(len(layers)))] = 1.0
        elements.append(_unit(np.tensordot(weights, np.stack(layers), 1)))
    if rng.random() < 0.4:
        # The same structure in another element, with another contrast.
        copied = elements[int(rng.integers(len(elements)))]
        elements.append(copied ** np.float32(np.exp(rng.uniform(-0.6, 0.6))))
    return np.stack(elements).astype(np.float32)


def _layer(rng: np.random.Generator, side: int) -> NDArray[np.float32]:
    image = FAMILIES[int(rng.integers(len(FAMILIES)))](rng, side)
    if rng.random() < 0.2:
        # Two levels and the edge a small probe leaves: lithography, inclusions, cracks.
        level = np.quantile(image, rng.uniform(0.2, 0.9))
        image = gaussian_filter((image > level).astype(np.float32), rng.uniform(0.4, 0.8))
    elif rng.random() < 0.5:
        image = gaussian_filter(image, rng.uniform(0.3, 0.9))
    return _unit(image)


def _unit(image: NDArray[np.floating]) -> NDArray[np.float32]:
    low, high = float(image.min()), float(image.max())
    return ((image - low) / max(high - low, 1e-6)).astype(np.float32)
