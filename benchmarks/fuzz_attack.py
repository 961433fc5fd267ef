"""One attacker in a process of its own: `python fuzz_attack.py KIND HOST:PORT SECONDS SEED LINE`; prints its counts.

Raw bytes, ZMTP's own framing, inscan's messages, floods, and every way of holding a connection and saying nothing.
"""

import json
import random
import resource
import select
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable

import zmq
from fuzz_messages import TO_BROKER, TO_INGEST, TO_SPOOL, Sample, frames, mutated

_GREETING = (
    b"\xff\0\0\0\0\0\0\0\1\x7f\3\1NULL".ljust(32, b"\0") + b"\0" + b"\0" * 31
)  # ZMTP 3.1, mechanism NULL
_SAMPLES = {"ingest": TO_INGEST, "broker": TO_BROKER, "spool": TO_SPOOL}


class Attack:
    """Attacks on one port until a moment; `counts` says what was sent."""

    def __init__(self, target: str, seconds: float, seed: int, name: str) -> None:
        host, _, port = target.rpartition(":")
        self.counts: Counter[str] = Counter()
        self._place = (host, int(port))
        self._end = time.monotonic() + seconds
        self._rng = random.Random(seed)
        self._samples: tuple[Sample, ...] = _SAMPLES.get(name, ())

    def _going(self) -> bool:
        return time.monotonic() < self._end

    def _dial(self) -> socket.socket | None:
        try:
            return socket.create_connection(self._place, timeout=5.0)
        except OSError as error:
            self.counts[f"refused: {type(error).__name__}"] += 1
            return None

    def _send(self, one: socket.socket, data: bytes) -> bool:
        try:
            one.sendall(data)
        except OSError:
            self.counts["cut by the service"] += 1
            return False
        self.counts["pieces"] += 1
        self.counts["bytes"] += len(data)
        return True

    def raw(self) -> None:
        """Random bytes, HTTP and TLS, from the first byte on or behind a good greeting."""
        rng = self._rng
        while self._going():
            one = self._dial()
            if one is None:
                time.sleep(0.1)
                continue
            with one:
                self.counts["connections"] += 1
                if rng.random() < 0.5 and not self._send(one, _GREETING):
                    continue
                for _ in range(rng.randrange(1, 20)):
                    data = rng.choice(
                        (
                            rng.randbytes(rng.choice((1, 10, 1000, 60_000))),
                            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(200),
                            b"\0" * 500,
                            b"\xff" * 500,
                        )
                    )
                    if not self._send(one, data):
                        break

    def framing(self) -> None:
        """A good handshake, then commands and frames that lie about themselves."""
        rng = self._rng
        ready = b"\5READY" + b"\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
        while self._going():
            one = self._dial()
            if one is None:
                time.sleep(0.1)
                continue
            with one:
                self.counts["connections"] += 1
                good = self._send(one, _GREETING + b"\4" + bytes([len(ready)]) + ready)
                for _ in range(rng.randrange(1, 60)):
                    good = good and self._send(one, self._frame())

    def _frame(self) -> bytes:
        rng = self._rng
        body = rng.randbytes(rng.choice((0, 1, 5, 200)))
        message = (
            [bytes(part) for part in mutated(rng.choice(self._samples), rng)]
            if self._samples
            else [body]
        )
        match rng.randrange(9):
            case 0:  # a command that nobody knows, or one of heartbeats with nonsense in it
                name = rng.choice(
                    (b"\4PING", b"\4PONG", b"\5ERROR", b"\5READY", b"\x09SUBSCRIBE", b"\0", b"\xff")
                )
                command = name + body[:200]
                return b"\4" + bytes([len(command) % 256]) + command
            case 1:  # huge sizes
                size = rng.choice((2**63, 2**62, 2**64 - 1, 2**40, 200 * 2**20, 2**31))
                return rng.choice((b"\2", b"\3", b"\6")) + struct.pack(">Q", size) + body
            case 2:  # reserved flags
                return bytes([rng.randrange(8, 256), len(body) % 256]) + body
            case 3:  # a thousand empty parts of one message
                return b"\1\0" * 1000
        data = b""
        for number, part in enumerate(message):
            more = number < len(message) - 1
            long = len(part) > 255
            data += bytes([more | 2 * long]) + (
                struct.pack(">Q", len(part)) if long else bytes([len(part)])
            )
            data += part
        return data

    def messages(self) -> None:
        """Mutations of every kind of message, by a proper socket."""
        self._through_zmq(lambda: mutated(self._rng.choice(self._samples), self._rng), 200)

    def flood(self) -> None:
        """As many tiny messages as one connection carries."""
        tiny = frames(Sample("PING" if self._samples is TO_INGEST else "HB", {}))
        self._through_zmq(lambda: tiny, 10**9)

    def big(self) -> None:
        """Messages of 4 MB, as fast as they are taken; random, so that nothing in them is right but the checksum."""
        chunk = self._rng.randbytes(4 << 20 if self._samples is TO_INGEST else 1 << 20)
        header = {"run": "big", "offset": 7, "next": 9}
        message = frames(Sample("DOC", header, (chunk,)))
        self._through_zmq(lambda: message, 10**9)

    def _through_zmq(self, make: Callable[[], list[bytes]], each: int) -> None:
        context = zmq.Context()
        while self._going():
            sock = context.socket(zmq.DEALER)
            sock.setsockopt(zmq.LINGER, 0)
            sock.setsockopt(zmq.SNDHWM, 1000)
            sock.connect(f"tcp://{self._place[0]}:{self._place[1]}")
            self.counts["connections"] += 1
            for _ in range(each):
                if not self._going():
                    break
                if sock.poll(200, zmq.POLLOUT):
                    message = make()
                    sock.send_multipart(message)
                    self.counts["messages"] += 1
                    self.counts["bytes"] += sum(map(len, message))
                while self.counts["messages"] % 16 == 0 and sock.poll(0):
                    sock.recv_multipart()
                    self.counts["answers"] += 1
            sock.close()
        context.term()

    def loris(self) -> None:
        """Three hundred handshakes at one byte a second."""
        ends: dict[socket.socket, int] = {}
        while self._going():
            while len(ends) < 300 and (one := self._dial()) is not None:
                ends[one] = 0
                self.counts["connections"] += 1
            for one, sent in list(ends.items()):
                byte = _GREETING[sent : sent + 1] if sent < len(_GREETING) else b"\0"
                if self._send(one, byte):
                    ends[one] = sent + 1
                else:
                    one.close()
                    del ends[one]
            time.sleep(1.0)
        for one in ends:
            one.close()

    def idle(self) -> None:
        """Five thousand connections that say nothing; those that are dropped are made again."""
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 20_000), hard))
        ends: set[socket.socket] = set()
        poll = select.poll()
        while self._going():
            while (
                len(ends) < min(5000, hard - 100)
                and self._going()
                and (one := self._dial()) is not None
            ):
                ends.add(one)
                poll.register(one, select.POLLIN)
                self.counts["connections"] += 1
            self.counts["most at once"] = max(self.counts["most at once"], len(ends))
            gone = {number for number, _ in poll.poll(100)}
            for one in [one for one in ends if one.fileno() in gone]:
                try:
                    over = not one.recv(4096)
                except OSError:
                    over = True
                if over:
                    poll.unregister(one)
                    ends.discard(one)
                    one.close()
        for one in ends:
            one.close()

    def storm(self) -> None:
        """Connect and leave, some after a greeting, some with a reset."""
        while self._going():
            one = self._dial()
            if one is None:
                time.sleep(0.02)
                continue
            self.counts["connections"] += 1
            if self._rng.random() < 0.3:
                self._send(one, _GREETING[: self._rng.randrange(64)])
            if self._rng.random() < 0.3:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            one.close()


def main() -> None:
    kind, target, seconds, seed = sys.argv[1:5]
    attack = Attack(target, float(seconds), int(seed), sys.argv[5] if len(sys.argv) > 5 else "")
    known = {
        "raw": attack.raw,
        "framing": attack.framing,
        "messages": attack.messages,
        "flood": attack.flood,
        "big": attack.big,
        "loris": attack.loris,
        "idle": attack.idle,
        "storm": attack.storm,
    }
    known[kind]()
    print(json.dumps(attack.counts))


if __name__ == "__main__":
    main()
