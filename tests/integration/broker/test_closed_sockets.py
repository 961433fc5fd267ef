"""Sockets that other machines reach: who gets in, who does not, and what each is told."""

import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
import zmq

from inscan.callbacks import link as link_module
from inscan.callbacks import wire
from inscan.callbacks.connection import connect
from inscan.callbacks.link import Link, at_host
from inscan.callbacks.pass_file import ENVIRONMENT, Pass, PassError, read_pass
from inscan.callbacks.request import NoServiceError, request
from inscan.service import transfer
from inscan.service.access import Access
from inscan.service.broker import Broker
from inscan.service.digest import digest_arrays
from inscan.service.events import Submit
from inscan.service.gate import Gate
from inscan.service.journal import Journal
from inscan.service.keys import Keyring
from inscan.service.mailbox import Mailbox
from inscan.service.messages import ArraySpec, InferenceJob, job_key
from inscan.service.serve import Service
from inscan.service.settings import Settings, load_settings
from inscan.service.sockets import Router
from inscan.service.spool import Spool
from inscan.service.spool_server import SpoolServer
from inscan.service.worker_loop import EXIT_NOT_LET_IN, Worker

HERE = Path(__file__).parent
EVERYWHERE = "tcp://0.0.0.0:0"
ANY = "tcp://127.0.0.1:0"


@pytest.fixture(scope="module")
def outside() -> str:
    """A number of this machine that is not loopback."""
    for addresses in psutil.net_if_addrs().values():
        for one in addresses:
            if one.family == socket.AF_INET and not one.address.startswith("127."):
                return one.address
    pytest.skip("this machine has no address but loopback")


