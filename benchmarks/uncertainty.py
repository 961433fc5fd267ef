"""Ways to tell how far off a denoised map may be, compared: which sigma knows where the errors are?

    python benchmarks/uncertainty.py [--seeds 3] [--samples 12] [--members 3] [--steps 200]

Every way gives a sigma for the same kind of answer (all elements together, one pass of the shipped network) and is
then calibrated alike, by split conformal prediction in bins of predicted counts, on samples of the training families
that no network saw. What is left to compare: does the interval hold where the map is bright, how wide is it, and does
sigma rank the errors. The last row is the estimate as shipped, with its own bins and the run's own held-out counts.

- the network's own prediction of its error (a second output, trained by likelihood)
- Monte Carlo dropout: channels dropped at random in the residual blocks (Gal and Ghahramani, ICML 2016)
- a small ensemble: copies trained on from the shipped weights with other seeds (Lakshminarayanan et al., NeurIPS 2017)
- thinning: disagreement of the answers to random halves of the counts
- symmetries: disagreement of the answers to the eight turns and flips
"""

import argparse
import copy
import json
import platform
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from inscan.models import n2n
from inscan.models.counting import denoise_counts, only
from inscan.models.infer import Denoiser, load_denoiser
from inscan.models.n2n_cases import FAMILY_CASES, Measured, measure
from inscan.models.noise import thin
from inscan.models.pool import training_pool
from inscan.models.scores import ScoreRow, score_table, summarise, to_json
from inscan.models.training import TrainingPlan, train_denoiser
from inscan.models.unet import ResidualBlock

Answer = tuple[NDArray[np.float64], NDArray[np.float64]]
Way = Callable[[NDArray[np.float32], np.random.Generator], Answer]

_EDGES = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 40.0)
_LEVEL = 0.9
_REPEATS = 8
_DROPPED = 0.05
_QUANTILES = (0.25, 0.5, 0.75, 0.95)
_COLUMNS = ("coverage", "worst bin", "brightest 5 %", "width", "rank", "s")


