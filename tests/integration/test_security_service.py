"""A running service from outside: who may approve, where it listens, and where its keys are to be found."""

import contextlib
import importlib.util
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import psutil
import pytest

from inscan.callbacks import connect
from inscan.callbacks.approver_pass import APPROVE_PASS
from inscan.callbacks.pass_file import read_pass
from inscan.callbacks.request import RequestRefusedError
from inscan.service.cli import app

KEY = "5ec2e7" + "0f1e2d3c" * 8
OTHER = "ba5e11" + "9a8b7c6d" * 8


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("security_small_service", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


serve = _module(Path(__file__).parent / "broker" / "test_serve.py")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, until: Callable[..., Any]) -> Iterator[Any]:
    """A default service but for its ports, with a worker and its own Tiled, after one run."""
    folder = tmp_path_factory.mktemp("security")
    secrets = {
        "INSCAN_TILED_API_KEY": KEY,
        "INSCAN_SOURCE_TILED_API_KEY": OTHER,
        "TILED_API_KEY": OTHER,
        "CREDENTIALS_DIRECTORY": "/run/credentials/inscan.service",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("INSCAN_APPROVE_PASS", raising=False)
        for name, value in secrets.items():
            patch.setenv(name, value)
        running = serve.Server(folder / "state", rescan="approve")
        running.state.mkdir(mode=0o700)
        try:
            running.start(lambda condition, what, seconds: until(condition, 110.0))
            scan = serve.Scan()
            with connect(running.addresses["ingest"], state_dir=folder / "host") as connection:
                for name, doc in scan.documents:
                    connection(name, doc)
                assert connection.future(scan.uid).result(60)["status"] == "done"
            running.survey = scan.uid
            yield running
        finally:
            running.close()


def family(service: Any) -> list[psutil.Process]:
    first = psutil.Process(service.process.pid)
    return [first, *first.children(recursive=True)]


def test_every_socket_of_the_service_and_its_children_is_on_loopback(service):
    found: dict[str, set[str]] = {}
    for one in family(service):
        for c in one.net_connections("inet"):
            if c.status == psutil.CONN_LISTEN or (c.type.name == "SOCK_DGRAM" and not c.raddr):
                words = " ".join(one.cmdline()[1:4])
                found.setdefault(words, set()).add(c.laddr.ip)
    assert {ip for ips in found.values() for ip in ips} <= {"127.0.0.1", "::1"}, found
    # Ingest, broker and spool are of the service itself; one more is Tiled's; the worker has none.
    assert len(found) == 2 and len(family(service)) >= 3, found


def test_no_process_shows_a_key_and_workers_hold_none(service):
    held = {}
    for one in family(service):
        assert KEY not in " ".join(one.cmdline()) and OTHER not in " ".join(one.cmdline())
        if "small_recipes" in " ".join(one.cmdline()):
            held[one.pid] = one.environ()
    assert held
    for environment in held.values():
        assert not [name for name, value in environment.items() if KEY in value or OTHER in value]
        assert not {name for name in environment if "API_KEY" in name or "CREDENTIALS" in name}


def test_keys_are_in_no_log_no_answer_and_no_file_but_their_own(service, monkeypatch):
    approve = read_pass(service.state / APPROVE_PASS).secret
    with pytest.raises(RequestRefusedError, match="no proposal"):
        service.ask("approve", proposal="none", who="me")
    with pytest.raises(RequestRefusedError, match="fields"):
        service.ask("approve", proposal="none", who="me", colour="red")
    said = json.dumps(
        [service.ask(op) for op in ("status", "jobs", "runs", "proposals", "sources")]
    )
    said += service.log.read_text() + json.dumps(service.addresses)
    monkeypatch.setenv("INSCAN_TILED_API_KEY", KEY)
    for command in (
        ("status", "--state", str(service.state), "--json"),
        ("config", "explain"),
        ("config", "schema"),
        ("config", "check", str(service.config)),
        ("keys", "list", "--state", str(service.state)),
    ):
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            app(list(command), standalone_mode=False)
        said += out.getvalue()
    searched = 0
    for path in service.state.rglob("*"):
        if path.is_file() and path.parent.name not in ("keys", "allowed"):
            content = path.read_bytes()
            searched += 1
            assert not [s for s in (KEY, OTHER, approve) if s.encode() in content], path
    assert searched > 5 and (service.state / "journal.db").exists()
    assert not [secret for secret in (KEY, OTHER, approve) if secret in said]


def test_files_of_the_service_are_its_owners_alone(service):
    assert service.state.stat().st_mode & 0o077 == 0
    for path in (service.state / APPROVE_PASS, *(service.state / "keys").rglob("*.json")):
        assert path.stat().st_mode & 0o077 == 0, path


def test_only_a_key_decides_and_its_name_is_in_the_history(service, monkeypatch, tmp_path):
    places = [{"box": [0, 2, 0, 2], "score": 9.0, "reason": "a test", "element_name": "Fe_K"}]
    asked = {"run_uid": service.survey, "places": places, "who": "anna", "reason": ""}
    proposal = service.ask("propose_places", **asked)["proposal"]
    assert proposal["state"] == "suggested", proposal["reason"]
    own, hidden = service.state / APPROVE_PASS, tmp_path / "approve.pass"
    os.rename(own, hidden)
    try:
        for op in ("approve", "refuse"):
            with pytest.raises(RequestRefusedError, match="needs a valid approver's key"):
                service.ask(op, proposal=proposal["id"], who="anna", reason="")
            with pytest.raises(RequestRefusedError, match="needs a valid approver's key"):
                service.ask(op, proposal=proposal["id"], who="anna", reason="", key="x" * 43)
        with pytest.raises(RequestRefusedError, match="needs a valid approver's key"):
            service.ask("retry", job="none", who="anna")
        with pytest.raises(RequestRefusedError, match="needs a valid approver's key"):
            service.ask("quarantine", job="none", who="anna", reason="x")
        assert service.ask("proposal", proposal=proposal["id"])["proposal"]["state"] == "suggested"
    finally:
        os.rename(hidden, own)
    service.ask("approve", proposal=proposal["id"], who="anna", reason="looks good")
    with pytest.MonkeyPatch.context() as patch:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            name, where = "control-room", tmp_path / "room.pass"
            command = ["keys", "new", name, "--role", "approver", "--out", str(where)]
            app([*command, "--state", str(service.state)], standalone_mode=False)
        patch.setenv("INSCAN_APPROVE_PASS", str(where))
        service.ask("refuse", proposal=proposal["id"], who="bert (key: local)", reason="no")
        app(["keys", "revoke", name, "--state", str(service.state)], standalone_mode=False)
        with pytest.raises(RequestRefusedError, match="needs a valid approver's key"):
            service.ask("refuse", proposal=proposal["id"], who="bert", reason="no")
    history = service.ask("proposal", proposal=proposal["id"])["proposal"]["history"]
    assert [one["who"] for one in history][-2:] == [
        "anna (key: local-approver)",
        "bert _key: local_ (key: control-room)",
    ]
    messages = service.ask("status")["messages"]
    assert messages["approvals"] >= 2 and messages["approvals_refused"] >= 7


def test_tiled_shows_and_takes_nothing_without_the_key(service):
    root = f"{service.addresses['tiled']}/api/v1"
    node = {"structure_family": "container", "metadata": {}, "specs": [], "data_sources": []}
    wrong = {"Authorization": f"Apikey {OTHER}"}
    with httpx.Client(trust_env=False) as client:
        for headers in ({}, wrong):
            for verb, path, body in (
                ("GET", "/metadata/processed", None), ("GET", "/search/", None), ("GET", "/search/raw", None),
                ("POST", "/metadata/processed", node), ("POST", "/register/processed", node),
                ("DELETE", "/metadata/processed", None), ("GET", f"/metadata/processed?api_key={OTHER}", None),
            ):  # fmt: skip
                answer = client.request(verb, root + path, json=body, headers=headers)
                assert answer.status_code in (401, 403), (verb, path, answer.status_code)
        good = {"Authorization": f"Apikey {KEY}"}
        assert client.get(f"{root}/search/processed", headers=good).status_code == 200
