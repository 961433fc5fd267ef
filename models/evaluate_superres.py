"""Score `superres` on samples no network has seen, beside interpolation.

python -m inscan.models.evaluate_superres
"""

import argparse
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from inscan.models import n2n, superres
from inscan.models.scores import ScoreRow, score_table, summarise
from inscan.models.structures import blob_strengths, false_share
from inscan.models.superres_input import ForwardModel
from inscan.profiles.samples import battery_particles, cells, siemens_star

__all__ = ["evaluate_flat", "evaluate_superres"]

_SAMPLES: dict[str, Callable] = {
    "cells": cells,
    "siemens": siemens_star,
    "particles": battery_particles,
}
_BIN = 5  # of the sample's own grid to a fine pixel
_SIDE = 160
_RECALL = 0.4


def evaluate_superres(
    seeds: Sequence[int] = range(3),
    factors: Sequence[int] = (2, 4),
    peaks: Sequence[float] = (200.0, 5000.0),
    samples: Sequence[str] = ("cells", "particles"),
) -> list[ScoreRow]:
    """Coarse maps of a box probe, Poisson counts, against the fine truth.

    Parameters
    ----------
    seeds : sequence of int
    factors : sequence of {2, 4}
    peaks : sequence of float
        Counts of each element's brightest coarse pixel.
    samples : sequence of {"cells", "siemens", "particles"}

    Returns
    -------
    list of ScoreRow
        Figures: PSNR in dB and SSIM, means over elements; gain over aligned bicubic; share of
        spots seen that are false where 40 % of the true ones are found; coverage of the 90 %
        intervals; reduced chi square of the result folded back; seconds.
    """
    rows = []
    for name in samples:
        for factor in factors:
            for peak in peaks:
                scores: dict[str, list[dict[str, float]]] = {}
                for seed in seeds:
                    _score_one(scores, name, factor, peak, seed)
                case = f"{name}, x{factor}, peak {peak:g}"
                rows += [summarise(case, method, several) for method, several in scores.items()]
    return rows


def evaluate_flat(
    seeds: Sequence[int] = range(3), factors: Sequence[int] = (2, 4), level: float = 60.0
) -> list[ScoreRow]:
    """Spots made up on a map without any structure, per million fine pixels."""
    rows = []
    for factor in factors:
        scores: dict[str, list[dict[str, float]]] = {}
        for seed in seeds:
            shape = (2, _SIDE // factor, _SIDE // factor)
            counts = np.random.default_rng(seed).poisson(level, shape)
            for method, values in (
                ("bicubic", bicubic(counts, factor)),
                ("inscan", superres.upscale(counts, factor=factor).values),
            ):
                spots = sum(
                    int((blob_strengths(plane / (level / 0.3))[1] > 0.03).sum()) for plane in values
                )
                scores.setdefault(method, []).append({"spots per Mpx": 1e6 * spots / values.size})
        case = f"flat field of {level:g} counts, x{factor}"
        rows += [summarise(case, method, several) for method, several in scores.items()]
    return rows


def bicubic(coarse: NDArray, factor: int) -> NDArray[np.float32]:
    """Bicubic interpolation with pixel areas aligned, the fair baseline."""
    x = torch.from_numpy(np.asarray(coarse, dtype=np.float32))[None]
    return F.interpolate(x, scale_factor=factor, mode="bicubic", align_corners=False)[0].numpy()


def fine_truth(name: str, seed: int) -> NDArray[np.float32]:
    """Element maps on the fine grid, each with maximum 1, shape (element, 160, 160)."""
    maps = np.asarray(_SAMPLES[name](seed).maps)
    side = min(_SIDE, maps.shape[1] // _BIN, maps.shape[2] // _BIN) // 4 * 4
    cut = maps[:, : side * _BIN, : side * _BIN]
    fine = cut.reshape(len(maps), side, _BIN, side, _BIN).mean(axis=(2, 4))
    return (fine / fine.max(axis=(1, 2), keepdims=True)).astype(np.float32)


def _score_one(
    scores: dict[str, list[dict[str, float]]], name: str, factor: int, peak: float, seed: int
) -> None:
    truth = fine_truth(name, seed)
    forward = ForwardModel(factor)
    rng = np.random.default_rng([seed, factor, int(peak)])
    counts = rng.poisson(forward.apply(truth) * peak).astype(np.float32)
    plain = bicubic(counts, factor) / peak
    reference = _psnr(plain, truth)
    methods: dict[str, Callable] = {
        "bicubic": lambda: plain,
        "denoise, then bicubic": lambda: bicubic(n2n.denoise(counts[None]).values, factor) / peak,
        "inscan": lambda: superres.upscale(counts, factor=factor),
        "inscan paper": lambda: superres.upscale(counts, factor=factor, recipe="paper"),
    }
    for method, run in methods.items():
        began = time.perf_counter()
        found = run()
        took = time.perf_counter() - began
        covered = np.nan
        values = found
        if not isinstance(found, np.ndarray):
            values = found.values / peak
            low, high = found.interval(0.9)
            covered = float(np.mean((low <= truth * peak) & (truth * peak <= high)))
        folded = np.maximum(forward.apply(values) * peak, 0)
        chi2 = ((folded - counts) ** 2).sum() / max(float(folded.sum()), 1e-9)
        false = [false_share(v, t, _RECALL)[0] for v, t in zip(values, truth, strict=True)]
        psnr = _psnr(values, truth)
        scores.setdefault(method, []).append(
            {
                "PSNR": psnr,
                "gain dB": psnr - reference,
                "SSIM": float(
                    np.mean(
                        [
                            structural_similarity(v, t, data_range=1.0)
                            for v, t in zip(values, truth, strict=True)
                        ]
                    )
                ),
                "false share": float(np.nanmean(false)) if np.isfinite(false).any() else np.nan,
                "coverage": covered,
                "chi2": float(chi2),
                "s": took,
            }
        )


def _psnr(values: NDArray, truth: NDArray) -> float:
    return float(np.mean(-10 * np.log10(np.square(values - truth).mean(axis=(1, 2)))))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(parser.parse_args().seeds)
    print(score_table(evaluate_superres(seeds)), flush=True)
    print(score_table(evaluate_flat(seeds)), flush=True)


if __name__ == "__main__":
    main()
