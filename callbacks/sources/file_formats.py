"""What a file of documents may look like, read piece by piece: nothing is held but one document.

The format is told by the first bytes, not by the name: JSON lines (``[name, doc]`` or ``{"name": ...,
"doc": ...}``, with or without the record separators of RFC 7464), one JSON list of such pairs, one JSON
mapping of lists of them (``{uid: [[name, doc], ...]}``), either of them as text in a JSON text, a msgpack
stream of pairs, and inscan's own logs.
"""

import struct
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgpack

from inscan.callbacks.sources.decode import (
    Arrays,
    DecodeError,
    check_document,
    decode_json,
    decode_msgpack,
    pair_of,
)
from inscan.callbacks.sources.interface import Document, SourceError
from inscan.callbacks.wire import MAX_DOCUMENT_BYTES, WireError, unpack

__all__ = ["Problems", "open_file", "read_documents"]

_PIECE = 2**20
_MAX_EXPANDED = 8 * 2**30
# A file that is one JSON list holds many documents, all of them in memory at once.
_WHOLE_ITEMS, _WHOLE_CONTAINERS = 2**25, 2**22
_RECORD = struct.Struct("<II")
_FIRST_RECORD = 4096
_SEPARATOR = b"\x1e \t\r\n"


class Problems:
    """What was left out of a file.

    Attributes
    ----------
    counts : Counter
        ``documents`` read; ``garbage``: pieces that are none.
    first : str
        Where and why the first piece was left out.
    """

    def __init__(self, counts: Counter[str] | None = None) -> None:
        self.counts: Counter[str] = Counter() if counts is None else counts
        self.first = ""

    def note(self, where: str, why: object) -> None:
        """Count one piece that is no document."""
        self.counts["garbage"] += 1
        self.first = self.first or f"{where}: {why}"


