"""Fine-tune the super-resolution network on measured coarse/fine pairs.

The fine maps are counts too: the network's answer is carried to the fine pixels and judged by the
Poisson likelihood of what was counted there. Part of what was measured takes no part in training: half of
it chooses the moment to stop, the other half decides whether the new weights are better than the
ones they started from. Only then are they written.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from inscan.models.noise import poisson_deviance
from inscan.models.pairs import Pair
from inscan.models.superres_input import map_scale, network_input
from inscan.models.superres_run import network_of
from inscan.models.weights import Weights, load_weights, save_weights

__all__ = ["PairTraining", "train_from_pairs"]

_RATE = 2e-4
_CROP = 24  # survey pixels along a side of what one step sees
_EVERY = 20  # steps between looks at the validation part
_PATIENCE = 4  # looks without improvement
_WHOLE_PAIRS = 4  # so many pairs: hold out whole ones
_SURE = 2.0  # standard errors by which the new weights must be better
_BLOCK = 8  # fine pixels along a side of the blocks that the standard error is from
_TRAIN, _VALIDATE, _TEST = 0, 1, 2


@dataclass(frozen=True)
class PairTraining:
    """What came of it.

    Attributes
    ----------
    kept : bool
        The new weights predict held-out fine counts better, and were written.
    weights : Weights or None
        The new ones when kept.
    before, after : float
        Poisson deviance per held-out fine pixel, of the start and of the new weights.
    steps : int
        Optimiser steps behind the new weights.
    pairs : int
    reasons : tuple of str
    """

    kept: bool
    weights: Weights | None
    before: float
    after: float
    steps: int
    pairs: int
    reasons: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the weights by name and SHA-256."""
        plain = {k: v for k, v in vars(self).items() if k != "weights"} | {
            "reasons": list(self.reasons)
        }
        if self.weights is not None:
            plain["weights"] = {"name": self.weights.name, "sha256": self.weights.sha256}
        return plain


@dataclass(frozen=True)
class _Example:
    """A pair as tensors, with what each fine pixel is for."""

    pair: Pair
    role: NDArray[np.int8]

    def mask(self, role: int) -> NDArray[np.bool_]:
        return (self.pair.gain > 0) & (self.role == role)


