"""Settings of the service: one YAML file, every key checked, everything on this machine unless said
otherwise."""

import os
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from inscan.callbacks.link import ANYWHERE, default_state_dir, is_loopback
from inscan.callbacks.profile import explain_errors
from inscan.callbacks.yaml_file import YamlError, read_yaml
from inscan.service.key_file import plain_uri, with_key
from inscan.service.messages import Recipe
from inscan.service.source_settings import SourceSettings

__all__ = [
    "ExportSettings",
    "QueueServerSettings",
    "RepairSettings",
    "Settings",
    "SettingsError",
    "TiledSettings",
    "check_address",
    "default_state_dir",
    "load_settings",
]

GIB = 1 << 30
_HOST = re.compile(
    r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9])?|[0-9a-fA-F]*:[0-9a-fA-F:]*:[0-9a-fA-F]*"
)


class SettingsError(ValueError):
    """A settings file that cannot be used; the message names the file, the key and the remedy."""


class _Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, coerce_numbers_to_str=True
    )


class TiledSettings(_Strict):
    """Where results go. Without `uri` the service starts a Tiled of its own in the state
    directory."""

    uri: str | None = None
    """Address of a running Tiled, for example `http://127.0.0.1:8000`."""
    api_key: SecretStr | None = None
    """Key for `uri`; only the service's writer holds it. Better from a file, or from the environment:
    `INSCAN_TILED_API_KEY`."""
    api_key_file: Path | None = None
    """File with that key, which nobody else may read; the environment's `INSCAN_TILED_API_KEY_FILE` does the same."""
    port: int = Field(default=0, ge=0, le=65535)
    """Port of the embedded Tiled; 0 takes any free one."""
    readable_storage: Path | None = None
    """Folder shared with a foreign Tiled and readable by it; without it results are uploaded."""

    _key = model_validator(mode="before")(with_key)
    _uri = field_validator("uri")(plain_uri)


class ExportSettings(_Strict):
    """Where `inscan export` puts files when it is not told."""

    folder: str = "proposal_path"
    """Dotted path in the start document of the raw run that holds the folder of its proposal; files go
    into `inscan` in it. A run without it: into the current folder."""
    roots: tuple[Path, ...] = ()
    """Folders under which that may lie. A run that names another one is refused."""


class RepairSettings(_Strict):
    """Where documents that a run lost on its way are fetched from, and for how long."""

    uri: str | None = None
    """Address of the Tiled that the beamline writes its raw runs to, or of the container in it that holds them; by
    default `raw` in the service's own Tiled."""
    api_key: SecretStr | None = None
    """Key for `uri`, which need only read."""
    api_key_file: Path | None = None
    """File with that key, which nobody else may read."""
    deadline: float = Field(default=20.0, ge=0)
    """Seconds to wait, from the stop of a run that lost documents, until it is whole there; writers are later than we
    are. Runs that lost nothing wait for nothing."""

    _key = model_validator(mode="before")(with_key)
    _uri = field_validator("uri")(plain_uri)


class QueueServerSettings(_Strict):
    """The bluesky-queueserver that takes approved rescans of profiles with `rescan.through: queue`."""

    control: str = "tcp://127.0.0.1:60615"
    """Where its manager answers requests (start-re-manager --zmq-control-addr)."""
    info: str | None = "tcp://127.0.0.1:60625"
    """Where it publishes its state (--zmq-info-addr, with --zmq-publish-console=ON): changes are then noticed at once.
    `null`, or when it publishes nothing: it is asked again and
    again."""
    public_key: str | None = None
    """Public CURVE key of the manager, 40 characters, as `qserver-zmq-keys` prints it; for `control` only, what `info`
    brings is in the clear. Default: the environment's `QSERVER_ZMQ_PUBLIC_KEY`, else no encryption."""
    user: str = Field(default="inscan", min_length=1)
    """Name that items are added under."""
    user_group: str = Field(default="primary", min_length=1)
    """User group of the manager whose permissions hold for them; `rescan.plan` must be among its allowed plans."""
    start: bool = False
    """Whether an idle queue is started that held nothing when an item was added and holds nothing but such items. By
    default a person, or the manager's own autostart, starts it."""

    @field_validator("control", "info")
    @classmethod
    def _is_tcp(cls, address: str | None) -> str | None:
        if address is not None and (_host_of(address) in ("", "*") or address.endswith(":0")):
            raise ValueError(f"{address!r} cannot be connected to: write tcp://HOST:PORT")
        return address

    @field_validator("public_key")
    @classmethod
    def _is_key(cls, key: str | None) -> str | None:
        if key is not None and (len(key) != 40 or not key.isascii()):
            raise ValueError(
                f"a CURVE key has 40 printable characters, this has {len(key)}; "
                "`qserver-zmq-keys` makes a pair, its public one goes here"
            )
        return key

    @property
    def beyond_loopback(self) -> tuple[str, ...]:
        """Those of its addresses that are not on this machine's loopback."""
        addresses = [self.control] if self.info is None else [self.control, self.info]
        return tuple(address for address in addresses if not is_loopback(_host_of(address)))


