"""The one kind of client socket, and where the service is found."""

import hashlib
import ipaddress
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import zmq

from inscan.callbacks.handshakes import LIFE, Dial, Monitor, Trouble
from inscan.callbacks.pass_file import ENVIRONMENT, Pass, PassError, pass_for
from inscan.callbacks.wire import (
    MAX_DOCUMENT_BYTES,
    Buffer,
    Message,
    VersionError,
    WireError,
    decode_message,
    encode_message,
)

DEFAULT_ADDRESS = "tcp://127.0.0.1:5620"
SERVICE_FILE = "service.json"
_MAX_SERVICE_FILE = 64 * 2**10
ANYWHERE = ("0.0.0.0", "::", "*")  # noqa: S104 - told from others here; who listens there says so himself
_HANDSHAKE_S = 5.0
_REDIAL_S = 2.0


@dataclass(frozen=True)
class Location:
    """Where the service is thought to be.

    Attributes
    ----------
    address : str
        ZeroMQ address of its ingest socket.
    source : str
        Where that address comes from, for people.
    key : Pass or None
        What lets us in; None where nothing is asked for.
    """

    address: str
    source: str
    key: Pass | None = None


def default_state_dir() -> Path:
    """``$XDG_STATE_HOME/inscan``, by default ``~/.local/state/inscan``."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "inscan"


def locate(state_dir: Path, *, explicit: str | None, profile: str | None) -> Location:
    """Find the ingest address: given, from the running service's file, profile, default.

    Parameters
    ----------
    state_dir : Path
        Folder in which a running service keeps ``service.json``.
    explicit : str or None
        Address that the user gave; it stands above all.
    profile : str or None
        Address of the beamline profile.

    Raises
    ------
    PassError
        If the service asks for a key and there is none that can be used.
    """
    path = state_dir / SERVICE_FILE
    running = _running(path)
    found = running.get("ingest")
    if explicit is not None:
        location = Location(explicit, "the address given")
    elif isinstance(found, str):
        location = Location(found, str(path))
    elif profile is not None:
        location = Location(profile, f"the profile; there is no {path}")
    else:
        location = Location(DEFAULT_ADDRESS, f"the default; there is no {path}")
    if location.address != found:
        running = {}  # that file speaks of another service
    return replace(location, key=_key_for(location.address, state_dir, running))


def _key_for(address: str, state_dir: Path, running: Mapping[str, Any]) -> Pass | None:
    """What is needed at an address: a service of this machine says so in its file, others always ask."""
    closed, server = running.get("curve"), running.get("server_key")
    if isinstance(closed, list):
        return pass_for(state_dir, "client", str(server)) if "ingest" in closed else None
    if is_loopback(host_of(address)):
        # Perhaps the near end of a tunnel.
        return pass_for(state_dir, "client") if os.environ.get(ENVIRONMENT) else None
    return pass_for(state_dir, "client")


def _running(path: Path) -> dict[str, Any]:
    """Content of a service file; empty if there is no readable one (none is running)."""
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(_MAX_SERVICE_FILE))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def host_of(address: str) -> str:
    """Host of ``tcp://HOST:PORT``, without brackets; empty when it is no such address."""
    scheme, _, rest = address.partition("://")
    host, colon, _ = rest.rpartition(":")
    return host.strip("[]") if scheme == "tcp" and colon else ""


def is_loopback(host: str) -> bool:
    """Whether a host, by its name or number, is this machine's loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def at_host(address: str, host: str) -> str:
    """The same port of another host."""
    port = address.rpartition(":")[2]
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def host_id() -> str:
    """One identifier for all processes that may share files: same kernel boot, same host name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        boot = "unknown"
    return hashlib.sha256(f"{boot} {socket.gethostname()}".encode()).hexdigest()[:32]


def dealer(
    context: zmq.Context,
    address: str,
    *,
    key: Pass | None = None,
    high_water: int = 1000,
    max_message: int = MAX_DOCUMENT_BYTES + 2**20,
    watch: Callable[[zmq.Socket], None] | None = None,
) -> zmq.Socket:
    """DEALER socket connected to a service.

    Sending without a connected peer raises `zmq.Again` (IMMEDIATE) instead of queueing into the
    void, closing never waits (LINGER 0), a peer that vanished without a word is noticed within ten
    seconds, and a message above ``max_message`` bytes is refused before it is stored.

    Parameters
    ----------
    key : Pass or None
        Encrypts, and lets us in. Without, nothing beyond this machine's loopback is dialled.
    watch : callable or None
        Called with the socket before it dials.

    Raises
    ------
    ValueError
        If the address is none, or needs a key.
    """
    host = host_of(address)
    if key is None and host and not is_loopback(host):
        raise PassError(
            f"{address} is not on this machine, and there is no pass for it: on the service's machine "
            "`inscan keys new NAME --role client` (or worker) makes one; name its file in INSCAN_PASS"
        )
    sock = context.socket(zmq.DEALER)
    sock.setsockopt(zmq.LINGER, 0)
    sock.setsockopt(zmq.IMMEDIATE, 1)
    sock.setsockopt(zmq.SNDHWM, high_water)
    sock.setsockopt(zmq.RCVHWM, high_water)
    sock.setsockopt(zmq.MAXMSGSIZE, max_message)
    sock.setsockopt(zmq.RECONNECT_IVL, 100)
    sock.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
    sock.setsockopt(zmq.HEARTBEAT_IVL, 2000)
    sock.setsockopt(zmq.HEARTBEAT_TIMEOUT, 10000)
    sock.setsockopt(zmq.HEARTBEAT_TTL, 10000)
    sock.setsockopt(zmq.HANDSHAKE_IVL, round(_HANDSHAKE_S * 1000))
    sock.setsockopt(zmq.IPV6, int(":" in host))
    if key is not None:
        sock.curve_publickey = key.public.encode()
        sock.curve_secretkey = key.secret.encode()
        sock.curve_serverkey = key.server.encode()
    if watch is not None:
        watch(sock)
    try:
        sock.connect(address)
    except zmq.ZMQError as error:
        sock.close(linger=0)
        raise ValueError(
            f"{address!r} is no address of a service ({error}); expected e.g. {DEFAULT_ADDRESS}"
        ) from error
    return sock


