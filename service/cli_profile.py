"""Commands that ask what a stored run is: `explain`, `profile new`, `profile check`."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

if TYPE_CHECKING:
    from inscan.callbacks.explain import Explanation
    from inscan.callbacks.run_summary import RunSummary
    from inscan.callbacks.sources.interface import StoredRun

State = Annotated[
    Path | None,
    typer.Option("--state", help="state directory of the service (default: the user's)"),
]
Tiled = Annotated[str | None, typer.Option(help="address of a Tiled; default: the service's")]
Run = Annotated[
    str,
    typer.Argument(help="scan number or uid in Tiled, a file of documents, databroker:NAME/UID"),
]
Roots = Annotated[
    list[Path] | None,
    typer.Option("--data-root", help="folder from which detector files may be read; repeatable"),
]
_MOST_KEYS = 12
_SPOOL_BYTES = 1 << 42  # the disk is the limit

profile_app = typer.Typer(
    help="Profiles of beamlines: write a new one from a run, check one.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def add_to(app: typer.Typer) -> None:
    """Register the commands of this module."""
    app.command()(explain)
    app.add_typer(profile_app, name="profile")


def explain(
    run: Run,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            "--profile",
            help="profile by name or file, repeatable; default: those of --config, else all that come with inscan",
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="settings file of the service")] = None,
    roots: Roots = None,
    state: State = None,
    tiled: Tiled = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Say what a stored run holds, which profile understands it, and if none does, which rule failed and which key of
    the profile would mend it. Exit status 1 when no profile understands it."""
    from inscan.callbacks.profile import load_profile, shipped_profiles
    from inscan.service.settings import load_settings

    settings = load_settings(config, state_dir=state)
    names = profile or (shipped_profiles() if config is None else settings.profiles)
    profiles = [load_profile(name) for name in names]
    everything: list[dict[str, Any]] = []
    for stored in _stored(run, state, tiled):
        summary = _summary(stored)
        found = [
            _explained(stored, summary, one, (*settings.data_roots, *(roots or ())))
            for one in profiles
        ]
        everything.append(
            {"run": stored.uid, "where": stored.where, "explanations": [asdict(e) for e in found]}
        )
        if not as_json:
            typer.echo(f"run {stored.uid} ({stored.where})")
            for line in (*_saw(summary), *_verdicts(found)):
                typer.echo(f"  {line}")
    if as_json:
        typer.echo(json.dumps(everything, indent=2, default=str))
    outcomes = [{one["outcome"] for one in entry["explanations"]} for entry in everything]
    if not as_json and {"no match"} in outcomes:
        typer.echo(f"a first profile for such runs: inscan profile new --from {run}")
    if not all("understood" in one for one in outcomes):
        sys.exit(1)


@profile_app.command()
def new(
    run: Annotated[str, typer.Option("--from", help="stored run: as for `inscan explain`")],
    name: Annotated[str, typer.Option(help="name of the profile")] = "my_beamline",
    out: Annotated[Path | None, typer.Option(help="file to write; default: NAME.yaml here")] = None,
    state: State = None,
    tiled: Tiled = None,
) -> None:
    """Write a profile for the beamline that took a run: every guess with its reason, and the questions that only people
    can answer. An existing file is not overwritten."""
    from inscan.callbacks.guess_profile import guess_profile
    from inscan.callbacks.profile_text import profile_text

    path = out or Path(f"{name}.yaml")
    (stored,) = _stored(run, state, tiled)[:1]
    guess = guess_profile(_summary(stored), name)
    section = str(guess.values["technique"])
    if section not in guess.nested():
        # A file that `profile check` could only refuse helps nobody.
        why = next(one for one in guess.questions if one.startswith(f"{section}:"))
        raise ValueError(f"run {stored.uid[:8]}: {why}")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(profile_text(guess, f"run {stored.uid} ({stored.where})"))
    except FileExistsError:
        raise ValueError(f"{path} exists already; give another --out") from None
    typer.echo(f"{path}: written")
    for question in guess.questions:
        typer.echo(f"  to be answered: {question}")
    typer.echo(f"then: inscan profile check {path} --run {run}")


