"""Score BM3D, frame by frame, on the noisy stacks of `inscan evaluate subspace` and keep the figures.

    python benchmarks/bm3d_stacks.py [--seeds 3] [--frames 4]

See `bm3d_reference.py` for why this runs in an environment of its own (the package's licence is
non-commercial) and why the evaluation only reads what is stored. A few frames, evenly over the
energies, stand for the stack: BM3D takes seconds for each, and sees no other frame.
"""

import argparse
import importlib
import json
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from inscan.models.scores import ScoreRow, summarise, to_json
from inscan.models.stack_cases import noisy_stack

STORED = Path(__file__).parents[1] / "docs" / "evaluation" / "bm3d_stacks.json"


def score(sigma: float, seeds: int, frames: int) -> ScoreRow:
    """FPSNR over a few frames of each seed's stack."""
    bm3d = importlib.import_module("bm3d").bm3d
    scores = []
    for seed in range(seeds):
        case = noisy_stack(seed, sigma)
        chosen = np.round(np.linspace(0, len(case.noisy) - 1, frames)).astype(int)
        began = time.perf_counter()
        errors = [np.mean((bm3d(case.noisy[k], sigma) - case.clean[k]) ** 2) for k in chosen]
        took = (time.perf_counter() - began) / frames * len(case.noisy)
        fpsnr = float(np.mean(10 * np.log10(255**2 / np.array(errors))))
        print(f"sigma {sigma:g}, seed {seed}: {fpsnr:.2f} dB", flush=True)
        scores.append({"FPSNR": fpsnr, "s": took})
    name = f"smooth chemistry, 120 energies, sigma {sigma:g} of 255"
    return summarise(name, f"BM3D per frame ({frames} frames)", scores)


def main() -> None:
    """Score and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--sigmas", type=float, nargs="+", default=[10.0, 50.0, 100.0, 150.0])
    parser.add_argument("--out", type=Path, default=STORED)
    options = parser.parse_args()
    rows = []
    for sigma in options.sigmas:
        rows.append(score(sigma, options.seeds, options.frames))
        stored = {
            "command": f"python benchmarks/bm3d_stacks.py --seeds {options.seeds} "
            f"--frames {options.frames} --sigmas {' '.join(f'{s:g}' for s in options.sigmas)}",
            "package": f"bm3d {version('bm3d')} (non-commercial licence)",
            "rows": to_json(rows),
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
