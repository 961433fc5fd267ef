"""What `inscan train` does: networks from generated samples, or from a beamline's own coarse and fine scans."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from inscan.callbacks.profile import load_profile
from inscan.models.superres_input import Sampling
from inscan.service.measured_pairs import Found, RawRuns, Wanted, find_pairs
from inscan.service.settings import Settings
from inscan.service.show import tiled_of

_PERIOD = re.compile(r"(\d+(?:\.\d+)?)([hdw])")
_PERIOD_S = {"h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


@dataclass(frozen=True)
class PairRequest:
    """What `inscan train superres` was asked for.

    Attributes
    ----------
    wanted : Wanted
    factor : int
    sampling : str
    catalog : str
        Path of the catalog of raw runs in Tiled.
    tiled : str or None
        Address of a Tiled; None for the service's own.
    out : Path or None
        Where weights and card go; None for a dry run.
    steps, seed : int
    """

    wanted: Wanted
    factor: int
    sampling: Sampling
    catalog: str
    tiled: str | None
    out: Path | None
    steps: int
    seed: int


def since(text: str, now: float | None = None) -> float:
    """A point in time: `2026-11-21`, `2026-11-21T14:00`, or that long ago: `12h`, `7d`, `2w`; seconds since the epoch.

    Raises
    ------
    ValueError
        For anything else.
    """
    period = _PERIOD.fullmatch(text.strip())
    if period:
        return (time.time() if now is None else now) - float(period[1]) * _PERIOD_S[period[2]]
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except ValueError:
        raise ValueError(
            f"--since {text!r}: write a date (2026-11-21, 2026-11-21T14:00) or how long ago (12h, 7d)"
        ) from None


@contextmanager
def bar(title: str, console: Console) -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar: `tell(done, of, text)`; it draws nothing where stderr is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=None, text="")

        def tell(done: int, of: int, text: str = "") -> None:
            progress.update(task, completed=done, total=of, text=text)

        yield tell


def sampling_of(text: str) -> Sampling:
    """The way a survey sampled, by its name.

    Raises
    ------
    ValueError
        For another name.
    """
    for known in get_args(Sampling):
        if text == known:
            return known
    raise ValueError(f"--sampling {text!r}: {', '.join(get_args(Sampling))}")


def train_generated(method: str, out: Path, steps: int | None, seed: int, console: Console) -> None:
    """Make shipped weights again.

    Parameters
    ----------
    method : str
        `n2n`, `superres_x2` or `superres_x4`.
    steps : int or None
        None for as many as the shipped ones took (n2n: of each of its plans).
    """
    with bar("steps", console) as tell:
        if method == "n2n":
            from inscan.models.train_n2n import SHIPPED_PLANS, train_n2n

            plans = [replace(plan, seed=plan.seed + seed) for plan in SHIPPED_PLANS]
            if steps:
                plans = [replace(plan, steps=steps) for plan in plans]
            of = sum(plan.steps for plan in plans)
            train_n2n(out, plans, progress=lambda step, loss: tell(step, of, f"loss {loss:.4f}"))
            return
        from inscan.models.train_superres import train

        # The larger factor goes on from the smaller one's trunk.
        factor, shipped, start = (
            (2, 3200, None) if method == "superres_x2" else (4, 1800, "superres_x2")
        )
        of = steps or shipped
        train(
            factor,
            of,
            seed,
            out,
            start,
            progress=lambda step, loss: tell(step, of, f"loss {loss:.4f}"),
        )


def train_on_pairs(request: PairRequest, settings: Settings, console: Console) -> dict[str, Any]:
    """Find the beamline's coarse and fine scans, say which are fit, and train on those.

    Parameters
    ----------
    request : PairRequest
    settings : Settings
        Profiles, folders of detector files, and the Tiled.
    console : Console
        Gets progress, on stderr.

    Returns
    -------
    dict
        `pairs` (a row for each pair), `fit`, and unless it was a dry run or nothing was fit `training`: what
        `inscan.models.train_pairs.PairTraining` says.

    Raises
    ------
    LookupError, ConnectionError, PermissionError
        See `inscan.service.measured_pairs`.
    """
    access = tiled_of(settings.state_dir, request.tiled or settings.tiled.uri)
    key = settings.tiled.api_key or access.api_key
    profiles = [load_profile(name) for name in settings.profiles]
    with RawRuns(access.uri, key, request.catalog) as runs, bar("runs", console) as tell:
        found = list(
            find_pairs(
                runs,
                request.wanted,
                profiles,
                settings.data_roots,
                factor=request.factor,
                sampling=request.sampling,
                progress=lambda done, of: tell(done, of, ""),
            )
        )
    answer: dict[str, Any] = {
        "pairs": [_row(one) for one in found],
        "fit": sum(one.pair is not None for one in found),
    }
    pairs = [one.pair for one in found if one.pair is not None]
    if request.out is None or not pairs:
        return answer
    from inscan.models.train_pairs import train_from_pairs

    with bar("steps", console) as tell:
        trained = train_from_pairs(
            pairs,
            out=request.out,
            steps=request.steps,
            seed=request.seed,
            progress=lambda step, loss: tell(step, request.steps, f"loss {loss:.4f}"),
        )
    return answer | {"training": trained.to_dict()}


def print_pairs(answer: dict[str, Any], console: Console) -> None:
    """Print a row for each pair, and how many are fit."""
    rows: Sequence[dict[str, Any]] = answer["pairs"]
    if rows:
        table = Table(title="coarse and fine scans", title_justify="left")
        for heading in ("survey", "fine", "sample", "shift (px)", "overlap (px)", "fit"):
            table.add_column(heading, overflow="fold")
        table.add_column("why, or what to bear in mind", overflow="fold", ratio=1)
        for row in rows:
            shift = ", ".join(f"{part:.3f}" for part in row["shift_px"] or ())
            overlap = "" if row["overlap_pixels"] is None else str(row["overlap_pixels"])
            names = (row["survey"], row["fine"], row["sample"] or "")
            fit = "yes" if row["fit"] else "no"
            table.add_row(*names, shift, overlap, fit, "; ".join(row["reasons"]))
        console.print(table)
    console.print(f"{answer['fit']} of {len(rows)} pairs are fit to train with", highlight=False)


def _row(one: Found) -> dict[str, Any]:
    sample = one.fine.get("sample")
    return {
        "survey": _called(one.coarse) or str(one.fine.get("parent_uid", ""))[:8],
        "fine": _called(one.fine),
        "survey_uid": one.fine.get("parent_uid"),
        "fine_uid": one.fine.get("uid"),
        "sample": sample.get("name") if isinstance(sample, dict) else sample,
        "fit": one.pair is not None,
        "reasons": list(one.reasons),
        "shift_px": one.figures.get("shift_px"),
        "overlap_pixels": one.figures.get("overlap_pixels"),
        "figures": dict(one.figures),
    }


def _called(start: dict[str, Any]) -> str:
    if not start:
        return ""
    scan = start.get("scan_id")
    return f"{start['uid'][:8]}" if scan is None else f"{scan} ({start['uid'][:8]})"
