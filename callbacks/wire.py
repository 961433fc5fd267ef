"""Codec of everything inscan writes to a socket or a document log, without pickle.

A packed object is ``u32 length | msgpack body | padding | array | padding | array ...``, little
endian. Arrays stand behind the body as raw C-order buffers, each on a 16-byte boundary, in the
order in which the body names them. So packing copies no array (`pack_parts`), unpacking makes
views into the received buffer, and no declared size can ask for memory that did not arrive.

A message is a list of frames ``[b"XI", version, kind, header, checksum, chunk, ...]``; the checksum is the
CRC-32 of kind, header and chunks.
"""

import math
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

from inscan.callbacks.wire_check import MAX_DEPTH, WireError, check_body

__all__ = [
    "MAX_DEPTH",
    "MAX_DOCUMENT_BYTES",
    "MAX_HEADER_BYTES",
    "PROTOCOL",
    "DamagedError",
    "Message",
    "WireError",
    "VersionError",
    "decode_message",
    "encode_message",
    "in_version_of",
    "pack",
    "pack_parts",
    "unpack",
]

Buffer = bytes | bytearray | memoryview

PROTOCOL = (2, 0)  # major must match, minor is additive
MAX_DOCUMENT_BYTES = 256 * 2**20
MAX_HEADER_BYTES = 64 * 2**10
_MAX_CHUNKS = 64
_MAX_DIMENSIONS = 32
_MAX_ELEMENTS = 2**40  # bounds empty arrays such as (0, 2**60), whose bytes bound nothing
_ALIGN = 16
_EXT_ARRAY = 1
_EXT_COMPLEX = 2
_DTYPE = re.compile(r"(?:[<>|][biufc](?:1|2|4|8|12|16|24|32)|[<>|][SU][1-9][0-9]{0,6})")
_KIND = re.compile(rb"[A-Z_]{1,24}")
_MAGIC = b"XI"
_FRAMES = 5  # before the chunks
_CHECKSUM = struct.Struct("<I")


class VersionError(WireError):
    """The peer speaks another major version of the protocol."""


class DamagedError(WireError):
    """The bytes are not those that were sent."""


@dataclass(frozen=True)
class Message:
    """One decoded message.

    Attributes
    ----------
    kind : str
        Word in capitals, such as ``DOC``.
    header : dict
        Small metadata, at most 64 KiB packed.
    chunks : tuple of memoryview
        Raw bulk frames, undecoded.
    """

    kind: str
    header: dict[str, Any]
    chunks: tuple[memoryview, ...]


def pack(obj: object) -> bytes:
    """Pack plain data and arrays into bytes; see `pack_parts`."""
    return b"".join(pack_parts(obj))


