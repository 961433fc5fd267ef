"""Train the super-resolution networks on generated samples with known truth.

    python -m inscan.models.train_superres --factor 2 --steps 4000

Everything that is random follows from ``--seed``. The weights are the exponential moving average
of the parameters, kept at every checkpoint; the calibration of sigma uses samples of the same
generators that training did not see. The families that figures are measured on (cells, Siemens
star, battery particles) are never drawn here.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from inscan.models.edsr import SuperResolver
from inscan.models.superres_input import map_scale, network_input
from inscan.models.weights import SHIPPED, load_weights, save_weights
from inscan.profiles.samples import training_maps

__all__ = ["main", "train"]

_POOL = 240
_POOL_ELEMENTS = 6
_POOL_PIXELS = 160
_CALIBRATION_MAPS = 24
_LEVELS = (0.5, 0.6827, 0.8, 0.9, 0.95, 0.99)
_PEAKS = (10.0, 10_000.0)
_BATCH = 32
_COARSE_PATCH = {2: 24, 4: 18}
_EMA = 0.998
_SOBEL = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])[None, None] / 8


def draw_pool(count: int, pixels: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Fine maps to train on, shape (map, element, row, col), each element with maximum 1."""
    pool = np.empty((count, _POOL_ELEMENTS, pixels, pixels), dtype=np.float32)
    for i in range(count):
        maps = training_maps(rng, pixels, _POOL_ELEMENTS)
        pool[i] = maps / np.maximum(maps.max(axis=(-2, -1), keepdims=True), 1e-9)
    return pool


