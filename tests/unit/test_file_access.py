"""Where documents and files may lead, and where not."""

import os
import subprocess
import sys

import h5py
import numpy as np
import pytest

from inscan.callbacks.external import DetectorFiles, Rows
from inscan.callbacks.file_access import FileRefused, NotReadable, Roots, open_hdf5
from inscan.callbacks.profile import BeamlineProfile, load_profile

DATA = np.arange(24.0).reshape(8, 3)


@pytest.fixture
def folders(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    with h5py.File(outside / "secret.h5", "w") as file:
        file["data"] = DATA
    return inside, outside


@pytest.mark.parametrize(
    ("text", "semantics"),
    [
        ("/nsls2/data/p1/a.h5", "posix"),
        ("C:\\Data\\p1\\a.h5", "windows"),
        ("c:/data/p1/a.h5", "posix"),
        ("/C:/data/p1/a.h5", "posix"),
        ("\\\\ioc7\\share\\p1\\a.h5", "windows"),
        ("//ioc7/share/p1/a.h5", "posix"),
    ],
)
def test_folders_that_are_mounted_elsewhere(tmp_path, text, semantics):
    mapped = {"/nsls2/data": tmp_path, "C:/data": tmp_path, "//ioc7/share": tmp_path}
    assert Roots([tmp_path], mapped).path(text, semantics) == tmp_path / "p1" / "a.h5"


@pytest.mark.parametrize(
    ("uri", "found"),
    [
        ("file://localhost/nsls2/data/a%20b.h5", "a b.h5"),
        ("file://ioc7/share/a.h5", "a.h5"),
        ("file://localhost/C:/data/a.h5", "a.h5"),
        ("file:///nsls2/data/deep/a.h5", "there/a.h5"),
    ],
)
def test_uris_of_folders_that_are_mounted_elsewhere(tmp_path, uri, found):
    mapped = {
        "/nsls2/data": tmp_path,
        "/nsls2/data/deep": tmp_path / "there",
        "C:/data": tmp_path,
        "//ioc7/share": tmp_path,
    }
    assert Roots([tmp_path], mapped).uri(uri) == tmp_path / found


@pytest.mark.parametrize(
    ("text", "semantics", "said"),
    [
        ("C:\\data\\a.h5", "windows", "is a Windows path; say in root_map"),
        ("D:/other/a.h5", "posix", "is a Windows path"),
        ("data\\a.h5", "windows", "is a Windows path"),
        ("//ioc7/share/a.h5", "posix", "is on another host"),
        ("a.h5", "posix", "not an absolute path"),
        ("", "posix", "not an absolute path"),
        ("/mapped/../../../../etc/passwd", "posix", "outside the data roots"),
        ("/mapped2/a.h5", "posix", "outside the data roots"),
        ("/mapped/a\0b.h5", "posix", "is no path"),
        ("/mapped/" + "x" * 5000, "posix", ""),
    ],
)
def test_paths_of_other_machines_and_ways_out_are_refused(tmp_path, text, semantics, said):
    roots = Roots([tmp_path], {"/mapped": tmp_path})
    if said:
        with pytest.raises(FileRefused, match=said):
            roots.path(text, semantics)
    else:
        with pytest.raises((FileRefused, NotReadable)):
            open_hdf5(roots.path(text, semantics))


def test_a_root_map_does_not_allow_what_the_roots_do_not(tmp_path):
    with pytest.raises(FileRefused, match="outside the data roots"):
        Roots([tmp_path / "a"], {"/x": tmp_path / "b"}).path("/x/y.h5")


def test_a_profile_says_where_folders_are_mounted():
    content = load_profile("sim_xrf").model_dump(mode="json")
    good = content | {"root_map": {"C:/data": "/data", "/nsls2": "/mnt/nsls2"}}
    assert str(BeamlineProfile.model_validate(good).root_map["C:/data"]) == "/data"
    for bad in ({"data": "/data"}, {"/data": "data"}):
        with pytest.raises(ValueError, match="absolute"):
            BeamlineProfile.model_validate(content | {"root_map": bad})


def read(root, path, name="data", shape=(3,)):
    files = DetectorFiles([root])
    try:
        files.add(
            {
                "uid": "r1",
                "data_key": "k",
                "mimetype": "application/x-hdf5",
                "uri": f"file://localhost{path}",
                "parameters": {"dataset": name},
            }
        )
        return np.concatenate([b for _, b in files.read(Rows("r1", "d", "k", 0, 8, 1), shape)])
    finally:
        files.close()


def virtual(path, source, dataset="data"):
    layout = h5py.VirtualLayout(shape=(8, 3), dtype="f8")
    layout[:] = h5py.VirtualSource(source, dataset, shape=(8, 3))
    with h5py.File(path, "a") as file:
        file.create_virtual_dataset("data", layout)


def test_a_virtual_dataset_of_a_virtual_dataset_outside_is_refused(folders):
    inside, outside = folders
    virtual(inside / "one.h5", str(outside / "secret.h5"))
    virtual(inside / "two.h5", "one.h5")
    with pytest.raises(FileRefused, match="outside the data roots"):
        read(inside, inside / "two.h5")


def test_a_virtual_dataset_of_its_own_file_that_links_outside_is_refused(folders):
    inside, outside = folders
    with h5py.File(inside / "a.h5", "w") as file:
        file["linked"] = h5py.ExternalLink(str(outside / "secret.h5"), "data")
    virtual(inside / "a.h5", ".", "linked")
    with pytest.raises(FileRefused, match="outside the data roots"):
        read(inside, inside / "a.h5")


def test_names_in_a_file_are_not_found_in_the_current_folder(folders, monkeypatch):
    """HDF5 looks there for a relative name that is not beside the file."""
    inside, outside = folders
    virtual(inside / "a.h5", "secret.h5")
    with h5py.File(inside / "b.h5", "w") as file:
        file["data"] = h5py.ExternalLink("secret.h5", "data")
        file.create_dataset("raw", (8, 3), "f8", external=[("secret.h5", 0, DATA.nbytes)])
    monkeypatch.chdir(outside)
    for name, dataset in (("a.h5", "data"), ("b.h5", "data"), ("b.h5", "raw")):
        with pytest.raises(FileRefused, match="outside the data roots"):
            read(inside, inside / name, dataset)


def test_a_virtual_dataset_within_the_roots_is_read(folders):
    inside, _ = folders
    with h5py.File(inside / "source.h5", "w") as file:
        file["data"] = DATA
    virtual(inside / "a.h5", "source.h5")
    virtual(inside / "b.h5", "a.h5")
    np.testing.assert_array_equal(read(inside, inside / "b.h5"), DATA)


def test_layers_and_patterns_of_virtual_datasets_have_an_end(folders):
    inside, _ = folders
    virtual(inside / "loop.h5", "loop.h5")
    with pytest.raises(FileRefused, match="too many files or layers"):
        read(inside, inside / "loop.h5")
    endless = h5py.h5s.UNLIMITED
    space = h5py.h5s.create_simple((8, 3), (endless, 3))
    space.select_hyperslab((0, 0), (endless, 1), (8, 3), (8, 3))
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_virtual(space, b"source-%b.h5", b"data", h5py.h5s.create_simple((8, 3)))
    with h5py.File(inside / "pattern.h5", "w", libver="latest") as file:
        whole = h5py.h5s.create_simple((8, 3), (endless, 3))
        h5py.h5d.create(file.id, b"data", h5py.h5t.NATIVE_DOUBLE, whole, made)
    with pytest.raises(FileRefused, match="by a pattern"):
        read(inside, inside / "pattern.h5")


def test_a_chunk_that_says_it_is_huge_is_refused(folders):
    inside, _ = folders
    with h5py.File(inside / "a.h5", "w") as file:
        file.create_dataset("data", (8, 1 << 28), "f4", chunks=(3, 1 << 28))
    with pytest.raises(FileRefused, match="a chunk of"):
        read(inside, inside / "a.h5", shape=(1 << 28,))


def test_pipes_devices_and_folders_are_not_opened(folders):
    inside, _ = folders
    os.mkfifo(inside / "pipe.h5")
    (inside / "folder.h5").mkdir()
    for name in ("pipe.h5", "folder.h5"):
        with pytest.raises(FileRefused, match="is not a file"):
            read(inside, inside / name)


def test_a_truncated_file_is_waited_for(folders):
    inside, _ = folders
    with h5py.File(inside / "whole.h5", "w") as file:
        file.create_dataset("data", data=np.arange(24_000.0).reshape(8, 3000), chunks=(1, 3000))
    whole = (inside / "whole.h5").read_bytes()
    for n in (8, 9, 200, 2000, len(whole) // 2, len(whole) - 1):
        (inside / "part.h5").write_bytes(whole[:n])
        with pytest.raises(NotReadable):
            read(inside, inside / "part.h5", shape=(3000,))


def test_damaged_files_raise_nothing_else(folders):
    inside, _ = folders
    with h5py.File(inside / "whole.h5", "w", libver="latest") as file:
        file.create_dataset("data", data=DATA, chunks=(2, 3), compression="gzip")
    whole = bytearray((inside / "whole.h5").read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(80):
        damaged = bytearray(whole)
        for at in rng.integers(9, len(whole), 4):
            damaged[at] = rng.integers(256)
        (inside / "damaged.h5").write_bytes(damaged)
        try:
            assert read(inside, inside / "damaged.h5").shape == (8, 3)
        except (FileRefused, NotReadable):
            pass


def test_a_file_whose_writer_died_half_way_does_not_stop_everything(folders):
    """Left to itself HDF5 goes on for minutes, with Python's lock held."""
    inside, _ = folders
    with h5py.File(inside / "whole.h5", "w", libver="latest") as file:
        data = file.create_dataset("data", data=DATA, maxshape=(None, 3))
        file.swmr_mode = True
        data.flush()
        left = bytearray((inside / "whole.h5").read_bytes())
    left[left.rfind(b"OHDR") + 20] ^= 0xFF
    (inside / "left.h5").write_bytes(left)
    with pytest.raises(NotReadable):
        read(inside, inside / "left.h5")


HOLDER = """
import sys, h5py
files = [h5py.File(path, "w") for path in sys.argv[1:]]
print("open", flush=True)
sys.stdin.readline()
for file in files:
    file["data"] = [[0.0, 1.0, 2.0]] * 8
    file.close()
"""


def test_a_file_that_is_still_written_without_swmr_is_waited_for(folders):
    inside, _ = folders
    path = inside / "a.h5"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as writer:
        assert writer.stdin is not None and writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        with pytest.raises(NotReadable):
            read(inside, path)
        writer.stdin.close()
    assert read(inside, path).shape == (8, 3)


def test_more_files_than_are_kept_open_at_once(folders):
    inside, _ = folders
    files = DetectorFiles([inside])
    for number in range(40):
        with h5py.File(inside / f"{number}.h5", "w", libver="latest") as file:
            file.create_dataset("data", data=DATA + number, maxshape=(None, 3))
        files.add(
            {
                "uid": f"r{number}",
                "data_key": "k",
                "mimetype": "application/x-hdf5",
                "uri": f"file://localhost{inside}/{number}.h5",
                "parameters": {"dataset": "data"},
            }
        )
    before = len(os.listdir("/proc/self/fd"))
    for number in (*range(40), 0, 39, 20):
        ((_, block),) = files.read(Rows(f"r{number}", "d", "k", 2, 4, 3), (3,))
        np.testing.assert_array_equal(block, DATA[2:4] + number)
    assert len(os.listdir("/proc/self/fd")) - before <= 16
    files.close()
