"""Bytes from strangers to Bluesky documents: JSON, msgpack and inscan's own codec, never pickle.

Sizes, numbers of items and depth are checked before anything is built, or bounded by what was
received. What msgpack_numpy writes for arrays is read here; its own decoder unpickles whatever calls
itself an array of objects, so it is not used.
"""

import json
import math
import re
import struct
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

from inscan.callbacks.sources.interface import Document
from inscan.callbacks.wire import MAX_DEPTH, MAX_DOCUMENT_BYTES, WireError, unpack
from inscan.callbacks.wire_check import check_body

__all__ = [
    "Arrays",
    "DecodeError",
    "check_document",
    "decode_document",
    "decode_json",
    "decode_msgpack",
    "decode_pair",
    "pair_of",
]

_MAX_UID = 256
_MAX_ITEMS = 2**23
_MAX_CONTAINERS = 2**20
_DTYPE = re.compile(r"[<>|=]?[biufcSU](?:[1-9][0-9]{0,6})")
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_LEFT_OUT = "(array of objects: not unpickled)"
_DESCRIPTORS = 4096  # remembered by Arrays

# Which texts a document must have to be routed: its own uid, and one of what it may refer to.
_NEEDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "start": (("uid",),),
    "descriptor": (("uid",), ("run_start",)),
    "event": (("descriptor",),),
    "event_page": (("descriptor",),),
    "resource": (("uid",),),
    "stream_resource": (("uid",),),
    "datum": (("resource",),),
    "datum_page": (("resource",),),
    "stream_datum": (("stream_resource", "descriptor"),),
    "stop": (("run_start",),),
}


class DecodeError(ValueError):
    """Bytes that are no document; says why in a few words."""


def decode_json(
    data: bytes, *, max_items: int = _MAX_ITEMS, max_containers: int = _MAX_CONTAINERS
) -> Any:
    """Read JSON text, NaN and Infinity included.

    Raises
    ------
    DecodeError
        If it is none, or has more items or depth than a document may have.
    """
    containers = data.count(b"[") + data.count(b"{")
    if containers > max_containers or data.count(b",") > max_items:
        raise DecodeError(f"more than {max_items} items or {max_containers} lists and mappings")
    try:
        value = json.loads(str(data, "utf-8-sig"))
    except RecursionError:
        raise DecodeError(f"nested more than {MAX_DEPTH} deep") from None
    except ValueError as error:  # not JSON, not text, a number of thousands of digits
        raise DecodeError(f"not JSON: {str(error)[:200]}") from None
    if containers > MAX_DEPTH:
        _check_depth(value)
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for holder in level
            for item in (holder.values() if isinstance(holder, dict) else holder)
            if isinstance(item, dict | list)
        ]
        if not level:
            return
    raise DecodeError(f"nested more than {MAX_DEPTH} deep")


