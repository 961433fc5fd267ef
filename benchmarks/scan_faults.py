"""What torture_scan.py does to inscan while a RunEngine scans: each fault, how it is put on and how it is taken off.

``scan_faults.py ADDRESS ...`` sends rubbish to these addresses until it is ended.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
import zmq

from inscan.callbacks.document_log import DocumentLog
from inscan.callbacks.profile import shipped_profiles
from inscan.service.keys import Keyring

SMALL = Path(__file__).resolve().parent.parent / "tests/integration/broker/small_service.py"
ANY = "tcp://127.0.0.1:0"
NOBODY = "tcp://127.0.0.1:1"
BACKLOG = 1000
_READY_S = 90.0
_LOG_BYTES = 256 * 1024
_DISK_BYTES = 256 * 2**20
STALLS, STALL_S = 2, 0.25


class Service:
    """`inscan serve` with one worker that only adds up, and its Tiled: real processes."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.state = folder / "state"
        self._log = folder / "service.log"
        self._config = folder / "inscan.yaml"
        given = {
            "state_dir": str(self.state),
            "profiles": ["sim_xrf", "sim_txm"],
            **dict.fromkeys(("ingest", "broker", "spool"), ANY),
            "min_free": 0,
            "rescan": "off",
            **settings,
        }
        self._config.write_text(yaml.safe_dump(given))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it unless it runs, and wait until it is ready."""
        if self.process is not None and self.process.poll() is None:
            return
        (self.state / "service.json").unlink(missing_ok=True)
        command = [sys.executable, str(SMALL), str(self._config), "double"]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + _READY_S
        while not (self.state / "service.json").exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the service does not start: {self._log}")
            threading.Event().wait(0.05)

    @property
    def addresses(self) -> dict[str, str]:
        """Where it listens."""
        content = json.loads((self.state / "service.json").read_text())
        return {name: content[name] for name in ("ingest", "broker", "spool")}

    def child(self, word: str) -> psutil.Process | None:
        """The child process with that word in its command line, if it lives."""
        if self.process is None or self.process.poll() is not None:
            return None
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if word in " ".join(child.cmdline()):
                    return child
            except psutil.NoSuchProcess:
                continue
        return None

    def signal(self, number: int, word: str = "") -> None:
        """Send a signal to the service, or to a child of it."""
        target = self.child(word) if word else self.process
        if target is not None:
            target.send_signal(number)

    def kill(self) -> None:
        """End it as a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def close(self) -> None:
        """End it in order, or by force."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.kill()


class Proxy:
    """A TCP connection that can be cut, or go quiet without a word."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.target = ""
        self.quiet = threading.Event()
        self._cut = False
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Reset every connection, and refuse new ones until `mend`."""
        self._cut = True
        while self._open:
            self._open.pop().close()

    def mend(self) -> None:
        """Let new connections through; old ones that went quiet are gone."""
        self.cut()
        self._cut = False
        self.quiet.clear()

    def _accept(self) -> None:
        while True:
            ours, _ = self._listener.accept()
            try:
                if self._cut:
                    raise ConnectionRefusedError("cut")
                host, _, port = self.target.removeprefix("tcp://").rpartition(":")
                theirs = socket.create_connection((host, int(port)), timeout=5)
            except (OSError, ValueError):
                ours.close()
                continue
            self._open += [ours, theirs]
            for one, other in ((ours, theirs), (theirs, ours)):
                threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                while self.quiet.is_set():
                    threading.Event().wait(0.05)
                sink.sendall(data)
        except OSError:
            pass  # cut: that is what it is for
        finally:
            for one in (source, sink):
                one.close()


@dataclass
class Stage:
    """What faults act upon: the service, and the state folder of the RunEngine's process."""

    service: Service
    host: Path
    proxy: Proxy

    @property
    def log(self) -> Path:
        """Folder of the document logs."""
        return self.host / "log"


Act = Callable[[Stage], object]


def nothing(stage: Stage) -> None:
    """Do nothing."""
    del stage


