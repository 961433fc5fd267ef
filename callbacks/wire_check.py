"""Check a msgpack body for depth and declared sizes before anything is built from it.

msgpack allocates a list of the length its header declares before a single item was read, and nests
as deep as the bytes say. This walk over the bytes builds nothing, so whatever passes it costs
memory in proportion to what was received.
"""

import re
import struct

MAX_DEPTH = 64
MAX_ITEMS = 2**23
_MAX_CONTAINERS = 2**20
# Integer keys all hash to chosen buckets if the sender wants so; text keys are salted by Python.
_MAX_OTHER_KEYS = 4096


class WireError(ValueError):
    """The bytes are not what inscan writes, or the object is not what inscan carries."""


# Width in bytes of items of fixed size, marker included.
_FIXED: dict[int, int] = dict.fromkeys([*range(0x80), *range(0xE0, 0x100), 0xC0, 0xC2, 0xC3], 1)
_FIXED |= {0xCC: 2, 0xD0: 2, 0xCD: 3, 0xD1: 3, 0xCA: 5, 0xCE: 5, 0xD2: 5, 0xCB: 9, 0xCF: 9, 0xD3: 9}
# Runs of such items of one width, to pass over long lists of numbers at C speed.
_RUNS = {
    1: re.compile(rb"[\x00-\x7f\xe0-\xff\xc0\xc2\xc3]++"),
    2: re.compile(rb"(?:[\xcc\xd0].)++", re.DOTALL),
    3: re.compile(rb"(?:[\xcd\xd1]..)++", re.DOTALL),
    5: re.compile(rb"(?:[\xca\xce\xd2].{4})++", re.DOTALL),
    9: re.compile(rb"(?:[\xcb\xcf\xd3].{8})++", re.DOTALL),
}
_LENGTH_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}  # bin and str
_TEXT = {0xD9, 0xDA, 0xDB}
_BYTES = {0xC4, 0xC5, 0xC6}
_FIXED_EXTENSION = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_EXTENSION = {0xC7: 1, 0xC8: 2, 0xC9: 4}
_CONTAINER = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}  # length bytes, items each


def check_body(body: bytes, *, extensions: tuple[int, ...], bytes_keys: bool = False) -> None:
    """Raise WireError unless ``body`` is exactly one well-formed, bounded msgpack object.

    Parameters
    ----------
    body : bytes
        The msgpack bytes.
    extensions : tuple of int
        Extension types that may occur; the timestamp type of msgpack (-1) never may.
    bytes_keys : bool
        Keys of mappings may be bytes, as msgpack_numpy writes them; Python salts those, too.
    """
    size = len(body)
    position = 0
    items = containers = other_keys = 0
    remaining = [1]  # open containers: items still to come
    is_map = [False]
    while remaining:
        left = remaining[-1]
        if left == 0:
            remaining.pop()
            is_map.pop()
            continue
        if position >= size:
            raise WireError(f"truncated: {left} more items declared at the end of {size} bytes")
        marker = body[position]
        width = _FIXED.get(marker)
        if width is not None:
            is_key = is_map[-1] and left % 2 == 0
            if is_key:
                other_keys += 1
                if other_keys > _MAX_OTHER_KEYS:
                    raise WireError(f"more than {_MAX_OTHER_KEYS} mapping keys are not text")
            count = 1
            if left > 8 and not is_map[-1]:
                run = _RUNS[width].match(body, position, position + left * width)
                count = 1 if run is None else (run.end() - position) // width
            position += count * width
            remaining[-1] = left - count
            items += count
        else:
            children, position, text = _step(body, position, marker, extensions)
            key = text or (bytes_keys and marker in _BYTES)
            if is_map[-1] and left % 2 == 0 and not key:
                raise WireError("a mapping key is neither text nor a number")
            remaining[-1] = left - 1
            items += 1
            if children >= 0:
                containers += 1
                if children > size - position:
                    raise WireError(f"{children} items declared, {size - position} bytes left")
                if len(remaining) > MAX_DEPTH:
                    raise WireError(f"nested more than {MAX_DEPTH} deep")
                remaining.append(children)
                is_map.append(marker in (0xDE, 0xDF) or 0x80 <= marker <= 0x8F)
        if items > MAX_ITEMS or containers > _MAX_CONTAINERS:
            raise WireError(f"more than {MAX_ITEMS} items or {_MAX_CONTAINERS} containers")
    if position > size:
        raise WireError("truncated in the last item")
    if position < size:
        raise WireError(f"{size - position} bytes behind the object")


def _step(
    body: bytes, position: int, marker: int, extensions: tuple[int, ...]
) -> tuple[int, int, bool]:
    """One item of variable size: (children or -1, position behind its head or itself, is text)."""
    if 0xA0 <= marker <= 0xBF:
        return -1, position + 1 + (marker & 0x1F), True
    if 0x90 <= marker <= 0x9F:
        return marker & 0x0F, position + 1, False
    if 0x80 <= marker <= 0x8F:
        return 2 * (marker & 0x0F), position + 1, False
    if marker in _LENGTH_BYTES:
        width = _LENGTH_BYTES[marker]
        return -1, position + 1 + width + _number(body, position + 1, width), marker in _TEXT
    if marker in _CONTAINER:
        width, each = _CONTAINER[marker]
        return each * _number(body, position + 1, width), position + 1 + width, False
    if marker in _FIXED_EXTENSION:
        code, end = position + 1, position + 2 + _FIXED_EXTENSION[marker]
    elif marker in _EXTENSION:
        width = _EXTENSION[marker]
        code = position + 1 + width
        end = code + 1 + _number(body, position + 1, width)
    else:
        raise WireError(f"byte 0x{marker:02x} starts no msgpack item")
    kind = _number(body, code, 1)
    if kind not in extensions:
        raise WireError(f"unknown extension type {kind}")
    return -1, end, False


def _number(body: bytes, position: int, width: int) -> int:
    try:
        return struct.unpack_from({1: ">B", 2: ">H", 4: ">I"}[width], body, position)[0]
    except struct.error as error:
        raise WireError("truncated inside a length") from error
