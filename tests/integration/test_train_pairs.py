"""`inscan train superres` on a survey and its fine scans: simulated beamline, real Tiled, documents read back."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from bluesky import RunEngine
from typer.testing import CliRunner

from inscan.callbacks.assembly import open_assembler
from inscan.callbacks.profile import load_profile
from inscan.models.weights import load_weights
from inscan.profiles.samples import cells
from inscan.profiles.simulation import sim_xrf
from inscan.profiles.xrf_plans import fly_raster
from inscan.service.cli import app
from inscan.service.measured_pairs import RawRuns, read_map
from inscan.service.raw_writer import RawRunWriter
from inscan.service.tiled_server import EmbeddedTiled

# The first test to run waits for the scans.
pytestmark = pytest.mark.timeout(300)
STEP = 0.5
SCAN = {"type": "XRF_FLY", "energy": 12.0, "dwell": 0.2}


@dataclass
class Beamline:
    """What was measured: uids by name, documents by uid."""

    config: Path
    data: Path
    uids: dict[str, str]
    documents: dict[str, list[tuple[str, dict[str, Any]]]]


@pytest.fixture(scope="module")
def measured(
    tiled: EmbeddedTiled, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Beamline]:
    """A survey with a fine scan inside it, one that missed it, and one of another survey that Tiled does not have."""
    data, place = folder / "data" / "pairs", tmp_path_factory.mktemp("pairs")
    data.mkdir()
    devices = sim_xrf(cells(1), data, channels=3, time_scale=0, dwell=0.2)
    engine = RunEngine({"beamline_id": "sim_xrf"}, context_managers=[], call_returns_result=False)
    writer = RawRunWriter(tiled.uri, tiled.api_key, place / "raw")
    documents: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    current: list[tuple[str, dict[str, Any]]] = []
    engine.subscribe(writer)
    engine.subscribe(lambda name, doc: current.append((name, dict(doc))))

    def scan(low: float, size: float, step: float, sample: str = "cells", **md: Any) -> str:
        count = round(size / step)
        axis = (low + step / 2, low + size - step / 2, count)
        current.clear()
        plan = fly_raster(
            devices.xs_fly,
            *(devices.sample_y, *axis, devices.sample_x, *axis),
            dwell=0.2,
            snake=True,
            md={"sample": {"name": sample}, "scan": SCAN, **md},
        )
        (uid,) = engine(plan)  # type: ignore[misc]
        documents[uid] = list(current)
        assert writer.wait(uid, 60), writer.problems
        return uid

    survey = scan(-6.0, 14.0, STEP, purpose="survey")
    fine = {"purpose": "fine", "parent_uid": survey}
    uids = {
        "survey": survey,
        "inside": scan(-5.0, 8.0, STEP / 2, region="1", **fine),
        "outside": scan(20.0, 8.0, STEP / 2, region="2", **fine),
        "orphan": scan(-5.0, 8.0, STEP / 2, "lost", purpose="fine", parent_uid="0000aaaa-none"),
    }
    assert writer.close()
    config = place / "service.yaml"
    settings = {"state_dir": str(place / "state"), "profiles": ["sim_xrf"]}
    config.write_text(yaml.safe_dump(settings | {"data_roots": [str(data)]}))
    yield Beamline(config, data, uids, documents)


@pytest.fixture
def train(tiled: EmbeddedTiled, measured: Beamline, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run `inscan train superres ...`; (exit status, JSON)."""
    monkeypatch.setenv("INSCAN_TILED_API_KEY", tiled.api_key.get_secret_value())

    def run(*arguments: str) -> tuple[int, dict[str, Any]]:
        fixed = ("--config", str(measured.config), "--tiled", tiled.uri, "--factor", "2", "--json")
        done = CliRunner().invoke(
            app, ["train", "superres", *fixed, *arguments], catch_exceptions=False
        )
        return done.exit_code, json.loads(done.stdout)

    return run


def test_a_run_read_back_from_tiled_is_the_map_that_was_measured(
    tiled: EmbeddedTiled, measured: Beamline
) -> None:
    profile = load_profile("sim_xrf")
    uid = measured.uids["inside"]
    documents = measured.documents[uid]
    assembler = open_assembler(documents[0][1], [profile], data_roots=[measured.data])
    live = [update for name, doc in documents for update in assembler(name, doc)][-1]
    with RawRuns(tiled.uri, tiled.api_key) as runs:
        again = read_map(runs.get(uid), [profile], [measured.data])
    assert again.meta["detector"] == live.meta["detector"] == "xs_fly"
    assert again.meta["complete"]
    for name, array in live.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array)


def test_a_dry_run_lists_the_pairs_and_says_why_others_are_none(
    train: Any, measured: Beamline
) -> None:
    status, answer = train("--dry-run", "--runs", measured.uids["survey"])
    rows = {row["fine_uid"]: row for row in answer["pairs"]}
    inside, outside = rows[measured.uids["inside"]], rows[measured.uids["outside"]]
    assert status == 0 and answer["fit"] == 1 and len(rows) == 2
    assert inside["fit"] and inside["survey_uid"] == measured.uids["survey"]
    # The simulated stage comes back to where it was.
    assert max(abs(shift) for shift in inside["shift_px"]) < 0.15
    assert not outside["fit"] and "overlap" in outside["reasons"][0]
    assert "training" not in answer


def test_fine_runs_are_found_by_sample_time_and_their_own_uid(
    train: Any, measured: Beamline
) -> None:
    def fine(*arguments: str) -> set[str]:
        _, answer = train("--dry-run", *arguments)
        return {row["fine_uid"] for row in answer["pairs"]}

    uids = measured.uids
    assert fine("--sample", "lost") == {uids["orphan"]}
    assert fine("--runs", uids["inside"][:8]) == {uids["inside"]}
    every = {uids["inside"], uids["outside"], uids["orphan"]}
    assert fine("--since", "1h") >= every and not fine("--since", "2999-01-01") & every
    status, answer = train("--dry-run", "--sample", "lost")
    assert status == 1 and "is not in Tiled" in answer["pairs"][0]["reasons"][0]


def test_training_goes_on_from_the_shipped_weights_and_says_what_it_gained(
    train: Any, measured: Beamline, tmp_path: Path
) -> None:
    arguments = ("--runs", measured.uids["inside"], "--out", str(tmp_path), "--steps", "20")
    status, answer = train(*arguments)
    training = answer["training"]
    assert training["pairs"] == 1 and np.isfinite([training["before"], training["after"]]).all()
    written = list(tmp_path.glob("*.safetensors"))
    if training["kept"]:
        assert status == 0 and training["after"] < training["before"]
        weights = load_weights(training["weights"]["name"], tmp_path)
        assert weights.card["born_of"]["runs"] == [
            [measured.uids["survey"], measured.uids["inside"]]
        ]
    else:
        assert status == 1 and not written and training["reasons"]
