"""`inscan replay`: stored documents through the service again."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

_REHEARSAL = "Rehearsal"


def add_to(app: typer.Typer) -> None:
    """Register the command of this module."""
    app.command()(replay)


def replay(
    what: Annotated[
        str,
        typer.Argument(
            help="scan number or uid of a run in Tiled, a file of documents, or databroker:NAME/UID",
            metavar="RUN|FILE",
        ),
    ],
    run: Annotated[
        str | None, typer.Option("--run", help="of several runs only this one: uid or scan number")
    ] = None,
    speed: Annotated[
        str | None,
        typer.Option(
            help="times the original timing (default 1), or max: as fast as it goes (default with --devices)"
        ),
    ] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            help="dropped=0.05, duplicated=0.1, reordered=20, delayed=2s, truncated=0.05, dead_lines=3, aborted=0.6;"
            " may be given several times"
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="of faults, and of the new uid; default: drawn, and printed")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="start a service for the replay, in this folder, even if one runs"),
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            help="beamline profiles of that service; may be given several times; default: all that come with inscan"
        ),
    ] = None,
    data_root: Annotated[
        list[Path] | None,
        typer.Option(help="folders where that service may read detector files"),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="threads of that service's worker; default: all cores")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="also write the replayed raw run into the service's Tiled")
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="exit status 1 unless each result is that of the original, byte for byte",
        ),
    ] = False,
    devices: Annotated[
        bool,
        typer.Option(
            "--devices",
            help="instead: rebuild simulated devices from the run and rehearse an adaptive plan on them, with a service"
            " of their own",
            rich_help_panel=_REHEARSAL,
        ),
    ] = False,
    plan: Annotated[
        Path | None,
        typer.Option(
            help="file with a function plan(beamline, inscan); default: survey coarsely, measure again what is proposed"
            " (a stack: fewer energies)",
            rich_help_panel=_REHEARSAL,
        ),
    ] = None,
    factor: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="step of the survey in steps of the run, default 4; of a stack: every so many energies",
            rich_help_panel=_REHEARSAL,
        ),
    ] = None,
    dwell_factor: Annotated[
        float | None,
        typer.Option(
            help="dwell of the survey in dwells of the run, default 1", rich_help_panel=_REHEARSAL
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(help="seconds to wait for results of a run")] = 900.0,
    state: Annotated[
        Path | None, typer.Option("--state", help="state directory of the service")
    ] = None,
    tiled: Annotated[
        str | None, typer.Option(help="address of another Tiled that holds the run")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Send the documents of a stored run through the service again, with the timing they had.

    The replay is a run of its own, with a new uid and `replay_of`; its result is compared with that of the original
    where there is one. Without a running service, one is started for it. Ctrl-C aborts the replayed run and waits for
    what becomes of it. Exit status 1 when a run got no result.

    With --devices no document is sent again: what the run measured becomes the sample of simulated devices, and a plan
    runs against them under the beamline's own method and limits. Every run is marked `simulated`.
    """
    from rich.console import Console

    from inscan.callbacks.replay_clock import speed_of
    from inscan.callbacks.replay_faults import parse_fault
    from inscan.service import replay as replaying
    from inscan.service.settings import default_state_dir

    if devices:
        from inscan.service.cli_rehearse import rehearse_runs

        for name, given in (("--fault", fault), ("--raw", raw), ("--check", check)):
            if given:
                raise ValueError(f"{name} is for documents that are sent again, not for --devices")
        good = rehearse_runs(
            what,
            run=run,
            out=out,
            profiles=profile or [],
            data_roots=data_root or [],
            plan=plan,
            factor=factor or 4,
            dwell_factor=dwell_factor or 1.0,
            speed=speed_of(speed or "max"),
            seed=seed,
            timeout=timeout,
            state=state or default_state_dir(),
            tiled=tiled,
            as_json=as_json,
        )
        sys.exit(0 if good else 1)
    for name, given in (("--plan", plan), ("--factor", factor), ("--dwell-factor", dwell_factor)):
        if given is not None:
            raise ValueError(f"{name} is for --devices")
    options = replaying.ReplayOptions(
        what=what,
        run=run,
        state=state or default_state_dir(),
        tiled=tiled,
        out=out,
        profiles=tuple(profile or ()),
        data_roots=tuple(data_root or ()),
        threads=threads,
        speed=speed_of(speed or "1"),
        faults=tuple(parse_fault(text) for text in fault or ()),
        seed=seed,
        raw=raw,
        timeout=timeout,
    )
    answer = replaying.replay(options, Console(stderr=as_json))
    if as_json:
        typer.echo(json.dumps(answer, indent=2, default=str))
    else:
        _tell(answer)
    if answer["interrupted"]:
        raise KeyboardInterrupt
    results = [result for one in answer["runs"] for result in one["results"]]
    bad = any(one["status"] != "done" for one in answer["runs"])
    if bad or (check and not (results and all(one.get("same_bytes") for one in results))):
        sys.exit(1)


def _tell(answer: dict[str, Any]) -> None:
    for one in answer["runs"]:
        typer.echo(f"run {one['run'][:8]} replayed as {one['replay']}: {one['status']}")
        lines = [one["reason"], *one["injected"]]
        if one["injected"]:
            lines.append(f"the same faults again: --seed {answer['seed']}")
        if one.get("raw_problem"):
            lines.append(f"the raw run is not in Tiled: {one['raw_problem']}")
        for proposal in one["proposals"]:
            lines.append(f"{proposal['regions']} regions would have been proposed")
        for result in one["results"]:
            lines += _result_lines(result)
        if any("data_roots" in text or "data root" in text for text in lines) and one["files"]:
            lines.append(f"its detector files are in {', '.join(one['files'])}: give --data-root")
        if one["status"] == "passed_by":
            lines.append("`inscan explain` says which rule of which profile failed")
        for line in filter(None, lines):
            typer.echo(f"  {line}")
    owner = "stopped again; " if answer["own"] else ""
    typer.echo(f"service: {owner}state directory {answer['state']}")


def _result_lines(result: dict[str, Any]) -> list[str]:
    lines = [f"result {result['result_uid']} ({result['stream']}), verdict {result['verdict']}"]
    lines += [f"warning: {text}" for text in result["warnings"]]
    if result["original_uid"] is None:
        return [*lines, "the original has no result here to compare with"]
    if result["same_bytes"]:
        return [*lines, f"the same bytes as the original's result {result['original_uid'][:8]}"]
    largest = result["max_difference"]
    difference = (
        "its maps have another shape" if largest is None else f"largest difference {largest:g}"
    )
    because = f" (differs in {', '.join(result['because'])})" if result["because"] else ""
    return [*lines, f"not the bytes of {result['original_uid'][:8]}: {difference}{because}"]
