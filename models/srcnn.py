"""SRCNN, the classical comparison: three convolutions on the bicubically enlarged map.

Dong, Loy, He and Tang, IEEE TPAMI 38, 295 (2016), arXiv:1501.00092: the 9-1-5 network with 64 and
32 feature maps, one map at a time, trained here on the same generated samples and counts as the
project's own network. Their sub-images of 33 pixels, plain stochastic gradient descent and mean
squared error are kept in kind; Adam takes the place of momentum, so that minutes are enough.
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
from inscan.models.superres_samples import coarse_counts, draw_pool, patches
from inscan.models.weights import SHIPPED, Weights, load_weights, save_weights

__all__ = ["SRCNN", "load_srcnn", "save_srcnn", "srcnn_upscale", "train_srcnn"]

_POOL, _POOL_PIXELS = 60, 128
_BATCH, _PATCH = 48, 40
_RATE = 1e-3


class SRCNN(nn.Module):
    """The 9-1-5 network; input and output have shape (n, 1, row, col)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 64, 9, padding=4, padding_mode="replicate")
        self.mapping = nn.Conv2d(64, 32, 1)
        self.rebuild = nn.Conv2d(32, 1, 5, padding=2, padding_mode="replicate")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From the enlarged map, divided by its scale, to the fine one."""
        return self.rebuild(F.relu(self.mapping(F.relu(self.patches(x)))))


def train_srcnn(
    factor: int,
    *,
    steps: int = 600,
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> SRCNN:
    """Train on generated samples with Poisson counts of a box probe.

    Parameters
    ----------
    factor : int
        2 or 4.
    steps : int
        Of 48 patches of 40 x 40 fine pixels.
    seed : int
    progress : callable (step, loss), optional

    Returns
    -------
    SRCNN
        In evaluation mode.
    """
    generator = torch.Generator().manual_seed(seed)
    pool = torch.from_numpy(draw_pool(_POOL, _POOL_PIXELS, np.random.default_rng([seed, factor])))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = SRCNN()
    optimiser = torch.optim.Adam(net.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(1, steps + 1):
        truth, peak = patches(pool, _BATCH, 1, _PATCH, generator)
        counts = coarse_counts(truth, factor, peak, generator)
        scale = torch.from_numpy(map_scale(counts.numpy()))[..., None, None]
        found = net(bicubic(counts / scale, factor))
        loss = F.mse_loss(found, truth * peak[..., None, None] / scale)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if progress and (step % 100 == 0 or step == steps):
            progress(step, float(loss.detach()))
    return net.eval()


def save_srcnn(net: SRCNN, factor: int, folder: Path, training: dict[str, Any]) -> Weights:
    """Write ``superres_srcnn_x{factor}`` and its card."""
    card = {
        "licence": "BSD-3-Clause",
        "training": training,
        "architecture": {"recipe": "srcnn 9-1-5", "factor": factor},
    }
    return save_weights(folder, f"superres_srcnn_x{factor}", net.state_dict(), card)


def load_srcnn(factor: int, folder: Path = SHIPPED) -> SRCNN:
    """The baseline network with its stored weights, in evaluation mode."""
    net = SRCNN()
    net.load_state_dict(dict(load_weights(f"superres_srcnn_x{factor}", folder).tensors))
    return net.eval()


def srcnn_upscale(net: SRCNN, counts: NDArray[np.floating], factor: int) -> NDArray[np.float32]:
    """Fine maps in counts of a coarse pixel.

    Parameters
    ----------
    net : SRCNN
    counts : ndarray of float, shape (element, row, col)
    factor : int

    Returns
    -------
    ndarray of float32, shape (element, row * factor, col * factor)
    """
    x = torch.from_numpy(np.asarray(counts, dtype=np.float32))[:, None]
    scale = torch.from_numpy(map_scale(x[:, 0].numpy()))[:, None, None, None]
    with torch.inference_mode():
        found = net(bicubic(x / scale, factor)) * scale
    return found[:, 0].clamp(min=0).numpy()