@profile_app.command()
def check(
    profile: Annotated[str, typer.Argument(help="profile by name or file")],
    run: Annotated[
        list[str] | None, typer.Option("--run", help="stored run to try it on, repeatable")
    ] = None,
    roots: Roots = None,
    state: State = None,
    tiled: Tiled = None,
) -> None:
    """Check a profile: its keys, the files that it names, and with --run whether it understands runs. Exit status 1
    when it does not."""
    from inscan.callbacks.profile import load_profile
    from inscan.service.shelf import read_weights_file

    loaded = load_profile(profile)
    loaded.references()
    if (weights := loaded.weights_file()) is not None:
        read_weights_file(weights)
    typer.echo(f"profile {loaded.name!r} ({loaded.technique}): every key is good")
    good = True
    for wanted in run or ():
        for stored in _stored(wanted, state, tiled):
            found = _explained(stored, _summary(stored), loaded, tuple(roots or ()))
            good = good and found.outcome == "understood"
            typer.echo(f"run {stored.uid} ({stored.where})")
            for line in _verdicts([found]):
                typer.echo(f"  {line}")
    if not good:
        sys.exit(1)


def _stored(what: str, state: Path | None, tiled: str | None) -> "list[StoredRun]":
    from inscan.service.stored_runs import find_runs

    return find_runs(what, state=state, tiled=tiled)


@contextmanager
def _progress(label: str) -> Iterator[Callable[[], None]]:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=None)
        yield lambda: bar.advance(task)


def _summary(stored: "StoredRun") -> "RunSummary":
    from inscan.callbacks.run_summary import summarise

    with _progress(f"run {stored.uid[:8]}: reading") as step:
        return summarise(_counted(stored.documents(), step))


def _counted(documents: Any, step: Callable[[], None]) -> Any:
    for document in documents:
        step()
        yield document


def _explained(
    stored: "StoredRun", summary: "RunSummary", profile: Any, roots: tuple[Path, ...]
) -> "Explanation":
    from inscan.callbacks.explain import explain as explained
    from inscan.service.spool import Spool

    with (
        TemporaryDirectory(prefix="inscan-explain-") as scratch,
        _progress(f"run {stored.uid[:8]}: trying profile {profile.name}") as step,
    ):
        # Mapped files: a map may be larger than memory.
        spool = Spool(Path(scratch), budget=_SPOOL_BYTES, min_free=0).run("run")
        return explained(
            summary, lambda: _counted(stored.documents(), step), profile, spool.allocate, roots
        )


def _saw(run: "RunSummary") -> Iterator[str]:
    """What was seen, in lines for people."""
    start, stop = run.start, run.stop or {}
    named = {key: start[key] for key in ("scan_id", "beamline_id", "plan_name") if key in start}
    yield "start: " + (", ".join(f"{key} {value}" for key, value in named.items()) or "no names")
    for key in ("motors", "shape", "extents", "scan"):
        if key in start:
            yield f"  {key}: {start[key]!r:.160}"
    for stream in run.streams.values():
        count = max(stream.events, stream.last)
        arrays = [k for k in stream.keys.values() if k.shape]
        yield (
            f"stream {stream.name}: {count} {'event' if count == 1 else 'events'}, {len(stream.keys)} keys,"
            f" {len(arrays)} arrays"
        )
        for key in arrays[:_MOST_KEYS]:
            source = {
                "event": "in events",
                "datum": "in files (datum)",
                "stream": "in files (stream)",
            }
            yield f"  {key.name}: {list(key.shape)} {source[key.where]}"
        if len(arrays) > _MOST_KEYS:
            yield f"  and {len(arrays) - _MOST_KEYS} more arrays"
    for kind, path in run.files.items():
        yield f"files {kind}: {path}"
    if malformed := run.counts["malformed"]:
        yield f"{malformed} documents make no sense"
    yield f"stop: {stop.get('exit_status', 'none')} {stop.get('reason') or ''}".rstrip()


def _verdicts(found: "list[Explanation]") -> Iterator[str]:
    for one in found:
        yield f"profile {one.profile}: {one.outcome}"
        if one.outcome == "no match":
            yield from (f"  {rule}" for rule in one.rules if not rule.ok)
        elif one.reason:
            yield f"  why: {one.reason}"
        yield from (f"  {result}" for result in one.results)
        yield from (f"  would help: {remedy}" for remedy in one.remedies)
        yield from (f"  warning: {warning}" for warning in one.warnings)
