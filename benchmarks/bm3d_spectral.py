"""BM3D on spectrum images, band by band, on the very counts that `inscan evaluate spectral` draws.

    python benchmarks/bm3d_spectral.py --seeds 2

Its package's licence is non-commercial, so it is neither a dependency nor imported by the project:
run this with the interpreter of an environment that has it beside inscan. Two rows: each bin
by itself, and bins first smoothed along the energy by a Gaussian of one bin.
"""

import argparse
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import bm3d  # pyright: ignore[reportMissingImports]
import numpy as np
from machine import machine
from scipy.ndimage import gaussian_filter1d

from inscan.models.evaluate_spectral import CASES, measured_cube, score_cube
from inscan.models.noise import anscombe, inverse_anscombe
from inscan.models.scores import ScoreRow, score_table, summarise, to_json

OUT = Path(__file__).resolve().parents[1] / "docs" / "evaluation" / "bm3d_spectral.json"
_WIDTHS = (1.0,)
_FACTORS = ("dwell", "worst line")


def _bands(noisy):
    """Each bin: stabilised, BM3D for noise of 1, unbiased inverse."""
    out = [inverse_anscombe(bm3d.bm3d(anscombe(band), 1.0)) for band in noisy.transpose(2, 0, 1)]
    return np.stack(out, axis=2)


def _smoothed_bands(noisy, mean):
    """Bins smoothed along the energy, then BM3D for the noise that leaves."""
    tries = []
    for width in _WIDTHS:
        soft = gaussian_filter1d(noisy.astype(float), width, axis=2)
        left = 1 / np.sqrt(2 * np.sqrt(np.pi) * width)  # of the noise of a bin
        z = []
        for band in soft.transpose(2, 0, 1):
            # A smoothed bin has the mean of a bin and the noise of 1 / left² as many counts.
            z.append(inverse_anscombe(bm3d.bm3d(anscombe(band / left**2), 1.0)) * left**2)
        tries.append(np.stack(z, axis=2))
    return min(tries, key=lambda z: float(np.square(z - mean).mean()))


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--case", default=CASES[0].name, choices=[case.name for case in CASES])
    options = parser.parse_args()
    case = next(case for case in CASES if case.name == options.case)
    methods: dict[str, Callable] = {
        "BM3D per band": lambda noisy, mean: _bands(noisy),
        "BM3D per smoothed band": _smoothed_bands,
    }
    rows: list[ScoreRow] = []
    for name, method in methods.items():
        scores = []
        for seed in range(options.seeds):
            phantom, noisy = measured_cube(case, seed)
            scores.append(score_cube(method(noisy, phantom.mean), noisy, phantom, float("nan")))
            print(f"{name}, seed {seed}", flush=True)
        rows.append(summarise(case.name, name, scores, geometric=_FACTORS))
    print(score_table(rows))
    answer = {
        "command": f"python benchmarks/bm3d_spectral.py --seeds {options.seeds}",
        "package": f"bm3d {version('bm3d')} (non-commercial licence)",
        "machine": machine(),
        "rows": to_json(rows),
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
