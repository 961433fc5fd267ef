"""Runs of older beamlines: arrays behind resource and datum documents."""

import copy
import random
import subprocess
import sys
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
import yaml
from bluesky_tiled_plugins.writing.tiled_writer import RunNormalizer
from event_model import compose_run, pack_datum_page

from inscan.callbacks.assembly import open_assembler
from inscan.callbacks.profile import BeamlineProfile, ProfileError, load_profile
from inscan.profiles.srx_documents import SRXMap, fly

ROWS, COLS, CHANNELS, BINS = 3, 4, 2, 1024


def with_sections(name: str, **sections: Any) -> BeamlineProfile:
    content = load_profile(name).model_dump(mode="json")
    for section, values in sections.items():
        content[section] = {**(content[section] or {}), **values}
    return BeamlineProfile.model_validate(content)


XRF = with_sections(
    "sim_xrf",
    datum_files={
        "XSP3": {
            "dataset": "entry/instrument/detector/data",
            "index_from": "frame",
            "channel_from": "channel",
        }
    },
    xrf={
        "elements": {"source": "spectrum", "lines": ["Fe_K", "Zn_K"], "energy_per_bin_ev": 10.0}
    },
)  # fmt: skip
TXM = with_sections(
    "sim_txm",
    datum_files={"AD_HDF5": {"dataset": "entry/data/data", "index_from": "point_number"}},
    txm={"references": None, "energy": None},
)


def fluorescence(folder):
    """Step scan documents as SRX writes them, and the spectra."""
    spectra = np.random.default_rng(0).poisson(4, (ROWS * COLS, CHANNELS, BINS)).astype("u4")
    run: Any = compose_run(
        metadata={
            "beamline_id": "sim_xrf",
            "shape": [ROWS, COLS],
            "extents": [[0.0, 2.0], [0.0, 3.0]],
            "motors": ["sample_y", "sample_x"],
            "scan": {"energy": 12.0, "dwell": 0.5},
        }
    )
    keys: dict[str, Any] = {
        f"xs_channel{c:02d}_fluor": {
            "dtype": "array", "shape": [BINS], "source": "sim", "external": "FILESTORE:"
        }
        for c in (1, 2)
    }  # fmt: skip
    stream = run.compose_descriptor(name="primary", data_keys=keys)
    (folder / "a.h5").unlink(missing_ok=True)
    with h5py.File(folder / "a.h5", "w") as file:
        file["entry/instrument/detector/data"] = spectra
    resource = run.compose_resource(
        spec="XSP3", root=str(folder), resource_path="a.h5", resource_kwargs={}
    )
    docs: list[tuple[str, Any]] = [
        ("descriptor", stream.descriptor_doc),
        ("resource", resource.resource_doc),
    ]
    for frame in range(ROWS * COLS):
        data = {}
        for channel in (1, 2):
            datum = resource.compose_datum(datum_kwargs={"frame": frame, "channel": channel})
            docs.append(("datum", datum))
            data[f"xs_channel{channel:02d}_fluor"] = datum["datum_id"]
        event = stream.compose_event(
            data=data, timestamps=dict.fromkeys(data, 0.0), filled=dict.fromkeys(data, False)
        )
        docs.append(("event", event))
    return run.start_doc, docs, spectra


def assemble(start, docs, profile, folder):
    assembler = open_assembler(start, [profile], data_roots=[folder])
    updates = []
    for name, doc in docs:
        updates += assembler(name, doc)
    return updates + assembler("stop", {"run_start": start["uid"], "exit_status": "success"})


def test_spectra_behind_datums_by_channel(tmp_path):
    start, docs, spectra = fluorescence(tmp_path)
    update = assemble(start, docs, XRF, tmp_path)[-1]
    assert update.kind == "final"
    assert update.meta["complete"]
    low, high = (int(np.ceil(edge / 10)) for edge in update.meta["windows_ev"][0])
    expected = spectra[:, :, low:high].sum(axis=2).T.reshape(CHANNELS, ROWS, COLS)
    np.testing.assert_array_equal(update.arrays["counts"][:, 0], expected)
    # Nothing but spectra is recorded: the map says what it had to assume.
    assert any("no live time" in line for line in update.meta["warnings"])
    assert any("no beam monitor" in line for line in update.meta["warnings"])
    assert (update.arrays["exposure"] == 0.5).all()


