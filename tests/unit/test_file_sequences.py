"""stream_resource documents of every type that is read, beside what Tiled's own adapters give."""

import copy
import re
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from bluesky_tiled_plugins.writing.consolidators import consolidator_factory
from PIL import Image

from inscan.callbacks.external import DetectorFiles, FileRefused, NotReadable, Rows

N = 6
IMAGES = np.random.default_rng(1).integers(0, 60000, (N, 8, 9)).astype("u2")
TIFF, NPY, JPEG = (
    f"multipart/related;type={kind}" for kind in ("image/tiff", "application/x-npy", "image/jpeg")
)


def resource(folder, mimetype, **parameters):
    return {
        "uid": "r1",
        "data_key": "k",
        "mimetype": mimetype,
        "uri": f"file://localhost{folder}/",
        "parameters": parameters,
    }


def read(folder, doc, shape, start=0, stop=N):
    files = DetectorFiles([folder])
    try:
        files.add(doc)
        parts = list(files.read(Rows("r1", "d", "k", start, stop, start + 1), shape))
    finally:
        files.close()
    assert [first for first, _ in parts] == list(range(start + 1, stop + 1))
    return np.concatenate([block for _, block in parts])


def by_tiled(doc, shape, count, dtype="<u2") -> Any:
    """What a Tiled server makes of the same documents."""
    descriptor: Any = {
        "data_keys": {"k": {"shape": list(shape), "dtype": "array", "dtype_numpy": dtype}}
    }
    consolidator: Any = consolidator_factory(copy.deepcopy(doc), descriptor)
    datum: Any = {
        "indices": {"start": 0, "stop": count},
        "seq_nums": {"start": 1, "stop": count + 1},
    }
    consolidator.consume_stream_datum(datum)
    return consolidator.init_adapter().read()


def write_tiffs(folder, images, name="img"):
    for number, image in enumerate(images):
        tifffile.imwrite(folder / f"{name}_{number:06d}.tiff", image)


@pytest.mark.parametrize("shape", [(8, 9), (1, 8, 9)])
@pytest.mark.parametrize("template", ["img_{:06d}.tiff", "/img_{:06d}.tiff", "img_%06d.tiff"])
def test_one_tiff_per_event(tmp_path, shape, template):
    write_tiffs(tmp_path, IMAGES)
    doc = resource(tmp_path, TIFF, chunk_shape=[1, *shape], template=template)
    found = read(tmp_path, doc, shape)
    np.testing.assert_array_equal(found, IMAGES.reshape(N, *shape))
    np.testing.assert_array_equal(found, np.reshape(by_tiled(doc, shape, N), found.shape))


@pytest.mark.parametrize("join", [None, "stack", "concat"])
def test_several_tiffs_per_event(tmp_path, join):
    write_tiffs(tmp_path, IMAGES)
    how = {} if join is None else {"join_method": join}
    doc = resource(tmp_path, TIFF, template="img_{:06d}.tiff", chunk_shape=[1, 8, 9], **how)
    found = read(tmp_path, doc, (3, 8, 9), 0, 2)
    np.testing.assert_array_equal(found, IMAGES.reshape(2, 3, 8, 9))
    if join != "concat":
        np.testing.assert_array_equal(found, by_tiled(doc, (3, 8, 9), 2))


def test_a_concatenated_sequence_says_its_frames_per_file_in_one_number(tmp_path):
    write_tiffs(tmp_path, IMAGES)
    doc = resource(
        tmp_path, TIFF, template="img_{:06d}.tiff", chunk_shape=[1], join_method="concat"
    )
    np.testing.assert_array_equal(
        read(tmp_path, doc, (3, 8, 9), 1, 2), IMAGES[3:].reshape(1, 3, 8, 9)
    )


def test_several_pages_per_tiff_and_event(tmp_path):
    write_tiffs(tmp_path, IMAGES.reshape(3, 2, 8, 9))
    doc = resource(tmp_path, TIFF, template="img_{:06d}.tiff", chunk_shape=[2, 8, 9])
    found = read(tmp_path, doc, (2, 8, 9), 1, 3)
    np.testing.assert_array_equal(found, IMAGES.reshape(3, 2, 8, 9)[1:])
    np.testing.assert_array_equal(found, by_tiled(doc, (2, 8, 9), 3)[1:])


def test_frames_per_point_of_converted_documents(tmp_path):
    write_tiffs(tmp_path, IMAGES)
    doc = resource(tmp_path, TIFF, template="%s%s_%6.6d.tiff", filename="img", multiplier=2)
    found = read(tmp_path, doc, (2, 8, 9), 0, 3)
    np.testing.assert_array_equal(found, IMAGES.reshape(3, 2, 8, 9))
    np.testing.assert_array_equal(found, by_tiled(doc, (2, 8, 9), 3))


