"""The part of `inscan replay` that rebuilds devices: `--devices`."""

import json
import time
from pathlib import Path

import typer
from rich.console import Console

__all__ = ["rehearse_runs"]

_COUNTED = {
    "masked": "outside what was measured: masked",
    "reused": "with photons that an earlier exposure took: not independent of it",
    "extrapolated": "longer than the stored run has photons for: its noise is magnified",
    "interpolated": "between stored energies: interpolated",
}


def rehearse_runs(
    what: str,
    *,
    run: str | None,
    out: Path | None,
    profiles: list[str],
    data_roots: list[Path],
    plan: Path | None,
    factor: int,
    dwell_factor: float,
    speed: float,
    seed: int | None,
    timeout: float,
    state: Path,
    tiled: str | None,
    as_json: bool,
) -> bool:
    """Rehearse on one stored run and print what came of it; returns whether every scan got a result.

    Raises
    ------
    LookupError, ValueError, OSError
        The run is not found or not understood, or the service cannot be used.
    """
    from inscan.callbacks.profile import load_profile, shipped_profiles
    from inscan.service.rehearsal import RehearsalError, RehearsalOptions, rehearse
    from inscan.service.stored_runs import find_runs, named_run

    runs = find_runs(what, state=state, tiled=tiled)
    if run is not None:
        runs = [named_run(runs, run, what)]
    if len(runs) != 1:
        raise RehearsalError(f"{what} holds {len(runs)} runs: name one with --run")
    options = RehearsalOptions(
        profiles=tuple(load_profile(name) for name in profiles or shipped_profiles()),
        out=(out or Path(f"inscan-rehearsal-{time.strftime('%Y%m%d-%H%M%S')}")).resolve(),
        data_roots=tuple(data_roots),
        factor=factor,
        dwell_factor=dwell_factor,
        plan=plan,
        time_scale=0.0 if speed == float("inf") else 1 / speed,
        seed=seed or 0,
        timeout=timeout,
    )
    console = Console(stderr=as_json)
    answer = rehearse(runs[0], options, lambda text: console.print(text, markup=False))
    good = all(one["status"] == "done" for one in answer["outcomes"].values())
    if as_json:
        typer.echo(json.dumps(answer, indent=2, default=str))
        return good
    for uid, outcome in answer["outcomes"].items():
        kind = "fine" if uid in answer["fine_uids"] else "survey"
        typer.echo(f"{kind} {uid[:8]}: {outcome['status']} {outcome.get('verdict') or ''}".rstrip())
    for number, outcome in enumerate(answer["composites"], 1):
        verdict = outcome.get("verdict") or ""
        typer.echo(f"together after round {number}: {outcome['status']} {verdict}".rstrip())
    share = answer["time_s"] / answer["full_time_s"]
    typer.echo(
        f"{answer['time_s']:.4g} s of dwell; the stored run: {answer['points']} points in {answer['full_time_s']:.4g} s"
        f" ({share:.0%})"
    )
    for name, meaning in _COUNTED.items():
        if count := answer["counted"].get(name):
            typer.echo(f"  {count} exposures {meaning}")
    for text in answer["notes"]:
        typer.echo(f"  note: {text}")
    typer.echo(f"Tiled, results and logs: {answer['state']}")
    return good
