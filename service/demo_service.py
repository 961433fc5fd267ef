"""The demo's own service: `inscan serve` as a child process, in the demo's folder, on free ports."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import yaml

_START_S = 180.0
_STOP_S = 60.0


class ServiceFailed(RuntimeError):
    """The service did not come up or went away; the message holds the end of its log."""


class DemoService:
    """`inscan serve` with one worker and a Tiled of its own.

    Parameters
    ----------
    out : Path
        The demo's folder; the state directory is `out/state`.
    profile : str
        Beamline profile, by shipped name or path.
    data_root : Path
        Folder of the detector files.
    """

    def __init__(self, out: Path, profile: str, data_root: Path) -> None:
        self.state_dir = out / "state"
        self.log_path = out / "service.log"
        self._config = out / "service.yaml"
        settings = {
            "state_dir": str(self.state_dir),
            "profiles": [profile],
            "ingest": "tcp://127.0.0.1:0",
            "broker": "tcp://127.0.0.1:0",
            "spool": "tcp://127.0.0.1:0",
            "workers": 1,
            "data_roots": [str(data_root)],
        }
        self._config.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        self._process: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        """Start the process."""
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "inscan.service.cli", "serve", str(self._config)),
                    *("--parent", str(os.getpid())),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the demo, which ends its service in order
            )

    def wait(self) -> dict[str, Any]:
        """Wait until it has written its addresses.

        Returns
        -------
        dict
            What is in `service.json`: `ingest`, `broker`, `spool`, `tiled`, `pid`.

        Raises
        ------
        ServiceFailed
            When it ends before that, or takes longer than three minutes.
        """
        file, deadline = self.state_dir / "service.json", time.monotonic() + _START_S
        pause = threading.Event()
        while not file.exists():
            if not self.alive:
                raise ServiceFailed(f"the service ended at once\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise ServiceFailed(f"no service after {_START_S:g} s\n{self.log_tail()}")
            pause.wait(0.05)
        return json.loads(file.read_text(encoding="utf-8"))

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def tiled_key(self) -> str:
        """Key of the service's Tiled; from the file that only its owner can read."""
        return (self.state_dir / "tiled" / "api_key").read_text(encoding="utf-8").strip()

    def log_tail(self, lines: int = 12) -> str:
        """The end of the service's log."""
        try:
            text = self.log_path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join([f"last lines of {self.log_path}:", *text.splitlines()[-lines:]])

    def stop(self) -> None:
        """SIGTERM, wait for the drain, SIGKILL if it must be."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
