"""Documents in files: runs that were recorded, and files that are still being written."""

import gzip
import json
import logging
import os
import struct
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from inscan.callbacks.legible import legible
from inscan.callbacks.routes import Routes
from inscan.callbacks.sources.file_formats import Problems, read_documents
from inscan.callbacks.sources.interface import Document, Sink, SourceError, StoredRun
from inscan.callbacks.wire import Buffer, WireError, pack_parts

__all__ = ["FileSource", "stored_runs", "write_documents"]

logger = logging.getLogger(__name__)

_MAX_RUNS = 10_000
_LOOK_S = 0.1  # between looks at a file that may grow
_SUFFIXES = (".jsonl", ".msgpack")


def stored_runs(path: str | os.PathLike[str]) -> list[StoredRun]:
    """Find the runs in a file of documents; see `inscan.callbacks.sources.file_formats` for formats.

    The whole file is looked through, holding one document at a time. What is no document, or belongs to no run
    whose start is in the file, is left out, with one warning that counts it and names the first.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    list of StoredRun
        In the order of their start documents. Their documents are read from the file again each time: start first, stop
        last, everything else in the order of the file.

    Raises
    ------
    SourceError
        If the file cannot be read, is no file of documents, or has no start document.
    """
    file = Path(path)
    problems = Problems()
    starts: dict[str, Mapping[str, Any]] = {}
    for name, doc in read_documents(file, problems):
        if name == "start" and doc["uid"] not in starts:
            if len(starts) >= _MAX_RUNS:
                raise SourceError(f"{file}: more than {_MAX_RUNS} runs in one file; split it")
            starts[doc["uid"]] = doc
    found = problems.counts
    if not starts:
        why = f"; first problem: {problems.first}" if problems.first else ""
        raise SourceError(f"{file}: {found['documents']} documents, no start document{why}")
    left_out = {what: n for what, n in found.items() if what != "documents" and n}
    if left_out:
        counted = ", ".join(f"{n} {what}" for what, n in left_out.items())
        logger.warning("%s: left out: %s (%s)", file, counted, problems.first or "see counts")
    return [_stored_run(file, uid, start) for uid, start in starts.items()]


def _stored_run(file: Path, uid: str, start: Mapping[str, Any]) -> StoredRun:
    def documents() -> Iterator[Document]:
        yield "start", start
        routes = Routes()
        routes.of("start", start)
        stop: Document | None = None
        with closing(read_documents(file, Problems())) as all_documents:
            for name, doc in all_documents:
                if uid not in routes.of(name, doc) or name == "start":
                    continue
                if name == "stop":
                    stop = stop or (name, doc)
                else:
                    yield name, doc
        if stop is not None:
            yield stop

    return StoredRun(uid, f"file {file}", start, documents)


def write_documents(path: str | os.PathLike[str], documents: Iterable[Document]) -> int:
    """Write documents to a file that `stored_runs` reads.

    Parameters
    ----------
    path : path
        ``.jsonl``: JSON lines, ``[name, doc]`` each, arrays as lists, for people and other programs. ``.msgpack``: a
        stream of inscan's own codec, which keeps arrays and types as they are. With ``.gz`` behind, compressed. The
        file appears whole, replacing what was there.
    documents : iterable of (name, doc)

    Returns
    -------
    int
        Documents written.

    Raises
    ------
    SourceError
        For another suffix, or when the file cannot be written.
    """
    file = Path(path)
    suffix = Path(file.stem).suffix if file.suffix == ".gz" else file.suffix
    if suffix not in _SUFFIXES:
        raise SourceError(f"{file}: name it .jsonl or .msgpack (or .jsonl.gz, .msgpack.gz)")
    write = _write_json if suffix == ".jsonl" else _write_msgpack
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    count = 0
    try:
        with part.open("wb") as raw:
            out: Any = (
                gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if file.suffix == ".gz" else raw
            )
            for name, doc in documents:
                write(out, name, doc)
                count += 1
            if out is not raw:
                out.close()
        os.replace(part, file)
    except OSError as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{file} cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
    return count


def _write_json(out: BinaryIO, name: str, doc: Mapping[str, Any]) -> None:
    out.write(json.dumps([name, doc], default=_as_json, separators=(",", ":")).encode() + b"\n")


def _as_json(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufSU":
        return value.tolist()
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    other = legible(value)
    return other.tolist() if isinstance(other, np.ndarray) else str(other)


def _write_msgpack(out: BinaryIO, name: str, doc: Mapping[str, Any]) -> None:
    parts: list[Buffer]
    try:
        parts = pack_parts((name, doc))
    except WireError:
        parts = pack_parts((name, legible(doc)))
    out.write(b"\xc6" + struct.pack(">I", sum(len(part) for part in parts)))
    for part in parts:
        out.write(part)


class FileSource:
    """Documents of a file, once, or for as long as it grows.

    Parameters
    ----------
    path : path
        The file. It need not be there yet when it is followed.
    follow : bool
        Stay at its end until told to stop; a file that was replaced or cut is read anew.

    Attributes
    ----------
    label, ready, counts
        See `inscan.callbacks.sources.interface.Source`. ``ready`` when the end of the file was reached once.
    """

    def __init__(self, path: str | os.PathLike[str], *, follow: bool = False) -> None:
        self.path = Path(path)
        self.follow = follow
        self.label = f"file {self.path}"
        self.ready = threading.Event()
        self.counts: Counter[str] = Counter()

    def run(self, sink: Sink, stop: threading.Event) -> None:
        """Hand on what is in the file; see `inscan.callbacks.sources.interface.Source`.

        Raises
        ------
        SourceError
            When the file cannot be read, or is no file of documents.
        """
        if not self.follow:
            self._read(sink, stop, more=False)
            self.ready.set()
            return
        while not stop.is_set():
            if self._there():
                self._read(sink, stop, more=True)
            else:
                self.ready.set()  # nothing of it is missed
                stop.wait(_LOOK_S)

    def _there(self) -> bool:
        try:
            return self.path.stat().st_size > 0
        except FileNotFoundError:
            return False
        except OSError as error:
            raise SourceError(f"{self.path} cannot be read: {error.strerror or error}") from error

    def _read(self, sink: Sink, stop: threading.Event, *, more: bool) -> None:
        problems = Problems(self.counts)
        inode, ends = self._identity()[0], False

        def wait(read: int) -> bool:
            nonlocal ends
            self.ready.set()
            stop.wait(_LOOK_S)
            now, size = self._identity()
            if now != inode or size < read:
                self.counts["replaced"] += 1
                ends = True
            return not ends and not stop.is_set()

        with closing(read_documents(self.path, problems, more=wait if more else None)) as found:
            for name, doc in found:
                sink(name, doc)
                if stop.is_set():
                    return
        if more and not ends and not stop.is_set():
            why = problems.first or "it is compressed"
            raise SourceError(f"{self.path} cannot be followed any further: {why}")
        if not more and not self.counts["documents"]:
            raise SourceError(
                f"{self.path}: no documents in it ({problems.first or 'it is empty'})"
            )

    def _identity(self) -> tuple[int, int]:
        try:
            about = self.path.stat()
        except OSError:
            return -1, -1
        return about.st_ino, about.st_size
