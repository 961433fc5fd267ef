from pathlib import Path

import pytest

from inscan.callbacks.link import ANYWHERE
from inscan.service.settings import Settings, SettingsError, load_settings


def written(folder: Path, text: str) -> Path:
    path = folder / "service.yaml"
    path.write_text(text)
    return path


def test_defaults_listen_on_loopback_alone():
    settings = load_settings()
    assert (settings.ingest, settings.broker, settings.spool) == tuple(
        f"tcp://127.0.0.1:{port}" for port in (5620, 5621, 5622)
    )
    assert settings.tiled.uri is None and settings.rescan is None


def test_the_state_directory_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert load_settings().state_dir == tmp_path / "inscan"


def test_an_unknown_key_is_named_with_file_and_closest_key(tmp_path):
    path = written(tmp_path, "worker: 3\ntiled: {ur: http://x}\n")
    with pytest.raises(SettingsError) as caught:
        load_settings(path)
    text = str(caught.value)
    assert str(path) in text
    assert "'worker'; did you mean 'workers'?" in text
    assert "'tiled.ur'; did you mean 'uri'?" in text


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("tcp://127.0.0.1", "no address"),
        ("tcp://127.0.0.1:99999", "no address"),
        ("ipc:///tmp/x", "no address"),
        ("127.0.0.1:5621", "no address"),
    ],
)
def test_what_is_no_address_is_refused(tmp_path, address, words):
    with pytest.raises(SettingsError, match=words) as caught:
        load_settings(written(tmp_path, f"broker: '{address}'\n"))
    assert "broker" in str(caught.value)


@pytest.mark.parametrize(
    "address", ["tcp://0.0.0.0:0", "tcp://*:0", "tcp://192.168.1.7:1", "tcp://a.example.org:1"]
)
def test_a_socket_that_other_machines_reach_asks_for_keys(address):
    settings = load_settings(ingest=address)
    assert settings.is_open("ingest") and settings.asks_for_keys("ingest")
    assert not settings.asks_for_keys("broker") and not settings.asks_for_keys("spool")
    everywhere = load_settings(curve=True)
    assert all(everywhere.asks_for_keys(name) for name in ("ingest", "broker", "spool"))
    assert not everywhere.is_open("ingest")


def test_workers_of_other_machines_must_be_able_to_fetch(tmp_path):
    text = "broker: tcp://0.0.0.0:5621\ntiled: {api_key: s3cr3t}\n"
    with pytest.raises(SettingsError, match="could not fetch") as caught:
        load_settings(written(tmp_path, text))
    assert "s3cr3t" not in str(caught.value)
    assert load_settings(broker="tcp://0.0.0.0:5621", spool="tcp://0.0.0.0:5622").is_open("spool")


@pytest.mark.parametrize("host", ["gpu.example.org", "10.0.0.7", "fe80::1", "me"])
def test_a_host_to_advertise_is_a_name_or_number(host):
    assert load_settings(advertise=host).advertise == host


@pytest.mark.parametrize("host", ["", "*", *ANYWHERE, "tcp://a", "a:80", "a b", "-a", "a/b"])
def test_what_cannot_be_dialled_is_not_advertised(host):
    with pytest.raises(SettingsError, match="no host"):
        load_settings(advertise=host)


@pytest.mark.parametrize("address", ["tcp://localhost:1", "tcp://[::1]:2", "tcp://127.9.9.9:0"])
def test_loopback_addresses_are_taken(address):
    assert load_settings(ingest=address).ingest == address


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n", "just words\n"])
def test_what_is_no_mapping_is_refused_by_file(tmp_path, text):
    path = written(tmp_path, text)
    with pytest.raises(SettingsError, match=str(path)):
        load_settings(path)


def test_an_empty_file_means_defaults_and_a_missing_one_is_an_error(tmp_path):
    assert load_settings(written(tmp_path, "")) == load_settings()
    with pytest.raises(SettingsError, match="nowhere.yaml"):
        load_settings(tmp_path / "nowhere.yaml")


def test_yaml_that_would_run_code_is_refused(tmp_path):
    text = "state_dir: !!python/object/apply:os.mkdir [/tmp/should-not-be]\n"
    with pytest.raises(SettingsError):
        load_settings(written(tmp_path, text))


def test_overrides_win_and_none_is_passed_over(tmp_path):
    path = written(tmp_path, "workers: 3\nlease_s: 20\n")
    settings = load_settings(path, workers=0, lease_s=None)
    assert (settings.workers, settings.lease_s) == (0, 20.0)


def test_the_key_is_not_shown(monkeypatch, tmp_path):
    monkeypatch.setenv("INSCAN_TILED_API_KEY", "s3cr3t")
    settings = load_settings()
    assert settings.tiled.api_key is not None
    assert settings.tiled.api_key.get_secret_value() == "s3cr3t"
    assert "s3cr3t" not in repr(settings) + settings.model_dump_json()
    mine = load_settings(written(tmp_path, "tiled: {api_key: 12345}\n"))
    assert mine.tiled.api_key is not None and mine.tiled.api_key.get_secret_value() == "12345"


def test_settings_do_not_change():
    with pytest.raises(ValueError, match="frozen"):
        load_settings().workers = 2  # type: ignore[misc]


def test_heartbeats_must_fit_several_times_into_a_lease(tmp_path):
    with pytest.raises(SettingsError, match="a third of lease_s"):
        load_settings(written(tmp_path, "lease_s: 2\nhb_s: 1\n"))


def test_every_setting_says_what_it_is():
    for name, field in Settings.model_fields.items():
        assert name == "tiled" or field.description, name


def test_a_queue_server_is_looked_for_on_this_machine():
    given = load_settings().queueserver
    assert (given.control, given.info) == ("tcp://127.0.0.1:60615", "tcp://127.0.0.1:60625")
    assert given.beyond_loopback == () and not given.start
    away = load_settings(queueserver={"control": "tcp://rm.example.org:60615", "info": None})
    assert away.queueserver.beyond_loopback == ("tcp://rm.example.org:60615",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{control: '127.0.0.1:60615'}", "no address"),
        ("{control: 'tcp://*:60615'}", "cannot be connected to"),
        ("{info: 'tcp://127.0.0.1:0'}", "cannot be connected to"),
        ("{public_key: secret}", "40 printable characters, this has 6"),
        ("{user_group: ''}", "user_group"),
        ("{autostart: true}", "autostart"),
    ],
)
def test_settings_of_a_queue_server_that_cannot_be_used_are_named(tmp_path, text, words):
    with pytest.raises(SettingsError, match=words) as caught:
        load_settings(written(tmp_path, f"queueserver: {text}\n"))
    assert "queueserver" in str(caught.value)
