"""Detector files: read when they are there, and never anything but detector files."""

import os
import subprocess
import sys

import h5py
import numpy as np
import pytest

from inscan.callbacks.external import DetectorFiles, FileRefused, NotReadable, Rows

DATA = np.arange(24.0).reshape(8, 3)


def resource(path, dataset="data", **changes):
    return {
        "uid": "r1",
        "data_key": "k",
        "mimetype": "application/x-hdf5",
        "uri": f"file://localhost{path}",
        "parameters": {"dataset": dataset},
    } | changes


def read(files, stop, shape=(3,), start=0):
    parts = list(files.read(Rows("r1", "d", "k", start, stop, start + 1), shape))
    return [first for first, _ in parts], np.concatenate([block for _, block in parts])


@pytest.fixture
def files(tmp_path):
    opened = DetectorFiles([tmp_path])
    yield opened
    opened.close()


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_rows_of_a_finished_file(tmp_path, files, libver):
    path = tmp_path / "with space.h5"
    with h5py.File(path, "w", libver=libver) as file:
        file["data"] = DATA
    files.add(resource(str(path).replace(" ", "%20")))
    firsts, block = read(files, 7, start=2)
    assert firsts == [3]
    np.testing.assert_array_equal(block, DATA[2:7])
    with pytest.raises(NotReadable, match="8 of 9 rows"):
        read(files, 9)


def test_rows_are_stacked_or_concatenated(tmp_path, files):
    path = tmp_path / "a.h5"
    frames = np.arange(4 * 3 * 2.0).reshape(4, 3, 2)
    with h5py.File(path, "w") as file:
        file["stacked"], file["joined"] = frames, frames.reshape(12, 2)
    for name in ("stacked", "joined"):
        opened = DetectorFiles([tmp_path])
        opened.add(resource(path, name))
        np.testing.assert_array_equal(read(opened, 3, (3, 2), start=1)[1], frames[1:3])
        with pytest.raises(FileRefused, match="the descriptor declares"):
            read(opened, 3, (3, 5))
        opened.close()


def test_a_large_read_comes_in_blocks_of_whole_rows(tmp_path, files):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("data", (6, 1 << 20), "f8", chunks=(1, 1 << 20), fillvalue=7)
    files.add(resource(path))
    firsts = [first for first, _ in files.read(Rows("r1", "d", "k", 1, 6, 10), (1 << 20,))]
    assert firsts == [10, 12, 14]


def test_a_file_appears_grows_and_is_read_as_it_grows(tmp_path, files):
    path = tmp_path / "a.h5"
    files.add(resource(path))
    with pytest.raises(NotReadable, match="not there yet"):
        read(files, 1)
    path.write_bytes(b"")
    with pytest.raises(NotReadable, match="not HDF5"):
        read(files, 1)
    with h5py.File(path, "w", libver="latest") as file:
        data = file.create_dataset("data", (0, 3), maxshape=(None, 3), dtype="f8")
        file.swmr_mode = True
        for n in (2, 5):
            data.resize(n, 0)
            data[:] = DATA[:n]
            data.flush()
            np.testing.assert_array_equal(read(files, n)[1], DATA[:n])
            assert files.grown_length("r1", (3,)) == n
        with pytest.raises(NotReadable):
            read(files, 6)


GROWER = """
import sys, h5py, numpy as np
file = h5py.File(sys.argv[1], "w", libver="latest")
data = file.create_dataset("data", (0, 3), maxshape=(None, 3), dtype="f8", chunks=(4, 3))
file.swmr_mode = True
for n in (2, 5, 8):
    data.resize(n, 0)
    data[:] = np.arange(24.0).reshape(8, 3)[:n]
    data.flush()
    print(n, flush=True)
    sys.stdin.readline()
"""


