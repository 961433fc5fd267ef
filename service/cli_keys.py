"""`inscan keys`: who may speak to the service."""

from pathlib import Path
from typing import Annotated

import typer

from inscan.service.cli_answers import Json, State, print_json, print_rows

app = typer.Typer(
    help="Let workers, acquisition hosts and approvers in, and out again.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def add_to(parent: typer.Typer) -> None:
    """Register the commands of this module."""
    parent.add_typer(app, name="keys")


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="of the key: gpu-host-2, hutch-b, anna")],
    role: Annotated[
        str,
        typer.Option(
            help="client (sends documents, asks), worker (computes) or approver (approves rescans)"
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="the pass file to write; default: NAME.pass in the state's keys"),
    ] = None,
    state: State = None,
) -> None:
    """Make a key and its pass file, for one machine or person. A running service knows it at once."""
    ring = _keyring(state)
    path = ring.new(name, role, out).absolute()
    typer.echo(f"{path}: pass of {name!r}, role {role}. It is a secret: whoever has it gets in.")
    if role == "approver":
        typer.echo(
            "It belongs to one person: move it to where only that person can read it, and name it in "
            "INSCAN_APPROVE_PASS there."
        )
    else:
        _say_where(role)


def _say_where(role: str) -> None:
    uses = {
        "worker": "`inscan worker tcp://THIS-MACHINE:5621 --pass FILE` (or INSCAN_PASS=FILE)",
        "client": "INSCAN_PASS=FILE for RunEngine, queue server, `inscan forward`",
    }
    opens = {"worker": "the sockets broker and spool", "client": "the socket ingest"}
    typer.echo(f"It opens {opens[role]}. There: {uses[role]}.")
    typer.echo(
        "Take it there by a way nobody listens to, such as scp, keep it at mode 600, and delete it here."
    )


@app.command("list")
def list_(state: State = None, as_json: Json = False) -> None:
    """Show who is let in. Nothing needs to run for this, and nothing secret is shown."""
    ring = _keyring(state)
    rows = [
        {
            "name": entry.name,
            "role": entry.role,
            "opens": list(entry.opens),
            "made": entry.made,
            "public": entry.public,
        }
        for entry in ring.entries()
    ]
    pair = ring.server()
    if as_json:
        print_json({"server_key": None if pair is None else pair.public, "keys": rows})
        return
    shown = [
        row | {"opens": ", ".join(row["opens"]) or "approval", "public": row["public"][:8]}
        for row in rows
    ]
    names = ("name", "role", "opens", "made", "public")
    print_rows("key", shown, {name: name for name in names})
    if pair is not None:
        typer.echo(f"public key of this service: {pair.public}; --json shows all keys in full")


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="as `inscan keys list` shows it")],
    state: State = None,
) -> None:
    """Let a key in no more. A running service cuts its connections at once."""
    entry = _keyring(state).revoke(name)
    typer.echo(f"{name!r} is let in no more.")
    if entry.role == "worker":
        typer.echo("A worker that has it ends with status 4; a job it had goes to another.")
    elif entry.role == "client":
        typer.echo("What its documents' logs still hold stays there, and goes out with a new pass.")
    typer.echo(
        f"Delete its pass file wherever it is. In its place: `inscan keys new NAME --role {entry.role}`."
    )


def _keyring(state: Path | None):  # noqa: ANN202 - its type costs an import that --help need not pay
    from inscan.service.keys import Keyring
    from inscan.service.settings import default_state_dir

    return Keyring((state or default_state_dir()) / "keys")
