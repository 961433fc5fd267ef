"""Score BM3D on the cases of `inscan evaluate n2n` and keep the figures.

    python benchmarks/bm3d_reference.py [--seeds 10]

BM3D (Dabov, Foi, Katkovnik, Egiazarian, *IEEE TIP* 16 (2007) 2080; Mäkinen, Azzari, Foi, *IEEE TIP* 29
(2020) 8339, which is the package `bm3d`) is what a denoiser without training has to beat. The package's
licence allows non-commercial use only, so it is no dependency, in no lock file and not in CI: run this in
an environment of its own that has inscan and `bm3d`. Evaluations read the stored figures and compute
nothing again.

Each element's channel sum is stabilised (Anscombe), denoised with sigma 1 by the default profile, and
brought back by the exact unbiased inverse. Sigmas of 0.6 and 0.8 were tried: worse by a third and more,
but for elements of a tenth of a count a pixel (a tenth better).
"""

import argparse
import importlib
import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine
from numpy.typing import NDArray

from inscan.models.map_scores import score_maps
from inscan.models.n2n_cases import N2N_CASES, Measured, measure
from inscan.models.noise import anscombe, inverse_anscombe

STORED = Path(__file__).parents[1] / "docs" / "evaluation" / "bm3d.json"
METHOD = "BM3D"


def denoise(measured: Measured) -> NDArray[np.float64]:
    """Channel sums by BM3D, element by element."""
    bm3d = importlib.import_module("bm3d").bm3d
    sums = measured.counts.sum(axis=0)
    return np.stack([inverse_anscombe(bm3d(anscombe(counts), 1.0)) for counts in sums])


def rounded(scores: dict[str, float]) -> dict[str, float | None]:
    """Five significant digits; None for what is not finite."""
    return {
        name: float(f"{value:.5g}") if np.isfinite(value) else None
        for name, value in scores.items()
    }


def main() -> None:
    """Score and store, case by case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=STORED)
    options = parser.parse_args()
    cases: dict[str, dict[str, Any]] = {}
    stored = {
        "command": f"python benchmarks/bm3d_reference.py --seeds {options.seeds}",
        "package": f"bm3d {version('bm3d')} (non-commercial licence)",
        "machine": machine(),
        "methods": {METHOD: cases},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for case in N2N_CASES:
        for seed in range(options.seeds):
            measured = measure(case, seed)
            began = time.perf_counter()
            found = denoise(measured)
            scores = score_maps(measured, found, time.perf_counter() - began)
            cases.setdefault(case.name, {})[str(seed)] = rounded(scores)
            print(f"{case.name}, seed {seed}: {scores['dwell']:.2f}", flush=True)
        options.out.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
