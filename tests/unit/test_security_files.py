"""Hostile paths and files against the readers that the service uses: nothing outside is read, nothing hangs."""

import gzip
import io
import json
import os
import struct
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile

from inscan.callbacks.external import DetectorFiles, Rows
from inscan.callbacks.file_access import FileRefused, NotReadable, Roots, open_file, open_hdf5
from inscan.callbacks.file_sequences import read_array, rows_of_npy
from inscan.callbacks.sources import file_formats
from inscan.callbacks.sources.file_formats import Problems, read_documents
from inscan.callbacks.sources.interface import SourceError
from inscan.service import archive_files
from inscan.service.archive_files import open_archive
from inscan.service.archive_types import ArchiveError

SECRET = np.full((8, 3), 4711.0)
PUBLIC = np.zeros((8, 3))
HDF5, TIFF, NPY = "application/x-hdf5", "image/tiff", "application/x-npy"


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    """A data root; `secret.h5`, `.npy` and `.tif` lie beside it, and are not to be read."""
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["data"] = SECRET
    np.save(tmp_path / "secret.npy", SECRET)
    tifffile.imwrite(tmp_path / "secret.tif", SECRET)
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def read(root: Path, uri: str, mimetype: str = HDF5, name: str = "data") -> np.ndarray:
    files = DetectorFiles([root])
    doc: dict[str, Any] = {"uid": "r", "data_key": "k", "mimetype": mimetype, "uri": uri}
    try:
        files.add(doc | {"parameters": {"dataset": name, "chunk_shape": [1]}})
        return np.concatenate([b for _, b in files.read(Rows("r", "d", "k", 0, 8, 1), (3,))])
    finally:
        files.close()


@pytest.mark.parametrize("mimetype", [HDF5, TIFF, NPY])
def test_paths_that_lead_out_of_the_data_roots(inside, mimetype):
    for name, target in (("link", "secret.h5"), ("folder", ".."), ("shadow", "/etc/shadow")):
        (inside / name).symlink_to(target if target != "secret.h5" else inside.parent / target)
    uris = [
        "file://localhost/etc/shadow", "file:///etc/shadow", "file:///proc/self/mem", "file:///proc/self/environ",
        "file:///dev/zero", "file:///dev/stdin", "file:///proc/1/root/etc/shadow", "file://elsewhere/etc/shadow",
        f"file://localhost{inside}/../secret.h5", f"file://localhost{inside}/%2e%2e/secret.h5",
        f"file://localhost{inside}/../../../../../../etc/shadow", f"file://localhost{inside}/link",
        f"file://localhost{inside}/folder/secret.h5", f"file://localhost{inside}/shadow",
        f"file://localhost{inside}/a%00.h5", "http://localhost/secret.h5", "secret.h5", "", "file:", "file://",
        "file:///C:/secret.h5", "file:////host/share/secret.h5", f"file://localhost{inside}-other/secret.h5",
    ]  # fmt: skip
    for uri in uris:
        with pytest.raises(FileRefused):
            read(inside, uri, mimetype)


def test_without_data_roots_nothing_is_read(inside):
    np.save(inside / "a.npy", PUBLIC)
    files = DetectorFiles([])
    doc = {"uid": "r", "data_key": "k", "mimetype": NPY, "uri": f"file://localhost{inside}/a.npy"}
    with pytest.raises(FileRefused, match="none is set"):
        files.add(doc | {"parameters": {}})


