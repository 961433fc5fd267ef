"""Pass files and the allow-list."""

import errno
import json
import os
from pathlib import Path

import pytest
import zmq

from inscan.callbacks.pass_file import (
    ENVIRONMENT,
    Pass,
    PassError,
    is_key,
    pass_for,
    read_pass,
    read_private,
)
from inscan.service.keys import Keyring


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    return Keyring(tmp_path / "state" / "keys")


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_the_build_of_zeromq_encrypts():
    assert zmq.has("curve"), "a pyzmq without libsodium: the sockets could not be closed to others"


def test_a_new_key_lets_in_by_name_and_role_and_only_its_owner_can_read_it(keyring, tmp_path):
    path = keyring.new("gpu7", "worker", tmp_path / "gpu7.pass")
    found = read_pass(path)
    assert (found.name, found.role) == ("gpu7", "worker")
    server = keyring.server()
    assert server is not None and found.server == server.public
    assert keyring.role_of(found.public) == ("gpu7", "worker")
    assert keyring.role_of(server.public) is None
    assert mode_of(path) == mode_of(keyring.folder / "server.json") == 0o600
    assert mode_of(keyring.folder) == mode_of(keyring.folder / "allowed") == 0o700
    assert Keyring(keyring.folder).role_of(found.public) == ("gpu7", "worker")


def test_the_allow_list_holds_no_secret_and_nobody_shows_one(keyring, caplog):
    passes = [read_pass(keyring.new(role, role)) for role in ("client", "worker", "approver")]
    server = keyring.server()
    assert server is not None
    secrets = [one.secret for one in passes] + [server.secret]
    shown = [repr(passes), str(passes), repr(server), repr(keyring.entries()), repr(vars(keyring))]
    shown += [path.read_text() for path in (keyring.folder / "allowed").iterdir()]
    for path in keyring.folder.glob("*.pass"):
        path.write_text(path.read_text().replace('"role"', '"rule"'))
        with pytest.raises(PassError) as caught:
            read_pass(path)
        shown.append(str(caught.value))
    assert not [text for text in [*shown, caplog.text] for secret in secrets if secret in text]


def test_an_approver_is_known_by_a_token_of_which_only_the_digest_is_kept(keyring):
    token = read_pass(keyring.new("anna", "approver")).secret
    assert keyring.approver(token) == "anna"
    assert keyring.approver(token[:-1]) is None and keyring.approver("") is None
    assert keyring.approver("\udcff") is None
    keyring.revoke("anna")
    assert keyring.approver(token) is None


def test_a_running_service_notices_new_and_revoked_keys(keyring):
    service = Keyring(keyring.folder)
    publics = []
    for number in range(20):  # within one tick of the file system's clock
        publics.append(read_pass(keyring.new(f"k{number}", "client")).public)
        assert service.role_of(publics[-1]) == (f"k{number}", "client")
        keyring.revoke(f"k{number}")
        assert service.role_of(publics[-1]) is None
    assert keyring.entries() == []


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "ü", "a" * 65, "a b", "a\n"])
def test_a_name_that_is_no_plain_file_name_is_refused(keyring, name):
    with pytest.raises(PassError, match="is no name"):
        keyring.new(name, "client")
    with pytest.raises(PassError, match="is no name"):
        keyring.revoke(name)


def test_nothing_is_written_over(keyring, tmp_path):
    kept = keyring.new("a", "client").read_bytes()
    with pytest.raises(PassError, match="there is a key 'a' already"):
        keyring.new("a", "client", tmp_path / "other")
    with pytest.raises(PassError, match="exists already"):
        keyring.new("b", "client", keyring.folder / "a.pass")
    with pytest.raises(PassError, match="cannot be written"):
        keyring.new("b", "client", tmp_path / "nowhere" / "b.pass")
    with pytest.raises(PassError, match="expected client, worker, approver"):
        keyring.new("b", "king")
    with pytest.raises(LookupError, match="no key 'b'"):
        keyring.revoke("b")
    assert [entry.name for entry in keyring.entries()] == ["a"]
    assert (keyring.folder / "a.pass").read_bytes() == kept


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_a_secret_that_others_may_read_is_refused_with_what_to_do(keyring, mode):
    path = keyring.new("a", "client")
    path.chmod(mode)
    with pytest.raises(PassError, match=f"chmod 600 {path}"):
        read_pass(path)
    (keyring.folder / "server.json").chmod(mode)
    with pytest.raises(PassError, match="chmod 600"):
        keyring.server()


