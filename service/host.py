"""Which machine and which boot this is, and a clock that never jumps."""

import hashlib
import socket
import time
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boottime() -> float:
    """Seconds since this machine booted, suspended time included; unmoved by changes of the
    date."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """The kernel's identifier of the present boot: a lease written under another one is void."""
    return _BOOT_ID.read_text(encoding="ascii").strip()


def host_id() -> str:
    """One identifier for all processes that may share files: same kernel boot and same host name.

    Two containers on one machine differ in host name unless they are told to share it; a worker
    checks besides that it sees the folder before it maps anything.
    """
    return hashlib.sha256(f"{boot_id()} {socket.gethostname()}".encode()).hexdigest()[:32]
