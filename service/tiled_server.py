"""A Tiled server of our own: one child process, its files in the state directory, its key readable by us alone."""

import http.client
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import SecretStr

from inscan.service.tiled_http import TiledHTTP

_KEY_VARIABLE = "TILED_SINGLE_USER_API_KEY"
_LOG_LIMIT_BYTES = 8 << 20
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
_log = logging.getLogger(__name__)


class TiledServerError(RuntimeError):
    """The embedded Tiled did not come up; the message says why and where its log is."""


class EmbeddedTiled:
    """Tiled as a child process on this machine's loopback.

    Everything it writes is in `state_dir/tiled`: started again on the same directory it serves what was there. A
    process that dies is started again, with growing pauses; it never outlives the one that started it.

    Parameters
    ----------
    state_dir : Path
        State directory of the service; it exists.
    port : int
        0 takes any free port, and keeps it for as long as this object lives.
    api_key : str or None
        None takes the one in `state_dir/tiled/api_key` (mode 0600), made once from 256 random bits.
    readable : sequence of Path
        Folders from which registered files may be read, besides what Tiled writes itself.
    """

    def __init__(
        self,
        state_dir: Path,
        port: int = 0,
        api_key: str | None = None,
        readable: Sequence[Path] = (),
    ) -> None:
        self.directory = Path(state_dir).resolve() / "tiled"
        self.log_path = self.directory / "tiled.log"
        self._wanted_port = port
        self._readable = [Path(folder).resolve() for folder in readable]
        self._given_key = api_key
        self._address: tuple[str, int] | None = None
        self._key: SecretStr | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._keeper: threading.Thread | None = None
        self._listener: socket.socket | None = None
        self._log_start = 0
        self.restarts = 0

    @property
    def uri(self) -> str:
        """Address without the key, for example `http://127.0.0.1:41234`."""
        if self._address is None:
            raise TiledServerError("the embedded Tiled has not been started: call start() first")
        return f"http://{self._address[0]}:{self._address[1]}"

    @property
    def api_key(self) -> SecretStr:
        """The key; its text is not in `repr` and belongs in no log."""
        if self._key is None:
            raise TiledServerError("the embedded Tiled has not been started: call start() first")
        return self._key

    @property
    def alive(self) -> bool:
        """Whether the process runs; a server that is just being started again says no."""
        process = self._process
        return process is not None and process.poll() is None

    def start(self, deadline_s: float = 90.0) -> str:
        """Start the process and wait until it answers and has the containers `raw` and `processed`.

        Returns
        -------
        str
            Its address, as `uri`.

        Raises
        ------
        TiledServerError
            When the port is taken, the directory cannot be written, or the process ends or does not answer in time.
        """
        try:
            self.directory.mkdir(mode=0o700, exist_ok=True)
            self._key = SecretStr(self._given_key or read_or_make_key(self.directory / "api_key"))
            config = self._write_config()
            self._listener = _bind(self._wanted_port)
        except OSError as error:
            raise TiledServerError(
                f"Tiled cannot be started in {self.directory} on port {self._wanted_port}: {error}; "
                "choose another `tiled.port` (0 takes any free one) or state directory"
            ) from error
        self._address = self._listener.getsockname()[:2]
        spawned = threading.Event()
        self._keeper = threading.Thread(
            target=self._keep, args=(config, spawned), name="tiled-keeper", daemon=True
        )
        self._keeper.start()
        spawned.wait()
        deadline = time.monotonic() + deadline_s
        try:
            self._await_answer(deadline)
            with TiledHTTP(
                self.uri, self._key, timeout_s=max(1.0, deadline - time.monotonic())
            ) as tiled:
                tiled.ensure_catalogs()
        except BaseException:
            self.stop(grace_s=2.0)
            raise
        return self.uri

    def stop(self, grace_s: float = 10.0) -> None:
        """End the process: SIGTERM, and SIGKILL after `grace_s` seconds. Harmless when it does not run."""
        with self._lock:
            self._stopping.set()
            process = self._process
        keeper = self._keeper
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
        if keeper is None:
            return
        keeper.join(grace_s)
        if keeper.is_alive() and process is not None:
            process.kill()
            keeper.join()
        self._keeper = None

    def __enter__(self) -> "EmbeddedTiled":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _keep(self, config: Path, spawned: threading.Event) -> None:
        # The kernel's "parent died" signal follows the thread that started the child, so one thread starts them all
        # and lives as long as we do.
        pause = _FIRST_PAUSE_S
        while True:
            with self._lock:
                if self._stopping.is_set():
                    spawned.set()
                    return
                started = time.monotonic()
                try:
                    self._process = self._spawn(config)
                except OSError as error:
                    self._note(f"could not start: {error}")
                    self._process = None
            spawned.set()
            if self._process is not None:
                code = self._process.wait()
                self._note(f"process ended with status {code}")
            if time.monotonic() - started > 10 * _LONGEST_PAUSE_S:
                pause = _FIRST_PAUSE_S
            if self._stopping.wait(pause):
                return
            pause = min(2 * pause, _LONGEST_PAUSE_S)
            self.restarts += 1

    def _spawn(self, config: Path) -> subprocess.Popen[bytes]:
        assert self._address is not None and self._key is not None
        listener = self._listener or _bind(self._address[1])
        self._listener = None
        if self.log_path.exists() and self.log_path.stat().st_size > _LOG_LIMIT_BYTES:
            os.replace(self.log_path, self.log_path.with_suffix(".log.1"))
        self._log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
        try:
            with self.log_path.open("ab") as log:
                return subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "inscan.service.tiled_child",
                        str(config),
                        str(listener.fileno()),
                        str(os.getpid()),
                    ],
                    env={**os.environ, _KEY_VARIABLE: self._key.get_secret_value()},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[listener.fileno()],
                    # Ctrl-C in a terminal is for whoever owns the terminal; it ends us in its own order.
                    start_new_session=True,
                )
        finally:
            # Ours must go: with it open, connections to a dead server would wait instead of failing.
            listener.close()

    def _await_answer(self, deadline: float) -> None:
        assert self._address is not None
        connection = http.client.HTTPConnection(
            *self._address, timeout=max(0.1, deadline - time.monotonic())
        )
        # The socket has been listening since before the process began: the connection waits in its queue, and is
        # answered as soon as there is a server, or reset when the process ends.
        try:
            connection.request("GET", "/healthz")
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            raise TiledServerError(
                f"Tiled did not answer at {self.uri}: {error}; {self._last_words()}"
            ) from error
        finally:
            connection.close()
        if status != 200:
            raise TiledServerError(f"Tiled answers {status} at {self.uri}; {self._last_words()}")

    def _last_words(self) -> str:
        try:
            with self.log_path.open("rb") as log:
                log.seek(self._log_start)
                lines = log.read().decode(errors="replace").splitlines()
        except OSError:
            lines = []
        said = [line.strip() for line in lines if line.strip()]
        errors = [line for line in said if "Error:" in line][-1:]
        return f"its log {self.log_path} says: {' / '.join(errors or said[-3:]) or 'nothing'}"

    def _note(self, text: str) -> None:
        try:
            with self.log_path.open("a", encoding="utf-8") as log:
                log.write(f"[inscan {time.strftime('%Y-%m-%dT%H:%M:%S')}] {text}\n")
        except OSError as error:
            # A full disk must not end the thread that starts Tiled again.
            _log.warning("Tiled: %s (its log cannot be written: %s)", text, error)

    def _write_config(self) -> Path:
        data = self.directory / "data"
        data.mkdir(mode=0o700, exist_ok=True)
        config = {
            "catalog": {
                "uri": f"sqlite:///{self.directory / 'catalog.db'}",
                "writable_storage": [str(data), f"duckdb:///{self.directory / 'tables.duckdb'}"],
                "readable_storage": [str(folder) for folder in self._readable],
            },
            # Without it, run.documents() of bluesky's client is refused with 406.
            "media_types": {
                "BlueskyRun": {
                    "application/json-seq": "bluesky_tiled_plugins.exporters:json_seq_exporter"
                }
            },
        }
        path = self.directory / "config.yml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        return path


def read_or_make_key(path: Path) -> str:
    """Read the key in `path`; make it, readable by its owner alone, when there is none."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text(encoding="ascii").strip()
    key = secrets.token_hex(32)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(key + "\n")
        file.flush()
        os.fsync(file.fileno())
    return key


def _bind(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener
