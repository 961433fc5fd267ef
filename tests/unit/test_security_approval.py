"""Who may approve: not who can dial in, and not who says he is somebody."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from inscan.callbacks.approver_pass import APPROVE_PASS, ENVIRONMENT, with_key
from inscan.callbacks.link import SERVICE_FILE
from inscan.callbacks.pass_file import PassError, read_pass
from inscan.service.approval import GATED, Approval, NotApprover
from inscan.service.keys import Keyring


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    return Keyring(tmp_path / "keys")


@pytest.fixture
def clock() -> list[float]:
    return [1000.0]


@pytest.fixture
def approval(keyring: Keyring, clock: list[float]) -> Approval:
    return Approval(keyring.approver, keyring.folder / "approve.pass", now=lambda: clock[0])


def token_of(keyring: Keyring, name: str, role: str = "approver") -> str:
    return read_pass(keyring.new(name, role)).secret


def test_the_name_of_the_key_stands_beside_what_the_caller_calls_himself(keyring, approval):
    fields = {"proposal": "p1", "who": "anna", "key": token_of(keyring, "control-room")}
    signed = approval.signed("approve", fields, b"peer")
    assert signed == {"proposal": "p1", "who": "anna (key: control-room)"}
    assert "key" in fields and approval.counts == {"approvals": 1}


@pytest.mark.parametrize(
    "who", ["a (key: admin)", "(key: admin)\n", "x" * 500, "\x1b[31m", None, 7]
)
def test_nobody_can_call_himself_what_the_service_says_of_him(keyring, approval, who):
    signed = approval.signed("refuse", {"who": who, "key": token_of(keyring, "k")}, b"p")["who"]
    assert signed.endswith("(key: k)") and signed.count("(") == 1
    assert len(signed) < 90 and signed.isprintable()


def test_nothing_tells_a_missing_key_from_a_wrong_or_a_revoked_one(keyring, approval):
    client, gone = token_of(keyring, "c", "client"), token_of(keyring, "gone")
    keyring.revoke("gone")
    said = set()
    for number, key in enumerate([None, "", "x" * 43, gone, gone[:-1], client, 7, ["k"], {}]):
        with pytest.raises(NotApprover) as caught:
            approval.signed("approve", {"who": "w", "key": key}, b"p%d" % number)
        said.add(str(caught.value))
    with pytest.raises(NotApprover) as caught:
        approval.signed("approve", {"who": "w"}, b"q")
    said.add(str(caught.value))
    assert len(said) == 1
    (text,) = said
    assert str(keyring.folder / "approve.pass") in text and "--role approver" in text
    assert approval.counts == {"approvals_refused": 10}


def test_a_connection_that_guesses_is_not_listened_to_for_a_while_and_others_are(
    keyring, approval, clock
):
    good = token_of(keyring, "good")
    for _ in range(5):
        with pytest.raises(NotApprover, match="needs a valid"):
            approval.signed("approve", {"key": "guess"}, b"guesser")
    for key in ("guess", good):
        with pytest.raises(NotApprover, match="heard again in 60 s"):
            approval.signed("approve", {"key": key}, b"guesser")
    assert approval.signed("approve", {"key": good}, b"other")
    clock[0] += 61
    assert approval.signed("approve", {"key": good}, b"guesser")
    assert approval.counts == {"approvals": 2, "approvals_refused": 5, "approvals_slowed": 2}


def test_any_number_of_connections_costs_a_bounded_memory(approval):
    for number in range(3000):
        with pytest.raises(NotApprover):
            approval.signed("approve", {"key": "guess"}, b"%d" % number)
    assert len(approval._wrong) <= 1024


def test_what_is_gated():
    assert {"approve", "refuse", "retry", "quarantine"} == GATED


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """State folder of a service that says where it is; its pass and another one, of `visitor`, in its keys."""
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    state = tmp_path / "state"
    keyring = Keyring(state / "keys")
    keyring.local("local-approver", "approver", state / APPROVE_PASS)
    keyring.new("visitor", "approver")
    keyring.new("scan", "client")
    (state / SERVICE_FILE).write_text("{}")
    return state


def key_sent(state: Path, op: str = "approve", *, given: bool = False, port: int = 1) -> str | None:
    return with_key(op, {"who": "w"}, state, f"tcp://127.0.0.1:{port}", given=given).get("key")


def test_a_request_carries_a_key_only_where_it_decides_something(state):
    own = read_pass(state / APPROVE_PASS).secret
    for op in GATED:
        assert key_sent(state, op) == own
    for op in ("status", "jobs", "proposals", "propose_places", "rescan_update"):
        assert key_sent(state, op) is None


def test_the_key_of_a_state_folder_goes_to_its_own_service_alone(state, monkeypatch):
    assert key_sent(state, given=True) is None
    monkeypatch.setenv(ENVIRONMENT, str(state / "keys" / "visitor.pass"))
    visitor = read_pass(state / "keys" / "visitor.pass").secret
    assert key_sent(state, given=True) == key_sent(state) == visitor
    monkeypatch.delenv(ENVIRONMENT)
    (
        state / SERVICE_FILE
    ).unlink()  # no service runs: whoever listens at the default port is not ours
    assert key_sent(state) is None


def test_a_pass_of_another_role_or_that_others_can_read_is_refused(state, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, str(state / "keys" / "scan.pass"))
    with pytest.raises(PassError, match="a client's pass; expected an approver's"):
        key_sent(state)
    monkeypatch.delenv(ENVIRONMENT)
    (state / APPROVE_PASS).chmod(0o644)
    with pytest.raises(PassError, match="chmod 600"):
        key_sent(state)


def test_no_key_is_told_to_a_port_that_another_account_has_taken(state):
    if os.getuid() != 0:
        pytest.skip("only root can listen as another account")
    listen = (
        "import os, socket, sys; os.setuid(65534); s = socket.create_server(('127.0.0.1', 0));"
        "print(s.getsockname()[1], flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-I", "-S", "-c", listen]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as thief:
        assert thief.stdin is not None and thief.stdout is not None
        port = int(thief.stdout.readline())
        with pytest.raises(PassError, match=f"port {port} .* another account"):
            key_sent(state, port=port)
        thief.stdin.close()
    assert key_sent(state, port=port)