class Settings(_Strict):
    """All settings of `inscan serve`; times in seconds, sizes in bytes."""

    state_dir: Path = Field(default_factory=default_state_dir)
    """Spool, results, journal and lock; one service at a time."""
    profiles: tuple[str, ...] = ("sim_xrf", "sim_txm")
    """Beamline profiles by shipped name or path; the first that matches a run is used."""
    ingest: str = "tcp://127.0.0.1:5620"
    """Where documents arrive; port 0 takes any free one. This and the next two may listen beyond this machine
    (`tcp://0.0.0.0:5620`): then they encrypt, and let in only whom `inscan keys new` made a key for."""
    broker: str = "tcp://127.0.0.1:5621"
    """Where workers dial in."""
    spool: str = Field(default="tcp://127.0.0.1:5622", validate_default=True)
    """Where workers of other machines fetch arrays and put results."""
    curve: bool = False
    """Ask for keys and encrypt on this machine, too, where other people have accounts. Beyond it that is always so."""
    advertise: str | None = None
    """Name or number by which other machines reach this one, where `spool` listens on all its networks. By default
    workers fetch from where they reached the broker."""
    tiled: TiledSettings = TiledSettings()
    repair: RepairSettings | None = RepairSettings()
    """Where runs with gaps are completed from; `null`: nowhere."""
    workers: int = Field(default=1, ge=0, le=256)
    """Worker processes started by the service; 0 when they all dial in from elsewhere."""
    worker_threads: int | None = Field(default=None, ge=1, le=1024)
    """Threads of each worker started here; by default the cores shared out among them."""
    budgets: dict[Recipe, float] = Field(
        default_factory=lambda: {
            "n2n": 600.0,
            "superres": 600.0,
            "subspace": 600.0,
            "spectral": 1800.0,
            "composite": 1800.0,
        }
    )
    """Longest time that one dispatch of a recipe may take before it is cancelled and failed."""
    lease_s: float = Field(default=10.0, gt=0)
    """A worker unheard of for so long has lost its job."""
    hb_s: float = Field(default=1.0, gt=0)
    """Time between heartbeats of a worker; less than a third of `lease_s`."""
    progress_s: float = Field(default=120.0, gt=0)
    """A worker that lives but whose job does not move for so long is hung: the job goes
    elsewhere."""
    drain_s: float = Field(default=20.0, gt=0)
    """Time to finish running jobs after SIGTERM before they are handed back."""
    incomplete_after: float = Field(default=300.0, gt=0)
    """A run without `stop` whose link is gone for so long is recorded as incomplete."""
    spool_budget: int = Field(default=200 * GIB, gt=0)
    """Most bytes the spool may hold."""
    journal_budget: int = Field(default=2 * GIB, gt=0)
    """Bytes the journal may take before old jobs whose results are in Tiled are thinned out."""
    min_free: int = Field(default=GIB, ge=0)
    """Bytes of the disk that the spool leaves free."""
    keep_spool: bool = False
    """Keep the assembled arrays after the result is in Tiled; by default they are deleted."""
    data_roots: tuple[Path, ...] = ()
    """Folders from which external detector files may be read, besides those of the profiles."""
    rescan: Literal["off", "suggest", "approve", "auto"] | None = None
    """Overrides the mode of every profile."""
    sources: tuple[SourceSettings, ...] = ()
    """Where documents come from besides RunEngines with inscan subscribed: each gets an `inscan forward` of its own."""
    export: ExportSettings = ExportSettings()
    """Where `inscan export` puts files."""
    queueserver: QueueServerSettings = QueueServerSettings()
    """Where approved rescans go; asked only where a profile says `rescan.through: queue`."""

    @field_validator("rescan", mode="before")
    @classmethod
    def _off(cls, mode: object) -> object:
        # YAML takes a bare off for false; who writes it means what it says.
        return "off" if mode is False else mode

    @field_validator("ingest", "broker", "spool")
    @classmethod
    def _can_listen(cls, address: str) -> str:
        _host_of(address, " (port 0 takes any free one)")
        return address

    @field_validator("advertise")
    @classmethod
    def _is_host(cls, host: str | None) -> str | None:
        if host is not None and (host in ANYWHERE or not _HOST.fullmatch(host)):
            raise ValueError(
                f"{host!r} is no host: write a name or number alone, gpu-host.example.org"
            )
        return host

    @field_validator("spool")
    @classmethod
    def _workers_can_fetch(cls, spool: str, info: Any) -> str:
        broker = info.data.get("broker")
        if broker is not None and _is_open(broker) and not _is_open(spool):
            raise ValueError(
                f"broker {broker} takes workers of other machines, and they could not fetch arrays from "
                f"{spool}: let spool listen beyond loopback, too"
            )
        return spool

    @field_validator("sources")
    @classmethod
    def _each_once(cls, sources: tuple[SourceSettings, ...]) -> tuple[SourceSettings, ...]:
        labels = [source.label for source in sources]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"sources named twice: {', '.join(twice)}")
        for source in sources:
            if source.kind == "0mq" and source.bind:
                check_bind(source.address)
        return sources

    @field_validator("hb_s")
    @classmethod
    def _beats_often(cls, value: float, info: Any) -> float:
        lease = info.data.get("lease_s")
        if lease is not None and value * 3 > lease:
            raise ValueError(f"hb_s {value:g} must be at most a third of lease_s {lease:g}")
        return value

    def is_open(self, socket: str) -> bool:
        """Whether other machines can reach a socket: `ingest`, `broker` or `spool`."""
        return _is_open(getattr(self, socket))

    def asks_for_keys(self, socket: str) -> bool:
        """Whether a socket lets in only who has a key."""
        return self.curve or self.is_open(socket)

    @property
    def keys_dir(self) -> Path:
        return self.state_dir / "keys"

    @property
    def journal_path(self) -> Path:
        return self.state_dir / "journal.db"

    @property
    def spool_dir(self) -> Path:
        return self.state_dir / "spool"

    @property
    def results_dir(self) -> Path:
        return self.state_dir / "results"

    @property
    def weights_dir(self) -> Path:
        return self.state_dir / "weights"

    @property
    def live_dir(self) -> Path:
        return self.state_dir / "live"

    @property
    def log_dir(self) -> Path:
        return self.state_dir / "log"

    @property
    def service_file(self) -> Path:
        return self.state_dir / "service.json"


