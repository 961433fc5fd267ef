"""Train the published super-resolution recipe and SRCNN for the comparison, and write their weights.

    python benchmarks/superres_paper.py --steps 1500 --out models/weights

The published schedule is 300 epochs, six hours on a large GPU; the card of the weights says how many steps
they had. `inscan evaluate superres` has rows of the published recipe once these weights are there.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from inscan.models.srcnn import save_srcnn, train_srcnn
from inscan.models.superres_input import map_scale
from inscan.models.superres_paper import (
    PUBLISHED_EPOCHS,
    paper_spread,
    paper_upscale,
    save_paper,
    train_paper,
)
from inscan.models.train_superres import calibrate


def main() -> None:
    """Train and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--factors", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--steps", type=int, default=1500, help="0: SRCNN only")
    parser.add_argument("--srcnn-steps", type=int, default=0, help="0: leave SRCNN as it is")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for factor in options.factors:
        data = "inscan.profiles.samples.training_maps, Poisson counts of a box probe"
        if options.srcnn_steps:
            small = train_srcnn(factor, steps=options.srcnn_steps, seed=options.seed)
            training = {"steps": options.srcnn_steps, "seed": options.seed, "data": data}
            save_srcnn(small, factor, options.out, training | {"loss": "mean squared error"})
        if options.steps:
            _paper(factor, options, data)


def _paper(factor: int, options: argparse.Namespace, data: str) -> None:
    net = train_paper(
        factor,
        steps=options.steps,
        seed=options.seed,
        progress=lambda step, loss: print(f"{factor}x step {step} loss {loss:.5f}", flush=True),
    )

    def run(maps: np.ndarray, symmetries: int) -> tuple[np.ndarray, np.ndarray]:
        values = paper_upscale(net, maps, torch.device("cpu"))
        return values, paper_spread(values, map_scale(maps))

    training = {
        "steps": options.steps,
        "seed": options.seed,
        "data": data,
        "loss": "L1 + 0.1 Sobel-L1",
        "published": f"{PUBLISHED_EPOCHS} epochs of a beamline's own pairs",
    }
    save_paper(net, options.out, training, calibrate(run, factor, options.seed))


if __name__ == "__main__":
    main()