@pytest.fixture
def ring(tmp_path: Path) -> Keyring:
    return Keyring(tmp_path / "keys")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pass of whoever runs the tests, and little patience."""
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setattr(link_module, "_REDIAL_S", 0.1)


def passed(ring: Keyring, name: str, role: str) -> Pass:
    return read_pass(ring.new(name, role))


@pytest.fixture
def listen(ring: Keyring) -> Iterator[Callable[..., Router]]:
    """`listen("broker")`: a closed socket, whose counters are looked at while tests wait."""
    routers: list[Router] = []
    over = threading.Event()

    def serve(router: Router) -> None:
        poller = zmq.Poller()
        poller.register(router.socket, zmq.POLLIN)
        while not over.is_set():
            poller.poll(20)
            for identity, *rest in router.received(100):
                message = wire.decode_message(rest)
                router.send([identity, *wire.encode_message("ECHO", message.header)])

    def start(name: str, address: str = ANY, closed: bool = True) -> Router:
        gate = Gate(ring, ring.make_server(), name) if closed else None
        router = Router(name, max_message=1 << 20, gate=gate)
        router.bind(address)
        routers.append(router)
        threads.append(threading.Thread(target=serve, args=(router,)))
        threads[-1].start()
        return router

    threads: list[threading.Thread] = []
    yield start
    over.set()
    for thread in threads:
        thread.join()
    for router in routers:
        router.close()


class Caller:
    """A link that says one thing and listens."""

    def __init__(self, address: str, key: Pass | None, until: Callable[..., Any]) -> None:
        self.link = Link()
        self.until = until
        self.link.connect(address, key)

    def heard(self) -> str:
        """The kind of the next answer."""

        def one() -> str | None:
            self.link.wait(0.02)
            return next((message.kind for message in self.link.messages()), None)

        return self.until(one)

    def say(self) -> None:
        self.until(lambda: self.link.send("PING", {}) or self.link.wait(0.02))

    def trouble(self) -> str:
        """What is sure to be wrong."""

        def sure() -> str | None:
            self.link.wait(0.02)
            found = self.link.trouble
            return found.text if found and found.sure else None

        return self.until(sure)


@pytest.fixture
def call(until) -> Iterator[Callable[..., Caller]]:
    callers: list[Caller] = []

    def start(address: str, key: Pass | None) -> Caller:
        callers.append(Caller(address, key, until))
        return callers[-1]

    yield start
    for caller in callers:
        caller.link.close()


def test_a_known_key_speaks_until_it_is_revoked_and_other_keys_go_on(ring, listen, call, until):
    router = listen("broker")
    gone, stays = passed(ring, "gone", "worker"), passed(ring, "stays", "worker")
    first, second = call(router.address, gone), call(router.address, stays)
    for caller in (first, second):
        caller.say()
        assert caller.heard() == "ECHO"
    ring.revoke("gone")
    first.say()
    assert first.heard() == "ERR", "told once why"
    first.say()
    until(lambda: router.state()["cut"] == 2)
    second.say()
    assert second.heard() == "ECHO"
    assert list(first.link.messages()) == [], "cut: nothing goes to it any more"
    again = call(router.address, gone)
    assert "does not let in the key 'gone' (role worker)" in again.trouble()


def test_an_answer_that_is_due_to_a_revoked_key_is_not_sent(ring, listen, call, until):
    router = listen("ingest")
    caller = call(router.address, passed(ring, "gone", "client"))
    caller.say()
    assert caller.heard() == "ECHO"
    (identity,) = router._keys
    ring.revoke("gone")
    assert not router.send([identity, *wire.encode_message("OUTCOME", {})])
    assert not router.send([b"nobody", *wire.encode_message("OUTCOME", {})])


def other_key(ring: Keyring, folder: Path, role: str) -> Pass:
    """A pass of nobody, with the right key of the service."""
    found = passed(Keyring(folder / "elsewhere"), "stranger", role)
    server = ring.make_server().public
    return Pass(found.name, found.role, found.public, found.secret, server)


@pytest.mark.parametrize(
    ("who", "told", "counted"),
    [
        ("unknown", "does not let in the key 'stranger'", "keys not allowed"),
        ("wrong role", "does not let in the key 'acquisition' (role client)", "keys not allowed"),
        ("plain", "name a pass file in INSCAN_PASS", None),
        ("other service", "probably it has another key than the pass", "other server key"),
    ],
)
def test_who_is_not_let_in_is_told_why_and_counted(
    ring, listen, call, until, tmp_path, who, told, counted
):
    router = listen("spool")
    key = {
        "unknown": lambda: other_key(ring, tmp_path, "worker"),
        "wrong role": lambda: passed(ring, "acquisition", "client"),
        "plain": lambda: None,
        "other service": lambda: passed(Keyring(tmp_path / "elsewhere"), "w", "worker"),
    }[who]()
    caller = call(router.address, key)
    text = caller.trouble()
    assert told in text and router.address in text
    until(lambda: router.refused[counted] if counted else sum(router.refused.values()))
    assert not caller.link.send("PING", {})
    assert key is None or key.secret not in text
    # Let in afterwards, it gets in by itself: the link dials again where libzmq would not.
    if who == "unknown":
        assert key is not None
        entry = {"name": "late", "role": "worker", "public": key.public, "token_sha256": ""}
        path = ring.folder / "allowed" / "late.json"
        path.write_text(json.dumps({**entry, "made": ""}))
        caller.say()
        assert caller.heard() == "ECHO" and caller.link.trouble is None


def test_a_pass_for_a_socket_that_asks_for_none_is_explained(ring, listen, call):
    router = listen("broker", closed=False)
    caller = call(router.address, passed(ring, "a", "worker"))
    assert "does not encrypt, and a pass was given" in caller.trouble()


def test_nothing_is_bound_or_dialled_beyond_loopback_without_keys(outside):
    for address in (EVERYWHERE, "tcp://*:0", f"tcp://{outside}:0", "tcp://[::]:0"):
        with pytest.raises(PermissionError, match="asks nobody for a key"):
            Router("broker", max_message=1).bind(address)
    link = Link()
    try:
        with pytest.raises(PassError, match="no pass for it"):
            link.connect(f"tcp://{outside}:5620")
    finally:
        link.close()


def test_a_question_with_the_wrong_key_says_so_at_once(ring, listen, tmp_path, monkeypatch):
    router = listen("ingest")
    file = {"ingest": router.address, "curve": ["ingest"], "server_key": ring.make_server().public}
    (tmp_path / "service.json").write_text(json.dumps(file))
    (tmp_path / "stranger.pass").write_bytes(other_key(ring, tmp_path, "client").to_json())
    (tmp_path / "stranger.pass").chmod(0o600)
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "stranger.pass"))
    with pytest.raises(NoServiceError, match="does not let in the key 'stranger'.*service.json"):
        request(tmp_path, "status", timeout=60)
    monkeypatch.setenv(ENVIRONMENT, str(ring.new("w", "worker")))
    with pytest.raises(PassError, match="pass of a role 'worker'; this needs one of 'client'"):
        request(tmp_path, "status", timeout=60)
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "nowhere"))
    with pytest.raises(PassError, match="nowhere cannot be read"):
        request(tmp_path, "status", timeout=60)


def test_a_service_of_another_version_is_named(tmp_path):
    with zmq.Context() as context, context.socket(zmq.ROUTER) as old:
        port = old.bind_to_random_port("tcp://127.0.0.1")
        reply = wire.encode_message("REPLY", {"id": "?"})
        reply[1] = bytes((9, 0))

        def answer() -> None:
            identity, *_ = old.recv_multipart()
            old.send_multipart([identity, *reply])

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(NoServiceError, match=r"speaks protocol 9.0.*same inscan on both"):
            request(f"tcp://127.0.0.1:{port}", "status", timeout=60)
        thread.join()


def test_a_subscribed_process_says_once_why_it_is_not_let_in(
    ring, listen, tmp_path, monkeypatch, caplog, until
):
    router = listen("ingest")
    (tmp_path / "stranger.pass").write_bytes(other_key(ring, tmp_path, "client").to_json())
    (tmp_path / "stranger.pass").chmod(0o600)
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "stranger.pass"))
    caplog.set_level(logging.WARNING)

    def said() -> list[str]:
        return [r.getMessage() for r in caplog.records if "inscan" in r.name and r.thread]

    with connect(router.address, state_dir=tmp_path) as connection:
        until(lambda: [text for text in said() if "does not let in the key 'stranger'" in text])
        # Twice refused, once said.
        until(lambda: router.refused["keys not allowed"] > 1)
        connection.close(0)
    texts = [text for text in said() if "does not let in" in text]
    assert len(texts) == 1 and "Documents are logged in" in texts[0]


def test_a_worker_that_is_not_let_in_ends(ring, listen, tmp_path, caplog):
    router = listen("broker")
    worker = Worker(
        router.address,
        lambda *_: pytest.fail("no job"),
        name="w",
        described="cpu",
        grace_s=1.0,
        key=other_key(ring, tmp_path, "worker"),
        refused_s=0.2,
    )
    assert worker.run() == EXIT_NOT_LET_IN
    assert "does not let in the key 'stranger'" in caplog.text


class Closed:
    """Broker and spool server that listen on all networks, as `inscan serve` wires them."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.settings = Settings(
            state_dir=state,
            broker=EVERYWHERE,
            spool=EVERYWHERE,
            ingest=ANY,
            lease_s=1.5,
            hb_s=0.1,
        )
        self.settings.results_dir.mkdir(parents=True)
        self.ring = Keyring(self.settings.keys_dir)
        self.ring.make_server()
        access = Access(self.settings)
        self.spool = Spool(self.settings.spool_dir, budget=1 << 30, min_free=0)
        self.journal = Journal(self.settings.journal_path, backoff_s=0.05)
        self.boxes = Mailbox(), Mailbox()
        writer, ingest = self.boxes
        gate = access.gate("broker")
        self.broker = Broker(
            self.settings, self.journal, version="t", writer=writer, ingest=ingest, gate=gate
        )
        self.address = self.broker.bind()
        self.spool_server = SpoolServer(
            EVERYWHERE, self.spool, self.broker.place_for, access.gate("spool")
        )
        self.broker.start(access.spool_for_workers(self.spool_server.bind()))
        self.spool_server.start()
        self.workers: list[subprocess.Popen[bytes]] = []

    def worker(self, recipe: str, host: str, pass_path: Path) -> subprocess.Popen[bytes]:
        address = at_host(self.address, host)
        command = [sys.executable, str(HERE / "small_recipes.py"), recipe, address, str(self.state)]
        env = {**os.environ, ENVIRONMENT: str(pass_path)}
        with (self.state / "workers.log").open("ab") as log:
            process = subprocess.Popen([*command, "--elsewhere"], stdout=log, stderr=log, env=env)
        self.workers.append(process)
        return process

    def submit(self) -> str:
        run = self.spool.run("run-1")
        counts = run.allocate("counts", (2, 400, 500), np.dtype("f4"))
        counts[...] = np.random.default_rng(0).poisson(5.0, counts.shape)
        key = job_key("run-1", "primary", "n2n", {})
        job = InferenceJob(
            key=key,
            run_uid="run-1",
            stream="primary",
            kind="final",
            recipe="n2n",
            parameters={},
            meta={"rows_done": 4},
            spool=str(run.folder),
            arrays={"counts": run.spec("counts", counts)},
            input_digest="",
            result_path=str(self.settings.results_dir / f"{key}.h5"),
            host_id="this",
        )
        self.journal.record_run("run-1", 1, "test", {"uid": "run-1"})
        self.journal.add_job(job)
        self.journal.synced(key, digest_arrays({}))
        self.journal.finish_run("run-1", "complete")
        self.broker.mailbox.post(Submit(job))
        return key

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.wait()
        self.broker.stop()
        self.spool_server.stop()
        self.journal.close()
        for box in self.boxes:
            box.close()


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Closed]:
    made = Closed(tmp_path / "state")
    yield made
    made.close()


