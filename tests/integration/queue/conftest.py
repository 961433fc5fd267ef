"""A real bluesky-queueserver with a real Redis, on free ports, for the tests of this folder."""

import gc
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
import zmq

from inscan.callbacks.profile import BeamlineProfile, load_profile, shipped_profiles
from inscan.service.journal import Journal
from inscan.service.queue_rescans import QueueRescans
from inscan.service.rescan_states import Rescans
from inscan.service.settings import QueueServerSettings

REDIS = shutil.which("redis-server")
MANAGER = Path(sys.executable).with_name("start-re-manager")

# Plans beside those of the simulated beamline. The file of its name in INSCAN_TEST_PLANS tells a plan what to do.
PLANS = '''
import os
from pathlib import Path

import bluesky.plan_stubs as bps

_TOLD = Path(os.environ["INSCAN_TEST_PLANS"])


def rescan_for_test(proposal: str):
    """Stands for a rescan: notes that it ran, and fails when it is told to."""
    with (_TOLD / "ran").open("a") as file:
        file.write(proposal + "\\n")
    while (_TOLD / "hold").exists():
        yield from bps.sleep(0.02)
    yield from bps.null()
    if (_TOLD / "fail").exists():
        raise RuntimeError("the stage is stuck")


def forbidden_rescan(proposal: str):
    yield from bps.null()


def somebody_elses(name: str = ""):
    with (_TOLD / "ran").open("a") as file:
        file.write("somebody_elses\\n")
    yield from bps.null()
'''


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class QueueServer:
    """Redis and a manager, as processes, and what a person does with them: `person` is the official client."""

    def __init__(self, folder: Path, until: Callable[..., Any]) -> None:
        self.folder = folder
        self.until = until
        self.state = folder / "state"
        self.told = folder / "told"
        self.told.mkdir()
        public, private = (key.decode() for key in zmq.curve_keypair())
        self._redis_port, control, info = (_free_port() for _ in range(3))
        self.settings = QueueServerSettings(
            control=f"tcp://127.0.0.1:{control}",
            info=f"tcp://127.0.0.1:{info}",
            public_key=public,
        )
        startup = folder / "startup"
        shutil.copytree(shipped_profiles()["sim_xrf"].parent / "startup", startup)
        (startup / "90-test.py").write_text(PLANS)
        permissions = startup / "user_group_permissions.yaml"
        content = yaml.safe_load(permissions.read_text())
        content["user_groups"]["primary"]["allowed_plans"] += ["rescan_for_test", "somebody_elses"]
        permissions.write_text(yaml.safe_dump(content))
        self._command = [
            str(MANAGER),
            *("--zmq-control-addr", self.settings.control),
            *("--zmq-info-addr", str(self.settings.info), "--zmq-publish-console", "ON"),
            *("--redis-addr", f"127.0.0.1:{self._redis_port}", "--startup-dir", str(startup)),
            *("--console-output", "OFF"),
        ]
        self._environment = {
            **os.environ,
            "QSERVER_ZMQ_PRIVATE_KEY_FOR_SERVER": private,
            "INSCAN_STATE": str(self.state),
            "INSCAN_TEST_PLANS": str(self.told),
            "INSCAN_SIM_TIME_SCALE": "0",
            "INSCAN_SIM_CHANNELS": "2",
        }
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.person: Any = None

    def start_redis(self) -> None:
        assert REDIS is not None
        # Every change is on disk before it is acknowledged.
        self._launch(
            "redis",
            [
                REDIS,
                *("--port", str(self._redis_port), "--bind", "127.0.0.1"),
                *("--dir", str(self.folder), "--save", "", "--appendonly", "yes"),
                *("--appendfsync", "always"),
            ],
        )

    def start_manager(self) -> None:
        self._launch("manager", self._command)
        if self.person is None:
            from bluesky_queueserver_api.zmq import REManagerAPI

            self.person = REManagerAPI(
                zmq_control_addr=self.settings.control,
                zmq_public_key=self.settings.public_key,
                status_polling_period=0.1,
            )
        self.until(self._answers, 60.0)

    def _launch(self, name: str, command: list[str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )

    def _answers(self) -> bool:
        assert self._processes["manager"].poll() is None, (self.folder / "manager.log").read_text()
        with suppress(self.person.RequestTimeoutError):
            return self.person.status(reload=True)["manager_state"] == "idle"
        return False

    def kill(self, name: str) -> None:
        """End a process and all that it started, without a word."""
        process = self._processes.pop(name)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        if self.person is not None:
            self.person.close()
            self.person = None
        for name in list(self._processes):
            self.kill(name)

    def open_environment(self) -> None:
        if not self.person.status(reload=True)["worker_environment_exists"]:
            self.person.environment_open()
            self.until(lambda: self.person.status(reload=True)["worker_environment_exists"], 120.0)
            self.idle()

    def idle(self) -> None:
        self.until(lambda: self.person.status(reload=True)["manager_state"] == "idle", 60.0)

    def tidy(self) -> None:
        """As at the beginning: nothing in the queue, no lock, no history."""
        self.tell()
        self.idle()
        self.person.unlock("key")
        self.person.queue_clear()
        self.person.history_clear()
        (self.told / "ran").unlink(missing_ok=True)

    def tell(self, *words: str) -> None:
        """Tell plans to `hold` or `fail`; nothing: neither."""
        for word in ("hold", "fail"):
            path = self.told / word
            path.touch() if word in words else path.unlink(missing_ok=True)

    @property
    def ran(self) -> list[str]:
        """What plans have run, in their order."""
        path = self.told / "ran"
        return path.read_text().split() if path.exists() else []

    def items(self) -> list[dict[str, Any]]:
        return self.person.queue_get(reload=True)["items"]

    def add_somebody_elses(self) -> str:
        from bluesky_queueserver_api import BPlan

        added = self.person.item_add(BPlan("somebody_elses"), user="her", user_group="primary")
        return added["item"]["item_uid"]


# First words of the names of the official client's threads.
_CLIENTS = {"QServer", "QS", "RM", "RE"}


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


@pytest.fixture(scope="module", autouse=True)
def nothing_left_in_the_end(until: Any) -> Iterator[None]:
    """No process that the tests of a file share is left; nor what the official client leaves to the garbage collector
    (its ZeroMQ contexts, which warn in whatever test it comes to)."""
    before = _children()
    yield
    until(lambda: not {one.name.split()[0] for one in threading.enumerate()} & _CLIENTS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    assert not _children() - before


@pytest.fixture(autouse=True)
def nothing_left_behind(until: Any) -> Iterator[None]:
    """No thread is left; processes are shared by all tests of a file, and some of these tests start them again."""
    before = set(threading.enumerate())
    yield
    until(lambda: not set(threading.enumerate()) - before, 5.0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, until: Any) -> Iterator[QueueServer]:
    if REDIS is None or not MANAGER.exists():
        missing = "redis-server" if REDIS is None else "start-re-manager"
        pytest.skip(f"no {missing} on this machine: install redis-server and bluesky-queueserver")
    found = QueueServer(tmp_path_factory.mktemp("queueserver"), until)
    try:
        found.start_redis()
        found.start_manager()
        yield found
    finally:
        found.close()


@pytest.fixture
def opened(server: QueueServer) -> Iterator[QueueServer]:
    """The server with its environment open and nothing in its queue."""
    server.open_environment()
    server.tidy()
    yield server
    server.tidy()


class Proposals:
    """A journal with proposals, and the thread that brings them into the queue."""

    def __init__(self, folder: Path, server: QueueServer) -> None:
        self.journal = Journal(folder / "journal.db")
        self.rescans = Rescans(self.journal, [profile("rescan_for_test")])
        self._server = server
        self._threads: list[QueueRescans] = []

    def approve(self, name: str, **more: Any) -> str:
        """A proposal that somebody has approved."""
        region = {
            "slow_range": [0.0, 2.0],
            "fast_range": [0.0, 2.0],
            "step": [0.1, 0.1],
            "area_um2": 4.0,
            **dict.fromkeys(("time_s", "exposure_s", "dose"), 1.0),
        }
        body = {
            "run_uid": f"survey-of-{name}",
            "profile": "sim_xrf",
            "mode": "auto",
            "motors": ["sample_y", "sample_x"],
            "units": ["um", "um"],
            "step": [0.1, 0.1],
            "survey_step": [0.5, 0.5],
            "context": {},
            "regions": [{**region, "label": "1-Fe_K"}, {**region, "label": "2"}],
            **more,
        }
        self.journal.add_proposal({"id": name, "state": "approved", **body})
        return name

    def start(self, plan: str = "rescan_for_test", **settings: Any) -> QueueRescans:
        """The thread; only one runs at a time."""
        self.stop()
        given, known = self._server.settings.model_copy(update=settings), profile(plan)
        thread = QueueRescans(
            given,
            self.journal,
            Rescans(self.journal, [known]),
            [known],
            period_s=0.1,
            report_s=0.3,
            pause_s=(0.2, 0.5),
        )
        thread.start()
        self._threads.append(thread)
        return thread

    def stop(self) -> None:
        for thread in self._threads:
            thread.stop(10.0)
            assert not thread.alive
        self._threads.clear()

    def close(self) -> None:
        self.stop()
        self.journal.close()

    def __getitem__(self, name: str) -> dict[str, Any]:
        return next(one for one in self.journal.proposals() if one["id"] == name)

    def becomes(self, name: str, state: str, reason: str = "") -> dict[str, Any]:
        """Wait for a state and words of its reason; for `queued`, until its item was seen."""
        reason = reason or ("item " if state == "queued" else "")

        def arrived() -> bool:
            return self[name]["state"] == state and reason in self[name]["reason"]

        try:
            self._server.until(arrived, 20.0)
        except AssertionError as error:
            now = self._threads[0].told([self[name]])[0] if self._threads else self[name]
            told = {key: now.get(key) for key in ("state", "reason", "queue", "history")}
            raise AssertionError(f"{told} is not {state}: {reason}") from error
        return self[name]

    def says(self, name: str, words: str) -> None:
        """Wait for what people are told of a proposal, which is still approved."""
        shown: list[str] = []

        def heard() -> bool:
            shown[:] = [str(self._threads[0].told([self[name]])[0].get("queue"))]
            return words in shown[0]

        try:
            self._server.until(heard, 20.0)
        except AssertionError as error:
            raise AssertionError(f"{shown[0]!r} does not say {words!r}") from error


@pytest.fixture
def proposals(tmp_path: Path, server: QueueServer) -> Iterator[Proposals]:
    found = Proposals(tmp_path, server)
    yield found
    found.close()


def profile(plan: str) -> BeamlineProfile:
    """The simulated beamline, whose rescans go through the queue."""
    content = load_profile("sim_xrf").model_dump(mode="json")
    content["rescan"] |= {"through": "queue", "plan": plan, "mode": "auto"}
    return BeamlineProfile.model_validate(content)
