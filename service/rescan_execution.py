"""What a plan reports while it measures a proposal, and what it is answered: every region is allowed one by one.

No motor is moved twice for one region unless `rescan.retries` allows it: what was begun is in the journal before the
plan hears that it may begin, and stays there whatever dies.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from inscan.service.journal import Journal
from inscan.service.journal_rows import ENERGIES
from inscan.service.rescan_validity import NotAllowed, Validity, wrong_state

TAKEN_FROM = ("approved", "queued")
_ENDS = ("done", "failed", "refused")
_MOST_RUNS = 1000
_LONGEST = 200  # characters of a uid or label
_SCAN_FAILED = re.compile(r"\bfine scans? failed\b")
"""What a plan says of a device that failed. What somebody has stopped is told in other words, and does not begin again
by itself."""


class Executions:
    """Attempts to measure proposals, for any thread that holds the lock of `Rescans`.

    Parameters
    ----------
    journal : Journal
    validity : Validity
    move : callable
        (proposal, state, who, reason, expected states): sets a state, or raises `NotAllowed`.
    now : callable
        Seconds since the epoch.
    """

    def __init__(
        self,
        journal: Journal,
        validity: Validity,
        move: Callable[[Mapping[str, Any], str, str, str, tuple[str, ...]], Mapping[str, Any]],
        now: Callable[[], float],
    ) -> None:
        self._journal = journal
        self._validity = validity
        self._move = move
        self._now = now

    def update(
        self,
        found: Mapping[str, Any],
        execution: str,
        state: str,
        *,
        runs: Sequence[str],
        reason: str,
        context: Mapping[str, Any] | None,
        region: str | None,
        shift: Sequence[float] | None,
        attempt: int,
    ) -> None:
        """Take a report; see `Rescans.update`.

        Raises
        ------
        NotAllowed
            What stands against it.
        """
        runs = _uids(runs)
        if context is not None and not isinstance(context, Mapping):
            raise NotAllowed(f"context: expected a mapping, got {type(context).__name__}")
        if state == "running":
            self._running(found, execution, runs, reason, context, region, shift, attempt)
        elif state in _ENDS:
            self._ended(found, execution, state, runs, reason)
        else:
            raise NotAllowed(
                f"state: a plan may report running, done, failed or refused, not {state!r:.40}"
            )

    def silent(self, found: Mapping[str, Any], after: float) -> None:
        """Close a proposal whose plan was not heard for so many seconds; nobody knows what it has moved."""
        execution = str(found["who"]).removeprefix("plan ")
        self._all_begun(found, execution, [])
        reason = f"expires: its plan was not heard of for {after:g} s"
        self._move(found, "failed", "inscan", reason, ("running",))

    def _running(
        self,
        found: Mapping[str, Any],
        execution: str,
        runs: list[str],
        reason: str,
        context: Mapping[str, Any] | None,
        label: str | None,
        shift: Sequence[float] | None,
        attempt: int,
    ) -> None:
        who, name = f"plan {execution}", found["id"]
        mine = found["state"] == "running" and found["who"] == who
        if found.get("kind") == "energies" and label is None and (not mine or attempt != 1):
            label = ENERGIES  # the field stays where it is: a plan names no region
        if not mine and found["state"] not in TAKEN_FROM:
            raise wrong_state(found, "running", TAKEN_FROM)
        if mine:
            self._heard(found, execution, runs, label)
        old = "" if mine else self._validity.too_old(found)
        if old:
            raise NotAllowed(old)
        self._validity.allowed(found)
        self._validity.unchanged(found, context)
        if not mine:
            self._validity.affordable(found)
        begin = None
        if label is not None:
            begin = self._may_begin(found, execution, runs, label, context, shift, attempt)
        if not mine:
            self._move(found, "running", who, reason, TAKEN_FROM)
            self._heard(found, execution, runs, label)
        if begin is not None:
            self._journal.note_proposal(name, "begun", begin["name"], begin, self._now())

    def _may_begin(
        self,
        found: Mapping[str, Any],
        execution: str,
        runs: list[str],
        label: str,
        context: Mapping[str, Any] | None,
        shift: Sequence[float] | None,
        attempt: int,
    ) -> dict[str, Any] | None:
        """The note that a region is begun; None where it is noted already and only the answer was lost."""
        if not isinstance(attempt, int) or isinstance(attempt, bool) or not 1 <= attempt <= 100:
            raise NotAllowed(f"attempt: expected 1 or more, got {attempt!r:.40}")
        regions = {str(one["label"]): one for one in found["regions"]}
        if label not in _labels(found):
            known = ", ".join(_labels(found))
            raise NotAllowed(f"region: {label!r:.60} is none of this proposal's ({known})")
        shift = _pair(shift)
        name = f"{execution}/{label}/{attempt}"
        all_begun = found.get("begun") or []
        begun = [one for one in all_begun if one["region"] == label]
        if any(one["name"] == name for one in begun):
            if all_begun[-1]["name"] != name or all_begun[-1]["runs"] != len(runs):
                raise NotAllowed(
                    f"attempt: attempt {attempt} at region {label} was begun already, and went on since"
                )
            counted = True
        else:
            rules = self._validity.rules(found)
            if len(begun) > rules.retries:
                raise NotAllowed(
                    f"retries: region {label} was begun {len(begun)} times, {rules.retries} retries are allowed"
                )
            if (
                label in (found.get("covered") or ())
                and begun[-1:]
                and (begun[-1]["execution"] != execution)
            ):
                raise NotAllowed(f"measured: region {label} was measured already")
            counted = False
        if label in regions:
            self._validity.region(
                found, regions[label], shift=shift, context=context, counted=counted
            )
        elif not counted:
            self._validity.affordable(found)
        if counted:
            return None
        return {
            "name": name,
            "region": label,
            "execution": execution,
            "attempt": attempt,
            "runs": len(runs),
            "shift": list(shift) if shift is not None else None,
        }

    def _heard(
        self, found: Mapping[str, Any], execution: str, runs: list[str], label: str | None
    ) -> None:
        """Note that a plan is alive, its runs, and that what it leaves behind for another region is measured."""
        name, now = found["id"], self._now()
        self._journal.note_proposal(name, "heard", "", {}, now)
        self._note_runs(found, runs)
        last = _last_begun(found, execution)
        if last is None:
            return
        moved_on = label is not None and label != last["region"]
        told = label is None and len(runs) > last["runs"]
        if moved_on or told:
            self._cover(found, [last["region"]])

    def _ended(
        self, found: Mapping[str, Any], execution: str, state: str, runs: list[str], reason: str
    ) -> None:
        who = f"plan {execution}"
        if any(step["state"] == state and step["who"] == who for step in found["history"]):
            return  # the answer was lost
        mine = found["state"] == "running" and found["who"] == who
        if not mine:
            if any(step["who"] == who for step in found["history"]):
                self._note_runs(found, runs)  # taken from it meanwhile
                if runs:
                    self._all_begun(found, execution, runs)
            raise NotAllowed(f"state: it is {found['state']}, and not by this plan")
        self._note_runs(found, runs)
        if runs or state == "done":
            self._all_begun(found, execution, runs)
        if state == "done":
            begun = [one["region"] for one in found["begun"] if one["execution"] == execution]
            self._cover(found, begun or _labels(found))
        told = [reason, f"fine runs: {', '.join(runs)}" if runs else ""]
        text = "; ".join(part for part in told if part)
        self._move(found, state, who, text, ("running",))
        if state == "failed" and _SCAN_FAILED.search(reason):
            self._again(found["id"])

    def _again(self, proposal_id: str) -> None:
        """Approve by itself what failed, in mode auto and while retries are left."""
        (found,) = self._journal.proposals(prefix=proposal_id)
        try:
            if self._validity.mode(found) == "auto" and not self._validity.too_old(found):
                self.may_be_retried(found)
                text = (
                    f"taken again after a failure (rescan.retries), attempt {found['attempts'] + 1}"
                )
                self._move(found, "approved", "inscan", text, ("failed",))
        except NotAllowed as error:
            self._journal.note_proposal(
                proposal_id, "kept", "failed", {"reason": str(error)}, self._now()
            )

    def may_be_retried(self, found: Mapping[str, Any]) -> None:
        """A failed proposal has regions that may be taken again, within all limits.

        Raises
        ------
        NotAllowed
            Rule `retries`, or what else stands against it.
        """
        retries = self._validity.rules(found).retries
        if found["attempts"] > retries:
            raise NotAllowed(
                f"retries: it was taken {found['attempts']} times, {retries} retries are allowed"
            )
        if not found["left"]:
            raise NotAllowed(
                "retries: every region is measured, or was begun as often as is allowed"
            )
        self._validity.unchanged(found)
        self._validity.affordable(found)

    def _all_begun(self, found: Mapping[str, Any], execution: str, runs: list[str]) -> None:
        """A plan that did not name its regions may have been at any of them."""
        if any(one["execution"] == execution for one in found.get("begun") or ()):
            return
        for label in found["left"]:
            body = {"region": label, "execution": execution, "attempt": 1, "runs": len(runs)}
            name = f"{execution}/{label}/1"
            self._journal.note_proposal(found["id"], "begun", name, body, self._now())

    def _cover(self, found: Mapping[str, Any], labels: Sequence[str]) -> None:
        for label in labels:
            self._journal.note_proposal(found["id"], "covered", label, {}, self._now())

    def _note_runs(self, found: Mapping[str, Any], runs: list[str]) -> None:
        for uid in runs:
            if uid not in found.get("fine_uids", ()):
                self._journal.note_proposal(found["id"], "run", uid, {}, self._now())


def _labels(found: Mapping[str, Any]) -> list[str]:
    if found.get("kind") == "energies":
        return [ENERGIES]
    return [str(one["label"]) for one in found["regions"]]


def _last_begun(found: Mapping[str, Any], execution: str) -> Mapping[str, Any] | None:
    own = [one for one in found.get("begun") or () if one["execution"] == execution]
    return own[-1] if own else None


def _uids(runs: Any) -> list[str]:
    if not isinstance(runs, list | tuple) or len(runs) > _MOST_RUNS:
        raise NotAllowed(f"runs: expected at most {_MOST_RUNS} uids")
    if not all(isinstance(uid, str) and 0 < len(uid) <= _LONGEST for uid in runs):
        raise NotAllowed("runs: a uid is a text")
    return list(dict.fromkeys(runs))


def _pair(shift: Any) -> tuple[float, float] | None:
    if shift is None:
        return None
    try:
        slow, fast = (float(part) for part in shift)
    except (TypeError, ValueError) as error:
        raise NotAllowed(f"shift: expected [slow, fast], got {shift!r:.60}") from error
    return slow, fast