def test_npy_files(tmp_path):
    for number, image in enumerate(IMAGES):
        np.save(tmp_path / f"img_{number}.npy", image)
    doc = resource(tmp_path, NPY, template="%s_%d.npy")
    doc |= {"uri": f"file://localhost{tmp_path}/img"}
    found = read(tmp_path, doc, (8, 9))
    np.testing.assert_array_equal(found, IMAGES)
    np.testing.assert_array_equal(found, by_tiled(doc, (8, 9), N))
    np.save(tmp_path / "img_0.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(FileRefused, match="expected numbers"):
        read(tmp_path, doc, (8, 9))


def test_jpeg_files(tmp_path):
    images = [Image.fromarray((image >> 8).astype("u1")) for image in IMAGES]
    for number, image in enumerate(images):
        image.save(tmp_path / f"img_{number:06d}.jpg")
    doc = resource(tmp_path, JPEG, template="img_{:06d}.jpg", chunk_shape=[1, 8, 9])
    found = read(tmp_path, doc, (8, 9))
    np.testing.assert_array_equal(found, by_tiled(doc, (8, 9), N, "|u1"))
    assert found.dtype == np.uint8
    with pytest.raises(FileRefused, match="the descriptor declares"):
        read(tmp_path, doc, (8, 9, 3))


def test_hdf5_files_one_per_event(tmp_path):
    for number, image in enumerate(IMAGES):
        with h5py.File(tmp_path / f"img_{number}.h5", "w") as file:
            file["entry/data"] = image[None]
    doc = resource(
        tmp_path, "application/x-hdf5", template="img_{}.h5", dataset="entry/data", chunk_shape=[1]
    )
    np.testing.assert_array_equal(read(tmp_path, doc, (1, 8, 9), 2), IMAGES[2:, None])


@pytest.mark.parametrize(("shape", "count"), [((8, 9), 6), ((1, 8, 9), 6), ((3, 8, 9), 2)])
@pytest.mark.parametrize("kind", ["image/tiff", "application/x-npy"])
def test_all_events_in_one_file(tmp_path, kind, shape, count):
    path = tmp_path / "all"
    if kind == "image/tiff":
        tifffile.imwrite(path, IMAGES, photometric="minisblack")
    else:
        with path.open("wb") as file:
            np.save(file, IMAGES)
    doc = resource(tmp_path, kind) | {"uri": f"file://localhost{path}"}
    found = read(tmp_path, doc, shape, 1, count)
    np.testing.assert_array_equal(found, IMAGES.reshape(count, *shape)[1:])
    with pytest.raises(NotReadable):
        read(tmp_path, doc, shape, 0, count + 1)
    with pytest.raises(FileRefused, match="the descriptor declares"):
        read(tmp_path, doc, (8, 7))


@pytest.mark.parametrize(
    "template",
    [
        "/../../etc/x_{:d}.tiff", "../{:d}", "{:999999999d}", "{0.__class__}", "{0!r:>99}",
        "{filename}", "{", "%s%999999999d", "%2e%2e/%2e%2e/{:d}", 7, None,
    ],
)  # fmt: skip
def test_templates_that_name_anything_else_are_refused(tmp_path, template):
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(FileRefused):
        DetectorFiles([root]).add(resource(root, TIFF, template=template))


def test_a_file_of_the_sequence_that_is_a_link_out_of_the_roots_is_refused(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    write_tiffs(root, IMAGES[:1])
    tifffile.imwrite(tmp_path / "secret.tiff", IMAGES[1])
    (root / "img_000001.tiff").symlink_to(tmp_path / "secret.tiff")
    doc = resource(root, TIFF, template="img_{:06d}.tiff")
    np.testing.assert_array_equal(read(root, doc, (8, 9), 0, 1), IMAGES[:1])
    with pytest.raises(FileRefused, match="outside the data roots"):
        read(root, doc, (8, 9), 1, 2)


def test_files_that_a_tiff_names_are_not_opened(tmp_path):
    """In OME-TIFF the frames of a series may lie in other files."""
    root = tmp_path / "root"
    root.mkdir()
    names = ["root/img_000000.ome.tiff", "secret.ome.tiff"]
    for name, image in zip(names, IMAGES, strict=False):
        tifffile.imwrite(tmp_path / name, image, ome=True, metadata={"UUID": name})
    path = tmp_path / names[0]
    with tifffile.TiffFile(path) as file:
        described = file.pages.first.description
    pixel = '<TiffData IFD="0" PlaneCount="1"><UUID FileName="../secret.ome.tiff">urn:x</UUID></TiffData>'
    described = re.sub(r"<TiffData[^>]*/>|<TiffData.*?</TiffData>", pixel, described)
    tifffile.imwrite(path, IMAGES[0], description=described, metadata=None)
    doc = resource(root, TIFF, template="img_{:06d}.ome.tiff")
    np.testing.assert_array_equal(read(root, doc, (8, 9), 0, 1), IMAGES[:1])


def test_a_tiff_that_says_it_is_huge_is_refused_before_memory_is_taken(tmp_path):
    tifffile.imwrite(tmp_path / "img_000000.tiff", shape=(20000, 20000), dtype="f8", data=None)
    doc = resource(tmp_path, TIFF, template="img_{:06d}.tiff")
    with pytest.raises(FileRefused, match="bytes; at most"):
        read(tmp_path, doc, (20000, 20000), 0, 1)
    with pytest.raises(FileRefused, match="the descriptor declares"):
        read(tmp_path, doc, (8, 9), 0, 1)


@pytest.mark.parametrize(
    "parameters", [{"chunk_shape": [0]}, {"chunk_shape": "x"}, {"files_per_datum": "x"},
                   {"files_per_datum": 10**9}, {"multiplier": "x"}]
)  # fmt: skip
def test_parameters_that_make_no_sense_are_refused(tmp_path, parameters):
    write_tiffs(tmp_path, IMAGES)
    doc = resource(tmp_path, TIFF, template="img_{:06d}.tiff", **parameters)
    with pytest.raises(FileRefused):
        read(tmp_path, doc, (3, 8, 9), 0, 1)


def test_a_file_that_appears_late_is_waited_for(tmp_path):
    doc = resource(tmp_path, TIFF, template="img_{:06d}.tiff")
    write_tiffs(tmp_path, IMAGES[:2])
    with pytest.raises(NotReadable, match="img_000002.tiff is not there yet"):
        read(tmp_path, doc, (8, 9))
    write_tiffs(tmp_path, IMAGES)
    np.testing.assert_array_equal(read(tmp_path, doc, (8, 9)), IMAGES)
