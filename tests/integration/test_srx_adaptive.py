"""A fly scan as SRX's, driven by inscan: survey, proposal, a fine run where the grain is."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml
from bluesky import RunEngine

from inscan.callbacks import connect
from inscan.callbacks.plans import CoarseToFine, coarse_to_fine
from inscan.callbacks.profile import shipped_profiles
from inscan.callbacks.request import request
from inscan.profiles.samples import XRFSample
from inscan.profiles.srx_fly import SRXBeamline, region_and_fly, scan_and_fly, srx_beamline

LINES = ("Ca_K", "Fe_K", "Zn_K")
GRAIN = (1.8, -2.3)  # um, slow and fast
FIELD = 5.0  # um from the middle


def grain() -> XRFSample:
    """Bare support with one small grain of iron on it."""
    pixel, count = 0.1, 121
    axis = (np.arange(count) - count // 2) * pixel
    slow, fast = np.meshgrid(axis, axis, indexing="ij")
    maps = np.full((len(LINES), count, count), 20.0, np.float32)
    maps[LINES.index("Fe_K")] += 3000 * np.exp(
        -((slow - GRAIN[0]) ** 2 + (fast - GRAIN[1]) ** 2) / (2 * 0.2**2)
    )
    return XRFSample("grain", LINES, maps, pixel, (float(axis[0]), float(axis[0])))


@pytest.fixture
def state(tmp_path: Path, until: Any) -> Iterator[Path]:
    """State directory of a running service with the shipped profile of SRX, which may move the nano stages."""
    content = yaml.safe_load(shipped_profiles()["srx"].read_text(encoding="utf-8"))
    content["xrf"]["elements"]["lines"] = list(LINES)
    content["data_roots"] = [str(tmp_path)]
    limits = {"low": -6, "high": 6, "units": "um"}
    content["rescan"] = {
        "mode": "auto",
        "soft_limits": {"nano_stage_sx": limits, "nano_stage_sy": limits},
        "max_area": 20,
        "max_time": 600,
        "max_regions": 1,
        "elements": ["Fe_K"],
        "scale": 1.0,
    }
    (tmp_path / "srx.yaml").write_text(yaml.safe_dump(content))
    given = {
        "state_dir": str(tmp_path / "state"),
        "profiles": [str(tmp_path / "srx.yaml")],
        **dict.fromkeys(("ingest", "broker", "spool"), "tcp://127.0.0.1:0"),
        "min_free": 0,
    }
    (tmp_path / "service.yaml").write_text(yaml.safe_dump(given))
    command = [str(Path(sys.executable).with_name("inscan")), "serve"]
    with (tmp_path / "service.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, str(tmp_path / "service.yaml")], stdout=log, stderr=log
        )
    ready = tmp_path / "state" / "service.json"
    try:
        until(lambda: ready.exists() or process.poll() is not None, 90.0)
        assert process.poll() is None, (tmp_path / "service.log").read_text()
        yield ready.parent
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.timeout(240)
def test_a_fly_scan_finds_a_grain_and_looks_at_it_again(
    state: Path, tmp_path: Path, until: Any
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    beamline = srx_beamline(grain(), data, channels=2, bins=1280, seed=3)
    engine = RunEngine({"beamline_id": "SRX"}, context_managers=[])
    inscan = connect(state_dir=state)
    documents: list[tuple[str, dict[str, Any]]] = []
    engine.subscribe(inscan)
    engine.subscribe(lambda name, doc: documents.append((name, doc)))
    done: list[CoarseToFine] = []
    try:
        until(lambda: inscan.connected)
        engine(adaptive(beamline, inscan, done))
    finally:
        inscan.close()
    assert len(done[0].fine_uids) == 1, done[0].notes
    survey, fine = (doc for name, doc in documents if name == "start")
    (proposal,) = request(state, "proposals")["proposals"]
    assert proposal["state"] == "done" and proposal["fine_uids"] == [fine["uid"]]
    assert (fine["purpose"], fine["parent_uid"]) == ("fine", survey["uid"])
    assert fine["rescan_proposal"] == proposal["id"]
    (region,) = proposal["regions"]
    assert proposal["motors"] == ["nano_stage_sy", "nano_stage_sx"]
    for (low, high), at in zip((region["slow_range"], region["fast_range"]), GRAIN, strict=True):
        assert low < at < high and high - low < FIELD
    # Finer than the survey, where the region is, and looked at anew: the grain is in this run's own spectra.
    x0, x1, cols, y0, y1, rows, _ = fine["scan"]["scan_input"]
    assert [cols, rows] == region["shape"][::-1] == fine["scan"]["shape"]
    np.testing.assert_allclose([[y0, y1], [x0, x1]], region["extents"])
    assert (x1 - x0) / (cols - 1) == pytest.approx(0.125, rel=0.2)
    light = iron(documents, rows)
    row, col = np.unravel_index(light.argmax(), light.shape)
    at = np.linspace(y0, y1, rows)[row], np.linspace(x0, x1, cols)[col]
    np.testing.assert_allclose(at, GRAIN, atol=0.25)
    until(lambda: request(state, "outcome", run_uid=fine["uid"])["outcome"], 60.0)
    assert request(state, "outcome", run_uid=fine["uid"])["outcome"]["status"] == "done"


def iron(documents: list[tuple[str, dict[str, Any]]], rows: int) -> np.ndarray:
    """Counts around Fe Ka in the files of the last rows, (row, col); every second row ran backwards."""
    files = [
        f"/{doc['resource_path']}"
        for name, doc in documents
        if name == "resource" and doc["spec"] == "XSP3_FLY"
    ]
    light = []
    for number, path in enumerate(files[-rows:]):
        with h5py.File(path) as file:
            counts = np.asarray(file["entry/instrument/detector/data"])
        row = counts[:, :, 630:651].sum(axis=(1, 2))
        light.append(row[::-1] if number % 2 else row)
    return np.array(light)


def adaptive(beamline: SRXBeamline, inscan: Any, done: list[CoarseToFine]) -> Any:
    survey = scan_and_fly(
        beamline, -FIELD, FIELD, 21, -FIELD, FIELD, 21, 0.05, snake=True, md={"purpose": "survey"}
    )

    def fine(region: dict[str, Any], proposal: dict[str, Any]) -> Any:
        return region_and_fly(beamline, region, snake=True)

    done.append((yield from coarse_to_fine(survey, inscan, fine, timeout=120)))
