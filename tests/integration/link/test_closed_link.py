"""Documents through an encrypted socket, whose keys come and go."""

import logging
from pathlib import Path
from typing import Any

import event_model
import pytest

from inscan.callbacks.pass_file import ENVIRONMENT
from inscan.callbacks.request import NoServiceError, request
from inscan.callbacks.wire import pack, unpack
from inscan.service.gate import Gate
from inscan.service.keys import Keyring

Document = tuple[str, dict[str, Any]]


@pytest.fixture
def ring(tmp_path: Path) -> Keyring:
    return Keyring(tmp_path / "keys")


def documents(points: int) -> list[Document]:
    run: Any = event_model.compose_run()
    keys: Any = {"x": {"dtype": "number", "shape": [], "source": "x"}}
    stream = run.compose_descriptor(name="primary", data_keys=keys)
    events = [stream.compose_event(data={"x": n}, timestamps={"x": 0.0}) for n in range(points)]
    found = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
    found += [("event", event) for event in events]
    return [(name, dict(doc)) for name, doc in [*found, ("stop", run.compose_stop())]]


def test_a_run_survives_that_its_key_is_revoked_and_renewed(
    ring, serve, link, store, tmp_path, monkeypatch, caplog, wait_until
):
    service = serve(gate=Gate(ring, ring.make_server(), "ingest"))
    mine = ring.new("hutch", "client", tmp_path / "hutch.pass")
    monkeypatch.setenv(ENVIRONMENT, str(mine))
    caplog.set_level(logging.WARNING)
    docs = documents(60)
    connection = link(service.address)
    for one in docs[:30]:
        connection(*one)
    wait_until(lambda: store.tapes and len(store.tapes[0].documents) == 30)
    ring.revoke("hutch")
    for one in docs[30:]:
        connection(*one)
    wait_until(lambda: "your key was revoked" in caplog.text)
    assert not connection.connected and connection.lost == connection.defects == 0
    with pytest.raises(NoServiceError, match="does not let in the key 'hutch'"):
        request(service.address, "anything", timeout=60)
    # The new pass in the place of the old one: nobody restarts the RunEngine for that.
    mine.unlink()
    ring.new("hutch", "client", mine)
    uid = docs[0][1]["uid"]
    wait_until(lambda: uid in store.closed)
    assert [(name, doc) for name, doc in store.documents(uid)] == [
        (name, unpack(pack(doc))) for name, doc in docs
    ]
    assert len(store.finals(uid)) == 1
    assert service.ingest.router.state()["cut"] > 0


def test_a_pass_that_cannot_be_used_is_said_and_nothing_is_lost(
    ring, serve, link, store, tmp_path, monkeypatch, caplog, wait_until
):
    service = serve(gate=Gate(ring, ring.make_server(), "ingest"))
    mine = ring.new("hutch", "client", tmp_path / "hutch.pass")
    mine.chmod(0o644)
    monkeypatch.setenv(ENVIRONMENT, str(mine))
    docs = documents(3)
    connection = link(service.address)
    for one in docs:
        connection(*one)
    wait_until(lambda: f"chmod 600 {mine}" in caplog.text)
    mine.chmod(0o600)
    wait_until(lambda: docs[0][1]["uid"] in store.closed)
    assert caplog.text.count("chmod 600") == 1, "said once"
