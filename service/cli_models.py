"""`inscan train`: make the shipped weights again, or train on a beamline's own scans."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

TRAINABLE = ("n2n", "superres_x2", "superres_x4", "superres")


def add_to(app: typer.Typer) -> None:
    """Register the command of this module."""
    app.command()(train)


def train(
    method: Annotated[
        str,
        typer.Argument(
            help="n2n, superres_x2 or superres_x4 (from generated samples), or superres (from the"
            " beamline's own coarse and fine scans in Tiled)",
            metavar="METHOD",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="folder for the weights and their model card")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="optimiser steps; default: as shipped, for measured scans 200"),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="the same seed, machine and threads: the same weights")
    ] = 0,
    threads: Annotated[
        int | None, typer.Option(help="threads on a CPU; default: all cores")
    ] = None,
    runs: Annotated[
        list[str] | None,
        typer.Option(
            help="superres: scan number or uid of a survey (with all its fine scans) or of a fine scan;"
            " again for each, or with commas between them"
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(help="superres: fine scans since a date, or that long ago (12h, 7d)"),
    ] = None,
    sample: Annotated[
        str | None, typer.Option(help="superres: fine scans of the sample of this name")
    ] = None,
    factor: Annotated[int, typer.Option(help="superres: how many times finer, 2 or 4")] = 4,
    sampling: Annotated[
        str, typer.Option(help="superres: how the survey sampled: box, point or fly")
    ] = "box",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="superres: only list the pairs, and train nothing")
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", help="superres: settings file of the service (profiles, data_roots, tiled)"
        ),
    ] = None,
    state: Annotated[
        Path | None, typer.Option("--state", help="superres: state directory of the service")
    ] = None,
    tiled: Annotated[
        str | None, typer.Option(help="superres: address of a Tiled; default: the service's")
    ] = None,
    catalog: Annotated[str, typer.Option(help="superres: where in Tiled the raw runs are")] = "raw",
    as_json: Annotated[
        bool, typer.Option("--json", help="superres: print the pairs and figures as JSON")
    ] = False,
) -> None:
    """Train weights: those that are shipped, or a super-resolution network of the beamline's own scans.

    n2n, superres_x2 and superres_x4 make the shipped weights again, from generated samples alone; each takes about 45
    minutes on one core, and superres_x4 goes on from the superres_x2 that is in the same folder. superres goes on from
    the shipped network with pairs of coarse and fine scans of one place, which every rescan makes: it puts them on top
    of each other, says which are fit, holds a part out, and writes weights only when they predict that part better.
    Exit status 1 when no pair is fit, or nothing was gained.
    """
    if method not in TRAINABLE:
        raise ValueError(f"no method {method!r} to train: expected one of {', '.join(TRAINABLE)}")
    of_pairs = {"--runs": runs, "--since": since, "--sample": sample, "--dry-run": dry_run}
    given = [name for name, value in of_pairs.items() if value]
    if method != "superres" and given:
        raise ValueError(f"{given[0]} is for `inscan train superres`, not for {method}")
    if out is None and not dry_run:
        raise ValueError("--out FOLDER: where the weights are to go (or --dry-run, to write none)")
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    if method != "superres":
        assert out is not None
        from inscan.service.train_command import train_generated

        train_generated(method, out, steps, seed, console)
        typer.echo(f"weights and model card are in {out}")
        return
    if factor not in (2, 4):
        raise ValueError(f"--factor {factor}: 2 or 4")
    if not (runs or since or sample):
        raise ValueError("which scans? give --runs, --since or --sample")
    from inscan.service.measured_pairs import Wanted
    from inscan.service.settings import load_settings
    from inscan.service.train_command import PairRequest, print_pairs, sampling_of, train_on_pairs
    from inscan.service.train_command import since as point_in_time

    names = tuple(part for text in runs or () for part in text.split(",") if part)
    request = PairRequest(
        wanted=Wanted(names, None if since is None else point_in_time(since), sample),
        factor=factor,
        sampling=sampling_of(sampling),
        catalog=catalog,
        tiled=tiled,
        out=None if dry_run else out,
        steps=steps or 200,
        seed=seed,
    )
    answer = train_on_pairs(request, load_settings(config, state_dir=state), console)
    if as_json:
        typer.echo(json.dumps(answer, indent=2, default=str))
    else:
        print_pairs(answer, Console())
        training = answer.get("training")
        if training:
            typer.echo(said_of(training, out))
    if not answer["fit"] or not (dry_run or answer["training"]["kept"]):
        raise typer.Exit(1)


def said_of(training: dict[str, Any], out: Path | None) -> str:
    """Whether training on measured scans gained anything, and what to do with it."""
    scores = f"held-out fine counts: deviance {training['before']:.5g} a pixel before, {training['after']:.5g} after"
    reasons = "".join(f"\n{reason}" for reason in training["reasons"])
    if not training["kept"]:
        return f"{scores}; nothing was written{reasons}"
    path = f"{out}/{training['weights']['name']}.safetensors"
    where = f"weights and model card are in {out}; a profile uses them with"
    return f"{scores}{reasons}\n{where}\n  method:\n    weights: {path}"