def pack_parts(obj: object) -> list[Buffer]:
    """Pack plain data and arrays into buffers, without copying contiguous arrays.

    Parameters
    ----------
    obj : object
        None, bool, int (64 bit), float, complex, str, bytes, list, tuple, mapping, NumPy scalar or
        array of kind b, i, u, f, c, S or U, nested at most 64 deep. Tuples come back as lists,
        NumPy scalars as Python scalars.

    Returns
    -------
    list of buffers
        Their concatenation is what `unpack` reads. They refer to the arrays' memory: write them
        before anybody changes the arrays.

    Raises
    ------
    WireError
        For anything else: object arrays, integers beyond 64 bits, invalid text, deep nesting.
    """
    arrays: list[Buffer] = []

    def encode(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return _array_header(value, arrays)
        if isinstance(value, np.generic):
            return _scalar(value, arrays)
        if isinstance(value, complex):
            return _complex(value)
        if isinstance(value, Mapping):
            return dict(value)
        raise WireError(f"cannot pack a {type(value).__module__}.{type(value).__qualname__}")

    try:
        body = msgpack.packb(obj, default=encode, use_bin_type=True)
    except WireError:
        raise
    except (TypeError, ValueError, OverflowError, RecursionError, AttributeError) as error:
        raise WireError(f"cannot pack this object: {error}") from error
    assert body is not None
    parts: list[Buffer] = [struct.pack("<I", len(body)), body]
    position = 4 + len(body)
    for data in arrays:
        padding = -position % _ALIGN
        if padding:
            parts.append(bytes(padding))
        parts.append(data)
        position += padding + len(data)
    return parts


def _scalar(value: np.generic, arrays: list[Buffer]) -> Any:
    if value.dtype.kind not in "biufcSU":
        raise WireError(f"cannot pack a NumPy scalar of dtype {value.dtype}; convert it first")
    plain_value = value.item()
    if isinstance(plain_value, np.generic):  # long double has no Python counterpart
        return _array_header(np.asarray(value), arrays)
    return _complex(plain_value) if isinstance(plain_value, complex) else plain_value


def _complex(value: complex) -> msgpack.ExtType:
    return msgpack.ExtType(_EXT_COMPLEX, struct.pack("<dd", value.real, value.imag))


def _array_header(array: np.ndarray, arrays: list[Buffer]) -> msgpack.ExtType:
    if array.dtype.kind not in "biufcSU" or array.dtype.names is not None:
        raise WireError(f"cannot pack an array of dtype {array.dtype}; use a plain number or text")
    if isinstance(array, np.ma.MaskedArray):
        raise WireError("cannot pack a masked array; pass values and mask as two arrays")
    if array.ndim > _MAX_DIMENSIONS:
        raise WireError(
            f"cannot pack an array of {array.ndim} dimensions, {_MAX_DIMENSIONS} at most"
        )
    if array.dtype.itemsize == 0:  # text of zero width: the same values in width one
        array = array.astype(f"{array.dtype.kind}1")
    flat = np.ascontiguousarray(array).reshape(-1)
    arrays.append(flat.view(np.uint8).data if flat.size else b"")
    name = array.dtype.str.encode("ascii")
    header = struct.pack(f"<B{len(name)}sB", len(name), name, array.ndim)
    return msgpack.ExtType(_EXT_ARRAY, header + struct.pack(f"<{array.ndim}Q", *array.shape))


def unpack(buffer: Buffer, *, max_bytes: int = MAX_DOCUMENT_BYTES) -> Any:
    """Read what `pack` wrote. Safe on any input.

    Parameters
    ----------
    buffer : bytes-like
        One packed object, exactly.
    max_bytes : int
        Longest buffer accepted.

    Returns
    -------
    object
        Arrays are read-only views into ``buffer``: copy what is to be kept or changed.

    Raises
    ------
    WireError
        Whatever is wrong: too long, truncated, nested too deeply, more items declared than there
        are bytes, unknown or object dtypes, sizes that do not fit the bytes that came.
    """
    view = memoryview(buffer).cast("B")
    if len(view) > max_bytes:
        raise WireError(f"{len(view)} bytes, {max_bytes} at most")
    if len(view) < 4:
        raise WireError(f"truncated: {len(view)} bytes, 4 at least")
    (length,) = struct.unpack_from("<I", view)
    end = 4 + length
    if length == 0 or end > len(view):
        raise WireError(f"truncated: a body of {length} bytes declared, {len(view) - 4} there")
    body = bytes(view[4:end])
    check_body(body, extensions=(_EXT_ARRAY, _EXT_COMPLEX))
    cursor = _ArrayCursor(view, end)
    try:
        obj = msgpack.unpackb(
            body, ext_hook=cursor.extension, strict_map_key=False, raw=False, use_list=True
        )
    except WireError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise WireError(f"not a packed object: {error}") from error
    if cursor.position != len(view):
        raise WireError(f"{len(view) - cursor.position} bytes left over behind the last array")
    return obj


class _ArrayCursor:
    """Hands out the arrays behind the body, strictly one after the other, so none can overlap."""

    def __init__(self, view: memoryview, position: int) -> None:
        self._view = view.toreadonly()
        self.position = position

    def extension(self, code: int, data: bytes) -> Any:
        if code == _EXT_COMPLEX:
            if len(data) != 16:
                raise WireError(f"a complex number of {len(data)} bytes, 16 expected")
            return complex(*struct.unpack("<dd", data))
        if code != _EXT_ARRAY:
            raise WireError(f"unknown extension type {code}")
        dtype, shape = _parse_header(data)
        elements = math.prod(shape)
        nbytes = elements * dtype.itemsize
        start = self.position + (-self.position % _ALIGN)
        if start + nbytes > len(self._view):
            raise WireError(
                f"an array of shape {shape} and dtype {dtype} needs {nbytes} bytes, "
                f"{max(0, len(self._view) - start)} are there"
            )
        self.position = start + nbytes
        if nbytes == 0:
            return np.empty(shape, dtype)
        array = np.frombuffer(self._view[start : self.position], dtype=dtype).reshape(shape)
        _check_values(array)
        return array


def _parse_header(data: bytes) -> tuple[np.dtype, tuple[int, ...]]:
    try:
        size = data[0]
        name = data[1 : 1 + size].decode("ascii")
        dimensions = data[1 + size]
        shape = struct.unpack(f"<{dimensions}Q", data[2 + size :])
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise WireError(f"malformed array header: {error}") from error
    if not _DTYPE.fullmatch(name):
        raise WireError(f"refusing dtype {name!r}; plain numbers and text only")
    if dimensions > _MAX_DIMENSIONS or math.prod(max(1, n) for n in shape) > _MAX_ELEMENTS:
        raise WireError(f"refusing shape {shape}")
    try:
        return np.dtype(name), shape
    except TypeError as error:
        raise WireError(f"dtype {name!r} does not exist on this machine") from error


def _check_values(array: np.ndarray) -> None:
    """Refuse bit patterns that NumPy would trip over later, far from here."""
    if array.dtype.kind == "b":
        if array.view(np.uint8).max() > 1:
            raise WireError("a boolean array with bytes other than 0 and 1")
    elif array.dtype.kind == "U":
        points = np.frombuffer(array.reshape(-1).data.cast("B"), f"{array.dtype.byteorder}u4")
        if points.max() > 0x10FFFF:
            raise WireError("a text array with code points beyond Unicode")


def encode_message(kind: str, header: Mapping[str, Any], *chunks: Buffer) -> list[Buffer]:
    """Frames of one message.

    Raises
    ------
    WireError
        If the header does not fit 64 KiB or cannot be packed.
    """
    if not _KIND.fullmatch(kind.encode()):
        raise WireError(f"message kind {kind!r}: expected 1 to 24 capitals")
    packed = pack(dict(header))
    if len(packed) > MAX_HEADER_BYTES:
        raise WireError(
            f"{kind} header of {len(packed)} bytes, {MAX_HEADER_BYTES} at most; send bulk as chunk"
        )
    name = kind.encode()
    checksum = _CHECKSUM.pack(_crc(name, packed, *chunks))
    return [_MAGIC, bytes(PROTOCOL), name, packed, checksum, *chunks]


def in_version_of(peer: Sequence[Buffer], frames: list[Buffer]) -> list[Buffer]:
    """Frames of an answer under the version that a peer speaks, or it could not read why it is refused."""
    return [frames[0], bytes(memoryview(peer[1])), *frames[2:]]


def _crc(*frames: Buffer) -> int:
    crc = 0
    for frame in frames:
        crc = zlib.crc32(frame, crc)
    return crc


def decode_message(frames: Sequence[Buffer]) -> Message:
    """Read the frames of one message (without the routing identity).

    Raises
    ------
    VersionError
        If the peer speaks another major version.
    DamagedError
        If something was changed on the way.
    WireError
        If this is no inscan message. Nothing but the header is decoded here.
    """
    most = _FRAMES + _MAX_CHUNKS
    if not 4 <= len(frames) <= most:  # version 1 had no checksum, and is to be told so
        raise WireError(f"a message of {len(frames)} frames, {_FRAMES} to {most} expected")
    magic, version, kind, header = (memoryview(frame).cast("B") for frame in frames[:4])
    if magic != _MAGIC:
        raise WireError("not an inscan message")
    if len(version) != 2:
        raise WireError(f"a version of {len(version)} bytes, 2 expected")
    if version[0] != PROTOCOL[0]:
        raise VersionError(
            f"the peer speaks protocol {version[0]}.{version[1]}, this is {PROTOCOL[0]}."
            f"{PROTOCOL[1]}; install the same inscan on both sides"
        )
    chunks = tuple(memoryview(chunk).cast("B") for chunk in frames[_FRAMES:])
    checksum = bytes(frames[4]) if len(frames) > 4 else b""
    if checksum != _CHECKSUM.pack(_crc(kind, header, *chunks)):
        raise DamagedError("its checksum does not fit: it was changed on the way")
    if len(kind) > 24 or not _KIND.fullmatch(bytes(kind)):
        raise WireError("malformed message kind")
    fields = unpack(header, max_bytes=MAX_HEADER_BYTES)
    if not isinstance(fields, dict) or not all(isinstance(key, str) for key in fields):
        raise WireError(f"{bytes(kind).decode()} header is no mapping of names")
    return Message(bytes(kind).decode(), fields, chunks)