@dataclass(frozen=True)
class Fault:
    """One fault: `around` all scans, `during` each (half a second after it began), `after` each.

    Attributes
    ----------
    wait : bool
        The connection is to stand before a scan begins.
    key : Path or None
        The pass that the RunEngine's process has.
    needs : str
        What else it cannot be done without: ``mounts``.
    """

    name: str
    how: str
    address: Callable[[Stage], str] = lambda stage: stage.service.addresses["ingest"]
    around: Callable[[Stage], Any] | None = None
    before: Act = nothing
    during: Act = nothing
    after: Act = nothing
    wait: bool = True
    needs: str = ""
    key: Path | None = None
    settings: tuple[tuple[str, Any], ...] = ()


def _gone(stage: Stage) -> None:
    shutil.rmtree(stage.log, ignore_errors=True)
    stage.log.write_text("in the way")


def _back(stage: Stage) -> None:
    if stage.log.is_file():
        stage.log.unlink()


@contextmanager
def small_disk(stage: Stage) -> Iterator[None]:
    """A file system of its own for the logs, of a quarter of a megabyte."""
    stage.log.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_LOG_BYTES}", "tmpfs", str(stage.log)]
    subprocess.run(mount, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(stage.log)], check=True)


@contextmanager
def own_disk(stage: Stage) -> Iterator[None]:
    """A disk of its own for the logs: a file system in a file, which can be made to hang."""
    image = stage.host.with_name("disk")
    stage.log.mkdir(parents=True, exist_ok=True)
    with image.open("wb") as file:
        file.truncate(_DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(stage.log)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(stage.log)], check=True)


def _stall(stage: Stage) -> None:
    """Have writes hang: whoever writes waits in the kernel."""
    for _ in range(STALLS):
        subprocess.run(["fsfreeze", "-f", str(stage.log)], check=True)
        threading.Event().wait(STALL_S)
        subprocess.run(["fsfreeze", "-u", str(stage.log)], check=True)
        threading.Event().wait(STALL_S / 2)


def _fill(stage: Stage) -> None:
    with (stage.log / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(1024)):
                pass
        except OSError:
            return  # full


def _empty(stage: Stage) -> None:
    for path in stage.log.iterdir():
        path.unlink()


