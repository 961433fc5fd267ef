"""Every decoder reads what it should and refuses the rest by name: a share of the fuzzing, and what it found."""

import importlib
import io
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from inscan.callbacks.file_access import NotReadable
from inscan.callbacks.file_sequences import read_array, rows_of_npy
from inscan.service.archive_files import open_archive
from inscan.service.archive_types import ArchiveError
from inscan.service.plain_hdf5 import check_heaps
from inscan.service.processed import Processed, ResultArray
from inscan.service.result_file import ResultFileError, read_result, read_weights, write_result
from inscan.service.result_view import describe, digest_of

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
table: Any = importlib.import_module("decoders")
fuzzing: Any = importlib.import_module("decoder_fuzz")
sys.path.remove(str(BENCHMARKS))

_INPUTS = 25
# Files are written for each input, and HDF5 takes its time.
_FEWER = 5


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {one.name: one for one in table.decoders(tmp_path_factory.mktemp("decoders"))}


@pytest.mark.filterwarnings("ignore")  # readers of files of others warn of what they find
def test_each_decoder_reads_or_refuses(decoders: dict[str, Any]) -> None:
    for decoder in decoders.values():
        rng, found = Random(decoder.name), []
        for seed in decoder.seeds:
            assert fuzzing.attempt(decoder.decode, decoder.raises, seed)[0] != "defect"
        for _ in range(_FEWER if "file" in decoder.name or "archive" in decoder.name else _INPUTS):
            data = fuzzing.mutated(rng.choice(decoder.seeds), decoder.seeds, rng)
            how, what = fuzzing.attempt(decoder.decode, decoder.raises, data)
            if how == "defect":
                found.append((what, data.hex()))
        assert not found, (decoder.name, found[0])


def test_the_fuzzer_sees_what_leaks() -> None:
    def leaks(data: bytes) -> None:
        raise ZeroDivisionError(data)

    assert fuzzing.attempt(leaks, (ValueError,), b"x")[0] == "defect"
    assert fuzzing.attempt(leaks, (ZeroDivisionError,), b"x")[0] == "refused"
    assert fuzzing.attempt(len, (), b"x") == ("read", "")


def endless_tiff() -> bytes:
    """Two pages, of which the second is followed by the first."""
    fields = [
        (256, 3, 1, 2),
        (257, 3, 1, 2),
        (258, 3, 1, 8),
        (262, 3, 1, 1),
        (273, 4, 1, 8),
        (277, 3, 1, 1),
        (279, 4, 1, 4),
    ]
    page = struct.pack("<H", len(fields)) + b"".join(
        struct.pack("<HHI4s", code, kind, count, struct.pack("<I", value))
        for code, kind, count, value in fields
    )
    first, second = 12, 12 + len(page) + 4
    head = b"II*\0" + struct.pack("<I", first) + bytes(4)
    return head + page + struct.pack("<I", second) + page + struct.pack("<I", first)


def npy(header: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(96)


def npz(method: int) -> bytes:
    """Compressed in a way of which nobody knows, by its local header and by the directory."""
    file = io.BytesIO()
    np.savez_compressed(file, Fe_K=np.ones((4, 5)))
    data = bytearray(file.getvalue())
    for sign, at in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        data[data.find(sign) + at] = method
    return bytes(data)


TOKENS = npy(b"{'descr': ('<f4', 'shape': (2,\n")
CUT = npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (900, 7), }\n")


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("endless.tif", endless_tiff()),
        ("tokens.npy", TOKENS),
        ("cut.npy", CUT),
        ("method.npz", npz(method=99)),
    ],
)
def test_archives_that_were_found_by_fuzzing(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    try:
        with open_archive(path) as archive:
            for dataset in archive.datasets.values():
                dataset.read(())
    except ArchiveError as error:
        assert str(path) in str(error)
    else:
        assert name == "endless.tif"  # its two pages are there


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("data", "read"),
    [
        (TOKENS, lambda path: rows_of_npy(path, (7,), 0, 2)),
        (TOKENS, lambda path: read_array(path, "application/x-npy", (2, 7))),
    ],
)
def test_detector_files_that_were_found_by_fuzzing(
    tmp_path: Path, data: bytes, read: Callable[[Path], object]
) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises((NotReadable, OSError)):
        read(path)


@pytest.mark.timeout(20)
def test_pages_that_lead_back_to_themselves_are_read_once(tmp_path: Path) -> None:
    path = tmp_path / "endless.tif"
    path.write_bytes(endless_tiff())
    assert read_array(path, "image/tiff", (2, 2, 2)).shape == (2, 2, 2)


@pytest.mark.parametrize("sign", [b"TREE", b"SNOD", b"HEAP"])
def test_a_result_file_with_a_damaged_directory_is_refused(tmp_path: Path, sign: bytes) -> None:
    path = tmp_path / "result.h5"
    values = np.ones((1, 4, 5), "f4")
    array = ResultArray("values", ("element", "row", "col"), "counts", values, ["Fe_K"])
    write_result(path, Processed([array], {}), {})
    data = path.read_bytes()
    assert sign in data
    path.write_bytes(data.replace(sign, b"\xff\x00\xff\x00"))
    for read in (read_result, describe, digest_of):
        with pytest.raises(ResultFileError, match=r"result\.h5"):
            read(path)
    with pytest.raises(ResultFileError, match="weights"):
        read_weights(path)


@pytest.mark.timeout(20)
def test_a_heap_of_texts_that_leads_nowhere_is_refused_before_hdf5_walks_it(tmp_path: Path) -> None:
    path = tmp_path / "result.h5"
    values = np.ones((1, 4, 5), "f4")
    write_result(
        path, Processed([ResultArray("values", ("e", "y", "x"), "", values, ["a"])], {}), {}
    )
    data = bytearray(path.read_bytes())
    check_heaps(path)
    at = data.find(b"GCOL") + 16
    struct.pack_into("<HH4xQ", data, at, 0, 0, 0)  # free, of no length: HDF5 stays here
    path.write_bytes(data)
    for read in (read_result, describe, digest_of, read_weights):
        with pytest.raises(ResultFileError, match="heap of texts"):
            read(path)
