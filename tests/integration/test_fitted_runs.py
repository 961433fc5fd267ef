"""Fine-tuned finals in the real service: a first result at once, a better one in the time granted.

And weights that pass to the next run of the same sample and detector, and to no other. The profile names weights that
are the shipped ones with noise on them: so there is something to gain, however good the shipped ones are.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from bluesky import RunEngine
from pydantic import SecretStr
from typer.testing import CliRunner

from inscan.callbacks import connect
from inscan.callbacks.profile import shipped_profiles
from inscan.callbacks.request import request
from inscan.profiles.samples import cells
from inscan.profiles.simulation import sim_xrf
from inscan.profiles.xrf_plans import fly_raster
from inscan.service.cli import app
from inscan.service.journal import Journal
from inscan.service.result_file import read_result, read_weights
from inscan.service.shelf import Shelf
from inscan.service.spool import load
from inscan.service.tiled_http import TiledHTTP

# The first test to run waits for the service and its fine-tuning.
pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]
Until = Callable[..., Any]
ANY = "tcp://127.0.0.1:0"
STEPS = 10
SCAN = {"type": "XRF_FLY", "energy": 12.0, "dwell": 0.05}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fitted")


def weaken(folder: Path) -> None:
    """Write the shipped denoiser with noise on its weights, as `weak.safetensors`."""
    import torch

    from inscan.models.weights import load_weights, save_weights

    shipped, noise = load_weights("denoiser"), torch.Generator().manual_seed(0)
    tensors = {
        name: value + 0.5 * float(value.std()) * torch.randn(value.shape, generator=noise)
        for name, value in shipped.tensors.items()
    }
    save_weights(folder, "weak", tensors, shipped.card)


@pytest.fixture(scope="module")
def service(place: Path, until: Until) -> Iterator[Path]:
    """The service with one worker of one thread and a profile that grants time; yields its state directory."""
    profile = yaml.safe_load(shipped_profiles()["sim_xrf"].read_text(encoding="utf-8"))
    weaken(place)
    profile["method"] |= {"snapshot_rows": 0, "fit_steps": STEPS, "fit_seconds": 600}
    profile["method"]["weights"] = "weak.safetensors"
    profile["rescan"] |= {"mode": "suggest"}
    (place / "profile.yaml").write_text(yaml.safe_dump(profile))
    (place / "data").mkdir()
    state = place / "state"
    settings = {"state_dir": str(state), "profiles": [str(place / "profile.yaml")]}
    settings |= {"ingest": ANY, "broker": ANY, "spool": ANY, "keep_spool": True, "min_free": 0}
    settings |= {"drain_s": 1.0}
    settings |= {"workers": 1, "worker_threads": 1, "data_roots": [str(place / "data")]}
    (place / "service.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "inscan.service.cli", "serve", str(place / "service.yaml")]
    log = place / "service.log"
    with log.open("ab") as file:
        process = subprocess.Popen(
            [*command, "--parent", str(os.getpid())], stdout=file, stderr=file
        )

    def ready() -> bool:
        assert process.poll() is None, log.read_text()[-3000:]
        return (state / "service.json").exists()

    until(ready, 90)
    yield state
    process.terminate()
    assert process.wait(60) == 0, log.read_text()[-3000:]


@pytest.fixture(scope="module")
def jobs(service: Path, place: Path, until: Until) -> Iterator[dict[str, list[dict[str, Any]]]]:
    """Jobs of three runs: two of one sample, when they have ended, and one of another sample as they are asked for."""
    engine = RunEngine({"beamline_id": "sim_xrf"}, context_managers=[], call_returns_result=False)
    connection = connect(state_dir=service)
    engine.subscribe(connection)
    found: dict[str, list[dict[str, Any]]] = {}
    for number, (name, sample) in enumerate((("one", "a"), ("two", "a"), ("other", "b"))):
        devices = sim_xrf(cells(3), place / "data", channels=3, time_scale=0, seed=number)
        axis = (-6.0, 6.0, 24)
        (uid,) = engine(  # type: ignore[misc]
            fly_raster(
                devices.xs_fly,
                *(devices.sample_y, *axis, devices.sample_x, *axis),
                dwell=0.05,
                md={"sample": {"name": sample}, "scan": SCAN},
            )
        )

        def ended(uid: str = uid, name: str = name) -> list[dict[str, Any]]:
            rows = request(service, "jobs", run_uid=uid)["jobs"]
            over = [row["state"] in ("committed", "failed") for row in rows]
            return rows if len(rows) == 2 and (all(over) or name == "other") else []

        found[name] = until(ended, 120)
    connection.close()
    yield found


def fitted_report(job: dict[str, Any]) -> dict[str, Any]:
    return read_result(Path(job["result_path"])).processed.report["fine_tuned"]


def test_the_first_result_is_that_of_the_shipped_weights_and_the_second_says_what_it_gained(
    service: Path, jobs: dict[str, list[dict[str, Any]]]
) -> None:
    first, second = jobs["one"]
    assert [job["state"] for job in (first, second)] == ["committed", "committed"], jobs
    assert set(first["parameters"]) == {"weights"} and first["fitted"] == ""
    assert second["parameters"] == first["parameters"] | {"fit_steps": STEPS, "fit_seconds": 600.0}
    report = fitted_report(second)
    assert report["started_from"] == "given" and report["offered"] is None
    assert report["given_sha256"] == first["parameters"]["weights"]
    assert report["heldout_nll"]["result"] < report["heldout_nll"]["given"]
    assert 0 < report["steps_kept"] <= report["steps_done"] <= STEPS
    assert second["fitted"] == report["text"]
    # One run, one proposal: the second result proposes nothing of its own.
    assert len(request(service, "proposals", run_uid=first["run_uid"])["proposals"]) == 1


def test_weights_born_of_a_run_are_offered_to_the_next_of_its_sample_only(
    service: Path, jobs: dict[str, list[dict[str, Any]]]
) -> None:
    (_, one), (_, two), (_, other) = jobs["one"], jobs["two"], jobs["other"]
    born = read_weights(Path(one["result_path"]))
    assert born is not None and born.card["born_of"]["raw_uid"] == one["run_uid"]
    assert born.card["born_of"]["sample"] == "a" and born.card["licence"]
    assert born.card["parent_sha256"] == fitted_report(one)["given_sha256"]
    assert fitted_report(one)["final_sha256"] == born.card["sha256"]
    report = fitted_report(two)
    assert report["offered"]["sha256"] == born.card["sha256"]
    assert report["offered"]["born_of"]["raw_uid"] == one["run_uid"]
    scores = report["heldout_nll"]
    assert report["started_from"] == "last_run" and scores["offered"] < scores["given"]
    assert one["run_uid"][:8] in two["fitted"]
    journal = Journal(service / "journal.db")
    asked = {key: journal.request(key) for key in (two["key"], other["key"])}
    journal.close()
    offered = {key for key, job in asked.items() if job and "start_weights" in job.arrays}
    assert offered == {two["key"]}
    kept = {entry.born_of["raw_uid"] for entry in Shelf(service / "weights").all()}
    assert one["run_uid"] in kept


def test_the_steps_that_were_done_give_the_same_result_again(
    service: Path, jobs: dict[str, list[dict[str, Any]]]
) -> None:
    import torch

    from inscan.service.recipes import process

    _, two = jobs["two"]
    key = SecretStr((service / "tiled" / "api_key").read_text().strip())
    address = json.loads((service / "service.json").read_text())["tiled"]
    with TiledHTTP(address, key) as tiled:
        node = tiled.get(f"processed/{two['result_uid']}")
    assert node is not None
    provenance = node["metadata"]["start"]["provenance"]
    assert provenance["parameters"] == two["parameters"]
    done = provenance["fine_tuned"]["steps_done"]
    assert provenance["repeat_with"] == jobs["two"][0]["parameters"] | {"fit_steps": done}
    journal = Journal(service / "journal.db")
    job = journal.request(two["key"])
    journal.close()
    assert job is not None
    again = job.model_copy(update={"parameters": provenance["repeat_with"]})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        made = process(again, load(Path(job.spool), job.arrays), lambda fraction: None)
    finally:
        torch.set_num_threads(threads)
    stored = read_result(Path(two["result_path"])).processed
    for mine, theirs in zip(made.arrays, stored.arrays, strict=True):
        np.testing.assert_array_equal(mine.values, theirs.values, err_msg=mine.name)


def test_weights_are_listed_and_forgotten(
    service: Path, jobs: dict[str, list[dict[str, Any]]]
) -> None:
    def weights(*arguments: str) -> Any:
        done = CliRunner().invoke(app, ["weights", "--state", str(service), *arguments])
        assert done.exit_code == 0, done.output
        return done.stdout

    run = jobs["one"][1]["run_uid"]
    rows = json.loads(weights("--json"))
    assert run in [row["raw_uid"] for row in rows]
    assert json.loads(weights(run[:8]))["born_of"]["raw_uid"] == run
    assert "forgotten" in weights(run[:8], "--forget")
    assert run not in [row["raw_uid"] for row in json.loads(weights("--json"))]
    assert read_weights(Path(jobs["one"][1]["result_path"])) is not None
