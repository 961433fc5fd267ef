"""The codec carries any plain data and array, and anything else ends in WireError."""

import math
import struct
import tracemalloc
import zlib

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from inscan.callbacks import wire
from inscan.callbacks.legible import legible
from inscan.callbacks.wire import (
    MAX_HEADER_BYTES,
    PROTOCOL,
    DamagedError,
    Message,
    VersionError,
    WireError,
    decode_message,
    encode_message,
    in_version_of,
    pack,
    pack_parts,
    unpack,
)

_DTYPES = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(),
    hnp.unsigned_integer_dtypes(),
    hnp.floating_dtypes(),
    hnp.complex_number_dtypes(),
    hnp.byte_string_dtypes(min_len=1),
    hnp.unicode_string_dtypes(min_len=1),
)
_SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False),
    st.complex_numbers(allow_nan=False),
    st.text(max_size=40),
    st.binary(max_size=40),
)
_PLAIN = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=20),
        st.dictionaries(st.one_of(st.text(max_size=10), st.integers(-9, 9)), inner, max_size=20),
    ),
    max_leaves=40,
)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@given(st.data(), _DTYPES, _SHAPES)
def test_arrays_of_every_dtype_and_shape_come_back_identical(data, dtype, shape):
    array = data.draw(hnp.arrays(dtype, shape))
    back = unpack(pack({"a": array, "n": 1, "again": [array]}))
    assert same(back["a"], array) and same(back["again"][0], array) and back["n"] == 1
    assert array.size == 0 or not back["a"].flags.writeable


@given(hnp.arrays(st.sampled_from(["<i4", ">f8", "u1"]), (4, 5, 6)), st.integers(0, 5))
def test_arrays_that_are_not_contiguous_come_back_in_c_order(array, axis):
    for view in (array.T, array[::2, ::-1], array[:, axis % 5], array[..., ::3]):
        back = unpack(pack(view))
        assert same(back, view.copy(order="C"))
        assert back.flags.c_contiguous


@given(_PLAIN)
def test_plain_data_comes_back_equal(value):
    assert unpack(pack(value)) == value


@pytest.mark.parametrize(
    ("given_value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(-3), -3),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.bool_(True), True),
        (np.str_("Fe_K"), "Fe_K"),
        (np.bytes_(b"xs"), b"xs"),
        (np.complex64(1 + 2j), 1 + 2j),
        ((1, (2, 3)), [1, [2, 3]]),
    ],
)
def test_numpy_scalars_and_tuples_become_python(given_value, expected):
    back = unpack(pack([given_value]))[0]
    assert back == expected
    assert type(back) is type(expected)


def test_nan_and_infinity_stay_what_they_are():
    back = unpack(pack([math.nan, math.inf, -math.inf, np.array([np.nan, -0.0])]))
    assert math.isnan(back[0]) and back[1:3] == [math.inf, -math.inf]
    assert math.isnan(back[3][0]) and math.copysign(1, back[3][1]) == -1


def test_text_of_zero_width_and_long_double():
    assert unpack(pack(np.ndarray((3,), "U0"))).tolist() == ["", "", ""]
    value = np.longdouble(1) / 3
    assert unpack(pack(value)) == value


def test_large_arrays_are_not_copied():
    array = np.arange(2**20, dtype=np.uint16)
    parts = pack_parts({"frame": array})
    assert any(np.shares_memory(np.frombuffer(part, "u1"), array) for part in parts if len(part))
    packed = b"".join(parts)
    back = unpack(packed)["frame"]
    assert np.shares_memory(back, np.frombuffer(packed, "u1"))
    assert back.flags.aligned and same(back, array)