def check_address(address: str) -> str:
    """Refuse what is not `tcp://HOST:PORT` on this machine's loopback: for sockets that ask nobody for a key.

    Raises
    ------
    ValueError
        Naming the address and what to write instead.
    """
    if not is_loopback(_host_of(address, " (port 0 takes any free one)")):
        port = address.rpartition(":")[2]
        raise ValueError(
            f"{address!r} can be reached from other machines, and has no authentication for that: "
            f"write tcp://127.0.0.1:{port}, or take an ssh tunnel"
        )
    return address


def _host_of(address: str, remark: str = "") -> str:
    """Host of `tcp://HOST:PORT`; ValueError when it is no such address."""
    scheme, _, rest = address.partition("://")
    host, colon, port = rest.rpartition(":")
    if scheme != "tcp" or not colon or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{address!r} is no address: write tcp://127.0.0.1:PORT{remark}")
    return host


def _is_open(address: str) -> bool:
    return not is_loopback(_host_of(address))


def check_bind(address: str) -> None:
    """Refuse to listen for 0MQ where other machines reach it: as bluesky speaks it, it asks nobody who he is.

    Raises
    ------
    ValueError
        Naming the address and what to write instead.
    """
    if not address.startswith("ipc://"):
        check_address(address if "://" in address else f"tcp://{address}")


def load_settings(path: Path | None = None, **overrides: Any) -> Settings:
    """Read settings from a YAML file; keyword arguments win over it.

    Parameters
    ----------
    path : Path or None
        The file; None for defaults alone.
    **overrides
        Settings by name; None is passed over. `INSCAN_TILED_API_KEY_FILE` or
        `INSCAN_TILED_API_KEY` in the environment say the key of `tiled` where the file does not.

    Raises
    ------
    SettingsError
        When the file cannot be read, is not a mapping, or holds a key or value that is not
        understood.
    """
    data: dict[str, Any] = {}
    where = "settings" if path is None else str(path)
    if path is not None:
        try:
            loaded = read_yaml(path)
        except (OSError, YamlError) as error:
            raise SettingsError(f"settings file {path} cannot be read: {error}") from error
        if loaded is not None and not isinstance(loaded, dict):
            raise SettingsError(
                f"settings file {path}: expected `key: value` lines, got a {type(loaded).__name__}"
            )
        data.update(loaded or {})
    data.update({name: value for name, value in overrides.items() if value is not None})
    tiled = data.get("tiled")
    if tiled is None or (isinstance(tiled, dict) and not {"api_key", "api_key_file"} & set(tiled)):
        for name in ("api_key_file", "api_key"):
            given = os.environ.get(f"INSCAN_TILED_{name.upper()}")
            if given:
                data["tiled"] = {**(tiled or {}), name: given}
                break
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        raise SettingsError(explain_errors(Path(where), Settings, error)) from None
