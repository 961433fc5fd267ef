"""The spool server: a thread with a ROUTER socket through which workers of other machines read
arrays and bring results."""

import logging
import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from inscan.callbacks import wire
from inscan.callbacks.wire import DamagedError, Message, WireError
from inscan.service.complaints import Complaints
from inscan.service.gate import Gate
from inscan.service.messages import Notice
from inscan.service.result_file import sync_path
from inscan.service.sockets import Router
from inscan.service.spool import NoDiskSpace, Spool
from inscan.service.transfer import CHUNK

_MAX_MESSAGE = 2 * CHUNK
_BATCH = 64  # messages between looks at whether to stop
_LOOK_MS = 500  # between looks at connections that did not come about
_OPEN_MAPS = 64
_OPEN_PUTS = 64
_log = logging.getLogger(__name__)

PlaceFor = Callable[[str, int], Path | None]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Fetch(_Strict):
    run: str
    file: str = Field(pattern=r"^[A-Za-z0-9_@.-]{1,120}\.npy$")
    offset: int = Field(ge=0)
    size: int = Field(ge=0, le=CHUNK)


class _Put(_Strict):
    key: str = Field(pattern=r"^[0-9a-f]{64}$")
    fence: int = Field(ge=0)
    offset: int = Field(ge=0)
    size: int = Field(gt=0)


class _Finish(_Strict):
    key: str = Field(pattern=r"^[0-9a-f]{64}$")
    fence: int = Field(ge=0)
    size: int = Field(gt=0)


class _Refused(ValueError):
    """A request that is understood and not granted."""


