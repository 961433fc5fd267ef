"""Fine-tune the denoiser on the run itself, self-supervised, and keep it only when it is better.

A tenth of the counts never enters training and decides when to stop and whether to keep the
result at all. Two lessons alternate on the rest, both scored by Poisson likelihood. *Thinning*:
the counts are split at random into two independent Poisson maps; the network sees one and foretells
the other. *Own estimate*: fresh Poisson noise is laid over the present estimate of the map, and
the network is to find that estimate again; its target is free of noise, so that a few steps
already teach what shapes this sample is made of.

References
----------
Lehtinen et al., "Noise2Noise", ICML 2018; Neufeld et al., "Data thinning for
convolution-closed distributions", JMLR 25 (2024) 57 (thinned Poisson counts are independent);
Vaksman, Elad and Milanfar, "LIDIA: lightweight learned image denoising with instance adaptation",
CVPR workshops 2020 (adapting to the estimate of the image itself).
"""

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from inscan.models.counting import ANSWERS, Planes, alone, denoise_counts, together
from inscan.models.infer import Denoiser
from inscan.models.noise import inverse_anscombe_torch, poisson_nll, thin
from inscan.models.unet import UNet

__all__ = ["FineTuned", "fine_tune"]

_HELD = 0.1
_SIDE = 64
_PLANES = 12  # planes a batch holds, about
_RATE = 5e-4
_WARM = 10  # steps
_REDRAW = 4  # steps that share one drawing of the whole map
_SPACING = 20  # steps between checks
_PATIENCE = 4  # checks without gain before it stops


@dataclass(frozen=True)
class FineTuned:
    """Outcome of a fine-tuning.

    Attributes
    ----------
    denoiser : Denoiser
        The best of those given and the one trained.
    steps : int
        Steps behind `denoiser`; 0 when none helped.
    steps_done : int
        Steps that were taken: as many allowed steps give the same result again.
    started_from : str
        "shipped" or "start": which weights scored better before any step.
    nll_shipped : float
        Poisson negative log likelihood of the held-out tenth of the counts, per pixel and
        element, with the denoiser as given.
    nll_start : float or None
        The same with the weights offered as a start.
    nll : float
        The same for `denoiser`; never above the other two.
    history : list of (step, nll)
    """

    denoiser: Denoiser
    steps: int
    steps_done: int
    started_from: str
    nll_shipped: float
    nll_start: float | None
    nll: float
    history: list[tuple[int, float]]

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """Weights of `denoiser`, on the CPU."""
        return {k: v.detach().cpu().clone() for k, v in self.denoiser.net.state_dict().items()}


