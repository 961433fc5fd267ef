"""What is made of a socket's events, and which addresses ask for a key."""

import errno
import json
import resource
from pathlib import Path

import pytest
import zmq
from typer.testing import CliRunner

from inscan.callbacks.handshakes import Dial, Happened, refusal
from inscan.callbacks.link import ANYWHERE, at_host, host_of, is_loopback, locate
from inscan.callbacks.pass_file import ENVIRONMENT, Pass, PassError, read_pass
from inscan.service.access import Access
from inscan.service.cli import app
from inscan.service.keys import Keyring
from inscan.service.settings import Settings
from inscan.service.sockets import allow_many_files, announced

KEY = Pass("gpu", "worker", "p", "s3cr3t", "q")
CONNECTED = Happened(zmq.Event.CONNECTED, 3)
DISCONNECTED = Happened(zmq.Event.DISCONNECTED, 3)
RETRIED = Happened(zmq.Event.CONNECT_RETRIED, 100)
UP = Happened(zmq.Event.HANDSHAKE_SUCCEEDED, 0)
HUNG_UP = Happened(zmq.Event.HANDSHAKE_FAILED_NO_DETAIL, errno.EPIPE)
REFUSED = Happened(zmq.Event.HANDSHAKE_FAILED_AUTH, 400)
OTHER_MECHANISM = Happened(zmq.Event.HANDSHAKE_FAILED_PROTOCOL, 0x11000002)
OTHER_KEY = Happened(zmq.Event.HANDSHAKE_FAILED_PROTOCOL, 0x11000001)
NO_ZMTP = Happened(zmq.Event.HANDSHAKE_FAILED_PROTOCOL, 0x10000000)
SILENT = Happened(zmq.Event.HANDSHAKE_FAILED_NO_DETAIL, errno.EAGAIN)


@pytest.mark.parametrize(
    ("key", "event", "words"),
    [
        (KEY, REFUSED, "does not let in the key 'gpu' (role worker)"),
        (None, OTHER_MECHANISM, "lets in nobody without a key"),
        (KEY, OTHER_MECHANISM, "does not encrypt"),
        (KEY, NO_ZMTP, "is the port right"),
    ],
)
def test_what_will_not_mend_itself_is_sure_at_once(key, event, words):
    trouble = Dial("tcp://h:1", key).take(event)
    assert trouble is not None and trouble.sure
    assert words in trouble.text and "tcp://h:1" in trouble.text and "s3cr3t" not in trouble.text


@pytest.mark.parametrize(("key", "event"), [(KEY, HUNG_UP), (None, HUNG_UP), (KEY, SILENT)])
def test_what_may_be_a_service_that_just_ends_is_sure_at_the_third_time(key, event):
    dial = Dial("tcp://h:1", key)
    found = [dial.take(event) for _ in range(3)]
    assert [trouble.sure for trouble in found if trouble] == [False, False, True]
    assert dial.take(UP) is None and dial.up
    again = dial.take(event)
    assert again is not None and not again.sure, "it was let in meanwhile"


def test_a_peer_that_hangs_up_without_a_word_is_trouble_once():
    dial = Dial("tcp://h:1", None)
    assert dial.take(CONNECTED) is None
    assert dial.take(DISCONNECTED) is not None and dial.given_up
    assert dial.take(CONNECTED) is None and not dial.given_up
    assert dial.take(HUNG_UP) is not None
    assert dial.take(DISCONNECTED) is None, "said already"
    assert dial.take(RETRIED) is None and not dial.given_up


def test_a_service_that_goes_away_is_no_refusal():
    dial = Dial("tcp://h:1", KEY)
    assert [dial.take(event) for event in (CONNECTED, UP, DISCONNECTED, RETRIED)] == [None] * 4
    assert not dial.up


def test_a_service_counts_refusals_by_reason():
    words = [refusal(event) for event in (REFUSED, OTHER_MECHANISM, OTHER_KEY, NO_ZMTP, HUNG_UP)]
    assert words == [
        "keys not allowed",
        "not encrypted",
        "other server key",
        "no ZMTP",
        "broken off",
    ]


@pytest.mark.parametrize(
    ("address", "host", "near"),
    [
        ("tcp://127.0.0.1:5", "127.0.0.1", True),
        ("tcp://localhost:5", "localhost", True),
        ("tcp://[::1]:5", "::1", True),
        ("tcp://127.0.0.1.example.org:5", "127.0.0.1.example.org", False),
        ("tcp://localhost.example.org:5", "localhost.example.org", False),
        ("tcp://*:5", "*", False),
        ("tcp://[::]:5", "::", False),
        ("tcp://[::ffff:10.0.0.1]:5", "::ffff:10.0.0.1", False),
        ("nonsense", "", False),
    ],
)
def test_loopback_is_told_from_all_else(address, host, near):
    assert host_of(address) == host and is_loopback(host) is near


