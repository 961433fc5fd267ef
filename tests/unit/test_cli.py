"""The command line: help, configuration, exit statuses; no service runs here."""

import json
import sys
from pathlib import Path

import pytest
import typer.main
import yaml
from typer.testing import CliRunner

from inscan.service.cli import app, main

BAD_INPUT, UNREACHABLE, INTERRUPTED = 2, 3, 130
SHIPPED = Path(__file__).parents[2] / "profiles"


@pytest.fixture
def runner(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("INSCAN_TILED_API_KEY", raising=False)
    return CliRunner()


@pytest.fixture
def inscan(monkeypatch, capsys, tmp_path):
    """Run it as the installed program does: (exit status, stdout, stderr)."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("INSCAN_TILED_API_KEY", raising=False)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["inscan", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return run


COMMANDS = [
    ("demo",),
    ("serve",),
    ("worker",),
    ("status",),
    ("jobs",),
    ("proposals",),
    ("recommend",),
    ("approve",),
    ("retry",),
    ("quarantine",),
    ("refuse",),
    ("show",),
    ("weights",),
    ("doctor",),
    ("train",),
    ("evaluate",),
    ("config", "schema"),
    ("config", "explain"),
    ("config", "check"),
    ("explain",),
    ("profile", "new"),
    ("profile", "check"),
    ("export",),
    ("process",),
    ("replay",),
    ("forward", "0mq"),
    ("forward", "file"),
    ("forward", "kafka"),
    ("forward", "tiled"),
    ("keys", "new"),
    ("keys", "list"),
    ("keys", "revoke"),
]


def test_help_names_every_command(runner):
    text = runner.invoke(app, ["--help"]).output
    assert all(f"  {command[0]} " in text for command in COMMANDS)


def test_no_command_is_left_out_here():
    group = typer.main.get_command(app)
    found = set()
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        found |= {(name, one) for one in inner} if inner else {(name,)}
    assert found == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_of_every_command(runner, command):
    done = runner.invoke(app, [*command, "--help"])
    assert done.exit_code == 0 and "Usage:" in done.output
    # A sentence about what it does, beneath the usage.
    assert len(done.output.split("\n\n")[1].strip()) > 20


def test_bare_call_shows_help(runner):
    assert "Commands" in runner.invoke(app, []).output


@pytest.mark.parametrize("arguments", [("nothing",), ("demo", "--fast"), ("jobs", "--state")])
def test_unknown_commands_and_options(inscan, arguments):
    status, out, err = inscan(*arguments)
    assert (status, out) == (BAD_INPUT, "")
    assert "Error" in err


def test_schema_is_a_schema(runner):
    for what, key in (("settings", "workers"), ("profile", "technique")):
        document = json.loads(runner.invoke(app, ["config", "schema", what]).output)
        assert key in document["properties"] and document["additionalProperties"] is False


def test_explain_says_type_default_and_meaning(runner):
    text = runner.invoke(app, ["config", "explain", "settings"]).output
    assert "workers" in text and "Worker processes started by the service" in text
    text = runner.invoke(app, ["config", "explain", "profile"]).output
    assert "soft_limits" in text and "snapshot_rows" in text


@pytest.mark.parametrize("command", ["schema", "explain"])
def test_schema_and_explain_of_something_else(inscan, command):
    status, out, err = inscan("config", command, "sample")
    assert (status, out) == (BAD_INPUT, "")
    assert err == "inscan: no configuration named 'sample': say settings or profile\n"


@pytest.mark.parametrize("name", ["sim_xrf", "sim_txm"])
def test_shipped_profiles_are_good(runner, name):
    done = runner.invoke(app, ["config", "check", str(SHIPPED / name / "profile.yaml")])
    assert done.exit_code == 0 and f"profile '{name}'" in done.output


def test_check_of_settings_checks_their_profiles(inscan, runner, tmp_path):
    path = tmp_path / "service.yaml"
    path.write_text(yaml.safe_dump({"workers": 2, "profiles": ["sim_txm"]}))
    done = runner.invoke(app, ["config", "check", str(path)])
    assert done.exit_code == 0 and "profiles: sim_txm" in done.output
    path.write_text(yaml.safe_dump({"profiles": ["sim_xyz"]}))
    status, out, err = inscan("config", "check", path)
    assert (status, out) == (BAD_INPUT, "") and "sim_xyz" in err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("worker: 2\n", ("worker", "workers")),
        ("workers: many\n", ("workers",)),
        ("- a\n- b\n", ("list",)),
        ("a: [\n", ("YAML",)),
        ("technique: xrf\nmatchh: {}\n", ("matchh", "match")),
    ],
)
def test_check_says_what_is_wrong_and_where(inscan, tmp_path, text, words):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    status, out, err = inscan("config", "check", path)
    assert (status, out) == (BAD_INPUT, "")
    assert err.startswith("inscan: ") and "wrong.yaml" in err and "Traceback" not in err
    assert all(word in err for word in words)


def test_check_of_a_missing_file(inscan, tmp_path):
    status, _, err = inscan("config", "check", tmp_path / "none.yaml")
    assert status == BAD_INPUT and "none.yaml" in err


def test_unknown_profile_of_the_demo(inscan, tmp_path):
    status, out, err = inscan("demo", "--profile", "sim_xyz", "--out", tmp_path / "out")
    expected = "inscan: no simulated beamline 'sim_xyz': --profile takes sim_xrf or sim_txm\n"
    assert (status, out, err) == (BAD_INPUT, "", expected)


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_unknown_method(inscan, tmp_path, command):
    more = ("--out", tmp_path) if command == "train" else ()
    status, out, err = inscan(command, "magic", *more)
    assert (status, out) == (BAD_INPUT, "")
    assert "no method 'magic'" in err and "n2n" in err and len(err.splitlines()) == 1


def test_options_for_files_of_data_are_not_dropped_for_runs(inscan, tmp_path):
    status, out, err = inscan(
        "process", "4711", "--dims", "row,col", "--incident-energy", 12000, "--state", tmp_path
    )
    assert (status, out) == (BAD_INPUT, "")
    assert err.startswith("inscan: --dims, --incident-energy: for files of data;")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("n2n",), "--out FOLDER"),
        (("n2n", "--out", "x", "--runs", "7"), "--runs is for `inscan train superres`"),
        (("superres", "--dry-run"), "which scans?"),
        (("superres", "--dry-run", "--runs", "7", "--factor", "3"), "--factor 3"),
    ],
)
def test_what_training_needs_to_know(inscan, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    status, out, err = inscan("train", *arguments)
    assert (status, out) == (BAD_INPUT, "") and said in err and not list(tmp_path.iterdir())


def test_no_weights_are_kept_yet(inscan, tmp_path):
    status, out, _ = inscan("weights", "--state", tmp_path)
    assert (status, out) == (0, "no fitted networks\n")
    status, _, err = inscan("weights", "abcdef", "--state", tmp_path)
    assert status == BAD_INPUT and "names 0" in err
    status, _, err = inscan("weights", "--forget", "--state", tmp_path)
    assert status == BAD_INPUT and "which weights" in err


def test_check_looks_at_the_weights_that_a_profile_names(inscan, tmp_path):
    profile = yaml.safe_load((SHIPPED / "sim_xrf" / "profile.yaml").read_text())
    profile["method"]["weights"] = "mine.safetensors"
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(profile))
    status, _, err = inscan("config", "check", path)
    assert status == BAD_INPUT and str(tmp_path / "mine.safetensors") in err


def test_without_a_service(inscan, tmp_path):
    status, out, err = inscan("status", "--state", tmp_path / "nothing")
    assert (status, out) == (UNREACHABLE, "")
    assert err.startswith("inscan: ") and "inscan serve" in err and len(err.splitlines()) == 1


def test_show_needs_a_run_and_a_service(inscan, tmp_path):
    status, _, err = inscan("show")
    assert status == BAD_INPUT and "which run?" in err
    status, _, err = inscan("show", "1", "--state", tmp_path / "nothing")
    assert status == UNREACHABLE and "no service runs" in err


def test_a_worker_goes_to_other_machines_with_a_pass_only(inscan, monkeypatch, tmp_path):
    monkeypatch.setenv("GLIBC_TUNABLES", "set")  # else it starts itself again
    monkeypatch.delenv("INSCAN_PASS", raising=False)
    status, _, err = inscan("worker", "tcp://10.0.0.1:5621")
    assert status == BAD_INPUT and "inscan keys new" in err and "--pass" in err
    status, _, err = inscan("worker", "tcp://10.0.0.1:5621", "--pass", tmp_path / "none")
    assert status == BAD_INPUT and "cannot be read" in err


def test_ctrl_c_is_exit_status_130(inscan, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("inscan.service.settings.load_settings", interrupted)
    status, _, err = inscan("doctor")
    assert status == INTERRUPTED and "Traceback" not in err
