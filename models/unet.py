"""One small U-Net for every map: bias-free, and told the noise of every pixel.

References
----------
Zhang et al., "Plug-and-play image restoration with deep denoiser prior", TPAMI 2021 (residual
U-Net fed with a noise map). Mohan et al., "Robust and interpretable blind image denoising via
bias-free convolutional neural networks", ICLR 2020 (no bias: scaling the input scales the output).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["INPUTS", "UNet", "UNetConfig"]

INPUTS = ("noisy", "sigma")


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of the network.

    Attributes
    ----------
    widths : tuple of int
        Channels at each level; every level halves the rows and columns. Four levels see about
        a hundred pixels, more than the period of any structure worth sharing.
    blocks : int
        Residual blocks on each side of each level; the bottom has one more.
    """

    widths: tuple[int, ...] = (32, 64, 96, 128)
    blocks: int = 1


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions without bias, added to their input. Starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(F.relu(self.first(x)))


class UNet(nn.Module):
    """Denoise one plane, and say how far off the answer may be.

    Without any bias the network is positively homogeneous: scaling all inputs by a > 0
    scales both outputs by a. It therefore needs no fixed range, only consistent units.
    """

    def __init__(self, config: UNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or UNetConfig()
        widths = config.widths
        self.stride = 2 ** (len(widths) - 1)
        self.head = nn.Conv2d(len(INPUTS), widths[0], 3, padding=1, bias=False)
        self.enter = nn.ModuleList()
        self.shrink = nn.ModuleList()
        self.grow = nn.ModuleList()
        self.leave = nn.ModuleList()
        for fine, coarse in zip(widths[:-1], widths[1:], strict=True):
            self.enter.append(_blocks(fine, config.blocks))
            self.shrink.append(nn.Conv2d(fine, coarse, 2, stride=2, bias=False))
            self.grow.append(nn.ConvTranspose2d(coarse, fine, 2, stride=2, bias=False))
            self.leave.append(_blocks(fine, config.blocks))
        self.bottom = _blocks(widths[-1], config.blocks + 1)
        self.tail = nn.Conv2d(widths[0], 1, 3, padding=1, bias=False)
        nn.init.zeros_(self.tail.weight)
        self.spread = nn.Sequential(
            nn.Conv2d(widths[0], 16, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(16, 1, 3, padding=1, bias=False),
        )

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        """Denoise.

        Parameters
        ----------
        planes : tensor of float, shape (n, 2, row, col)
            Noisy plane, and the standard deviation of its noise. Rows and columns are padded here
            to whole strides.

        Returns
        -------
        tensor of float, shape (n, 2, row, col)
            Estimate, and the standard deviation of its error as the network predicts it.
        """
        rows, cols = planes.shape[-2:]
        pad = (0, -cols % self.stride, 0, -rows % self.stride)
        padded = F.pad(planes, pad, mode="replicate") if any(pad) else planes
        top = self.head(padded)
        kept = [top]
        x = top
        for enter, shrink in zip(self.enter, self.shrink, strict=True):
            x = shrink(enter(x))
            kept.append(x)
        x = self.bottom(x)
        for level in reversed(range(len(self.grow))):
            x = self.leave[level](self.grow[level](x + kept[level + 1]))
        x = x + top
        estimate = padded[:, :1] + self.tail(x)
        # Never exactly zero, or a wrong pixel would be infinitely unlikely.
        spread = self.spread(x).abs() + 0.02 * padded[:, 1:2]
        return torch.cat([estimate, spread], dim=1)[..., :rows, :cols]


def _blocks(width: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(width) for _ in range(count)))
