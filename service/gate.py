"""The gate of a listening socket: CURVE, and who may pass.

A connection is asked for its key when it is made (ZAP), and each of its messages carries that key: a key that was
revoked since, or never had the right role, is cut at its next message.
"""

import logging
from collections import Counter
from collections.abc import Awaitable

import zmq
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils import z85

from inscan.service.keys import OPENS, Keyring, ServerPair

_MOST_TOLD = 1000
_log = logging.getLogger(__name__)


class Gate:
    """Closes one socket to all who are not on the allow-list.

    Parameters
    ----------
    keyring : Keyring
    pair : ServerPair
        The service's own.
    name : str
        Of the socket: `ingest`, `broker` or `spool`; its ZAP domain.

    Attributes
    ----------
    counts : Counter
        ``admitted`` and ``refused`` handshakes.
    """

    def __init__(self, keyring: Keyring, pair: ServerPair, name: str) -> None:
        self.counts: Counter[str] = Counter()
        self.name = name
        self._keyring = keyring
        self._pair = pair
        self._authenticator: _Authenticator | None = None

    def close_off(self, context: zmq.Context, sock: zmq.Socket) -> None:
        """Set up a socket of a context of its own, before it is bound, and begin to answer for it."""
        sock.setsockopt(zmq.CURVE_SERVER, 1)
        sock.setsockopt(zmq.CURVE_SECRETKEY, self._pair.secret.encode())
        sock.setsockopt(zmq.ZAP_DOMAIN, self.name.encode())
        sock.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        authenticator = _Authenticator(context, self)
        authenticator.start()
        authenticator.configure_curve_callback(self.name, self)
        self._authenticator = authenticator

    @property
    def alive(self) -> bool:
        """Whether its thread answers; without it nobody new comes in."""
        return self._authenticator is not None and self._authenticator.is_alive()

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether a key (Z85) may connect to a domain; called by the authenticator, must not raise."""
        try:
            known = domain == self.name and self.name_of(key.decode("ascii")) is not None
        except Exception:  # noqa: BLE001 - its thread would end, and nobody could connect any more
            _log.exception("defect while a key was looked up; it is refused")
            known = False
        self.counts["admitted" if known else "refused"] += 1
        return known

    def name_of(self, public: str) -> str | None:
        """Name of a key that may speak to this socket now, or None."""
        known = self._keyring.role_of(public)
        return known[0] if known is not None and self.name in OPENS[known[1]] else None

    def stop(self) -> None:
        """End its thread; before the context ends."""
        if self._authenticator is not None:
            self._authenticator.stop()
            self._authenticator = None


class _Authenticator(ThreadAuthenticator):
    """Answers ZAP requests in a thread, and logs who was refused from where."""

    def __init__(self, context: zmq.Context, gate: Gate) -> None:
        super().__init__(context, log=_Quiet)
        self._gate = gate
        self._told: set[tuple[bytes, bytes]] = set()

    async def handle_zap_message(self, msg: list[bytes]) -> None:
        before = self._gate.counts["refused"]
        answer: Awaitable[None] = super().handle_zap_message(msg)
        await answer
        who = (msg[3], msg[-1]) if len(msg) > 6 else None
        if self._gate.counts["refused"] == before or who is None or who in self._told:
            return
        if len(self._told) < _MOST_TOLD:
            self._told.add(who)
            address, key = (
                part.decode("ascii", "replace") for part in (who[0], z85.encode(who[1]))
            )
            _log.warning(
                "%s: refused the key %s of %s: not on the allow-list for it",
                self._gate.name,
                key,
                address,
            )


_Quiet = logging.getLogger(f"{__name__}.zap")
_Quiet.setLevel(logging.CRITICAL)
