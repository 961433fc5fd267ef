"""Train the super-resolution networks on generated samples with known truth.

    inscan train superres_x2 --out DIR

Everything that is random follows from the seed. The weights are the exponential moving average
of the parameters, kept at every checkpoint; the calibration of sigma uses samples of the same
generators that training did not see. The families that figures are measured on (cells, Siemens
star, battery particles) are never drawn here.
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from inscan.models.edsr import SuperResolver
from inscan.models.familiarity import Familiarity, describe
from inscan.models.superres_input import ForwardModel, map_scale, network_input
from inscan.models.superres_run import run_network
from inscan.models.superres_samples import (
    PEAKS,
    POOL_ELEMENTS,
    coarse_counts,
    draw_pool,
    gradients,
    patches,
)
from inscan.models.superres_trust import SpreadTable
from inscan.models.weights import SHIPPED, load_weights, save_weights

__all__ = ["calibrate", "train"]

Run = Callable[[NDArray[np.float32], int], tuple[NDArray[np.float32], NDArray[np.float32]]]

_POOL = 240
_POOL_PIXELS = 160
_CALIBRATION_MAPS = 40
_CALIBRATION_SEED = 7  # apart from the seeds of training
_BATCH = 32
_COARSE_PATCH = {2: 24, 4: 18}
_EMA = 0.998


def _loss(
    mean: torch.Tensor, spread: torch.Tensor, truth: torch.Tensor, peak: torch.Tensor
) -> torch.Tensor:
    """L1 + 0.1 Sobel-L1 of the mean, and a Laplace likelihood that trains the scale alone."""
    # Errors at 10 counts are ten times those at 10 000: weigh maps so that all count alike.
    weight = 1.0 / (0.02 + 0.4 / torch.sqrt(peak))[..., None, None]
    weight = weight / weight.mean()
    planes = weight.reshape(-1, 1, 1, 1)
    (mean_r, mean_c), (true_r, true_c) = gradients(mean), gradients(truth)
    edges = ((mean_r - true_r).abs() + (mean_c - true_c).abs()) * planes
    error = (mean - truth).abs()
    laplace = error.detach() / spread + torch.log(2 * spread)
    return (error * weight).mean() + 0.1 * edges.mean() + 0.01 * laplace.mean()


def train(
    factor: int,
    steps: int,
    seed: int,
    folder: Path,
    start: str | None = None,
    every: int = 500,
    progress: Callable[[int, float], None] | None = None,
) -> None:
    """Train one network and write its weights and card, at every `every` steps and at the end.

    Parameters
    ----------
    factor : int
        2 or 4.
    steps : int
        Optimiser steps of about 32 element patches each.
    seed : int
    folder : Path
        Where ``superres_x{factor}.safetensors`` and its card go.
    start : str, optional
        Name of weights whose trunk to start from (the x2 network for the x4 one): those in
        `folder`, or else the shipped ones.
    every : int
        Steps between checkpoints.
    progress : callable (step, loss), optional
        Called every 100 steps with the mean loss since.
    """
    began = time.perf_counter()
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    pool = torch.from_numpy(draw_pool(_POOL, _POOL_PIXELS, np.random.default_rng([seed, factor])))
    net = SuperResolver(factor)
    origin = None
    if start is not None:
        own = net.state_dict()
        there = (folder / f"{start}.safetensors").is_file()
        weights = load_weights(start, folder if there else SHIPPED)
        origin = {"name": start, "sha256": weights.sha256, "training": weights.card["training"]}
        taken = {
            name: value
            for name, value in weights.tensors.items()
            if not name.startswith(("upsample", "tail")) and own[name].shape == value.shape
        }
        net.load_state_dict({**own, **taken})
    average = {name: value.clone() for name, value in net.state_dict().items()}
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=1.5e-3, total_steps=steps, pct_start=0.05, final_div_factor=100
    )
    running = 0.0
    for step in range(1, steps + 1):
        elements = int(torch.randint(1, POOL_ELEMENTS + 1, (1,), generator=generator))
        batch, side = max(1, round(_BATCH / elements)), _COARSE_PATCH[factor] * factor
        truth, peak = patches(pool, batch, elements, side, generator)
        counts = coarse_counts(truth, factor, peak, generator)
        scale = torch.from_numpy(map_scale(counts.numpy()))
        with torch.autocast("cpu", torch.bfloat16):
            mean, spread = net(network_input(counts, scale))
        to_peak = (scale / peak)[..., None, None]  # back to units in which the map's peak is 1
        loss = _loss(mean * to_peak, spread * to_peak, truth, peak)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        decay = min(_EMA, step / (step + 10))
        for name, value in net.state_dict().items():
            average[name].lerp_(value, 1 - decay)
        running += float(loss.detach())
        if step % 100 == 0:
            if progress:
                progress(step, running / 100)
            running = 0.0
        if step % every == 0 or step == steps:
            training = {
                "command": f"inscan train superres_x{factor} --steps {steps} --seed {seed}",
                "seed": seed,
                "steps": step,
                "planned_steps": steps,
                "data": "inscan.profiles.samples.training_maps, Poisson counts of a box probe, "
                f"peaks {PEAKS[0]:g} to {PEAKS[1]:g} per coarse pixel",
                "start": origin,
                "loss": "L1 + 0.1 Sobel-L1, Laplace likelihood for the scale",
                "wall_seconds": round(time.perf_counter() - began, 1),
            }
            _write(factor, average, training, folder, seed)


def _write(
    factor: int, tensors: dict[str, torch.Tensor], training: dict, folder: Path, seed: int
) -> None:
    net = SuperResolver(factor)
    # Calibrate what will be read back: weights rounded to half precision.
    net.load_state_dict({name: value.half().float() for name, value in tensors.items()})
    net.eval()
    card = {
        "licence": "BSD-3-Clause",
        "training": training,
        "architecture": {"factor": factor, "width": 32, "blocks": 16, "alone": 4},
        **calibrate(
            lambda maps, symmetries: run_network(net, maps, symmetries, torch.device("cpu")),
            factor,
            seed,
        ),
    }
    save_weights(folder, f"superres_x{factor}", tensors, card)


def calibrate(run: Run, factor: int, seed: int) -> dict:
    """Sigma, intervals and familiarity from samples of the same generators that training missed.

    The result is calibrated as it is used: symmetries averaged, in half precision.

    Parameters
    ----------
    run : callable
        From counts (element, row, col) and a number of symmetries to mean and predicted scale.
    factor : int
    seed : int

    Returns
    -------
    dict
        ``calibration`` (`SpreadTable`) and ``familiarity`` (`Familiarity`) for the model card.
    """
    rng = np.random.default_rng([_CALIBRATION_SEED + seed, factor])
    forward = ForwardModel(factor)
    low, high = np.log(PEAKS)
    ratios, bins, figures = [], [], []
    for maps in draw_pool(_CALIBRATION_MAPS, 96, rng):
        together = rng.random() < 0.5
        peak = (
            np.full(POOL_ELEMENTS, np.exp(rng.uniform(low, high)))
            if together
            else np.exp(rng.uniform(low, high, POOL_ELEMENTS))
        )
        # From one element to all: the network joins them.
        present = rng.integers(1, POOL_ELEMENTS + 1)
        truth = maps[:present] * peak[:present, None, None]
        counts = rng.poisson(forward.apply(truth)).astype(np.float32)
        mean, spread = run(counts, 8)
        mean, scale = np.maximum(mean, 0), map_scale(counts)
        # A random part: neighbours say the same again.
        part = rng.random(truth.shape) < 0.25
        ratios.append(((truth - mean) / spread)[part])
        bins.append(SpreadTable.bins(mean, spread, scale)[part])
        figures.append(describe(counts, mean, spread, scale)[counts.sum(axis=(1, 2)) > 0])
    table = SpreadTable.learn(np.concatenate(ratios), np.concatenate(bins))
    familiar = Familiarity.learn(np.concatenate(figures))
    return {"calibration": table.to_card(), "familiarity": familiar.to_card()}
