"""`inscan replay` through a real service: what was measured live, stored, and replayed gives the same result."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bluesky import RunEngine
from pydantic import SecretStr
from typer.testing import CliRunner

from inscan.callbacks import connect
from inscan.callbacks.profile import load_profile
from inscan.callbacks.request import request
from inscan.callbacks.sources.files import write_documents
from inscan.profiles import srx_documents
from inscan.profiles.fxi_documents import FXIPlan, FXIScan
from inscan.profiles.samples import battery_xanes, cells
from inscan.profiles.simulation import sim_txm, sim_xrf
from inscan.profiles.srx_documents import SRXMap
from inscan.profiles.txm_plans import xanes_scan
from inscan.profiles.xrf_plans import fly_raster, step_raster
from inscan.service.cli import app
from inscan.service.raw_writer import RawRunWriter
from inscan.service.replay_service import OwnService
from inscan.service.stored_runs import find_run
from inscan.service.tiled_http import PROCESSED, RAW, TiledHTTP

# The first test to run waits for the service and for all live runs.
pytestmark = pytest.mark.timeout(300)
Until = Callable[..., Any]
KINDS = ("step", "fly", "txm", "srx", "srx_step", "srx_hf2dxrf", "fxi")
SIMULATED = KINDS[:3]
"""Those of a RunEngine here, whose metadata say who may see them."""
ACCESS = {"data_session": "pass-1", "proposal": {"id": "1"}}


@dataclass(frozen=True)
class Live:
    """A service that has processed one run of each kind.

    Attributes
    ----------
    state
        Its state directory.
    data
        Where the detector files are.
    uids
        Kind -> uid of the run.
    files
        Kind -> file with its documents as they were emitted.
    """

    state: Path
    data: Path
    uids: dict[str, str]
    files: dict[str, Path]

    def tiled(self) -> TiledHTTP:
        address = json.loads((self.state / "service.json").read_text())["tiled"]
        key = (self.state / "tiled" / "api_key").read_text().strip()
        return TiledHTTP(address, SecretStr(key))


def measure(sink: Callable[[str, Any], None], data: Path) -> None:
    """One small run of each kind."""
    engine = RunEngine({**ACCESS}, context_managers=[], call_returns_result=False)
    engine.subscribe(sink)
    engine.md["beamline_id"] = "sim_xrf"
    xrf = sim_xrf(cells(3), data, channels=2, time_scale=0, seed=1)
    few, many = (-4.0, 4.0, 8), (-6.0, 6.0, 24)
    engine(
        step_raster(
            *(xrf.xs, xrf.sclr, xrf.sample_y, *few, xrf.sample_x, *few),
            dwell=0.05,
            snake=True,
            md={"kind": "step"},
        )
    )
    engine(
        fly_raster(
            *(xrf.xs_fly, xrf.sample_y, *many, xrf.sample_x, *many),
            dwell=0.05,
            snake=True,
            md={"kind": "fly"},
        )
    )
    engine.md["beamline_id"] = "sim_txm"
    txm = sim_txm(battery_xanes(0, size=24), data, time_scale=0)
    energies = [8300.0 + 10 * n for n in range(12)]
    engine(
        xanes_scan(
            txm.microscope,
            energies,
            frames_per_energy=2,
            exposure=0.02,
            darks=2,
            md={"kind": "txm"},
        )
    )
    grain = SRXMap.make((6, 8), channels=3)
    for name, doc in srx_documents.fly(data, grain, snake=True, metadata={"kind": "srx"}):
        sink(name, doc)
    for make, kind in ((srx_documents.step, "srx_step"), (srx_documents.hf2dxrf, "srx_hf2dxrf")):
        for name, doc in make(data, grain, metadata={"kind": kind}):
            sink(name, doc)
    edge = 1 - 0.4 / (1 + np.exp(-np.linspace(-6, 6, 12)))
    plane = np.linspace(0.7, 1, 256).reshape(16, 16)
    stacks = np.stack([edge[:, None, None] * one for one in (plane, plane.T)])
    energies = [8.3 + 0.01 * n for n in range(12)]
    scans: dict[str, tuple[FXIPlan, np.ndarray]] = {
        "fxi": ("xanes_scan2", stacks[:1]),
        "fxi_places": ("multipos_2D_xanes_scan2", stacks),
    }
    for kind, (plan, truth) in scans.items():
        scan = FXIScan(truth, energies, plan=plan, chunk=2, metadata={"kind": kind})
        for name, doc in scan.documents(data):
            sink(name, doc)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    place = tmp_path_factory.mktemp("replay")
    data = place / "data"
    data.mkdir()
    service = OwnService(
        place,
        {
            "profiles": ["sim_xrf", "sim_txm", "srx", "srx_step", "srx_hf2dxrf", "fxi"],
            "data_roots": [str(data)],
            "rescan": "approve",
            "worker_threads": 1,
            "min_free": 0,
        },
    )
    service.launch()
    try:
        tiled = service.wait()["tiled"]
        connection = connect(state_dir=service.state_dir)
        profiles = [load_profile(name) for name in ("srx", "srx_step", "srx_hf2dxrf", "fxi")]
        key = SecretStr(service.tiled_key())
        raw = RawRunWriter(tiled, key, place / "raw-documents", profiles)
        emitted: dict[str, list[Any]] = {}
        kinds: dict[str, str] = {}
        current = ""

        def sink(name: str, doc: Any) -> None:
            nonlocal current
            if name == "start":
                current = doc["kind"]
                kinds[current] = doc["uid"]
            emitted.setdefault(current, []).append((name, dict(doc)))
            connection(name, doc)
            raw(name, doc)

        measure(sink, data)
        for kind, uid in kinds.items():
            outcome = connection.future(uid).result(timeout=120)
            assert outcome["status"] == "done", (kind, outcome)
            assert raw.wait(uid, 60), (kind, raw.problems)
        assert connection.close() and raw.close()
        files = {}
        for kind, documents in emitted.items():
            files[kind] = place / f"{kind}.jsonl"
            write_documents(files[kind], documents)
        yield Live(service.state_dir, data, kinds, files)
    finally:
        service.stop()


def replay(*arguments: Any, status: int = 0) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["replay", *map(str, arguments), "--json"])
    assert done.exit_code == status, (done.stdout, done.stderr, done.exception)
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_live_and_is_in_tiled_gives_the_same_bytes_again(live: Live, kind: str) -> None:
    uid = live.uids[kind]
    answer = replay(uid[:9], "--state", live.state, "--speed", "max", "--check")
    (run,) = answer["runs"]
    assert run["run"] == uid != run["replay"] and run["whole"] and run["status"] == "done"
    (result,) = run["results"]
    assert result["same_bytes"] and result["max_difference"] == 0.0 and not result["because"]
    with live.tiled() as tiled:
        derived = tiled.get(f"{PROCESSED}/{run['result_uid']}")
        assert tiled.get(f"{RAW}/{run['replay']}") is None, "the raw run is there already"
    assert derived is not None
    start = derived["metadata"]["start"]
    assert start["replay_of"] == uid and start["raw_uid"] == run["replay"]
    assert "scan_id" not in start
    if kind in SIMULATED:
        assert {key: start[key] for key in ACCESS} == ACCESS


@pytest.mark.parametrize(("kind", "results", "resources"), [("srx", 1, 18), ("fxi_places", 2, 52)])
def test_what_was_live_and_is_in_a_file_gives_the_same_bytes_again(
    live: Live, kind: str, results: int, resources: int
) -> None:
    answer = replay(live.files[kind], "--state", live.state, "--speed", "max", "--check")
    (run,) = answer["runs"]
    assert [one["same_bytes"] for one in run["results"]] == [True] * results
    assert len({one["original_uid"] for one in run["results"]}) == results, "one of each position"
    assert run["documents"]["resource"] == resources


def test_regions_of_a_replay_are_shown_and_refused(live: Live) -> None:
    answer = replay(live.uids["fly"], "--state", live.state, "--speed", "max")
    (proposal,) = answer["runs"][0]["proposals"]
    assert proposal["regions"] > 0
    kept = {one["id"]: one for one in request(live.state, "proposals")["proposals"]}
    assert kept[proposal["id"]]["state"] == "refused"
    assert "replay" in kept[proposal["id"]]["reason"]
    real = [one for one in kept.values() if one["run_uid"] == live.uids["fly"]]
    assert [one["state"] for one in real] == ["suggested"], "those of the run itself stay"


@pytest.mark.slow
def test_faults_are_done_told_and_repeated(live: Live) -> None:
    asked = ["--fault", "dropped=0.2", "--fault", "dead_lines=2", "--fault", "reordered"]
    asked += ["--seed", 3, "--speed", "max", "--state", live.state]
    first = replay(live.uids["step"], *asked, "--raw")["runs"][0]
    again = replay(live.uids["step"], *asked)["runs"][0]
    assert first["injected"] == again["injected"] != []
    assert any(text.startswith("killed 2 detector lines") for text in first["injected"])
    assert again["replay"] == first["replay"] and again["result_uid"] == first["result_uid"]
    (result,) = first["results"]
    assert not result["same_bytes"] and result["max_difference"] > 0
    assert result["because"] == ["input_digest"]
    with live.tiled() as tiled:
        raw = tiled.get(f"{RAW}/{first['replay']}")
    assert raw is not None and raw["metadata"]["start"]["replay"]["seed"] == 3
    stored = find_run(first["replay"], state=live.state)
    events = sum(name == "event" for name, _ in stored.documents())
    assert 0 < events < 64, "the raw run that --raw wrote lacks what was dropped"


def test_an_aborted_replay_has_a_result_of_what_there_was(live: Live) -> None:
    answer = replay(
        live.uids["step"], "--fault", "aborted=0.5", "--speed", "max", "--state", live.state
    )
    (run,) = answer["runs"]
    assert run["injected"] == ["aborted 1 run"] and run["status"] == "done"
    with live.tiled() as tiled:
        derived = tiled.get(f"{PROCESSED}/{run['result_uid']}")
    assert derived is not None and derived["metadata"]["start"]["complete"] is False


@pytest.mark.slow
def test_a_service_is_started_for_a_replay_and_ends_with_it(live: Live, tmp_path: Path) -> None:
    both = tmp_path / "runs.jsonl"
    runs = [find_run(live.uids[kind], state=live.state) for kind in ("txm", "step")]
    write_documents(both, (pair for run in runs for pair in run.documents()))
    out = tmp_path / "out"
    answer = replay(
        *(both, "--run", live.uids["step"], "--out", out, "--state", live.state),
        *("--profile", "sim_xrf", "--threads", 1, "--speed", "max", "--check"),
    )
    assert answer["own"] and answer["state"] == str(out / "state")
    # The original's result is in the other Tiled.
    assert [one["run"] for one in answer["runs"]] == [live.uids["step"]]
    assert not (out / "state" / "service.json").exists()


def test_ctrl_c_aborts_the_replayed_run(live: Live, until: Until) -> None:
    before = {one["run_uid"] for one in request(live.state, "runs")["runs"]}
    fresh: list[str] = []

    def interrupt() -> None:
        def begun() -> list[str]:
            runs = request(live.state, "runs")["runs"]
            return [one["run_uid"] for one in runs if one["run_uid"] not in before]

        fresh.extend(until(begun, 60))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    command = ["replay", live.uids["step"], "--state", str(live.state), "--speed", "1e-6", "--json"]
    done = CliRunner().invoke(app, command)
    thread.join()
    assert done.exit_code == 130, (done.stdout, done.stderr, done.exception)
    answer = json.loads(done.stdout)
    (run,) = answer["runs"]
    assert answer["interrupted"] and not run["whole"] and [run["replay"]] == fresh
    assert run["status"] == "failed" and "the replay was stopped" in run["reason"]
    found = request(live.state, "outcome", run_uid=run["replay"])["outcome"]
    assert found["status"] == "failed", "the service does not wait for a run that will not go on"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--speed", "0"], "expected a positive number"),
        (["--fault", "lost=1"], "There are dead_lines"),
        (["--run", "nosuch"], "0 runs of"),
        (["--threads", "2"], "runs with settings of its own"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_sent(
    live: Live, arguments: list[str], says: str
) -> None:
    before = len(request(live.state, "runs")["runs"])
    command = ["replay", live.uids["step"], "--state", str(live.state), *arguments]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, ValueError | LookupError) and says in str(done.exception)
    assert len(request(live.state, "runs")["runs"]) == before


def test_a_service_that_runs_keeps_its_folder(live: Live) -> None:
    before = (live.state / "service.json").read_bytes()
    command = ["replay", str(live.uids["step"]), "--state", str(live.state)]
    done = CliRunner().invoke(app, [*command, "--out", str(live.state.parent)])
    assert isinstance(done.exception, OSError)
    assert "belongs to a running service" in str(done.exception)
    assert (live.state / "service.json").read_bytes() == before
    assert request(live.state, "status")
