"""What a socket's connections meet while they are made: libzmq itself tries on in silence."""

import errno
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import zmq
from zmq.utils.monitor import parse_monitor_message

from inscan.callbacks.pass_file import Pass

_NO_DETAIL = zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
_PROTOCOL = zmq.Event.HANDSHAKE_FAILED_PROTOCOL
_AUTH = zmq.Event.HANDSHAKE_FAILED_AUTH
FAILED = _NO_DETAIL | _PROTOCOL | _AUTH
LIFE = (
    FAILED
    | zmq.Event.HANDSHAKE_SUCCEEDED
    | zmq.Event.CONNECTED
    | zmq.Event.CONNECT_RETRIED
    | zmq.Event.DISCONNECTED
)
_MECHANISM_MISMATCH = 0x11000002
_CRYPTOGRAPHIC = 0x11000001
_FEW = 3


@dataclass(frozen=True)
class Happened:
    """One event of a socket: what (a `zmq.Event`), and the number that libzmq gives with it."""

    event: int
    value: int


@dataclass(frozen=True)
class Trouble:
    """Why a service cannot be spoken to.

    Attributes
    ----------
    text : str
        For people, with what to do.
    sure : bool
        Whether waiting is of no use; a service that is just ending looks much like a stranger.
    """

    text: str
    sure: bool


class Monitor:
    """The events of one socket.

    Parameters
    ----------
    context : Context
        Of the socket.
    sock : Socket
    events : int
        Which.

    Attributes
    ----------
    socket : Socket
        To be polled: readable when something happened.
    """

    def __init__(self, context: zmq.Context, sock: zmq.Socket, events: int) -> None:
        address = f"inproc://monitor-{uuid.uuid4().hex}"
        self._sock = sock
        sock.monitor(address, events)
        self.socket: zmq.Socket = context.socket(zmq.PAIR)
        # Unbounded: libzmq's I/O thread waits for a full monitor, and closing the socket for that thread.
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(address)

    def happened(self, most: int = 1000) -> Iterator[Happened]:
        """What has happened since, at most so much."""
        for _ in range(most):
            try:
                message = parse_monitor_message(self.socket.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return
            yield Happened(int(message["event"]), int(message["value"]))

    def close(self) -> None:
        """Close it, before the socket itself."""
        if not self._sock.closed:
            self._sock.disable_monitor()
        self.socket.close(linger=0)


class Dial:
    """How dialling an address goes, from the events of the dialling socket.

    Attributes
    ----------
    up : bool
        A connection stands.
    given_up : bool
        libzmq will not try again by itself: it does not after a refusal, nor after bytes that are no ZMTP.
    """

    def __init__(self, address: str, key: Pass | None) -> None:
        self.up = False
        self.given_up = False
        self._address = address
        self._key = key
        self._failures = 0
        self._failed = False

    def again(self) -> None:
        """It is dialled anew."""
        self.up = self.given_up = False

    def take(self, happened: Happened) -> Trouble | None:
        """Note an event; what is wrong, if it tells."""
        event = happened.event
        if event == zmq.Event.HANDSHAKE_SUCCEEDED:
            self.up, self.given_up, self._failures = True, False, 0
        elif event == zmq.Event.CONNECTED:
            self.given_up = self._failed = False
        elif event == zmq.Event.CONNECT_RETRIED:
            self.given_up = False
        elif event == zmq.Event.DISCONNECTED:
            silent = not self.up and not self._failed
            self.up, self.given_up = False, True
            if silent:
                return self._failure(Happened(_NO_DETAIL, errno.EPIPE))
        elif event & FAILED:
            self._failed = True
            return self._failure(happened)
        return None

    def _failure(self, happened: Happened) -> Trouble:
        self._failures += 1
        text, sure = self._explain(happened)
        return Trouble(f"{text} (at {self._address})", sure or self._failures >= _FEW)

    def _explain(self, happened: Happened) -> tuple[str, bool]:
        key = self._key
        if happened.event == _AUTH:
            who = f"the key {key.name!r} (role {key.role})" if key else "this process"
            return (
                f"the service does not let in {who}: it is not on its allow-list, was revoked, or "
                "is of another role than this socket asks for. On the service's machine "
                "`inscan keys list` shows who is let in, `inscan keys new` lets somebody in",
                True,
            )
        if happened.event == _PROTOCOL and happened.value == _MECHANISM_MISMATCH:
            return (_NOT_ENCRYPTED if key else _CLOSED), True
        if happened.event == _PROTOCOL:
            return "what listens there speaks no protocol of inscan: is the port right?", True
        if happened.value in (errno.EAGAIN, errno.ETIMEDOUT):
            return "what listens there says nothing: another program, or one that is stopped", False
        # A service that cannot read what we encrypted for another key just hangs up.
        return (_OTHER_KEY.format(key.name) if key else _HANGS_UP), False


_CLOSED = (
    "the service lets in nobody without a key: name a pass file in INSCAN_PASS; on the service's "
    "machine `inscan keys new NAME --role client` makes one (role worker for `inscan worker`)"
)
_NOT_ENCRYPTED = (
    "what listens there does not encrypt, and a pass was given: is it the service of that pass? "
    "For a service on this machine that asks for no key, unset INSCAN_PASS"
)
_OTHER_KEY = (
    "what listens there hangs up while the connection is made: probably it has another key than "
    "the pass {!r} says; have a new one made with `inscan keys new` on the service's machine"
)
_HANGS_UP = (
    "what listens there hangs up while the connection is made: either it asks for a key "
    "(name a pass file in INSCAN_PASS), or it is no inscan service"
)


def refusal(happened: Happened) -> str:
    """Why a service did not let somebody in, in a few words for a table."""
    if happened.event == _AUTH:
        return "keys not allowed"
    if happened.event == _PROTOCOL and happened.value == _MECHANISM_MISMATCH:
        return "not encrypted"
    if happened.event == _PROTOCOL and happened.value == _CRYPTOGRAPHIC:
        return "other server key"
    if happened.event == _PROTOCOL:
        return "no ZMTP"
    return "broken off"
