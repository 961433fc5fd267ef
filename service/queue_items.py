"""Items of a queue server, and how they and proposals belong together."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

_MAX_TEXT = 300
_MOST_LABELS = 64


@dataclass(frozen=True)
class Item:
    """An item of the queue.

    Attributes
    ----------
    uid : str
        Changes when a failed item is put back into the queue.
    proposal : str
        What its plan gets as `proposal`; empty for items that are none of ours.
    attempt : int
        Which approval of the proposal it was added for, from 1. 0: it was not added by inscan.
    """

    uid: str
    proposal: str = ""
    attempt: int = 0


@dataclass(frozen=True)
class Ended:
    """An item of the history.

    Attributes
    ----------
    item : Item
    status : str
        `completed`, `stopped`, `failed`, `aborted`, `halted` or `unknown`.
    reason : str
        The manager's message; empty when it ended well.
    """

    item: Item
    status: str
    reason: str


@dataclass(frozen=True)
class Manager:
    """State of a manager.

    Attributes
    ----------
    state : str
        `idle`, `executing_queue`, `paused`, ...
    environment : bool
        Whether the worker's environment is open.
    stop_pending, autostart : bool
        The queue will stop after the running item; the manager starts it by itself.
    lock : str
        Who has locked it, and why; empty when nobody has.
    history, plans : str
        Names of the present state of the history and of the allowed plans.
    """

    state: str
    environment: bool
    stop_pending: bool
    autostart: bool
    lock: str
    history: str
    plans: str


def item_of(given: Any) -> Item:
    """What of an item concerns us; whoever may change the queue may have written anything into it."""
    one: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    kwargs, meta = one.get("kwargs"), one.get("meta")
    proposal = kwargs.get("proposal") if isinstance(kwargs, Mapping) else None
    marks = meta.get("inscan") if isinstance(meta, Mapping) else None
    marks = marks if isinstance(marks, Mapping) else {}
    attempt = marks.get("attempt")
    return Item(
        uid=short(one.get("item_uid")),
        proposal=proposal if isinstance(proposal, str) else "",
        attempt=attempt if isinstance(attempt, int) and attempt > 0 else 0,
    )


def ended_of(given: Mapping[str, Any]) -> Ended:
    result = given.get("result")
    result = result if isinstance(result, Mapping) else {}
    reason = short(result.get("msg"))
    return Ended(item_of(given), short(result.get("exit_status")) or "unknown", reason)


def short(value: Any) -> str:
    return "" if value is None else " ".join(str(value)[: 4 * _MAX_TEXT].split())[:_MAX_TEXT]


def attempt(proposal: Mapping[str, Any]) -> int:
    """How often it has been approved: a retry is another attempt, and its item another."""
    return max(1, sum(step["state"] == "approved" for step in proposal["history"]))


def confirmed(proposal: Mapping[str, Any]) -> bool:
    """Whether its item was seen in the queue: the journal is told before an item is added, and again with its uid."""
    return [step["state"] for step in proposal["history"][-2:]] == ["queued", "queued"]


def belongs(item: Item, proposal: Mapping[str, Any]) -> bool:
    """Whether an item was added for a proposal as it is approved now."""
    return item.proposal == proposal["id"] and item.attempt == attempt(proposal)


def marks_of(proposal: Mapping[str, Any]) -> dict[str, Any]:
    """What the start documents of its runs say besides what the plan gives them."""
    labels = [str(region.get("label", "")) for region in proposal.get("regions") or ()]
    return {
        "parent_uid": str(proposal.get("survey_uid") or proposal["run_uid"]),
        "rescan_proposal": proposal["id"],
        "regions": labels[:_MOST_LABELS],
        "inscan": {"version": version("inscan"), "attempt": attempt(proposal)},
    }
