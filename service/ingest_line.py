"""The socket of ingest: who is not there is not waited for."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import zmq

from inscan.callbacks.wire import MAX_DOCUMENT_BYTES, Buffer, encode_message, in_version_of
from inscan.service.gate import Gate
from inscan.service.sockets import Router


class Line:
    """One ROUTER socket, for one thread.

    Parameters
    ----------
    counts : Counter
        ``unsent``: messages to clients that had gone; ``cut``: messages of clients whose key was revoked.
    gate : Gate or None
        Who may speak to it; None for every process of this machine.
    """

    def __init__(self, counts: Counter[str], gate: Gate | None = None) -> None:
        self.router = Router(
            "ingest", max_message=MAX_DOCUMENT_BYTES + 2**20, gate=gate, counts=counts
        )
        self.socket: zmq.Socket | None = None

    def bind(self, address: str) -> str:
        """Listen; returns the address with the real port. OSError when that cannot be."""
        bound = self.router.bind(address)
        self.socket = self.router.socket
        return bound

    def received(self, most: int) -> Iterator[list[bytes]]:
        """Yield what has come, at most so many messages."""
        return self.router.received(most)

    def send(self, identity: bytes, kind: str, header: Mapping[str, Any], *chunks: Buffer) -> None:
        """Send if the client is there; whatever is lost is asked for again."""
        self.router.send([identity, *encode_message(kind, header, *chunks)])

    def refuse(self, identity: bytes, theirs: list[bytes], why: str) -> None:
        """Tell a client of another protocol, in its own, why nothing comes of it."""
        answer = encode_message("ERR", {"code": "protocol", "message": why})
        self.router.send([identity, *in_version_of(theirs, answer)])

    def close(self) -> None:
        """Close the socket, if there is one."""
        self.socket = None
        self.router.close()
