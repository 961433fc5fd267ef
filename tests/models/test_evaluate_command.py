"""`inscan evaluate` as a user runs it, on the cheapest method."""

import json

import pytest
from typer.testing import CliRunner

from inscan.service.cli import app

# Every family and count, with what rescans cost: some seconds of an idle core.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation")
    return CliRunner().invoke(
        app, ["evaluate", "regions", "--seeds", "1", "--out", str(out), "--json"]
    ), out


def test_json_alone_on_stdout_and_progress_on_stderr(done):
    result, out = done
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document == json.loads((out / "regions.json").read_text())
    assert document["command"] == "inscan evaluate regions --seeds 1"
    assert f"seed {document['seed_list'][0]}" in result.stderr and document["seed_list"][0] >= 7100
    assert (out / "regions.png").stat().st_size > 5_000
    assert (out / "regions_rescans.png").stat().st_size > 5_000
    curves = document["curves"]["all families, 10 counts"]
    assert len(curves["inscan"]) == len(document["areas"]) and curves["inscan"][-1] == 1
    assert all(one["why"] for one in document["missed"])


def test_the_file_says_how_it_came_about(done):
    document = json.loads(done[0].stdout)
    assert set(document["weights_sha256"]) >= {"denoiser", "superres_x2", "superres_x4"}
    assert all(len(sha) == 64 for sha in document["weights_sha256"].values())
    assert document["versions"]["torch"] and document["machine"]["cores"] >= 1
    rows = document["rows"]
    assert {row["method"] for row in rows} >= {"random", "inscan"}
    measured = {row["method"]: row["seeds"] for row in rows if row["case"] == "cells, 10 counts"}
    assert measured["random"] == measured["inscan"] == 1
    # Stored before: they say on how many seeds.
    assert measured["n2n map"] == len(document["networks"]["seeds"]) > 1
    assert any(row["case"] == "rescans, all families, 3 counts" for row in rows)


@pytest.mark.parametrize(
    "arguments",
    [("stones",), ("regions", "--fit-steps", "5"), ("regions", "--paper-steps", "5")],
    ids=" ".join,
)
def test_what_cannot_be_evaluated_is_refused(arguments):
    result = CliRunner().invoke(app, ["evaluate", *arguments])
    assert result.exit_code != 0
    assert isinstance(result.exception, ValueError)
