"""Run the super-resolution network over maps of any size: tiles, symmetries, counts."""

import numpy as np
import torch
from numpy.typing import NDArray

from inscan.models.edsr import SuperResolver
from inscan.models.superres_input import map_scale, network_input
from inscan.models.weights import Weights

__all__ = ["network_of", "run_network"]

_TILE = 160
_MARGIN = 8  # pixels repeated around the field
_HALO = 40  # the network sees 36 coarse pixels to each side


def network_of(weights: Weights, factor: int) -> SuperResolver:
    """The network a card describes, with its weights, on the CPU, in evaluation mode.

    Raises
    ------
    ValueError
        If the weights are for another factor or another kind of network.
    """
    architecture = weights.card["architecture"]
    if architecture.get("factor") != factor or "alone" not in architecture:
        raise ValueError(
            f"weights {weights.name!r} are not for super-resolution by {factor}: {architecture}"
        )
    net = SuperResolver(
        factor, architecture["width"], architecture["blocks"], architecture["alone"]
    )
    net.load_state_dict(dict(weights.tensors))
    return net.eval()


def run_network(
    net: SuperResolver, maps: NDArray[np.float32], symmetries: int, device: torch.device
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and Laplace scale in counts, from overlapping tiles when the map is large.

    Parameters
    ----------
    net : SuperResolver
    maps : ndarray of float32, shape (element, row, col)
        Counts, >= 0, all finite.
    symmetries : {1, 2, 4, 8}
        Quarter turns and mirror images averaged over.
    device : torch.device

    Returns
    -------
    mean, scale : ndarray of float32, shape (element, row * factor, col * factor)
    """
    net = net.to(device)
    factor = net.factor
    scale = map_scale(maps)
    # A border of repeated pixels: the network never sees where the field ends.
    margin = _MARGIN
    border = ((0, 0), (margin, margin), (margin, margin))
    padded = np.pad(maps, border, mode="symmetric" if min(maps.shape[1:]) >= margin else "edge")
    rows, cols = padded.shape[1:]
    out = np.empty((2, len(maps), rows * factor, cols * factor), dtype=np.float32)
    for r in range(0, rows, _TILE):
        for c in range(0, cols, _TILE):
            r0, c0 = max(0, r - _HALO), max(0, c - _HALO)
            r1, c1 = min(rows, r + _TILE + _HALO), min(cols, c + _TILE + _HALO)
            piece = torch.from_numpy(np.ascontiguousarray(padded[None, :, r0:r1, c0:c1]))
            planes = network_input(piece, torch.from_numpy(scale)[None]).to(device)
            mean, spread = _symmetrised(net, planes, symmetries)
            stop = (min(rows, r + _TILE), min(cols, c + _TILE))
            inner = (
                slice((r - r0) * factor, (stop[0] - r0) * factor),
                slice((c - c0) * factor, (stop[1] - c0) * factor),
            )
            to = (slice(r * factor, stop[0] * factor), slice(c * factor, stop[1] * factor))
            out[0][:, *to] = mean[:, *inner]
            out[1][:, *to] = spread[:, *inner]
    edge = margin * factor
    out = out[:, :, edge:-edge, edge:-edge] * scale[:, None, None]
    return out[0], out[1]


def _symmetrised(
    net: SuperResolver, planes: torch.Tensor, symmetries: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Average over quarter turns and mirror images; mean and spread of shape (element, ...)."""
    total: list[torch.Tensor] = []
    for k in {1: (0,), 2: (0, 6), 4: (0, 2, 5, 7), 8: tuple(range(8))}[symmetries]:
        x = torch.rot90(planes.flip(-1) if k >= 4 else planes, k % 4, (-2, -1))
        with torch.inference_mode(), torch.autocast(planes.device.type, torch.bfloat16):
            results = net(x)
        back = [torch.rot90(y.float(), -(k % 4), (-2, -1)) for y in results]
        back = [y.flip(-1) if k >= 4 else y for y in back]
        total = back if not total else [a + b for a, b in zip(total, back, strict=True)]
    mean, spread = ((t[0] / symmetries).cpu().numpy() for t in total)
    return mean, spread
