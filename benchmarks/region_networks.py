"""Rank places by denoised and super-resolved maps and by their uncertainties: too slow to be done with the rest.

    python benchmarks/region_networks.py --seeds 5 --out docs/evaluation/regions_networks.json

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
from inscan.models.region_cases import CONTRAST, FAMILIES, survey
from inscan.models.region_curves import Curve, follow
from inscan.models.region_rankings import networks, proposals, rankings
from inscan.models.scores import score_table, to_json

_BRIGHT = (0.5, 1.0)
_PEERS = (
    "raw trace counts",
    "inscan, significance map",
    "inscan",
    "inscan, surroundings alone",
    "limit: background known",
    "oracle",
)
_Curves = dict[str, dict[str, list[Curve]]]


def main() -> None:
    """Rank, score, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--bright-seeds",
        type=int,
        default=3,
        help="the same where the structure of trace elements is as bright as inclusions nearly",
    )
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    curves: _Curves = {}
    for done, seed in enumerate(fresh_seeds(options.seeds), 1):
        for peak in PEAKS:
            _rank(curves, peak, seed, CONTRAST)
        _write(options.out, curves, done, 0)
    for done, seed in enumerate(fresh_seeds(options.bright_seeds), 1):
        _rank(curves, 10.0, seed, _BRIGHT)
        _write(options.out, curves, options.seeds, done)
    rows = [row for case, methods in curves.items() for row in curve_rows(case, methods)[0]]
    print(score_table(rows))


def _rank(curves: _Curves, peak: float, seed: int, contrast: tuple[float, float]) -> None:
    for family in FAMILIES:
        began = time.perf_counter()
        here = survey(family, seed, peak, contrast=contrast)
        # On the same maps: few maps differ from many by more than methods do.
        ours = rankings(here, proposals(here))
        orders = {f"{method}, on these": ours[method] for method in _PEERS} | networks(here)
        for method, boxes in orders.items():
            curve = follow(boxes, here)
            for of in (family, EVERY):
                case = case_name(of, peak, contrast=contrast)
                curves.setdefault(case, {}).setdefault(method, []).append(curve)
        took = time.perf_counter() - began
        print(
            f"{case_name(family, peak, contrast=contrast)}, seed {seed}: {took:.0f} s", flush=True
        )


def _write(path: Path, curves: _Curves, seeds: int, bright: int) -> None:
    made = {case: curve_rows(case, methods) for case, methods in curves.items()}
    document = {
        "command": f"python benchmarks/region_networks.py --seeds {seeds} --bright-seeds {bright}",
        "seeds": list(fresh_seeds(seeds)),
        "bright_seeds": list(fresh_seeds(bright)),
        "machine": machine(),
        "rows": to_json([row for rows, _ in made.values() for row in rows]),
        "curves": {case: means for case, (_, means) in made.items() if case.startswith(EVERY)},
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
