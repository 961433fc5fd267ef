"""The published super-resolution recipe, as its review describes it, for comparison.

Sixteen residual blocks of two 3x3 convolutions with batch normalisation and ReLU, PixelShuffle,
all elements as channels of one network, a residual added to the bicubic enlargement; L1 plus 0.1
times the L1 difference of Sobel edges; Adam at 1e-4 with cosine annealing, batches of 32 patches of
64 x 64 fine pixels, 300 epochs; flips, quarter turns and intensity scaling. The review ("Resolution
Enhancement for X-Ray Fluorescence Microscopy via Deep Residual Networks", given the DOI
10.1038/s41524-023-00995-9) contradicts itself on one point: a bicubically enlarged input and
PixelShuffle exclude each other. Here the blocks work on the coarse map and PixelShuffle enlarges,
which the rest of the text needs. It does not say how many features: 32 here, as in the project's own
network, so that the two differ by their recipe. Its figures could not be confirmed: DOI and authors belong to another
paper.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from inscan.models.superres_input import bicubic, map_scale
from inscan.models.superres_samples import (
    POOL_ELEMENTS,
    coarse_counts,
    draw_pool,
    gradients,
    patches,
)
from inscan.models.weights import Weights, save_weights

__all__ = [
    "PUBLISHED_EPOCHS",
    "PaperNetwork",
    "network_of_paper",
    "paper_spread",
    "paper_upscale",
    "save_paper",
    "train_paper",
]

PUBLISHED_EPOCHS = 300
_BLOCKS, _WIDTH = 16, 32
_BATCH, _PATCH = 32, 64
_RATE, _EDGES = 1e-4, 0.1
_MARGIN = 8


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


class PaperNetwork(nn.Module):
    """Joint residual network for a fixed number of elements.

    Parameters
    ----------
    factor : int
        2 or 4.
    elements : int
        Channels in and out.
    width : int
        Feature maps.
    blocks : int
    """

    def __init__(
        self,
        factor: int,
        elements: int = POOL_ELEMENTS,
        width: int = _WIDTH,
        blocks: int = _BLOCKS,
    ) -> None:
        super().__init__()
        if factor not in (2, 4):
            raise ValueError(f"factor must be 2 or 4, got {factor}")
        self.factor, self.elements = factor, elements
        self.head = nn.Conv2d(elements, width, 3, padding=1)
        self.body = nn.Sequential(*[_Block(width) for _ in range(blocks)])
        stages: list[nn.Module] = []
        for _ in range(factor // 2):
            stages += [nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.ReLU()]
        self.upsample = nn.Sequential(*stages)
        self.tail = nn.Conv2d(width, elements, 3, padding=1)
        # Training starts from bicubic, whose correction is what the recipe learns.
        nn.init.zeros_(self.tail.weight)
        assert self.tail.bias is not None
        nn.init.zeros_(self.tail.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From (batch, element, row, col), each divided by its scale, to the fine maps."""
        shallow = F.relu(self.head(x.contiguous(memory_format=torch.channels_last)))
        fine = self.tail(self.upsample(shallow + self.body(shallow))).float()
        return bicubic(x.float(), self.factor) + fine


