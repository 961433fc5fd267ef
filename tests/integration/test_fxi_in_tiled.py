"""Energy scans of FXI in a real Tiled: taken as they are, and the same stacks when read back."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bluesky_tiled_plugins import TiledWriter
from tiled.client import from_uri

from inscan.callbacks.assembly import open_assembler
from inscan.callbacks.profile import load_profile
from inscan.callbacks.sources.tiled import run_documents
from inscan.callbacks.updates import Update
from inscan.profiles.fxi_documents import FXIPlan, FXIScan
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


@pytest.mark.parametrize(
    ("plan", "time_stamps"), [(PLANS[0], False), (PLANS[1], True), (PLANS[2], False)]
)
def test_a_run_read_back_is_the_run_that_was_taken(
    runs: Any, folder: Path, plan: FXIPlan, time_stamps: bool
):
    positions = 2 if plan == PLANS[2] else 1
    truth = np.random.default_rng(1).uniform(0.2, 0.9, (positions, len(KEV), 12, 14))
    scan = FXIScan(truth, KEV, plan, time_stamps=time_stamps, own_flat_file=True)
    documents = list(scan.documents(folder / "data"))
    live = assemble(documents, folder / "data")
    run = write(runs, documents)
    images = run["primary"]["Andor_image"].read()
    assert images.shape == (len(KEV) * positions, scan.chunk, 12, 14)
    stored = list(run_documents(runs, documents[0][1]["uid"]))
    again = assemble(stored, folder / "data")
    assert [u.kind for u in live] == ["final"] * positions
    assert [u.kind for u in again] == ["final"] * positions, again[0].meta
    assert [u.stream for u in again] == [u.stream for u in live]
    for one, other in zip(again, live, strict=True):
        assert one.arrays.keys() == other.arrays.keys()
        for name, array in one.arrays.items():
            assert array.tobytes() == other.arrays[name].tobytes(), name
        assert one.meta == other.meta


def test_streams_of_one_file_are_refused_rather_than_mixed_up(runs: Any, folder: Path):
    """Tiled keeps neither the rows of a shared file that a stream has, nor a way to read them."""
    truth = np.random.default_rng(2).uniform(0.2, 0.9, (1, len(KEV), 12, 14))
    documents = list(
        FXIScan(truth, KEV, "xanes_scan", time_stamps=False).documents(folder / "data")
    )
    assert assemble(documents, folder / "data")[0].kind == "final"
    write(runs, documents)
    (update,) = assemble(list(run_documents(runs, documents[0][1]["uid"])), folder / "data")
    assert update.kind == "rejected"
    assert "the same rows of one file" in update.meta["reason"]
