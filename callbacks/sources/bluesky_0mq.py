"""Documents of `bluesky.callbacks.zmq.Publisher`, through a proxy or directly.

One message is ``prefix name document``, parted by spaces. The document is read as JSON, msgpack or
inscan's codec; bluesky's default, pickle, is counted and never read. PUB sockets drop in silence
what they cannot deliver. A thread that does nothing but receive keeps that rare, a probe through the
proxy tells when nothing is dropped for want of a connection, and what is missing all the same is
found by the gaps it leaves in the run.
"""

import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from inscan.callbacks.legible import legible
from inscan.callbacks.sources.decode import Arrays, DecodeError, check_document, decode_document
from inscan.callbacks.sources.interface import Sink, SourceError
from inscan.callbacks.wire import MAX_DOCUMENT_BYTES, WireError, pack

__all__ = ["PROBE", "ZMQSource", "serialize"]

logger = logging.getLogger(__name__)

PROBE = "bulk_events"
"""A document of this name and no content is a probe. The name is one of bluesky's, so that it hurts no
other subscriber, and has been out of use for years, so that it is nobody's document."""

_HIGH_WATER = 10_000
_WAITING_BYTES = 512 * 2**20
_PROBE_S = 0.1
_BATCH = 1000  # messages between looks at anything else
_LINKED = zmq.EVENT_HANDSHAKE_SUCCEEDED
_REFUSED = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


def serialize(doc: Mapping[str, Any]) -> bytes:
    """Serializer for `bluesky.callbacks.zmq.Publisher` that keeps arrays, and never raises into a scan.

    What is no plain data goes as its text.
    """
    try:
        return pack(doc)
    except WireError:
        return pack(legible(doc))