def train_paper(
    factor: int,
    *,
    steps: int,
    seed: int = 0,
    width: int = _WIDTH,
    pool: NDArray[np.float32] | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> PaperNetwork:
    """Train with the published loss, optimiser, batches and augmentation.

    Parameters
    ----------
    factor : int
        2 or 4.
    steps : int
        Optimiser steps. The published schedule is 300 epochs; for a pool of n maps an epoch is
        ``ceil(n * (pixels / 64)**2 / 32)`` of them.
    seed : int
    width : int
        Feature maps.
    pool : ndarray of float32, shape (map, element, row, col), optional
        Fine maps with maximum 1, at least 64 x 64; 200 generated ones if not given.
    progress : callable (step, loss), optional

    Returns
    -------
    PaperNetwork
        In evaluation mode.

    Raises
    ------
    ValueError
        Another factor, or a pool whose maps are too small.
    """
    generator = torch.Generator().manual_seed(seed)
    if pool is None:
        pool = draw_pool(200, 128, np.random.default_rng([seed, factor, 5]))
    if pool.ndim != 4 or min(pool.shape[2:]) < _PATCH:
        raise ValueError(f"the pool must be (map, element, >= {_PATCH}, ...), got {pool.shape}")
    maps = torch.from_numpy(pool)
    elements = pool.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = PaperNetwork(factor, elements, width)
    optimiser = torch.optim.Adam(net.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(1, steps + 1):
        truth, peak = patches(maps, _BATCH, elements, _PATCH, generator)
        counts = coarse_counts(truth, factor, peak, generator)
        # A run may have fewer elements than the network has channels.
        absent = torch.rand(_BATCH, elements, generator=generator) < 0.2
        counts = torch.where(absent[..., None, None], 0.0, counts)
        scale = torch.from_numpy(map_scale(counts.numpy()))[..., None, None]
        target = torch.where(absent[..., None, None], 0.0, truth * peak[..., None, None] / scale)
        with torch.autocast("cpu", torch.bfloat16):
            found = net(counts / scale)
        (down, right), (true_down, true_right) = gradients(found), gradients(target)
        edges = (down - true_down).abs().mean() + (right - true_right).abs().mean()
        loss = (found - target).abs().mean() + _EDGES * edges
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if progress and (step % 50 == 0 or step == steps):
            progress(step, float(loss.detach()))
    return net.eval()


def save_paper(
    net: PaperNetwork, folder: Path, training: dict[str, Any], trust: dict[str, Any]
) -> Weights:
    """Write ``superres_paper_x{factor}`` and its card.

    Parameters
    ----------
    net : PaperNetwork
    folder : Path
    training : dict
        How it was trained, for the card.
    trust : dict
        From `train_superres.calibrate`, with `paper_spread` as the predicted scale.
    """
    card = {
        "licence": "BSD-3-Clause",
        "training": training,
        "architecture": {
            "recipe": "paper",
            "factor": net.factor,
            "elements": net.elements,
            "width": net.head.out_channels,
            "blocks": len(net.body),
        },
        **trust,
    }
    return save_weights(folder, f"superres_paper_x{net.factor}", net.state_dict(), card)


def network_of_paper(weights: Weights, factor: int) -> PaperNetwork:
    """The network a card describes, with its weights, in evaluation mode.

    Raises
    ------
    ValueError
        If the weights are not of this recipe and factor.
    """
    architecture = weights.card["architecture"]
    if architecture.get("recipe") != "paper" or architecture.get("factor") != factor:
        raise ValueError(
            f"weights {weights.name!r} are not of the published recipe at {factor}x: {architecture}"
        )
    net = PaperNetwork(
        factor, architecture["elements"], architecture["width"], architecture["blocks"]
    )
    own = net.state_dict()
    # Batch normalisation counts its batches in integers.
    net.load_state_dict({k: v.to(own[k].dtype) for k, v in weights.tensors.items()})
    return net.eval()


def paper_upscale(
    net: PaperNetwork, maps: NDArray[np.float32], device: torch.device
) -> NDArray[np.float32]:
    """One pass, in groups of as many elements as the network has channels.

    Parameters
    ----------
    net : PaperNetwork
    maps : ndarray of float32, shape (element, row, col)
        Counts, finite.
    device : torch.device

    Returns
    -------
    ndarray of float32, shape (element, row * factor, col * factor)
        In counts of a coarse pixel.
    """
    net = net.to(device)
    scale = map_scale(maps)[:, None, None]
    border = ((0, 0), (_MARGIN, _MARGIN), (_MARGIN, _MARGIN))
    padded = np.pad(maps / scale, border, mode="edge")
    edge = _MARGIN * net.factor
    out = []
    for first in range(0, len(maps), net.elements):
        group = padded[first : first + net.elements]
        filled = np.zeros((net.elements, *group.shape[1:]), dtype=np.float32)
        filled[: len(group)] = group
        with torch.inference_mode():
            fine = net(torch.from_numpy(filled)[None].to(device))[0]
        out.append(fine[: len(group), edge:-edge, edge:-edge].cpu().numpy())
    return np.maximum(np.concatenate(out) * scale, 0).astype(np.float32)


def paper_spread(values: NDArray[np.floating], scale: NDArray[np.floating]) -> NDArray[np.float32]:
    """A measure of error for a recipe that has none: counting noise and a share of the scale.

    Parameters
    ----------
    values : ndarray of float, shape (element, row, col)
    scale : ndarray of float, shape (element,)

    Returns
    -------
    ndarray of float32, shape of `values`
    """
    floor = 0.01 * np.asarray(scale)[:, None, None]
    return np.sqrt(0.05 * np.maximum(values, 0) + floor**2 + 0.01).astype(np.float32)
