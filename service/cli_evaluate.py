"""`inscan evaluate`: measure a method beside its peers and limits, print tables, draw figures."""

import importlib
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inscan.service import evaluation_regions

if TYPE_CHECKING:
    from inscan.models.scores import ScoreRow

EVALUATED = ("n2n", "superres", "subspace", "spectral", "regions", "energies")
STORED = Path(__file__).parents[1] / "docs" / "evaluation"
"""Figures measured before, in a source tree: of peers and of limits."""
PEERS = ("bm3d.json", "published.json")
"""BM3D may not be a dependency, the published recipe takes too long: see the scripts in benchmarks."""
NETWORKS = "regions_networks.json"
"""Of regions chosen from denoised and super-resolved maps, which take minutes a seed."""

Progress = Callable[[str], None]


def add_to(app: typer.Typer) -> None:
    """Register the command of this module."""
    app.command()(evaluate)


def evaluate(
    method: Annotated[
        str,
        typer.Argument(
            help="n2n, superres, subspace, spectral, regions or energies", metavar="METHOD"
        ),
    ],
    seeds: Annotated[int, typer.Option(help="samples and noise drawn of each kind", min=1)] = 10,
    fit_steps: Annotated[
        int, typer.Option(help="n2n: a further row, fine-tuned by so many steps on each map", min=0)
    ] = 0,
    fit_seeds: Annotated[
        int | None, typer.Option(help="n2n: fine-tune on so many seeds only; default: all", min=1)
    ] = None,
    paper_steps: Annotated[
        int,
        typer.Option(help="n2n: a further row, the published recipe by so many steps", min=0),
    ] = 0,
    out: Annotated[
        Path | None, typer.Option(help="folder for METHOD.json and figures (PNG)")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of tables")] = False,
) -> None:
    """Score a method on samples that no network was trained on, with its peers and limits in the same table."""
    if method not in EVALUATED:
        raise ValueError(
            f"no method {method!r} to evaluate: expected one of {', '.join(EVALUATED)}"
        )
    if method != "n2n" and (fit_steps or fit_seeds or paper_steps):
        raise ValueError("--fit-steps, --fit-seeds and --paper-steps are for n2n")
    from inscan.models.scores import to_json
    from inscan.service.evaluation_bars import bar_table

    regions = None
    with _progress(method) as progress:
        if method == "n2n":
            rows = _n2n(seeds, fit_steps, fit_seeds, paper_steps, progress)
        elif method == "regions":
            regions = evaluation_regions.evaluate(seeds, STORED / NETWORKS, progress)
            rows = regions.rows
        else:
            module = importlib.import_module(f"inscan.models.evaluate_{method}")
            rows = module.evaluate_all(range(seeds), progress)
        document = {
            "method": method,
            "command": _command(method, seeds, fit_steps, fit_seeds, paper_steps),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seeds": seeds,
            **_provenance(),
            "rows": to_json(rows),
            **(regions.more if regions else {}),
        }
        if out is not None:
            _write(method, rows, document, out, progress)
            if regions:
                evaluation_regions.write_figures(regions, out)
    if as_json:
        typer.echo(json.dumps(document, indent=1))
    else:
        typer.echo(evaluation_regions.tables(regions) if regions else _tables(method, rows))
        if bars := bar_table(method, rows):
            typer.echo(f"\n{bars}")


def _n2n(
    seeds: int, fit_steps: int, fit_seeds: int | None, paper_steps: int, progress: Progress
) -> "list[ScoreRow]":
    from inscan.models.evaluate import evaluate_inventions, evaluate_n2n, read_peers
    from inscan.models.scores import read_rows

    peers: dict[str, Any] = {}
    for name in PEERS:
        if (stored := STORED / name).is_file():
            peers |= read_peers(stored)
        else:
            progress(f"no stored figures in {stored}: their rows are left out")
    rows = evaluate_n2n(
        range(seeds),
        fit_steps=fit_steps,
        fit_seeds=None if fit_seeds is None else range(fit_seeds),
        paper_steps=paper_steps,
        peers=peers,
        progress=progress,
    )
    if (limits := STORED / "limits.json").is_file():
        # Beside the rows of their case; what is said of other cases stands in that file.
        cases = {row.case for row in rows}
        extra = [row for row in read_rows(limits) if row.case in cases]
        order = list(dict.fromkeys(row.case for row in rows))
        rows = sorted([*rows, *extra], key=lambda row: order.index(row.case))
    return [*rows, *evaluate_inventions(range(seeds), progress)]


def _tables(method: str, rows: "Sequence[ScoreRow]") -> str:
    from inscan.models.map_scores import COLUMNS
    from inscan.models.scores import score_table

    if method != "n2n":
        return score_table(rows)
    # The cases' rows hold every element and bin as well: those are for the file.
    maps = [row for row in rows if "edge FWHM" in row.figures]
    cases = {row.case for row in maps}
    first = [row for row in rows if row.case in cases]
    rest = [row for row in rows if row.case not in cases]
    return "\n\n".join([score_table(first, COLUMNS), score_table(rest)])


def _write(
    method: str,
    rows: "Sequence[ScoreRow]",
    document: dict[str, Any],
    out: Path,
    progress: Progress,
) -> None:
    from inscan.service.evaluation_figures import draw_bars, draw_example

    out.mkdir(parents=True, exist_ok=True)
    (out / f"{method}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    progress("figures")
    if method == "n2n":
        cases = [row for row in rows if "edge FWHM" in row.figures]
        main = ("dwell", "edge FWHM", "bright flux %", "worst/mean", "coverage", "width")
        draw_bars(method, cases, out / "n2n.png", main)
        for name, example in _examples():
            draw_example([example], out / f"n2n_{name}.png")
    elif method != "regions":
        draw_bars(method, rows, out / f"{method}.png")


def _examples() -> Iterator[tuple[str, Any]]:
    """One element of each of n2n's cases at seed 0, with a short name for a file."""
    from inscan.models import n2n
    from inscan.models.n2n_cases import N2N_CASES, measure
    from inscan.service.evaluation_figures import Example

    for case in N2N_CASES:
        measured = measure(case, 0)
        found = n2n.denoise(measured.counts)
        at = min(3, len(measured.elements) - 1)
        one = f"_{case.element}" if case.element else ""
        yield (
            f"{case.sample}{one}_{case.channels}ch",
            Example(
                f"{case.name}\n{measured.elements[at]}",
                measured.counts.sum(axis=0)[at],
                found.values[at],
                found.sigma[at],
                measured.mean[at],
            ),
        )


def _provenance() -> dict[str, Any]:
    """What the figures were measured with."""
    import psutil
    import torch

    from inscan.models.weights import SHIPPED

    return {
        "machine": {
            "architecture": platform.machine(),
            "cores": len(psutil.Process().cpu_affinity() or ()) or psutil.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("inscan", "torch", "numpy", "scipy")},
        },
        "weights_sha256": {
            card.stem: json.loads(card.read_text(encoding="utf-8"))["sha256"]
            for card in sorted(SHIPPED.glob("*.json"))
        },
    }


def _command(
    method: str, seeds: int, fit_steps: int, fit_seeds: int | None, paper_steps: int
) -> str:
    parts = [f"inscan evaluate {method} --seeds {seeds}"]
    parts += [f"--fit-steps {fit_steps}"] if fit_steps else []
    parts += [f"--fit-seeds {fit_seeds}"] if fit_seeds else []
    parts += [f"--paper-steps {paper_steps}"] if paper_steps else []
    return " ".join(parts)


@contextmanager
def _progress(method: str) -> Iterator[Progress]:
    """What is being measured, on stderr: a line that changes on a terminal, else a line each."""
    began = time.monotonic()
    if not sys.stderr.isatty():

        def say(text: str) -> None:
            typer.echo(f"{time.monotonic() - began:7.0f} s  {text}", err=True)

        yield say
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(16), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(method, total=None)
        yield lambda text: shown.update(task, description=f"{method}: {text}")