def test_a_socket_on_all_networks_is_announced_where_it_can_be_dialled():
    for anywhere in ("tcp://0.0.0.0:7", "tcp://[::]:7", "tcp://*:7"):
        assert host_of(anywhere) in ANYWHERE and announced(anywhere) == "tcp://127.0.0.1:7"
    assert announced("tcp://10.0.0.3:7") == "tcp://10.0.0.3:7"
    assert at_host("tcp://[::]:7", "fe80::1") == "tcp://[fe80::1]:7"


def test_a_service_may_open_as_many_files_as_the_system_lets_it():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 512), hard))
        assert allow_many_files() == min(hard, 1 << 20)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(hard, 1 << 20), hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def settings_in(state: Path, **changes: str | bool) -> Settings:
    return Settings.model_validate({"state_dir": state, **changes})


def test_who_needs_no_key_gets_none_and_makes_none(tmp_path):
    access = Access(settings_in(tmp_path))
    assert access.announcement == {"curve": []} and access.gate("ingest") is None
    # A pass that the service was started with is not for its children.
    assert access.worker_environment() == access.client_environment() == {ENVIRONMENT: ""}
    assert not (tmp_path / "keys").exists()


def test_on_a_shared_machine_the_service_makes_its_keys_itself(tmp_path):
    access = Access(settings_in(tmp_path, curve=True))
    worker = read_pass(Path(access.worker_environment()[ENVIRONMENT]))
    client = read_pass(Path(access.client_environment()[ENVIRONMENT]))
    assert (worker.role, client.role) == ("worker", "client")
    assert access.announcement["server_key"] == worker.server == client.server
    assert access.gate("spool") is not None
    assert Access(settings_in(tmp_path, curve=True)).announcement == access.announcement


@pytest.mark.parametrize(
    ("settings", "bound", "told"),
    [
        ({}, "tcp://127.0.0.1:7", "tcp://127.0.0.1:7"),
        ({"advertise": "gpu.example.org"}, "tcp://0.0.0.0:7", "tcp://gpu.example.org:7"),
        ({"advertise": "gpu.example.org"}, "tcp://10.0.0.3:7", "tcp://10.0.0.3:7"),
        ({}, "tcp://0.0.0.0:7", "tcp://0.0.0.0:7"),
    ],
)
def test_workers_are_told_an_address_that_they_can_reach(tmp_path, settings, bound, told):
    assert Access(settings_in(tmp_path, **settings)).spool_for_workers(bound) == told


def test_a_pass_is_taken_where_the_service_asks_for_one(tmp_path, monkeypatch):
    monkeypatch.delenv(ENVIRONMENT, raising=False)

    def key_of(explicit: str | None = None, **file: object) -> Pass | None:
        said = {"ingest": "tcp://127.0.0.1:5", "pid": 1, **file}
        (tmp_path / "service.json").write_text(json.dumps(said))
        return locate(tmp_path, explicit=explicit, profile=None).key

    ring = Keyring(tmp_path / "keys")
    server = ring.make_server().public
    assert key_of(curve=["ingest"], server_key=server) is None, "there is none yet"
    ring.local("local-client", "client", tmp_path / "keys" / "local.pass")
    mine = key_of(curve=["ingest"], server_key=server)
    assert mine is not None and mine.name == "local-client"
    assert key_of(curve=[]) is None and key_of() is None
    assert key_of("tcp://127.0.0.1:6") is None, "another service of this machine"
    # A pass for elsewhere does not keep anybody from the service of this folder.
    away = Keyring(tmp_path / "away").new("me", "client")
    monkeypatch.setenv(ENVIRONMENT, str(away))
    assert key_of(curve=["ingest"], server_key=server) == mine
    assert key_of(curve=[]) is None
    found = key_of("tcp://elsewhere.example.org:5")
    assert found is not None and found.name == "me"
    (tmp_path / "keys" / "local.pass").unlink()
    with pytest.raises(PassError, match="is the pass for another service"):
        key_of(curve=["ingest"], server_key=server)


def test_keys_are_made_listed_and_revoked_on_the_command_line(tmp_path):
    def run(*words: str, status: int = 0) -> str:
        done = CliRunner().invoke(app, ["keys", *words, "--state", str(tmp_path)])
        assert done.exit_code == status, done.output
        return done.output

    assert "no keys" in run("list")
    for role in ("worker", "client", "approver"):
        out = tmp_path / f"{role}.out"
        told = run("new", f"my-{role}", "--role", role, "--out", str(out))
        secret = read_pass(out).secret
        assert str(out) in told and secret not in told + run("list") + run("list", "--json")
    listed = json.loads(run("list", "--json"))
    opens = {one["name"]: one["opens"] for one in listed["keys"]}
    assert opens["my-worker"] == ["broker", "spool"] and opens["my-client"] == ["ingest"]
    assert opens["my-approver"] == [] and "approval" in run("list")
    assert "ends with status 4" in run("revoke", "my-worker")
    assert "my-worker" not in run("list")
