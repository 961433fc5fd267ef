"""The command `inscan process`: one method on stored runs, or on a file of measured data."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

Tell = Callable[[float, str], None]

_FILES = "Files of data"
_ARCHIVES = "Archives of runs"


def add_to(app: typer.Typer) -> None:
    """Register the command of this module."""
    app.command()(process)


def process(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN|FILE...",
            help="scan number or uid of a run in Tiled, databroker:NAME/UID, a file of documents (.json, .jsonl,"
            " .msgpack, .gz), or a file of data (HDF5, NeXus, npz, npy, TIFF, csv)",
        ),
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            help="beamline profile (name or file); several times; default: all that come with inscan"
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="n2n, superres, subspace or spectral, in place of the profile's"),
    ] = None,
    parameter: Annotated[
        list[str] | None, typer.Option(help="of the method, NAME=VALUE; several times")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="only write files into this folder; default: runs go into Tiled, files into the current one"
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="settings file of the service")] = None,
    state: Annotated[
        Path | None, typer.Option("--state", help="state directory of the service")
    ] = None,
    tiled: Annotated[
        str | None, typer.Option(help="address of another Tiled than the service's")
    ] = None,
    data_root: Annotated[
        list[Path] | None,
        typer.Option(help="folder where detector files may be read; several times"),
    ] = None,
    incomplete: Annotated[
        bool,
        typer.Option("--incomplete", help="also runs without a stop document, as far as they got"),
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="compute what is there already once more, and compare")
    ] = False,
    stack: Annotated[
        str | None,
        typer.Option(
            help="the runs are maps of one place at several energies: one stack of this line (Fe_K)"
        ),
    ] = None,
    reproduce: Annotated[
        str | None,
        typer.Option(
            help="uid of a result: compute it again from its provenance; exit status 1 if it differs"
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="threads on a CPU; default: all cores")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N; default: CUDA where there is one")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    query: Annotated[
        list[str] | None,
        typer.Option(
            help="all runs of Tiled that fit: KEY=VALUE, scan_id>=2300, since=2026-11-01, all; several times",
            rich_help_panel=_ARCHIVES,
        ),
    ] = None,
    dask: Annotated[
        str, typer.Option(help="local, or the address of a scheduler", rich_help_panel=_ARCHIVES)
    ] = "local",
    workers: Annotated[
        int | None,
        typer.Option(help="of a local cluster; default: all cores", rich_help_panel=_ARCHIVES),
    ] = None,
    memory: Annotated[
        str, typer.Option(help="limit of each local worker", rich_help_panel=_ARCHIVES)
    ] = "4GiB",
    records: Annotated[
        Path | None,
        typer.Option(help="file for a record of each result", rich_help_panel=_ARCHIVES),
    ] = None,
    most: Annotated[
        int | None, typer.Option(help="stop after so many runs", rich_help_panel=_ARCHIVES)
    ] = None,
    list_only: Annotated[
        bool,
        typer.Option(
            "--list",
            help="only say what is in the file, and what it is taken for",
            rich_help_panel=_FILES,
        ),
    ] = False,
    dataset: Annotated[
        str | None,
        typer.Option(help="path or PATTERN with *; several with commas", rich_help_panel=_FILES),
    ] = None,
    dims: Annotated[
        str | None,
        typer.Option(
            help="what its axes are: of channel,element,row,col,bin,energy,sum",
            rich_help_panel=_FILES,
        ),
    ] = None,
    elements: Annotated[
        str | None,
        typer.Option(help="names of maps, or a choice of them: Fe,Ca", rich_help_panel=_FILES),
    ] = None,
    lines: Annotated[
        str | None,
        typer.Option(
            help="lines whose maps are taken from spectra: Fe_K,Ca_K", rich_help_panel=_FILES
        ),
    ] = None,
    ev_per_bin: Annotated[
        float | None, typer.Option(help="width of a bin, eV", rich_help_panel=_FILES)
    ] = None,
    ev_offset: Annotated[
        float | None, typer.Option(help="centre of bin 0, eV", rich_help_panel=_FILES)
    ] = None,
    incident_energy: Annotated[
        float | None,
        typer.Option(help="of the beam, eV: keeps scatter out", rich_help_panel=_FILES),
    ] = None,
    low_ev: Annotated[
        float | None, typer.Option(help="spectra from here", rich_help_panel=_FILES)
    ] = None,
    high_ev: Annotated[
        float | None, typer.Option(help="spectra up to here", rich_help_panel=_FILES)
    ] = None,
    bins: Annotated[
        int | None, typer.Option(help="most bins kept; default 512", rich_help_panel=_FILES)
    ] = None,
    live_time: Annotated[
        str | None, typer.Option(help="dataset, or PATH[NAME] for a column", rich_help_panel=_FILES)
    ] = None,
    i0: Annotated[
        str | None, typer.Option(help="dataset, or PATH[NAME] for a column", rich_help_panel=_FILES)
    ] = None,
    energies: Annotated[
        str | None,
        typer.Option(help="of a stack: text file, or 8320,8330,...", rich_help_panel=_FILES),
    ] = None,
    energy_units: Annotated[
        str, typer.Option(help="eV or keV, of --energies", rich_help_panel=_FILES)
    ] = "eV",
    flat: Annotated[
        str | None, typer.Option(help="datasets without sample", rich_help_panel=_FILES)
    ] = None,
    dark: Annotated[
        str | None, typer.Option(help="datasets without beam", rich_help_panel=_FILES)
    ] = None,
    flat_factor: Annotated[
        float, typer.Option(help="exposure of a frame over that of a flat", rich_help_panel=_FILES)
    ] = 1.0,
    empty: Annotated[
        str | None, typer.Option(help="part without sample, R0:R1,C0:C1", rich_help_panel=_FILES)
    ] = None,
    quantity: Annotated[
        str | None,
        typer.Option(
            help="a stack as stored: transmission, density or counts", rich_help_panel=_FILES
        ),
    ] = None,
    crop: Annotated[
        str | None, typer.Option(help="only this part, R0:R1,C0:C1", rich_help_panel=_FILES)
    ] = None,
    pixel_um: Annotated[
        float | None, typer.Option(help="size of a pixel, um", rich_help_panel=_FILES)
    ] = None,
) -> None:
    """Run one method on stored runs, or on a file of measured data.

    Runs get the result that the live service gives them, by the same key: the first to commit it stands. What a file
    does not say of itself is asked for; what was taken for what is printed. Exit status 1 when something failed or was
    passed by.
    """
    from inscan.service.device import choose

    # Before torch is loaded.
    choose(device, threads or _threads())
    from inscan.service.process_command import is_data

    names = list(what or [])
    if not names and reproduce is None and not query:
        raise ValueError("which run, or which file? see `inscan process --help`")
    given = _parameters(parameter or [])
    about: dict[str, Any] = {
        "dataset": dataset, "dims": dims, "elements": elements, "lines": lines, "energies": energies,
        "ev_per_bin": ev_per_bin, "ev_offset": ev_offset, "incident_energy_ev": incident_energy,
        "low_ev": low_ev, "high_ev": high_ev, "bins": bins, "live_time": live_time, "i0": i0,
        "flat": flat, "dark": dark, "empty": empty, "quantity": quantity, "crop": crop,
        "pixel_um": pixel_um,
    }  # fmt: skip
    files = [name for name in names if is_data(name)]
    if files:
        if len(files) < len(names):
            raise ValueError(f"{files[0]} is a file of data: process it by itself, without runs")
        from inscan.service.archive_options import asked_for

        asked = asked_for(
            **about, energy_units=energy_units, flat_factor=flat_factor, method=method,
            parameters=given, profiles=profile or [],
        )  # fmt: skip
        _files(files, asked, out or Path("."), again, list_only, as_json)
        return
    unused = [key for key, value in about.items() if value is not None] + ["list"] * list_only
    if unused:
        words = ", ".join(f"--{key.replace('_', '-')}" for key in unused)
        words = words.replace("incident-energy-ev", "incident-energy")
        raise ValueError(f"{words}: for files of data; what a run holds is said by its profile")
    from inscan.service.process_command import Command, is_documents
    from inscan.service.settings import load_settings

    own_tiled = config is not None or state is not None or tiled is not None
    if out is None and names and not (own_tiled or reproduce) and all(map(is_documents, names)):
        # Documents in a file belong to no Tiled unless one is named.
        out = Path(".")
    command = Command(
        load_settings(config, state_dir=state),
        config is not None,
        tuple(profile or ()),
        method,
        given,
        tiled,
        out,
        tuple(path.resolve() for path in data_root or ()),
        incomplete,
        again,
        stack,
    )
    if query:
        if names or reproduce or stack or out or incomplete:
            raise ValueError(
                "--query takes runs from Tiled and commits to it: name no others, and no --out, --stack, "
                "--incomplete or --reproduce"
            )
        from inscan.service.cli_batch import process_query
        from inscan.service.process_command import load_profiles

        well = process_query(
            query, dask, profiles=load_profiles(command), settings=command.settings, tiled=tiled,
            data_roots=command.data_roots, workers=workers, memory=memory, records=records,
            most=most, again=again, as_json=as_json,
        )  # fmt: skip
        if not well:
            raise typer.Exit(1)
        return
    if reproduce is not None:
        _reproduce(reproduce, names, command, as_json)
        return
    _runs(names, command, as_json)


def _files(
    files: list[str], asked: Any, out: Path, again: bool, list_only: bool, as_json: bool
) -> None:
    from inscan.service.archive_process import describe, facts, process_file
    from inscan.service.offline import Wanted

    if list_only:
        for name in files:
            typer.echo(describe(Path(name).expanduser(), asked))
        return
    answers = []
    for name in files:
        with _bar(as_json) as bar:
            answer = process_file(
                Path(name).expanduser(), asked, Wanted((), out, again=again), bar(Path(name).name)
            )
        answers.append(facts(answer))
        if not as_json:
            for line in answer.said:
                typer.echo(f"  {line}")
            _print_record(answer.record, name, answer.png)
    if as_json:
        typer.echo(json.dumps(answers, indent=2))
    if any(one["state"] != "done" for one in answers):
        raise typer.Exit(1)


def _runs(names: list[str], command: Any, as_json: bool) -> None:
    from inscan.service.archive_process import draw
    from inscan.service.process_command import process_runs

    records = []
    with _bar(as_json) as bar:
        for record in process_runs(names, command, bar):
            png = ""
            if record.state == "done" and command.out is not None:
                png = str(draw(Path(record.path), f"run {record.run_uid[:8]}")[0])
            records.append(asdict(record) | {"png": png})
            if not as_json:
                _print_record(record, f"run {record.run_uid[:8]}", png)
    if as_json:
        typer.echo(json.dumps(records, indent=2))
    if any(one["state"] != "done" for one in records):
        raise typer.Exit(1)


def _reproduce(uid: str, names: list[str], command: Any, as_json: bool) -> None:
    from inscan.service.process_command import reproduce

    with tempfile.TemporaryDirectory(prefix="inscan-") as folder, _bar(as_json) as bar:
        answer = reproduce(uid, names, command, command.out or Path(folder), bar)
    if as_json:
        typer.echo(json.dumps(answer | {"record": asdict(answer["record"])}, indent=2))
    else:
        verb = "the same, byte for byte" if answer["same"] else "NOT the same"
        typer.echo(f"result {answer['result_uid'][:8]} of run {answer['raw_uid'][:8]}: {verb}")
        for line in answer["differences"]:
            typer.echo(f"  {line}")
    if not answer["same"]:
        raise typer.Exit(1)


def _print_record(record: Any, name: str, png: str) -> None:
    if record.state != "done":
        typer.echo(f"{name}: {record.state.replace('_', ' ')}: {record.reason}")
        if record.state == "passed_by":
            typer.echo(
                f"  (`inscan explain {record.run_uid[:8]}`, or of its file, says which rule failed)"
            )
        return
    fates = {"there": " (there already)", "same": " (the same bytes as those that are there)"}
    there = fates.get(record.fate, "")
    typer.echo(f"{name}: {record.recipe}, verdict {record.verdict or 'none'}{there}")
    for note in record.notes:
        typer.echo(f"  - {note}")
    if record.result_uid:
        typer.echo(f"  result {record.result_uid} (`inscan show {record.result_uid[:8]}`)")
    for path in (record.path, png):
        if path:
            typer.echo(f"  {path}")


@contextmanager
def _bar(silent: bool) -> Iterator[Callable[[str], Tell]]:
    """A progress bar on stderr; yields what makes one task of it."""
    with Progress(console=Console(stderr=True), transient=True, disable=silent) as bar:

        def task(name: str) -> Tell:
            number = bar.add_task(name[:24], total=1.0)

            def tell(fraction: float, text: str) -> None:
                bar.update(number, completed=fraction, description=f"{name[:24]} {text}")

            return tell

        yield task


def _parameters(texts: list[str]) -> dict[str, Any]:
    """`NAME=VALUE`, the value as JSON where it is some, else as text."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"--parameter {text!r}: write NAME=VALUE")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def _threads() -> int | None:
    """As many as the environment allows already; None for all cores."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdigit() and int(text) else None