def fine_tune(
    denoiser: Denoiser,
    counts: NDArray[np.floating],
    exposure: NDArray[np.floating],
    weights: NDArray[np.floating],
    *,
    steps: int,
    seconds: float | None = None,
    start: Denoiser | None = None,
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
    weights : ndarray of float, shape (element, answer)
        How the result will be used: see `inscan.models.counting.denoise_counts`.
    steps : int
        Optimiser steps at most. It also stops once several checks in a row gained nothing.
    seconds : float, optional
        Wall time at most, about: no step is begun that might not end by then.
    start : Denoiser, optional
        Another place to start, taken when it scores better on the held-out counts.
    seed : int

    Returns
    -------
    FineTuned
    """
    began = time.monotonic()
    rng = np.random.default_rng(seed)
    training, held = thin(counts, 1 - _HELD, rng)
    seen = (exposure * (1 - _HELD)).astype(np.float32)

    def trial(candidate: Denoiser) -> tuple[float, NDArray[np.float64]]:
        """Score on the held-out counts, and the estimate of the others."""
        rate = denoise_counts(candidate, training, seen, weights).rate
        return float(poisson_nll(held, rate * exposure * _HELD).mean()), rate * seen

    shipped, estimate = trial(denoiser)
    best, lowest, origin, offered = denoiser, shipped, "shipped", None
    if start is not None:
        offered, its_own = trial(start)
        if offered < shipped:
            best, lowest, origin, estimate = start, offered, "start", its_own
    history = [(0, lowest)]
    net = copy.deepcopy(best.net).to(best.device).train().requires_grad_(True)
    average = copy.deepcopy(best.net).to(best.device)
    optimiser = torch.optim.Adam(net.parameters(), _RATE)
    used = {way: weights[:, [w == way for w, _ in ANSWERS]].any() for way in ("alone", "together")}
    ways = [way for way, wanted in used.items() if wanted]
    best_step, step, slowest = 0, 0, 0.0
    lessons: list[_Lesson] = []
    while step < steps and len(history) - 1 - _last_gain(history) < _PATIENCE:
        turn = time.monotonic()
        # A run that time ends is checked like one that ends by itself: the same steps, the same end.
        out_of_time = seconds is not None and turn - began + 2 * slowest > seconds
        if not out_of_time:
            if step % (_REDRAW * 2) == 0:
                lessons = _lessons(training, estimate, seen, ways, rng)
            loss = lessons[step % len(lessons)].loss(net, rng, best.device)
            for group in optimiser.param_groups:
                group["lr"] = _RATE * min(1.0, (step + 1) / _WARM)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            share = max(0.03, 1.0 / (step + 2))
            with torch.no_grad():
                for kept, new in zip(average.parameters(), net.parameters(), strict=True):
                    kept.lerp_(new, share)
            step += 1
            if best.check is not None:
                best.check()
        if step > history[-1][0] and (step % _SPACING == 0 or step == steps or out_of_time):
            candidate = replace(best, net=copy.deepcopy(average).eval())
            reached, found = trial(candidate)
            history.append((step, reached))
            if reached < lowest:
                best, best_step, lowest, estimate = candidate, step, reached, found
        slowest = max(slowest, time.monotonic() - turn)
        if out_of_time:
            break
    return FineTuned(best, best_step, step, origin, shipped, offered, lowest, history)


def _last_gain(history: list[tuple[int, float]]) -> int:
    """Which check was the best so far."""
    return int(np.argmin([nll for _, nll in history]))


def _lessons(
    counts: NDArray[np.floating],
    estimate: NDArray[np.floating],
    exposure: NDArray[np.floating],
    ways: list[str],
    rng: np.random.Generator,
) -> list["_Lesson"]:
    """Both lessons for each way of using the network."""
    fraction = float(rng.uniform(0.5, 0.8))
    kept, target = thin(counts, fraction, rng)
    light = (exposure * (1 - fraction)).astype(np.float32)
    drawn = rng.poisson(estimate).astype(np.float32)
    make = {"alone": alone, "together": together}
    out = []
    for way in ways:
        own = estimate.astype(np.float32)
        out.append(_Lesson(make[way](drawn, exposure), own, exposure))
        out.append(_Lesson(make[way](kept, exposure * fraction), target, light))
    return out


@dataclass(frozen=True)
class _Lesson:
    """What the network sees of the whole map, and what it must foretell."""

    seen: Planes
    target: NDArray[np.float32]  # (element, row, col)
    exposure: NDArray[np.float32]  # of the target, same shape

    def loss(self, net: UNet, rng: np.random.Generator, device: torch.device) -> torch.Tensor:
        """Poisson likelihood of the target over some crops, all elements of each."""
        number, rows, cols = self.target.shape
        high, wide = min(rows, _SIDE), min(cols, _SIDE)
        places = max(1, round(_PLANES * _SIDE**2 / (number * high * wide)))
        corners = [
            (int(rng.integers(rows - high + 1)), int(rng.integers(cols - wide + 1)))
            for _ in range(places)
        ]
        cuts = [(..., slice(r, r + high), slice(c, c + wide)) for r, c in corners]

        def gather(array: NDArray) -> torch.Tensor:
            return _tensor(np.stack([array[cut] for cut in cuts]), device)

        planes = gather(self.seen.planes).flatten(0, 1)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            out = net(planes.contiguous(memory_format=torch.channels_last))[:, 0]
        estimate = out.float().unflatten(0, (places, -1))
        estimate = estimate * _tensor(self.seen.scale, device) + _tensor(self.seen.offset, device)
        turned = torch.einsum("ek,pkrc->perc", _tensor(self.seen.basis, device), estimate)
        typical = _tensor(self.seen.typical, device)
        counts, _ = inverse_anscombe_torch(turned * typical.sqrt())
        # A floor of a thousandth of a count keeps the logarithm from ruling empty pixels.
        mean = nn.functional.softplus(counts, beta=20.0) * gather(self.exposure) / typical + 1e-3
        target = gather(self.target)
        scale = target.mean(dim=(2, 3), keepdim=True) + 0.05
        return ((mean - target * mean.log()) / scale).mean()


def _tensor(array: NDArray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
