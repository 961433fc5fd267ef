"""The approver's key of whoever asks: from a pass of his own, or the one in the service's state folder.

It is the one secret that crosses loopback in the clear, so it goes to nobody else's program: not to an address that
was given by hand, and not to a port that another account listens at.
"""

import ipaddress
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from inscan.callbacks.link import SERVICE_FILE
from inscan.callbacks.pass_file import PassError, read_pass

__all__ = ["APPROVE_PASS", "ENVIRONMENT", "GATED", "with_key"]

GATED = frozenset({"approve", "refuse", "retry", "quarantine"})
"""Requests that need an approver's key. Aborting a plan is none of them: that is the RunEngine's, and asks nobody."""

ENVIRONMENT = "INSCAN_APPROVE_PASS"
"""Names the pass file of an approver."""

APPROVE_PASS = Path("keys") / "approve.pass"
"""Within a state folder: the approver's pass of whoever may read that folder."""

_LISTENS = "0A"


def with_key(
    op: str, fields: Mapping[str, Any], state_dir: Path, address: str, *, given: bool
) -> dict[str, Any]:
    """Fields of a request, with `key` where the request needs one and the caller has one.

    Parameters
    ----------
    op : str
    fields : mapping
    state_dir : Path
        State folder of the service.
    address : str
        Where the request goes.
    given : bool
        Whether the address was given by hand: then only the pass that the environment names goes there.

    Returns
    -------
    dict
        Without `key` where the caller has none; the service then says what is missing.

    Raises
    ------
    PassError
        For a pass that cannot be used or is no approver's, and where another account listens at the address.
    """
    if op not in GATED:
        return dict(fields)
    named = os.environ.get(ENVIRONMENT)
    path = Path(named) if named else state_dir / APPROVE_PASS
    if not named and (
        given or not (state_dir / SERVICE_FILE).is_file() or not os.access(path, os.R_OK)
    ):
        return dict(fields)
    found = read_pass(path)
    if found.role != "approver":
        raise PassError(
            f"{path} is a {found.role}'s pass; expected an approver's: `inscan keys new NAME --role approver` makes one"
        )
    _check_listener(address, path)
    return {**fields, "key": found.secret}


def _check_listener(address: str, path: Path) -> None:
    """Refuse to give a key to a port of this machine that another account, not root, listens at."""
    parts = urlsplit(address)
    host, port = parts.hostname or "", parts.port or 0
    if not _is_loopback(host):
        return
    trusted = {0, os.getuid(), path.stat().st_uid}
    others = {uid for uid in _listeners(port) if uid not in trusted}
    if others:
        raise PassError(
            f"port {port} of this machine belongs to a program of another account (uid {min(others)}), which would "
            f"learn the approver's key: see with `ss -ltnp` what it is, and whether the service of {path} runs"
        )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listeners(port: int) -> Iterator[int]:
    """Accounts that listen at a port on this machine; none where the system does not tell."""
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        try:
            lines = table.read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, local, _, state, _, _, _, uid, *_ = line.split()
            if state == _LISTENS and int(local.rpartition(":")[2], 16) == port:
                yield int(uid)