class _Bounded:
    """A decompressed stream that ends with an error before it fills the disk or the day."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._path = path
        self._inflate = zlib.decompressobj(wbits=31)
        self._total = 0

    def read(self, size: int) -> bytes:
        while True:
            if self._inflate.eof:
                rest = self._inflate.unused_data or self._file.read(_PIECE)
                if not rest:
                    return b""
                self._inflate = zlib.decompressobj(wbits=31)  # files of several gzip members
                data = self._expand(rest, size)
            else:
                rest = self._inflate.unconsumed_tail or self._file.read(_PIECE)
                if not rest:
                    raise SourceError(f"{self._path}: the compressed file is cut short")
                data = self._expand(rest, size)
            if data:
                self._total += len(data)
                if self._total > _MAX_EXPANDED:
                    raise SourceError(
                        f"{self._path}: expands to more than {_MAX_EXPANDED >> 30} GiB; "
                        "decompress it and give the file itself, if that is what it should do"
                    )
                return data

    def _expand(self, data: bytes, size: int) -> bytes:
        try:
            return self._inflate.decompress(data, size)
        except zlib.error as error:
            raise SourceError(f"{self._path}: damaged compressed file: {error}") from error

    def close(self) -> None:
        self._file.close()


def open_file(path: Path) -> tuple[BinaryIO | _Bounded, bool]:
    """Open a file, and say whether it is compressed.

    Raises
    ------
    SourceError
        If there is none, or it cannot be read.
    """
    try:
        if not path.is_file():
            raise SourceError(f"{path}: no such file" if not path.exists() else f"{path}: no file")
        file = path.open("rb")
    except OSError as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error
    if file.peek(2)[:2] != b"\x1f\x8b":
        return file, False
    file.close()
    return _Bounded(path), True


def read_documents(
    path: Path, problems: Problems, *, more: Callable[[int], bool] | None = None
) -> Generator[Document, None, None]:
    """Read all documents of a file in its order.

    Parameters
    ----------
    path : Path
    problems : Problems
        Counts what is read and what is left out.
    more : callable, optional
        Asked at the end of the file, with the bytes read so far, whether to go on reading: how a growing file is
        followed. Compressed files are not followed.

    Raises
    ------
    SourceError
        If the file cannot be read, or from some place on makes no sense at all.
    """
    file, compressed = open_file(path)
    arrays = Arrays()
    try:
        for where, value in _values(path, _Pieces(file, None if compressed else more), problems):
            pair = pair_of(value)
            try:
                if pair is None:
                    raise DecodeError("not a pair of name and document")
                check_document(*pair)
            except DecodeError as error:
                problems.note(where, error)
                continue
            problems.counts["documents"] += 1
            yield arrays(*pair)
    except OSError as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error
    finally:
        file.close()


class _Pieces:
    """A buffer in front of a file that may still grow.

    Attributes
    ----------
    data : bytearray
        Read and not yet used.
    follows : bool
        The file may grow.
    """

    def __init__(self, file: BinaryIO | _Bounded, more: Callable[[int], bool] | None) -> None:
        self.data = bytearray()
        self.follows = more is not None
        self._file = file
        self._more = more
        self._read = 0

    def grow(self) -> bytes:
        """Read on; nothing at the end."""
        while not (piece := self._file.read(_PIECE)):
            if self._more is None or not self._more(self._read):
                return b""
        self._read += len(piece)
        if len(self.data) + len(piece) > MAX_DOCUMENT_BYTES + _PIECE:
            raise SourceError(f"a document of more than {MAX_DOCUMENT_BYTES >> 20} MiB in the file")
        self.data += piece
        return piece

    def take(self, size: int) -> bytes:
        """Use up the first bytes."""
        taken = bytes(self.data[:size])
        del self.data[:size]
        return taken


def _values(path: Path, pieces: _Pieces, problems: Problems) -> Iterator[tuple[str, Any]]:
    """Where it stands, and what: one decoded value after the other, documents or not."""
    while len(pieces.data) < _RECORD.size + 16 and pieces.grow():
        pass
    head = bytes(pieces.data[: _RECORD.size + 16])
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip(_SEPARATOR)
    if _is_log(pieces):
        yield from _records(path, pieces, problems)
    elif not text or text[:1] in (b"[", b"{", b'"'):
        yield from _json(path, pieces, problems)
    elif _is_msgpack(head):
        yield from _msgpack_stream(path, pieces, problems)
    else:
        kind = "a pickle, which is never read" if head[:1] == b"\x80" else f"it begins {head[:8]!r}"
        raise SourceError(
            f"{path}: no file of Bluesky documents ({kind}); expected JSON lines, a JSON list, a "
            "msgpack stream, or an inscan log"
        )


def _is_msgpack(head: bytes) -> bool:
    """A list of two, a mapping with something in it, or bytes: as documents in a stream begin."""
    return head[0] in (0x92, 0xC4, 0xC5, 0xC6, 0xDC, 0xDD, 0xDE, 0xDF) or 0x81 <= head[0] <= 0x8F


def _is_log(pieces: _Pieces) -> bool:
    """Whether it begins with the first record of a log; text and msgpack give absurd lengths."""
    if len(pieces.data) < _RECORD.size:
        return False
    length, crc = _RECORD.unpack_from(pieces.data)
    if not 0 < length < _FIRST_RECORD:
        return False
    while len(pieces.data) < _RECORD.size + length:
        if not pieces.grow():
            return False
    return zlib.crc32(pieces.data[_RECORD.size : _RECORD.size + length]) == crc


def _records(path: Path, pieces: _Pieces, problems: Problems) -> Iterator[tuple[str, Any]]:
    offset = 0
    while True:
        while len(pieces.data) < _RECORD.size:
            if not pieces.grow():
                if pieces.data:
                    problems.note(f"{path}, byte {offset}", "cut short")
                return
        length, crc = _RECORD.unpack_from(pieces.data)
        if not 0 < length <= MAX_DOCUMENT_BYTES:
            problems.note(f"{path}, byte {offset}", f"a record of {length} bytes; the rest is lost")
            return
        while len(pieces.data) < _RECORD.size + length:
            if not pieces.grow():
                problems.note(f"{path}, byte {offset}", "cut short")
                return
        payload = pieces.take(_RECORD.size + length)[_RECORD.size :]
        where = f"{path}, byte {offset}"
        offset += _RECORD.size + length
        if zlib.crc32(payload) != crc:
            problems.note(where, "damaged record")
            continue
        try:
            value = unpack(payload)
        except WireError as error:
            problems.note(where, error)
            continue
        pair = pair_of(value)
        if pair is not None and pair[0] == "gap":
            problems.counts["gaps"] += 1
            problems.first = problems.first or f"{where}: a gap, {pair[1].get('reason')}"
        elif pair is None or pair[0] != "log":
            yield where, value


def _msgpack_stream(path: Path, pieces: _Pieces, problems: Problems) -> Iterator[tuple[str, Any]]:
    # Only finds where each object ends; it is built after its own checks.
    ends = msgpack.Unpacker(max_buffer_size=MAX_DOCUMENT_BYTES + 3 * _PIECE)
    ends.feed(bytes(pieces.data))
    used = 0
    while True:
        try:
            ends.skip()
        except msgpack.OutOfData:
            piece = pieces.grow()
            if not piece:
                if pieces.data:
                    problems.note(f"{path}, byte {used}", "cut short")
                return
            ends.feed(piece)
            continue
        except (ValueError, msgpack.UnpackException) as error:
            problems.note(f"{path}, byte {used}", f"no msgpack, the rest is lost: {error!r}")
            return
        where, end = f"{path}, byte {used}", ends.tell()
        data = pieces.take(end - used)
        used = end
        try:
            value = decode_msgpack(data, problems.counts)
            yield where, unpack(value) if isinstance(value, bytes) else value
        except (DecodeError, WireError) as error:
            problems.note(where, error)


def _json(path: Path, pieces: _Pieces, problems: Problems) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_lines(pieces), 1):
        line = line.removeprefix(b"\xef\xbb\xbf").strip(_SEPARATOR)
        if not line:
            continue
        where = f"{path}, line {number}"
        try:
            value = decode_json(line, max_items=_WHOLE_ITEMS, max_containers=_WHOLE_CONTAINERS)
        except DecodeError as error:
            if problems.counts["documents"] == 0 and not problems.first and not pieces.follows:
                yield from _one_json(path, line, pieces, problems)
                return
            problems.note(where, error)
            continue
        if pair_of(value) is not None:
            yield where, value
        else:
            yield from _members(path, where, value, problems)


def _lines(pieces: _Pieces) -> Iterator[bytes]:
    searched = 0
    while True:
        end = pieces.data.find(b"\n", searched)
        if end >= 0:
            yield pieces.take(end + 1)
            searched = 0
            continue
        searched = len(pieces.data)
        if not pieces.grow():
            if pieces.data:
                yield pieces.take(len(pieces.data))
            return


def _one_json(
    path: Path, first: bytes, pieces: _Pieces, problems: Problems
) -> Iterator[tuple[str, Any]]:
    """A file whose first line is no JSON by itself: one value over many lines, or lines with damage."""
    while pieces.grow():
        pass
    rest = pieces.take(len(pieces.data))
    try:
        value = decode_json(
            first + b"\n" + rest, max_items=_WHOLE_ITEMS, max_containers=_WHOLE_CONTAINERS
        )
    except DecodeError as error:
        problems.note(f"{path}, line 1", error)
        for number, line in enumerate(rest.split(b"\n"), 2):
            line = line.strip(_SEPARATOR)
            if line:
                try:
                    yield f"{path}, line {number}", decode_json(line)
                except DecodeError as error:
                    problems.note(f"{path}, line {number}", error)
        return
    if pair_of(value) is not None:
        yield str(path), value
    else:
        yield from _members(path, str(path), value, problems)


def _members(path: Path, where: str, value: Any, problems: Problems) -> Iterator[tuple[str, Any]]:
    """The pairs in a list of pairs, or in a mapping of such lists."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        # JSON written as text into JSON, as `json.dump(json.dumps(...))` does.
        try:
            value = decode_json(
                value.encode("utf-8", "replace"),
                max_items=_WHOLE_ITEMS,
                max_containers=_WHOLE_CONTAINERS,
            )
        except DecodeError as error:
            problems.note(where, error)
            return
    if isinstance(value, dict):
        if "event_name" in value and "subscription_segments" in value:
            raise SourceError(
                f"{path}: an event of Tiled's websocket, no Bluesky documents; it only tells that data "
                "came: name the run's uid and the Tiled that has it instead"
            )
        if not any(isinstance(member, list) for member in value.values()):
            problems.note(where, f"a mapping with the keys {sorted(map(str, value))[:6]}")
            return
        for key, member in value.items():
            if isinstance(member, list):
                yield from _members(path, f"{where}, {key[:40]!r}", member, problems)
            else:
                problems.note(f"{where}, {key[:40]!r}", "not a list of documents")
    elif isinstance(value, list):
        for number, member in enumerate(value, 1):
            yield f"{where}, item {number}", member
    else:
        problems.note(where, f"a {type(value).__name__}")
