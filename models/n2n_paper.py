"""Noise2Noise between halves of the detector's channels, as published for ESRF's SetkaFluo.

Written from the description of the method, for comparison; the default recipe of
`inscan.models.n2n` does better in a thousandth of the time. For each element a U-Net is trained from
scratch: the mean of a random half of the channels is the input, the mean of the other half the
target, each whole image brought to mean 0 and standard deviation 1; squared error, Adam 1e-5,
batches of four patches of 32 × 32. It is then run on the mean of all channels in tiles of 32 with
half overlap under Hann windows, and scaled back by that mean's own mean and standard deviation.

Known weaknesses, kept: trained on half the dose but run on all of it; the scale of a noisier
image makes the contrast shrink; channels count equally however weak they are.
"""

import time

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from inscan.models.channels import ChannelSum
from inscan.models.classic_unet import ClassicUNet
from inscan.models.estimate import Estimate, gaussian_calibration
from inscan.models.infer import choose_device

__all__ = ["denoise_paper"]

_PATCH = 32
_BATCH = 4
_RATE = 1e-5
_SPLITS = 4


def denoise_paper(
    counts: NDArray[np.float32],
    exposure: NDArray[np.float32],
    summed: ChannelSum,
    *,
    fit_steps: int,
    seed: int = 0,
    device: str | torch.device | None = None,
    start: int = 64,
    rate: float = _RATE,
) -> Estimate:
    """Train on channel halves and denoise.

    Parameters
    ----------
    counts, exposure : ndarray of float32, shape (channel, element, row, col)
    summed : ChannelSum
        Which channels are healthy, and their gains.
    fit_steps : int
        Optimiser steps for each element; published: 128 × up to 1400.
    seed : int
    device : str or torch.device, optional
    start : int
        Channels of the first level; published: 64 (31 million parameters).
    rate : float
        Learning rate; published: 1e-5.

    Returns
    -------
    Estimate
        In the units of `n2n.denoise`. The published recipe has no uncertainty; sigma is the local
        disagreement of the answers to two halves of the channels, halved, and intervals take it
        for Gaussian.

    Raises
    ------
    ValueError
        With fewer than two usable channels, no steps, or maps smaller than a patch.
    """
    began = time.monotonic()
    used = np.flatnonzero(summed.used)
    rows, cols = counts.shape[2:]
    if len(used) < 2:
        raise ValueError(f'recipe "paper" splits channels: it needs 2 or more, got {len(used)}')
    if fit_steps < 1:
        raise ValueError('recipe "paper" trains on the run: give fit_steps of 1 or more')
    if min(rows, cols) < _PATCH:
        raise ValueError(f'recipe "paper" needs maps of {_PATCH} x {_PATCH}, got {rows} x {cols}')
    where = choose_device(device)
    rng = np.random.default_rng(seed)
    light = exposure[used]
    rates = np.where(light > 0, counts[used] / np.where(light > 0, light, 1), np.float32(0))
    values, sigma = np.empty((2, counts.shape[1], rows, cols), dtype=np.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for element in range(counts.shape[1]):
            net = _train(rates[:, element], fit_steps, rng, where, start, rate)
            values[element] = _apply(net, rates[:, element].mean(axis=0), where)
            sigma[element] = _disagreement(net, rates[:, element], rng, where)
    values *= len(used)
    sigma *= len(used)
    hidden = summed.exposure <= 0
    values[hidden] = np.nan
    sigma[hidden] = np.nan
    reasons = ["published recipe, for comparison: its sigma is not calibrated", *summed.notes]
    report = {
        "method": "n2n",
        "recipe": "paper",
        "quantity": "expected counts of the channel sum at reference exposure",
        "weights": None,
        "weights_sha256": None,
        "fit_steps": fit_steps,
        "seed": seed,
        "device": str(where),
        "channels_used": [int(k) + 1 for k in used],
        "figures": {"gains": np.round(summed.gains, 4).tolist()},
        "verdict": "warn",
        "reasons": reasons,
        "wall_time_s": round(time.monotonic() - began, 3),
    }
    return Estimate(values, sigma, report, gaussian_calibration())


def _train(
    rates: NDArray[np.float32],
    steps: int,
    rng: np.random.Generator,
    device: torch.device,
    start: int,
    rate: float,
) -> ClassicUNet:
    net = ClassicUNet(start).to(device)
    optimiser = torch.optim.Adam(net.parameters(), rate)
    channels, rows, cols = rates.shape
    for _ in range(steps):
        noisy = np.empty((_BATCH, 1, _PATCH, _PATCH), dtype=np.float32)
        target = np.empty_like(noisy)
        for k in range(_BATCH):
            order = rng.permutation(channels)
            half = channels // 2
            row, col = int(rng.integers(rows - _PATCH + 1)), int(rng.integers(cols - _PATCH + 1))
            turns, flip = int(rng.integers(4)), int(rng.choice((-1, 1)))
            for into, chosen in ((noisy, order[:half]), (target, order[half:])):
                image, _, _ = _standard(rates[chosen].mean(axis=0))
                patch = image[row : row + _PATCH, col : col + _PATCH]
                into[k, 0] = np.rot90(patch, turns)[:, ::flip]
        answer = net(torch.from_numpy(noisy).to(device))
        loss = F.mse_loss(answer, torch.from_numpy(target).to(device))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net.eval()


def _apply(net: ClassicUNet, image: NDArray[np.float32], device: torch.device) -> NDArray:
    """Tiles of one patch, half overlapping, blended by Hann windows that add up to one."""
    standard, mean, scale = _standard(image)
    rows, cols = image.shape
    step = _PATCH // 2
    after = [-size % step + step for size in (rows, cols)]
    padded = np.pad(standard, ((step, after[0]), (step, after[1])), mode="symmetric")
    window = np.hanning(_PATCH + 1)[:-1]
    blend = (window[:, None] * window[None, :]).astype(np.float32)
    out = np.zeros_like(padded)
    starts = [
        (r, c)
        for r in range(0, padded.shape[0] - _PATCH + 1, step)
        for c in range(0, padded.shape[1] - _PATCH + 1, step)
    ]
    for first in range(0, len(starts), 64):
        some = starts[first : first + 64]
        tiles = np.stack([padded[r : r + _PATCH, c : c + _PATCH] for r, c in some])[:, None]
        with torch.inference_mode():
            answer = net(torch.from_numpy(tiles).to(device)).cpu().numpy()[:, 0]
        for (r, c), tile in zip(some, answer, strict=True):
            out[r : r + _PATCH, c : c + _PATCH] += tile * blend
    return out[step : step + rows, step : step + cols] * scale + mean


def _disagreement(
    net: ClassicUNet, rates: NDArray[np.float32], rng: np.random.Generator, device: torch.device
) -> NDArray[np.float32]:
    total = np.zeros(rates.shape[1:])
    for _ in range(_SPLITS):
        order = rng.permutation(len(rates))
        half = len(rates) // 2
        one = _apply(net, rates[order[:half]].mean(axis=0), device)
        two = _apply(net, rates[order[half:]].mean(axis=0), device)
        total += (one - two) ** 2 / 4
    return np.sqrt(total / _SPLITS).astype(np.float32)


def _standard(image: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, float]:
    mean, scale = float(image.mean()), float(image.std())
    scale = scale if scale > 0 else 1.0
    return ((image - mean) / scale).astype(np.float32), mean, scale