class Link:
    """A client's socket to the service, for one thread; `wake` may be called from any.

    Attributes
    ----------
    refused : int
        Messages that were no inscan messages.
    trouble : Trouble or None
        Why the service cannot be spoken to, as long as it cannot.
    """

    def __init__(self) -> None:
        self.refused = 0
        self.trouble: Trouble | None = None
        self._context = zmq.Context()
        self._socket: zmq.Socket | None = None
        self._monitor: Monitor | None = None
        self._address = ""
        self._key: Pass | None = None
        self._dial = Dial("", None)
        self._dialled = 0.0
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poller = zmq.Poller()
        self._poller.register(self._wake, zmq.POLLIN)

    def connect(self, address: str, key: Pass | None = None) -> None:
        """Leave the present service, if any, and dial this one. Does not wait for it.

        Raises
        ------
        ValueError
            If the address is none, or needs a key.
        """
        self.disconnect()
        if (address, key) == (self._address, self._key):
            self._dial.again()
        else:
            self._address, self._key, self._dial = address, key, Dial(address, key)
            self.trouble = None
        self._dialled = time.monotonic()
        try:
            self._socket = dealer(self._context, address, key=key, watch=self._watch)
        except ValueError:
            self.disconnect()
            raise
        self._poller.register(self._socket, zmq.POLLIN)

    def _watch(self, sock: zmq.Socket) -> None:
        self._monitor = Monitor(self._context, sock, LIFE)
        self._poller.register(self._monitor.socket, zmq.POLLIN)

    def disconnect(self) -> None:
        """Close the socket; messages not yet sent are dropped."""
        if self._monitor is not None:
            self._poller.unregister(self._monitor.socket)
            self._monitor.close()
            self._monitor = None
        if self._socket is not None:
            self._poller.unregister(self._socket)
            self._socket.close(linger=0)
            self._socket = None

    def send(self, kind: str, header: Mapping[str, Any], *chunks: Buffer) -> bool:
        """Send a message; False if nobody is there to take it now."""
        if self._socket is None:
            return False
        try:
            self._socket.send_multipart(
                encode_message(kind, header, *chunks), flags=zmq.NOBLOCK, copy=False
            )
        except zmq.Again:
            return False
        return True

    def wait(self, timeout: float) -> None:
        """Return when a message came, somebody called `wake`, or after ``timeout`` seconds."""
        self._redial()
        for source, _ in self._poller.poll(max(0, round(timeout * 1000))):
            if source == self._wake:
                os.eventfd_read(self._wake)
        self._look()

    def wake(self) -> None:
        """Make `wait` return."""
        os.eventfd_write(self._wake, 1)

    def messages(self, limit: int = 256) -> Iterator[Message]:
        """Messages that have arrived, ``limit`` at most."""
        for _ in range(limit):
            if self._socket is None:
                return
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = decode_message(frames)
            except VersionError as error:
                self.refused += 1
                self.trouble = Trouble(f"{error} (at {self._address})", sure=True)
            except WireError:
                self.refused += 1
            else:
                self.trouble = None
                yield message

    def _look(self) -> None:
        """See how the connection is."""
        if self._monitor is None:
            return
        for happened in self._monitor.happened():
            trouble = self._dial.take(happened)
            if trouble is not None:
                self.trouble = trouble
            elif self._dial.up:
                self.trouble = None

    def _redial(self) -> None:
        """Dial again where libzmq does not: after a refusal, or when what came was no ZMTP."""
        sock = self._socket
        stuck = sock is not None and self._dial.given_up and not sock.poll(0)
        if stuck and time.monotonic() - self._dialled > _REDIAL_S:
            self.connect(self._address, self._key)

    def close(self) -> None:
        """Close everything. `wake` must not be called afterwards."""
        self.disconnect()
        self._context.term()
        os.close(self._wake)
