"""The super-resolution network: a residual network without batch norm, for any number of elements.

Sixteen residual blocks and sub-pixel convolution follow EDSR (Lim et al., CVPR workshops 2017,
arXiv:1707.02921). Elements are handled as a set: each runs through the same weights, and after the
first blocks every element also sees a weighted mean of the features of all of them, so that one
network serves any element list in any order.
"""

import torch
import torch.nn.functional as F
from torch import nn

_SCALE_FLOOR = 1e-3


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions added to their input; starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        assert self.second.bias is not None
        nn.init.zeros_(self.second.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(F.relu(self.first(x)))


class SuperResolver(nn.Module):
    """Coarse maps of several elements to a fine mean and a Laplace scale per pixel.

    Parameters
    ----------
    factor : int
        2 or 4, the number of fine pixels along a side of a coarse one.
    width : int
        Feature channels.
    blocks : int
        Residual blocks; the first ``alone`` of them run before elements are joined.
    alone : int
        Blocks before the joining layer.
    """

    channels = 3  # linear map, variance-stabilised map, noise level

    def __init__(self, factor: int, width: int = 32, blocks: int = 16, alone: int = 4) -> None:
        super().__init__()
        if factor not in (2, 4):
            raise ValueError(f"factor must be 2 or 4, got {factor}")
        self.factor = factor
        self.head = nn.Conv2d(self.channels, width, 3, padding=1)
        self.alone = nn.Sequential(*[ResidualBlock(width) for _ in range(alone)])
        self.attention = nn.Conv2d(width, 1, 1)
        self.join = nn.Conv2d(2 * width, width, 1)
        self.joint = nn.Sequential(*[ResidualBlock(width) for _ in range(blocks - alone)])
        self.body_end = nn.Conv2d(width, width, 3, padding=1)
        stages: list[nn.Module] = []
        for _ in range(factor // 2):
            stages += [nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.ReLU()]
        self.upsample = nn.Sequential(*stages)
        self.tail = nn.Conv2d(width, 2, 3, padding=1)
        nn.init.zeros_(self.join.weight)
        assert self.join.bias is not None and self.tail.bias is not None
        nn.init.zeros_(self.join.bias)
        nn.init.zeros_(self.tail.weight)
        with torch.no_grad():
            self.tail.bias.copy_(torch.tensor([0.0, -3.0]))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Upsample a batch of element sets.

        Parameters
        ----------
        x : Tensor of shape (batch, element, 3, row, col)
            Channel 0 is the map divided by its scale, 1 and 2 as made by
            `inscan.models.superres.network_input`.

        Returns
        -------
        mean, scale : Tensors of shape (batch, element, row * factor, col * factor)
            In the units of channel 0; ``scale`` is the Laplace scale parameter, > 0.
        """
        batch, elements, channels, rows, cols = x.shape
        flat = x.reshape(batch * elements, channels, rows, cols)
        flat = flat.contiguous(memory_format=torch.channels_last)
        shallow = self.head(flat)
        h = self.alone(shallow)
        h = h + self.join(torch.cat([h, self._shared(h, batch, elements)], dim=1))
        h = shallow + self.body_end(self.joint(h))
        out = self.tail(self.upsample(h)).float()
        base = F.interpolate(flat[:, :1].float(), scale_factor=self.factor, mode="bicubic")
        mean = (base + out[:, :1]).reshape(batch, elements, rows * self.factor, cols * self.factor)
        return mean, F.softplus(out[:, 1:]).reshape(mean.shape) + _SCALE_FLOOR

    def _shared(self, h: torch.Tensor, batch: int, elements: int) -> torch.Tensor:
        """Mean of all elements' features, weighted per pixel, repeated for each element."""
        if elements == 1:
            return h
        width, rows, cols = h.shape[1:]
        weights = self.attention(h).reshape(batch, elements, 1, rows, cols).softmax(dim=1)
        mean = (h.reshape(batch, elements, width, rows, cols) * weights).sum(dim=1, keepdim=True)
        return mean.expand(-1, elements, -1, -1, -1).reshape(h.shape)
