"""The published way to denoise a spectrum image: a 3-D autoencoder trained on the cube itself.

Noise2Self: some voxels are hidden by a Bernoulli mask and the network must predict them from the
others; as their noise is independent, the best prediction is the signal. As published, hidden
voxels are set to zero and the error is squared; rates, widths and steps are not given there and
are ours. Two changes (`counting`) make it work where nine voxels in ten are zero and a hidden one
cannot be told from an empty one: what is left after masking is divided by its probability, so
that the input is no darker on average, and the loss is the Poisson likelihood of the hidden
counts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

__all__ = ["Autoencoder", "AutoencoderFit", "fit_autoencoder"]

_KEEP = 0.8
_PATCH = 32
_RATE = 2e-3
_HELD_OUT = 4  # masks the held-out likelihood is averaged over
_FLOOR = 1e-6


class Autoencoder(nn.Module):
    """Strided 3-D convolutions, one residual bottleneck layer, transposed convolutions back."""

    def __init__(self, inputs: int = 1, width: int = 8, *, positive: bool = True) -> None:
        super().__init__()
        self.positive = positive
        self.enter = nn.Conv3d(inputs, width, 3, padding=1)
        self.shrink = nn.Conv3d(width, 2 * width, 4, stride=2, padding=1)
        self.shrink_again = nn.Conv3d(2 * width, 4 * width, 4, stride=2, padding=1)
        self.first = nn.Conv3d(4 * width, 4 * width, 3, padding=1)
        self.second = nn.Conv3d(4 * width, 4 * width, 3, padding=1)
        self.grow = nn.ConvTranspose3d(4 * width, 2 * width, 4, stride=2, padding=1)
        self.grow_again = nn.ConvTranspose3d(2 * width, width, 4, stride=2, padding=1)
        self.leave = nn.Conv3d(width, 1, 3, padding=1)
        assert self.leave.bias is not None
        # The mean of the input is 1/4; softplus gives that at -1.26.
        nn.init.constant_(self.leave.bias, -1.26 if positive else 0.25)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Relative rate (> 0 if `positive`), shape (batch, 1, bin, row, col); sizes must be multiples of 4."""
        h = F.relu(self.shrink(F.relu(self.enter(x))))
        h = F.relu(self.shrink_again(h))
        h = h + self.second(F.relu(self.first(h)))
        h = F.relu(self.grow(F.relu(h)))
        h = F.relu(self.grow_again(h))
        rate = self.leave(h).float()
        return F.softplus(rate) if self.positive else rate


@dataclass(frozen=True)
class AutoencoderFit:
    """A cube denoised by an autoencoder fitted to it.

    Attributes
    ----------
    values, sigma : ndarray of float32, shape (bin, row, col)
        Expected counts, and how far predictions from different masks scatter.
    held_out : float
        Loss of hidden voxels, mean over voxels: Poisson negative log likelihood, or squared error.
    parameters : int
    """

    values: NDArray[np.float32]
    sigma: NDArray[np.float32]
    held_out: float
    parameters: int


