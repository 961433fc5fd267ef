"""A network namespace with a veth pair whose link can be taken down: a cable that is pulled. Needs root."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CLONE_NEWNET = 0x40000000


def can_have_space() -> bool:
    """Whether this process may make network namespaces."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    probe = f"inscan-probe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True).returncode == 0
    if made:
        subprocess.run(["ip", "netns", "delete", probe], check=True)
    return made


class Space:
    """The namespace; `make` it first.

    Attributes
    ----------
    here : str
        Address at which the inside reaches the outside.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.here = "10.213.77.1"
        self._outer, self._inner = f"{name[-10:]}o", f"{name[-10:]}i"

    def make(self) -> None:
        """Make the namespace and the link."""
        _ip("netns", "add", self.name)
        _ip("link", "add", self._outer, "type", "veth", "peer", "name", self._inner)
        _ip("link", "set", self._inner, "netns", self.name)
        _ip("addr", "add", f"{self.here}/30", "dev", self._outer)
        _ip("link", "set", self._outer, "up")
        for words in (
            f"addr add 10.213.77.2/30 dev {self._inner}",
            f"link set {self._inner} up",
            "link set lo up",
        ):
            _ip("-n", self.name, *words.split())

    def down(self) -> None:
        """Pull the cable."""
        _ip("link", "set", self._outer, "down")

    def up(self) -> None:
        """Put it back."""
        _ip("link", "set", self._outer, "up")

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Processes started meanwhile by this thread live in the namespace."""
        libc = ctypes.CDLL(None, use_errno=True)
        with (
            Path("/proc/self/ns/net").open("rb") as home,
            Path(f"/run/netns/{self.name}").open("rb") as away,
        ):
            _enter(libc, away.fileno())
            try:
                yield
            finally:
                _enter(libc, home.fileno())

    def remove(self) -> None:
        """Remove namespace and link, as far as they are there."""
        subprocess.run(["ip", "link", "delete", self._outer], capture_output=True)
        subprocess.run(["ip", "netns", "delete", self.name], capture_output=True)


def _enter(libc: ctypes.CDLL, file: int) -> None:
    if libc.setns(file, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"cannot enter a network namespace: {os.strerror(number)}")


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
