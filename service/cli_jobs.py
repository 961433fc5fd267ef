"""Commands about jobs: which there are, try a failed one again, take one out of the queue."""

import getpass
from typing import Annotated, Any

import typer

from inscan.service.cli_answers import Json, State, ask, print_json, print_rows, short

_Wanted = typer.Argument(
    metavar="JOB|RUN",
    help="scan number, or the beginning (4 characters) of a job's key or a run's uid",
)


def add_to(app: typer.Typer) -> None:
    """Register the commands of this module."""
    for command in (jobs, retry, quarantine):
        app.command()(command)


def jobs(
    state: State = None,
    failed: Annotated[
        bool, typer.Option("--failed", help="only failed ones, with the reason")
    ] = False,
    quarantined: Annotated[
        bool,
        typer.Option(
            "--quarantined",
            help="only those that took workers down, or that somebody took out of the queue",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """List the jobs of the journal."""
    fields = {"code": "quarantined"} if quarantined else {}
    told = ask(state, "jobs", state="failed" if failed or quarantined else None, **fields)
    answer = told["jobs"]
    if told["limited"]:
        typer.echo(f"the latest {len(answer)} of more jobs; older ones are in Tiled", err=True)
    if as_json:
        print_json(answer)
        return
    columns = {"scan": "scan_id", "run": "run_uid", "recipe": "recipe", "state": "state"}
    if any("@" in row["stream"] for row in answer):
        columns |= {"stream": "stream"}
    if failed or quarantined:
        answer = [row | {"job": row["key"][:12], "by": _last(row)} for row in answer]
        columns = {"job": "job"} | columns | {"by": "by"}
    columns |= {"verdict": "verdict", "result": "result_uid", "weights": "fitted"}
    columns |= {"reason": "reason"}
    what = "quarantined job" if quarantined else "failed job" if failed else "job"
    print_rows(what, answer, columns)


def _last(row: dict[str, Any]) -> str:
    history = row.get("history") or []
    return f"{history[-1]['what']} by {history[-1]['who']}" if history else ""


def retry(
    job: Annotated[str | None, _Wanted] = None,
    all_failed: Annotated[bool, typer.Option("--all-failed", help="every failed job")] = False,
    reason: Annotated[str, typer.Option(help="why, for the record")] = "",
    who: Annotated[str | None, typer.Option(help="your name (default: the login name)")] = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Try failed jobs again, with all their tries; a result takes the place of the failure in Tiled.

    Needs an approver's key. Exit status 1 when a job could not be queued: its input is gone from the spool.
    """
    if (job is None) != all_failed:
        raise ValueError(
            "say which: a job or a run, or --all-failed; `inscan jobs --failed` lists them"
        )
    answer = ask(
        state,
        "retry",
        job=job or "",
        all_failed=all_failed,
        reason=reason,
        who=who or getpass.getuser(),
    )
    if as_json:
        print_json(answer)
    else:
        for one in answer["retried"]:
            typer.echo(short(f"job {one['key'][:12]} of run {one['run_uid']} is queued again"))
        for one in answer["refused"]:
            text = f"job {one['key'][:12]} of run {one['run_uid']} stays failed: {one['reason']}"
            typer.echo(text, err=True)
        if not answer["retried"] and not answer["refused"]:
            typer.echo("no failed jobs")
    if answer["refused"]:
        raise typer.Exit(1)


def quarantine(
    job: Annotated[str, _Wanted],
    reason: Annotated[str, typer.Option(help="why; it is kept as the reason of the failure")],
    who: Annotated[str | None, typer.Option(help="your name (default: the login name)")] = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Take a job out of the queue, or away from the worker that has it. `inscan retry` puts it back.

    Needs an approver's key.
    """
    answer = ask(state, "quarantine", job=job, reason=reason, who=who or getpass.getuser())
    if as_json:
        print_json(answer)
        return
    for one in answer["quarantined"]:
        typer.echo(short(f"job {one['key'][:12]} of run {one['run_uid']} is quarantined"))