def test_rows_that_another_process_adds_are_seen(tmp_path, files):
    """In one process HDF5 shares what it knows of a file; a detector is another process."""
    path = tmp_path / "a.h5"
    files.add(resource(path))
    with subprocess.Popen(
        [sys.executable, "-c", GROWER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as writer:
        assert writer.stdin is not None and writer.stdout is not None
        for expected in (2, 5, 8):
            assert int(writer.stdout.readline()) == expected
            np.testing.assert_array_equal(read(files, expected)[1], DATA[:expected])
            writer.stdin.write("\n")
            writer.stdin.flush()


WRITER = """
import sys, h5py, numpy as np
path, libver = sys.argv[1:]
file = h5py.File(path, "w", libver=libver)
data = file.create_dataset("data", (8, 3), maxshape=(None, 3), dtype="f8")
data[:] = np.arange(24.0).reshape(8, 3)
file.flush()
print("written", flush=True)
sys.stdin.readline()
file.close()
file = h5py.File(path, "a")
print("reopened", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_a_file_without_swmr_is_read_once_closed_and_its_writer_is_never_hindered(
    tmp_path, files, libver
):
    path = tmp_path / "a.h5"
    files.add(resource(path))
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), libver],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdin is not None
        assert writer.stdout.readline() == "written\n"
        with pytest.raises(NotReadable):
            read(files, 8)
        writer.stdin.write("\n")
        writer.stdin.flush()
        assert writer.stdout.readline() == "reopened\n"
        writer.stdin.write("\n")
        writer.stdin.close()
    np.testing.assert_array_equal(read(files, 8)[1], DATA)


OPEN_FOR_APPENDING = """
import sys, h5py
h5py.File(sys.argv[1], "a").close()
"""


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_a_writer_may_open_a_file_that_is_being_read(tmp_path, files, libver):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver=libver) as file:
        file["data"] = DATA
    files.add(resource(path))
    read(files, 8)
    subprocess.run([sys.executable, "-c", OPEN_FOR_APPENDING, str(path)], check=True)


@pytest.mark.parametrize(
    "uri",
    [
        "file://localhost{out}/secret.h5",
        "file://localhost{root}/../out/secret.h5",
        "file://localhost{root}/%2e%2e/out/secret.h5",
        "file://localhost{root}/link.h5",
        "file://localhost{root}/folder/secret.h5",
        "file://otherhost{root}/a.h5",
        "http://localhost{root}/a.h5",
        "{root}/a.h5",
        "file://localhost",
    ],
)
def test_paths_that_lead_outside_are_refused(tmp_path, uri):
    root, out = tmp_path / "root", tmp_path / "out"
    root.mkdir()
    out.mkdir()
    with h5py.File(out / "secret.h5", "w") as file:
        file["data"] = DATA
    os.symlink(out / "secret.h5", root / "link.h5")
    os.symlink(out, root / "folder")
    with pytest.raises(FileRefused):
        DetectorFiles([root]).add(resource("", uri=uri.format(root=root, out=out)))
    with pytest.raises(FileRefused, match="none is set"):
        DetectorFiles([]).add(resource(root / "a.h5"))


def test_a_link_made_after_the_check_is_refused_too(tmp_path):
    root, out = tmp_path / "root", tmp_path / "out"
    root.mkdir()
    out.mkdir()
    with h5py.File(out / "secret.h5", "w") as file:
        file["data"] = DATA
    files = DetectorFiles([root])
    files.add(resource(root / "a.h5"))
    os.symlink(out / "secret.h5", root / "a.h5")
    with pytest.raises(FileRefused, match="outside the data roots"):
        read(files, 8)


def test_hdf5_links_that_lead_outside_are_refused(tmp_path):
    root, out = tmp_path / "root", tmp_path / "out"
    root.mkdir()
    out.mkdir()
    with h5py.File(out / "secret.h5", "w") as file:
        file["data"] = DATA
    (out / "secret.bin").write_bytes(DATA.tobytes())
    layout = h5py.VirtualLayout(shape=(8, 3), dtype="f8")
    layout[:] = h5py.VirtualSource(out / "secret.h5", "data", shape=(8, 3))
    with h5py.File(root / "a.h5", "w") as file:
        file["linked"] = h5py.ExternalLink(str(out / "secret.h5"), "data")
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset(
            "raw", (8, 3), "f8", external=[(str(out / "secret.bin"), 0, DATA.nbytes)]
        )
    for name in ("linked", "virtual", "raw"):
        files = DetectorFiles([root])
        files.add(resource(root / "a.h5", name))
        with pytest.raises(FileRefused, match="outside the data roots"):
            read(files, 8)
        files.close()
        # The same file is fine where both folders are allowed.
        files = DetectorFiles([root, out])
        files.add(resource(root / "a.h5", name))
        np.testing.assert_array_equal(read(files, 8)[1], DATA)
        files.close()


@pytest.mark.parametrize(
    "changes",
    [{"mimetype": "multipart/related;type=image/tiff"}, {"mimetype": None}, {"parameters": {}}],
)
def test_what_is_not_a_dataset_in_hdf5_is_refused(tmp_path, files, changes):
    with pytest.raises(FileRefused):
        files.add(resource(tmp_path / "a.h5", **changes))


def test_a_group_or_scalar_is_refused_and_a_missing_dataset_awaited(tmp_path, files):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["group/x"] = DATA
        file["scalar"] = 1.0
    for name, error in (("group", FileRefused), ("scalar", FileRefused), ("later", NotReadable)):
        opened = DetectorFiles([tmp_path])
        opened.add(resource(path, name))
        with pytest.raises(error):
            read(opened, 1)
        opened.close()


def test_a_dataset_of_fixed_size_says_nothing_about_how_much_is_written(tmp_path, files):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["data"] = DATA
    files.add(resource(path))
    assert files.grown_length("r1", (3,)) == 0


@pytest.mark.parametrize(
    ("datum", "expected"),
    [
        ({"indices": (2, 5), "seq_nums": (0, 0)}, (2, 5, 3)),
        ({"indices": (2, 5), "seq_nums": (12, 15)}, (2, 5, 12)),
        ({"indices": (2, 5), "seq_nums": (12, 13)}, (2, 5, 3)),
        ({"indices": (2, 5)}, (2, 5, 3)),
        ({"indices": (5, 2)}, None),
        ({"indices": (-1, 2)}, None),
    ],
)
def test_which_events_a_datum_is(tmp_path, files, datum, expected):
    files.add(resource(tmp_path / "a.h5"))
    doc = {key: {"start": value[0], "stop": value[1]} for key, value in datum.items()}
    doc |= {"stream_resource": "r1", "descriptor": "d"}
    if expected is None:
        with pytest.raises(ValueError, match="no range"):
            files.rows(doc)
    else:
        assert files.rows(doc) == Rows("r1", "d", "k", *expected)


def test_files_that_are_held_stay_open_until_they_are_released(tmp_path, files):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["data"] = DATA
    files.add(resource(path))

    def is_open():
        links = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
        return any(os.path.realpath(link) == str(path) for link in links)

    files.hold()
    files.hold()
    np.testing.assert_array_equal(files.value("r1", 3, None, (3,)), DATA[3])
    assert is_open()
    files.release()
    np.testing.assert_array_equal(files.value("r1", 4, None, (3,)), DATA[4])
    assert is_open()
    files.release()
    assert not is_open()
    np.testing.assert_array_equal(files.value("r1", 5, None, (3,)), DATA[5])
    assert not is_open()


@pytest.mark.parametrize("swmr", [False, True])
@pytest.mark.parametrize("names", [("data", "/data"), ("data", "linked")])
def test_several_resources_of_one_dataset(tmp_path, files, swmr, names):
    """To refresh a dataset that is open twice corrupts the process: it is to be open once."""
    path = tmp_path / "a.h5"
    writer = h5py.File(path, "w", libver="latest")
    data = writer.create_dataset("data", data=DATA[:6], maxshape=(None, 3))
    writer["linked"] = data
    if swmr:
        writer.swmr_mode = True
    else:
        writer.close()
    for uid, name in zip(("r1", "r2"), names, strict=True):
        files.add(resource(path, name, uid=uid))
    for length in (6, 8):
        files.hold()
        for uid in ("r1", "r2", "r1"):
            ((_, block),) = files.read(Rows(uid, "d", "k", 0, length, 1), (3,))
            np.testing.assert_array_equal(block, DATA[:length])
        files.release()
        if not swmr:
            writer = h5py.File(path, "a")
            data = writer.require_dataset("data", (length, 3), float, maxshape=(None, 3))
        if len(data) < 8:
            data.resize(8, axis=0)
            data[:] = DATA
            data.flush()
        if not swmr:
            writer.close()
    files.close()
    writer.close()


@pytest.mark.parametrize("name", ["frame_per_point", "multiplier"])
def test_frames_per_event_are_as_declared_or_refused(tmp_path, files, name):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["data"] = np.arange(10 * 3 * 2.0).reshape(10, 3, 2)
    for number, frames in enumerate((1, 2, 5)):
        files.add(resource(path, uid=f"r{number}", parameters={"dataset": "data", name: frames}))
    ((_, block),) = files.read(Rows("r2", "d", "k", 1, 2, 2), (5, 3, 2))
    np.testing.assert_array_equal(block[0], np.arange(30.0, 60).reshape(5, 3, 2))
    for uid, words in (("r0", "one frame per event"), ("r1", "2 frames per event")):
        with pytest.raises(FileRefused, match=f"{words}, the descriptor declares"):
            list(files.read(Rows(uid, "d", "k", 0, 1, 1), (5, 3, 2)))