def coarse_counts(
    fine: torch.Tensor, factor: int, peak: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Poisson counts of a box probe, shape (batch, element, row, col); `peak` per element."""
    mean = F.avg_pool2d(fine, factor) * peak[..., None, None]
    return torch.poisson(mean, generator=generator)


def _patches(
    pool: torch.Tensor, factor: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random crops, (batch, element, row, col), and the peak counts, (batch, element)."""
    elements = int(torch.randint(1, _POOL_ELEMENTS + 1, (1,), generator=generator))
    batch = max(1, round(_BATCH / elements))
    side = _COARSE_PATCH[factor] * factor
    fine = torch.empty(batch, elements, side, side)
    for b in range(batch):
        which = int(torch.randint(len(pool), (1,), generator=generator))
        order = torch.randperm(pool.shape[1], generator=generator)[:elements]
        r, c = (
            int(torch.randint(pool.shape[-1] - side + 1, (1,), generator=generator))
            for _ in range(2)
        )
        patch = pool[which][order][:, r : r + side, c : c + side]
        turns = int(torch.randint(4, (1,), generator=generator))
        patch = torch.rot90(patch, turns, (-2, -1))
        fine[b] = patch.flip(-1) if torch.rand(1, generator=generator) < 0.5 else patch
    low, high = np.log(_PEAKS[0]), np.log(_PEAKS[1])
    peak = torch.exp(low + (high - low) * torch.rand(batch, 1, generator=generator))
    spread = torch.exp(np.log(0.1) * torch.rand(batch, elements, generator=generator))
    mixed = torch.rand(batch, 1, generator=generator) < 0.5
    return fine, torch.where(mixed, peak * spread, peak.expand(-1, elements)).clamp(min=3.0)


def _gradients(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    planes = x.reshape(-1, 1, *x.shape[-2:])
    return F.conv2d(planes, _SOBEL), F.conv2d(planes, _SOBEL.transpose(-1, -2))


def _loss(
    mean: torch.Tensor, spread: torch.Tensor, truth: torch.Tensor, peak: torch.Tensor
) -> torch.Tensor:
    """L1 + 0.1 Sobel-L1 of the mean, and a Laplace likelihood that trains the scale alone."""
    # Errors at 10 counts are ten times those at 10 000: weigh maps so that all count alike.
    weight = 1.0 / (0.02 + 0.4 / torch.sqrt(peak))[..., None, None]
    weight = weight / weight.mean()
    planes = weight.reshape(-1, 1, 1, 1)
    (mean_r, mean_c), (true_r, true_c) = _gradients(mean), _gradients(truth)
    edges = ((mean_r - true_r).abs() + (mean_c - true_c).abs()) * planes
    error = (mean - truth).abs()
    laplace = error.detach() / spread + torch.log(2 * spread)
    return (error * weight).mean() + 0.1 * edges.mean() + 0.01 * laplace.mean()


def train(
    factor: int, steps: int, seed: int, folder: Path, start: str | None = None, every: int = 500
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
        Name of weights in `folder` whose trunk to start from (the x2 network for the x4 one).
    every : int
        Steps between checkpoints.
    """
    began = time.perf_counter()
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    pool = torch.from_numpy(draw_pool(_POOL, _POOL_PIXELS, np.random.default_rng([seed, factor])))
    print(f"{len(pool)} training maps after {time.perf_counter() - began:.0f} s", flush=True)
    net = SuperResolver(factor)
    origin = None
    if start is not None:
        own = net.state_dict()
        weights = load_weights(start, folder)
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
    running, since = 0.0, time.perf_counter()
    for step in range(1, steps + 1):
        truth, peak = _patches(pool, factor, generator)
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
            took = (time.perf_counter() - since) / 100
            print(f"step {step} loss {running / 100:.4f} {took:.2f} s/step", flush=True)
            running, since = 0.0, time.perf_counter()
        if step % every == 0 or step == steps:
            training = {
                "command": f"python -m inscan.models.train_superres --factor {factor} "
                f"--steps {steps} --seed {seed}" + (f" --start {start}" if start else ""),
                "seed": seed,
                "steps": step,
                "planned_steps": steps,
                "data": "inscan.profiles.samples.training_maps, Poisson counts of a box probe, "
                f"peaks {_PEAKS[0]:g} to {_PEAKS[1]:g} per coarse pixel",
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
    card = {
        "licence": "BSD-3-Clause",
        "training": training,
        "architecture": {"factor": factor, "width": 32, "blocks": 16, "alone": 4},
        "calibration": calibrate(net.eval(), factor, seed),
    }
    save_weights(folder, f"superres_x{factor}", tensors, card)


def calibrate(net: SuperResolver, factor: int, seed: int) -> dict:
    """Quantiles of (truth - mean) / scale by bins of predicted counts, on unseen samples.

    Returns
    -------
    dict
        ``levels`` (level,), ``edges`` (bin - 1,) of the predicted counts per coarse pixel,
        ``below`` and ``above`` (level, bin), and ``rms`` (bin,) of the ratio.
    """
    rng = np.random.default_rng([seed, factor, 99])
    generator = torch.Generator().manual_seed(seed + 1)
    maps = torch.from_numpy(draw_pool(_CALIBRATION_MAPS, 96, rng))
    ratios, counts_seen = [], []
    with torch.inference_mode():
        for fine in maps:
            # Three elements at a time, so that sets and single elements both take part.
            peak = torch.exp(torch.linspace(np.log(10.0), np.log(5000.0), _POOL_ELEMENTS))
            peak = peak[torch.randperm(_POOL_ELEMENTS, generator=generator)]
            counts = coarse_counts(fine[None], factor, peak[None], generator)
            scale = torch.from_numpy(map_scale(counts.numpy()))
            mean, spread = net(network_input(counts, scale))
            to_counts = scale[..., None, None]
            mean, spread = mean.clamp(min=0) * to_counts, spread * to_counts
            ratios.append(((fine[None] * peak[None, :, None, None] - mean) / spread).flatten())
            counts_seen.append(mean.flatten())
    ratio, seen = torch.cat(ratios).numpy(), torch.cat(counts_seen).numpy()
    edges = np.array([0.5, 2.0, 8.0, 30.0, 120.0, 500.0])
    bins = np.digitize(seen, edges)
    below, above, rms = [], [], []
    for k in range(len(edges) + 1):
        part = ratio[bins == k]
        tails = [(1 - level) / 2 for level in _LEVELS]
        below.append([max(0.0, -float(np.quantile(part, t))) for t in tails])
        above.append([max(0.0, float(np.quantile(part, 1 - t))) for t in tails])
        rms.append(float(np.sqrt(np.mean(part**2))))
    return {
        "levels": list(_LEVELS),
        "edges": edges.tolist(),
        "below": np.round(np.array(below).T, 4).tolist(),
        "above": np.round(np.array(above).T, 4).tolist(),
        "rms": np.round(rms, 4).tolist(),
    }


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--factor", type=int, choices=(2, 4), required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", help="name of weights to take the trunk from")
    parser.add_argument("--out", type=Path, default=SHIPPED)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train(options.factor, options.steps, options.seed, options.out, options.start)


if __name__ == "__main__":
    main()
