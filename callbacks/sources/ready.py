"""Waiting until documents will arrive, before the first of them is sent."""

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from inscan.callbacks.connection import Connection
from inscan.callbacks.request import NoServiceError, request
from inscan.callbacks.shipper import ServiceGone
from inscan.callbacks.sources.bluesky_0mq import PROBE

__all__ = ["NotReadyError", "wait_ready"]

_LOOK_S = 0.2


class NotReadyError(TimeoutError):
    """Sources were not ready in time; says which, and what is known of them."""


def wait_ready(
    where: Connection | str | Path | None = None,
    *,
    timeout: float = 30.0,
    sources: Iterable[str] = (),
    publisher: Callable[[str, dict[str, Any]], Any] | None = None,
) -> list[dict[str, Any]]:
    """Wait until the service's sources are ready, for a beamline's startup.

    Parameters
    ----------
    where : Connection, str, Path or None
        Connection, address (``tcp://...``) or state folder of the service; None is the default state folder.
    timeout : float
        Seconds to wait at most.
    sources : iterable of str
        Beginnings of the labels to wait for, such as ``0MQ``; by default all sources of the service.
    publisher : callable, optional
        A `bluesky.callbacks.zmq.Publisher`: empty documents are sent with it until one arrives, which proves the
        whole way from this very publisher.

    Returns
    -------
    list of dict
        The sources, as `inscan status --json` shows them.

    Raises
    ------
    NotReadyError
        If they are not ready in time, or the service has no such source.
    """
    deadline = time.monotonic() + timeout
    wanted = tuple(sources)
    came_before: dict[str, int] | None = None
    problem = "the service has not answered"
    pause = threading.Event()
    while (left := deadline - time.monotonic()) > 0:
        try:
            rows = _ask(where, min(left, 5.0))
        except (NoServiceError, ServiceGone) as error:
            problem = str(error)
            pause.wait(_LOOK_S)
            continue
        found = [row for row in rows if not wanted or row["label"].startswith(wanted)]
        missing = [want for want in wanted if not any(r["label"].startswith(want) for r in found)]
        waiting = [row for row in found if not row["ready"]]
        problem = _problem(missing, waiting, found)
        if not problem and publisher is None:
            return found
        if not problem and publisher is not None:
            probes = {row["label"]: row["counts"].get("probes", 0) for row in found}
            if came_before is None:
                came_before = probes
            elif any(probes[label] > count for label, count in came_before.items()):
                return found
            publisher(PROBE, {})
            problem = (
                "nothing that this publisher sent has arrived; is it connected to the same proxy?"
            )
        pause.wait(min(_LOOK_S, max(0.0, left)))
    raise NotReadyError(f"not ready after {timeout:g} s: {problem}")


def _ask(where: Connection | str | Path | None, timeout: float) -> list[dict[str, Any]]:
    if not isinstance(where, Connection):
        return request(where, "sources", timeout=timeout)["sources"]
    reply = where.request("sources", timeout=timeout).result(timeout + 1.0)
    if not reply.get("ok"):
        raise ServiceGone(str(reply.get("reason")))
    return reply["sources"]


def _problem(missing: list[str], waiting: list[dict[str, Any]], found: list[Any]) -> str:
    if missing:
        return f"the service has no source {missing[0]!r}; name it under `sources` in its settings"
    if waiting:
        return "; ".join(f"{row['label']}: {row['state']}, not ready" for row in waiting)
    return "" if found else "the service has no sources; name them under `sources` in its settings"