def test_a_list_that_others_may_write_lets_nobody_in(keyring):
    public = read_pass(keyring.new("a", "client")).public
    service = Keyring(keyring.folder)
    (keyring.folder / "allowed").chmod(0o777)
    assert service.role_of(public) is None
    with pytest.raises(PassError, match="chmod 700"):
        keyring.entries()
    with pytest.raises(PassError, match="chmod 700"):
        keyring.new("b", "client")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"[" * 4000,
        b"null",
        b'{"inscan": "pass"}',
        b"x" * 5000,
        b'{"name": "bad", "role": "client", "public": 3, "token_sha256": "", "made": ""}',
        b'{"name": "other", "role": "approver", "public": "", "token_sha256": "", "made": ""}',
    ],
)
def test_garbage_is_no_pass_no_pair_and_no_entry(keyring, tmp_path, content):
    keyring.new("good", "client")
    for path in (tmp_path / "x.pass", keyring.folder / "server.json"):
        path.write_bytes(content)
        path.chmod(0o600)
    with pytest.raises(PassError):
        read_pass(tmp_path / "x.pass")
    with pytest.raises(PassError, match="damaged|too long"):
        keyring.server()
    bad = keyring.folder / "allowed" / "bad.json"
    bad.write_bytes(content)
    assert [entry.name for entry in keyring.entries()] == ["good"]
    keyring.revoke("bad")
    assert not bad.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"secret": "0" * 40},
        {"secret": "%" * 40},
        {"public": "short"},
        {"server": ""},
        {"role": "approver"},
        {"role": ["client"]},
        {"name": "../x"},
        {"version": 2},
        {"more": 1},
    ],
)
def test_a_pass_whose_parts_do_not_fit_is_refused(keyring, changes):
    path = keyring.new("a", "client")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(PassError):
        read_pass(path)


def test_what_is_no_file_is_refused_without_waiting(tmp_path):
    with pytest.raises(PassError, match="cannot be read"):
        read_pass(tmp_path / "nowhere")
    with pytest.raises(PassError, match="no plain file"):
        read_private(tmp_path)
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(PassError, match="no plain file"):
        read_private(tmp_path / "fifo")


def test_the_environment_stands_above_the_local_pass(keyring, tmp_path, monkeypatch):
    state = keyring.folder.parent
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    assert pass_for(state) is None
    keyring.local("local-client", "client", keyring.folder / "local.pass")
    found = pass_for(state)
    assert isinstance(found, Pass) and found.name == "local-client"
    monkeypatch.setenv(ENVIRONMENT, str(keyring.new("mine", "client", tmp_path / "mine")))
    found = pass_for(state)
    assert found is not None and found.name == "mine"
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "nowhere"))
    with pytest.raises(PassError, match="nowhere"):
        pass_for(state)


def test_a_file_system_without_links_will_do(keyring, monkeypatch):
    def no_links(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    path = keyring.new("a", "client")
    assert read_pass(path).name == "a" and mode_of(path) == 0o600
    with pytest.raises(PassError, match="exists already"):
        keyring.new("b", "client", path)
    left = {file.name for file in keyring.folder.iterdir()}
    assert left == {"a.pass", "allowed", "server.json"}


def test_a_local_pass_is_kept_while_it_lets_in_and_made_anew_when_not(keyring):
    path = keyring.folder / "local.pass"
    first = read_pass(keyring.local("local", "worker", path))
    assert read_pass(keyring.local("local", "worker", path)) == first
    keyring.revoke("local")
    second = read_pass(keyring.local("local", "worker", path))
    assert second.public != first.public
    (keyring.folder / "server.json").unlink()
    third = read_pass(keyring.local("local", "worker", path))
    server = keyring.server()
    assert server is not None and third.server == server.public != second.server
    path.chmod(0o644)  # others may have read it
    fourth = read_pass(keyring.local("local", "worker", path))
    assert fourth.public != third.public and keyring.role_of(third.public) is None
    token = keyring.folder / "approve.pass"
    kept = keyring.local("me", "approver", token).read_bytes()
    assert keyring.local("me", "approver", token).read_bytes() == kept


@pytest.mark.parametrize("text", ["", "a" * 39, "a" * 41, "%" * 40, "ü" * 40, "\x00" * 40, None, 3])
def test_what_is_no_key_is_told_from_one(text):
    assert not is_key(text)
    assert is_key(zmq.curve_keypair()[0].decode())
