"""The one kind of client socket, and where the service is found."""

import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq

from inscan.callbacks.wire import (
    MAX_DOCUMENT_BYTES,
    Buffer,
    Message,
    WireError,
    decode_message,
    encode_message,
)

DEFAULT_ADDRESS = "tcp://127.0.0.1:5620"
SERVICE_FILE = "service.json"
_MAX_SERVICE_FILE = 64 * 2**10


@dataclass(frozen=True)
class Location:
    """Where the service is thought to be.

    Attributes
    ----------
    address : str
        ZeroMQ address of its ingest socket.
    source : str
        Where that address comes from, for people.
    """

    address: str
    source: str


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
    """
    if explicit is not None:
        return Location(explicit, "the address given")
    path = state_dir / SERVICE_FILE
    found = _address_in(path)
    if found is not None:
        return Location(found, str(path))
    if profile is not None:
        return Location(profile, f"the profile; there is no {path}")
    return Location(DEFAULT_ADDRESS, f"the default; there is no {path}")


def _address_in(path: Path) -> str | None:
    """Ingest address in a service file; None if there is no readable one (none is running)."""
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(_MAX_SERVICE_FILE))
    except (OSError, ValueError, RecursionError):
        return None
    address = content.get("ingest") if isinstance(content, dict) else None
    return address if isinstance(address, str) else None


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
    high_water: int = 1000,
    max_message: int = MAX_DOCUMENT_BYTES + 2**20,
) -> zmq.Socket:
    """DEALER socket connected to a service.

    Sending without a connected peer raises `zmq.Again` (IMMEDIATE) instead of queueing into the
    void, closing never waits (LINGER 0), a peer that vanished without a word is noticed within ten
    seconds, and a message above ``max_message`` bytes is refused before it is stored.

    Raises
    ------
    ValueError
        If the address is none.
    """
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
    """

    def __init__(self) -> None:
        self.refused = 0
        self._context = zmq.Context()
        self._socket: zmq.Socket | None = None
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poller = zmq.Poller()
        self._poller.register(self._wake, zmq.POLLIN)

    def connect(self, address: str) -> None:
        """Leave the present service, if any, and dial this one. Does not wait for it.

        Raises
        ------
        ValueError
            If the address is none.
        """
        self.disconnect()
        self._socket = dealer(self._context, address)
        self._poller.register(self._socket, zmq.POLLIN)

    def disconnect(self) -> None:
        """Close the socket; messages not yet sent are dropped."""
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
        for source, _ in self._poller.poll(max(0, round(timeout * 1000))):
            if source == self._wake:
                os.eventfd_read(self._wake)

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
                yield decode_message(frames)
            except WireError:
                self.refused += 1

    def close(self) -> None:
        """Close everything. `wake` must not be called afterwards."""
        self.disconnect()
        self._context.term()
        os.close(self._wake)
