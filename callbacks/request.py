"""One question to a running service, for the command line."""

import json
import os
import time
import uuid
from pathlib import Path
from typing import Any

from inscan.callbacks.approver_pass import with_key
from inscan.callbacks.link import SERVICE_FILE, Link, Location, default_state_dir, locate
from inscan.callbacks.wire import pack, unpack

ASK_INTERVAL = 2.0  # seconds before an unanswered request is repeated


class NoServiceError(ConnectionError):
    """No service answers; says where it was looked for and what to do."""


class RequestRefusedError(RuntimeError):
    """The service answered that it will not, or cannot; says why."""


def request(
    where: str | Path | None, op: str, *, timeout: float = 5.0, **fields: Any
) -> dict[str, Any]:
    """Ask the service and wait for its reply.

    Parameters
    ----------
    where : str, Path or None
        Address (``tcp://...``) or state folder of the service; None is the default state folder.
    op : str
        Name of the operation.
    timeout : float
        Seconds to wait for the reply.
    **fields
        Arguments of the operation, plain data.

    Returns
    -------
    dict
        The reply without its ``ok``.

    Raises
    ------
    NoServiceError
        If none answers in time, or it lets nobody in with this pass.
    RequestRefusedError
        If the service refuses.
    PassError
        If the service asks for a pass, or the operation for an approver's key, and there is none that can be used.
    """
    explicit = str(where) if where is not None and "://" in str(where) else None
    state_dir = default_state_dir() if where is None or explicit else Path(where)
    location = locate(state_dir, explicit=explicit, profile=None)
    fields = with_key(op, fields, state_dir, location.address, given=explicit is not None)
    name = uuid.uuid4().hex
    deadline = time.monotonic() + timeout
    trouble = None
    link = Link()
    try:
        link.connect(location.address, location.key)
        ask_at = 0.0
        while (now := time.monotonic()) < deadline:
            # Asked again when no answer comes; the service does it once, however often it is asked.
            if now >= ask_at and link.send("REQUEST", {"id": name, "op": op}, pack(fields)):
                ask_at = now + ASK_INTERVAL
            # Until the connection stands, sending says no.
            link.wait(max(0.0, min(max(ask_at - now, 0.05), deadline - now)))
            for message in link.messages():
                if message.kind == "ERR":
                    raise RequestRefusedError(str(message.header.get("message")))
                if message.kind == "REPLY" and message.header.get("id") == name and message.chunks:
                    return _reply(op, unpack(message.chunks[0]))
            trouble = link.trouble
            if trouble is not None and trouble.sure:
                break
    finally:
        link.close()
    if trouble is not None:
        raise NoServiceError(f"{trouble.text}; that address is from {location.source}")
    raise NoServiceError(_absence(location, state_dir, timeout))


def _reply(op: str, reply: Any) -> dict[str, Any]:
    if not isinstance(reply, dict):
        raise RequestRefusedError(f"the service answered {op!r} with a {type(reply).__name__}")
    if not reply.pop("ok", False):
        raise RequestRefusedError(str(reply.get("reason") or f"the service refused {op!r}"))
    return reply


def _absence(location: Location, state_dir: Path, timeout: float) -> str:
    text = (
        f"no service answered at {location.address} within {timeout:g} s (from {location.source})"
    )
    path = state_dir / SERVICE_FILE
    try:
        pid = int(json.loads(path.read_text(encoding="utf-8"))["pid"])
        os.kill(pid, 0)
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        pass
    except (ValueError, KeyError, TypeError, ProcessLookupError):
        text += f"; {path} was left by a service that is gone"
    return text + ". Start one with `inscan serve`, or name the one that runs with --state"
