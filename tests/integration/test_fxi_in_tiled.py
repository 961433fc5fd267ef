"""Energy scans of FXI in a real Tiled: taken as they are, and the same stacks when read back."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from bluesky_tiled_plugins import TiledWriter
from tiled.client import from_uri

from inscan.callbacks.assembly import open_assembler
from inscan.callbacks.profile import load_profile
from inscan.callbacks.run_files import BY_TIME
from inscan.callbacks.sources.tiled import run_documents
from inscan.callbacks.sources.tiled_documents import RunReader
from inscan.callbacks.updates import Update
from inscan.profiles.fxi_documents import FXIPlan, FXIScan
from inscan.service.repair import Catalog, Repairs
from inscan.service.tiled_http import RAW
from inscan.service.tiled_server import EmbeddedTiled

PROFILE = load_profile("fxi").model_copy(update={"read_deadline": 1.0})
KEV = (8.34, 8.30, 8.38, 8.34)
PLANS = ("xanes_scan", "xanes_scan2", "multipos_2D_xanes_scan2")


@pytest.fixture
def runs(tiled: EmbeddedTiled) -> Iterator[Any]:
    client = from_uri(tiled.uri, api_key=tiled.api_key.get_secret_value())
    yield client[RAW]
    client.context.http_client.close()


def assemble(documents: list[Any], folder: Path) -> list[Update]:
    assembler = open_assembler(documents[0][1], [PROFILE], data_roots=[folder])
    found = [update for name, doc in documents for update in assembler(name, doc)]
    return [update for update in found if update.kind != "snapshot"]


def write(runs: Any, documents: list[Any]) -> Any:
    """Write a run. Camera files are taken as they are; Tiled does not know those of time stamps."""

    def resource(doc: Any) -> Any:
        if doc.get("spec") == "AD_HDF5_TS":
            path = "entry/instrument/NDAttributes/NDArrayEpicsTSSec"
            doc["resource_kwargs"]["dataset"] = path
        return doc

    stamps = any(doc.get("spec") == "AD_HDF5_TS" for _, doc in documents)
    options: dict[str, Any] = {}
    if stamps:
        options = {
            "spec_to_mimetype": {"AD_HDF5_TS": "application/x-hdf5"},
            "patches": {"resource": resource},
        }
    writer = TiledWriter(runs, **options)
    for name, doc in documents:
        writer(name, doc)
    return runs[documents[0][1]["uid"]]


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS)
def test_a_run_read_back_is_the_run_that_was_taken(
    runs: Any, folder: Path, plan: FXIPlan, caplog: pytest.LogCaptureFixture
):
    positions = 2 if plan == PLANS[2] else 1
    truth = np.random.default_rng(1).uniform(0.2, 0.9, (positions, len(KEV), 12, 14))
    documents = list(FXIScan(truth, KEV, plan, own_flat_file=True).documents(folder / "data"))
    live = assemble(documents, folder / "data")
    run = write(runs, documents)
    images = run["primary"]["Andor_image"].read()
    assert images.shape == (len(KEV) * positions, 3, 12, 14)
    stored = list(run_documents(runs, documents[0][1]["uid"]))
    again = assemble(stored, folder / "data")
    assert [u.kind for u in live] == ["final"] * positions
    compare(again, live)
    # Two time stamps of several files are more than Tiled can read; nothing else is lost with them.
    unread = [
        text for text in caplog.messages if "without Andor_hdf5_time_stamp of primary" in text
    ]
    assert len(unread) == (1 if positions == 2 else 0)
    for one, other in zip(again, live, strict=True):
        assert one.meta == other.meta


def compare(again: list[Update], live: list[Update]) -> None:
    assert [(u.kind, u.stream) for u in again] == [(u.kind, u.stream) for u in live], again[0].meta
    for one, other in zip(again, live, strict=True):
        assert one.arrays.keys() == other.arrays.keys()
        for name, array in one.arrays.items():
            assert array.tobytes() == other.arrays[name].tobytes(), name


def in_one_file(folder: Path, plan: FXIPlan = PLANS[0]) -> list[Any]:
    """A scan whose images and flats are in one file: one after the other, or by turns (`xanes_scan2`)."""
    truth = np.random.default_rng(2).uniform(0.2, 0.9, (1, len(KEV), 12, 14))
    scan = FXIScan(truth, KEV, plan, restaged=False, time_stamps=False)
    return list(scan.documents(folder / "data"))


def camera_file(documents: list[Any], folder: Path) -> Path:
    """The one with images and flats."""
    names = [doc["resource_path"] for name, doc in documents if name == "resource"]
    return folder / "data" / names[-1]


@pytest.mark.parametrize("plan", PLANS[:2])
def test_streams_of_one_file_are_told_apart_by_time(runs: Any, folder: Path, plan: FXIPlan):
    documents = in_one_file(folder, plan)
    live = assemble(documents, folder / "data")
    assert [u.kind for u in live] == ["final"]
    write(runs, documents)
    again = assemble(list(run_documents(runs, documents[0][1]["uid"])), folder / "data")
    compare(again, live)
    ((one, other),) = zip(again, live, strict=True)
    told = [text for text in one.meta["warnings"] if text.startswith(BY_TIME)]
    assert len(told) == 1
    rest = [text for text in one.meta["warnings"] if text not in told]
    assert one.meta | {"warnings": rest} == other.meta


@pytest.mark.parametrize("wrong", ["a frame more", "the same times"])
def test_streams_of_one_file_are_refused_rather_than_mixed_up(runs: Any, folder: Path, wrong: str):
    """Only if the events are as many as the file's rows do their times say which rows are whose."""
    documents = in_one_file(folder)
    assert assemble(documents, folder / "data")[0].kind == "final"
    if wrong == "a frame more":
        with h5py.File(camera_file(documents, folder), "a") as file:
            frames: Any = file["entry/data/data"]
            frames.resize(len(frames) + 1, axis=0)
    else:
        streams = {doc["uid"]: doc["name"] for name, doc in documents if name == "descriptor"}
        for name, doc in documents:
            if name == "event" and streams[doc["descriptor"]] in ("primary", "flat"):
                doc["time"] = 1e9 + doc["seq_num"]
    write(runs, documents)
    (update,) = assemble(list(run_documents(runs, documents[0][1]["uid"])), folder / "data")
    assert update.kind == "rejected"
    assert "the same rows of one file" in update.meta["reason"]