@pytest.mark.parametrize("mimetype", [HDF5, TIFF, NPY])
def test_what_is_no_file_is_not_waited_for(inside, mimetype):
    os.mkfifo(inside / "pipe")
    (inside / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(FileRefused, match="is not a file"):
            read(inside, f"file://localhost{inside}/{name}", mimetype)


def test_a_file_that_became_a_link_or_a_pipe_after_it_was_looked_at(inside):
    path = Roots([inside]).confine(inside / "a.h5")
    for make in (lambda p: p.symlink_to(inside.parent / "secret.h5"), os.mkfifo):
        for opener in (open_file, open_hdf5):
            path.unlink(missing_ok=True)
            make(path)
            with pytest.raises(FileRefused, match="become a link|is not a file"):
                opener(path)


@pytest.mark.parametrize("kind", ["h5", "npy"])
def test_a_file_that_is_swapped_all_the_time_never_shows_what_lies_outside(inside, kind):
    good, link, path = inside / f"good.{kind}", inside / f"link.{kind}", inside / f"a.{kind}"
    if kind == "h5":
        with h5py.File(good, "w") as file:
            file["data"] = PUBLIC
    else:
        np.save(good, PUBLIC)
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            link.unlink(missing_ok=True)
            link.symlink_to(inside.parent / f"secret.{kind}")
            os.replace(link, path)
            os.link(good, link)
            os.replace(link, path)

    swapper = threading.Thread(target=swap)
    swapper.start()
    seen = {"read": 0, "refused": 0}
    try:
        while min(seen.values()) < 20:
            try:
                found = read(inside, f"file://localhost{path}", HDF5 if kind == "h5" else NPY)
            except (FileRefused, NotReadable):
                seen["refused"] += 1
                continue
            seen["read"] += 1
            assert not found.any()
    finally:
        over.set()
        swapper.join()


def links(path: Path, secret: Path) -> Iterator[str]:
    """Names in a file by which HDF5 would come to the secret, or wait for ever."""
    os.mkfifo(path.parent / "pipe")
    with h5py.File(path, "w") as file:
        file["external"] = h5py.ExternalLink(str(secret), "data")
        file["above"] = h5py.ExternalLink("../secret.h5", "/data")
        file["root"] = h5py.ExternalLink(str(secret), "/")
        file["soft"] = h5py.SoftLink("/root/data")
        file["group/soft"] = h5py.SoftLink("/soft")
        file["pipe"] = h5py.ExternalLink("pipe", "data")
        file["device"] = h5py.ExternalLink("/dev/zero", "data")
        file["itself"] = h5py.SoftLink("/itself")
        for name, other in (("stored", secret), ("stored_pipe", path.parent / "pipe")):
            file.create_dataset(name, (8, 3), "f8", external=[(str(other), 0, 192)])
        layout = h5py.VirtualLayout(shape=(8, 3), dtype="f8")
        layout[:] = h5py.VirtualSource(str(secret), "data", shape=(8, 3))
        file.create_virtual_dataset("virtual", layout)
        layout = h5py.VirtualLayout(shape=(8, 3), dtype="f8")
        layout[:] = h5py.VirtualSource(".", "root/data", shape=(8, 3))
        file.create_virtual_dataset("virtual_link", layout)
        layout = h5py.VirtualLayout(shape=(8, 3), dtype="f8")
        layout[:] = h5py.VirtualSource("pipe", "data", shape=(8, 3))
        file.create_virtual_dataset("virtual_pipe", layout)
    yield from (
        "external", "above", "root/data", "soft", "group/soft", "pipe", "device", "itself",
        "stored", "stored_pipe", "virtual", "virtual_link", "virtual_pipe",
    )  # fmt: skip


def test_hdf5_leads_nowhere_else(inside):
    for name in links(inside / "a.h5", inside.parent / "secret.h5"):
        with pytest.raises((FileRefused, NotReadable)):
            read(inside, f"file://localhost{inside}/a.h5", HDF5, name)
            pytest.fail(name)


def test_hdf5_links_within_the_data_roots_are_followed(inside):
    with h5py.File(inside / "other.h5", "w") as file:
        file["entry/data"] = PUBLIC
        file["entry/soft"] = h5py.SoftLink("data")
    with h5py.File(inside / "a.h5", "w") as file:
        file["data"] = h5py.ExternalLink("other.h5", "entry/soft")
    assert read(inside, f"file://localhost{inside}/a.h5").shape == (8, 3)


def test_an_archive_leads_nowhere_else(inside):
    names = set(links(inside / "a.h5", inside.parent / "secret.h5"))
    with h5py.File(inside / "a.h5", "a") as file:
        file["good"] = PUBLIC
    with open_archive(inside / "a.h5") as archive:
        found = {name for name in archive.datasets if name.partition("/")[0] in names | {"good"}}
        assert found == {"good"}


def test_a_filter_that_is_not_known_is_not_loaded_from_beside_the_file(inside, monkeypatch):
    monkeypatch.chdir(inside)
    (inside / "libh5evil.so").write_bytes(b"\x7fELF" + bytes(100))
    with h5py.File(inside / "a.h5", "w") as file:
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        made.set_chunk((8, 3))
        made.set_filter(511, h5py.h5z.FLAG_OPTIONAL)
        space = h5py.h5s.create_simple((8, 3))
        data = h5py.h5d.create(file.id, b"data", h5py.h5t.IEEE_F64LE, space, made)
        data.write_direct_chunk((0, 0), bytes(192))
    with pytest.raises(NotReadable):
        read(inside, f"file://localhost{inside}/a.h5")


def test_a_tiff_whose_series_lies_in_another_file(inside):
    ome = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1"><Image ID="Image:0">'
        '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="double" SizeX="3" SizeY="8" SizeZ="1" SizeC="1" SizeT="1">'
        '<Channel ID="Channel:0:0" SamplesPerPixel="1"/><TiffData IFD="0" PlaneCount="1">'
        '<UUID FileName="../secret.tif">urn:uuid:2</UUID></TiffData></Pixels></Image></OME>'
    )
    path = inside / "a.ome.tif"
    tifffile.imwrite(path, PUBLIC, description=ome.encode(), metadata=None)
    with tifffile.TiffFile(path) as file:
        assert file.is_ome and file.series[0].asarray().any(), "left to itself it reads the other"
    assert not read_array(path, TIFF, (8, 3)).any()
    with open_archive(path) as archive:
        assert not any(one.read(()).any() for one in archive.datasets.values())


