"""The doctor finds what is wrong and says what to do; on a sound machine only the service is missing."""

import json
import socket
from pathlib import Path

import pytest

from inscan.service import doctor
from inscan.service.doctor import Check, examine
from inscan.service.settings import load_settings


def by_name(checks: list[Check]) -> dict[str, Check]:
    assert len({check.name for check in checks}) == len(checks)
    return {check.name: check for check in checks}


def test_a_sound_machine_lacks_only_the_service(tmp_path: Path) -> None:
    free = dict.fromkeys(("ingest", "broker", "spool"), "tcp://127.0.0.1:0")
    found = by_name(examine(load_settings(state_dir=tmp_path / "state", **free)))
    assert [name for name, check in found.items() if not check.ok] == ["service"]
    assert "torch" in found["packages"].detail
    assert "cores" in found["torch"].detail
    assert "denoiser" in found["weights"].detail


def test_every_finding_that_is_not_well_has_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("nmae: x\n")
    settings = load_settings(
        state_dir=tmp_path / "new" / "state",
        profiles=["sim_xrf", str(tmp_path / "bad.yaml")],
        min_free=1 << 60,
    )
    found = by_name(list(doctor._profiles(settings)) + [doctor._space(settings)])
    assert found["profile sim_xrf"].ok
    bad = found[f"profile {tmp_path / 'bad.yaml'}"]
    assert not bad.ok
    assert "did you mean 'name'" in bad.detail
    assert not found["disk space"].ok
    assert all(check.remedy for check in found.values() if not check.ok)


def test_ports_and_state_are_looked_at_without_a_service(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = load_settings(
            state_dir=tmp_path / "state",
            ingest=f"tcp://127.0.0.1:{port}",
            broker="tcp://127.0.0.1:0",
        )
        found = by_name(list(doctor._ports(settings)))
    assert not found["port of ingest"].ok
    assert f"127.0.0.1:{port} is in use" in found["port of ingest"].detail
    assert found["port of broker"].ok
    assert doctor._state_dir(settings).ok
    assert not (tmp_path / "state").exists(), "the doctor changes nothing"
    service = doctor._service(settings)
    assert not service.ok
    assert "inscan serve" in service.remedy


def test_a_state_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    check = doctor._state_dir(load_settings(state_dir=tmp_path / "file"))
    assert not check.ok
    assert "--state" in check.remedy


def test_a_service_that_is_gone_is_not_running(tmp_path: Path) -> None:
    (tmp_path / "service.json").write_text(json.dumps({"ingest": "tcp://127.0.0.1:9"}))
    check = doctor._service(load_settings(state_dir=tmp_path))
    assert not check.ok


def test_a_foreign_tiled_that_does_not_answer(tmp_path: Path) -> None:
    settings = load_settings(state_dir=tmp_path, tiled={"uri": "http://127.0.0.1:9"})
    check = doctor._tiled(settings, running=False)
    assert not check.ok
    assert "does not answer" in check.detail
    assert "tiled.uri" in check.remedy


def test_damaged_weights_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = doctor._weights()
    assert sound.ok, sound.detail
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "net.json").write_text(json.dumps({"sha256": "0" * 64}))
    (weights / "net.safetensors").write_bytes(b"not these")
    monkeypatch.setattr(doctor, "_model_folder", lambda: tmp_path)
    damaged = doctor._weights()
    assert not damaged.ok
    assert "net: the file does not match" in damaged.detail
    monkeypatch.setattr(doctor, "_model_folder", lambda: tmp_path / "nowhere")
    assert "no weights" in doctor._weights().detail
