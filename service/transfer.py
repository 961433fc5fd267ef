"""Arrays and results to and from workers that do not share files with the service: the worker's
end."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from inscan.callbacks.link import Link
from inscan.callbacks.pass_file import Pass
from inscan.callbacks.wire import Message
from inscan.service.messages import ArraySpec, InferenceJob, Notice

CHUNK = 1 << 20
CREDITS = 8
"""Chunks under way at once: enough to fill the line, few enough to stay in the caches."""
ASK_AGAIN_S = 3.0
"""Without any answer for so long, a request is taken for lost; longer where answers have been slower."""
_SILENCE_S = 30.0


class TransferError(OSError):
    """The spool server refused, fell silent, or sent something damaged."""


def fetch(
    address: str, job: InferenceJob, moved: Callable[[], None], key: Pass | None = None
) -> dict[str, np.ndarray]:
    """Pull the arrays of a job into memory.

    Parameters
    ----------
    moved : callable
        Called after every chunk; may raise to give up.
    key : Pass or None
        What lets this worker in.

    Raises
    ------
    TransferError
        When the server refuses, falls silent, or sends what was not asked for.
    """
    link = Link()
    try:
        link.connect(address, key)
        return {name: _fetch_one(link, job, spec, moved) for name, spec in job.arrays.items()}
    finally:
        link.close()


def put(
    address: str,
    job: InferenceJob,
    path: Path,
    moved: Callable[[], None],
    key: Pass | None = None,
) -> None:
    """Bring a result file to the service, which syncs it and gives it its name when it is whole.

    Raises
    ------
    TransferError
        When the server refuses or falls silent.
    """
    size = path.stat().st_size
    link = Link()
    try:
        link.connect(address, key)
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
                lambda message: _index(message) if message.kind == "STORED" else None,
                moved,
            )
        finish = {"key": job.key, "fence": job.fence, "size": size}
        _pump(
            link,
            1,
            lambda _: link.send("FINISH", finish),
            lambda message: 0 if message.kind == "FINISHED" else None,
            moved,
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

    def take(message: Message) -> int | None:
        # An answer to a question that was asked twice may come when the next array is being read.
        about = message.header.get("run"), message.header.get("file")
        if message.kind != "CHUNK" or len(message.chunks) != 1 or about != (folder, spec.file):
            return None
        index = _index(message)
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
    take: Callable[[Message], int | None],
    moved: Callable[[], None],
) -> None:
    """Keep `CREDITS` requests under way until all `count` are answered.

    What is lost or damaged on the way is asked for again; all requests bear that. Answers come in the order of the
    questions, so one that is overtaken by the answer to a later question is lost.
    """
    waiting = list(range(count - 1, -1, -1))
    open_: dict[int, int] = {}  # question -> its number in the order of asking
    asked, slowest = 0, 0.0
    heard = asked_again = time.monotonic()
    while waiting or open_:
        while waiting and len(open_) < CREDITS and send(waiting[-1]):
            asked += 1
            open_[waiting.pop()] = asked
        # Until the connection stands, sending says no and nothing will wake us: look again soon.
        link.wait(min(1.0, ASK_AGAIN_S) if open_ else 0.02)
        for message in link.messages():
            if message.kind == "ERR":
                raise TransferError(Notice.model_validate(message.header).message)
            index = take(message)
            number = None if index is None else open_.pop(index, None)
            if number is not None:
                slowest = max(slowest, time.monotonic() - heard)
                heard = asked_again = time.monotonic()
                overtaken = sorted(other for other, its in open_.items() if its < number)
                waiting += reversed(overtaken)
                for other in overtaken:
                    del open_[other]
                moved()
        if link.trouble is not None and link.trouble.sure:
            raise TransferError(f"no way to the spool server: {link.trouble.text}")
        now = time.monotonic()
        if now - heard > _SILENCE_S:
            raise TransferError(f"the spool server was silent for {_SILENCE_S:g} s")
        if open_ and now - asked_again > max(ASK_AGAIN_S, 3 * slowest):
            asked_again = now
            # The answer to this one tells what has become of the others.
            waiting.append(min(open_, key=lambda index: open_[index]))
            del open_[waiting[-1]]


def _index(message: Message) -> int:
    offset = message.header.get("offset")
    if not isinstance(offset, int) or offset < 0 or offset % CHUNK:
        raise TransferError(f"{message.kind} with offset {offset!r}")
    return offset // CHUNK
