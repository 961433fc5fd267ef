"""The whole service as its own process: from documents to Tiled, and over its own death."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
import zmq
from event_model import compose_run
from pydantic import SecretStr

from inscan.callbacks import connect
from inscan.callbacks.geometry import ScanGeometry
from inscan.callbacks.request import RequestRefusedError, request
from inscan.service.journal import Journal
from inscan.service.messages import derived_uid
from inscan.service.result_file import read_result
from inscan.service.serve import Service
from inscan.service.settings import load_settings
from inscan.service.tiled_http import TiledHTTP

SERVICE = Path(__file__).with_name("small_service.py")
ELEMENTS = ("Ca_K", "Fe_K")
ANY = "tcp://127.0.0.1:0"


class Server:
    """`inscan serve` on a state directory."""

    def __init__(self, state: Path, recipe: str = "double", **settings: Any) -> None:
        self.state = state
        self.recipe = recipe
        self.config = state.with_name(f"{state.name}.yaml")
        self.log = state.with_name(f"{state.name}.log")
        fields = {
            "state_dir": str(state),
            "profiles": ["sim_xrf"],
            "ingest": ANY,
            "broker": ANY,
            "spool": ANY,
            "lease_s": 3.0,
            "hb_s": 0.2,
            "drain_s": 5.0,
            "min_free": 0,
            "rescan": "off",
            **settings,
        }
        self.config.write_text(yaml.safe_dump(fields))
        self.process: subprocess.Popen[bytes] | None = None

    def launch(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(SERVICE), str(self.config), self.recipe]
        env = {**os.environ, "SMALL_RECIPES": str(self.state.parent)}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=env)
        return self.process

    def start(self, wait_until: Callable[..., Any]) -> dict[str, Any]:
        (self.state / "service.json").unlink(missing_ok=True)
        process = self.launch()

        def ready() -> bool:
            assert process.poll() is None, self.log.read_text()[-3000:]
            return (self.state / "service.json").exists()

        wait_until(ready, "the service is ready", 60.0)
        return self.addresses

    @property
    def addresses(self) -> dict[str, Any]:
        return json.loads((self.state / "service.json").read_text())

    def refused(self) -> str:
        """Start in this process, expect that it cannot, and return why."""
        with pytest.raises((OSError, ValueError)) as caught:
            Service(load_settings(self.config)).start()
        assert "\n" not in str(caught.value), "one line"
        return str(caught.value)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        return request(self.state, op, timeout=20.0, **fields)

    def derived(self, uid: str) -> dict[str, Any] | None:
        """Metadata of a derived run in the embedded Tiled."""
        key = SecretStr((self.state / "tiled" / "api_key").read_text().strip())
        with TiledHTTP(self.addresses["tiled"], key) as tiled:
            found = tiled.get(f"processed/{uid}")
        return None if found is None else found["metadata"]


class Scan:
    """Documents of a small step scan with two channels and two elements."""

    def __init__(self, rows: int = 4, cols: int = 5, **md: Any) -> None:
        rng = np.random.default_rng(rows * cols)
        self.counts = rng.poisson(20, (2, len(ELEMENTS), rows, cols)).astype(float)
        start = {
            "beamline_id": "sim_xrf",
            "shape": [rows, cols],
            "extents": [[0.0, 3.0], [10.0, 14.0]],
            "snaking": [False, True],
            "motors": ["sample_y", "sample_x"],
            "scan": {"type": "XRF_STEP", "energy": 12.0, "dwell": 0.1},
            "scan_id": 7,
            **md,
        }
        bundle = compose_run(metadata=start)
        geometry = ScanGeometry.from_start(bundle.start_doc)
        config = {f"xs_mcaroi{m:02d}_name": name for m, name in enumerate(ELEMENTS, 1)}
        number = {"dtype": "number", "shape": [], "source": "sim"}
        keys = {"sclr_i0": number}
        keys |= {name: number | {"units": "um"} for name in ("sample_x", "sample_y")}
        for c in (1, 2):
            keys[f"xs_channel{c:02d}_live_time"] = number
            for m in (1, 2):
                keys[f"xs_channel{c:02d}_mcaroi{m:02d}_total_rbv"] = number
        stream = bundle.compose_descriptor(
            name="primary",
            data_keys=keys,
            configuration={
                "xs": {
                    "data": config,
                    "timestamps": dict.fromkeys(config, 0.0),
                    "data_keys": dict.fromkeys(
                        config, {"dtype": "string", "shape": [], "source": "s"}
                    ),
                }
            },
        )
        self.uid: str = bundle.start_doc["uid"]
        self.documents: list[tuple[str, Any]] = [
            ("start", bundle.start_doc),
            ("descriptor", stream.descriptor_doc),
        ]
        for seq in range(1, rows * cols + 1):
            row, col = geometry.pixel_of(seq)
            slow, fast = geometry.position_of(row, col)
            data = {"sclr_i0": 1000.0, "sample_y": slow, "sample_x": fast}
            for c in (1, 2):
                data[f"xs_channel{c:02d}_live_time"] = 0.1
                for m in (1, 2):
                    name = f"xs_channel{c:02d}_mcaroi{m:02d}_total_rbv"
                    data[name] = self.counts[c - 1, m - 1, row, col]
            event = stream.compose_event(
                data=data, timestamps=dict.fromkeys(data, 0.0), seq_num=seq
            )
            self.documents.append(("event", event))
        self.documents.append(("stop", bundle.compose_stop()))

    @property
    def expected(self) -> np.ndarray:
        return (2 * self.counts.sum(axis=0)).astype("f4")


@pytest.fixture(scope="module")
def running(tmp_path_factory, wait_until) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("running") / "state")
    server.state.mkdir()
    server.start(wait_until)
    yield server
    server.close()


@pytest.fixture
def server_in(tmp_path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def make(*arguments: Any, **settings: Any) -> Server:
        servers.append(Server(tmp_path / "state", *arguments, **settings))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@pytest.fixture
def linked(tmp_path) -> Iterator[Callable[[Server], Any]]:
    """Connect a RunEngine's end to a server, its log beside the server's state directory."""
    connections = []

    def make(server: Server) -> Any:
        # On the same host, logs are in the state directory of their user, which is not the service's here.
        connections.append(connect(server.addresses["ingest"], state_dir=tmp_path / "host"))
        return connections[-1]

    yield make
    for connection in connections:
        connection.close(0.0)


def test_a_run_becomes_one_derived_run(running, linked):
    scan = Scan()
    connection = linked(running)
    for name, doc in scan.documents:
        connection(name, doc)
    outcome = connection.future(scan.uid).result(60)
    assert outcome["status"] == "done", outcome
    (job,) = (job for job in running.ask("jobs")["jobs"] if job["run_uid"] == scan.uid)
    assert job["state"] == "committed" and job["scan_id"] == 7
    assert outcome["result_uid"] == job["result_uid"] == derived_uid(job["key"])
    stored = read_result(Path(job["result_path"]))
    np.testing.assert_array_equal(stored.processed.arrays[0].values, scan.expected)
    metadata = running.derived(job["result_uid"])
    assert metadata["start"]["raw_uid"] == scan.uid
    assert metadata["start"]["provenance"]["input_digest"].startswith("sha256:")
    assert metadata["stop"]["exit_status"] == "success"
    assert {"queued", "mapped", "inference", "written", "synced", "registered"} <= set(
        job["timings"]
    )
    assert outcome == {**outcome, **running.ask("outcome", run_uid=scan.uid)["outcome"]}


def test_the_spool_is_cleaned_when_the_result_is_in_tiled(running, linked, wait_until):
    scan = Scan()
    connection = linked(running)
    for name, doc in scan.documents:
        connection(name, doc)
    assert connection.future(scan.uid).result(60)["status"] == "done"
    wait_until(lambda: not (running.state / "spool" / scan.uid).exists(), "the spool is clean")
    assert not (running.state / "live" / f"{scan.uid}.h5").exists()


def test_a_run_of_nobody_and_one_without_sense_end_by_name(running, linked):
    connection = linked(running)
    foreign, broken = Scan(beamline_id="another"), Scan()
    broken.documents[0] = ("start", {**broken.documents[0][1], "shape": [0, -1]})
    for scan in (foreign, broken):
        for name, doc in scan.documents:
            connection(name, doc)
    assert connection.future(foreign.uid).result(60)["status"] == "passed_by"
    outcome = connection.future(broken.uid).result(60)
    assert outcome["status"] in ("failed", "passed_by") and outcome["reason"]
    states = {run["run_uid"]: run["state"] for run in running.ask("runs")["runs"]}
    assert states[foreign.uid] == "passed_by" and states[broken.uid] in ("failed", "passed_by")


def test_status_tells_what_there_is(running, wait_until):
    status = wait_until(lambda: s if (s := running.ask("status"))["workers"] else None, "a worker")
    assert status["pid"] == running.process.pid
    assert status["addresses"] == {
        k: v for k, v in running.addresses.items() if k not in ("pid", "curve")
    }
    assert running.addresses["curve"] == []
    assert {(s["keys"], s["refused"], s["cut"]) for s in status["sockets"]} == {("none", 0, 0)}
    assert status["writer"]["state"] in ("idle", "writing")
    assert {"version", "uptime_s", "runs", "jobs", "proposals", "spool", "messages"} <= set(status)


@pytest.mark.parametrize(
    ("op", "fields", "words"),
    [
        ("fly", {}, "knows no request"),
        ("jobs", {"colour": "red"}, "colour"),
        ("approve", {"proposal": "p9", "who": "me"}, "no proposal"),
        ("outcome", {"run_uid": "nobody"}, "no run"),
    ],
)
def test_requests_that_make_no_sense_are_answered_so(running, op, fields, words):
    with pytest.raises(RequestRefusedError, match=words):
        running.ask(op, **fields)


def test_it_listens_on_loopback_alone_and_tells_no_key(running):
    family = psutil.Process(running.process.pid)
    sockets = [c for p in (family, *family.children(True)) for c in p.net_connections("inet")]
    listening = {c.laddr.ip for c in sockets if c.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}
    key = (running.state / "tiled" / "api_key").read_text().strip()
    said = (
        running.log.read_text() + json.dumps(running.addresses) + json.dumps(running.ask("status"))
    )
    assert key not in said


def test_noise_on_every_port_is_counted_and_kills_nothing(running, linked, wait_until):
    rng = np.random.default_rng(0)
    context = zmq.Context()
    for name in ("ingest", "broker", "spool"):
        host, port = running.addresses[name].removeprefix("tcp://").split(":")
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(rng.bytes(4096))
        with context.socket(zmq.DEALER) as dealer:
            dealer.setsockopt(zmq.LINGER, 2000)
            dealer.connect(running.addresses[name])
            for _ in range(50):
                frames = [
                    b"XI",
                    bytes((1, 0)),
                    rng.choice([b"HELLO", b"DONE", b"HB", b"PUT", b"DOC"]),
                ]
                dealer.send_multipart(
                    [*frames[: rng.integers(0, 4)], rng.bytes(int(rng.integers(0, 200)))]
                )
    context.term()
    wait_until(lambda: running.ask("status")["messages"].get("garbage", 0) > 0, "noise is counted")
    scan = Scan()
    connection = linked(running)
    for name, doc in scan.documents:
        connection(name, doc)
    assert connection.future(scan.uid).result(60)["status"] == "done"


def test_a_second_owner_is_refused(running):
    said = Server(running.state).refused()
    assert f"process {running.process.pid}" in said and str(running.state) in said
    assert running.ask("status")["pid"] == running.process.pid


@pytest.mark.parametrize("name", ["ingest", "broker", "spool"])
def test_a_port_in_use_is_named(running, server_in, name):
    said = server_in(**{name: running.addresses[name]}).refused()
    assert running.addresses[name] in said and f"`{name}`" in said


def test_a_tiled_that_refuses_the_key_ends_the_start(running, server_in):
    said = server_in(tiled={"uri": running.addresses["tiled"], "api_key": "wrong"}).refused()
    assert "key" in said and "wrong" not in said


def test_what_is_in_the_way_is_said_in_one_line(server_in, tmp_path):
    assert "min_free" in server_in(min_free=1 << 60).refused()
    assert "sim_xfr" in server_in(profiles=["sim_xfr"]).refused()
    (tmp_path / "state").rename(tmp_path / "moved")
    (tmp_path / "state").write_text("a file")
    assert "cannot be used" in server_in().refused()


@pytest.mark.slow
def test_a_killed_service_comes_back_and_each_run_has_one_result(
    server_in, linked, wait_until, lives
):
    server = server_in("wait")
    server.start(wait_until)
    connection = linked(server)
    done, half = Scan(), Scan()
    for name, doc in (*done.documents, *half.documents[:12]):
        connection(name, doc)
    wait_until(lambda: list(server.state.parent.glob("begun-*")), "a job has begun")
    pids = [child.pid for child in psutil.Process(server.process.pid).children(recursive=True)]
    server.kill()
    wait_until(lambda: not any(lives(pid) for pid in pids), "its children are gone")
    for name, doc in half.documents[12:]:
        connection(name, doc)
    (server.state.parent / "go").touch()
    # The same ports, so that the RunEngine's end finds it again.
    addresses = {k: v for k, v in server.addresses.items() if k in ("ingest", "broker", "spool")}
    again = server_in("wait", **addresses)
    again.start(wait_until)
    for scan in (done, half):
        outcome = connection.future(scan.uid).result(60)
        assert outcome["status"] == "done"
        (job,) = (job for job in again.ask("jobs")["jobs"] if job["run_uid"] == scan.uid)
        stored = read_result(Path(job["result_path"]))
        np.testing.assert_array_equal(stored.processed.arrays[0].values, scan.expected)
        assert job["lost_on"] == []
    again.process.send_signal(signal.SIGINT)
    assert again.process.wait(40) == 0


def test_sigterm_ends_everything_in_order(server_in, linked, wait_until, lives):
    server = server_in("wait", drain_s=30.0)
    server.start(wait_until)
    scan = Scan()
    connection = linked(server)
    for name, doc in scan.documents:
        connection(name, doc)
    wait_until(lambda: list(server.state.parent.glob("begun-*")), "the job has begun")
    family = psutil.Process(server.process.pid).children(recursive=True)
    assert family
    server.process.terminate()
    (server.state.parent / "go").touch()
    assert server.process.wait(40) == 0
    assert not any(lives(child.pid) for child in family)
    assert not (server.state / "service.json").exists()
    # The job that ran was let finish, and its result is in Tiled: nothing of it is left to do.
    journal = Journal(server.state / "journal.db")
    states = [job["state"] for job in journal.jobs()]
    journal.close()
    assert states == ["committed"]
