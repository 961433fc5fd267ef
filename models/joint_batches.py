"""Training examples of several elements at once, sent through the rotation used at inference.

On the principal axes of the elements the noise is a mixture of counting noises, skewed at low
counts and different from pixel to pixel; no Gaussian example looks like that. The network is
scored on what is made of its answers: counts of every element, rotated back.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from inscan.models.batches import FLOOR, BatchRecipe, crop, draw_exposure, log_uniform
from inscan.models.counting import together
from inscan.models.noise import anscombe_mean, inverse_anscombe_torch

__all__ = ["JointBatch", "capped", "count_errors", "draw_joint", "joint_loss"]

_ELEMENTS = (2, 6)  # fewest, and one more than most
_SPREAD = 1.2  # of the logarithm of the elements' brightness around their common one

_USUAL = 20.0


@dataclass(frozen=True)
class JointBatch:
    """Places, each with the same number of elements.

    Attributes
    ----------
    planes : tensor of float32, shape (place, element, 2, row, col)
        Network input: one plane for each principal axis.
    scale, offset : tensor of float32, shape (place, element, 1, 1)
        Output × scale + offset is the plane on the stabilised scale.
    basis : tensor of float32, shape (place, element, element)
        Elements as combinations of planes.
    counts : tensor of float32, shape (place, element, row, col)
        True mean counts at the typical exposure.
    stabilised : tensor of float32, shape (place, element, row, col)
        True planes on the stabilised scale.
    typical : tensor of float32, shape (place, element, 1, 1)
        Mean exposure.
    """

    planes: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor
    basis: torch.Tensor
    counts: torch.Tensor
    stabilised: torch.Tensor
    typical: torch.Tensor


def draw_joint(
    pool: Sequence[NDArray[np.float32]],
    recipe: BatchRecipe,
    count: int,
    size: int,
    rng: np.random.Generator,
) -> JointBatch:
    """Draw one batch.

    Parameters
    ----------
    pool : sequence of ndarray of float32, shape (element, row, col)
    recipe : BatchRecipe
        Its range of peak counts is used.
    count : int
        Planes in the batch, about; at least one place is drawn.
    size : int
        Side of each.
    rng : numpy.random.Generator

    Returns
    -------
    JointBatch
    """
    elements = int(rng.integers(*_ELEMENTS))
    places = [_place(pool, recipe, elements, size, rng) for _ in range(max(1, count // elements))]
    return JointBatch(*(torch.from_numpy(np.stack(parts)) for parts in zip(*places, strict=True)))


def _place(
    pool: Sequence[NDArray[np.float32]],
    recipe: BatchRecipe,
    elements: int,
    size: int,
    rng: np.random.Generator,
) -> tuple[NDArray, ...]:
    maps = crop(pool[int(rng.integers(len(pool)))], size, rng)
    if len(maps) >= elements:
        clean = maps[rng.permutation(len(maps))[:elements]]
    else:
        # Elements of one phase show the same map at other counts.
        clean = maps[rng.permutation(np.arange(elements) % len(maps))]
    top = np.maximum(clean.max(axis=(1, 2), keepdims=True), 1e-6)
    shape = (elements, 1, 1)
    common = log_uniform(recipe.peak, rng)
    peak = np.clip(common * np.exp(rng.normal(0, _SPREAD, shape)), *recipe.peak)
    floor = np.exp(rng.uniform(np.log(FLOOR[0]), np.log(FLOOR[1]), shape))
    rate = peak * (floor + (1 - floor) * clean / top)
    light = np.repeat(draw_exposure(size, rng)[None], elements, axis=0)
    seen = together(rng.poisson(rate * light).astype(np.float32), light)
    typical = seen.typical.astype(np.float64)
    true = np.tensordot(seen.basis.T, anscombe_mean(rate * typical) / np.sqrt(typical), 1)
    parts = (seen.planes, seen.scale, seen.offset, seen.basis, rate * typical, true, typical)
    return tuple(np.asarray(part, dtype=np.float32) for part in parts)


def joint_loss(
    net: torch.nn.Module, batch: JointBatch, device: str | torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted squared error of the counts, and the likelihood of the planes' predicted spread.

    Parameters
    ----------
    net : module
        Planes (n, 2, row, col) to (n, 2, row, col).
    batch : JointBatch
    device : str or torch.device

    Returns
    -------
    squared, likelihood : tensor of float32, shape ()
    """
    places, elements = batch.planes.shape[:2]
    flat = batch.planes.flatten(0, 1).to(device).contiguous(memory_format=torch.channels_last)
    with torch.autocast(flat.device.type, torch.bfloat16):
        out = net(flat)
    out = out.float().unflatten(0, (places, elements))
    scale, offset = batch.scale.to(device), batch.offset.to(device)
    planes = out[:, :, 0] * scale + offset
    back = torch.einsum("pek,pkrc->perc", batch.basis.to(device), planes)
    found, _ = inverse_anscombe_torch(back * batch.typical.to(device).sqrt())
    truth = batch.counts.to(device)
    squared = capped(count_errors(found, truth).mean(dim=(1, 2, 3))).mean()
    error = (planes - batch.stabilised.to(device)).detach()
    spread = (out[:, :, 1] * scale).clamp(min=1e-6)
    ratio = (error / spread).square().clamp(max=100.0)
    return squared, (0.5 * ratio + spread.log()).mean()


def count_errors(counts: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Squared error of counts, weighted so that dim and bright maps and pixels all have a say.

    Weights never depend on the truth of a pixel: the least error is then at the mean of what the
    counts may have been, which keeps the flux.

    Parameters
    ----------
    counts, truth : tensor of float32, shape (..., row, col)

    Returns
    -------
    tensor of float32, same shape
    """
    mean = truth.mean(dim=(-2, -1), keepdim=True).clamp(min=0.0)
    peak = truth.amax(dim=(-2, -1), keepdim=True).clamp(min=0.0)
    weight = 2.0 / (mean + 0.4 * counts.detach().clamp(min=0.0) + 0.05)
    return (counts - truth) ** 2 * weight * (20.0 / (peak + 1.0)) ** 0.25


def capped(losses: torch.Tensor) -> torch.Tensor:
    """Losses as they are where they are usual (about 1), and their logarithm where they are wild.

    Early in training single examples overshoot ten thousand times; clipping their gradient alone
    would still throw the average of the weights back.

    Parameters
    ----------
    losses : tensor of float, any shape
        Not negative.
    """
    return _USUAL * torch.log1p(losses / _USUAL)
