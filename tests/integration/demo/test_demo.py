"""One demo on measured maps, looked at from all sides: its JSON, its folder, its Tiled, its service."""

import html
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiled.client import from_uri

INSCAN = (sys.executable, "-m", "inscan.service.cli")


@pytest.fixture(scope="module")
def demo(start, maps, tmp_path_factory):
    """A finished demo on a small sample; its beamline has two channels, as the environment says."""
    started = start(
        tmp_path_factory.mktemp("demo") / "out",
        "--sample",
        str(maps),
        INSCAN_SIM_CHANNELS="2",
        INSCAN_SERVICE="tcp://127.0.0.1:9",  # somebody else's: the demo keeps to its own
    )
    assert started.wait() == 0, started.stderr
    return started


@pytest.fixture(scope="module")
def service(demo, until):
    """The service, started again as the report says."""
    command = [*INSCAN, "serve", str(demo.out / "service.yaml"), "--workers", "0"]
    log = demo.out / "again.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    address = demo.out / "state" / "service.json"
    try:
        until(lambda: address.exists() or process.poll() is not None, 60)
        assert process.poll() is None, log.read_text()
        yield process
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture
def client(demo, service):
    """The Tiled of the service that was started again."""
    state = demo.out / "state"
    address = json.loads((state / "service.json").read_text())["tiled"]
    found = from_uri(address, api_key=(state / "tiled" / "api_key").read_text().strip())
    yield found
    found.context.close()


def test_stdout_is_one_json_document_without_problems(demo):
    answer = demo.answer
    assert answer["problems"] == [] and answer["interrupted"] is False
    assert [run["purpose"] for run in answer["runs"]][:2] == ["survey", "fine"]
    assert {run["exit_status"] for run in answer["runs"]} == {"success"}
    names = [score["name"] for score in answer["figures"]["survey"]]
    assert names == ["Fe_K", "Ca_K"]
    assert answer["figures"]["dwell_equivalent"] > 1
    assert answer["figures"]["regions"]["measured"] == len(answer["runs"]) - 1


def test_people_read_what_happens_on_stderr(demo):
    said = demo.stderr
    # Snapshots come when a worker has time for them: not on a machine that is busy with other tests.
    assert "Survey done" in said and "Region 1-" in said
    assert "Survey against the truth (20 x 80 pixels)" in said
    assert "no service at" not in said  # the connection is made when there is one
    assert "Traceback" not in said


def test_report_and_picture_are_there(demo):
    page = (demo.out / "report.html").read_text()
    assert "Fe_K" in page and "report.png" in page and "Problem" not in page
    assert html.escape(demo.answer["runs"][0]["result_uid"]) in page
    assert (demo.out / "report.png").read_bytes().startswith(b"\x89PNG")


def test_uids_resolve_in_tiled(demo, client):
    survey, *fines = demo.answer["runs"]
    assert fines
    for run in demo.answer["runs"]:
        start = client["raw"][run["uid"]].metadata["start"]
        derived = client["processed"][run["result_uid"]]
        made = derived.metadata["start"]
        assert (start["beamline_id"], start["scan_id"]) == ("sim_xrf", run["scan_id"])
        assert made["raw_uid"] == run["uid"] and made["provenance"]["weights_sha256"]
        values, sigma = (derived["primary"][name].read() for name in ("values", "sigma"))
        assert values.shape == sigma.shape == (2, *start["shape"])
        assert (sigma > 0).all()
    for run in fines:
        start = client["raw"][run["uid"]].metadata["start"]
        assert start["parent_uid"] == survey["uid"]
        assert start["region"] == run["region"] and start["rescan_proposal"] == run["proposal"]
        assert start["scan"]["dwell"] == 0.02
    # As the environment said.
    assert client["raw"][survey["uid"]]["primary"]["xs_mcaroi"].read().shape[1] == 2


def ask(demo, *arguments):
    return subprocess.run(
        [*INSCAN, *arguments, "--state", str(demo.out / "state")],
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.slow
def test_a_service_on_the_same_folder_knows_it_all(demo, service, tmp_path):
    runs = demo.answer["runs"]
    jobs = json.loads(ask(demo, "jobs", "--json").stdout)
    made = {(run["uid"], run["result_uid"]) for run in runs}
    together = [job for job in jobs if job["recipe"] == "composite"]
    assert {(j["run_uid"], j["result_uid"]) for j in jobs if j not in together} == made
    composite = demo.answer["composite"]
    assert (composite["uid"], composite["result_uid"]) in {
        (job["run_uid"], job["result_uid"]) for job in together
    }
    table = ask(demo, "proposals").stdout
    identity = runs[1]["proposal"]
    # Ids fit a terminal of 80 columns, and are as long as `approve` needs them.
    assert table.startswith("1 proposal\n") or "1 proposal " in table
    assert identity[:8] in table and identity not in table
    again = ask(demo, "approve", identity[:8])
    assert again.returncode == 1 and len(again.stderr.splitlines()) == 1 and "done" in again.stderr
    shown = ask(demo, "show", "1", "--json", "--out", str(tmp_path))
    answer = json.loads(shown.stdout)
    assert answer["raw_uid"] == runs[0]["uid"] and Path(answer["png"]).stat().st_size > 10_000
    missing = ask(demo, "show", "99", "--out", str(tmp_path))
    assert (missing.returncode, missing.stderr) == (
        2,
        "inscan: no run '99' in Tiled, neither by scan number nor by uid\n",
    )
    told = ask(demo, "status").stdout
    assert "jobs: committed" in told and "{" not in told and "no workers" in told


def test_a_second_service_on_the_same_folder_is_refused(demo, service):
    second = subprocess.run(
        [*INSCAN, "serve", str(demo.out / "service.yaml")], capture_output=True, text=True
    )
    assert second.returncode == 2 and len(second.stderr.splitlines()) == 1
    assert f"belongs to a running service (process {service.pid})" in second.stderr
    assert service.poll() is None and (demo.out / "state" / "service.json").exists()
