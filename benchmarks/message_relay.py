"""Stands between inscan's sockets and loses, repeats or swaps whole messages, one by one, by their kind.

Each peer that dials has a connection of its own to the other side, so both sides see what they would see without it.
"""

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import zmq

Direction = Literal["up", "down"]
"""Up: from who dials to who listens."""
Deed = Literal["pass", "drop", "twice", "swap"]
Judge = Callable[[Direction, str, int], Deed]
"""(direction, kind, how many of that kind have come that way before) -> what is done to the message."""


@dataclass
class _Peer:
    back: zmq.Socket
    held: dict[Direction, list[bytes]] = field(default_factory=dict)


class MessageRelay:
    """The relay, running in a thread of its own from the moment it is made.

    Parameters
    ----------
    target : str
        ZeroMQ address of the ROUTER behind it.
    judge : callable
        See `Judge`; called in the relay's thread.

    Attributes
    ----------
    address : str
        ZeroMQ address to dial instead of the target.
    seen : Counter
        (direction, kind) -> messages.
    done : Counter
        (direction, kind, deed) -> messages to which something was done.
    """

    def __init__(self, target: str, judge: Judge) -> None:
        self.judge = judge
        self.seen: Counter[tuple[Direction, str]] = Counter()
        self.done: Counter[tuple[Direction, str, Deed]] = Counter()
        self._target = target
        self._context = zmq.Context()
        self._front = self._context.socket(zmq.ROUTER)
        self._front.setsockopt(zmq.LINGER, 0)
        port = self._front.bind_to_random_port("tcp://127.0.0.1")
        self.address = f"tcp://127.0.0.1:{port}"
        self._peers: dict[bytes, _Peer] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="message-relay")
        self._thread.start()

    def stop(self) -> None:
        """End the relay and its thread."""
        self._stopping.set()
        self._thread.join()
        self._context.term()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._front, zmq.POLLIN)
        while not self._stopping.is_set():
            ready = {source for source, _ in poller.poll(20)}
            if self._front in ready:
                identity, *frames = self._front.recv_multipart()
                peer = self._peers.get(identity)
                if peer is None:
                    peer = self._peers[identity] = _Peer(self._dial())
                    poller.register(peer.back, zmq.POLLIN)
                self._carry("up", peer, frames, peer.back.send_multipart)
            for identity, peer in self._peers.items():
                if peer.back in ready:
                    self._carry(
                        "down",
                        peer,
                        peer.back.recv_multipart(),
                        lambda frames, to=identity: self._front.send_multipart([to, *frames]),
                    )
        for peer in self._peers.values():
            peer.back.close(linger=0)
        self._front.close(linger=0)

    def _dial(self) -> zmq.Socket:
        back = self._context.socket(zmq.DEALER)
        back.setsockopt(zmq.LINGER, 0)
        back.connect(self._target)
        return back

    def _carry(
        self,
        direction: Direction,
        peer: _Peer,
        frames: list[bytes],
        send: Callable[[list[bytes]], object],
    ) -> None:
        kind = frames[2].decode("ascii", "replace") if len(frames) > 2 else "?"
        deed = self.judge(direction, kind, self.seen[direction, kind])
        self.seen[direction, kind] += 1
        if deed != "pass":
            self.done[direction, kind, deed] += 1
        if deed == "swap" and direction not in peer.held:
            peer.held[direction] = frames
            return
        for _ in range({"drop": 0, "twice": 2}.get(deed, 1)):
            send(frames)
        held = peer.held.pop(direction, None)
        if held is not None:
            send(held)