def _read_only(stage: Stage, mode: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{mode}", str(stage.log)], check=True)


@contextmanager
def rubbish(stage: Stage) -> Iterator[None]:
    """A process that sends rubbish to all ports as fast as it can."""
    command = [sys.executable, str(Path(__file__)), *stage.service.addresses.values()]
    process = subprocess.Popen(command)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def backlog(stage: Stage) -> None:
    """Have at least a thousand runs of a dead process wait to be sent."""
    stage.log.mkdir(parents=True, exist_ok=True)
    missing = BACKLOG - sum(1 for _ in stage.log.glob("*.log"))
    if missing < BACKLOG // 4:
        return
    log = DocumentLog(stage.log)
    data = {f"value_{number:02d}": float(number) for number in range(28)}
    for _ in range(missing):
        run, stream = str(uuid.uuid4()), str(uuid.uuid4())
        log.append("start", {"uid": run, "time": 0.0, "beamline_id": "nobody's"})
        log.append("descriptor", {"uid": stream, "run_start": run, "name": "primary", "time": 0.0})
        for number in range(30):
            event = {"uid": str(uuid.uuid4()), "descriptor": stream, "seq_num": number + 1}
            log.append("event", {**event, "time": 0.0, "data": data, "timestamps": data})
        log.append("stop", {"uid": str(uuid.uuid4()), "run_start": run, "time": 0.0})
        for file in log.take_new():
            file.close()


def broken_profile(folder: Path) -> Path:
    """The shipped profile of the map with keys that no detector has."""
    text = shipped_profiles()["sim_xrf"].read_text(encoding="utf-8")
    path = folder / "broken.yaml"
    path.write_text(text.replace("_total_rbv", "_nowhere").replace("sclr_i0", "no_i0"))
    return path


def strangers_pass(folder: Path) -> Path:
    """A pass for another service."""
    keyring = Keyring(folder / "another")
    keyring.make_server()
    return keyring.new("stranger", "client", folder / "stranger.pass")


def faults(folder: Path) -> list[Fault]:
    """All of them, in the order of the table."""
    stop, go, kill = signal.SIGSTOP, signal.SIGCONT, signal.SIGKILL
    profile = ("profiles", [str(broken_profile(folder)), "sim_txm"])

    def through(stage: Stage) -> str:
        stage.proxy.target = stage.service.addresses["ingest"]
        return stage.proxy.address

    def to(word: str, number: int) -> Act:
        return lambda stage: stage.service.signal(number, word)

    return [
        Fault("nothing", "the service takes what is sent"),
        Fault("no service", "nobody listens at the address", lambda stage: NOBODY, wait=False),
        Fault(
            "service killed",
            "kill -9 in the middle of each scan, started again after it",
            during=lambda stage: stage.service.kill(),
            after=lambda stage: stage.service.start(),
        ),
        Fault("service frozen", "SIGSTOP in the middle", during=to("", stop), after=to("", go)),
        Fault("worker killed", "kill -9 of the worker", during=to("small_recipes", kill)),
        Fault("Tiled killed", "kill -9 of the server", during=to("tiled_child", kill)),
        Fault(
            "Tiled frozen",
            "SIGSTOP of the server",
            during=to("tiled_child", stop),
            after=to("tiled_child", go),
        ),
        Fault(
            "disk full",
            f"logs on a tmpfs of {_LOG_BYTES // 1024} kB, filled up in the middle",
            around=small_disk,
            during=_fill,
            after=_empty,
            needs="mounts",
        ),
        Fault(
            "log folder read-only",
            "its file system mounted read-only before each scan",
            around=small_disk,
            before=lambda stage: _read_only(stage, "ro"),
            after=lambda stage: (_read_only(stage, "rw"), _empty(stage)),
            needs="mounts",
        ),
        Fault(
            "log folder gone",
            "deleted in the middle, a file in its place",
            during=_gone,
            after=_back,
        ),
        Fault(
            "disk stalls",
            f"from the middle on, writes to the logs' disk hang {STALLS} times for {STALL_S} s",
            around=own_disk,
            during=_stall,
            needs="mounts",
        ),
        Fault(
            "network cut",
            "connection reset in the middle, refused until after the scan",
            address=through,
            during=lambda stage: stage.proxy.cut(),
            after=lambda stage: stage.proxy.mend(),
        ),
        Fault(
            "network half open",
            "from the middle on nothing comes through, without a word",
            address=through,
            during=lambda stage: stage.proxy.quiet.set(),
            after=lambda stage: stage.proxy.mend(),
        ),
        Fault("rubbish", "random bytes and frames to every port, all the time", around=rubbish),
        Fault(
            "backlog",
            f"{BACKLOG} runs of an earlier process wait to be sent",
            before=backlog,
        ),
        Fault(
            "wrong key",
            "the service asks for keys and does not know the host's",
            key=strangers_pass(folder),
            wait=False,
            settings=(("curve", True),),
        ),
        Fault(
            "broken profile",
            "the service's profile names data keys that no detector has",
            settings=(profile,),
        ),
    ]


def send_rubbish(addresses: list[str]) -> None:
    """Raw bytes and ZeroMQ frames to each address, until killed."""
    rng, context = random.Random(1), zmq.Context()
    dealers = [context.socket(zmq.DEALER) for _ in addresses]
    for dealer, address in zip(dealers, addresses, strict=True):
        dealer.setsockopt(zmq.SNDHWM, 100)
        dealer.connect(address)
    while True:
        for dealer, address in zip(dealers, addresses, strict=True):
            frames = [rng.randbytes(rng.choice((0, 2, 4, 60, 5000))) for _ in range(5)]
            if rng.random() < 0.5:
                frames[:3] = [b"XI", b"\x02\x00", b"DOC"]
            try:
                dealer.send_multipart(frames, zmq.NOBLOCK)
                host, _, port = address.removeprefix("tcp://").rpartition(":")
                with socket.create_connection((host, int(port)), timeout=1) as raw:
                    raw.sendall(rng.randbytes(rng.choice((1, 64, 4096))))
            except (OSError, zmq.Again):
                continue


def possible(fault: Fault) -> bool:
    """Whether this process may do what the fault needs."""
    tools = ("mount", "umount", "mkfs.ext4", "fsfreeze")
    return not fault.needs or (os.geteuid() == 0 and all(shutil.which(tool) for tool in tools))


if __name__ == "__main__":
    send_rubbish(sys.argv[1:])
