"""Commands that ask a running service, or Tiled, and print what they hear."""

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

State = Annotated[
    Path | None,
    typer.Option("--state", help="state directory of the service (default: the user's)"),
]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]

_UID = re.compile(r"\b[0-9a-f]{8}(?:-?[0-9a-f]{4}){3}-?[0-9a-f]{12}\b")


def add_to(app: typer.Typer) -> None:
    """Register the commands of this module."""
    for command in (status, jobs, proposals, approve, refuse, show, weights, doctor):
        app.command()(command)


def _ask(where: Path | None, op: str, **fields: Any) -> dict[str, Any]:
    from inscan.callbacks.request import RequestRefusedError, request
    from inscan.service.settings import default_state_dir

    try:
        return request(where or default_state_dir(), op, **fields)
    except RequestRefusedError as error:
        typer.echo(f"inscan: {_short(str(error))}", err=True)
        raise typer.Exit(1) from None


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, default=str))


def _short(text: str) -> str:
    """Cut uids to their first eight characters, which every command takes."""
    return _UID.sub(lambda match: match[0][:8], text)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else _short(str(value))


def _rows(what: str, rows: list[dict[str, Any]], columns: dict[str, str]) -> None:
    """Print a table, or that there is nothing to print; `columns` are headings and keys."""
    if not rows:
        typer.echo(f"no {what}s")
        return
    title = f"{len(rows)} {what}" + ("s" if len(rows) > 1 else "")
    table = Table(title=title, title_justify="left")
    cells = {heading: [_cell(row.get(key)) for row in rows] for heading, key in columns.items()}
    # Room on a narrow terminal is for what there is.
    shown = {heading: column for heading, column in cells.items() if any(column)}
    for heading in shown:
        table.add_column(heading, overflow="fold")
    for row in zip(*shown.values(), strict=True):
        table.add_row(*row)
    Console().print(table)


def status(state: State = None, as_json: Json = False) -> None:
    """Say what the running service is doing."""
    answer = _ask(state, "status")
    if as_json:
        _print_json(answer)
        return
    for key, value in answer.items():
        if key == "workers":
            rows = [row | {"MB": int(row.get("rss") or 0) // 1_000_000} for row in value]
            names = ("worker", "device", "MB", "seen_s", "state", "run_uid", "kind", "progress")
            _rows("worker", rows, {name.removesuffix("_uid"): name for name in names})
        elif key == "sources":
            rows = [row | {"ready": "yes" if row["ready"] else "no"} for row in value]
            names = ("label", "ready", "documents", "garbage", "age_s", "state", "note")
            _rows("source", rows, {name: name for name in names})
        elif isinstance(value, dict):
            known = [f"{name} {_cell(one)}" for name, one in value.items() if one not in ("", None)]
            typer.echo(f"{key}: {', '.join(known) or 'none'}")
        else:
            typer.echo(f"{key}: {value}")


def jobs(
    state: State = None,
    failed: Annotated[
        bool, typer.Option("--failed", help="only failed ones, with the reason")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the jobs of the journal."""
    answer = _ask(state, "jobs", state="failed" if failed else None)["jobs"]
    if as_json:
        _print_json(answer)
        return
    columns = {"scan": "scan_id", "run": "run_uid", "recipe": "recipe", "state": "state"}
    if any("@" in row["stream"] for row in answer):
        columns |= {"stream": "stream"}
    columns |= {"verdict": "verdict", "result": "result_uid", "weights": "fitted"}
    columns |= {"reason": "reason"}
    _rows("failed job" if failed else "job", answer, columns)


def proposals(
    state: State = None,
    run: Annotated[str | None, typer.Option("--run", help="only those of one run (uid)")] = None,
    as_json: Json = False,
) -> None:
    """List rescan proposals: where, why, how long, and what has been decided."""
    answer = _ask(state, "proposals", run_uid=run)["proposals"]
    if as_json:
        _print_json(answer)
        return
    rows = [row | {"n": len(row.get("regions", []))} for row in answer]
    columns = {"id": "id", "run": "run_uid", "state": "state", "regions": "n"}
    columns |= {"time (s)": "time_s", "who": "who", "reason": "reason", "queue": "queue"}
    _rows("proposal", rows, columns)


Proposal = Annotated[str, typer.Argument(help="id of the proposal, or its first characters")]
Why = Annotated[str, typer.Option("--reason", help="kept in the journal")]


def _decide(op: str, proposal: str, reason: str, state: Path | None) -> None:
    import getpass

    answer = _ask(state, op, proposal=proposal, who=getpass.getuser(), reason=reason)
    typer.echo(f"proposal {answer.get('id', proposal)}: {answer.get('state', op)}")


def approve(proposal: Proposal, reason: Why = "", state: State = None) -> None:
    """Let a proposed rescan be taken."""
    _decide("approve", proposal, reason, state)


def refuse(proposal: Proposal, reason: Why = "", state: State = None) -> None:
    """Forbid a proposed rescan."""
    _decide("refuse", proposal, reason, state)


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
    out: Annotated[Path, typer.Option(help="folder for the pictures")] = Path("."),
    state: State = None,
    tiled: Annotated[
        str | None, typer.Option(help="address of a Tiled; default: the service's")
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw raw, result, sigma and difference of a run, or follow a running one."""
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
        _print_json(answer)
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
            _print_json(rows)
            return
        short = [
            row | {n: str(row[n])[:8] for n in ("sha256", "parent", "raw_uid")} for row in rows
        ]
        columns = {"sha256": "sha256", "scan": "scan_id", "run": "raw_uid", "sample": "sample"}
        columns |= {"beamline": "beamline", "detector": "detector", "from": "parent"}
        _rows("fitted network", short, columns)
        return
    kept = shelf.find(wanted)
    if forget:
        shelf.forget(kept)
        typer.echo(f"weights {kept.sha256[:8]} of run {kept.born_of['raw_uid']} are forgotten")
        return
    _print_json(kept.card | {"folder": str(kept.folder)})


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
        _print_json([asdict(check) for check in checks])
    else:
        for check in checks:
            mark = "ok " if check.ok else "NOT"
            typer.echo(f"{mark} {check.name}: {check.detail}")
            if not check.ok:
                typer.echo(f"    {check.remedy}")
    if not all(check.ok for check in checks):
        raise typer.Exit(1)
