"""What the commands share: asking a running service, and printing what it answers."""

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
TiledAddress = Annotated[
    str | None, typer.Option("--tiled", help="address of a Tiled; default: the service's")
]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]

_UID = re.compile(r"\b[0-9a-f]{8}(?:-?[0-9a-f]{4}){3}-?[0-9a-f]{12}\b")


def ask(where: Path | None, op: str, **fields: Any) -> dict[str, Any]:
    """Ask the service; what it refuses is a line on stderr and exit status 1."""
    from inscan.callbacks.request import RequestRefusedError, request
    from inscan.service.settings import default_state_dir

    try:
        return request(where or default_state_dir(), op, **fields)
    except RequestRefusedError as error:
        typer.echo(f"inscan: {short(str(error))}", err=True)
        raise typer.Exit(1) from None


def print_json(value: Any) -> None:
    """Print it as JSON; what JSON does not know as text."""
    typer.echo(json.dumps(value, indent=2, default=str))


def short(text: str) -> str:
    """Cut uids to their first eight characters, which every command takes."""
    return _UID.sub(lambda match: match[0][:8], text)


def cell(value: Any) -> str:
    """A value as a table shows it."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else short(str(value))


def print_rows(what: str, rows: list[dict[str, Any]], columns: dict[str, str]) -> None:
    """Print a table, or that there is nothing to print; `columns` are headings and keys."""
    if not rows:
        typer.echo(f"no {what}s")
        return
    title = f"{len(rows)} {what}" + ("s" if len(rows) > 1 else "")
    Console().print(table_of(title, rows, columns))


def table_of(title: str, rows: list[dict[str, Any]], columns: dict[str, str]) -> Table:
    """A table without the columns that nothing is known for; `columns` are headings and keys."""
    table = Table(title=title, title_justify="left")
    cells = {heading: [cell(row.get(key)) for row in rows] for heading, key in columns.items()}
    # Room on a narrow terminal is for what there is.
    shown = {heading: column for heading, column in cells.items() if any(column)}
    for heading in shown:
        table.add_column(heading, overflow="fold")
    for row in zip(*shown.values(), strict=True):
        table.add_row(*row)
    return table
