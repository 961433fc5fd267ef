"""Fine-tune the denoiser on the run itself, self-supervised, and keep it only when it is better.

Noise2Noise by thinning: the counts of a map are split at random into two independent Poisson
maps; the network sees one and is scored on the other by its Poisson likelihood. A tenth of the
counts never enters training and decides when to stop and whether to keep the result at all.

References
----------
Lehtinen et al., "Noise2Noise", ICML 2018; Chen et al. on data thinning, JMLR 25 (2024) 57
(binomial thinning gives independent Poisson halves).
"""

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from inscan.models.counting import denoise_counts, network_planes
from inscan.models.infer import Denoiser
from inscan.models.noise import inverse_anscombe_torch, poisson_nll, thin
from inscan.models.unet import UNet

__all__ = ["FineTuned", "fine_tune"]

_HELD = 0.1
_SIDE = 64
_BATCH = 8
_RATE = 3e-4
_REDRAW = 8  # steps that share one thinning of the whole map
_CHECKS = 8


@dataclass(frozen=True)
class FineTuned:
    """Outcome of a fine-tuning.

    Attributes
    ----------
    denoiser : Denoiser
        The better of the one given and the one trained.
    steps : int
        Steps behind `denoiser`; 0 when zero-shot was best.
    nll_before, nll_after : float
        Poisson negative log likelihood of the held-out tenth of the counts, per pixel and
        element; `nll_after` is never above `nll_before`.
    history : list of (step, nll)
    """

    denoiser: Denoiser
    steps: int
    nll_before: float
    nll_after: float
    history: list[tuple[int, float]]


def fine_tune(
    denoiser: Denoiser,
    counts: NDArray[np.floating],
    exposure: NDArray[np.floating],
    *,
    steps: int,
    seed: int = 0,
) -> FineTuned:
    """Train on the maps to be denoised.

    Parameters
    ----------
    denoiser : Denoiser
        Where to start; left as it is.
    counts : ndarray of float, shape (element, row, col)
        Poisson counts without gaps.
    exposure : ndarray of float, shape (element, row, col)
        Above 0.
    steps : int
        Optimiser steps at most.
    seed : int

    Returns
    -------
    FineTuned
    """
    rng = np.random.default_rng(seed)
    training, held = thin(counts, 1 - _HELD, rng)
    trained_exposure = exposure * (1 - _HELD)

    def score(candidate: Denoiser) -> float:
        mean = denoise_counts(candidate, training, trained_exposure, tta=1).counts
        return float(poisson_nll(held, mean * _HELD / (1 - _HELD)).mean())

    before = score(denoiser)
    best, best_step, best_score = denoiser, 0, before
    history = [(0, before)]
    net = copy.deepcopy(denoiser.net).to(denoiser.device).train().requires_grad_(True)
    average = copy.deepcopy(denoiser.net).to(denoiser.device)
    optimiser = torch.optim.Adam(net.parameters(), _RATE)
    every = max(1, steps // _CHECKS)
    crops = _Crops(training, trained_exposure, rng)
    for step in range(steps):
        if step % _REDRAW == 0:
            crops.redraw()
        for group in optimiser.param_groups:
            group["lr"] = _RATE * min(1.0, (step + 1) / 20) * (1 - 0.9 * step / steps)
        loss = _held_likelihood(net, *crops.draw(), denoiser.device)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        share = max(0.03, 1.0 / (step + 2))
        with torch.no_grad():
            for kept, new in zip(average.parameters(), net.parameters(), strict=True):
                kept.lerp_(new, share)
        if (step + 1) % every == 0 or step + 1 == steps:
            frozen = copy.deepcopy(average).eval().requires_grad_(False)
            candidate = replace(denoiser, net=frozen)
            reached = score(candidate)
            history.append((step + 1, reached))
            if reached < best_score:
                best, best_step, best_score = candidate, step + 1, reached
    return FineTuned(best, best_step, before, best_score, history)


class _Crops:
    """Thinned crops of the map, with the guides that belong to the same thinning."""

    def __init__(
        self,
        counts: NDArray[np.floating],
        exposure: NDArray[np.floating],
        rng: np.random.Generator,
    ) -> None:
        self.counts, self.exposure, self.rng = counts, exposure, rng
        self.redraw()

    def redraw(self) -> None:
        """Thin the whole map anew; guides are made from the kept counts only."""
        fraction = float(self.rng.uniform(0.5, 0.9))
        kept, self.target = thin(self.counts, fraction, self.rng)
        self.ratio = (1 - fraction) / fraction
        seen = self.exposure * fraction
        self.planes, self.scale = network_planes(kept, seen)
        self.root = np.sqrt(seen).astype(np.float32)

    def draw(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
        """One batch: planes, factor to stabilised counts, target counts, ratio of exposures."""
        number, rows, cols = self.target.shape
        high, wide = min(rows, _SIDE), min(cols, _SIDE)
        planes = np.empty((_BATCH, 4, high, wide), dtype=np.float32)
        root = np.empty((_BATCH, 1, high, wide), dtype=np.float32)
        target = np.empty((_BATCH, 1, high, wide), dtype=np.float32)
        for k in range(_BATCH):
            element = int(self.rng.integers(number))
            row = int(self.rng.integers(rows - high + 1))
            col = int(self.rng.integers(cols - wide + 1))
            at = (slice(row, row + high), slice(col, col + wide))
            flip = (slice(None, None, int(self.rng.choice((-1, 1)))),) * 2
            planes[k] = self.planes[element][(slice(None), *at)][(slice(None), *flip)]
            root[k, 0] = (self.root[element][at] * self.scale[element])[flip]
            target[k, 0] = self.target[element][at][flip]
        tensors = (torch.from_numpy(a) for a in (planes, root, target))
        return (*tensors, self.ratio)  # pyright: ignore[reportReturnType]


def _held_likelihood(
    net: UNet,
    planes: torch.Tensor,
    root: torch.Tensor,
    target: torch.Tensor,
    ratio: float,
    device: torch.device,
) -> torch.Tensor:
    planes = planes.to(device).contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16):
        out = net(planes)
    counts, _ = inverse_anscombe_torch(out[:, :1].float() * root.to(device))
    # A floor of a hundredth of a count keeps the logarithm from ruling where nothing is.
    mean = nn.functional.softplus(counts, beta=20.0) * ratio + 1e-3
    target = target.to(device)
    scale = target.mean(dim=(2, 3), keepdim=True) + 0.05
    return ((mean - target * mean.log()) / scale).mean()
