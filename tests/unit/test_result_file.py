import dataclasses
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from inscan.service import result_file
from inscan.service.digest import STRONG_LIMIT_BYTES, digest_arrays
from inscan.service.processed import BornWeights, Processed, ResultArray
from inscan.service.result_file import (
    ResultFileError,
    read_result,
    read_weights,
    write_result,
)
from inscan.service.result_view import digest_of


def processed(seed: int = 0, **report) -> Processed:
    rng = np.random.default_rng(seed)
    values = rng.random((2, 3, 4)).astype("f4")
    values[0, 0, 0] = np.nan
    return Processed(
        [
            ResultArray("values", ("element", "row", "col"), "counts", values, ["Fe_K", "Ca_K"]),
            ResultArray("measured", ("row", "col"), "", rng.random((3, 4)) > 0.5),
        ],
        {"verdict": "pass", **report},
        [{"box": [0, 1, 0, 2], "score": 9.5}],
    )


def test_a_result_reads_back_as_it_was(tmp_path):
    sent = processed()
    digest = write_result(tmp_path / "a.h5", sent, {"key": "k", "geometry": {"shape": [3, 4]}})
    stored = read_result(tmp_path / "a.h5")
    for mine, theirs in zip(sent.arrays, stored.processed.arrays, strict=True):
        np.testing.assert_array_equal(mine.values, theirs.values)
        assert mine.values.dtype == theirs.values.dtype
        assert (mine.name, mine.dims, mine.units, mine.labels) == (
            theirs.name,
            theirs.dims,
            theirs.units,
            theirs.labels,
        )
    assert stored.processed.report == sent.report
    assert stored.processed.regions == sent.regions
    assert stored.meta == {"key": "k", "geometry": {"shape": [3, 4]}}
    assert digest == digest_of(tmp_path / "a.h5")


def test_weights_of_the_run_travel_in_its_file_and_change_nothing_else(tmp_path, monkeypatch):
    weights = BornWeights(bytes(range(256)) * 3, {"sha256": "ab", "born_of": {"raw_uid": "r"}})
    plain = write_result(tmp_path / "a.h5", processed(), {})
    born = write_result(tmp_path / "b.h5", dataclasses.replace(processed(), weights=weights), {})
    assert read_weights(tmp_path / "a.h5") is None
    assert read_weights(tmp_path / "b.h5") == weights
    assert plain == born == digest_of(tmp_path / "b.h5")
    monkeypatch.setattr(result_file, "MAX_WEIGHTS_BYTES", 700)
    with pytest.raises(ResultFileError, match="768 bytes of weights"):
        read_weights(tmp_path / "b.h5")
    with pytest.raises(FileNotFoundError):
        read_weights(tmp_path / "c.h5")


def test_arrays_lie_contiguous_in_the_file(tmp_path):
    write_result(tmp_path / "a.h5", processed(), {})
    with h5py.File(tmp_path / "a.h5") as file:
        dataset = file["entry/data/values"]
        assert isinstance(dataset, h5py.Dataset)
        assert dataset.chunks is None and dataset.id.get_offset() is not None


def test_the_digest_is_of_the_arrays_alone(tmp_path):
    one = write_result(tmp_path / "a.h5", processed(wall_s=1.0), {"when": 1})
    same = write_result(tmp_path / "b.h5", processed(wall_s=2.0), {"when": 2})
    other = write_result(tmp_path / "c.h5", processed(seed=1), {})
    assert one == same != other


def test_a_report_may_be_long(tmp_path):
    write_result(tmp_path / "a.h5", processed(reasons=["why"] * 100_000), {})
    assert len(read_result(tmp_path / "a.h5").processed.report["reasons"]) == 100_000


def test_a_write_that_fails_leaves_the_older_result_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    write_result(path, processed(), {})
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(result_file.os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            write_result(path, processed(seed=1), {})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.h5"]


@pytest.mark.parametrize("content", [b"", b"not HDF5 at all", b"\x89HDF\r\n\x1a\n" + bytes(64)])
def test_what_is_no_result_is_refused_by_name(tmp_path, content):
    path = tmp_path / "a.h5"
    path.write_bytes(content)
    with pytest.raises(ResultFileError, match="a.h5"):
        read_result(path)


def test_a_truncated_result_is_refused(tmp_path):
    path = tmp_path / "a.h5"
    write_result(path, processed(), {})
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ResultFileError):
        read_result(path)


def test_another_format_and_a_missing_file_are_told_apart(tmp_path):
    path = tmp_path / "a.h5"
    write_result(path, processed(), {})
    with h5py.File(path, "r+") as file:
        file.attrs["inscan_format"] = 99
    with pytest.raises(ResultFileError, match="format 99"):
        read_result(path)
    with pytest.raises(FileNotFoundError):
        read_result(Path(tmp_path / "none.h5"))


@pytest.mark.parametrize(
    ("dims", "labels"), [(("row",), None), (("element", "row", "col"), ["only one"])]
)
def test_arrays_and_their_words_must_agree(dims, labels):
    with pytest.raises(ValueError, match="values"):
        ResultArray("values", dims, "counts", np.zeros((2, 3, 4), "f4"), labels)


def test_digests_tell_names_shapes_dtypes_and_bytes_apart():
    base = np.arange(12, dtype="f4")
    digests = [
        digest_arrays({"a": base}),
        digest_arrays({"b": base}),
        digest_arrays({"a": base.reshape(3, 4)}),
        digest_arrays({"a": base.astype("f8")}),
        digest_arrays({"a": base + 1}),
        digest_arrays({"a": base, "b": base}),
    ]
    assert len(set(digests)) == len(digests)
    assert digest_arrays({"a": base, "b": base + 1}) == digest_arrays({"b": base + 1, "a": base})


def test_large_arrays_are_digested_quickly_and_every_block_counts():
    large = np.zeros(STRONG_LIMIT_BYTES // 4 + 1, dtype="f4")
    before = digest_arrays({"a": large})
    assert before.startswith("crc32-sha256:")
    for place in (0, large.size // 2, large.size - 1):
        large[place] = 1
        assert digest_arrays({"a": large}) != before
        large[place] = 0
    assert digest_arrays({"a": large}) == before
