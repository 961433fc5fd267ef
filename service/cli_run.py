"""Commands that run for a while: `demo`, `serve`, `worker`."""

import json
import logging
import math
import os
import sys
import time
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

DEMO_PROFILES = ("sim_xrf", "sim_txm")


def add_to(app: typer.Typer) -> None:
    """Register the commands of this module."""
    for command in (demo, serve, worker):
        app.command()(command)


def demo(
    profile: Annotated[
        str, typer.Option(help="simulated beamline: sim_xrf (fluorescence map) or sim_txm (stack)")
    ] = "sim_xrf",
    sample: Annotated[
        str | None,
        typer.Option(
            help="a built-in sample (sim_xrf: cells, siemens_star, battery_particles; sim_txm: battery_smooth,"
            " battery_fine, battery_random) or a file of measured maps (.npz, .h5, .tif; element names from the keys)"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="folder for everything the demo writes; must be new or empty"),
    ] = None,
    seed: Annotated[int, typer.Option(help="seed of the sample and of its noise")] = 7,
    keep: Annotated[
        bool, typer.Option("--keep", help="leave Tiled running at the end, until Ctrl-C")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="print figures and uids as JSON on stdout")
    ] = False,
) -> None:
    """Run the whole loop on a simulated beamline and write a report.

    Exit status 1 when a run got no result or a fine scan was cut short, 130 after Ctrl-C; the report says what is
    missing. INSCAN_SIM_TIME_SCALE, _CHANNELS, _DWELL, _SPECTRA and _SIZE in the environment change the beamline
    (a time scale of 0: as fast as it goes).
    """
    from inscan.service import demo as demonstration

    if profile not in DEMO_PROFILES:
        raise ValueError(
            f"no simulated beamline {profile!r}: --profile takes {' or '.join(DEMO_PROFILES)}"
        )
    folder = out or Path(f"inscan-demo-{time.strftime('%Y%m%d-%H%M%S')}")
    options = demonstration.DemoOptions(
        profile=profile, sample=sample, out=folder.resolve(), seed=seed, keep=keep, quiet=as_json
    )
    # Others print, too: the RunEngine says on stdout that it pauses.
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        answer = demonstration.run(options)
    if as_json:
        typer.echo(json.dumps(_strict(answer), indent=2, allow_nan=False))
    if answer["interrupted"]:
        raise KeyboardInterrupt
    if answer["problems"]:
        sys.exit(1)


def _strict(value: Any) -> Any:
    """JSON knows neither NaN nor infinity: they become null."""
    if isinstance(value, dict):
        return {key: _strict(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def serve(
    config: Annotated[
        Path | None, typer.Argument(help="settings file (YAML); default: none")
    ] = None,
    state: Annotated[Path | None, typer.Option("--state", help="state directory")] = None,
    workers: Annotated[int | None, typer.Option(help="worker processes to start here")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="log every step")] = False,
    parent: Annotated[
        int | None, typer.Option(help="end together with this process", hidden=True)
    ] = None,
) -> None:
    """Run the service until SIGTERM or Ctrl-C: ingest, journal, broker, writer, and a Tiled of its own."""
    from inscan.service.children import die_with_parent
    from inscan.service.serve import serve as run_service
    from inscan.service.settings import load_settings

    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if parent is not None:
        die_with_parent(parent)
    settings = load_settings(config, state_dir=state, workers=workers)
    sys.exit(run_service(settings))


def worker(
    address: Annotated[str, typer.Argument(help="broker of the service, tcp://127.0.0.1:5621")],
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N; default: CUDA where there is one")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="threads on a CPU; default: all cores")
    ] = None,
    grace: Annotated[float, typer.Option(help="seconds to finish a job after SIGTERM")] = 20.0,
    pass_file: Annotated[
        Path | None,
        typer.Option(
            "--pass", help="pass file, for a service that asks for one; default: INSCAN_PASS"
        ),
    ] = None,
) -> None:
    """Run one worker: dial in to a broker, compute, until SIGTERM or Ctrl-C.

    Exit status 3: the broker is of another version; 4: it did not let this worker in for a minute, or its key was
    revoked.
    """
    from inscan.service.children import MALLOC_TUNING

    tuned = "GLIBC_TUNABLES"
    if tuned not in os.environ:
        # The allocator reads it when a process starts, so it takes another start to change it.
        os.environ[tuned] = MALLOC_TUNING
        os.execv(sys.executable, [sys.executable, "-m", "inscan.service.cli", *sys.argv[1:]])
    from inscan.service.recipes import process
    from inscan.service.worker import run_worker

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    sys.exit(
        run_worker(
            address,
            process=process,
            compute_on=device,
            threads=threads,
            grace_s=grace,
            pass_path=pass_file,
        )
    )
