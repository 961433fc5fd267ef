"""A ROUTER that answers whatever comes with harm: a hostile service to clients, a hostile broker to workers."""

import random
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import zmq
from fuzz_messages import Sample, frames, mutated

from inscan.callbacks.wire import WireError, decode_message


class Hostile:
    """The ROUTER, in a thread of its own from the moment it is made.

    Parameters
    ----------
    samples : sequence of Sample
        What it answers with, mutated four times out of five.
    seed : int

    Attributes
    ----------
    address : str
        Where it listens, ``HOST:PORT``.
    counts : Counter
        Messages it got and sent, by kind where they were right.
    """

    def __init__(self, samples: Sequence[Sample], seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self._samples = samples
        self._random = random.Random(seed)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, 200)
        port = self._socket.bind_to_random_port("tcp://127.0.0.1")
        self.address = f"127.0.0.1:{port}"
        self._known: set[bytes] = set()
        self._run = "run"
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="hostile")
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._stopping.set()
        self._thread.join()
        self._context.term()

    def _serve(self) -> None:
        while not self._stopping.is_set():
            if self._socket.poll(20):
                identity, *rest = self._socket.recv_multipart()
                self._known.add(identity)
                self._take(rest)
                self._answer(identity, self._random.choice((1, 1, 3, 20)))
            elif self._known and self._random.random() < 0.5:
                self._answer(self._random.choice(list(self._known)), 1)
        self._socket.close()

    def _take(self, rest: list[bytes]) -> None:
        try:
            message = decode_message(rest)
        except WireError:
            self.counts["not understood"] += 1
            return
        self.counts["got"] += 1
        self._run = str(message.header.get("run", self._run))

    def _answer(self, identity: bytes, times: int) -> None:
        for _ in range(times):
            sample = self._random.choice(self._samples)
            if "run" in sample.header and self._random.random() < 0.8:
                places = {name: self._random.randrange(-10, 5000) for name in ("offset", "placed")}
                known = {name: places.get(name, value) for name, value in sample.header.items()}
                sample = replace(sample, header={**known, "run": self._run})
            right = self._random.random() < 0.2
            self._socket.send_multipart(
                [identity, *(frames(sample) if right else mutated(sample, self._random))]
            )
            self.counts["sent right" if right else "sent"] += 1
