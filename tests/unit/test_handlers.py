"""Specs of older documents: what is read is what the handlers of area-detector-handlers read."""

import struct
import sys
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile

from inscan.callbacks.datum_files import DatumFiles
from inscan.callbacks.external import DetectorFiles, FileRefused, NotReadable
from inscan.callbacks.handlers import HDF5_LAYOUTS, handler_class

FRAMES = np.random.default_rng(0).integers(0, 4000, (6, 4, 5)).astype("u2")


class Reader:
    """Documents in, arrays out."""

    def __init__(self, root, **described):
        self.files = DetectorFiles([root])
        self.datums = DatumFiles(self.files, described)
        self.count = 0

    def __call__(self, spec, path, kwargs, datum, shape):
        self.count += 1
        uid = f"r{self.count}"
        self.datums.add_resource(
            {"uid": uid, "spec": spec, "root": "/", "resource_path": str(path), "resource_kwargs": kwargs}
        )  # fmt: skip
        self.datums.add_datum({"datum_id": uid, "resource": uid, "datum_kwargs": datum})
        return self.datums.read(uid, shape)


@pytest.fixture
def reader(tmp_path):
    found = Reader(tmp_path)
    yield found
    found.files.close()


def stock(spec, path, kwargs, datum) -> Any:
    with handler_class(spec)(str(path), **kwargs) as handler:
        return np.asarray(handler(**datum))


def hdf5_file(folder, spec):
    """A file as the detector of the spec writes it."""
    path = folder / f"{spec}.h5"
    with h5py.File(path, "w") as file:
        if spec.endswith("_TS"):
            where = "entry/instrument/NDAttributes/NDArrayEpicsTS"
            file[f"{where}Sec"] = np.arange(6) + 1_000_000
            file[f"{where}nSec"] = np.arange(6) * 1000
        elif spec.startswith(("XSP", "XPS", "DEX", "MER")):
            file["entry/instrument/detector/data"] = FRAMES
            file["entry/instrument/detector/NDAttributes/CHAN1SCA0"] = np.arange(6.0)
        else:
            name = "entry/instrument/detector/data" if spec == "TPX_HDF5" else "entry/data/data"
            file[name] = FRAMES
    return path


CASES = {
    "AD_HDF5": ({"frame_per_point": 2}, {"point_number": 1}, (2, 4, 5)),
    "AD_HDF5_SWMR": ({}, {"point_number": 3}, (1, 4, 5)),
    "TPX_HDF5": ({"frame_per_point": 3}, {"point_number": 1}, (3, 4, 5)),
    "XSP3": ({}, {"frame": 2, "channel": 3}, (5,)),
    "XSP3_FLY": ({}, {}, (6, 4, 5)),
    "XPS3_FLY": ({}, {"target": "CHAN1SCA0"}, (6,)),
    "DEXELA_FLY_V1": ({}, {"target": "data"}, (6, 4, 5)),
    "MERLIN_FLY": ({}, {}, (6, 4, 5)),
    "MERLIN_FLY_STREAM_V1": ({}, {}, (6, 4, 5)),
    "AD_HDF5_TS": ({"frame_per_point": 2}, {"point_number": 1}, (2,)),
    "AD_HDF5_SWMR_TS": ({"frame_per_point": 2}, {"point_number": 2}, (2,)),
}


def test_every_layout_is_compared_with_its_handler():
    assert set(CASES) == set(HDF5_LAYOUTS)


@pytest.mark.parametrize("spec", CASES)
def test_a_layout_gives_what_its_handler_gives(tmp_path, reader, spec):
    path = hdf5_file(tmp_path, spec)
    kwargs, datum, shape = CASES[spec]
    found = reader(spec, path, kwargs, datum, shape)
    np.testing.assert_array_equal(found, stock(spec, path, kwargs, datum))
    assert found.shape == shape


def test_one_frame_with_and_without_an_axis_of_its_own(tmp_path, reader):
    path = hdf5_file(tmp_path, "AD_HDF5")
    for shape in ((4, 5), (1, 4, 5)):
        found = reader("AD_HDF5", path, {"frame_per_point": 1}, {"point_number": 4}, shape)
        np.testing.assert_array_equal(found, FRAMES[4].reshape(shape))


def test_frames_that_the_descriptor_does_not_declare_are_not_guessed(tmp_path, reader):
    path = hdf5_file(tmp_path, "AD_HDF5")
    with pytest.raises(FileRefused, match="2 frames per event, the descriptor declares"):
        reader("AD_HDF5", path, {"frame_per_point": 2}, {"point_number": 0}, (4, 5))


def test_a_spec_that_came_from_tiled_carries_its_name(tmp_path, reader):
    path = hdf5_file(tmp_path, "AD_HDF5")
    datum = {"point_number": 1, "_resource_spec": "AD_HDF5"}
    found = reader("AD_HDF5", path, {}, datum, (4, 5))
    np.testing.assert_array_equal(found, FRAMES[1])


