"""Commands that ask a running service, or Tiled, and print what they hear."""

from pathlib import Path
from typing import Annotated

import typer

from inscan.service.cli_answers import (
    Json,
    State,
    TiledAddress,
    ask,
    cell,
    print_json,
    print_rows,
)


def add_to(app: typer.Typer) -> None:
    """Register the commands of this module."""
    for command in (status, show, weights, doctor):
        app.command()(command)


def status(state: State = None, as_json: Json = False) -> None:
    """Say what the running service is doing."""
    answer = ask(state, "status")
    if as_json:
        print_json(answer)
        return
    for key, value in answer.items():
        if key == "workers":
            rows = [row | {"MB": int(row.get("rss") or 0) // 1_000_000} for row in value]
            names = ("worker", "device", "MB", "seen_s", "state", "run_uid", "kind", "progress")
            print_rows("worker", rows, {name.removesuffix("_uid"): name for name in names})
        elif key == "sockets":
            whys = [", ".join(f"{n} {why}" for why, n in row["why"].items()) for row in value]
            rows = [row | {"why": why} for row, why in zip(value, whys, strict=True)]
            names = ("socket", "address", "keys", "refused", "cut", "why")
            print_rows("socket", rows, {name: name for name in names})
        elif key == "sources":
            rows = [row | {"ready": "yes" if row["ready"] else "no"} for row in value]
            names = ("label", "ready", "documents", "garbage", "age_s", "state", "note")
            print_rows("source", rows, {name: name for name in names})
        elif isinstance(value, dict):
            known = [f"{name} {cell(one)}" for name, one in value.items() if one not in ("", None)]
            typer.echo(f"{key}: {', '.join(known) or 'none'}")
        else:
            typer.echo(f"{key}: {value}")


def show(
    run: Annotated[
        str | None, typer.Argument(help="scan number, or uid (its first characters will do)")
    ] = None,
    live: Annotated[
        bool,
        typer.Option(
            "--live", help="follow running scans until Ctrl-C, one page that renews itself"
        ),
    ] = False,
    stream: Annotated[
        str | None,
        typer.Option(
            help="which of several maps or stacks of the run (positions, repeats), as primary@2; default: the first"
        ),
    ] = None,
    composite: Annotated[
        bool,
        typer.Option("--composite", help="the survey and its fine maps in one estimate"),
    ] = False,
    out: Annotated[Path, typer.Option(help="folder for the pictures")] = Path("."),
    state: State = None,
    tiled: TiledAddress = None,
    as_json: Json = False,
) -> None:
    """Draw raw, result, sigma and difference of a run, or follow a running one."""
    if composite:
        stream = "composite"
    from inscan.service.settings import default_state_dir

    folder = state or default_state_dir()
    if live:
        if stream is not None:
            raise ValueError(
                "--live follows the first stack of a run; --stream is for those that have ended"
            )
        from inscan.service.live import follow

        follow(folder, out, run, tell=typer.echo)
        return
    if run is None:
        raise ValueError("which run? give a scan number or uid, or --live for the running scan")
    from inscan.service.show import show as draw
    from inscan.service.show import tiled_of

    answer = draw(tiled_of(folder, tiled), run, out, stream)
    if as_json:
        print_json(answer)
        return
    others = ", ".join(answer.pop("other_streams"))
    if not others:
        del answer["stream"]
    else:
        answer["stream"] += f" (--stream shows the run's other results: {others})"
    for key, value in answer.items():
        text = "; ".join(value) if isinstance(value, list) else value
        if text not in ("", None):
            typer.echo(f"{key}: {text}")


def weights(
    wanted: Annotated[
        str | None,
        typer.Argument(
            help="one of them: its SHA-256, job key or run uid, or the first characters of one"
        ),
    ] = None,
    forget: Annotated[
        bool, typer.Option("--forget", help="offer these weights to no run any more")
    ] = False,
    state: State = None,
    as_json: Json = False,
) -> None:
    """List the weights that were fitted to runs and are offered to the next run of the same sample and detector.

    Nothing needs to run for this. With WANTED, print the card of one; with --forget, take it from the list. Result
    files keep the weights that they were made with.
    """
    from inscan.service.settings import default_state_dir
    from inscan.service.shelf import Shelf

    shelf = Shelf((state or default_state_dir()) / "weights")
    if wanted is None:
        if forget:
            raise ValueError("which weights are to be forgotten? `inscan weights` lists them")
        rows = [
            {"key": kept.key, "sha256": kept.sha256, "parent": kept.card.get("parent_sha256")}
            | kept.born_of
            for kept in shelf.all()
        ]
        if as_json:
            print_json(rows)
            return
        short = [
            row | {n: str(row[n])[:8] for n in ("sha256", "parent", "raw_uid")} for row in rows
        ]
        columns = {"sha256": "sha256", "scan": "scan_id", "run": "raw_uid", "sample": "sample"}
        columns |= {"beamline": "beamline", "detector": "detector", "from": "parent"}
        print_rows("fitted network", short, columns)
        return
    kept = shelf.find(wanted)
    if forget:
        shelf.forget(kept)
        typer.echo(f"weights {kept.sha256[:8]} of run {kept.born_of['raw_uid']} are forgotten")
        return
    print_json(kept.card | {"folder": str(kept.folder)})


def doctor(
    config: Annotated[Path | None, typer.Argument(help="settings file to check with")] = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Check what works here, what does not, and what to do about it. Exit status 1 if something does not."""
    from dataclasses import asdict

    from inscan.service.doctor import examine
    from inscan.service.settings import load_settings

    checks = examine(load_settings(config, state_dir=state))
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        for check in checks:
            mark = "ok " if check.ok else "NOT"
            typer.echo(f"{mark} {check.name}: {check.detail}")
            if not check.ok:
                typer.echo(f"    {check.remedy}")
    if not all(check.ok for check in checks):
        raise typer.Exit(1)
