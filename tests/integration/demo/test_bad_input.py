"""Bad input: one line on stderr, the documented exit status, nothing left running, nothing lost."""

import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from inscan.service.cli import main
from inscan.service.settings import Settings
from inscan.service.state_dir import StateDir

BAD_INPUT = 2


@pytest.fixture
def inscan(monkeypatch, capsys, tmp_path):
    """Run the command line in this process: (exit status, lines of stderr). Leaks fail the test."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
    for name in ("INSCAN_STATE", "INSCAN_SERVICE", "INSCAN_SIM_SAMPLE", "INSCAN_TILED_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["inscan", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        assert captured.out == ""
        return ended.value.code, captured.err.splitlines()

    return run


def refused(answer, *words):
    status, lines = answer
    assert status == BAD_INPUT and len(lines) == 1, lines
    assert lines[0].startswith("inscan: ")
    for word in words:
        assert str(word) in lines[0]


def test_unknown_profile(inscan, tmp_path):
    refused(inscan("demo", "--profile", "sim_xyz", "--out", tmp_path / "out"), "sim_xyz", "sim_txm")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("profile", "sample", "word"),
    [
        ("sim_xrf", "cows", "battery_particles"),
        ("sim_txm", "cells", "battery_smooth"),
        ("sim_xrf", "nowhere/maps.npz", "no such file"),
        ("sim_xrf", "maps.csv", ".npz, .h5"),
    ],
)
def test_unknown_sample(inscan, tmp_path, profile, sample, word):
    out = tmp_path / "new" / "out"
    refused(inscan("demo", "--profile", profile, "--sample", sample, "--out", out), sample, word)
    # Nothing is in the way of the next attempt.
    assert not out.parent.exists()


def test_sample_file_without_maps(inscan, tmp_path):
    path = tmp_path / "other.npz"
    np.savez(path, temperature=np.ones((4, 4)))
    refused(inscan("demo", "--sample", path, "--out", tmp_path / "out"), path, "temperature")


def test_sample_file_that_is_broken(inscan, tmp_path):
    path = tmp_path / "broken.h5"
    path.write_bytes(b"not HDF5 at all")
    refused(inscan("demo", "--sample", path, "--out", tmp_path / "out"), path)


@pytest.mark.parametrize(
    ("name", "value"), [("INSCAN_SIM_CHANNELS", "99"), ("INSCAN_SIM_TIME_SCALE", "fast")]
)
def test_parameters_of_the_beamline(inscan, monkeypatch, tmp_path, name, value):
    monkeypatch.setenv(name, value)
    refused(inscan("demo", "--out", tmp_path / "out"), name, value)
    assert not (tmp_path / "out").exists()


def test_folder_that_is_not_empty_keeps_what_is_in_it(inscan, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    refused(inscan("demo", "--out", tmp_path), tmp_path, "not empty")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_folder_below_a_file(inscan, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    refused(inscan("demo", "--out", file / "out"), file / "out", "new or empty")
    refused(inscan("demo", "--out", file), file, "new or empty")
    assert file.read_text() == "mine"


def settings_file(folder: Path, **more):
    free = "tcp://127.0.0.1:0"
    content = {"state_dir": str(folder / "state"), "ingest": free, "broker": free, "spool": free}
    path = folder / "service.yaml"
    path.write_text(yaml.safe_dump({**content, "workers": 0, **more}))
    return path


def test_serve_with_a_wrong_key(inscan, tmp_path):
    path = settings_file(tmp_path, worker=2)
    status, lines = inscan("serve", path)
    assert status == BAD_INPUT and str(path) in lines[0]
    text = " ".join(lines)
    assert "worker" in text and "workers" in text
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("which", ["ingest", "broker", "spool"])
def test_serve_on_a_port_in_use(inscan, tmp_path, which):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        path = settings_file(tmp_path, **{which: f"tcp://127.0.0.1:{port}"})
        refused(inscan("serve", path), port)
    assert not (tmp_path / "state" / "service.json").exists()
    # The state directory was let go.
    StateDir(Settings(state_dir=tmp_path / "state")).close()


def test_serve_with_tiled_on_a_port_in_use(inscan, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(inscan("serve", settings_file(tmp_path, tiled={"port": port})), port, "tiled.port")


def test_serve_on_a_state_directory_that_has_a_service(inscan, tmp_path):
    path = settings_file(tmp_path)
    owner = StateDir(Settings(state_dir=tmp_path / "state"))
    try:
        owner.announce({"ingest": "tcp://127.0.0.1:1"})
        refused(inscan("serve", path), "belongs to a running service")
        assert (tmp_path / "state" / "service.json").exists()
    finally:
        owner.close()


def test_serve_where_nothing_can_be_written(inscan, tmp_path):
    (tmp_path / "file").write_text("mine")
    state = tmp_path / "file" / "state"
    refused(inscan("serve", settings_file(tmp_path, state_dir=str(state))), state, "--state")
