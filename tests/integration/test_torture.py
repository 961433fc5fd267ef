"""A small share of the torture with a fixed seed, and that its counting can fail."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inscan.service.journal import Journal

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def check(monkeypatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("torture_check")


@pytest.mark.timeout(300)
def test_five_kills_lose_nothing_and_double_nothing(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "torture_kills.py"), "--kills", "5", "--seed", "7"]
    places = ["--out", str(tmp_path), "--folder", str(tmp_path)]
    done = subprocess.run(
        [*command, *places],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads((tmp_path / "kills.json").read_text())["rows"]
    assert row["times"] == 5
    assert row["lost"] == row["duplicated"] == 0
    assert row["runs"] == row["results"] + row["failures"] > 0
    assert row["results"] > 0 and row["figures"]["values_known"] > 0
    assert row["figures"]["service_starts"] == 2, "it was killed once"
    assert row["figures"]["problems"] == []


def node(check, uid, raw, key, status="success"):
    return check.Node(uid, raw, key, status, True)


def journal(check, *jobs):
    runs = [check.RunRow(run, "complete", "") for run in sorted({run for run, *_ in jobs})]
    rows = [
        check.JobRow(key, run, state, "", "", (), f"uid-{key}", 0.0) for run, key, state in jobs
    ]
    return runs, rows


def test_what_is_whole_is_counted_so(check):
    runs, jobs = journal(check, ("a", "k1", "committed"), ("b", "k2", "failed"))
    nodes = [node(check, "n1", "a", "k1"), node(check, "n2", "b", "k2", "fail")]
    ends = check.ends_of(["a", "b"], runs, jobs, nodes)
    assert (ends.runs, ends.results, ends.failures) == (2, 1, 1)
    assert ends.lost == ends.duplicated == 0 and not ends.problems


@pytest.mark.parametrize(
    ("jobs", "nodes", "lost", "duplicated", "words"),
    [
        ([], [], 1, 0, "does not know"),
        ([("a", "k1", "computed")], [], 1, 0, "not ended"),
        ([("a", "k1", "committed")], [], 1, 0, "not in Tiled"),
        ([("a", "k1", "failed")], [], 1, 0, "not in Tiled"),
        (
            [("a", "k1", "committed"), ("a", "k2", "committed")],
            [("n1", "k1"), ("n2", "k2")],
            0,
            1,
            "2 times",
        ),
        ([("a", "k1", "committed")], [("n1", "k1"), ("n2", "k1")], 0, 1, "2 results"),
        ([("a", "k1", "committed")], [("n1", "k1"), ("n2", "k2")], 0, 1, "journal has not"),
        ([("a", "k1", "committed")], [("n1", "k1"), ("n2", "k2", None)], 0, 1, "no stop"),
    ],
)
def test_what_is_lost_or_doubled_is_found(check, jobs, nodes, lost, duplicated, words):
    there = [node(check, uid, "a", *rest) for uid, *rest in nodes]
    ends = check.ends_of(["a"], *journal(check, *jobs), there)
    assert (ends.lost, ends.duplicated) == (lost, duplicated)
    assert any(words in problem for problem in ends.problems), ends.problems


def test_wrong_values_are_found_and_missing_ones_only_where_nothing_may_be_missing(check):
    wanted = np.arange(6, dtype="f4").reshape(1, 2, 3) + 1
    part = np.where(wanted > 3, 0, wanted)
    whole, cut = node(check, "n", "a", "k"), check.Node("n", "a", "k", "success", False)
    assert check.misfit(whole, {"values": wanted}, wanted) is None
    assert "3 of 6" in check.misfit(whole, {"values": part}, wanted)
    assert check.misfit(cut, {"values": part}, wanted) is None
    assert "wrong" in check.misfit(cut, {"values": part + 1}, wanted)
    assert "shape" in check.misfit(whole, {"values": wanted[:, :1]}, wanted)
    assert "no values" in check.misfit(whole, {}, wanted)


def test_a_real_journal_is_read_as_it_is(check, tmp_path):
    rig = importlib.import_module("torture_rig").Rig(tmp_path)
    own = Journal(rig.state / "journal.db")
    own.record_run("open", 1, "sim_xrf", {"uid": "open"})
    own.finish_run("given up", "incomplete", "nobody sends it")
    runs, jobs = rig.journal()
    assert rig.phases() == {"assembly": 1}
    own.close()
    ends = check.ends_of(["open", "given up", "never seen"], runs, jobs, None)
    assert (ends.failures, ends.lost) == (1, 2)