@pytest.mark.parametrize("seed", range(4))
def test_datums_in_pages_and_in_any_order_give_the_same_map(tmp_path, seed):
    start, docs, _ = fluorescence(tmp_path)
    expected = assemble(start, docs, XRF, tmp_path)[-1]
    datums = [doc for name, doc in docs if name == "datum"]
    others = [(name, doc) for name, doc in docs if name != "datum"]
    shuffled = [*others, ("datum_page", pack_datum_page(*datums))]
    random.Random(seed).shuffle(shuffled)
    update = assemble(start, shuffled, XRF, tmp_path)[-1]
    for name, array in expected.arrays.items():
        assert array.tobytes() == update.arrays[name].tobytes(), name
    assert update.meta == expected.meta


def test_a_datum_that_never_comes_masks_its_pixel_at_once(tmp_path):
    start, docs, _ = fluorescence(tmp_path)
    docs = [pair for pair in docs if pair[1] is not docs[2][1]]
    profile = XRF.model_copy(update={"read_deadline": 3600.0})
    update = assemble(start, docs, profile, tmp_path)[-1]
    assert update.arrays["measured"].sum() == ROWS * COLS - 1
    assert any("could not be read" in line for line in update.meta["warnings"])


def test_files_of_datums_stay_within_the_data_roots(tmp_path):
    start, docs, _ = fluorescence(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (update,) = assemble(start, docs, XRF, other)
    assert update.kind == "rejected"
    assert any("outside the data roots" in line for line in update.meta["warnings"])
    assert not any("has not come" in line for line in update.meta["warnings"])


def test_a_spec_that_the_profile_does_not_describe_is_said(tmp_path):
    start, docs, _ = fluorescence(tmp_path)
    docs[1][1]["spec"] = "MY_OWN"
    (update,) = assemble(start, docs, XRF, tmp_path)
    assert update.kind == "rejected"
    assert any("'MY_OWN'" in line and "XSP3" in line for line in update.meta["warnings"])


@pytest.mark.parametrize("changes", [{"frame": 99}, {"channel": 3}, {"frame": -1}, {"frame": "x"}])
def test_a_datum_that_asks_for_what_is_not_there(tmp_path, changes):
    start, docs, _ = fluorescence(tmp_path)
    docs[2][1]["datum_kwargs"] |= changes
    profile = XRF.model_copy(update={"read_deadline": 0.0})
    update = assemble(start, docs, profile, tmp_path)[-1]
    assert update.arrays["measured"].sum() == ROWS * COLS - 1


@pytest.mark.parametrize("layout", ["stack", "concat"])
def test_a_stack_behind_datums(tmp_path, layout):
    rng = np.random.default_rng(0)
    energies, frames, size = [8.30, 8.32, 8.34], 3, (5, 6)
    run: Any = compose_run(
        metadata={
            "beamline_id": "sim_txm", "scan": {"type": "XANES_STACK"}, "eng_list": energies
        }
    )  # fmt: skip
    docs: list[tuple[str, Any]] = []
    images = {}
    for name, count, level in (("dark", 1, 100), ("primary", 3, 2000), ("flat", 3, 4000)):
        images[name] = rng.poisson(level, (count, frames, *size)).astype("u2")
        stream = run.compose_descriptor(
            name=name,
            data_keys={
                "txm_image": {
                    "dtype": "array",
                    "shape": [frames, *size],
                    "source": "sim",
                    "external": "FILESTORE:",
                }
            },
        )
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            whole = images[name] if layout == "stack" else images[name].reshape(-1, *size)
            file["entry/data/data"] = whole
        resource = run.compose_resource(
            spec="AD_HDF5", root="/", resource_path=f"{tmp_path}/{name}.h5"[1:],
            resource_kwargs={"frame_per_point": frames},
        )  # fmt: skip
        docs += [("descriptor", stream.descriptor_doc), ("resource", resource.resource_doc)]
        for point in range(count):
            datum = resource.compose_datum(datum_kwargs={"point_number": point})
            docs.append(("datum", datum))
            event = stream.compose_event(
                data={"txm_image": datum["datum_id"]},
                timestamps={"txm_image": 0.0},
                filled={"txm_image": False},
            )
            docs.append(("event", event))
    update = assemble(run.start_doc, docs, TXM, tmp_path)[-1]
    dark = images["dark"].mean(axis=(0, 1))
    # One flat for each energy, and nothing says otherwise: each belongs to its own.
    expected = (images["primary"].mean(1) - dark) / (images["flat"].mean(1) - dark)
    np.testing.assert_allclose(update.arrays["transmission"], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ({}, "one of dataset and dataset_from"),
        ({"dataset": "a", "dataset_from": "b"}, "one of dataset and dataset_from"),
        ({"dataset": "a", "channel_from": "c"}, "needs index_from"),
        ({"dataset": "a", "chanel_from": "c"}, "did you mean 'channel_from'"),
    ],
)
def test_a_layout_that_is_not_one(tmp_path, layout, said):
    content = load_profile("sim_xrf").model_dump(mode="json") | {"datum_files": {"A": layout}}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ProfileError, match=said):
        load_profile(path)


