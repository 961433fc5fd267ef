"""A TCP proxy that does to a line what networks do: delay, little width, cuts, silence, damage, lost ends.

Bytes of one direction keep their order, as TCP promises; everything else may happen to them.
"""

import asyncio
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

BLOCK = 1 << 16
_ROOM = 64  # blocks that may be under way in one direction

Direction = Literal["up", "down"]
"""Up: from who dials to who listens."""


@dataclass
class Line:
    """What is done to the bytes; may be changed at any moment.

    Attributes
    ----------
    delay_s : float
        From the arrival of a block to its departure.
    rate : float or None
        Bytes per second in each direction of each connection.
    flip_every : float or None
        Mean number of bytes between flipped bits.
    truncate : float
        Probability that a block loses its end, and the connection with it.
    damaged : set of str
        Directions in which bits are flipped and ends are lost.
    swallow : bool
        Whatever comes is taken and forgotten, and nobody is told: an end that is gone without a word.
    hold : bool
        Nothing passes, and everything passes afterwards: a link that is down for a while.
    refuse : bool
        Whoever dials is sent away at once.
    """

    delay_s: float = 0.0
    rate: float | None = None
    flip_every: float | None = None
    truncate: float = 0.0
    damaged: set[Direction] = field(default_factory=lambda: {"up", "down"})
    swallow: bool = False
    hold: bool = False
    refuse: bool = False


class TcpProxy:
    """The proxy, running in a thread of its own from the moment it is made.

    Parameters
    ----------
    target : str
        Where bytes go: ``tcp://HOST:PORT``, ``http://HOST:PORT`` or ``HOST:PORT``.
    line : Line
    seed : int
        Of the damage.
    host : str
        Address of this machine to listen at.

    Attributes
    ----------
    address : str
        ``HOST:PORT`` to dial instead of the target.
    counts : Counter
        ``connections``, ``cut``, ``flipped`` (bits), ``truncated`` (connections), ``up`` and ``down`` (bytes passed).
    """

    def __init__(
        self, target: str, line: Line | None = None, *, seed: int = 1, host: str = "127.0.0.1"
    ) -> None:
        self._host = host
        there, _, port = target.rpartition("://")[2].rstrip("/").rpartition(":")
        self.line = line or Line()
        self.counts: Counter[str] = Counter()
        self.address = ""
        self._target = (there, int(port))
        self._random = random.Random(seed)
        self._ends: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tcp-proxy")
        self._thread.start()
        self._ready.wait()

    def retarget(self, target: str) -> None:
        """Send later connections elsewhere: the service has started again on another port."""
        host, _, port = target.rpartition("://")[2].rstrip("/").rpartition(":")
        self._target = (host, int(port))

    def cut(self) -> None:
        """End all present connections at once."""
        self._loop.call_soon_threadsafe(self._cut)

    def stop(self) -> None:
        """End the proxy and its thread."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accept, self._host, 0, backlog=1024)
        host, port = server.sockets[0].getsockname()
        self.address = f"{host}:{port}"
        self._ready.set()
        await self._stopping.wait()
        server.close()
        self._cut()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _cut(self) -> None:
        self.counts["cut"] += len(self._ends) // 2
        for end in list(self._ends):
            end.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.counts["connections"] += 1
        there: asyncio.StreamWriter | None = None
        try:
            if self.line.refuse:
                return
            back, there = await asyncio.open_connection(*self._target, limit=BLOCK)
            self._ends |= {writer, there}
            await asyncio.gather(
                self._direction("up", reader, there), self._direction("down", back, writer)
            )
        except OSError:
            return  # one end is gone, so is the other
        finally:
            for end in (writer, there):
                if end is not None:
                    self._ends.discard(end)
                    end.transport.abort()

    async def _direction(
        self, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_ROOM)
        passing = asyncio.create_task(self._pass(direction, under_way, writer))
        try:
            while data := await reader.read(BLOCK):
                if self.line.swallow:
                    continue
                put = asyncio.create_task(
                    under_way.put((time.monotonic() + self.line.delay_s, data))
                )
                await asyncio.wait({put, passing}, return_when=asyncio.FIRST_COMPLETED)
                if passing.done():
                    put.cancel()
                    break
            if not passing.done() and not self.line.swallow:
                await under_way.put((0.0, b""))
                await passing
        finally:
            passing.cancel()
            self._end(writer)
        await asyncio.gather(passing, return_exceptions=True)

    def _end(self, writer: asyncio.StreamWriter) -> None:
        if not self.line.swallow:
            writer.transport.abort()

    async def _pass(
        self,
        direction: Direction,
        under_way: "asyncio.Queue[tuple[float, bytes]]",
        writer: asyncio.StreamWriter,
    ) -> None:
        to_flip = self._gap()
        while True:
            due, data = await under_way.get()
            if not data:
                return
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            while self.line.hold:
                await asyncio.sleep(0.02)
            if self.line.rate:
                await asyncio.sleep(len(data) / self.line.rate)
            whole = True
            if direction in self.line.damaged:
                if self.line.flip_every:
                    data, to_flip = self._flip(data, to_flip)
                if self._random.random() < self.line.truncate:
                    data, whole = data[: self._random.randrange(len(data))], False
            writer.write(data)
            await writer.drain()
            self.counts[direction] += len(data)
            if not whole:
                self.counts["truncated"] += 1
                return

    def _gap(self) -> int:
        every = self.line.flip_every
        return 0 if not every else int(self._random.expovariate(1 / every))

    def _flip(self, data: bytes, to_flip: int) -> tuple[bytes, int]:
        changed = bytearray(data)
        while to_flip < len(changed):
            changed[to_flip] ^= 1 << self._random.randrange(8)
            self.counts["flipped"] += 1
            to_flip += 1 + self._gap()
        return bytes(changed), to_flip - len(changed)