class _Incoming:
    """A result file on its way in: a temporary beside its final name."""

    def __init__(self, place: Path, size: int, spool: Spool) -> None:
        spool.require(place, size)
        self.place = place
        self.size = size
        self.temporary = place.with_name(f".{place.name}.put")
        self.received: set[int] = set()
        self._file = os.open(self.temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)

    def write(self, offset: int, data: memoryview) -> None:
        if offset + len(data) > self.size:
            raise _Refused(f"{offset + len(data)} bytes of a file of {self.size}")
        os.pwrite(self._file, data, offset)
        self.received.add(offset)

    def finish(self) -> None:
        expected = -(-self.size // CHUNK)
        if len(self.received) != expected:
            raise _Refused(f"{len(self.received)} of {expected} chunks have come")
        os.fsync(self._file)
        os.replace(self.temporary, self.place)
        sync_path(self.place.parent)
        os.close(self._file)

    def abandon(self) -> None:
        os.close(self._file)
        self.temporary.unlink(missing_ok=True)


def _is_whole(place: Path, size: int) -> bool:
    try:
        return place.stat().st_size == size
    except FileNotFoundError:
        return False


class SpoolServer:
    """The thread; see the module.

    Parameters
    ----------
    address : str
        Where to listen; port 0 takes any free one.
    spool : Spool
        The only files that are served.
    place_for : callable
        `(key, fence)` -> where that dispatch's result goes, or None when it is over: nothing else
        can be written.
    gate : Gate or None
        Which workers may speak to it; None for all of this machine.
    """

    def __init__(
        self, address: str, spool: Spool, place_for: PlaceFor, gate: Gate | None = None
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._address = address
        self._spool = spool
        self._place_for = place_for
        self._maps: OrderedDict[tuple[str, str], np.ndarray] = OrderedDict()
        self._puts: OrderedDict[tuple[str, int], _Incoming] = OrderedDict()
        self._complaints = Complaints(_log)
        self._stopping = threading.Event()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.router = Router("spool", max_message=_MAX_MESSAGE, gate=gate, counts=self.counts)
        self._thread = threading.Thread(target=self._run, name="spool-server")

    def bind(self) -> str:
        """Listen; returns the address with its real port. OSError when it cannot be had."""
        return self.router.bind(self._address)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and close the socket; half-brought results are dropped."""
        self._stopping.set()
        os.eventfd_write(self._wake, 1)
        if self._thread.ident is not None:
            self._thread.join()
        self.router.close()
        for incoming in self._puts.values():
            incoming.abandon()
        self._puts.clear()
        os.close(self._wake)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive() and self.router.alive

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self.router.socket, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        while not self._stopping.is_set():
            poller.poll(_LOOK_MS)
            try:
                self._turn()
            except Exception:  # noqa: BLE001 - a defect met by one message must not end the service
                self.counts["defects"] += 1
                self._complaints.defect("defect in the spool server; it goes on")

    def _turn(self) -> None:
        for identity, *rest in self.router.received(_BATCH):
            try:
                message = wire.decode_message(rest)
                self._handle(identity, message)
            except DamagedError:
                self.counts["damaged"] += 1
            except (WireError, ValidationError):
                self.counts["garbage"] += 1
            except (_Refused, NoDiskSpace, OSError) as error:
                self.counts["refused"] += 1
                notice = Notice(code="refused", message=str(error)[:4000])
                self._send(identity, "ERR", notice.model_dump(mode="json"))

    def _handle(self, identity: bytes, message: Message) -> None:
        if message.kind == "FETCH":
            self._fetch(identity, _Fetch.model_validate(message.header))
        elif message.kind == "PUT" and len(message.chunks) == 1:
            self._put(identity, _Put.model_validate(message.header), message.chunks[0])
        elif message.kind == "FINISH":
            self._finish(identity, _Finish.model_validate(message.header))
        else:
            raise WireError(f"kind {message.kind!r} is not of this protocol")
        self.counts[message.kind] += 1

    def _fetch(self, identity: bytes, wanted: _Fetch) -> None:
        flat = self._mapped(wanted.run, wanted.file)
        if wanted.offset + wanted.size > flat.size:
            raise _Refused(
                f"{wanted.file}: bytes {wanted.offset} to {wanted.offset + wanted.size} of "
                f"{flat.size}"
            )
        data = flat[wanted.offset : wanted.offset + wanted.size].tobytes()
        # Which file it is of: an answer that comes late must not be taken for a piece of the next array.
        header = {"run": wanted.run, "file": wanted.file, "offset": wanted.offset}
        self._send(identity, "CHUNK", header, data)

    def _mapped(self, run: str, file: str) -> np.ndarray:
        known = self._maps.pop((run, file), None)
        if known is None:
            folder = self._spool.folder(run)
            if folder is None:
                raise _Refused(f"there is no spool folder {run!r}")
            try:
                array = np.load(folder / file, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                raise _Refused(f"{run}/{file} cannot be served: {error}") from error
            known = array.reshape(-1).view(np.uint8)
        self._maps[run, file] = known
        while len(self._maps) > _OPEN_MAPS:
            self._maps.popitem(last=False)
        return known

    def _put(self, identity: bytes, put: _Put, data: memoryview) -> None:
        if put.offset % CHUNK:
            raise _Refused(f"a chunk at {put.offset}, which is no multiple of {CHUNK}")
        incoming = self._puts.get((put.key, put.fence))
        if incoming is None:
            place = self._place(put.key, put.fence)
            if _is_whole(place, put.size):  # repeated, and overtaken by the end
                self._send(identity, "STORED", {"offset": put.offset})
                return
            incoming = _Incoming(place, put.size, self._spool)
            self._puts[put.key, put.fence] = incoming
            while len(self._puts) > _OPEN_PUTS:
                self._puts.popitem(last=False)[1].abandon()
        incoming.write(put.offset, data)
        self._send(identity, "STORED", {"offset": put.offset})

    def _finish(self, identity: bytes, finish: _Finish) -> None:
        incoming = self._puts.get((finish.key, finish.fence))
        if incoming is not None:
            self._place(finish.key, finish.fence)
            incoming.finish()
            del self._puts[finish.key, finish.fence]
        else:  # said again, because the answer was lost
            place = self._place_for(finish.key, finish.fence)
            if place is None or not _is_whole(place, finish.size):
                raise _Refused("no result of that dispatch has begun to come")
        self._send(identity, "FINISHED", {"size": finish.size})

    def _place(self, key: str, fence: int) -> Path:
        place = self._place_for(key, fence)
        if place is None:
            raise _Refused(f"job {key[:12]} is no longer that worker's")
        return place

    def _send(self, identity: bytes, kind: str, header: dict[str, Any], *chunks: bytes) -> None:
        # A worker that is gone asks no more; one that is slow falls silent and tries again.
        self.router.send([identity, *wire.encode_message(kind, header, *chunks)])
