"""What becomes of a proposal: approved or refused by a person, taken by a plan, done, too old. All in the journal."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from inscan.callbacks.profile import BeamlineProfile, matches
from inscan.service.journal import Journal
from inscan.service.messages import InferenceJob, InferenceResult
from inscan.service.proposal import Mode
from inscan.service.rescan import context_changes, context_of, propose

EXPIRES_S = 4 * 3600.0
"""A proposal that nobody has taken for so long is expired: too much may have happened that no document tells."""
OPEN = ("suggested", "approved")
_RECENT = 50


class NotAllowed(ValueError):
    """A change of state that a rule forbids; the message names the rule."""


class Rescans:
    """Proposals of one service, for any thread.

    Parameters
    ----------
    journal : Journal
    profiles : sequence of BeamlineProfile
    mode : str or None
        Overrides the mode of every profile.
    now : callable
        Seconds since the epoch.
    """

    def __init__(
        self,
        journal: Journal,
        profiles: Sequence[BeamlineProfile],
        *,
        mode: Mode | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._journal = journal
        self._profiles = {profile.name: profile for profile in profiles}
        self._mode: Mode | None = mode
        self._now = now

    def propose(self, job: InferenceJob, result: InferenceResult) -> list[dict[str, Any]]:
        """Proposals for a result, at most one, as mappings for `Journal.committed`."""
        profile = self._profiles.get(str(job.meta.get("profile")))
        run = self._journal.run(job.run_uid)
        if profile is None or run is None:
            return []
        # A second result of the same run must not have the same places measured twice.
        taken = self._journal.proposals(run_uid=job.run_uid)
        if any(one["state"] != "refused" or one["who"] != "inscan" for one in taken):
            return []
        proposal = propose(job, result, profile, run["start"], self._mode)
        if proposal is None:
            return []
        return [{**proposal.to_dict(), "profile": profile.name, "expires": self._now() + EXPIRES_S}]

    def find(self, prefix: str) -> dict[str, Any]:
        """The proposal whose id begins with `prefix`.

        Raises
        ------
        LookupError
            When there is none, or more than one.
        """
        found = [
            one for one in self._journal.proposals() if prefix and one["id"].startswith(prefix)
        ]
        if len(found) != 1:
            several = ", ".join(one["id"][:13] for one in found)
            raise LookupError(
                f"{prefix!r} begins the ids of {len(found)} proposals ({several}); give more of it"
                if found
                else f"no proposal {prefix!r}; `inscan proposals` lists them"
            )
        return found[0]

    def approve(self, proposal: str, who: str, reason: str = "") -> dict[str, Any]:
        """Let a suggested proposal be taken.

        Raises
        ------
        NotAllowed
            When the mode is `suggest`, it is no longer open, or the beamline has changed since.
        LookupError
            See `find`.
        """
        found = self.find(proposal)
        if (self._mode or found["mode"]) == "suggest":
            raise NotAllowed(
                "mode: rescan.mode is suggest, regions are only shown; set it to approve in the profile"
            )
        self._still_valid(found)
        return self._move(found, "approved", who, reason, ("suggested",))

    def refuse(self, proposal: str, who: str, reason: str = "") -> dict[str, Any]:
        """Forbid a proposal that is not measured yet. Never itself forbidden for another reason.

        Raises
        ------
        NotAllowed
            When it is measured already, or over.
        LookupError
            See `find`.
        """
        return self._move(self.find(proposal), "refused", who, reason, OPEN)

    def update(
        self,
        proposal: str,
        execution: str,
        state: str,
        runs: Sequence[str] = (),
        reason: str = "",
        context: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """What a plan reports: `running` before it moves, `done` or `refused` when it has ended.

        Parameters
        ----------
        execution : str
            One attempt; only the one that began may end it, and asking twice does no harm.
        runs : sequence of str
            Uids of the fine runs so far.
        context : mapping or None
            State of the beamline as the plan knows it, as `context_of` gives it; compared besides what later start
            documents told.

        Returns
        -------
        dict
            `ok`; when False, `reason` says what stands against it, and nothing may be moved.
        """
        who = f"plan {execution}"
        try:
            found = self.find(proposal)
            mine = found["who"] == who
            if state == "running":
                if found["state"] == "running" and mine:
                    return {"ok": True, "reason": ""}
                self._still_valid(found, context)
                self._move(found, "running", who, reason, ("approved",))
            elif state in ("done", "refused"):
                if found["state"] == state and mine:
                    return {"ok": True, "reason": ""}
                if found["state"] != "running" or not mine:
                    raise NotAllowed(f"state: it is {found['state']}, and not by this plan")
                told = [reason, f"fine runs: {', '.join(runs)}" if runs else ""]
                text = "; ".join(part for part in told if part)
                self._move(found, state, who, text, ("running",))
            else:
                raise NotAllowed(
                    f"state: a plan may report running, done or refused, not {state!r}"
                )
        except (NotAllowed, LookupError) as error:
            return {"ok": False, "reason": str(error.args[0])}
        return {"ok": True, "reason": ""}

    def expire(self) -> int:
        """Close the proposals that have waited too long; returns how many."""
        old = [
            one
            for state in OPEN
            for one in self._journal.proposals(state=state)
            if self._now() > one.get("expires", float("inf"))
        ]
        return sum(
            self._journal.set_proposal(one["id"], "expired", "inscan", _too_old(one), expected=OPEN)
            for one in old
        )

    def _still_valid(
        self, proposal: Mapping[str, Any], context: Mapping[str, Any] | None = None
    ) -> None:
        if proposal["state"] in OPEN and self._now() > proposal.get("expires", float("inf")):
            self.expire()
            raise NotAllowed(_too_old(proposal))
        changes = context_changes(proposal["context"], context or {})
        for start in self._later_starts(proposal):
            changes = changes or context_changes(proposal["context"], context_of(start))
        if changes:
            raise NotAllowed(f"{changes[0].rule}: {changes[0].text}")

    def _later_starts(self, proposal: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Start documents of the beamline's runs after the survey, newest first; rescans of it agree with it anyway."""
        profile = self._profiles.get(str(proposal.get("profile")))
        survey = self._journal.run(proposal["run_uid"])
        if profile is None or survey is None:
            return []
        return [
            run["start"]
            for run in self._journal.runs(limit=_RECENT)
            if run["created"] > survey["created"] and matches(profile, run["start"])
        ]

    def _move(
        self,
        proposal: Mapping[str, Any],
        state: str,
        who: str,
        reason: str,
        expected: tuple[str, ...],
    ) -> dict[str, Any]:
        if not self._journal.set_proposal(proposal["id"], state, who, reason, expected=expected):
            now = self.find(proposal["id"])
            raise NotAllowed(
                f"state: proposal {proposal['id'][:13]} is {now['state']} "
                f"({now['who']}: {now['reason'] or 'no reason'}); "
                f"it would have to be {' or '.join(expected)} to become {state}"
            )
        return self.find(proposal["id"])


def _too_old(proposal: Mapping[str, Any]) -> str:
    return f"expired: nobody took it within {EXPIRES_S / 3600:g} h"
