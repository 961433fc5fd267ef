"""Which boot of this machine this is, and a clock that never jumps."""

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
