"""`inscan forward`: one source of documents, carried to the service by this process."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from inscan.callbacks.sources.interface import Source

app = typer.Typer(
    help="Carry documents from 0MQ, Kafka, a file or Tiled to the service.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

State = Annotated[
    Path | None,
    typer.Option("--state", help="state directory of the service (default: the user's)"),
]
Address = Annotated[
    str | None,
    typer.Option("--address", help="ingest address of the service; default: as its state says"),
]
ReadyFile = Annotated[
    Path | None,
    typer.Option("--ready-file", help="made when the source is ready, removed at the end"),
]
Quiet = Annotated[
    float, typer.Option(help="seconds without a document after which a run without stop has ended")
]
Grace = Annotated[
    float, typer.Option(help="seconds to hand over what is logged, when told to stop or at the end")
]
Parent = Annotated[int | None, typer.Option(help="end together with this process", hidden=True)]
_QUIET_S, _GRACE_S = 4 * 3600.0, 8.0
_NO_SERVICE = 3  # see inscan.service.cli


def add_to(parent: typer.Typer) -> None:
    """Register the commands of this module."""
    parent.add_typer(app, name="forward")


@app.command("0mq")
def zeromq(
    address: Annotated[str, typer.Argument(help="out address of the proxy, tcp://127.0.0.1:5578")],
    probe: Annotated[
        str | None,
        typer.Option(
            "--in", help="in address of the proxy: a probe is sent through it until it comes back"
        ),
    ] = None,
    prefix: Annotated[str, typer.Option(help="take only messages with this prefix")] = "",
    bind: Annotated[
        bool,
        typer.Option(
            "--bind", help="be the proxy: publishers connect to ADDRESS, this machine only"
        ),
    ] = False,
    state: State = None,
    service: Address = None,
    ready_file: ReadyFile = None,
    quiet: Quiet = _QUIET_S,
    grace: Grace = _GRACE_S,
    parent: Parent = None,
) -> None:
    """Forward what bluesky publishes over 0MQ, in JSON or msgpack (never pickle)."""
    from inscan.callbacks.sources.bluesky_0mq import ZMQSource
    from inscan.service.settings import check_bind

    if bind:
        check_bind(address)
    source = ZMQSource(address, prefix=prefix.encode(), probe_address=probe, bind=bind)
    _forward(source, state, service, ready_file, quiet, grace, parent)


@app.command("file")
def file(
    path: Annotated[
        Path, typer.Argument(help="JSON lines, JSON, msgpack or an inscan log; .gz too")
    ],
    follow: Annotated[
        bool, typer.Option("--follow", help="stay at the end of the file and wait for more")
    ] = False,
    state: State = None,
    service: Address = None,
    ready_file: ReadyFile = None,
    quiet: Quiet = _QUIET_S,
    grace: Grace = 600.0,
    parent: Parent = None,
) -> None:
    """Forward the documents of a file, under their own uids; `inscan replay` sends them as new runs."""
    from inscan.callbacks.sources.files import FileSource

    source = FileSource(path.absolute(), follow=follow)
    _forward(source, state, service, ready_file, quiet, grace, parent)


@app.command("kafka")
def kafka(
    servers: Annotated[str, typer.Argument(help="bootstrap servers, host:port,host:port")],
    topics: Annotated[list[str], typer.Argument(help="topics")],
    group: Annotated[
        str | None,
        typer.Option(
            help="consumer group: go on where it stopped; without, only what comes from now on"
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file of librdkafka settings, for SASL and TLS")
    ] = None,
    state: State = None,
    service: Address = None,
    ready_file: ReadyFile = None,
    quiet: Quiet = _QUIET_S,
    grace: Grace = _GRACE_S,
    parent: Parent = None,
) -> None:
    """Forward what bluesky-kafka publishes; needs pip install "inscan[kafka]"."""
    from inscan.callbacks.sources.kafka import KafkaSource, read_config

    settings = {} if config is None else read_config(config)
    source = KafkaSource(servers, topics, group=group, config=settings)
    _forward(source, state, service, ready_file, quiet, grace, parent)


@app.command("tiled")
def tiled(
    uri: Annotated[str, typer.Argument(help="Tiled, or the container of raw runs in it")],
    poll: Annotated[float, typer.Option(help="longest time between looks at the catalog, s")] = 5.0,
    state: State = None,
    service: Address = None,
    ready_file: ReadyFile = None,
    quiet: Quiet = _QUIET_S,
    grace: Grace = _GRACE_S,
    parent: Parent = None,
) -> None:
    """Forward runs as they appear in a Tiled catalog; its key comes from INSCAN_SOURCE_TILED_API_KEY."""
    from inscan.callbacks.link import default_state_dir
    from inscan.callbacks.request import NoServiceError, request
    from inscan.callbacks.sources.tiled_live import TiledSource
    from inscan.service.source_settings import API_KEY

    def known(uids: Sequence[str]) -> Collection[str]:
        """Runs that the service has finished; when it is away it says so later, of each."""
        where = service or state or default_state_dir()
        try:
            return request(where, "known_runs", uids=list(uids))["known"]
        except NoServiceError:
            return ()

    source = TiledSource(uri, os.environ.get(API_KEY), known=known, poll_s=poll)
    _forward(source, state, service, ready_file, quiet, grace, parent)


def _forward(
    source: Source,
    state: Path | None,
    address: str | None,
    ready_file: Path | None,
    quiet_s: float,
    grace_s: float,
    parent: int | None,
) -> None:
    from inscan.callbacks.link import default_state_dir
    from inscan.service.children import die_with_parent
    from inscan.service.forward import Forward

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    # A catalog is asked again and again: a line for each question would bury the others.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    stop, told_to = threading.Event(), threading.Event()

    def end(*_: object) -> None:
        told_to.set()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    if parent is not None:
        die_with_parent(parent, signal.SIGTERM)

    def ready() -> None:
        typer.echo(f"ready: {source.label}")
        sys.stdout.flush()
        if ready_file is not None:
            ready_file.write_text(f"{os.getpid()}\n", encoding="ascii")

    forward = Forward(
        source, state or default_state_dir(), address=address, quiet_s=quiet_s, on_ready=ready
    )
    try:
        forward.run(stop)
    finally:
        if ready_file is not None:
            ready_file.unlink(missing_ok=True)
        taken = forward.close(grace_s)
        typer.echo(_summary(source.label, forward.counts))
    if not taken:
        typer.echo(
            f"what the service has not taken over is in {forward.folder}, and goes out when this source is "
            "forwarded again",
            err=True,
        )
        # Who stops a forwarder knows that it has not finished; a source that ended by itself was to be handed over.
        if not told_to.is_set():
            raise typer.Exit(_NO_SERVICE)


def _summary(label: str, counts: dict[str, Any]) -> str:
    told = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
    return f"{label}: {told or 'nothing came'}"