def test_a_worker_of_another_machine_computes_and_one_revoked_at_work_is_cut(
    closed, outside, until
):
    gone, good = (closed.ring.new(name, "worker") for name in ("gone", "good"))
    first = closed.worker("wait", outside, gone)
    key = closed.submit()
    until((closed.state / f"begun-{first.pid}").exists)
    closed.ring.revoke("gone")
    assert first.wait(20) == EXIT_NOT_LET_IN
    assert closed.broker.router.state()["cut"]
    second = closed.worker("wait", outside, good)
    until((closed.state / f"begun-{second.pid}").exists)
    (closed.state / "go").touch()
    until(lambda: closed.journal.job(key)["state"] == "computed")
    assert closed.journal.job(key)["dispatches"] == 2
    done = closed.spool_server.counts
    assert done["FETCH"] and done["FINISH"], "through the encrypted socket"


def test_arrays_are_not_fetched_without_a_key(closed):
    spool = at_host(closed.spool_server.router.address, "127.0.0.1")
    counts = ArraySpec(file="counts.npy", shape=(4,), dtype="<f4", nbytes=16)
    job = InferenceJob.model_construct(key="0" * 64, fence=1, spool="r", arrays={"counts": counts})
    with pytest.raises(transfer.TransferError, match="no way to the spool server"):
        transfer.fetch(spool, job, lambda: None)
    assert not closed.spool_server.counts["FETCH"]