def ways(denoiser: Denoiser, members: list[Denoiser]) -> dict[str, Way]:
    """Answer and sigma of each way, from counts (element, row, col)."""

    def run(network: Denoiser, counts: NDArray[np.float32], tta: int = 1) -> NDArray[np.float64]:
        light = np.ones_like(counts)
        return denoise_counts(network, counts, light, only("together", len(counts)), tta).counts

    def own(counts: NDArray[np.float32], rng: np.random.Generator) -> Answer:
        light = np.ones_like(counts)
        found = denoise_counts(denoiser, counts, light, only("together", len(counts)))
        return found.counts, found.error

    def dropout(counts: NDArray[np.float32], rng: np.random.Generator) -> Answer:
        with _dropping(denoiser, int(rng.integers(2**31))):
            several = [run(denoiser, counts) for _ in range(_REPEATS)]
        return run(denoiser, counts), np.std(several, axis=0)

    def ensemble(counts: NDArray[np.float32], rng: np.random.Generator) -> Answer:
        several = [run(member, counts) for member in members]
        return np.mean(several, axis=0), np.std(several, axis=0, ddof=1)

    def thinning(counts: NDArray[np.float32], rng: np.random.Generator) -> Answer:
        square = np.zeros(counts.shape)
        for _ in range(_REPEATS // 2):
            one, two = (2 * run(denoiser, half) for half in thin(counts, 0.5, rng))
            square += (one - two) ** 2 / 4
        return run(denoiser, counts), np.sqrt(square / (_REPEATS // 2))

    def symmetries(counts: NDArray[np.float32], rng: np.random.Generator) -> Answer:
        several = []
        for mirror in (False, True):
            for turns in range(4):
                seen = np.rot90(counts[..., ::-1] if mirror else counts, turns, (1, 2))
                back = np.rot90(run(denoiser, np.ascontiguousarray(seen)), -turns, (1, 2))
                several.append(back[..., ::-1] if mirror else back)
        return np.mean(several, axis=0), np.std(several, axis=0)

    return {
        "network's own": own,
        "MC dropout": dropout,
        f"ensemble of {len(members)}": ensemble,
        "thinning": thinning,
        "symmetries": symmetries,
    }


@contextmanager
def _dropping(denoiser: Denoiser, seed: int):
    """Whole channels of every residual block's answer are zero with a small probability."""
    generator = torch.Generator().manual_seed(seed)

    def drop(module: torch.nn.Module, given: object, out: torch.Tensor) -> torch.Tensor:
        kept = torch.rand(out.shape[:2], generator=generator).to(out.device) >= _DROPPED
        return out * kept[:, :, None, None] / (1 - _DROPPED)

    blocks = [m for m in denoiser.net.modules() if isinstance(m, ResidualBlock)]
    handles = [block.register_forward_hook(drop) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def trained_on(denoiser: Denoiser, count: int, steps: int) -> list[Denoiser]:
    """Copies of a denoiser after some more steps, each with samples and order of its own."""
    members = []
    for seed in range(count):
        plan = TrainingPlan(
            steps=steps,
            seed=100 + seed,
            rate=1e-3,
            hold=0.3,
            average=0.02,
            shapes=((10, 64),),
            network=denoiser.net.config,
        )
        pool = training_pool(80, side=96, seed=700_000 + seed)
        began = time.monotonic()
        trained = train_denoiser(pool, plan, start=denoiser.net.state_dict())
        net = copy.deepcopy(denoiser.net)
        net.load_state_dict(dict(trained.tensors))
        members.append(replace(denoiser, net=net.eval()))
        print(f"member {seed + 1}: {time.monotonic() - began:.0f} s", flush=True)
    return members


class Conformal:
    """Ends of the interval in units of a floored sigma, in bins of predicted counts."""

    def __init__(self, answers: list[Answer], truths: list[NDArray[np.float64]]) -> None:
        mean = np.concatenate([a[0].ravel() for a in answers])
        sigma = np.concatenate([self.floored(*a).ravel() for a in answers])
        z = (np.concatenate([t.ravel() for t in truths]) - mean) / sigma
        bins = np.searchsorted(_EDGES, mean)
        tails = (0.5 - _LEVEL / 2, 0.5 + _LEVEL / 2)
        self.ends = np.array(
            [
                np.quantile(z[bins == k] if (bins == k).sum() > 1000 else z, tails)
                for k in range(len(_EDGES) + 1)
            ]
        )

    @staticmethod
    def floored(mean: NDArray[np.float64], sigma: NDArray[np.float64]) -> NDArray[np.float64]:
        """Few repeats sometimes agree by chance: a hundredth of counting noise is granted."""
        return np.hypot(sigma, 0.03 * np.sqrt(mean + 0.4))

    def interval(self, answer: Answer) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lowest and highest plausible mean counts."""
        ends = self.ends[np.searchsorted(_EDGES, answer[0])]
        sigma = self.floored(*answer)
        return np.maximum(answer[0] + ends[..., 0] * sigma, 0), answer[0] + ends[..., 1] * sigma


def scores(
    measured: Measured,
    values: NDArray[np.floating],
    sigma: NDArray[np.floating],
    low: NDArray[np.floating],
    high: NDArray[np.floating],
    seconds: float,
) -> dict[str, float]:
    """Coverage, overall and by bin of true intensity, width over raw counts', rank correlation."""
    mean, raw = measured.mean, measured.counts.sum(axis=0)
    inside = (low <= mean) & (mean <= high)
    bins = np.searchsorted(np.quantile(mean, _QUANTILES), mean)
    by_bin = [inside[bins == k].mean() for k in range(5) if (bins == k).any()]
    bright = mean >= np.quantile(mean, 0.95, axis=(1, 2), keepdims=True)
    some = np.random.default_rng(0).integers(mean.size, size=20_000)
    rank = spearmanr(np.abs(values - mean).ravel()[some], sigma.ravel()[some])
    return {
        "coverage": float(inside.mean()),
        "worst bin": float(min(by_bin)),
        "brightest 5 %": float(inside[bright].mean()),
        "width": float((high - low).mean() / (2 * 1.645 * np.sqrt(np.maximum(raw, 1))).mean()),
        "rank": float(np.asarray(rank)[0]),
        "s": seconds,
    }


def compare(
    denoiser: Denoiser, members: list[Denoiser], seeds: int, samples: int
) -> list[ScoreRow]:
    """Calibrate every way on training families and score it on held-out ones."""
    rng = np.random.default_rng(11)
    truths = []
    for maps in training_pool(samples, side=96, seed=910_001):
        peak = np.exp(rng.uniform(np.log(3), np.log(60)))
        truths.append(peak * (0.03 + 0.97 * maps.astype(np.float64)))
    counts = [rng.poisson(t).astype(np.float32) for t in truths]
    rows = []
    for name, way in ways(denoiser, members).items():
        conformal = Conformal([way(y, np.random.default_rng(1)) for y in counts], truths)
        for case in FAMILY_CASES:
            found = []
            for seed in range(seeds):
                measured = measure(case, seed)
                began = time.monotonic()
                total = measured.counts.sum(axis=0).astype(np.float32)
                answer = way(total, np.random.default_rng(2))
                seconds = time.monotonic() - began
                low, high = conformal.interval(answer)
                found.append(scores(measured, *answer, low, high, seconds))
            rows.append(summarise(case.name, name, found))
        print(f"{name}: done", flush=True)
    for case in FAMILY_CASES:
        found = []
        for seed in range(seeds):
            measured = measure(case, seed)
            began = time.monotonic()
            estimate = n2n.denoise(measured.counts, denoiser=denoiser)
            seconds = time.monotonic() - began
            low, high = estimate.interval(_LEVEL)
            found.append(scores(measured, estimate.values, estimate.sigma, low, high, seconds))
        rows.append(summarise(case.name, "as shipped", found))
    return sorted(rows, key=lambda row: [case.name for case in FAMILY_CASES].index(row.case))


def main() -> None:
    """Train the members, compare, print and keep."""
    parser = argparse.ArgumentParser(description="Compare ways to tell the error of n2n.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=12, help="to calibrate on")
    parser.add_argument("--members", type=int, default=3, help="of the ensemble")
    parser.add_argument("--steps", type=int, default=200, help="of further training for each")
    parser.add_argument("--out", type=Path, default=Path("docs/evaluation/uncertainty.json"))
    given = parser.parse_args()
    denoiser = load_denoiser()
    members = trained_on(denoiser, given.members, given.steps)
    rows = compare(denoiser, members, given.seeds, given.samples)
    print(score_table(rows, _COLUMNS))
    kept = {
        "command": f"python benchmarks/uncertainty.py --seeds {given.seeds} --samples {given.samples} "
        f"--members {given.members} --steps {given.steps}",
        "weights_sha256": denoiser.weights.sha256,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "rows": to_json(rows),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
