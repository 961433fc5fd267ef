"""Bytes from strangers: documents come through whole, everything else is refused, nothing is unpickled."""

import json
import os
import pickle  # noqa: TID251 - to make what must not be read
from collections import Counter
from pathlib import Path
from typing import Any

import msgpack
import msgpack_numpy  # noqa: TID251 - the encoder other programs use; only its decoder is dangerous
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from inscan.callbacks.sources.decode import (
    Arrays,
    DecodeError,
    check_document,
    decode_document,
    decode_json,
    decode_msgpack,
    decode_pair,
)
from inscan.callbacks.wire import pack

EVENT = {
    "descriptor": "d",
    "seq_num": 1,
    "uid": "e",
    "time": 1.5,
    "data": {"a": [1, 2, 3], "b": float("inf"), "ß": "µ"},
    "timestamps": {"a": 0.0, "b": 0.0, "ß": 0.0},
}


def numpy_packed(value: Any) -> Any:
    return msgpack.packb(value, default=msgpack_numpy.encode)


@pytest.mark.parametrize(
    "encode", [lambda d: json.dumps(d).encode(), msgpack.packb, pack, numpy_packed]
)
def test_every_format_is_told_by_its_bytes(encode):
    assert decode_document(encode(EVENT)) == EVENT
    assert decode_pair(encode(["event", EVENT])) == ("event", EVENT)


def test_a_length_that_looks_like_text_deceives_nobody():
    """inscan's codec begins with a length: every first byte occurs, braces and pickle's among them."""
    for size in range(300):
        doc = {"uid": "u" * size, "a": np.arange(3)}
        back = decode_document(pack(doc))
        assert back["uid"] == doc["uid"] and back["a"].tolist() == [0, 1, 2]


DTYPES = st.one_of(
    npst.integer_dtypes(),
    npst.unsigned_integer_dtypes(),
    npst.floating_dtypes(),
    npst.boolean_dtypes(),
)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(npst.arrays(DTYPES, npst.array_shapes(min_dims=0, max_dims=3, min_side=0)))
def test_arrays_of_msgpack_numpy_come_back_as_they_were(array):
    back = decode_msgpack(numpy_packed({"a": array, "n": {"s": np.float32(2.5)}}))
    assert back["n"] == {"s": 2.5}
    assert isinstance(back["a"], np.ndarray)
    assert back["a"].dtype == array.dtype and back["a"].shape == array.shape
    assert back["a"].tobytes() == array.tobytes()


def test_complex_numbers_and_text_arrays_of_msgpack_numpy():
    back = decode_msgpack(numpy_packed({"c": 1 + 2j, "t": np.array(["ab", "c"])}))
    assert back["c"] == 1 + 2j and back["t"].tolist() == ["ab", "c"]


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_is_never_read(tmp_path, protocol):
    bomb = pickle.dumps(Bomb(tmp_path / "boom"), protocol=protocol)
    for decode in (decode_document, decode_pair, decode_msgpack, decode_json):
        with pytest.raises(DecodeError):
            decode(bomb)
    assert not (tmp_path / "boom").exists()
    pickle.loads(bomb)  # noqa: S301 - the bomb is a bomb
    assert (tmp_path / "boom").exists()


def test_an_object_array_is_left_out_and_the_rest_of_the_document_kept(tmp_path):
    objects = np.array([Bomb(tmp_path / "boom"), None], dtype=object)
    packed = numpy_packed({"uid": "u", "bad": objects, "good": np.arange(3)})
    counts: Counter[str] = Counter()
    doc = decode_document(packed, counts)
    assert doc["good"].tolist() == [0, 1, 2] and doc["bad"].startswith("(array of objects")
    assert counts == {"object arrays": 1} and not (tmp_path / "boom").exists()
    msgpack.unpackb(packed, object_hook=msgpack_numpy.decode, strict_map_key=False)
    assert (tmp_path / "boom").exists(), "the usual decoder is what this one replaces"


