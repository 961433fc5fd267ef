"""How far a network of this size could go: the shipped one, trained on with the very family it is judged on.

    python benchmarks/n2n_limits.py [--steps 600] [--seeds 5] [--out docs/evaluation/limits.json]

For each held-out family the shipped denoiser goes on training on samples of that family (other seeds than the
benchmark's, with their true maps), and is then scored like n2n on the benchmark's case. No method that does not
know the family can be expected to do better; a bar above these figures asks for more than the counts hold, as far as
a network of this size can tell. Nothing made here is ever shipped.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from inscan.models import n2n
from inscan.models.batches import BatchRecipe
from inscan.models.calibrating import calibrate_denoiser
from inscan.models.infer import Denoiser, load_denoiser, network_of
from inscan.models.map_scores import COLUMNS, map_row, score_maps
from inscan.models.n2n_cases import FAMILY_CASES, N2NCase, expected_counts, measure
from inscan.models.scores import ScoreRow, score_table, to_json
from inscan.models.training import TrainingPlan, train_denoiser
from inscan.models.weights import save_weights

_TRAINING_SEEDS = range(5000, 5040)  # far from those of the benchmark


def informed(case: N2NCase, steps: int, folder: Path) -> Denoiser:
    """The shipped denoiser after training on a case's own family.

    Parameters
    ----------
    case : N2NCase
    steps : int
    folder : Path
        For the weights, which are only needed while this runs.
    """
    shipped = load_denoiser()
    pool = []
    for seed in _TRAINING_SEEDS:
        mean = expected_counts(case, seed)
        pool.append((mean / mean.max()).astype("float32"))
    plan = TrainingPlan(
        steps=steps,
        seed=3,
        rate=4e-4,
        hold=0.0,
        average=0.01,
        shapes=((7, 96),),
        recipe=BatchRecipe(poisson_share=1.0, peak=(0.8 * case.peak, 1.25 * case.peak)),
    )
    trained = train_denoiser(pool, plan, start=shipped.weights.tensors)
    card = {key: shipped.weights.card[key] for key in ("licence", "training", "architecture")}
    draft = save_weights(folder, "informed", trained.tensors, {**card, "calibration": None})
    denoiser = replace(shipped, net=network_of(draft), weights=draft)
    table = calibrate_denoiser(denoiser, pool, seed=1)
    card["calibration"] = table.to_card()
    weights = save_weights(folder, "informed", trained.tensors, card)
    return replace(denoiser, weights=weights)


def rows(cases: Sequence[N2NCase], seeds: int, steps: int, folder: Path) -> list[ScoreRow]:
    """Score the shipped and the informed denoiser on the same counts."""
    found = []
    for case in cases:
        began = time.monotonic()
        network = informed(case, steps, folder)
        print(f"{case.name}: trained in {time.monotonic() - began:.0f} s", flush=True)
        for name, denoiser in (("inscan n2n", None), ("trained on the family", network)):
            scores = []
            for seed in range(seeds):
                measured = measure(case, seed)
                began = time.monotonic()
                estimate = n2n.denoise(measured.counts, denoiser=denoiser)
                scores.append(score_maps(measured, estimate, time.monotonic() - began))
            found.append(map_row(case.name, name, scores))
        print(score_table(found[-2:], COLUMNS), flush=True)
    return found


def main() -> None:
    """Train, score, print and keep."""
    parser = argparse.ArgumentParser(description="How far a network that knows the family gets.")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("docs/evaluation/limits.json"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = rows(FAMILY_CASES, asked.seeds, asked.steps, Path(folder))
    stored = {
        "command": f"python benchmarks/n2n_limits.py --steps {asked.steps} --seeds {asked.seeds}",
        "rows": to_json(found),
    }
    asked.out.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
