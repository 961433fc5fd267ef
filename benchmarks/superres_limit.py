"""How far super-resolution of cells could go: the shipped network, fine-tuned on cells themselves.

    python benchmarks/superres_limit.py --out docs/evaluation/superres_limit.json

The shipped weights have never seen cells. Here they are trained on with other seeds of the very
family, sampling and counts that they are then scored on: no method that has to serve any sample can be
asked for more than such a network reaches with as many parameters.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from inscan.models.edges import edge_ruler
from inscan.models.edsr import SuperResolver
from inscan.models.scores import ScoreRow, summarise, to_json
from inscan.models.superres_cases import aligned_bicubic, fine_truth
from inscan.models.superres_input import ForwardModel, map_scale, network_input
from inscan.models.superres_run import network_of, run_network
from inscan.models.superres_samples import coarse_counts, gradients
from inscan.models.weights import load_weights

_FIRST_SEED = 1000
_SIDE = {2: 24, 4: 18}
_BATCH, _ELEMENTS = 5, 6


def main() -> None:
    """Train, score, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--factors", type=int, nargs="+", default=[4, 2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--maps", type=int, default=24, help="samples of cells to train on")
    parser.add_argument("--seeds", type=int, default=5, help="samples of cells to score on")
    parser.add_argument("--peak", type=float, default=5000.0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    maps = [fine_truth("cells", _FIRST_SEED + k)[:_ELEMENTS] for k in range(options.maps)]
    pool = torch.from_numpy(np.stack(maps))
    rows: list[ScoreRow] = []
    for factor in options.factors:
        began = time.perf_counter()
        shipped = network_of(load_weights(f"superres_x{factor}"), factor)
        tuned = network_of(load_weights(f"superres_x{factor}"), factor)
        _tune(tuned, pool, options.peak, options.steps)
        scores = _score({"inscan": shipped, "fine-tuned on cells": tuned}, options)
        case = f"cells, {factor}x, peak {options.peak:g}"
        rows += [summarise(case, method, several) for method, several in scores.items()]
        print(f"{case}: {time.perf_counter() - began:.0f} s", flush=True)
        for row in rows[-2:]:
            print(row.method, {k: round(f.mean, 3) for k, f in row.figures.items()}, flush=True)
        document = {
            "command": f"python benchmarks/superres_limit.py --steps {options.steps} "
            f"--maps {options.maps} --seeds {options.seeds} --peak {options.peak:g}",
            "rows": to_json(rows),
        }
        options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _tune(net: SuperResolver, pool: torch.Tensor, peak: float, steps: int) -> None:
    """L1 + 0.1 Sobel-L1, as in training."""
    generator = torch.Generator().manual_seed(0)
    side = _SIDE[net.factor] * net.factor
    optimiser = torch.optim.Adam(net.parameters(), lr=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=5e-4, total_steps=steps, pct_start=0.1
    )
    peaks = torch.full((_BATCH, _ELEMENTS), peak)
    net.train()
    for step in range(1, steps + 1):
        truth = torch.stack([_crop(pool, side, generator) for _ in range(_BATCH)])
        counts = coarse_counts(truth, net.factor, peaks, generator)
        scale = torch.from_numpy(map_scale(counts.numpy()))
        with torch.autocast("cpu", torch.bfloat16):
            mean, _ = net(network_input(counts, scale))
        mean = mean * (scale / peaks)[..., None, None]
        pairs = zip(gradients(mean), gradients(truth), strict=True)
        edges = sum((a - b).abs().mean() for a, b in pairs)
        loss = (mean - truth).abs().mean() + 0.1 * edges
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 25 == 0:
            print(f"{net.factor}x step {step} loss {float(loss.detach()):.5f}", flush=True)
    net.eval()


def _crop(pool: torch.Tensor, side: int, generator: torch.Generator) -> torch.Tensor:
    which, turns = (int(torch.randint(n, (1,), generator=generator)) for n in (len(pool), 4))
    r, c = (int(torch.randint(pool.shape[k] - side + 1, (1,), generator=generator)) for k in (2, 3))
    patch = torch.rot90(pool[which, :, r : r + side, c : c + side], turns, (-2, -1))
    return patch.flip(-1) if torch.rand(1, generator=generator) < 0.5 else patch


def _score(
    nets: dict[str, SuperResolver], options: argparse.Namespace
) -> dict[str, list[dict[str, float]]]:
    scores: dict[str, list[dict[str, float]]] = {method: [] for method in nets}
    for seed in range(options.seeds):
        truth = fine_truth("cells", seed)
        rulers = [edge_ruler(true) for true in truth]
        for method, net in nets.items():
            rng = np.random.default_rng([seed, net.factor, int(options.peak)])
            coarse = ForwardModel(net.factor).apply(truth) * options.peak
            counts = rng.poisson(coarse).astype(np.float32)
            values, _ = run_network(net, counts, 8, torch.device("cpu"))
            gain = _psnr(values / options.peak, truth) - _psnr(
                aligned_bicubic(counts, net.factor) / options.peak, truth
            )
            ratios = [ruler.ratio(v) for ruler, v in zip(rulers, values, strict=True)]
            scores[method].append({"gain dB": gain, "edge FWHM": float(np.nanmean(ratios))})
    return scores


def _psnr(values: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean(-10 * np.log10(np.square(values - truth).mean(axis=(1, 2)))))


if __name__ == "__main__":
    main()
