"""Waiting in a plan: for what became of a run, for the service's answer. It never holds up the event loop."""

import asyncio
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any

import bluesky.plan_stubs as bps
from bluesky.run_engine import WaitForTimeoutError
from bluesky.utils import FailedPause, Msg, MsgGenerator, RunEngineControlException

from inscan.callbacks.connection import Connection

__all__ = ["STOPPING", "NoAnswer", "OutcomeTimeout", "ask", "wait", "wait_for_outcome"]

SLICE = 1.0  # seconds between looks at the service's health while waiting
ANSWER = 30.0  # seconds; a service that restarts is back by then
FRESH = 5.0  # seconds that an answer holds
STOPPING = (RunEngineControlException, FailedPause)
"""What Bluesky throws into a plan that is being stopped: never to be held up."""


class OutcomeTimeout(TimeoutError):  # noqa: N818 - a TimeoutError by its name already
    """A run's outcome did not come in time; says whether the service is there."""


class NoAnswer(ConnectionError):  # noqa: N818 - a ConnectionError by its name already
    """The service did not answer a request."""


def wait_for_outcome(
    connection: Connection, run_uid: str, timeout: float, *, lost_after: float = 60.0
) -> Generator[Msg, Any, dict[str, Any]]:
    """Wait in a plan for what inscan made of a run. Moves nothing, writes no document.

    Pausing, resuming and aborting work as anywhere; an outcome that came during a pause counts,
    however long it was.

    Parameters
    ----------
    connection : Connection
        The one subscribed to this RunEngine.
    run_uid : str
        A run of this RunEngine that has ended, or the composite of such runs
        (`inscan.callbacks.composite_uid.composite_uid`).
    timeout : float
        Seconds to wait at most.
    lost_after : float
        Seconds without any service after which waiting is given up earlier; one that restarts is back by then.

    Returns
    -------
    dict
        See `Connection.future`.

    Raises
    ------
    OutcomeTimeout
        If it did not come. In the plan, so that it may be caught there.
    """
    future = connection.future(run_uid)
    awaited = _awaited(future)
    begun = last_seen = time.monotonic()
    while not future.done():
        now = time.monotonic()
        if connection.connected:
            last_seen = now
        if now - begun >= timeout:
            raise OutcomeTimeout(f"no outcome of run {run_uid} within {timeout:g} s")
        if now - last_seen >= lost_after:
            raise OutcomeTimeout(
                f"no outcome of run {run_uid}: no inscan service for {lost_after:g} s; its "
                f"documents are in {connection.state_dir / 'log'} and go out when one runs"
            )
        yield from _wait(awaited, min(SLICE, timeout, lost_after))
    # Never the response of the wait message: after a pause that is None.
    return future.result(timeout=0)


def ask(connection: Connection, op: str, **fields: Any) -> Generator[Msg, Any, dict[str, Any]]:
    """Ask the service in a plan and wait for the reply; one from before a long pause is asked for again.

    Parameters
    ----------
    connection : Connection
    op : str
        Name of the request.
    **fields
        Its arguments, plain data.

    Returns
    -------
    dict
        The reply with ``ok``.

    Raises
    ------
    NoAnswer
        If there is none within `ANSWER` seconds, also where the question could not be sent. A service that is back by
        then is asked again.
    """
    timeout = ANSWER
    while True:
        future = connection.request(op, timeout=timeout, **fields)
        answered: list[float] = []
        future.add_done_callback(lambda _, at=answered: at.append(time.monotonic()))
        yield from wait(future, 2 * timeout)
        if not future.done():
            raise NoAnswer(f"the service has not answered {op!r} for {2 * timeout:g} s")
        error = future.exception(timeout=0)
        if error is not None:
            raise NoAnswer(f"{op!r} was not answered within {timeout:g} s: {error}") from error
        if not answered or time.monotonic() - answered[0] < FRESH:
            return future.result(timeout=0)


def wait(future: "Future[Any]", timeout: float) -> MsgGenerator[None]:
    """Wait in a plan until a future is done, at most so many seconds."""
    yield from _wait(_awaited(future), timeout)


def _wait(awaited: Callable[[], Any], timeout: float) -> MsgGenerator[None]:
    # A pause replays the messages since the last checkpoint: let that be this one alone.
    yield from bps.checkpoint()
    try:
        yield from bps.wait_for([awaited], timeout=timeout)
    except WaitForTimeoutError:
        return


def _awaited(future: "Future[Any]") -> Callable[[], Any]:
    """Return a factory as `bps.wait_for` wants it, which may be called any number of times."""
    wrapped: asyncio.Future[Any] | None = None

    def factory() -> "asyncio.Future[Any]":
        nonlocal wrapped
        if wrapped is None:
            wrapped = asyncio.wrap_future(future)
            # What went wrong is asked of the future itself; asyncio need not complain besides.
            wrapped.add_done_callback(lambda done: done.cancelled() or done.exception())
        return wrapped

    return factory