def nd(**fields):
    whole = {b"nd": True, b"type": "<f8", b"kind": b"", b"shape": [2], b"data": bytes(16)}
    return msgpack.packb({"a": whole | {k.encode(): v for k, v in fields.items()}})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00" * 40,
        b"\xff" * 40,
        b"{",
        b'{"a": 1} trailing',
        b"[" * 100_000,
        b"[" * 900 + b"]" * 900,
        b'{"a":' * 90 + b"1" + b"}" * 90,
        b'{"a": ' + b"9" * 5000 + b"}",
        b"\x91" * 5000 + b"\xc0",
        b"\xdd\xff\xff\xff\xff",
        b"\x81\xa1a\xc7\x08\xff" + bytes(8),
        nd(shape=[3]),
        nd(shape=[-1]),
        nd(shape=[2**50, 0], data=b""),
        nd(shape=["2"]),
        nd(type="|O"),
        nd(type="|V16"),
        nd(type="<f8,<i8"),
        nd(type=b"\xff\xff"),
        nd(type="<f7"),
        nd(data="text"),
        nd(type="|b1", data=b"\x02\x01"),
        nd(type="<U1", data=b"\xff" * 8),
        nd(nd=False),
    ],
)
def test_garbage_is_refused_with_a_reason(data):
    with pytest.raises(DecodeError) as error:
        decode_document(data)
    assert 3 < len(str(error.value)) < 400


def test_more_than_a_document_may_hold_is_refused_before_it_is_built():
    with pytest.raises(DecodeError, match="more than"):
        decode_json(b"[" + b"[]," * (2**20 + 1) + b"[]]")


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.binary(max_size=200))
def test_whatever_comes_nothing_else_is_raised(data):
    for decode in (decode_document, decode_pair):
        try:
            decode(data)
        except DecodeError:
            pass


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = ["uid", "run_start", "descriptor", "data", "data_keys", "resource", "stream_resource"]


@settings(max_examples=300, derandomize=True, deadline=None)
@given(
    st.sampled_from(["start", "descriptor", "event", "event_page", "datum_page", "stop", "spam"]),
    st.dictionaries(st.sampled_from(KEYS), json_values, max_size=5),
)
def test_no_document_is_too_strange_to_be_looked_at(name, doc):
    arrays = Arrays()
    try:
        check_document(name, doc)
    except DecodeError:
        return
    assert arrays(name, doc)[0] == name


@pytest.mark.parametrize(
    ("name", "doc", "missing"),
    [
        ("start", {"uid": ""}, "uid"),
        ("start", {"uid": "x" * 257}, "uid"),
        ("descriptor", {"uid": "d", "run_start": 4}, "run_start"),
        ("descriptor", {"uid": "d", "run_start": ["u"]}, "run_start"),
        ("event", {"descriptor": {}}, "descriptor"),
        ("resource", {"uid": "r", "run_start": {}}, "run_start"),
        ("stop", {}, "run_start"),
        ("bulk_events", {}, "event-model"),
    ],
)
def test_what_cannot_be_routed_is_named(name, doc, missing):
    with pytest.raises(DecodeError, match=missing):
        check_document(name, doc)


def key(**more):
    return {"dtype": "array", "shape": [3], "source": "s", **more}


def restored(value, **declared):
    arrays = Arrays()
    arrays("descriptor", {"uid": "d", "run_start": "u", "data_keys": {"a": key(**declared)}})
    event = arrays("event", {"descriptor": "d", "data": {"a": value}})[1]["data"]["a"]
    page = arrays("event_page", {"descriptor": "d", "data": {"a": [value, value]}})[1]["data"]["a"]
    assert len(page) == 2 and all(type(one) is type(event) for one in page)
    return event


def test_lists_become_the_declared_arrays():
    counts = restored([1, 2, 3], dtype_numpy="<u4")
    assert counts.dtype == np.dtype("<u4") and counts.tolist() == [1, 2, 3]
    assert restored([[1.5, 2], [3, 4]]).shape == (2, 2)
    with_gaps = restored([1.0, None, 3.0])
    assert np.isnan(with_gaps[1]) and with_gaps.dtype == np.float64


def test_no_value_is_bent_to_fit_the_declared_dtype():
    assert restored([1, -2, 3], dtype_numpy="<u4").tolist() == [1, -2, 3]
    assert restored([1.5, 2.0], dtype_numpy="<i4").tolist() == [1.5, 2.0]
    assert restored([1, 2**40], dtype_numpy="|u1").tolist() == [1, 2**40]


@pytest.mark.parametrize("value", [["a", "b"], [[1], [1, 2]], [{}], [2**80], [1, "x"]])
def test_what_is_no_array_of_numbers_stays_a_list(value):
    assert restored(value) == value


def test_references_to_external_data_are_left_alone():
    assert restored(["datum/1"], external="FILESTORE:") == ["datum/1"]