WRITE_LATE = """
import sys, h5py, numpy as np
# The name appears first, the contents some time later, as on a busy detector.
with h5py.File(sys.argv[1], "x") as file:
    file.flush()
    file["entry/instrument/detector/data"] = np.load(sys.argv[2])
"""


def test_a_file_that_another_process_is_still_writing_at_the_end_of_the_run(tmp_path):
    start, docs, spectra = fluorescence(tmp_path)
    expected = assemble(start, docs, XRF, tmp_path)[-1]
    (tmp_path / "a.h5").unlink()
    np.save(tmp_path / "spectra.npy", spectra)
    profile = XRF.model_copy(update={"read_deadline": 60.0})
    assembler = open_assembler(start, [profile], data_roots=[tmp_path])
    for name, doc in docs:
        assembler(name, doc)
    command = [sys.executable, "-c", WRITE_LATE, str(tmp_path / "a.h5"), f"{tmp_path}/spectra.npy"]
    with subprocess.Popen(command):
        # The end of the run waits for the file, not the other way round.
        (update,) = assembler("stop", {"run_start": start["uid"], "exit_status": "success"})
    assert update.meta["complete"]
    assert update.arrays["counts"].tobytes() == expected.arrays["counts"].tobytes()


def test_what_was_waited_for_in_vain_is_named(tmp_path):
    start, docs, _ = fluorescence(tmp_path)
    (tmp_path / "a.h5").write_bytes(b"not yet")
    profile = XRF.model_copy(update={"read_deadline": 0.0})
    (update,) = assemble(start, docs, profile, tmp_path)
    assert update.kind == "rejected"
    assert any("a.h5 is not HDF5 (yet)" in line for line in update.meta["warnings"])


def test_a_profile_maps_the_folders_of_a_windows_detector(tmp_path):
    start, docs, _ = fluorescence(tmp_path)
    expected = assemble(start, docs, XRF, tmp_path)[-1]
    resource = docs[1][1]
    resource |= {"root": "D:\\frames", "resource_path": "a.h5", "path_semantics": "windows"}
    (update,) = assemble(start, docs, XRF, tmp_path)
    assert any("say in root_map" in line for line in update.meta["warnings"])
    mapped = XRF.model_copy(update={"root_map": {"d:/frames": tmp_path}})
    update = assemble(start, docs, mapped, tmp_path)[-1]
    assert update.arrays["counts"].tobytes() == expected.arrays["counts"].tobytes()