def train_from_pairs(
    pairs: Sequence[Pair],
    *,
    out: Path,
    name: str | None = None,
    start: Weights | None = None,
    steps: int = 200,
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> PairTraining:
    """Fine-tune on pairs, keep the result if held-out counts prefer it.

    Parameters
    ----------
    pairs : sequence of Pair
        From `pairs.prepare`, all of one factor. With four or more, a quarter of them is held out
        whole; with fewer, a quarter of each field.
    out : Path
        Folder that the weights and their card are written to.
    name : str, optional
        Of the weights; ``superres_x{factor}_measured`` if not given.
    start : Weights, optional
        The shipped weights of that factor if not given.
    steps : int
        At most; training stops when the validation part stops improving.
    seed : int
    progress : callable (step, deviance), optional
        Called at every look at the validation part.

    Returns
    -------
    PairTraining

    Raises
    ------
    ValueError
        No pairs, pairs of different factors, fewer than one step, or weights of another factor.
    """
    factor = _one_factor(pairs)
    if steps < 1:
        raise ValueError(f"steps must be >= 1, got {steps}")
    parent = start or load_weights(f"superres_x{factor}")
    net = network_of(parent, factor)
    rng = np.random.default_rng(seed)
    examples = _with_roles(pairs, rng)
    before = {role: _deviances(net, examples, role) for role in (_VALIDATE, _TEST)}
    best, best_step = float(before[_VALIDATE].mean()), 0
    tensors = {key: value.clone() for key, value in net.state_dict().items()}
    if progress:
        progress(0, best)
    optimiser = torch.optim.Adam(net.parameters(), lr=_RATE)
    usable = [e for e in examples if e.mask(_TRAIN).any()]
    for step in range(1, steps + 1):
        _step(net, optimiser, usable[rng.integers(len(usable))], rng)
        if step % _EVERY and step != steps:
            continue
        now = float(_deviances(net, examples, _VALIDATE).mean())
        if progress:
            progress(step, now)
        if now < best:
            best, best_step = now, step
            tensors = {key: value.clone() for key, value in net.state_dict().items()}
        elif step - best_step >= _PATIENCE * _EVERY:
            break
    # Judged as it will be read back: half precision.
    net.load_state_dict({key: value.half().float() for key, value in tensors.items()})
    after = _deviances(net, examples, _TEST)
    gain = before[_TEST] - after
    error = float(gain.std(ddof=1) / np.sqrt(gain.size)) if gain.size > 1 else np.inf
    kept = best_step > 0 and float(gain.mean()) > _SURE * error
    scores = (float(before[_TEST].mean()), float(after.mean()))
    said = (
        f"held-out fine counts: deviance {scores[0]:.4f} before, {scores[1]:.4f} after, "
        f"difference {gain.mean():.4f} +- {error:.4f}"
    )
    if not kept:
        why = "no better than the weights they started from, not written"
        return PairTraining(False, None, *scores, best_step, len(pairs), (said, why))
    card = _card(parent, pairs, best_step, seed, scores)
    weights = save_weights(out, name or f"superres_x{factor}_measured", tensors, card)
    return PairTraining(True, weights, *scores, best_step, len(pairs), (said,))


def _one_factor(pairs: Sequence[Pair]) -> int:
    if not pairs:
        raise ValueError("train_from_pairs: no pairs")
    factors = sorted({pair.factor for pair in pairs})
    if len(factors) > 1:
        raise ValueError(f"train_from_pairs: pairs of different factors {factors}")
    return factors[0]


def _with_roles(pairs: Sequence[Pair], rng: np.random.Generator) -> list[_Example]:
    """What each fine pixel is for: training, choosing when to stop, or deciding."""
    order = rng.permutation(len(pairs))
    whole = set(order[: len(pairs) // 4].tolist()) if len(pairs) >= _WHOLE_PAIRS else None
    examples = []
    for index, pair in enumerate(pairs):
        rows, cols = pair.fine.shape[1:]
        role = np.full((rows, cols), _TRAIN, dtype=np.int8)
        tall = rows >= cols
        lines = role if tall else role.T
        first = 0 if whole and index in whole else lines.shape[0] - lines.shape[0] // 4
        if whole is None or index in whole:
            middle = lines.shape[1] // 2
            lines[first:, :middle], lines[first:, middle:] = _VALIDATE, _TEST
        examples.append(_Example(pair, role))
    return examples


def _predicted(
    net: nn.Module, pair: Pair, window: tuple[slice, slice], turns: int = 0, flip: bool = False
) -> torch.Tensor:
    """Expected fine counts, (element, fine row, fine col), from a window of the survey."""
    coarse = pair.coarse[:, window[0], window[1]]
    scale = torch.from_numpy(map_scale(pair.coarse))[None]
    planes = network_input(torch.from_numpy(np.ascontiguousarray(coarse))[None], scale)
    planes = torch.rot90(planes.flip(-1) if flip else planes, turns, (-2, -1))
    mean, _ = net(planes)
    mean = torch.rot90(mean, -turns, (-2, -1))
    mean = (mean.flip(-1) if flip else mean)[0] * scale[0][:, None, None]
    rows, cols = (
        torch.from_numpy(weights[:, w.start * pair.factor : w.stop * pair.factor])
        for weights, w in ((pair.rows, window[0]), (pair.cols, window[1]))
    )
    return rows @ mean @ cols.T * torch.from_numpy(pair.gain)


def _step(
    net: nn.Module, optimiser: torch.optim.Optimizer, example: _Example, rng: np.random.Generator
) -> None:
    pair = example.pair
    window = _window(pair.coarse.shape[1], rng), _window(pair.coarse.shape[2], rng)
    inside = _inside(pair, window)
    mask = torch.from_numpy(example.mask(_TRAIN) & inside)
    if not mask.any():
        return
    net.train()
    expected = _predicted(net, pair, window, int(rng.integers(4)), bool(rng.integers(2)))
    fine = torch.from_numpy(pair.fine)
    # Below a small rate the likelihood is continued as a straight line: an expectation of 0 where
    # something was counted must not have an infinite price, and must have a slope.
    floor = 0.02
    above = expected.clamp(min=floor)
    log = torch.log(above) + (expected - above) / floor
    # Relative to how much can be known: elements with many counts must not rule the others.
    size_of = (fine * mask).sum((1, 2)) / mask.sum((1, 2)).clamp(min=1)
    cost = (expected - fine * log) / (1 + size_of.sqrt())[:, None, None]
    loss = (cost * mask).sum() / mask.sum()
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimiser.step()


def _window(length: int, rng: np.random.Generator) -> slice:
    first = int(rng.integers(0, max(1, length - _CROP + 1)))
    return slice(first, min(first + _CROP, length))


def _inside(pair: Pair, window: tuple[slice, slice]) -> NDArray[np.bool_]:
    """Fine pixels whose interpolation stays within the window."""
    parts = []
    for weights, w in ((pair.rows, window[0]), (pair.cols, window[1])):
        share = np.abs(weights[:, w.start * pair.factor : w.stop * pair.factor]).sum(axis=1)
        parts.append(share > np.abs(weights).sum(axis=1) - 1e-6)
    return np.outer(*parts)


def _deviances(net: nn.Module, examples: Sequence[_Example], role: int) -> NDArray[np.float64]:
    """Mean Poisson deviance of the fine pixels with that role, block by block."""
    net.eval()
    found = []
    for example in examples:
        mask, pair = example.mask(role), example.pair
        if not mask.any():
            continue
        whole = (slice(0, pair.coarse.shape[1]), slice(0, pair.coarse.shape[2]))
        with torch.inference_mode():
            expected = np.maximum(_predicted(net, pair, whole).numpy(), 0.02)
        deviance = np.where(mask, poisson_deviance(pair.fine, expected), 0.0).sum(axis=0)
        number = mask.sum(axis=0)
        for r in range(0, mask.shape[1], _BLOCK):
            for c in range(0, mask.shape[2], _BLOCK):
                n = number[r : r + _BLOCK, c : c + _BLOCK].sum()
                if n:
                    found.append(deviance[r : r + _BLOCK, c : c + _BLOCK].sum() / n)
    if not found:
        raise ValueError("train_from_pairs: the pairs are too small to hold anything out")
    return np.array(found)


def _card(
    parent: Weights, pairs: Sequence[Pair], steps: int, seed: int, scores: tuple[float, float]
) -> dict[str, Any]:
    elements = sorted({name for pair in pairs for name in pair.elements})
    return {
        "licence": parent.card["licence"],
        "architecture": dict(parent.card["architecture"]),
        # Of the parent: fine counts are too noisy to calibrate intervals with.
        "calibration": dict(parent.card["calibration"]),
        "familiarity": dict(parent.card["familiarity"]),
        "training": {
            "data": "measured coarse/fine pairs",
            "seed": seed,
            "steps": steps,
            "loss": "Poisson likelihood of the fine counts",
        },
        "born_of": {
            "runs": [list(pair.runs) for pair in pairs],
            "elements": elements,
            "factor": pairs[0].factor,
            "sampling": sorted({pair.sampling for pair in pairs}),
            "parent": {"name": parent.name, "sha256": parent.sha256},
        },
        "figures": {"heldout_deviance_before": scores[0], "heldout_deviance_after": scores[1]},
    }
