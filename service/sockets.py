"""The listening sockets of the service: all with the same bounds, and closed to strangers beyond loopback."""

import logging
import resource
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import zmq

from inscan.callbacks import wire
from inscan.callbacks.handshakes import FAILED, Monitor, refusal
from inscan.callbacks.link import ANYWHERE, at_host, host_of, is_loopback
from inscan.service.gate import Gate

_HANDSHAKE_S = 5.0
"""libzmq's 30 s would let half a million idle connections pile up before the first is dropped."""
_BACKLOG = 1024
_MOST_PEERS = 65_536
_MOST_FILES = 1 << 20
_log = logging.getLogger(__name__)


class Router:
    """A ROUTER socket that listens, for one thread; `state` may be called from any.

    Parameters
    ----------
    name : str
        The setting that its address comes from.
    max_message : int
        Longest frame in bytes; a peer that sends more is cut off before it is stored.
    gate : Gate or None
        Who may speak to it; None for all who reach it, which only processes of this machine may.
    counts : Counter or None
        Where ``unsent`` and ``cut`` are counted: messages to peers that had gone, messages of keys that were revoked.

    Attributes
    ----------
    refused : Counter
        Connections that did not come about, by reason.
    """

    def __init__(
        self,
        name: str,
        *,
        max_message: int,
        gate: Gate | None = None,
        counts: Counter[str] | None = None,
    ) -> None:
        self.refused: Counter[str] = Counter()
        self.counts = Counter() if counts is None else counts
        self.address = ""
        self._name = name
        self._max_message = max_message
        self._gate = gate
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: Monitor | None = None
        self._keys: OrderedDict[bytes, str] = OrderedDict()
        self._told: set[bytes] = set()

    @property
    def socket(self) -> "zmq.Socket[bytes]":
        """To be polled."""
        if self._socket is None:
            raise RuntimeError(f"{self._name}: bind() first")
        return self._socket

    @property
    def alive(self) -> bool:
        """Whether new peers can come in."""
        return self._gate is None or self._gate.alive

    def bind(self, address: str) -> str:
        """Listen.

        Returns
        -------
        str
            The address with its real port.

        Raises
        ------
        OSError
            When it is in use, none of this machine, or open to other machines without a gate.
        """
        if self._gate is None and not is_loopback(host_of(address)):
            raise PermissionError(
                f"{self._name}: {address} can be reached from other machines, and asks nobody for a key"
            )
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        sock = context.socket(zmq.ROUTER)
        _bound(sock, self._max_message)
        sock.setsockopt(zmq.IPV6, int(":" in host_of(address)))
        self._context, self._socket = context, sock
        self._monitor = Monitor(context, sock, FAILED)
        try:
            if self._gate is not None:
                self._gate.close_off(context, sock)
            sock.bind(address)
        except zmq.ZMQError as error:
            self.close()
            why = (
                "another program listens there (another inscan? `inscan status` tells)"
                if error.errno == zmq.EADDRINUSE
                else str(error)
            )
            raise OSError(
                error.errno,
                f"cannot listen at {address}: {why}; set `{self._name}` to another port (0: any)",
            ) from error
        self.address = sock.getsockopt_string(zmq.LAST_ENDPOINT)
        return self.address

    def received(self, most: int) -> Iterator[list[bytes]]:
        """Yield what has come from those who may speak, identity first; looks at so many messages at most."""
        self._look()
        for _ in range(most):
            try:
                frames = self._receive()
            except zmq.Again:
                return
            if frames is not None:
                yield frames

    def _receive(self) -> list[bytes] | None:
        sock = self.socket
        if self._gate is None:
            return sock.recv_multipart(zmq.NOBLOCK)
        first = sock.recv(zmq.NOBLOCK, copy=False)
        identity = bytes(first.buffer)
        rest = sock.recv_multipart(zmq.NOBLOCK) if first.more else []
        key = str(first.get("User-Id"))
        self._keys[identity] = key
        self._keys.move_to_end(identity)
        while len(self._keys) > _MOST_PEERS:
            self._keys.popitem(last=False)
        if self._gate.name_of(key) is not None:
            return [identity, *rest]
        self.counts["cut"] += 1
        if identity not in self._told and len(self._told) < _MOST_PEERS:
            self._told.add(identity)
            self._send([identity, *wire.encode_message("ERR", _REVOKED)])
        return None

    def send(self, frames: Sequence[Any]) -> bool:
        """Send without waiting, identity first; False when the peer is not there, or may not be any more."""
        if self._gate is not None:
            key = self._keys.get(bytes(frames[0]))
            if key is None or self._gate.name_of(key) is None:
                self.counts["cut"] += 1
                return False
        return self._send(frames)

    def _send(self, frames: Sequence[Any]) -> bool:
        try:
            self.socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            self.counts["unsent"] += 1
            return False
        return True

    def _look(self) -> None:
        """Count connections that did not come about."""
        if self._monitor is not None:
            for happened in self._monitor.happened():
                self.refused[refusal(happened)] += 1

    def state(self) -> dict[str, Any]:
        """For `inscan status`: whether it asks for keys, connections refused, messages of revoked keys dropped."""
        refused = dict(self.refused)
        return {
            "socket": self._name,
            "address": self.address,
            "keys": "asked for" if self._gate else "none",
            "refused": sum(refused.values()),
            "cut": self.counts["cut"],
            "why": refused,
        }

    def close(self) -> None:
        """Close it and end its gate. Once."""
        if self._socket is None or self._context is None:
            return
        if self._monitor is not None:
            self._monitor.close()
        self._socket.close(linger=0)
        if self._gate is not None:
            self._gate.stop()
        self._context.term()
        self._socket = self._context = self._monitor = None


_REVOKED = {
    "code": "key",
    "message": "your key was revoked, or may not speak to this socket; ask who runs the service",
}


def _bound(sock: zmq.Socket, max_message: int) -> None:
    # Without MANDATORY a ROUTER drops in silence what it cannot deliver.
    sock.setsockopt(zmq.ROUTER_MANDATORY, 1)
    sock.setsockopt(zmq.LINGER, 0)
    sock.setsockopt(zmq.SNDHWM, 1000)
    sock.setsockopt(zmq.RCVHWM, 1000)
    sock.setsockopt(zmq.MAXMSGSIZE, max_message)
    # No HEARTBEAT_IVL: libzmq 4.3.5 aborts the whole process when the heartbeat of a peer is due that filled its queue
    # (RCVHWM) and hung up (libzmq issues 4364, 4767). Who dials beats, and has us drop the line when it stops
    # (HEARTBEAT_TTL in callbacks.link); the kernel notices hosts that are gone.
    sock.setsockopt(zmq.TCP_KEEPALIVE, 1)
    sock.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 10)
    sock.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 3)
    sock.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
    sock.setsockopt(zmq.TCP_MAXRT, 15000)
    sock.setsockopt(zmq.HANDSHAKE_IVL, round(_HANDSHAKE_S * 1000))
    sock.setsockopt(zmq.BACKLOG, _BACKLOG)


def announced(address: str) -> str:
    """What processes of this machine dial to reach a listening socket."""
    return at_host(address, "127.0.0.1") if host_of(address) in ANYWHERE else address


def allow_many_files() -> int:
    """Let this process open as many files as the system lets it, each connection being one.

    Returns
    -------
    int
        How many.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, _MOST_FILES)
    if soft >= wanted:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError) as error:
        _log.warning("open files stay limited to %d: %s", soft, error)
        return soft
    return wanted