def settings_file(folder: Path, **changes: Any) -> Path:
    path = folder / "service.yaml"
    fields = {"state_dir": str(folder / "state"), "profiles": ["sim_xrf"], "min_free": 0}
    fields |= {"ingest": ANY, "broker": ANY, "spool": ANY, "workers": 1, "rescan": "off"}
    path.write_text(yaml.safe_dump(fields | {"lease_s": 3.0, "hb_s": 0.2} | changes))
    return path


def test_no_service_starts_beyond_loopback_without_a_key_of_its_own(tmp_path):
    path = settings_file(tmp_path, ingest=EVERYWHERE)
    with pytest.raises(PassError, match="inscan keys new NAME --role client --state"):
        Service(load_settings(path)).start()
    path = settings_file(tmp_path, broker=EVERYWHERE, spool=EVERYWHERE)
    with pytest.raises(PassError, match="inscan keys new NAME --role worker --state"):
        Service(load_settings(path)).start()


def test_a_service_on_all_networks_serves_its_own_and_who_has_a_key(
    tmp_path, outside, tiled, until, monkeypatch
):
    state = tmp_path / "state"
    ring = Keyring(state / "keys")
    guest = ring.new("hutch-b", "client", tmp_path / "hutch-b.pass")
    path = settings_file(
        tmp_path,
        ingest=EVERYWHERE,
        broker=EVERYWHERE,
        spool=EVERYWHERE,
        tiled={"uri": tiled.uri, "api_key": tiled.api_key.get_secret_value()},
    )
    command = [sys.executable, str(HERE / "small_service.py"), str(path), "double"]
    with (tmp_path / "serve.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        until(lambda: (state / "service.json").exists() or process.poll() is not None, 60)
        assert process.poll() is None, (tmp_path / "serve.log").read_text()[-3000:]
        said = json.loads((state / "service.json").read_text())
        assert said["curve"] == ["ingest", "broker", "spool"]
        assert said["ingest"].startswith("tcp://127.0.0.1:")
        # The command line of this machine needs nothing; neither do the service's own workers.
        until(lambda: request(state, "status", timeout=20)["workers"])
        address = at_host(said["ingest"], outside)
        with pytest.raises(PassError, match="no pass for it"):
            request(address, "status")
        monkeypatch.setenv(ENVIRONMENT, str(guest))
        answer = request(address, "status", timeout=20)
        rows = {row["socket"]: row for row in answer["sockets"]}
        assert {row["keys"] for row in rows.values()} == {"asked for"}
        with connect(address, state_dir=tmp_path / "guest") as connection:
            until(lambda: connection.connected)
        shown = json.dumps(answer) + (state / "service.json").read_text()
        shown += (tmp_path / "serve.log").read_text()
        secrets = [read_pass(file).secret for file in (guest, *ring.folder.glob("*.pass"))]
        assert not [secret for secret in secrets if secret in shown]
    finally:
        process.terminate()
        assert process.wait(30) == 0
