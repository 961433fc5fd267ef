"""What super-resolution networks are trained on: generated fine maps and their coarse counts.

The families that figures are measured on (cells, Siemens star, battery particles) are never drawn
here.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from inscan.profiles.samples import training_maps

__all__ = ["POOL_ELEMENTS", "coarse_counts", "draw_pool", "gradients", "patches"]

POOL_ELEMENTS = 6
PEAKS = (10.0, 10_000.0)
_SOBEL = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])[None, None] / 8


def draw_pool(count: int, pixels: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Fine maps to train on, shape (map, element, row, col), each element with maximum 1."""
    pool = np.empty((count, POOL_ELEMENTS, pixels, pixels), dtype=np.float32)
    for i in range(count):
        maps = training_maps(rng, pixels, POOL_ELEMENTS)
        pool[i] = maps / np.maximum(maps.max(axis=(-2, -1), keepdims=True), 1e-9)
    return pool


def coarse_counts(
    fine: torch.Tensor, factor: int, peak: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Poisson counts of a box probe, shape (batch, element, row, col); `peak` per element."""
    mean = F.avg_pool2d(fine, factor) * peak[..., None, None]
    return torch.poisson(mean, generator=generator)


def patches(
    pool: torch.Tensor, batch: int, elements: int, side: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random crops, turned and mirrored, with the counts of their brightest coarse pixel.

    Parameters
    ----------
    pool : Tensor of shape (map, element, row, col)
    batch, elements, side : int
        Shape of what is drawn; `side` in fine pixels.
    generator : torch.Generator

    Returns
    -------
    fine : Tensor of shape (batch, element, side, side)
    peak : Tensor of shape (batch, element)
        10 to 10 000, logarithmically; in half of the crops one for all elements, else spread
        over a decade below.
    """
    fine = torch.empty(batch, elements, side, side)
    for b in range(batch):
        which = int(torch.randint(len(pool), (1,), generator=generator))
        order = torch.randperm(pool.shape[1], generator=generator)[:elements]
        r, c = (
            int(torch.randint(pool.shape[-1] - side + 1, (1,), generator=generator))
            for _ in range(2)
        )
        patch = pool[which][order][:, r : r + side, c : c + side]
        turns = int(torch.randint(4, (1,), generator=generator))
        patch = torch.rot90(patch, turns, (-2, -1))
        fine[b] = patch.flip(-1) if torch.rand(1, generator=generator) < 0.5 else patch
    low, high = np.log(PEAKS[0]), np.log(PEAKS[1])
    peak = torch.exp(low + (high - low) * torch.rand(batch, 1, generator=generator))
    spread = torch.exp(np.log(0.1) * torch.rand(batch, elements, generator=generator))
    mixed = torch.rand(batch, 1, generator=generator) < 0.5
    return fine, torch.where(mixed, peak * spread, peak.expand(-1, elements)).clamp(min=3.0)


def gradients(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sobel derivatives along columns and rows of every plane, without the border pixels."""
    planes = x.reshape(-1, 1, *x.shape[-2:])
    return F.conv2d(planes, _SOBEL), F.conv2d(planes, _SOBEL.transpose(-1, -2))
