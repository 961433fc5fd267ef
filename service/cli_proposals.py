"""Commands for people in the loop: what may be measured again, and whether it shall be."""

import getpass
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from inscan.service.cli_answers import Json, State, TiledAddress, ask, print_json, short

_MOST_RUNS = 1000


def add_to(app: typer.Typer) -> None:
    """Register the commands of this module."""
    for command in (proposals, approve, refuse):
        app.command()(command)


def proposals(
    wanted: Annotated[
        str | None,
        typer.Argument(metavar="[ID]", help="id of one, or its first characters: all of it"),
    ] = None,
    run: Annotated[str | None, typer.Option("--run", help="only those of one run (uid)")] = None,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", metavar="FILE.png", help="draw its regions, or energies"),
    ] = None,
    state: State = None,
    tiled: TiledAddress = None,
    as_json: Json = False,
) -> None:
    """List rescan proposals: where, why, how long, and what has been decided. With ID, all that is known of one.

    Exit status 1 where no proposal, or more than one, has such an id.
    """
    if wanted is None:
        if picture is not None:
            raise ValueError(
                "a picture of which proposal? give its id; `inscan proposals` lists them"
            )
        _list(run, state, as_json)
        return
    if run is not None:
        raise ValueError("--run is for the list; an id names one proposal whatever its run")
    proposal = ask(state, "proposal", proposal=wanted)["proposal"]
    drawn = None if picture is None else _draw(proposal, picture, state, tiled)
    if as_json:
        print_json(proposal if drawn is None else {**proposal, "picture": drawn})
        return
    from rich.console import Console

    from inscan.service.proposal_text import described

    console = Console()
    survey = proposal.get("survey_uid") or proposal.get("run_uid")
    for part in described(proposal, _scans(state).get(survey), time.time()):
        console.print(part)
    if drawn is not None:
        typer.echo("; ".join([f"picture: {drawn['png']}", *drawn["notes"]]))


def _list(run: str | None, state: Path | None, as_json: bool) -> None:
    answer = ask(state, "proposals", run_uid=run)["proposals"]
    if as_json:
        print_json(answer)
        return
    if not answer:
        typer.echo("no proposals")
        return
    from rich.console import Console

    from inscan.service.proposal_text import listed

    Console().print(listed(answer, _scans(state), time.time()))
    past = ask(state, "rescan_record")
    if past["records"]:
        typer.echo(f"so far: {past['text']}")


def _scans(state: Path | None) -> dict[str, Any]:
    rows = ask(state, "runs", limit=_MOST_RUNS)["runs"]
    return {row["run_uid"]: row["scan_id"] for row in rows}


def _draw(
    proposal: dict[str, Any], picture: Path, state: Path | None, tiled: str | None
) -> dict[str, Any]:
    from inscan.service.proposal_picture import draw_proposal
    from inscan.service.settings import default_state_dir
    from inscan.service.show import tiled_of

    return draw_proposal(tiled_of(state or default_state_dir(), tiled), proposal, picture)


Proposal = Annotated[str, typer.Argument(help="id of the proposal, or its first characters")]
Why = Annotated[str, typer.Option("--reason", help="kept in the journal")]


def approve(proposal: Proposal, reason: Why = "", state: State = None) -> None:
    """Let a proposed rescan be taken, and say by whom and until when. Exit status 1 where a rule forbids it."""
    answer = _decide("approve", proposal, reason, state)
    from inscan.service.proposal_text import brief, followed_by

    typer.echo(brief(answer))
    typer.echo(followed_by(answer, time.time()))


def refuse(proposal: Proposal, reason: Why = "", state: State = None) -> None:
    """Forbid a proposed rescan, also what is left of one that is being measured. Exit status 1 where it is over."""
    _decide("refuse", proposal, reason, state)


def _decide(op: str, proposal: str, reason: str, state: Path | None) -> dict[str, Any]:
    answer = ask(state, op, proposal=proposal, who=getpass.getuser(), reason=reason)
    typer.echo(short(f"proposal {answer.get('id', proposal)}: {answer.get('state', op)}"))
    return answer