def decode_msgpack(data: bytes, counts: Counter[str] | None = None) -> Any:
    """Read one msgpack object, arrays as msgpack_numpy writes them included.

    Parameters
    ----------
    data : bytes
        Exactly one object.
    counts : Counter, optional
        ``object arrays`` is raised for each array that could only be unpickled: a text stands in
        its place.

    Raises
    ------
    DecodeError
        If it is none, or is larger or deeper than a document may be.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise DecodeError(f"{len(data)} bytes, {MAX_DOCUMENT_BYTES} at most")

    def hook(mapping: dict[Any, Any]) -> Any:
        return _numpy_value(mapping, counts)

    try:
        check_body(data, extensions=(), bytes_keys=True)
        return msgpack.unpackb(data, object_hook=hook, strict_map_key=False, raw=False)
    except DecodeError:
        raise
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise DecodeError(f"not msgpack: {str(error)[:200]}") from None


def _numpy_value(mapping: dict[Any, Any], counts: Counter[str] | None) -> Any:
    """What msgpack_numpy encoded as a mapping, if this is one."""
    if len(mapping) > 5 or not any(key in mapping for key in (b"nd", "nd", b"complex")):
        return mapping
    fields = {
        k.decode("ascii", "replace") if isinstance(k, bytes) else k: mapping[k] for k in mapping
    }
    if fields.get("complex") is True and set(fields) == {"complex", "data"}:
        return complex(_text(fields["data"]))
    if not {"nd", "type", "data"} <= set(fields) <= {"nd", "type", "kind", "shape", "data"}:
        return mapping
    kind = _text(fields.get("kind") or "")
    if kind in ("O", "V") or not isinstance(fields["type"], str | bytes):
        if counts is not None:
            counts["object arrays"] += 1
        return _LEFT_OUT
    array = _array(_text(fields["type"]), fields.get("shape", ()), fields["data"])
    if fields["nd"] is True:
        return array
    if array.size != 1:
        raise DecodeError("a NumPy scalar of several values")
    return array.reshape(-1)[0].item()


def _text(value: Any) -> str:
    if not isinstance(value, str | bytes) or len(value) > 100:
        raise DecodeError("a malformed NumPy value")
    return value.decode("ascii", "replace") if isinstance(value, bytes) else value


def _array(dtype: str, shape: Any, data: Any) -> np.ndarray:
    if not _DTYPE.fullmatch(dtype):
        raise DecodeError(f"an array of dtype {dtype[:40]!r}; plain numbers and text only")
    if not isinstance(data, bytes) or not isinstance(shape, list | tuple):
        raise DecodeError("an array without shape or bytes")
    if len(shape) > 32 or not all(type(n) is int and 0 <= n < 2**40 for n in shape):
        raise DecodeError(f"an array of shape {str(shape)[:100]}")
    try:
        kind = np.dtype(dtype)
    except TypeError:
        raise DecodeError(f"dtype {dtype!r} does not exist here") from None
    if math.prod(shape) * kind.itemsize != len(data):
        raise DecodeError(f"an array of shape {shape}, dtype {dtype} in {len(data)} bytes")
    array = np.frombuffer(data, kind).reshape(shape)
    if array.size and kind.kind == "b" and array.view(np.uint8).max() > 1:
        raise DecodeError("a boolean array with bytes other than 0 and 1")
    if array.size and kind.kind == "U":
        if np.frombuffer(data, f"{kind.byteorder}u4").max() > 0x10FFFF:
            raise DecodeError("a text array with code points beyond Unicode")
    return array


def _decode(data: bytes, counts: Counter[str] | None) -> Any:
    """Anything in one of the formats: told by its first bytes."""
    if len(data) > MAX_DOCUMENT_BYTES:
        raise DecodeError(f"{len(data)} bytes, {MAX_DOCUMENT_BYTES} at most")
    if not data:
        raise DecodeError("empty")
    # inscan's own codec begins with the length of its body; text and msgpack give absurd ones.
    (length,) = struct.unpack_from("<I", data) if len(data) > 4 else (0,)
    if 0 < length <= len(data) - 4:
        try:
            return unpack(data)
        except WireError:
            pass  # then it is something else, or nothing
    if data[0] in b"{[ \t\r\n":
        return decode_json(data)
    try:
        return decode_msgpack(data, counts)
    except DecodeError:
        if _PICKLE.match(data):
            raise DecodeError("pickle, which is never read") from None
        raise


def decode_document(data: bytes, counts: Counter[str] | None = None) -> dict[str, Any]:
    """Read the content of one document in JSON, msgpack or inscan's codec.

    Raises
    ------
    DecodeError
        If it is none of them, or no mapping.
    """
    doc = _decode(data, counts)
    if not isinstance(doc, dict):
        raise DecodeError(f"a {type(doc).__name__}, not a mapping")
    return doc


def decode_pair(data: bytes, counts: Counter[str] | None = None) -> tuple[str, dict[str, Any]]:
    """Read one ``[name, document]`` in JSON, msgpack or inscan's codec, checked.

    Raises
    ------
    DecodeError
        If it is none of them, or no document that could be routed.
    """
    pair = pair_of(_decode(data, counts))
    if pair is None:
        raise DecodeError("not a pair of name and document")
    check_document(*pair)
    return pair


def pair_of(value: Any) -> tuple[str, dict[str, Any]] | None:
    """Name and document of ``[name, doc]`` or ``{"name": ..., "doc": ...}``; None of anything else."""
    if isinstance(value, dict) and set(value) == {"name", "doc"}:
        value = [value["name"], value["doc"]]
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    name, doc = value
    return (name, doc) if isinstance(name, str) and isinstance(doc, dict) else None


def check_document(name: str, doc: Mapping[str, Any]) -> None:
    """Refuse what could not be routed to a run.

    Raises
    ------
    DecodeError
        If the name is none of event-model's, or a uid that is needed is missing or no text of 1 to 256
        characters.
    """
    needs = _NEEDS.get(name)
    if needs is None:
        raise DecodeError(f"no document of event-model is called {name[:40]!r}")
    for choice in needs:
        if not any(_is_uid(doc.get(key)) for key in choice):
            raise DecodeError(f"a {name} without {' or '.join(choice)}")
    for key in ("uid", "run_start", "descriptor", "resource", "stream_resource"):
        value = doc.get(key, "")
        if name in ("event_page", "datum_page") and isinstance(value, list):
            continue  # a page has the uids of its rows
        if value not in ("", None) and not _is_uid(value):
            raise DecodeError(f"a {name} whose {key} is no text of 1 to {_MAX_UID} characters")
    if not all(isinstance(key, str) for key in doc):
        raise DecodeError(f"a {name} with keys that are no text")


def _is_uid(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_UID


class Arrays:
    """Turns lists in events back into arrays where the descriptor declares one.

    JSON and Tiled have no arrays. The declared ``dtype_numpy`` is used where every value survives it.
    Text and ragged lists stay lists. Remembers the last 4096 descriptors.
    """

    def __init__(self) -> None:
        self._declared: OrderedDict[str, dict[str, np.dtype | None]] = OrderedDict()

    def __call__(self, name: str, doc: dict[str, Any]) -> Document:
        """Return the document, with arrays; never raises for what a document holds."""
        if name == "descriptor":
            self._remember(doc)
        elif name in ("event", "event_page"):
            declared = self._declared.get(doc.get("descriptor", ""))
            data = doc.get("data")
            if declared and isinstance(data, dict):
                found = {
                    key: self._restored(name, data[key], declared[key])
                    for key in declared
                    if isinstance(data.get(key), list)
                }
                if found:
                    return name, {**doc, "data": {**data, **found}}
        return name, doc

    def _remember(self, doc: Mapping[str, Any]) -> None:
        keys = doc.get("data_keys")
        if not isinstance(keys, dict):
            return
        self._declared[doc["uid"]] = {
            key: _declared_dtype(about)
            for key, about in keys.items()
            if isinstance(about, dict)
            and about.get("dtype") == "array"
            and not about.get("external")
        }
        while len(self._declared) > _DESCRIPTORS:
            self._declared.popitem(last=False)

    @staticmethod
    def _restored(name: str, value: list[Any], dtype: np.dtype | None) -> Any:
        if name == "event":
            return _as_array(value, dtype)
        return [_as_array(one, dtype) if isinstance(one, list) else one for one in value]


def _declared_dtype(about: Mapping[str, Any]) -> np.dtype | None:
    name = about.get("dtype_numpy") or about.get("dtype_str")
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        return None
    try:
        dtype = np.dtype(name)
    except TypeError:
        return None
    return dtype if dtype.kind in "biuf" else None


def _as_array(value: list[Any], dtype: np.dtype | None) -> Any:
    try:
        array = np.asarray(value)
        if array.dtype == object:  # None stands for NaN where the writer knew none
            array = np.asarray(value, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        return value
    if array.dtype.kind not in "biuf":
        return value
    if dtype is None or array.dtype == dtype:
        return array
    with np.errstate(all="ignore"):
        cast = array.astype(dtype)
        same = np.array_equal(cast, array, equal_nan=True)
    return cast if same else array