@pytest.mark.parametrize("kind", ["datum", "stream_datum"])
def test_a_stack_of_tiff_files_needs_no_word_in_the_profile(tmp_path, kind):
    rng = np.random.default_rng(0)
    energies, frames, size = [8.30, 8.32, 8.34], 2, (5, 6)
    profile = with_sections("sim_txm", txm={"references": None, "energy": None})
    run: Any = compose_run(
        metadata={
            "beamline_id": "sim_txm", "scan": {"type": "XANES_STACK"}, "eng_list": energies
        }
    )  # fmt: skip
    docs: list[tuple[str, Any]] = []
    images = {}
    external = "FILESTORE:" if kind == "datum" else "STREAM:"
    key = {"dtype": "array", "shape": [frames, *size], "source": "sim", "external": external}
    for name, count, level in (("dark", 1, 100), ("primary", 3, 2000), ("flat", 1, 4000)):
        images[name] = rng.poisson(level, (count, frames, *size)).astype("u2")
        for number, frame in enumerate(images[name].reshape(-1, *size)):
            tifffile.imwrite(tmp_path / f"{name}_{number:06d}.tiff", frame)
        stream = run.compose_descriptor(name=name, data_keys={"txm_image": key})
        docs.append(("descriptor", stream.descriptor_doc))
        if kind == "datum":
            resource = run.compose_resource(
                spec="AD_TIFF", root=str(tmp_path), resource_path="",
                resource_kwargs={
                    "template": "%s%s_%6.6d.tiff", "filename": name, "frame_per_point": frames
                },
            )  # fmt: skip
            docs.append(("resource", resource.resource_doc))
            for point in range(count):
                datum = resource.compose_datum(datum_kwargs={"point_number": point})
                docs.append(("datum", datum))
                event = stream.compose_event(
                    data={"txm_image": datum["datum_id"]},
                    timestamps={"txm_image": 0.0},
                    filled={"txm_image": False},
                )
                docs.append(("event", event))
            continue
        bundle = run.compose_stream_resource(
            mimetype="multipart/related;type=image/tiff",
            uri=f"file://localhost{tmp_path}/",
            data_key="txm_image",
            parameters={"template": f"{name}_{{:06d}}.tiff", "chunk_shape": [1, *size]},
        )
        docs.append(("stream_resource", bundle.stream_resource_doc))
        datum = bundle.compose_stream_datum(
            indices={"start": 0, "stop": count}, descriptor=stream.descriptor_doc
        )
        docs.append(("stream_datum", datum))
    update = assemble(run.start_doc, docs, profile, tmp_path)[-1]
    assert update.meta["complete"]
    dark, flat = (images[name].mean(axis=(0, 1)) for name in ("dark", "flat"))
    expected = (images["primary"].mean(axis=1) - dark) / (flat - dark)
    np.testing.assert_allclose(update.arrays["transmission"], expected, rtol=1e-4)


def test_files_of_one_row_each_that_a_tiled_server_made_rows_of(tmp_path):
    """Tiled numbers the rows of all files of a key in one; each file goes on holding one."""
    truth = SRXMap.make((3, 4), channels=2, bins=1024)
    content = load_profile("srx").model_dump(mode="json")
    content["xrf"]["elements"]["lines"] = ["Fe_K", "Ni_K"]
    profile = BeamlineProfile.model_validate(content)
    docs = [(name, dict(doc)) for name, doc in fly(tmp_path, truth)]
    expected = assemble(docs[0][1], docs[1:-1], profile, tmp_path)[-1]

    def path_of_spectra(doc):
        if doc["spec"] == "XSP3_FLY":
            doc["resource_kwargs"]["dataset"] = "entry/instrument/detector/data"
        return doc

    def path_of_column(doc):
        if "column" in doc["datum_kwargs"]:
            doc["datum_kwargs"]["dataset"] = doc["datum_kwargs"].pop("column")
        return doc

    normalised = RunNormalizer(
        patches={"resource": path_of_spectra, "datum": path_of_column},
        spec_to_mimetype=dict.fromkeys(
            ("XSP3_FLY", "ZEBRA_HDF51", "SIS_HDF51"), "application/x-hdf5"
        ),
    )
    converted: list[tuple[str, Any]] = []
    normalised.subscribe(lambda name, doc: converted.append((name, copy.deepcopy(doc))))
    for name, doc in docs:
        normalised(name, copy.deepcopy(doc))
    assert not {"resource", "datum"} & {name for name, _ in converted}
    middle = [pair for pair in converted if pair[0] not in ("start", "stop")]
    for key in (k for n, doc in middle if n == "descriptor" for k in doc["data_keys"].values()):
        if "external" in key:
            key["external"] = "STREAM:"
    update = assemble(converted[0][1], middle, profile, tmp_path)[-1]
    np.testing.assert_array_equal(update.arrays["counts"], expected.arrays["counts"])
    assert update.meta["complete"] and expected.meta["complete"]