class ZMQSource:
    """Documents that RunEngines publish over 0MQ.

    Parameters
    ----------
    address : str
        Where a proxy sends (its out address), such as ``tcp://127.0.0.1:5578``; with ``bind``, where
        publishers are to connect.
    prefix : bytes
        Take only messages with this prefix; empty takes all.
    probe_address : str, optional
        Where the proxy receives (its in address). An empty document is then sent through it until it
        comes back: only that proves that the first real document will arrive.
    bind : bool
        Take the proxy's place.

    Attributes
    ----------
    label, ready, counts
        See `inscan.callbacks.sources.interface.Source`. Counted are ``documents``, ``garbage``,
        ``probes``, ``overrun`` (dropped here, because they came faster than they could be
        written), ``disconnects`` and ``refused peers``.
    address : str
        With ``bind``, the real port once `run` listens.
    last_garbage : str
        Why the last message was refused.

    Raises
    ------
    ValueError
        For an address or prefix that is none.
    """

    def __init__(
        self,
        address: str,
        *,
        prefix: bytes = b"",
        probe_address: str | None = None,
        bind: bool = False,
    ) -> None:
        if b" " in prefix:
            raise ValueError(
                f"0MQ prefix {prefix!r}: no spaces, they part prefix, name and document"
            )
        if bind and probe_address is not None:
            raise ValueError("there is no proxy to probe when this source takes its place")
        self.address = _address(address)
        self.label = f"0MQ {self.address}" + (f" prefix {prefix.decode()}" if prefix else "")
        self.ready = threading.Event()
        self.counts: Counter[str] = Counter()
        self.last_garbage = ""
        self._prefix = prefix
        self._bind = bind
        self._probe_address = None if probe_address is None else _address(probe_address)
        self._arrays = Arrays()
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._more = threading.Condition()
        self._error: Exception | None = None

    def run(self, sink: Sink, stop: threading.Event) -> None:
        """Receive until told to stop, then hand on what has arrived; see `Source`.

        Raises
        ------
        SourceError
            When the address cannot be listened at. A proxy that is not there is waited for.
        """
        wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        receiver = threading.Thread(target=self._receive, args=(wake,), name="inscan-0mq")
        self._error = None
        receiver.start()
        try:
            while not stop.is_set() and self._error is None:
                self._hand_on(sink, 0.1)
        finally:
            os.eventfd_write(wake, 1)
            receiver.join()
            os.close(wake)
            self.ready.clear()
        self._hand_on(sink, 0.0)
        if self._error is not None:
            raise self._error

    def _hand_on(self, sink: Sink, patience: float) -> None:
        with self._more:
            if not self._waiting and patience:
                self._more.wait(patience)
            messages, self._waiting = self._waiting, deque()
        for message in messages:
            self._message(message, sink)
            with self._more:
                self._bytes -= len(message)

    def _message(self, message: bytes, sink: Sink) -> None:
        parts = message.split(b" ", 2)
        try:
            if len(parts) != 3:
                raise DecodeError("not of the form `prefix name document`")
            prefix, name, data = parts
            if self._prefix and prefix != self._prefix:
                self.counts["other prefix"] += 1
                return
            if name == PROBE.encode() and len(data) < 64:
                self.counts["probes"] += 1
                return
            doc = decode_document(data, self.counts)
            kind = name[:40].decode("ascii", "replace")
            check_document(kind, doc)
            sink(*self._arrays(kind, doc))
        except DecodeError as error:
            self.counts["garbage"] += 1
            self.last_garbage = str(error)
            if self.counts["garbage"] == 1:
                logger.warning(
                    "%s: a message is no document (%s); more are counted", self.label, error
                )
            return
        self.counts["documents"] += 1

    # The receiving thread.

    def _receive(self, wake: int) -> None:
        context = zmq.Context()
        try:
            sub, monitor = self._subscribe(context)
            probe = self._prober(context)
            self._pump(sub, monitor, probe, wake)
        except (zmq.ZMQError, OSError) as error:
            self._error = SourceError(f"{self.label}: {error}")
            with self._more:
                self._more.notify()
        finally:
            context.destroy(linger=0)

    def _subscribe(self, context: zmq.Context) -> tuple[zmq.Socket, zmq.Socket]:
        sub = context.socket(zmq.SUB)
        sub.setsockopt(zmq.LINGER, 0)
        sub.setsockopt(zmq.RCVHWM, _HIGH_WATER)
        sub.setsockopt(zmq.MAXMSGSIZE, MAX_DOCUMENT_BYTES + 2**10)
        sub.setsockopt(zmq.RECONNECT_IVL, 50)
        sub.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        sub.setsockopt(zmq.HEARTBEAT_IVL, 3000)
        sub.setsockopt(zmq.HEARTBEAT_TIMEOUT, 10000)
        # A prefix "a" as topic would let "ab" through, hence the space.
        sub.setsockopt(zmq.SUBSCRIBE, self._prefix + b" " if self._prefix else b"")
        monitor = sub.get_monitor_socket(_LINKED | _REFUSED | zmq.EVENT_DISCONNECTED)
        if not self._bind:
            sub.connect(self.address)
            return sub, monitor
        try:
            sub.bind(self.address)
        except zmq.ZMQError as error:
            monitor.close(linger=0)
            sub.close(linger=0)
            raise SourceError(f"cannot listen at {self.address}: {error}") from error
        self.address = sub.getsockopt_string(zmq.LAST_ENDPOINT)
        self.ready.set()
        return sub, monitor

    def _prober(self, context: zmq.Context) -> zmq.Socket | None:
        if self._probe_address is None:
            return None
        probe = context.socket(zmq.PUB)
        probe.setsockopt(zmq.LINGER, 0)
        probe.setsockopt(zmq.RECONNECT_IVL, 50)
        probe.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        probe.connect(self._probe_address)
        return probe

    def _pump(
        self, sub: zmq.Socket, monitor: zmq.Socket, probe: zmq.Socket | None, wake: int
    ) -> None:
        poller = zmq.Poller()
        for source in (sub, monitor, wake):
            poller.register(source, zmq.POLLIN)
        probed = -1e9
        while True:
            probing = probe is not None and not self.ready.is_set()
            if probe is not None and probing and time.monotonic() - probed >= _PROBE_S:
                probed = time.monotonic()
                probe.send(b" ".join([self._prefix, PROBE.encode(), b"{}"]))
            found = dict(poller.poll(round(_PROBE_S * 1000) if probing else None))
            if wake in found:
                self._drain(sub)
                return
            if sub in found and self._drain(sub) and probe is not None:
                self.ready.set()  # whatever came through the proxy proves it as well as a probe
            if monitor in found:
                self._link(recv_monitor_message(monitor)["event"], probe is not None)

    def _drain(self, sub: zmq.Socket) -> bool:
        arrived = False
        try:
            for _ in range(_BATCH):
                frames = sub.recv_multipart(zmq.NOBLOCK)
                arrived = True
                self._keep(frames[0] if len(frames) == 1 else b"")
        except zmq.Again:
            pass
        return arrived

    def _keep(self, message: bytes) -> None:
        with self._more:
            if self._bytes and self._bytes + len(message) > _WAITING_BYTES:
                self.counts["overrun"] += 1
                return
            self._waiting.append(message)
            self._bytes += len(message)
            self._more.notify()

    def _link(self, event: int, probed: bool) -> None:
        if event & _REFUSED:
            self.counts["refused peers"] += 1
        elif self._bind:
            return  # publishers come and go
        elif event == _LINKED:
            # The subscription travels behind the handshake; without a probe that is all there is to see.
            if not probed:
                self.ready.set()
        else:
            self.ready.clear()
            self.counts["disconnects"] += 1
            logger.warning("%s: the proxy is gone; waiting for it", self.label)


def _address(address: str) -> str:
    """``HOST:PORT`` as bluesky writes it, or with ``tcp://`` or ``ipc://`` before it."""
    text = address if "://" in address else f"tcp://{address}"
    scheme, _, rest = text.partition("://")
    host, _, port = rest.rpartition(":")
    if scheme == "ipc" and rest:
        return text
    if scheme != "tcp" or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(
            f"{address!r} is no 0MQ address: write tcp://HOST:PORT or ipc:///path/socket"
        )
    return text