def fit_autoencoder(
    cube: NDArray[np.float32],
    guide: NDArray[np.float32] | None,
    *,
    steps: int,
    seed: int,
    device: torch.device,
    counting: bool = True,
    progress: Callable[[float], None] | None = None,
) -> AutoencoderFit:
    """Train on the cube with Bernoulli masks, then predict from the whole noisy cube.

    Parameters
    ----------
    cube : ndarray of float32, shape (bin, row, col)
        Counts.
    guide : ndarray of float32, shape (row, col), optional
        Contrast image, given to the network as a second input at every bin.
    steps : int
        Optimiser steps of one 32 x 32 patch over all bins.
    seed : int
    device : torch.device
    counting : bool
        Scale what is not hidden and score by likelihood; else as published.
    progress : callable, optional

    Returns
    -------
    AutoencoderFit
    """
    generator = torch.Generator().manual_seed(seed)
    inputs, shape = _padded(cube, guide)
    scale = max(4 * float(cube.mean()), 0.05)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Autoencoder(len(inputs), positive=counting).to(device)
    optimiser = torch.optim.Adam(net.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps))
    side = tuple(min(_PATCH, n) for n in inputs.shape[2:])
    for step in range(steps):
        start = [
            int(torch.randint(n - s + 1, (1,), generator=generator))
            for n, s in zip(inputs.shape[2:], side, strict=True)
        ]
        patch = inputs[:, :, start[0] : start[0] + side[0], start[1] : start[1] + side[1]]
        if side[0] == side[1]:
            patch = torch.rot90(patch, int(torch.randint(4, (1,), generator=generator)), (-2, -1))
        if torch.rand(1, generator=generator) < 0.5:
            patch = patch.flip(-1)
        loss = _hidden_loss(net, patch.contiguous().to(device), scale, generator, counting)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if progress is not None:
            progress(0.9 * (step + 1) / steps)
    net.eval()
    with torch.inference_mode():
        held = [
            float(_hidden_loss(net, inputs.to(device), scale, generator, counting))
            for _ in range(_HELD_OUT)
        ]
        whole = _predict(net, inputs.to(device), scale)
        other = torch.stack(
            [
                _predict(net, _masked(inputs, generator, counting)[0].to(device), scale)
                for _ in range(4)
            ]
        )
    bins, rows, cols = shape
    values = whole[:bins, :rows, :cols].clamp(min=0).cpu().numpy()
    # Masks keep 80 % of the counts: their scatter is that of 20 % against 80 %, about half the
    # standard deviation that counting noise gives the prediction.
    sigma = 2 * other.std(dim=0)[:bins, :rows, :cols].cpu().numpy()
    # Where every mask gives the same, the network's own error remains: a tenth, as a guess.
    sigma = np.hypot(sigma, 0.1 * values + 1e-3 * scale)
    return AutoencoderFit(
        values.astype(np.float32),
        sigma.astype(np.float32),
        float(np.mean(held)),
        sum(p.numel() for p in net.parameters()),
    )


def _padded(
    cube: NDArray[np.float32], guide: NDArray[np.float32] | None
) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Inputs (channel, bin, row, col), sides padded to multiples of 4."""
    padding = [(0, -n % 4) for n in cube.shape]
    planes = [np.pad(cube, padding, mode="edge")]
    if guide is not None:
        spread = float(guide.std())
        image = (guide - guide.mean()) / (spread if spread > 0 else 1.0)
        image = np.pad(image, padding[1:], mode="edge").astype(np.float32)
        planes.append(np.broadcast_to(image, planes[0].shape))
    return torch.from_numpy(np.stack(planes)), cube.shape


def _masked(
    inputs: torch.Tensor, generator: torch.Generator, counting: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts with one voxel in five hidden (the rest scaled up), and the mask of the hidden."""
    keep = torch.rand(inputs.shape[1:], generator=generator) < _KEEP
    keep = keep.to(inputs.device)
    left = inputs[:1] * keep / (_KEEP if counting else 1.0)
    return torch.cat([left, inputs[1:]]), ~keep


def _predict(net: Autoencoder, inputs: torch.Tensor, scale: float) -> torch.Tensor:
    x = torch.cat([inputs[:1] / scale, inputs[1:]])[None]
    # On CPUs torch's 3-D convolutions in bfloat16 corrupt memory for some small sizes (torch 2.13).
    with torch.autocast("cuda", torch.bfloat16, enabled=inputs.device.type == "cuda"):
        return net(x)[0, 0] * scale


def _hidden_loss(
    net: Autoencoder,
    inputs: torch.Tensor,
    scale: float,
    generator: torch.Generator,
    counting: bool,
) -> torch.Tensor:
    seen, hidden = _masked(inputs, generator, counting)
    rate = _predict(net, seen, scale)
    if counting:
        rate = rate + _FLOOR
        error = rate - inputs[0] * torch.log(rate)
    else:
        error = ((rate - inputs[0]) / scale) ** 2
    return (error * hidden).sum() / hidden.sum().clamp(min=1)
