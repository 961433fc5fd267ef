"""A demo as a user starts it: its own process, a small sample, a folder of its own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

INSCAN = (sys.executable, "-m", "inscan.service.cli")


class Demo:
    """`inscan demo --json` in a process of its own.

    Parameters
    ----------
    out : Path
        Its folder; stdout and stderr go to files beside it.
    *arguments : str
    **variables : str
        Added to the environment.
    """

    def __init__(self, out: Path, *arguments: str, **variables: str) -> None:
        self.out = out
        self._stdout, self._stderr = out.with_suffix(".stdout"), out.with_suffix(".stderr")
        clean = {key: text for key, text in os.environ.items() if not key.startswith("INSCAN_")}
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [*INSCAN, "demo", "--json", "--out", str(out), *arguments],
                env={**clean, "OMP_NUM_THREADS": "1", "INSCAN_SIM_TIME_SCALE": "0", **variables},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )

    @property
    def stdout(self) -> str:
        return self._stdout.read_text()

    @property
    def stderr(self) -> str:
        return self._stderr.read_text()

    @property
    def answer(self) -> dict[str, Any]:
        """Its JSON, by a parser that takes no NaN."""

        def refuse(text: str) -> None:
            raise ValueError(f"{text} is not JSON")

        return json.loads(self.stdout, parse_constant=refuse)

    def family(self) -> list[psutil.Process]:
        """Its descendants, which go on bearing its folder in their command line when it is gone."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def commands(self) -> list[str]:
        """Command lines of its living descendants."""
        found = []
        for process in self.family():
            with suppress(psutil.Error):  # gone, or going, since it was listed
                found.append(" ".join(process.cmdline()))
        return found

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def wait(self, seconds: float = 90.0) -> int:
        return self.process.wait(seconds)


@pytest.fixture(scope="session")
def related() -> Callable[[Path], list[str]]:
    """`related(out)`: living processes that name a folder in their command line or environment."""

    def find(out: Path) -> list[str]:
        found = []
        for process in psutil.process_iter(["pid", "cmdline", "status", "environ"]):
            environment = (process.info["environ"] or {}).values()
            command = " ".join(process.info["cmdline"] or [])
            if str(out) in command or any(str(out) in text for text in environment):
                if process.info["status"] != psutil.STATUS_ZOMBIE:
                    found.append(f"{process.info['pid']} {command}")
        return found

    return find


@pytest.fixture(scope="session")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Measured maps of a small field: 40 um wide, 10 um high; a smooth one and one with two grains."""
    rng = np.random.default_rng(3)
    row, col = np.mgrid[:32, :128]
    grains = sum(np.exp(-((row - r) ** 2 + (col - c) ** 2) / 4.0) for r, c in ((16, 30), (14, 100)))
    path = tmp_path_factory.mktemp("sample") / "grains.npz"
    calcium = 40 + 30 * np.sin(row / 9) * np.cos(col / 14) + rng.uniform(0, 2, row.shape)
    np.savez(path, Fe=2 + 400 * grains, Ca_Ka=calcium, notes=np.array(["not a map"]))
    return path


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., Demo]]:
    """Start demos; whatever happens, none is left."""
    demos: list[Demo] = []

    def begin(out: Path, *arguments: str, **variables: str) -> Demo:
        demos.append(Demo(out, *arguments, **variables))
        return demos[-1]

    yield begin
    for demo in demos:
        if demo.process.poll() is None:
            family = demo.family()
            demo.process.kill()
            demo.process.wait()
            psutil.wait_procs(family, 20)
