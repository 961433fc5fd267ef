"""Result files of a worker that means harm, and weights beside cards that do not fit."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from inscan.service.processed import BornWeights, Processed, ResultArray
from inscan.service.result_file import ResultFileError, read_result, read_weights, write_result
from inscan.service.result_view import describe, digest_of
from inscan.service.shelf import ShelfError, read_weights_file

VALUES = np.arange(12.0).reshape(3, 4)
PLACE = "entry/data/values"


@pytest.fixture
def result(tmp_path: Path) -> Path:
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["values"] = VALUES + 4711
    os.mkfifo(tmp_path / "pipe")
    blob = b"weights"
    card = {"sha256": hashlib.sha256(blob).hexdigest(), "born_of": {}}
    made = Processed(
        [ResultArray("values", ("row", "col"), "counts", VALUES, None)],
        {"verdict": "pass"},
        weights=BornWeights(blob, card),
    )
    write_result(tmp_path / "result.h5", made, {})
    return tmp_path / "result.h5"


def virtual(file: h5py.File, place: str) -> None:
    layout = h5py.VirtualLayout(shape=(3, 4), dtype="f8")
    layout[:] = h5py.VirtualSource("secret.h5", "values", shape=(3, 4))
    file.create_virtual_dataset(place, layout)


def external(target: str, name: str) -> Callable[[h5py.File, str], None]:
    def put(file: h5py.File, place: str) -> None:
        file[place] = h5py.ExternalLink(target, name)

    return put


def soft(file: h5py.File, place: str) -> None:
    file["away"] = h5py.ExternalLink("secret.h5", "/")
    file[place] = h5py.SoftLink("/away/values")


def stored_elsewhere(file: h5py.File, place: str) -> None:
    file.create_dataset(place, (3, 4), "f8", external=[("pipe", 0, 96)])


def unfolding(file: h5py.File, place: str) -> None:
    file.create_dataset(place, (1 << 20, 1 << 20), "f8", chunks=(64, 64), compression="gzip")


def never_written(file: h5py.File, place: str) -> None:
    file.create_dataset(place, (1 << 20, 1 << 20), "f8")


def objects(file: h5py.File, place: str) -> None:
    file.create_dataset(place, (3, 4), h5py.string_dtype())


@pytest.mark.parametrize(
    "put",
    [
        external("secret.h5", "values"), external("pipe", "values"), external("/dev/zero", "x"), soft, virtual,
        stored_elsewhere, unfolding, never_written, objects,
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", [PLACE, "entry/data", "entry/weights/safetensors"])
def test_a_result_shows_and_holds_nothing_but_its_own_arrays(result, put, place):
    with h5py.File(result, "a") as file:
        attrs = dict(file[PLACE].attrs)
        del file[place]
        put(file, place)
        if place == PLACE and isinstance(file.get(PLACE, getlink=True), h5py.HardLink):
            for name, value in attrs.items():
                file[PLACE].attrs[name] = value
    looks = [read_weights] if "weights" in place else [describe, digest_of, read_result]
    for look in looks:
        with pytest.raises(ResultFileError):
            look(result)


def test_an_honest_result_is_read(result):
    assert [one.name for one in describe(result)] == ["values"]
    np.testing.assert_array_equal(read_result(result).processed.arrays[0].values, VALUES)
    weights = read_weights(result)
    assert weights is not None and weights.blob == b"weights"


def test_weights_files_that_are_none_or_do_not_fit(tmp_path):
    blob = b"tensors"
    card = {"sha256": hashlib.sha256(blob).hexdigest()}
    path = tmp_path / "a.safetensors"
    path.write_bytes(blob)
    path.with_suffix(".json").write_text(json.dumps(card))
    assert read_weights_file(path).blob == blob
    path.write_bytes(b"tensorz")
    with pytest.raises(ShelfError, match="their card says"):
        read_weights_file(path)
    for text in ("[]", "[" * 100_000, "", "{"):
        path.with_suffix(".json").write_text(text)
        with pytest.raises(ShelfError):
            read_weights_file(path)
    path.with_suffix(".json").write_text(json.dumps(card))
    (tmp_path / "a.pt").write_bytes(blob)
    with pytest.raises(ShelfError, match=r"expected NAME\.safetensors"):
        read_weights_file(tmp_path / "a.pt")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ShelfError, match="no such file"):
        read_weights_file(path)
    path.unlink()
    path.touch()
    os.truncate(path, 65 << 20)
    with pytest.raises(ShelfError, match="has more than"):
        read_weights_file(path)