def test_arrays_of_another_stream_are_not_handed_out(runs: Any, folder: Path):
    """Of a file that streams share Tiled hands out the first rows, whosever they are, or none."""
    documents = in_one_file(folder)
    write(runs, documents)
    reader = RunReader(runs, documents[0][1]["uid"], as_arrays="legacy")
    streams: dict[str, str] = {}
    found: dict[str, list[np.ndarray | None]] = {}
    for name, doc in reader.news():
        if name == "descriptor":
            streams[doc["uid"]] = doc["name"]
        elif name == "event":
            image = doc["data"].get("Andor_image")
            found.setdefault(streams[doc["descriptor"]], []).append(image)
    assert found["primary"] == found["flat"] == [None] * len(KEV)
    assert sorted(reader.left_out) == ["flat Andor_image", "primary Andor_image"]
    assert reader.left_out["flat Andor_image"].startswith("several streams share its file")


@pytest.mark.parametrize("plan", PLANS[:2])
def test_a_run_that_grows_is_told_apart_at_its_end(runs: Any, folder: Path, plan: FXIPlan):
    documents = in_one_file(folder, plan)
    live = assemble(documents, folder / "data")
    writer = TiledWriter(runs, batch_size=1)
    reader = RunReader(runs, documents[0][1]["uid"])
    stored: list[Any] = []
    for name, doc in documents:
        writer(name, doc)
        if name in ("start", "event"):
            stored += reader.news()
    assert not any(name == "stop" for name, _ in stored)
    stored += reader.news()
    assert reader.ended and stored[-1][0] == "stop"
    compare(assemble(stored, folder / "data"), live)


def test_a_repair_says_which_keys_the_catalog_could_not_give(
    runs: Any, folder: Path, tiled: EmbeddedTiled
):
    documents = in_one_file(folder)
    write(runs, documents)
    start, stop = documents[0][1], documents[-1][1]
    assembler = open_assembler(start, [PROFILE], data_roots=[folder])
    assembler("start", start)
    repairs = Repairs(0.0)
    repairs.use(Catalog(tiled.uri, tiled.api_key))
    mending = repairs.fill(start["uid"], assembler, stop, gaps=True)
    assert mending is not None
    assert repairs.look(mending, assembler, assembler)
    said = repairs.told(start["uid"])
    assert "flat Andor_image: several streams share its file" in said
    assembler("stop", stop)
