"""The `sources` of the settings: where documents come from besides a RunEngine with inscan subscribed."""

import sys
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from inscan.callbacks.sources.bluesky_0mq import ZMQSource
from inscan.service.key_file import plain_uri, with_key

__all__ = ["FileSettings", "KafkaSettings", "SourceSettings", "TiledSourceSettings", "ZMQSettings"]

API_KEY = "INSCAN_SOURCE_TILED_API_KEY"
"""Environment variable that carries a Tiled key to a forwarder: command lines are there for all to read."""


class _Source(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ZMQSettings(_Source):
    """Documents that `bluesky.callbacks.zmq.Publisher` sends, with a serializer of JSON or msgpack."""

    kind: Literal["0mq"]
    """`0mq`."""
    address: str
    """Out address of the proxy, `tcp://127.0.0.1:5578`; with `bind`, where publishers connect."""
    probe: str | None = None
    """In address of the proxy: a probe goes through it until it comes back. Without, readiness is a handshake."""
    prefix: str = ""
    """Take only messages with this prefix."""
    bind: bool = False
    """Take the place of the proxy, on this machine only."""

    @model_validator(mode="after")
    def _usable(self) -> "ZMQSettings":
        self._source()
        return self

    def _source(self) -> ZMQSource:
        prefix = self.prefix.encode()
        return ZMQSource(self.address, prefix=prefix, probe_address=self.probe, bind=self.bind)

    @property
    def label(self) -> str:
        """As the source calls itself."""
        return self._source().label

    def arguments(self) -> list[str]:
        """What follows `inscan forward` on the command line."""
        found = ["0mq", self.address]
        found += [] if self.probe is None else ["--in", self.probe]
        found += ["--prefix", self.prefix] if self.prefix else []
        return found + (["--bind"] if self.bind else [])


class FileSettings(_Source):
    """Documents that another program appends to a file."""

    kind: Literal["file"]
    """`file`."""
    path: Path
    """JSON lines, a msgpack stream, or an inscan log; a relative path is relative to where the service starts."""
    follow: bool = True
    """Stay at the end of the file and wait for more; otherwise it is sent once."""

    @property
    def label(self) -> str:
        """As the source calls itself."""
        return f"file {self.path.absolute()}"

    def arguments(self) -> list[str]:
        """What follows `inscan forward` on the command line."""
        return ["file", str(self.path.absolute()), *(["--follow"] if self.follow else [])]


class KafkaSettings(_Source):
    """Documents that bluesky-kafka publishes."""

    kind: Literal["kafka"]
    """`kafka`."""
    servers: str = Field(min_length=1)
    """Bootstrap servers, `host:port,host:port`."""
    topics: tuple[str, ...] = Field(min_length=1)
    """Topics, each by its name."""
    group: str | None = None
    """Consumer group: the broker remembers how far it got. Without, only what comes from now on is taken."""
    config: Path | None = None
    """YAML file of further librdkafka settings, for SASL and TLS; let nobody else read it."""

    @property
    def label(self) -> str:
        """As the source calls itself."""
        return f"Kafka {self.servers} {','.join(self.topics)}"

    def arguments(self) -> list[str]:
        """What follows `inscan forward` on the command line."""
        found = ["kafka", self.servers, *self.topics]
        found += [] if self.group is None else ["--group", self.group]
        return found + ([] if self.config is None else ["--config", str(self.config.absolute())])


class TiledSourceSettings(_Source):
    """Runs that appear in a Tiled catalog."""

    kind: Literal["tiled"]
    """`tiled`."""
    uri: str
    """Address of a Tiled with runs in `raw`, or of the container that holds the runs."""
    api_key: SecretStr | None = None
    """Key to read it with."""
    api_key_file: Path | None = None
    """File with that key, which nobody else may read."""

    _key = model_validator(mode="before")(with_key)

    @field_validator("uri")
    @classmethod
    def _http(cls, uri: str) -> str:
        if not uri.startswith(("http://", "https://")):
            raise ValueError(f"{uri!r} is no address of a Tiled: write http://HOST:PORT/...")
        plain_uri(uri)
        return uri

    @property
    def label(self) -> str:
        """As the source calls itself."""
        return f"Tiled {self.uri}"

    def arguments(self) -> list[str]:
        """What follows `inscan forward` on the command line."""
        return ["tiled", self.uri]


SourceSettings = Annotated[
    ZMQSettings | FileSettings | KafkaSettings | TiledSourceSettings, Field(discriminator="kind")
]


def command(source: SourceSettings, state_dir: Path, parent: int) -> list[str]:
    """Command line of the process that forwards a source to the service of a state directory."""
    program = [sys.executable, "-m", "inscan.service.cli", "forward"]
    options = ["--state", str(state_dir), "--parent", str(parent)]
    return [*program, *source.arguments(), *options]


def environment(source: SourceSettings) -> dict[str, str]:
    """What that process is told in its environment."""
    if isinstance(source, TiledSourceSettings) and source.api_key is not None:
        return {API_KEY: source.api_key.get_secret_value()}
    return {}
