import os
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from inscan.service.messages import ArraySpec
from inscan.service.spool import NoDiskSpace, Spool, SpoolError, load, sync_arrays


@pytest.fixture
def spool(tmp_path) -> Spool:
    return Spool(tmp_path / "spool", budget=1 << 30, min_free=0)


def test_what_is_written_is_what_a_worker_maps(spool):
    run = spool.run("run-1")
    counts = run.allocate("counts", (2, 3, 4), np.dtype("f4"))
    assert counts.shape == (2, 3, 4) and not counts.any()
    counts[1, 2, 3] = 7
    arrays = {"counts": run.spec("counts", counts)}
    sync_arrays(run.folder, arrays)
    mapped = load(run.folder, arrays)["counts"]
    assert mapped[1, 2, 3] == 7
    with pytest.raises(ValueError, match="read-only"):
        mapped[0, 0, 0] = 1
    counts[0, 0, 0] = 3
    assert mapped[0, 0, 0] == 3, "one file, no copy"


@given(
    hnp.array_shapes(min_dims=0, max_dims=4, max_side=4),
    st.sampled_from("f4 f8 u2 u4 i8 ?".split()),
)
def test_any_plain_array_round_trips(tmp_path_factory, shape, dtype):
    spool = Spool(tmp_path_factory.mktemp("s"), budget=1 << 30, min_free=0)
    run = spool.run("run-1")
    array = run.allocate("a", shape, np.dtype(dtype))
    array[...] = 1
    spec = run.spec("a", array)
    back = load(run.folder, {"a": ArraySpec.model_validate_json(spec.model_dump_json())})["a"]
    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype


def test_a_restarted_service_takes_the_file_up_again(spool, tmp_path):
    spool.run("run-1").allocate("counts", (3, 4), np.dtype("f4"))[1, 1] = 5
    again = Spool(tmp_path / "spool", budget=1 << 30, min_free=0).run("run-1")
    assert again.allocate("counts", (3, 4), np.dtype("f4"))[1, 1] == 5


def test_another_shape_gets_a_fresh_file_and_leaves_who_maps_the_old_one_alone(spool):
    run = spool.run("run-1")
    old = run.allocate("counts", (3, 4), np.dtype("f4"))
    old[...] = 5
    mapped = load(run.folder, {"counts": run.spec("counts", old)})["counts"]
    fresh = run.allocate("counts", (4, 4), np.dtype("f4"))
    assert not fresh.any() and (mapped == 5).all()


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"junk" * 100])
def test_a_torn_file_is_made_anew(spool, content):
    run = spool.run("run-1")
    (run.folder / "counts.npy").write_bytes(content)
    assert not run.allocate("counts", (3, 4), np.dtype("f4")).any()


def test_an_array_of_elsewhere_is_stored(spool):
    run = spool.run("run-1")
    counts = run.allocate("counts", (3, 4), np.dtype("f4"))
    inode = os.stat(run.folder / "counts.npy").st_ino
    run.spec("counts", counts)
    assert os.stat(run.folder / "counts.npy").st_ino == inode, "mapped already: nothing to copy"
    other = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    spec = run.spec("other", other)
    np.testing.assert_array_equal(load(run.folder, {"other": spec})["other"], other)
    run.spec("counts", counts + 1)
    assert os.stat(run.folder / "counts.npy").st_ino != inode


def test_too_much_is_refused_before_anything_is_written(spool, tmp_path):
    run = spool.run("run-1")
    with pytest.raises(NoDiskSpace, match=r"no disk space for .*counts\.npy.*needed.*free"):
        run.allocate("counts", (1 << 20, 1 << 20, 1 << 10), np.dtype("f8"))
    assert list(run.folder.iterdir()) == []
    small = Spool(tmp_path / "small", budget=1000, min_free=0)
    with pytest.raises(NoDiskSpace, match="spool_budget"):
        small.run("run-1").allocate("counts", (1000,), np.dtype("f8"))
    with pytest.raises(NoDiskSpace, match="min_free"):
        Spool(tmp_path / "full", budget=1 << 30, min_free=1 << 60).run("r").allocate(
            "counts", (1,), np.dtype("f8")
        )


def test_space_is_there_before_it_is_written_to(spool):
    spool.run("run-1").allocate("counts", (1 << 20,), np.dtype("f8"))
    assert spool.used() >= 8 << 20


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "x" * 300, "a\0b"])
def test_names_that_lead_out_of_the_spool_are_refused(spool, name):
    with pytest.raises(SpoolError):
        spool.run(name)
    with pytest.raises(SpoolError):
        spool.run("run-1").allocate(name, (1,), np.dtype("f4"))
    assert spool.folder(name) is None


@pytest.mark.parametrize("dtype", ["O", "U4", "M8[s]"])
def test_only_plain_numbers_are_mapped(spool, dtype):
    with pytest.raises(SpoolError, match="cannot map"):
        spool.run("run-1").allocate("a", (2,), np.dtype(dtype))


def test_files_that_are_not_what_the_job_says_are_refused(spool):
    run = spool.run("run-1")
    run.allocate("a", (2, 3), np.dtype("f4"))
    for spec in (
        ArraySpec(file="a.npy", shape=(3, 2), dtype="<f4", nbytes=24),
        ArraySpec(file="a.npy", shape=(2, 3), dtype="<i4", nbytes=24),
        ArraySpec(file="none.npy", shape=(2, 3), dtype="<f4", nbytes=24),
    ):
        with pytest.raises(SpoolError, match="npy"):
            load(run.folder, {"a": spec})


def test_a_pickle_is_never_read(spool):
    run = spool.run("run-1")
    np.save(run.folder / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(SpoolError):
        load(run.folder, {"a": ArraySpec(file="a.npy", shape=(1,), dtype="<i8", nbytes=8)})


def test_deleting_spares_who_still_looks(spool):
    run = spool.run("run-1")
    counts = run.allocate("counts", (2,), np.dtype("f4"))
    counts[...] = 3
    mapped = load(run.folder, {"counts": run.spec("counts", counts)})["counts"]
    spool.delete("run-1")
    assert spool.runs() == [] and (mapped == 3).all()
    spool.delete("run-1")
    assert spool.run("run-1") is not run


def test_room_is_counted_while_finished_runs_are_deleted(spool):
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            spool.run("other").store("counts", np.zeros(4))
            spool.delete("other")

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for number in range(300):
            spool.require(Path(f"run-{number}"), 1)
            assert spool.size("other") >= 0
    finally:
        stop.set()
        thread.join()


def test_two_stacks_of_one_run_keep_their_own_arrays(tmp_path: Path) -> None:
    run = Spool(tmp_path, budget=1 << 20, min_free=0).run("run")
    first, second = (run.allocate(name, (3,), np.dtype("f4")) for name in ("frames", "frames.2"))
    first[:], second[:] = 1, 2
    specs = [run.spec("frames", first), run.spec("frames", second, scope="primary@2")]
    assert [spec.file for spec in specs] == ["frames.npy", "frames.2.npy"]
    # Neither was allocated here: one must not be written over the other.
    stored = {
        scope: run.spec("flats", np.full(2, value, "f4"), scope=scope)
        for scope, value in (("primary", 5.0), ("primary@2", 6.0))
    }
    assert [load(run.folder, {"flats": spec})["flats"][0] for spec in stored.values()] == [5, 6]