def test_an_npy_file_that_says_it_is_huge_takes_no_memory_and_is_never_mapped(inside, monkeypatch):
    monkeypatch.setattr(np, "memmap", lambda *_, **__: pytest.fail("who cuts it short ends us"))
    path = inside / "a.npy"
    np.save(path, PUBLIC)
    assert rows_of_npy(path, (3,), 2, 5).shape == (3, 3)
    np.save(path, np.asfortranarray(PUBLIC))
    assert rows_of_npy(path, (3,), 2, 5).shape == (3, 3)
    header = {"descr": "<f8", "fortran_order": False, "shape": (1 << 39, 3)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(NotReadable, match="cut short"):
        rows_of_npy(path, (3,), 1 << 30, (1 << 30) + 8)
    with pytest.raises(FileRefused, match="bytes; at most"):
        rows_of_npy(path, (3,), 0, 1 << 38)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(NotReadable):
        rows_of_npy(path, (3,), 0, 8)


def test_a_small_npz_file_cannot_expand_into_a_header_of_gigabytes(inside):
    blob = np.lib.format.magic(2, 0) + struct.pack("<I", 1 << 31) + bytes(1 << 20)
    with zipfile.ZipFile(inside / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.npy", blob)
        good = io.BytesIO()
        np.save(good, PUBLIC)
        archive.writestr("good.npy", good.getvalue())
    with open_archive(inside / "a.npz") as archive:
        assert set(archive.datasets) == {"good"}


def test_an_archive_that_expands_too_far_is_refused(inside, monkeypatch):
    monkeypatch.setattr(archive_files, "_TEXT_BYTES", 1 << 16)
    monkeypatch.setattr(archive_files, "MOST_BYTES", 1 << 16)
    (inside / "a.csv.gz").write_bytes(gzip.compress(b"1,2\n" * (1 << 16)))
    with (
        pytest.raises(ArchiveError, match="characters is not read"),
        open_archive(inside / "a.csv.gz"),
    ):
        pass
    zeros = np.zeros((1 << 10, 1 << 10))
    np.savez_compressed(inside / "b.npz", a=zeros)
    tifffile.imwrite(inside / "b.tif", zeros, compression="zlib")
    with h5py.File(inside / "b.h5", "w") as file:
        file.create_dataset("a", data=zeros, compression="gzip")
        file.create_dataset("claims", (1 << 40,), "f8", chunks=(1 << 10,))
    for name in ("b.npz", "b.tif", "b.h5"):
        with open_archive(inside / name) as archive:
            for one in archive.datasets.values():
                with pytest.raises(ArchiveError, match="--crop"):
                    one.read(())


def test_documents_that_expand_too_far_are_refused(inside, monkeypatch):
    monkeypatch.setattr(file_formats, "_MAX_EXPANDED", 1 << 18)
    line = json.dumps(["start", {"uid": "u", "time": 0.0}]).encode() + b"\n"
    (inside / "a.jsonl.gz").write_bytes(gzip.compress(line * (1 << 13)))
    with pytest.raises(SourceError, match="expands to more than"):
        list(read_documents(inside / "a.jsonl.gz", Problems()))


def test_documents_that_are_deep_are_counted_and_the_others_read(inside):
    good = json.dumps(["start", {"uid": "u", "time": 0.0}])
    deep = ["[" * 100_000, '{"a":' * 100_000, '["start", ' + "[" * 5000 + "]" * 5000 + "]"]
    (inside / "a.jsonl").write_text("\n".join([good, *deep, good]))
    problems = Problems()
    assert len(list(read_documents(inside / "a.jsonl", problems))) == 2
    assert problems.counts["garbage"] == 3


def test_a_file_of_documents_that_is_none_is_not_waited_for(inside):
    os.mkfifo(inside / "pipe.jsonl")
    for path in (inside / "pipe.jsonl", inside, Path("/dev/zero")):
        with pytest.raises(SourceError):
            list(read_documents(path, Problems()))
