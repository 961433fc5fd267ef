"""An energy scan of two positions through a real service: two stacks, each with its own result."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from pydantic import SecretStr
from tiled.client import from_uri
from tiled.queries import Eq
from typer.testing import CliRunner

from inscan.callbacks import connect
from inscan.callbacks.request import request
from inscan.profiles.fxi_documents import FXIScan
from inscan.service import derived
from inscan.service.cli import app
from inscan.service.commit import Committer
from inscan.service.messages import job_key
from inscan.service.replay_service import OwnService
from inscan.service.results import NoResult, Results
from inscan.service.show import TiledAccess, show
from inscan.service.tiled_http import PROCESSED, TiledHTTP
from inscan.service.tiled_server import EmbeddedTiled

pytestmark = [pytest.mark.timeout(120), pytest.mark.slow]
KEV = [8.30 + 0.01 * n for n in range(8)]
SIZE = (14, 18)


@dataclass(frozen=True)
class Measured:
    """A service that has processed one scan of two positions.

    Attributes
    ----------
    state
        Its state directory.
    tiled, api_key
        Its Tiled.
    uid
        Of the scan.
    scan
        What was measured.
    outcome
        As the RunEngine's side was told.
    """

    state: Path
    tiled: str
    api_key: str
    uid: str
    scan: FXIScan
    outcome: dict[str, Any]

    def results(self) -> Results:
        return Results(self.tiled, SecretStr(self.api_key))


def two_places() -> FXIScan:
    """Two samples that no pixel of confuses: the thick side of one is the thin side of the other."""
    edge = 1 - 0.4 / (1 + np.exp(-np.linspace(-6, 6, len(KEV))))
    plane = np.linspace(0.4, 1, SIZE[0] * SIZE[1]).reshape(SIZE)
    truth = np.stack([edge[:, None, None] * one for one in (plane, plane[::-1, ::-1])])
    return FXIScan(truth, KEV, "multipos_2D_xanes_scan2", chunk=2, metadata={"scan_id": 41}, seed=4)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    place = tmp_path_factory.mktemp("stacks")
    data = place / "data"
    data.mkdir()
    service = OwnService(
        place,
        {
            "profiles": ["fxi"],
            "data_roots": [str(data)],
            "worker_threads": 1,
            "min_free": 0,
            "keep_spool": True,
        },
    )
    service.launch()
    try:
        tiled = service.wait()["tiled"]
        scan = two_places()
        with connect(state_dir=service.state_dir) as connection:
            documents = list(scan.documents(data))
            uid = documents[0][1]["uid"]
            future = connection.future(uid)
            for name, doc in documents:
                connection(name, doc)
            outcome = future.result(timeout=90)
            assert connection.close()
        yield Measured(service.state_dir, tiled, service.tiled_key(), uid, scan, outcome)
    finally:
        service.stop()


def run_command(measured: Measured, *arguments: str | Path) -> Any:
    command = [*map(str, arguments), "--state", str(measured.state)]
    return CliRunner().invoke(app, command)


def test_each_position_has_a_result_of_its_own_values(measured: Measured) -> None:
    client = from_uri(measured.tiled, api_key=measured.api_key)
    found = dict(client[PROCESSED].search(Eq("start.raw_uid", measured.uid)).items())
    runs = {run.metadata["start"]["raw_stream"]: run for run in found.values()}
    try:
        assert len(found) == 2 and runs.keys() == {"primary", "primary@2"}
        (seen,) = measured.scan.transmission()
        for stream, truth in zip(("primary", "primary@2"), seen, strict=True):
            raw = np.asarray(runs[stream]["primary"]["raw"].read())
            np.testing.assert_allclose(raw, truth, rtol=2e-3, err_msg=stream)
        assert np.abs(seen[0] - seen[1]).max() > 0.3
    finally:
        client.context.http_client.close()


def test_the_outcome_is_there_when_both_are(measured: Measured) -> None:
    outcome = measured.outcome
    assert (outcome["status"], outcome["reason"]) == ("done", "")
    states = {one["stream"]: one["state"] for one in outcome["results"]}
    assert states == {"primary": "committed", "primary@2": "committed"}
    uids = {one["stream"]: one["result_uid"] for one in outcome["results"]}
    assert outcome["result_uid"] == uids["primary"] != uids["primary@2"]


def test_a_person_sees_that_there_are_several_and_takes_one(
    measured: Measured, tmp_path: Path
) -> None:
    uids = {one["stream"]: one["result_uid"] for one in measured.outcome["results"]}
    pictures = ["--out", tmp_path]
    for name, asked, taken, other in (
        (measured.uid, [], "primary", "primary@2"),
        ("41", ["--stream", "primary@2"], "primary@2", "primary"),
    ):
        done = run_command(measured, "show", name, *asked, *pictures, "--json")
        answer = json.loads(done.stdout)
        assert (answer["stream"], answer["other_streams"]) == (taken, [other])
        assert answer["result_uid"] == uids[taken]
    done = run_command(measured, "show", "41", *pictures)
    assert "stream: primary (--stream shows the run's other results: primary@2)" in done.stdout
    # By the uid of a result that one is meant, whichever it is.
    done = run_command(measured, "show", uids["primary@2"], *pictures, "--json")
    assert json.loads(done.stdout)["stream"] == "primary@2"
    table = run_command(measured, "jobs", "--json").stdout
    assert {one["stream"] for one in json.loads(table)} == {"primary", "primary@2"}


def test_what_is_exported_is_the_chosen_one(measured: Measured, tmp_path: Path) -> None:
    seen = measured.scan.transmission()[0]
    files = []
    for asked, truth in (([], seen[0]), (["--stream", "primary@2"], seen[1])):
        done = run_command(measured, "export", "41", *asked, "--out", tmp_path, "--json")
        answer = json.loads(done.stdout)
        (path,) = answer["files"]
        files.append(path)
        with h5py.File(path) as file:
            raw = np.asarray(file["entry/values/raw"])
        np.testing.assert_allclose(raw, truth, rtol=2e-3, err_msg=answer["stream"])
    assert files[0] != files[1], "one does not replace the other"
    done = run_command(measured, "export", "41", "--out", tmp_path)
    assert "this is primary; --stream exports the run's other results: primary@2" in done.stderr


def test_a_stream_that_is_not_there_is_named_with_those_that_are(measured: Measured) -> None:
    with measured.results() as results, pytest.raises(NoResult) as error:
        results.latest("41", "primary@3")
    assert "no stream 'primary@3': there are primary, primary@2" in str(error.value)


def test_a_stack_without_a_result_is_not_replaced_by_another(
    tiled: EmbeddedTiled, commit: Any, tmp_path: Path
) -> None:
    run_uid = "2f2f2f2f-0000-4000-8000-000000000003"
    good = commit(run_uid, 7103)
    failed = derived.compose_failure(
        job_key(run_uid, "primary@2", "n2n", {}),
        run_uid,
        "primary@2",
        "n2n",
        {"scan_id": 7103},
        "too_slow",
        "took longer than its budget",
        2e9,
    )
    with TiledHTTP(tiled.uri, tiled.api_key) as http:
        committer = Committer(http)
        committer.commit(failed)
        committer.close()
    access = TiledAccess(tiled.uri, tiled.api_key)
    shown = show(access, "7103", tmp_path)
    assert (shown["result_uid"], shown["other_streams"]) == (good, [])
    for name in ("7103", run_uid, good):
        with pytest.raises(NoResult, match=r"of primary@2: it failed: too_slow.* one of primary,"):
            show(access, name, tmp_path, "primary@2")


def test_the_spool_says_of_each_stack_what_it_is(measured: Measured) -> None:
    folder = measured.state / "spool" / measured.uid
    metas = [json.loads(path.read_text()) for path in folder.glob("meta*.json")]
    assert {one["stream"]: one["position"]["number"] for one in metas} == {
        "primary": 1,
        "primary@2": 2,
    }
    assert request(measured.state, "jobs", run_uid=measured.uid)["jobs"]