@pytest.mark.parametrize(
    "value",
    [
        np.array([object()]),
        np.array([1], dtype=[("a", "i4")]),
        np.array(["2020-01-01"], dtype="M8[s]"),
        np.datetime64("2020-01-01"),
        np.ma.masked_array([1, 2], mask=[True, False]),
        object(),
        {1, 2},
        2**64,
        "\ud800",
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_plain_is_refused_by_name(value):
    with pytest.raises(WireError):
        pack({"x": value})
    # The document log records something legible in its place.
    found = unpack(pack(legible({"x": value, "y": 1})))
    assert found["y"] == 1 and "x" in found


def test_plain_keeps_what_is_fine_and_survives_a_cycle():
    loop: dict = {"a": np.arange(3)}
    loop["self"] = loop
    back = unpack(pack(legible(loop)))
    assert back["a"].tolist() == [0, 1, 2]
    assert legible({"k": {(1, 2): np.array([None, "x"], dtype=object)}}) == {
        "k": {"(1, 2)": [None, "x"]}
    }


# Hostile input


def _body(body: bytes, tail: bytes = b"") -> bytes:
    return struct.pack("<I", len(body)) + body + tail


def _packb(obj: object) -> bytes:
    packed = msgpack.packb(obj)
    assert packed is not None
    return packed


def _array(dtype: bytes, *shape: int) -> bytes:
    header = (
        bytes([len(dtype)]) + dtype + bytes([len(shape)]) + struct.pack(f"<{len(shape)}Q", *shape)
    )
    return _packb(msgpack.ExtType(1, header))


@given(st.binary(max_size=400))
def test_random_bytes_give_an_object_or_a_wire_error(junk):
    for candidate in (junk, _body(junk), _body(_packb(msgpack.ExtType(1, junk)), junk)):
        try:
            unpack(candidate)
        except WireError:
            pass
    try:
        decode_message([b"XI", bytes(PROTOCOL), b"DOC", junk, crc(b"DOC", junk)])
    except WireError:
        pass


_SAMPLE = pack(
    {"data": {"a": np.arange(6.0).reshape(2, 3), "s": np.array(["x", "yy"])}, "z": [1, 2.5, "t"]}
)


@given(st.integers(0, len(_SAMPLE) - 1))
def test_every_truncation_is_an_error(length):
    with pytest.raises(WireError):
        unpack(_SAMPLE[:length])


@given(st.lists(st.tuples(st.integers(0, len(_SAMPLE) - 1), st.integers(0, 255)), min_size=1))
def test_flipped_bytes_give_an_object_or_a_wire_error(changes):
    damaged = bytearray(_SAMPLE)
    for position, value in changes:
        damaged[position] = value
    try:
        repr(unpack(damaged))
    except WireError:
        pass


@pytest.mark.parametrize(
    "hostile",
    [
        _body(b"\x91" * 100_000 + b"\xc0"),  # lists in lists
        _body(b"\x81\xa1a" * 1000 + b"\xc0"),  # maps in maps
        _body(b"\xdd\xff\xff\xff\xff" + b"\xc0" * 100),  # four billion items, a hundred there
        _body(b"\xdd\x00\x0f\x00\x00" * 60 + b"\xc0" * 0x0F0000),  # the same, nested
        _body(b"\xdf\x7f\xff\xff\xff" + b"\xc0" * 100),
        _body(b"\xdb\xff\xff\xff\xff" + b"a" * 100),
        _body(b"\xc9\xff\xff\xff\xff\x01" + b"a" * 100),
        _body(b"\xd6\xff\x00\x00\x00\x00"),  # a timestamp
        _body(b"\xc1"),
        _body(b"\x81\x90\x01"),  # a list as key
        _body(b"\x81" + _array(b"<f8") + b"\x01", bytes(12)),  # an array as key
        _body(_array(b"|O8", 1), bytes(8)),
        _body(_array(b"|V8", 1), bytes(8)),
        _body(_array(b"<M8[s]", 1), bytes(8)),
        _body(_array(b"<U0", 2**40)),
        _body(_array(b"<f8", 2**40), bytes(64)),
        _body(_array(b"<f8", 2**63, 2**63), bytes(64)),
        _body(_array(b"<f8", 0, 2**62)),
        _body(_array(b"<f8", 2), bytes(64)),  # bytes left over
        _body(_array(b"<f8", *[1] * 33), bytes(64)),
        _body(_array(b"<U1", 1), bytes(1) + b"\xff" * 12),  # beyond Unicode
        _body(_array(b"|b1", 1), b"\x07" * 16),
        _body(b"\x92" + _array(b"<f8", 1) * 2, bytes(12)),  # two arrays, one array's bytes
    ],
)
def test_hostile_objects_are_refused_before_memory_is_asked_for(hostile):
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            unpack(hostile)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(hostile) + 2**20


def test_a_message_of_many_integer_keys_is_refused():
    with pytest.raises(WireError, match="keys"):
        unpack(pack(dict.fromkeys(range(5000))))


def test_long_lists_of_numbers_pass_and_too_long_buffers_do_not():
    numbers = [0, -1, 300, 70_000, 2**40, 1.5, True, None] * 1000
    assert unpack(pack(numbers)) == numbers
    packed = pack([1.5] * 1000)
    assert unpack(packed, max_bytes=len(packed)) == [1.5] * 1000
    with pytest.raises(WireError, match="at most"):
        unpack(packed, max_bytes=len(packed) - 1)


# Messages


def test_a_message_comes_back():
    frames = encode_message("DOC", {"run": "u", "offset": 7}, b"chunk", memoryview(b"more"))
    message = decode_message(frames)
    assert isinstance(message, Message)
    assert (message.kind, message.header) == ("DOC", {"run": "u", "offset": 7})
    assert [bytes(chunk) for chunk in message.chunks] == [b"chunk", b"more"]


def test_another_major_version_is_named_another_minor_is_fine():
    frames = [bytes(frame) for frame in encode_message("PING", {})]
    major, minor = wire.PROTOCOL
    decode_message([frames[0], bytes([major, minor + 7]), *frames[2:]])
    with pytest.raises(VersionError, match=f"speaks protocol {major + 1}"):
        decode_message([frames[0], bytes([major + 1, 0]), *frames[2:]])


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f[:3],
        lambda f: [b"XX", *f[1:]],
        lambda f: [f[0], b"\x01", *f[2:]],
        lambda f: [f[0], f[1], b"doc", f[3]],
        lambda f: [f[0], f[1], b"D" * 2**20, f[3]],
        lambda f: [f[0], f[1], f[2], pack([1])],
        lambda f: [f[0], f[1], f[2], pack({1: 2})],
        lambda f: [f[0], f[1], f[2], pack({"a": bytes(MAX_HEADER_BYTES)})],
        lambda f: [*f, *[b""] * 65],
    ],
)
def test_malformed_messages_are_refused(change):
    frames = [bytes(frame) for frame in encode_message("DOC", {"run": "u"})]
    changed = change(frames[:4])
    checked = changed
    if len(changed) >= 4:
        checked = [*changed[:4], crc(*changed[2:4], *changed[4:]), *changed[4:]]
    with pytest.raises(WireError) as caught:
        decode_message(checked)
    assert not isinstance(caught.value, DamagedError)


