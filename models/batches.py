"""Training examples for the denoiser: crops of clean maps, noise of every kind it will meet.

A share of the examples carries Gaussian noise (coefficient images of a stack, band images of a
spectrum); the rest carries Poisson noise sent through the same variance stabilisation as at
inference, down to half a count a pixel, so that the network learns the real low-count noise and
its answer, sent back through the unbiased inverse, is the mean of the counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from inscan.models.noise import anscombe

__all__ = ["FLOOR", "Batch", "BatchRecipe", "crop", "draw_batch", "draw_exposure", "log_uniform"]

Map = NDArray[np.float32]

FLOOR = (0.002, 0.3)
"""Counts where a map shows nothing, relative to its brightest pixel."""


@dataclass(frozen=True)
class BatchRecipe:
    """How examples are drawn; recorded in the model card.

    Attributes
    ----------
    poisson_share : float
        Share of examples with counting noise.
    peak : tuple of float
        Range of the brightest pixel's mean counts, drawn evenly in its logarithm.
    sigma : tuple of float
        Range of Gaussian noise, relative to the image's range of 1.
    """

    poisson_share: float = 0.6
    peak: tuple[float, float] = (0.7, 500.0)
    sigma: tuple[float, float] = (0.01, 1.2)


@dataclass(frozen=True)
class Batch:
    """One batch, in the units the network sees.

    Attributes
    ----------
    planes : tensor of float32, shape (n, 2, row, col)
        Network input.
    truth : tensor of float32, shape (n, 1, row, col)
        Clean image in input units (Gaussian), or mean counts (Poisson).
    scale : tensor of float32, shape (n, 1, 1, 1)
        Input units to units of one standard deviation (Poisson) or of the image (Gaussian).
    exposure : tensor of float32, shape (n, 1, row, col)
        Relative exposure of each pixel; 1 for Gaussian examples.
    poisson : tensor of bool, shape (n, 1, 1, 1)
    """

    planes: torch.Tensor
    truth: torch.Tensor
    scale: torch.Tensor
    exposure: torch.Tensor
    poisson: torch.Tensor


def draw_batch(
    pool: Sequence[Map], recipe: BatchRecipe, count: int, size: int, rng: np.random.Generator
) -> Batch:
    """Draw one batch.

    Parameters
    ----------
    pool : sequence of ndarray of float32, shape (element, row, col)
        Samples: maps of the same place, 0 or more, sides at least `size`.
    recipe : BatchRecipe
    count, size : int
        Examples, and the side of each.
    rng : numpy.random.Generator

    Returns
    -------
    Batch
    """
    rows = [_example(pool, recipe, size, rng) for _ in range(count)]
    stacked = [np.stack([row[k] for row in rows]) for k in range(5)]
    planes, truth, scale, exposure, poisson = (torch.from_numpy(a) for a in stacked)
    return Batch(
        planes,
        truth[:, None],
        scale[:, None, None, None],
        exposure[:, None],
        poisson[:, None, None, None],
    )


def _example(
    pool: Sequence[Map], recipe: BatchRecipe, size: int, rng: np.random.Generator
) -> tuple[NDArray, NDArray, NDArray, NDArray, NDArray]:
    maps = crop(pool[int(rng.integers(len(pool)))], size, rng)
    clean = _target(maps, int(rng.integers(len(maps))), rng)
    poisson = rng.random() < recipe.poisson_share
    exposure = np.ones((size, size), dtype=np.float32)
    if poisson:
        exposure = draw_exposure(size, rng)
        mean = _counts(clean, recipe, rng) * exposure
        noisy = anscombe(rng.poisson(mean)) / np.sqrt(exposure)
        sigma = 1.0 / np.sqrt(exposure)
        truth = mean
    else:
        truth = _signed(maps, clean, rng)
        sigma = log_uniform(recipe.sigma, rng) * _variation(size, rng)
        noisy = truth + sigma * rng.standard_normal((size, size))
    # Crops differ from whole maps in what they hold: shake the scale they are normalised by.
    scale = max(float(np.sqrt(np.mean(noisy**2))), 1e-6) * np.exp(rng.uniform(-0.5, 0.5))
    planes = np.stack([noisy / scale, sigma / scale]).astype(np.float32)
    if not poisson:
        truth = truth / scale
    return (
        planes,
        truth.astype(np.float32),
        np.float32(scale),  # pyright: ignore[reportReturnType]
        exposure,
        np.bool_(poisson),  # pyright: ignore[reportReturnType]
    )


def crop(maps: Map, size: int, rng: np.random.Generator) -> Map:
    """Cut a square out of a sample, turned and mirrored at random; (element, size, size)."""
    row, col = (int(rng.integers(side - size + 1)) for side in maps.shape[1:])
    out = np.rot90(maps[:, row : row + size, col : col + size], int(rng.integers(4)), (1, 2))
    return out[:, :, ::-1] if rng.random() < 0.5 else out


def _target(maps: Map, at: int, rng: np.random.Generator) -> Map:
    """One element, or one and some of another, from 0 to 1."""
    clean = maps[at].astype(np.float32)
    if len(maps) > 1 and rng.random() < 0.25:
        other = maps[int(rng.integers(len(maps)))]
        clean = clean + rng.uniform(0.1, 1.0) * other
    clean = clean / max(float(clean.max()), 1e-6)
    return clean ** np.float32(np.exp(rng.uniform(-0.5, 0.5)))


def _counts(clean: Map, recipe: BatchRecipe, rng: np.random.Generator) -> NDArray[np.float64]:
    """Mean counts: a floor under the map, and a peak drawn over three decades."""
    floor = log_uniform(FLOOR, rng)
    return log_uniform(recipe.peak, rng) * (floor + (1 - floor) * clean.astype(np.float64))


def _signed(maps: Map, clean: Map, rng: np.random.Generator) -> NDArray[np.float64]:
    """Gaussian targets look like coefficient images too: differences, any offset, either sign."""
    image = clean.astype(np.float64)
    if len(maps) > 1 and rng.random() < 0.5:
        weights = rng.standard_normal(len(maps))
        image = np.tensordot(weights, maps.astype(np.float64), 1)
        image = image / max(float(np.ptp(image)), 1e-6)
    kind = rng.random()
    if kind < 0.4:
        image = image - image.mean()
    elif kind < 0.5:
        image = -image
    return image * rng.uniform(0.3, 1.0)


def draw_exposure(size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Relative exposure (size, size): mostly even; sometimes rows or patches got more or less beam."""
    if rng.random() < 0.7:
        return np.ones((size, size), dtype=np.float32)
    return np.clip(_variation(size, rng), 0.3, 3.0).astype(np.float32)


def _variation(size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    kind = rng.random()
    if kind < 0.6:
        return np.ones((size, size))
    depth = rng.uniform(0.05, 0.6)
    if kind < 0.8:
        along = np.exp(depth * rng.standard_normal(size))
        return np.repeat(along[:, None], size, axis=1)
    axis = np.linspace(0, np.pi * rng.uniform(0.5, 3.0), size)
    wave = np.sin(axis[:, None] + rng.uniform(0, 6)) * np.cos(axis[None, :] + rng.uniform(0, 6))
    return np.exp(depth * wave)


def log_uniform(limits: tuple[float, float], rng: np.random.Generator) -> float:
    """Draw a number, even in its logarithm."""
    low, high = np.log(limits)
    return float(np.exp(rng.uniform(low, high)))
