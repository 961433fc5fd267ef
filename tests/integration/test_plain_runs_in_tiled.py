"""Plain Bluesky runs, written into a real Tiled and read back, are the maps that were live."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bluesky_tiled_plugins import TiledWriter
from tiled.client import from_uri

from inscan.callbacks.assembly import open_assembler
from inscan.callbacks.profile import BeamlineProfile, load_profile
from inscan.callbacks.sources.tiled import stored_run
from inscan.profiles.bluesky_documents import (
    Counts,
    array_documents,
    fly_documents,
    step_documents,
)
from inscan.profiles.bluesky_starts import Plan, grid, list_grid, scattered, spiral
from inscan.service.tiled_http import RAW
from inscan.service.tiled_server import EmbeddedTiled

SNAKE = grid((4, 5), (0, 3), (-2, 2), snake=True)
SPIRAL = spiral(3, 1, 6)
PLANS = {
    "relative": grid((4, 5), (0, 3), (-2, 2), relative_to=(40, 50)),
    "uneven lists": list_grid([4, 1, 0], [1, 2, 4, 8], snake=True),
    "spiral": SPIRAL,
    "anywhere": scattered(np.random.default_rng(0).uniform(-5, 5, (2, 40)), known=False),
}


@pytest.fixture
def raw(tiled: EmbeddedTiled) -> Iterator[Any]:
    client = from_uri(tiled.uri, api_key=tiled.api_key.get_secret_value())
    yield client[RAW]
    client.context.http_client.close()


def profile(**xrf: Any) -> BeamlineProfile:
    content = load_profile("sim_xrf").model_dump(mode="json")
    content |= {"match": {"plan_type": "generator"}, "read_deadline": 1.0}
    content["xrf"] |= xrf
    return BeamlineProfile.model_validate(content)


def same_from_tiled(raw: Any, documents: Any, folder: Path, by: BeamlineProfile) -> Any:
    documents = list(documents)
    live = assemble(copy.deepcopy(documents), folder, by)
    writer = TiledWriter(raw)
    for name, doc in documents:
        writer(name, doc)
    stored = assemble(stored_run(raw, documents[0][1]["uid"]).documents(), folder, by)
    assert live.meta["complete"]
    assert stored.meta["complete"]
    assert stored.meta["geometry"] == live.meta["geometry"]
    assert set(stored.arrays) == set(live.arrays)
    for name, values in live.arrays.items():
        np.testing.assert_array_equal(stored.arrays[name], values, err_msg=name)
    return stored


def assemble(documents: Any, folder: Path, by: BeamlineProfile) -> Any:
    documents = list(documents)
    assembler = open_assembler(documents[0][1], [by], data_roots=[folder])
    final = [update for name, doc in documents for update in assembler(name, doc)][-1]
    assert final.kind == "final", final.meta["reason"]
    return final


@pytest.mark.parametrize("name", PLANS)
def test_events_with_numbers(raw, folder, name):
    plan = PLANS[name]
    truth = Counts.drawn(plan.n)
    final = same_from_tiled(raw, step_documents(plan, truth), folder, profile())
    assert final.arrays["counts"].sum() == truth.counts.sum()


@pytest.mark.parametrize("plan", [SNAKE, SPIRAL], ids=["grid", "spiral"])
def test_files_without_events(raw, folder, plan: Plan, request):
    truth = Counts.drawn(plan.n)
    documents = fly_documents(plan, truth, folder / "data" / request.node.name)
    final = same_from_tiled(raw, documents, folder, profile())
    assert final.arrays["counts"].sum() == truth.counts.sum()


def test_events_with_arrays_of_four_elements(raw, folder):
    spectra = np.random.default_rng(0).poisson(0.5, (SNAKE.n, 4, 2000)).astype(np.int64)
    by = profile(
        step={"spectrum": "fluor", "i0": None},
        fly=None,
        elements={"source": "spectrum", "lines": ["Fe_K", "Zn_K"], "energy_per_bin_ev": 10.0},
    )
    final = same_from_tiled(raw, array_documents(SNAKE, spectra), folder, by)
    assert final.meta["channels"] == [1, 2, 3, 4]
