"""Arrays and results to and from workers that do not share files with the service: the worker's
end."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from inscan.callbacks.link import Link
from inscan.callbacks.wire import Message
from inscan.service.messages import ArraySpec, InferenceJob, Notice

CHUNK = 1 << 20
CREDITS = 8
"""Chunks under way at once: enough to fill the line, few enough to stay in the caches."""
_SILENCE_S = 30.0


class TransferError(OSError):
    """The spool server refused, fell silent, or sent something damaged."""


def fetch(address: str, job: InferenceJob, moved: Callable[[], None]) -> dict[str, np.ndarray]:
    """Pull the arrays of a job into memory.

    Parameters
    ----------
    moved : callable
        Called after every chunk; may raise to give up.

    Raises
    ------
    TransferError
        When the server refuses, falls silent, or sends what was not asked for.
    """
    link = Link()
    try:
        link.connect(address)
        return {name: _fetch_one(link, job, spec, moved) for name, spec in job.arrays.items()}
    finally:
        link.close()


def put(address: str, job: InferenceJob, path: Path, moved: Callable[[], None]) -> None:
    """Bring a result file to the service, which syncs it and gives it its name when it is whole.

    Raises
    ------
    TransferError
        When the server refuses or falls silent.
    """
    size = path.stat().st_size
    link = Link()
    try:
        link.connect(address)
        with path.open("rb") as file:

            def send(index: int) -> bool:
                file.seek(index * CHUNK)
                data = file.read(CHUNK)
                header = {
                    "key": job.key,
                    "fence": job.fence,
                    "offset": index * CHUNK,
                    "size": size,
                }
                return link.send("PUT", header, data)

            _pump(
                link,
                math.ceil(size / CHUNK),
                send,
                lambda message: _index(message, "STORED"),
                moved,
            )
        finish = {"key": job.key, "fence": job.fence, "size": size}
        _pump(
            link, 1, lambda _: link.send("FINISH", finish), lambda m: _expect(m, "FINISHED"), moved
        )
    finally:
        link.close()


def _fetch_one(
    link: Link, job: InferenceJob, spec: ArraySpec, moved: Callable[[], None]
) -> np.ndarray:
    array = np.empty(spec.shape, np.dtype(spec.dtype))
    flat = array.reshape(-1).view(np.uint8)
    folder = Path(job.spool).name

    def ask(index: int) -> bool:
        size = min(CHUNK, spec.nbytes - index * CHUNK)
        return link.send(
            "FETCH", {"run": folder, "file": spec.file, "offset": index * CHUNK, "size": size}
        )

    def take(message: Message) -> int:
        index = _index(message, "CHUNK")
        data = message.chunks[0]
        expected = min(CHUNK, spec.nbytes - index * CHUNK)
        if len(data) != expected:
            raise TransferError(f"{spec.file}: chunk {index} has {len(data)} bytes, not {expected}")
        flat[index * CHUNK : index * CHUNK + expected] = np.frombuffer(data, np.uint8)
        return index

    _pump(link, math.ceil(spec.nbytes / CHUNK), ask, take, moved)
    return array


def _pump(
    link: Link,
    count: int,
    send: Callable[[int], bool],
    take: Callable[[Message], int],
    moved: Callable[[], None],
) -> None:
    """Keep `CREDITS` requests under way until all `count` are answered."""
    waiting = list(range(count - 1, -1, -1))
    open_: set[int] = set()
    heard = time.monotonic()
    while waiting or open_:
        while waiting and len(open_) < CREDITS and send(waiting[-1]):
            open_.add(waiting.pop())
        # Until the connection stands, sending says no and nothing will wake us: look again soon.
        link.wait(1.0 if open_ else 0.02)
        for message in link.messages():
            if message.kind == "ERR":
                raise TransferError(Notice.model_validate(message.header).message)
            index = take(message)
            if index in open_:
                open_.remove(index)
                heard = time.monotonic()
                moved()
        if time.monotonic() - heard > _SILENCE_S:
            raise TransferError(f"the spool server was silent for {_SILENCE_S:g} s")


def _index(message: Message, kind: str) -> int:
    _expect(message, kind)
    offset = message.header.get("offset")
    if not isinstance(offset, int) or offset < 0 or offset % CHUNK:
        raise TransferError(f"{kind} with offset {offset!r}")
    return offset // CHUNK


def _expect(message: Message, kind: str) -> int:
    if message.kind != kind or (kind == "CHUNK" and len(message.chunks) != 1):
        raise TransferError(f"expected {kind}, the spool server sent {message.kind}")
    return 0
