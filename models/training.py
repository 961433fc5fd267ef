"""Train the shared denoiser from generated samples: fixed steps, fixed seed, averaged weights.

    inscan train n2n        (or `train_denoiser` from Python)

The families of samples it learns from (`inscan.profiles.samples.training_maps`) never include
those it is judged on: cells, Siemens stars, battery particles.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from inscan.models.batches import Batch, BatchRecipe, draw_batch
from inscan.models.joint_batches import capped, count_errors, draw_joint, joint_loss
from inscan.models.noise import inverse_anscombe_torch
from inscan.models.unet import UNet, UNetConfig

__all__ = ["Trained", "TrainingPlan", "denoiser_loss", "train_denoiser"]

_SPREAD_SHARE = 0.02  # of the spread's likelihood in the loss: it must not bend the answer


@dataclass(frozen=True)
class TrainingPlan:
    """All that decides the outcome, apart from the samples; recorded in the model card.

    Attributes
    ----------
    steps : int
        Optimiser steps; never a time, so that the same plan gives the same weights.
    seed : int
    rate : float
        Highest learning rate of Adam, reached after 100 steps.
    hold : float
        Share of the steps after which the rate is lowered to zero, along a cosine; 1: never.
    average : float
        Share of each step's weights in the running average that is kept.
    joint : float
        Share of the steps whose examples are several elements on their principal axes.
    shapes : tuple of (examples, side)
        Batch shapes for equal parts of the steps: small crops first, larger context later.
    recipe : BatchRecipe
    network : UNetConfig
    """

    steps: int = 8000
    seed: int = 0
    rate: float = 1.5e-3
    hold: float = 0.5
    average: float = 0.002
    joint: float = 0.35
    shapes: tuple[tuple[int, int], ...] = ((16, 64), (16, 64), (7, 96), (4, 128))
    recipe: BatchRecipe = field(default_factory=BatchRecipe)
    network: UNetConfig = field(default_factory=UNetConfig)


@dataclass(frozen=True)
class Trained:
    """Averaged weights after training.

    Attributes
    ----------
    tensors : mapping of str to tensor
    plan : dict
        JSON-able `TrainingPlan`.
    losses : list of float
        Mean loss of every hundred steps.
    seconds : float
    """

    tensors: Mapping[str, torch.Tensor]
    plan: dict
    losses: list[float]
    seconds: float


def train_denoiser(
    pool: Sequence[NDArray[np.float32]],
    plan: TrainingPlan | None = None,
    *,
    device: str | torch.device = "cpu",
    start: Mapping[str, torch.Tensor] | None = None,
    checkpoint: Callable[[int, Trained], None] | None = None,
    checkpoint_every: int = 1000,
) -> Trained:
    """Train the denoiser.

    Parameters
    ----------
    pool : sequence of ndarray of float32, shape (element, row, col)
        Clean samples, 0 or more; sides at least the largest crop of the plan.
    plan : TrainingPlan, optional
    device : str or torch.device
    start : mapping, optional
        Weights to start from instead of random ones.
    checkpoint : callable (step, Trained), optional
        Called every `checkpoint_every` steps with the averaged weights so far.
    checkpoint_every : int

    Returns
    -------
    Trained

    Raises
    ------
    ValueError
        If the pool is empty or a sample is too small or holds values that are not finite or are
        negative.
    """
    plan = plan or TrainingPlan()
    _check_pool(pool, max(side for _, side in plan.shapes))
    rng = np.random.default_rng(plan.seed)
    with _seeded(plan.seed):
        net = UNet(plan.network)
    if start is not None:
        net.load_state_dict(dict(start))
    net = net.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimiser = torch.optim.Adam(net.parameters(), plan.rate)
    average = {key: value.detach().clone() for key, value in net.state_dict().items()}
    losses: list[float] = []
    recent: list[float] = []
    began = time.monotonic()

    def snapshot() -> Trained:
        tensors = {key: value.detach().cpu().clone() for key, value in average.items()}
        return Trained(tensors, asdict(plan), list(losses), time.monotonic() - began)

    for step in range(plan.steps):
        for group in optimiser.param_groups:
            group["lr"] = plan.rate * _rate(step, plan)
        count, side = plan.shapes[step * len(plan.shapes) // plan.steps]
        if rng.random() < plan.joint:
            squared, likelihood = joint_loss(
                net, draw_joint(pool, plan.recipe, count, side, rng), device
            )
            loss = squared + _SPREAD_SHARE * likelihood
        else:
            loss = denoiser_loss(net, draw_batch(pool, plan.recipe, count, side, rng), device)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        # Early on the average must forget quickly, or it carries the random start along.
        share = max(plan.average, 1.0 / (step / 3 + 1))
        with torch.no_grad():
            for key, value in net.state_dict().items():
                average[key].lerp_(value, share)
        recent.append(float(loss.detach()))
        if len(recent) == 100:
            losses.append(float(np.mean(recent)))
            recent = []
        if checkpoint and (step + 1) % checkpoint_every == 0 and step + 1 < plan.steps:
            checkpoint(step + 1, snapshot())
    return snapshot()


def denoiser_loss(net: nn.Module, batch: Batch, device: str | torch.device) -> torch.Tensor:
    """Squared error of the answer, and the likelihood of that error under the predicted spread.

    Counts are compared as counts, after the unbiased inverse: the least squared error is then the
    mean of what the counts may have been, which keeps the flux; squared error on the stabilised
    scale would lose some.

    Parameters
    ----------
    net : module
        Planes (n, 2, row, col) to (n, 2, row, col).
    batch : Batch
    device : str or torch.device

    Returns
    -------
    tensor of float32, shape ()
    """
    planes = batch.planes.to(device).contiguous(memory_format=torch.channels_last)
    truth, scale = batch.truth.to(device), batch.scale.to(device)
    exposure, poisson = batch.exposure.to(device), batch.poisson.to(device)
    with torch.autocast(planes.device.type, torch.bfloat16):
        out = net(planes)
    out = out.float()
    estimate, spread = out[:, :1], out[:, 1:]

    root = exposure.sqrt() * scale  # input units to stabilised counts
    counts, slope = inverse_anscombe_torch(estimate * root)
    counting_error = counts - truth
    # Both forms are computed for all: the unused one is kept finite, or its gradient is not.
    counting = count_errors(counts, truth)

    sigma = planes[:, 1:2].mean(dim=(2, 3), keepdim=True).clamp(min=1e-4)
    gaussian_error = estimate - truth
    gaussian = gaussian_error**2 / sigma * 5.0

    squared = capped(torch.where(poisson, counting, gaussian).mean(dim=(1, 2, 3))).mean()
    error = torch.where(poisson, counting_error / (slope * root), gaussian_error).detach()
    ratio = (error / spread.clamp(min=1e-6)).square().clamp(max=100.0)
    likelihood = 0.5 * ratio + spread.clamp(min=1e-6).log()
    return squared + _SPREAD_SHARE * likelihood.mean()


def _rate(step: int, plan: TrainingPlan) -> float:
    done = step / plan.steps
    warm = min(1.0, (step + 1) / 100)
    if done < plan.hold:
        return warm + 1e-4
    return warm * (0.5 + 0.5 * math.cos(math.pi * (done - plan.hold) / (1 - plan.hold))) + 1e-4


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random initial weights from a seed, leaving the caller's random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _check_pool(pool: Sequence[NDArray[np.float32]], side: int) -> None:
    if not pool:
        raise ValueError("train_denoiser: the pool of samples is empty")
    for index, maps in enumerate(pool):
        if maps.ndim != 3 or min(maps.shape[1:]) < side:
            raise ValueError(
                f"train_denoiser: sample {index} has shape {maps.shape}; expected "
                f"(element, row, col) with at least {side} rows and columns"
            )
        if not np.isfinite(maps).all() or maps.min() < 0:
            raise ValueError(f"train_denoiser: sample {index} has negative or non-finite values")
