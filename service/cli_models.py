"""`inscan train`: make the shipped weights again."""

from pathlib import Path
from typing import Annotated

import typer

TRAINABLE = ("n2n", "superres_x2", "superres_x4")


def add_to(app: typer.Typer) -> None:
    """Register the command of this module."""
    app.command()(train)


def train(
    method: Annotated[
        str, typer.Argument(help="n2n, superres_x2 or superres_x4", metavar="METHOD")
    ],
    out: Annotated[Path, typer.Option(help="folder for the weights and their model card")],
    steps: Annotated[
        int | None,
        typer.Option(help="optimiser steps (n2n: of each of its two phases); default: as shipped"),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="the same seed, machine and threads: the same weights")
    ] = 0,
    threads: Annotated[
        int | None, typer.Option(help="threads on a CPU; default: all cores")
    ] = None,
) -> None:
    """Train shipped weights again, from generated samples alone. The denoiser takes about an hour on two cores."""
    import torch

    if method not in TRAINABLE:
        raise ValueError(f"no method {method!r} to train: expected one of {', '.join(TRAINABLE)}")
    if threads is not None:
        torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    if method == "n2n":
        from dataclasses import replace

        from inscan.models.train_n2n import SHIPPED_PLANS, train_n2n

        plans = [replace(plan, seed=plan.seed + seed) for plan in SHIPPED_PLANS]
        if steps:
            plans = [replace(plan, steps=steps) for plan in plans]
        train_n2n(
            out,
            plans,
            progress=lambda step, loss: typer.echo(f"step {step}: loss {loss:.4f}"),
        )
    else:
        from inscan.models.train_superres import train as train_superres

        # The larger factor goes on from the smaller one's trunk.
        factor, shipped, start = (
            (2, 3200, None) if method == "superres_x2" else (4, 1800, "superres_x2")
        )
        train_superres(factor, steps or shipped, seed, out, start)
    typer.echo(f"weights and model card are in {out}")