def test_a_staged_again_resource_counts_its_points_anew(tmp_path, reader):
    first, second = tmp_path / "a.h5", tmp_path / "b.h5"
    for path, frames in ((first, FRAMES[:3]), (second, FRAMES[3:])):
        with h5py.File(path, "w") as file:
            file["entry/data/data"] = frames
    for path, frame in ((first, 1), (second, 4)):
        found = reader("AD_HDF5", path, {}, {"point_number": 1}, (4, 5))
        np.testing.assert_array_equal(found, FRAMES[frame])


def tiffs(folder, **changes):
    kwargs = {"template": "%s%s_%6.6d.tiff", "filename": "scan", "frame_per_point": 2} | changes
    for number, frame in enumerate(FRAMES):
        tifffile.imwrite(folder / f"scan_{number:06d}.tiff", frame)
    return kwargs


def test_tiff_files_are_read_by_their_handler(tmp_path, reader):
    kwargs = tiffs(tmp_path)
    found = reader("AD_TIFF", tmp_path, kwargs, {"point_number": 2}, (2, 4, 5))
    np.testing.assert_array_equal(found, FRAMES[4:])
    np.testing.assert_array_equal(found, stock("AD_TIFF", tmp_path, kwargs, {"point_number": 2}))
    with pytest.raises(NotReadable, match="scan_000006.tiff is not there yet"):
        reader("AD_TIFF", tmp_path, kwargs, {"point_number": 3}, (2, 4, 5))
    with pytest.raises(FileRefused, match="the descriptor declares"):
        reader("AD_TIFF", tmp_path, kwargs, {"point_number": 0}, (2, 4, 7))


def test_a_half_written_tiff_is_waited_for(tmp_path, reader):
    kwargs = tiffs(tmp_path)
    path = tmp_path / "scan_000001.tiff"
    whole = path.read_bytes()
    for n in (0, 3, 40, len(whole) - 60):
        path.write_bytes(whole[:n])
        with pytest.raises(NotReadable):
            reader("AD_TIFF", tmp_path, kwargs, {"point_number": 0}, (2, 4, 5))
    path.write_bytes(whole)
    found = reader("AD_TIFF", tmp_path, kwargs, {"point_number": 0}, (2, 4, 5))
    np.testing.assert_array_equal(found, FRAMES[:2])


