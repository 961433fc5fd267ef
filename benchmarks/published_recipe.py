"""Score the published channel-splitting recipe on the cases of `inscan evaluate n2n`; keep the figures.

    python benchmarks/published_recipe.py [--seeds 2] [--steps 300]

SetkaFluo (Shishkov et al., Anal. Chem. 2026) trains a network for each element of each map from nothing:
31 million parameters, up to 179 000 steps. Here it has 2 million (16 channels at the first level, not 64), a rate of
1e-3 instead of 1e-5, and few steps: what a CPU does in minutes an element, on one case of each held-out family.
Evaluations read the stored figures.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine

from inscan.models.evaluate import published_recipe
from inscan.models.map_scores import score_maps
from inscan.models.n2n_cases import FAMILY_CASES, measure

STORED = Path(__file__).parents[1] / "docs" / "evaluation" / "published.json"


def main() -> None:
    """Score and store, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=STORED)
    options = parser.parse_args()
    cases: dict[str, dict[str, Any]] = {}
    stored = {
        "command": f"python benchmarks/published_recipe.py --seeds {options.seeds} "
        f"--steps {options.steps}",
        "machine": machine(),
        "methods": {f"published recipe, {options.steps} steps": cases},
    }
    for seed in range(options.seeds):
        for case in FAMILY_CASES:
            measured = measure(case, seed)
            began = time.perf_counter()
            found = published_recipe(measured, options.steps)
            scores = score_maps(measured, found, time.perf_counter() - began)
            cases.setdefault(case.name, {})[str(seed)] = {
                name: float(f"{value:.5g}") if np.isfinite(value) else None
                for name, value in scores.items()
            }
            print(f"{case.name}, seed {seed}: {scores['dwell']:.2f}", flush=True)
            options.out.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
