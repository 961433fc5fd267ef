"""A Tiled server that nobody looks after but us, to be killed and started at will."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import yaml
from torture_rig import free_port


class OwnTiled:
    """A Tiled that nobody looks after but us; its files are in `folder`."""

    def __init__(self, folder: Path, readable: Path) -> None:
        self.folder = folder
        self._port = free_port()
        self.key = "0123456789abcdef" * 2
        self.uri = f"http://127.0.0.1:{self._port}"
        (folder / "data").mkdir(parents=True)
        catalog = {
            "uri": f"sqlite:///{folder / 'catalog.db'}",
            "writable_storage": [str(folder / "data"), f"duckdb:///{folder / 'tables.duckdb'}"],
            "readable_storage": [str(readable)],
        }
        (folder / "config.yml").write_text(yaml.safe_dump({"catalog": catalog}))
        self.process: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        """Start it; it listens at once and answers in seconds."""
        with socket.socket() as listener, (self.folder / "tiled.log").open("ab") as log:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self._port))
            listener.listen(128)
            command = ["-m", "inscan.service.tiled_child", str(self.folder / "config.yml")]
            self.process = subprocess.Popen(
                [sys.executable, *command, str(listener.fileno()), str(os.getpid())],
                env={**os.environ, "TILED_SINGLE_USER_API_KEY": self.key},
                stdout=log,
                stderr=log,
                pass_fds=[listener.fileno()],
            )
