"""Keys in settings, and files of settings that mean harm."""

import os
from pathlib import Path

import pytest
import yaml

from inscan.callbacks.profile import ProfileError, load_profile
from inscan.callbacks.sources.interface import SourceError
from inscan.callbacks.sources.kafka import read_config
from inscan.service.key_file import read_key
from inscan.service.settings import SettingsError, TiledSettings, load_settings

KEY = "0123456789abcdef0123456789abcdef"


@pytest.fixture(autouse=True)
def _bare(monkeypatch):
    for name in ("INSCAN_TILED_API_KEY", "INSCAN_TILED_API_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(f"{KEY}\n")
    path.chmod(0o600)
    return path


def settings_of(folder: Path, **content: object):
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_settings(path)


def key_of(settings: TiledSettings) -> str | None:
    return None if settings.api_key is None else settings.api_key.get_secret_value()


def test_a_key_comes_from_a_file_or_the_environment(tmp_path, key_file, monkeypatch):
    made = settings_of(
        tmp_path, tiled={"api_key_file": str(key_file)}, repair={"api_key_file": str(key_file)}
    )
    assert made.repair is not None and made.repair.api_key is not None
    assert key_of(made.tiled) == made.repair.api_key.get_secret_value() == KEY
    monkeypatch.setenv("INSCAN_TILED_API_KEY", "other")
    assert key_of(load_settings().tiled) == "other"
    monkeypatch.setenv("INSCAN_TILED_API_KEY_FILE", str(key_file))
    assert key_of(load_settings().tiled) == KEY
    assert key_of(settings_of(tmp_path, tiled={"api_key": "given"}).tiled) == "given"


def test_a_key_is_nowhere_in_what_settings_look_like(tmp_path, key_file):
    made = settings_of(
        tmp_path,
        tiled={"uri": "http://localhost:1", "api_key_file": str(key_file)},
        sources=[{"kind": "tiled", "uri": "http://localhost:2", "api_key_file": str(key_file)}],
    )
    (source,) = made.sources
    shown = [repr(made), str(made), made.model_dump_json(), repr(made.model_dump()), source.label]
    assert not [text for text in [*shown, *source.arguments()] if KEY in text]


@pytest.mark.parametrize(
    "tiled",
    [
        {"api_key": KEY, "api_key_file": "/somewhere"},
        {"api_key": [KEY]},
        {"api_key": {KEY: 1}},
        {"api_key": KEY, "port": "many"},
        {"uri": f"http://host/?api_key={KEY}"},
        {"uri": f"http://me:{KEY}@host/"},
        {"api_key_file": [KEY]},
        [KEY],
    ],
)
def test_a_wrong_setting_is_refused_without_showing_the_key(tmp_path, tiled):
    with pytest.raises(SettingsError) as caught:
        settings_of(tmp_path, tiled=tiled)
    if tiled != [KEY] and tiled != {"api_key_file": [KEY]}:  # nobody can tell that these are keys
        assert KEY not in str(caught.value)


def test_a_key_file_that_others_can_read_or_that_holds_no_key_is_refused(tmp_path, key_file):
    for mode in (0o644, 0o604, 0o622, 0o660):
        key_file.chmod(mode)
        with pytest.raises(SettingsError, match="chmod 600") as caught:
            settings_of(tmp_path, tiled={"api_key_file": str(key_file)})
        assert KEY not in str(caught.value)
    key_file.chmod(0o640)  # a group of its own, as systemd's credentials have
    assert read_key(key_file) == KEY
    for content in (b"", b"\n", b"two\nlines", b"\xff\xfe", b"x" * 5000):
        key_file.write_bytes(content)
        with pytest.raises(ValueError, match="holds no key"):
            read_key(key_file)
    key_file.unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        read_key(key_file)
    os.mkfifo(key_file)
    with pytest.raises(ValueError, match="no plain file"):
        read_key(key_file)


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefghijk", "bcdefghijkl", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "a: " * 5 + "{b: " * 5000,
        "\n".join("  " * n + "a:" for n in range(300)),
        LAUGHS,
        "# " + "x" * (5 << 20),
        "!!python/object/apply:os.system [touch pwned]",
        "!!python/name:os.system",
        "\xff",
        "a: [",
    ],
    ids=["deep", "flow", "block", "laughs", "long", "call", "name", "latin", "cut"],
)
def test_yaml_that_means_harm_is_refused_in_one_line_of_words(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.yaml"
    path.write_text(text, encoding="latin-1")
    for read, error in (
        (load_settings, SettingsError), (load_profile, ProfileError), (read_config, SourceError),
    ):  # fmt: skip
        with pytest.raises(error) as caught:
            read(path)
        assert str(path) in str(caught.value) and len(str(caught.value)) < 2000
    assert not (tmp_path / "pwned").exists()
