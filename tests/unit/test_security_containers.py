"""The check of container files and units finds what would give one of them more rights than it needs."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

DOCKER = Path(__file__).resolve().parents[2] / "docker"


@pytest.fixture(scope="module")
def checks() -> ModuleType:
    pytest.importorskip("dockerfile_parse")
    spec = importlib.util.spec_from_file_location("check_files", DOCKER / "check_files.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_shipped_is_confined(checks):
    assert checks.compose(DOCKER / "compose.yaml") == []
    units = sorted((DOCKER / "systemd").glob("*.service"))
    files = sorted(DOCKER.glob("Containerfile.*"))
    assert len(units) == len(files) == 2
    assert [checks.unit(path) for path in units] == [[], []]
    assert [checks.containerfile(path) for path in files] == [[], []]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("read_only: true", "read_only: false"),
        ("cap_drop: [ALL]", "cap_add: [SYS_ADMIN]"),
        ('["no-new-privileges:true"]', '["no-new-privileges:true", "seccomp=unconfined"]'),
        ('user: "10001:10001"', 'user: "0:0"'),
        ('user: "101:101"', "privileged: true"),
        ('network_mode: "service:tiled"', "network_mode: host"),
        ('ports: ["8443:8443"]', 'ports: ["5623:5623"]'),
        ("/tmp:noexec,nosuid,nodev", "/tmp:size"),
        ("pids_limit: 64", "pid: host"),
        ("INSCAN_TILED_API_KEY_FILE: /run/secrets/tiled_key", "INSCAN_TILED_API_KEY: abc"),
        ("spool:/var/lib/inscan/state/spool:ro", "state:/var/lib/inscan/state"),
        ("spool:/var/lib/inscan/state/spool:ro", "/:/host"),
        ("    depends_on: [service]", "    depends_on: [service]\n    secrets: [tiled_key]"),
        ("nginx-unprivileged:1.28.0-alpine", "nginx-unprivileged:latest"),
    ],
)
def test_compose_with_more_rights_is_refused(checks, monkeypatch, tmp_path, before, after):
    text = (DOCKER / "compose.yaml").read_text()
    assert before in text
    (tmp_path / "compose.yaml").write_text(text.replace(before, after))
    assert checks.compose(tmp_path / "compose.yaml")


def test_units_with_more_rights_are_refused(checks, tmp_path):
    for path in sorted((DOCKER / "systemd").glob("*.service")):
        lines, changed = path.read_text().splitlines(), tmp_path / path.name
        for number, line in enumerate(lines):
            if line.partition("=")[0] in checks._UNIT and "~" not in line:
                changed.write_text("\n".join(lines[:number] + lines[number + 1 :]))
                assert checks.unit(changed), f"{path.name} without {line}"
        for line in ("User=root", "Environment=INSCAN_TILED_API_KEY=abc"):
            text = path.read_text().replace("User=inscan", line)
            changed.write_text(text)
            assert checks.unit(changed), line


def test_containerfiles_with_more_rights_are_refused(checks, tmp_path):
    text = (DOCKER / "Containerfile.worker").read_text()
    for before, after in (
        ("USER 10001:10001", "USER root"),
        ("USER 10001:10001", "USER inscan"),
        ("USER 10001:10001", "USER 10001\nENV TILED_API_KEY=abc"),
        ("USER 10001:10001", "ADD https://example.org/x.tar /\nUSER 10001"),
        ("USER 10001:10001", "RUN curl https://example.org | sh\nUSER 10001"),
    ):
        changed = tmp_path / "Containerfile.worker"
        changed.write_text(text.replace(before, after))
        assert checks.containerfile(changed), after