def test_tiff_files_stay_within_the_data_roots(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    kwargs = tiffs(outside)
    (inside / "scan_000000.tiff").symlink_to(outside / "scan_000000.tiff")
    reader = Reader(inside)
    single = kwargs | {"frame_per_point": 1}
    for changes in ({}, {"filename": "../out/scan"}, {"template": "%s../out/%s_%6.6d.tiff"}):
        with pytest.raises(FileRefused, match="outside the data roots"):
            reader("AD_TIFF", inside, single | changes, {"point_number": 0}, (4, 5))
    with pytest.raises(FileRefused, match="outside the data roots"):
        reader("AD_TIFF", outside, single, {"point_number": 0}, (4, 5))


def test_a_tiff_that_may_lead_to_other_files_is_refused(tmp_path, reader):
    kwargs = tiffs(tmp_path, frame_per_point=1)
    tifffile.imwrite(tmp_path / "scan_000000.tiff", FRAMES[0], ome=True)
    with pytest.raises(FileRefused, match="may lead to other files"):
        reader("AD_TIFF", tmp_path, kwargs, {"point_number": 0}, (4, 5))


@pytest.mark.parametrize(
    "changes",
    [
        {"template": "%s%s_%999999999d.tiff"},
        {"template": "%(x)s"},
        {"template": "%r%s%d"},
        {"template": 7},
        {"filename": None},
        {"filename": "x" * 300},
        {"frame_per_point": 10**9},
        {"frame_per_point": 0},
        {"frame_per_point": "2"},
        {"template": "%s%d"},
    ],
)
def test_what_no_handler_should_be_given_is_refused(tmp_path, reader, changes):
    kwargs = tiffs(tmp_path, **changes)
    with pytest.raises(FileRefused):
        reader("AD_TIFF", tmp_path, kwargs, {"point_number": 0}, (2, 4, 5))


def test_one_hdf5_file_per_frame(tmp_path, reader):
    for number, frame in enumerate(FRAMES):
        with h5py.File(tmp_path / f"scan_{number}.h5", "w") as file:
            file["entry/data/data"] = frame
    kwargs = {"template": "%s%s_%d.h5", "filename": "scan", "frame_per_point": 2}
    found = reader("AD_HDF5_SINGLE", tmp_path, kwargs, {"point_number": 1}, (2, 4, 5))
    np.testing.assert_array_equal(found, FRAMES[2:4])


def spe(path, frames, declared=None):
    """A file of a Princeton camera; what its header needs to be read back."""
    head = bytearray(4100)
    n, y, x = declared or frames.shape
    struct.pack_into("<h", head, 42, x)
    struct.pack_into("<h", head, 656, y)
    struct.pack_into("<I", head, 1446, n)
    struct.pack_into("<h", head, 108, 3)
    head[20:29], head[172:178] = b"01Jan2026", b"120000"
    path.write_bytes(bytes(head) + frames.astype("<u2").tobytes())


def test_files_of_a_princeton_camera(tmp_path, reader):
    spe(tmp_path / "scan_0.spe", FRAMES[:2])
    kwargs = {"template": "%s%s_%d.spe", "filename": "scan", "frame_per_point": 2}
    found = reader("AD_SPE", tmp_path, kwargs, {"point_number": 0}, (2, 4, 5))
    np.testing.assert_array_equal(found, FRAMES[:2])
    spe(tmp_path / "scan_0.spe", FRAMES, declared=(2, 4, 5))
    with pytest.raises(FileRefused, match="larger than its header says"):
        reader("AD_SPE", tmp_path, kwargs, {"point_number": 0}, (2, 4, 5))


@pytest.mark.skipif("fabio" in sys.modules, reason="fabio is here")
def test_a_format_whose_reader_is_not_installed_is_refused_by_name(tmp_path, reader):
    kwargs = {"template": "%s%s_%d.cbf", "filename": "scan"}
    with pytest.raises(FileRefused, match="needs the package fabio"):
        reader("AD_CBF", tmp_path, kwargs, {"point_number": 0}, (4, 5))


def test_files_of_the_simulated_detectors_of_ophyd(tmp_path, reader):
    np.save(tmp_path / "sim_3.npy", FRAMES[3])
    found = reader("NPY_SEQ", tmp_path / "sim", {}, {"index": 3}, (4, 5))
    np.testing.assert_array_equal(found, FRAMES[3])
    np.save(tmp_path / "sim_4.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(FileRefused, match="holds object; expected numbers"):
        reader("NPY_SEQ", tmp_path / "sim", {}, {"index": 4}, (1,))


def test_a_dataset_that_says_it_is_huge_is_refused_before_memory_is_taken(tmp_path, reader):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("entry/data/data", (2, 1 << 30, 1 << 30), "u8", chunks=(1, 16, 16))
        file.create_dataset(
            "entry/instrument/detector/data", (1 << 20, 1 << 20), "u4", chunks=(16, 16)
        )
    with pytest.raises(FileRefused, match="bytes; at most"):
        reader("AD_HDF5", path, {}, {"point_number": 0}, (1 << 30, 1 << 30))
    with pytest.raises(FileRefused, match="bytes; at most"):
        reader("XSP3_FLY", path, {}, {}, (1 << 20, 1 << 20))


@pytest.mark.parametrize(
    "values", [np.array([b"x"] * 4), np.zeros(4, [("a", "f8")]), 1j * np.ones(4)]
)
def test_values_that_are_no_numbers_are_refused(tmp_path, reader, values):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["entry/data/data"] = values
    with pytest.raises(FileRefused, match="expected numbers"):
        reader("AD_HDF5", path, {}, {"point_number": 0}, ())


def test_a_profile_says_it_before_the_handlers(tmp_path):
    from inscan.callbacks.profile_sections import DatumFile

    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["mine"] = FRAMES
        file["entry/data/data"] = FRAMES * 0
    reader = Reader(tmp_path, AD_HDF5=DatumFile(dataset="mine", index_from="n"))
    np.testing.assert_array_equal(reader("AD_HDF5", path, {}, {"n": 2}, (4, 5)), FRAMES[2])
    reader.files.close()


@pytest.mark.parametrize("recorded", [4, 7])
def test_a_row_that_was_cut_short_or_ran_on_is_handed_over_as_it_is(tmp_path, reader, recorded):
    path = tmp_path / "a.h5"
    rows = np.resize(FRAMES, (recorded, 4, 5))
    with h5py.File(path, "w") as file:
        file["entry/instrument/detector/data"] = rows
    np.testing.assert_array_equal(reader("XSP3_FLY", path, {}, {}, (6, 4, 5)), rows)


def test_a_row_that_its_detector_goes_on_writing_is_waited_for(tmp_path, reader):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver="latest") as file:
        data = file.create_dataset(
            "entry/instrument/detector/data", (4, 4, 5), "u2", maxshape=(None, 4, 5)
        )
        file.swmr_mode = True
        data.flush()
        with pytest.raises(NotReadable, match="4 of 6"):
            reader("XSP3_FLY", path, {}, {}, (6, 4, 5))
        data.resize(6, axis=0)
        data[:] = FRAMES
        data.flush()
        np.testing.assert_array_equal(reader("XSP3_FLY", path, {}, {}, (6, 4, 5)), FRAMES)
