"""The command `inscan export`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress


def add_to(app: typer.Typer) -> None:
    """Register the command of this module."""
    app.command()(export)


def export(
    run: Annotated[str, typer.Argument(help="scan number, or uid (its first characters will do)")],
    form: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="nexus (NXdata and NXprocess; the default), maps (as XRF-Maps writes), pyxrf, tiff (float, with a list"
            " of elements or energies); may be given several times",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="folder for the files; default: that of the run's proposal where its start document names one"
            " (settings: export), else the current one"
        ),
    ] = None,
    stream: Annotated[
        str | None,
        typer.Option(
            help="which of several maps or stacks of the run (positions, repeats), as primary@2; default: the first"
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="settings file of the service (for export)")
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option("--state", help="state directory of the service (default: the user's)"),
    ] = None,
    tiled: Annotated[
        str | None, typer.Option(help="address of a Tiled; default: the service's")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Write the latest result of a run into files that other programs load."""
    from inscan.service.export import FORMATS, export_run, proposal_folder
    from inscan.service.settings import load_settings
    from inscan.service.show import tiled_of

    formats = list(dict.fromkeys(form or ["nexus"]))
    for wrong in (name for name in formats if name not in FORMATS):
        raise ValueError(f"no format {wrong!r}: --format takes {', '.join(FORMATS)}")
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: give a folder, the files get names of their own")
    settings = load_settings(config, state_dir=state)
    with Progress(console=Console(stderr=True), transient=True, disable=as_json) as bar:
        task = bar.add_task("export")
        answer = export_run(
            tiled_of(settings.state_dir, tiled),
            run,
            formats,  # type: ignore[arg-type]
            lambda start: (
                out
                or proposal_folder(start, settings.export.folder, settings.export.roots, Path.cwd())
            ),
            lambda done, total: bar.update(task, completed=done, total=total),
            stream=stream,
        )
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
        return
    for path in answer["files"]:
        typer.echo(path)
    if answer["other_streams"]:
        others = ", ".join(answer["other_streams"])
        typer.echo(
            f"this is {answer['stream']}; --stream exports the run's other results: {others}",
            err=True,
        )
    if answer["verdict"] != "pass":
        typer.echo(
            f"verdict of this result: {answer['verdict']} (`inscan show {run}` says why)", err=True
        )
