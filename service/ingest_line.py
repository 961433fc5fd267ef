"""The socket of ingest: who is not there is not waited for."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import zmq

from inscan.callbacks.wire import MAX_DOCUMENT_BYTES, Buffer, encode_message, in_version_of
from inscan.service.sockets import bind_router


class Line:
    """One ROUTER socket, for one thread.

    Parameters
    ----------
    counts : Counter
        ``unsent``: messages to clients that had gone.
    """

    def __init__(self, counts: Counter[str]) -> None:
        self.socket: zmq.Socket | None = None
        self._counts = counts
        self._context: zmq.Context | None = None

    def bind(self, address: str) -> str:
        """Listen; returns the address with the real port. OSError when that cannot be."""
        self._context = zmq.Context()
        try:
            self.socket, bound = bind_router(
                self._context, address, "ingest", max_message=MAX_DOCUMENT_BYTES + 2**20
            )
        except OSError:
            self._context.term()
            raise
        return bound

    def received(self, most: int) -> Iterator[list[bytes]]:
        """Yield what has come, at most so many messages."""
        assert self.socket is not None
        for _ in range(most):
            try:
                yield self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return

    def send(self, identity: bytes, kind: str, header: Mapping[str, Any], *chunks: Buffer) -> None:
        """Send if the client is there; whatever is lost is asked for again."""
        self._send([identity, *encode_message(kind, header, *chunks)])

    def refuse(self, identity: bytes, theirs: list[bytes], why: str) -> None:
        """Tell a client of another protocol, in its own, why nothing comes of it."""
        answer = encode_message("ERR", {"code": "protocol", "message": why})
        self._send([identity, *in_version_of(theirs, answer)])

    def _send(self, frames: list[Buffer]) -> None:
        assert self.socket is not None
        try:
            self.socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            self._counts["unsent"] += 1

    def close(self) -> None:
        """Close the socket, if there is one."""
        if self.socket is not None and self._context is not None:
            self.socket.close(linger=0)
            self._context.term()