def crc(*frames: bytes) -> bytes:
    return zlib.crc32(b"".join(frames)).to_bytes(4, "little")


@given(bit=st.integers(0, 8 * 4000), frame=st.integers(2, 6))
def test_a_flipped_bit_is_noticed(bit, frame):
    frames = [bytearray(f) for f in encode_message("DOC", {"run": "u"}, b"chunk" * 800, b"more")]
    place = frames[frame]
    place[bit // 8 % len(place)] ^= 1 << bit % 8
    with pytest.raises(DamagedError):
        decode_message(frames)
    with pytest.raises(DamagedError):
        decode_message([*frames[:6], bytes(frames[6])[:-1]])


def test_a_message_without_a_checksum_is_another_versions():
    frames = [bytes(frame) for frame in encode_message("PING", {})][:4]
    with pytest.raises(DamagedError):
        decode_message(frames)
    with pytest.raises(VersionError, match="protocol 1.0"):
        decode_message([frames[0], b"\x01\x00", *frames[2:]])
    assert in_version_of([b"XI", b"\x01\x00"], encode_message("ERR", {}))[1] == b"\x01\x00"


def test_a_header_too_large_is_refused_where_it_is_made():
    with pytest.raises(WireError, match="chunk"):
        encode_message("REPLY", {"rows": ["x" * 100] * 1000})
    with pytest.raises(WireError, match="capitals"):
        encode_message("reply", {})
