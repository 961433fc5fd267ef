"""The classic U-Net with 31 million parameters, as published recipes for XRF maps use it.

Ronneberger, Fischer, Brox, "U-Net", MICCAI 2015, without normalisation, with borders mirrored
instead of cropped, and nearest-neighbour upsampling followed by a 2 × 2 convolution.
"""

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["ClassicUNet"]


class ClassicUNet(nn.Module):
    """One plane in, one plane out.

    Parameters
    ----------
    start : int
        Channels of the first level; each of the `depth` levels below doubles them. 64 and 4 give
        the published 31,030,593 parameters.
    depth : int
    """

    def __init__(self, start: int = 64, depth: int = 4) -> None:
        super().__init__()
        widths = [start * 2**level for level in range(depth + 1)]
        self.stride = 2**depth
        self.down = nn.ModuleList(
            _pair(before, width) for before, width in zip([1, *widths[:-1]], widths, strict=True)
        )
        self.up = nn.ModuleList(nn.Conv2d(2 * width, width, 2) for width in reversed(widths[:-1]))
        self.join = nn.ModuleList(_pair(2 * width, width) for width in reversed(widths[:-1]))
        self.out = nn.Conv2d(start, 1, 1)

    def forward(self, plane: torch.Tensor) -> torch.Tensor:
        """Denoise.

        Parameters
        ----------
        plane : tensor of float, shape (n, 1, row, col)
            Rows and columns multiples of `stride`.

        Returns
        -------
        tensor of float, shape (n, 1, row, col)
        """
        kept: list[torch.Tensor] = []
        x = plane
        for level, pair in enumerate(self.down):
            x = pair(x if level == 0 else F.max_pool2d(x, 2))
            kept.append(x)
        for up, join, skip in zip(self.up, self.join, reversed(kept[:-1]), strict=True):
            grown = F.interpolate(x, scale_factor=2, mode="nearest")
            grown = F.relu(up(F.pad(grown, (0, 1, 0, 1), mode="replicate")))
            x = join(torch.cat([skip, grown], dim=1))
        return self.out(x)


def _pair(before: int, width: int) -> nn.Sequential:
    # Repeating the border is what symmetric padding means for a margin of one pixel.
    return nn.Sequential(
        nn.Conv2d(before, width, 3, padding=1, padding_mode="replicate"),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, padding_mode="replicate"),
        nn.ReLU(),
    )
