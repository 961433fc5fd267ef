"""Maps of NSLS-II SRX, written into a real Tiled and read back, are the maps that were live."""

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
from inscan.profiles.srx_documents import fly, hf2dxrf, step
from inscan.profiles.srx_truth import SRXMap
from inscan.service.raw_layouts import layouts_of, writer_options
from inscan.service.tiled_http import RAW
from inscan.service.tiled_server import EmbeddedTiled

Documents = list[tuple[str, Any]]


def profile(name: str) -> BeamlineProfile:
    content = load_profile(name).model_dump(mode="json")
    content["xrf"]["elements"]["lines"] = ["Ca_K", "Fe_K", "Zn_K"]
    content["read_deadline"] = 1.0
    return BeamlineProfile.model_validate(content)


PROFILES = [profile(name) for name in ("srx", "srx_step", "srx_hf2dxrf")]


@pytest.fixture
def raw(tiled: EmbeddedTiled) -> Iterator[Any]:
    client = from_uri(tiled.uri, api_key=tiled.api_key.get_secret_value())
    yield client[RAW]
    client.context.http_client.close()


def write(raw: Any, documents: Documents) -> str:
    """Write a run as SRX must be: Tiled does not know its three kinds of file by itself."""
    writer = TiledWriter(raw, **writer_options(layouts_of(PROFILES)))
    for name, doc in documents:
        writer(name, doc)
    return documents[0][1]["uid"]


def assemble(documents: Documents, folder: Path) -> Any:
    start = next(doc for name, doc in documents if name == "start")
    assembler = open_assembler(start, PROFILES, data_roots=[folder])
    updates = []
    for name, doc in documents:
        updates += assembler(name, doc)
    assert updates[-1].kind == "final", updates[-1].meta
    return updates[-1]


def same_map(read: Any, live: Any) -> None:
    assert read.arrays.keys() == live.arrays.keys()
    for name, array in live.arrays.items():
        np.testing.assert_array_equal(read.arrays[name], array, err_msg=name)
    for key in ("elements", "channels", "windows_ev", "complete", "exit_status", "geometry"):
        assert read.meta[key] == live.meta[key], key
    assert read.meta["series"] == live.meta["series"]


@pytest.mark.parametrize(
    ("scan", "options", "as_arrays"),
    [
        (fly, {"fast": "nano_stage_sy", "slow": "nano_stage_x", "names": "old"}, "none"),
        (fly, {"stop_after": 3, "snake": True}, "all"),
        (step, {"names": "old", "stop_after": 13, "snake": True}, "none"),
        (hf2dxrf, {}, "legacy"),
    ],
    ids=["y-fast-coarse-old", "aborted-arrays", "step-old-aborted", "hf2dxrf"],
)
def test_a_map_from_tiled_is_the_live_one(
    raw: Any, folder: Path, scan: Any, options: dict[str, Any], as_arrays: str
) -> None:
    sample = SRXMap.make((4, 5), 2, 1024)
    data = folder / "data"
    documents = list(scan(data, sample, **options))
    live = assemble(documents, data)
    uid = write(raw, documents)
    read = list(stored_run(raw, uid, as_arrays=as_arrays).documents())
    assert read[-1][0] == "stop"
    same_map(assemble(read, data), live)


def test_documents_that_tiled_makes_up_give_no_wrong_map(raw: Any, folder: Path) -> None:
    # run.documents() names only the first of the files, as if it held every row.
    data = folder / "data"
    documents = list(fly(data, SRXMap.make((4, 5), 2, 1024), snake=True))
    uid = write(raw, documents)
    assembler = open_assembler(documents[0][1], PROFILES, data_roots=[data])
    updates = []
    for name, doc in raw[uid].documents():
        updates += assembler(name, doc)
    assert updates[-1].kind == "rejected"
    assert any("row 1 lacks 'xs_fluor'" in line for line in updates[-1].meta["warnings"])
