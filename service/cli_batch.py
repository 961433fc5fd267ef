"""The part of `inscan process` that works through an archive: `--query` and `--dask`."""

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from inscan.callbacks.profile import BeamlineProfile
from inscan.service.settings import Settings

if TYPE_CHECKING:
    from inscan.service.batch import BatchSummary

__all__ = ["process_query"]

_SHOWN = 10


def process_query(
    terms: Sequence[str],
    dask: str,
    *,
    profiles: Sequence[BeamlineProfile],
    settings: Settings,
    tiled: str | None,
    data_roots: Sequence[Path],
    workers: int | None,
    memory: str,
    records: Path | None,
    most: int | None,
    again: bool,
    as_json: bool,
) -> bool:
    """Process the stored runs of a query on Dask, and print what became of them; returns whether none failed.

    Raises
    ------
    QueryError
        A term that says nothing.
    ConnectionError, PermissionError
        Tiled or the scheduler does not answer, or refuses the key; Dask is not installed.
    """
    from inscan.service.batch import cluster, process_batch
    from inscan.service.batch_query import parse_query
    from inscan.service.batch_task import BatchTask
    from inscan.service.show import tiled_of

    query = parse_query(terms)
    access = tiled_of(settings.state_dir, tiled)
    contents = tuple(
        one.model_dump(mode="json") | {"folder": str(one.folder or Path.cwd())} for one in profiles
    )
    readable = settings.tiled.readable_storage if tiled is None else None
    if tiled is None and settings.tiled.uri is None:
        readable = settings.results_dir  # the embedded Tiled reads it
    task = BatchTask(
        access.uri,
        settings.state_dir.resolve(),
        contents,
        tuple(root.resolve() for root in (*settings.data_roots, *data_roots)),
        None if readable is None else readable.resolve(),
        again,
    )
    path = records or Path(f"inscan-process-{_name(terms, contents)}.jsonl")
    console = Console(stderr=True)
    with (
        cluster(dask, workers=workers or _cores(), memory=memory) as client,
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
            console=console,
            disable=as_json or not console.is_terminal,
        ) as bar,
    ):
        shown = bar.add_task(query.text, total=None)

        def tell(summary: "BatchSummary", total: int | None) -> None:
            bar.update(shown, total=total, completed=summary.runs, description=_text(summary))

        summary = process_batch(client, access, query, task, records=path, tell=tell, most=most)
    _report(summary, path, as_json)
    return not summary.failures


def _report(summary: "BatchSummary", path: Path, as_json: bool) -> None:
    failed = path.with_name(f"{path.stem}.failed{path.suffix}")
    if as_json:
        answer: dict[str, Any] = {
            "runs": summary.runs,
            "states": dict(summary.states),
            "seconds": summary.seconds,
            "records": str(path),
            "failures": [asdict(one) for one in summary.failures],
        }
        typer.echo(json.dumps(answer, indent=2))
        return
    typer.echo(
        f"{summary.runs} runs in {summary.seconds:.0f} s: {_text(summary) or 'nothing to do'}"
    )
    for one in summary.failures[:_SHOWN]:
        typer.echo(f"  {one.run_uid[:8]} {one.stream}: {one.reason}")
    if len(summary.failures) > _SHOWN:
        typer.echo(f"  and {len(summary.failures) - _SHOWN} more")
    typer.echo(f"records: {path}" + (f"; failed runs: {failed}" if summary.failures else ""))


def _text(summary: "BatchSummary") -> str:
    words = {
        "done": "computed",
        "there": "there before",
        "failed": "failed",
        "passed_by": "passed by",
    }
    return ", ".join(
        f"{summary.states[state]} {word}" for state, word in words.items() if summary.states[state]
    )


def _name(terms: Sequence[str], contents: Sequence[Any]) -> str:
    """The same query by the same profiles goes on with the same records; another begins its own."""
    text = json.dumps([sorted(terms), contents], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
