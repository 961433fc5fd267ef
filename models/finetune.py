"""Fine-tune the denoiser on the run itself, self-supervised, and keep it only when it is better.

Noise2Noise by thinning: the counts of a map are split at random into two independent Poisson
maps; the network sees one and is scored on the other by its Poisson likelihood. A tenth of the
counts never enters training and decides when to stop and whether to keep the result at all.

References
----------
Lehtinen et al., "Noise2Noise", ICML 2018; Neufeld et al., "Data thinning for
convolution-closed distributions", JMLR 25 (2024) 57 (thinned Poisson counts are independent).
"""

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from inscan.models.counting import Planes, alone, denoise_counts, together
from inscan.models.infer import Denoiser
from inscan.models.noise import inverse_anscombe_torch, poisson_nll, thin
from inscan.models.unet import UNet

__all__ = ["FineTuned", "fine_tune"]

_HELD = 0.1
_SIDE = 64
_PLANES = 12  # planes a batch holds, about
_RATE = 2e-4
_REDRAW = 8  # steps that share one thinning of the whole map
_CHECKS = 8
_SPACING = 10  # steps between checks, at least


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
    weights: NDArray[np.floating],
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
    weights : ndarray of float, shape (element,)
        How the result will be used: see `inscan.models.counting.denoise_counts`.
    steps : int
        Optimiser steps at most.
    seed : int

    Returns
    -------
    FineTuned
    """
    rng = np.random.default_rng(seed)
    training, held = thin(counts, 1 - _HELD, rng)
    seen = exposure * (1 - _HELD)

    def score(candidate: Denoiser) -> float:
        mean = denoise_counts(candidate, training, seen, weights).rate * exposure * _HELD
        return float(poisson_nll(held, mean).mean())

    before = score(denoiser)
    best, best_step, best_score = denoiser, 0, before
    history = [(0, before)]
    net = copy.deepcopy(denoiser.net).to(denoiser.device).train().requires_grad_(True)
    average = copy.deepcopy(denoiser.net).to(denoiser.device)
    optimiser = torch.optim.Adam(net.parameters(), _RATE)
    every = max(_SPACING, steps // _CHECKS)
    shares = {"alone": np.any(weights < 1), "together": np.any(weights > 0)}
    ways = [way for way, wanted in shares.items() if wanted]
    splits: dict[str, _Split] = {}
    for step in range(steps):
        if step % (_REDRAW * len(ways)) == 0:
            splits = _splits(training, seen, ways, rng)
        for group in optimiser.param_groups:
            group["lr"] = _RATE * min(1.0, (step + 1) / 20) * (1 - 0.9 * step / steps)
        loss = splits[ways[step % len(ways)]].loss(net, rng, denoiser.device)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        share = max(0.03, 1.0 / (step + 2))
        with torch.no_grad():
            for kept, new in zip(average.parameters(), net.parameters(), strict=True):
                kept.lerp_(new, share)
        if (step + 1) % every == 0 or step + 1 == steps:
            candidate = replace(denoiser, net=copy.deepcopy(average).eval())
            reached = score(candidate)
            history.append((step + 1, reached))
            if reached < best_score:
                best, best_step, best_score = candidate, step + 1, reached
    return FineTuned(best, best_step, before, best_score, history)


def _splits(
    counts: NDArray[np.floating],
    exposure: NDArray[np.floating],
    ways: list[str],
    rng: np.random.Generator,
) -> dict[str, "_Split"]:
    fraction = float(rng.uniform(0.6, 0.9))
    kept, target = thin(counts, fraction, rng)
    make = {"alone": alone, "together": together}
    light = (exposure * (1 - fraction)).astype(np.float32)
    return {way: _Split(make[way](kept, exposure * fraction), target, light) for way in ways}


@dataclass(frozen=True)
class _Split:
    """One thinning of the whole map: what the network sees, and what it must foretell."""

    seen: Planes
    target: NDArray[np.float32]  # (element, row, col)
    exposure: NDArray[np.float32]  # of the target, same shape

    def loss(self, net: UNet, rng: np.random.Generator, device: torch.device) -> torch.Tensor:
        """Poisson likelihood of the held counts over some crops, all elements of each."""
        number, rows, cols = self.target.shape
        high, wide = min(rows, _SIDE), min(cols, _SIDE)
        losses = []
        for _ in range(max(1, _PLANES // number)):
            row = int(rng.integers(rows - high + 1))
            col = int(rng.integers(cols - wide + 1))
            at = (..., slice(row, row + high), slice(col, col + wide))
            planes = _tensor(self.seen.planes[at], device)
            planes = planes.contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16):
                out = net(planes)[:, 0]
            estimate = out.float() * _tensor(self.seen.scale, device)
            estimate = estimate + _tensor(self.seen.offset, device)
            turned = torch.tensordot(_tensor(self.seen.basis, device), estimate, 1)
            typical = _tensor(self.seen.typical, device)
            counts, _ = inverse_anscombe_torch(turned * typical.sqrt())
            light = _tensor(self.exposure[at], device) / typical
            # A floor of a thousandth of a count keeps the logarithm from ruling empty pixels.
            mean = nn.functional.softplus(counts, beta=20.0) * light + 1e-3
            target = _tensor(self.target[at], device)
            scale = target.mean(dim=(1, 2), keepdim=True) + 0.05
            losses.append(((mean - target * mean.log()) / scale).mean())
        return torch.stack(losses).mean()


def _tensor(array: NDArray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
