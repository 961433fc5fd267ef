"""Rank places by denoised and super-resolved maps and by their uncertainties: too slow to be done with the rest.

    python benchmarks/region_networks.py --seeds 6 --out docs/evaluation/regions_networks.json

`inscan evaluate regions` reads what is stored, and shows it beside detection on counts. The file is written after
every seed.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from machine import machine

from inscan.models.evaluate_regions import EVERY, PEAKS, case_name, curve_rows, fresh_seeds
from inscan.models.region_cases import FAMILIES, survey
from inscan.models.region_curves import Curve, follow
from inscan.models.region_rankings import networks
from inscan.models.scores import score_table, to_json


def main() -> None:
    """Rank, score, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    curves: dict[str, dict[str, list[Curve]]] = {}
    for done, seed in enumerate(fresh_seeds(options.seeds), 1):
        for peak in PEAKS:
            for family in FAMILIES:
                began = time.perf_counter()
                here = survey(family, seed, peak)
                for method, boxes in networks(here).items():
                    curve = follow(boxes, here)
                    for case in (case_name(family, peak), case_name(EVERY, peak)):
                        curves.setdefault(case, {}).setdefault(method, []).append(curve)
                took = time.perf_counter() - began
                print(f"{family}, {peak:g} counts, seed {seed}: {took:.0f} s", flush=True)
        _write(options.out, curves, done)
    rows = [row for case, methods in curves.items() for row in curve_rows(case, methods)[0]]
    print(score_table(rows))


def _write(path: Path, curves: dict[str, dict[str, list[Curve]]], seeds: int) -> None:
    made = {case: curve_rows(case, methods) for case, methods in curves.items()}
    document = {
        "command": f"python benchmarks/region_networks.py --seeds {seeds}",
        "seeds": list(fresh_seeds(seeds)),
        "machine": machine(),
        "rows": to_json([row for rows, _ in made.values() for row in rows]),
        "curves": {case: means for case, (_, means) in made.items() if case.startswith(EVERY)},
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
