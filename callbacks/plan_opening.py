"""Before a fine run is opened: what its start document will say is held against the survey's."""

from collections.abc import Callable, Generator, Iterable
from typing import Any

from bluesky.utils import Msg, MsgGenerator

from inscan.callbacks.plan_checks import start_values

__all__ = ["NotAllowedError", "guarded"]

Confirm = Callable[[dict[str, Any]], Generator[Msg, Any, str]]
"""State of the beamline -> plan that returns why there must be no motion, or nothing."""


class NotAllowedError(RuntimeError):
    """A run must not be opened; the message says why."""


def guarded(plan: MsgGenerator[Any], paths: Iterable[str], confirm: Confirm) -> MsgGenerator[Any]:
    """Have what a plan says of its run confirmed before the run is opened.

    Plans open a run before they move: a fine scan of another sample, or at another energy, ends here also where nobody
    told the plan what to compare. What is in the RunEngine's own metadata is not seen here.

    Parameters
    ----------
    plan : plan
    paths : iterable of str
        Dotted paths of start documents that must not change.
    confirm : callable
        Called with those that the run has.

    Raises
    ------
    NotAllowedError
        With what `confirm` said; the plan sees it first, where it would have opened its run.
    """
    # Not bluesky's plan_mutator: it keeps every message of a scan.
    paths, answer, error = list(paths), None, None
    while True:
        try:
            msg = plan.send(answer) if error is None else plan.throw(error)
        except StopIteration as stop:
            return stop.value
        answer, error = None, None
        try:
            told = start_values(msg.kwargs, paths) if msg.command == "open_run" else {}
            refusal = (yield from confirm(told)) if told else ""
            if refusal:
                raise NotAllowedError(refusal)
            answer = yield msg
        except GeneratorExit:
            plan.close()
            raise
        except Exception as raised:  # noqa: BLE001 - the plan is the one to handle it
            error = raised
