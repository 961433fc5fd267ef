"""What becomes of a proposal: approved or refused by a person, taken by a plan, done, failed, too old.

All of it is in the journal, so that a restart changes nothing.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from inscan.callbacks.profile import BeamlineProfile
from inscan.service.journal import Journal
from inscan.service.messages import InferenceJob, InferenceResult
from inscan.service.proposal import Mode
from inscan.service.rescan_execution import Executions
from inscan.service.rescan_proposing import Proposing
from inscan.service.rescan_record import records_of, summary
from inscan.service.rescan_validity import OPEN, NotAllowed, Validity, wrong_state

__all__ = ["OPEN", "NotAllowed", "Rescans"]


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
        # Between the look at what was spent and the change of a state nobody else may spend.
        self._lock = threading.RLock()
        self._proposing = Proposing(journal, self._profiles, mode, now)
        self._validity = Validity(journal, self._profiles, mode, now)
        self._executions = Executions(journal, self._validity, self._move, now)

    def propose(self, job: InferenceJob, result: InferenceResult) -> list[dict[str, Any]]:
        """Proposals for a result, at most one, as mappings for `Journal.committed`."""
        with self._lock:
            return self._proposing.of_result(job, result)

    def propose_places(
        self,
        run_uid: str,
        places: Sequence[Mapping[str, Any]],
        who: str,
        reason: str = "",
    ) -> dict[str, Any]:
        """Propose places that a person chose in a run's map, within the same limits as any.

        Parameters
        ----------
        run_uid : str
            A survey that was processed.
        places : sequence of mapping
            `box` (row0, row1, col0, col1) in survey pixels, `score`, `reason`, `element_name`, and `light` where known.
        who, reason : str
            For the record.

        Returns
        -------
        dict
            `proposal`: suggested, never approved by itself; or refused, with the rule. The same places again: the same.

        Raises
        ------
        ValueError
            For places that are no boxes of the map, and where rescans are off.
        LookupError
            For a run that is not known or has no result.
        """
        with self._lock:
            proposal = self._proposing.of_places(run_uid, places, who, reason)
            self._journal.add_proposal(proposal)
            return {"proposal": self.find(proposal["id"])}

    def find(self, prefix: str) -> dict[str, Any]:
        """The proposal whose id begins with `prefix`.

        Raises
        ------
        LookupError
            When there is none, or more than one.
        """
        found = self._journal.proposals(prefix=str(prefix)) if prefix else []
        if len(found) != 1:
            several = ", ".join(one["id"][:13] for one in found[:10])
            raise LookupError(
                f"{prefix!r} begins the ids of {len(found)} proposals ({several}); give more of it"
                if found
                else f"no proposal {prefix!r}; `inscan proposals` lists them"
            )
        return found[0]

    def approve(self, proposal: str, who: str, reason: str = "") -> dict[str, Any]:
        """Let a suggested proposal be taken, or a failed one again.

        Raises
        ------
        NotAllowed
            When the mode is `suggest`, it is no longer open, the beamline has changed since, or a limit or budget of
            the survey would be passed.
        LookupError
            See `find`.
        """
        with self._lock:
            found = self.find(proposal)
            self._validity.allowed(found)
            self._in_time(found)
            if found["state"] == "failed":
                self._executions.may_be_retried(found)
            elif found["state"] == "suggested":
                self._validity.unchanged(found)
                self._validity.affordable(found)
            return self._move(found, "approved", who, reason, ("suggested", "failed"))

    def refuse(self, proposal: str, who: str, reason: str = "") -> dict[str, Any]:
        """Forbid a proposal, also what is left of one that is being measured or has failed. Never itself forbidden for
        another reason.

        Raises
        ------
        NotAllowed
            When it is measured already, or over.
        LookupError
            See `find`.
        """
        with self._lock:
            found = self.find(proposal)
            return self._move(found, "refused", who, reason, (*OPEN, "running", "failed"))

    def to_queue(self) -> list[dict[str, Any]]:
        """Approved proposals of the profiles whose rescans go through a queue server, oldest first."""
        return [
            one
            for one in self._journal.proposals(state="approved")
            if (profile := self._profiles.get(str(one.get("profile")))) is not None
            and profile.rescan.through == "queue"
        ]

    def queue(
        self,
        proposal: str,
        who: str,
        reason: str = "",
        context: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Note that an approved proposal becomes an item of a queue; to be called before the item is added.

        Raises
        ------
        NotAllowed
            As for `approve`.
        LookupError
            See `find`.
        """
        with self._lock:
            found = self.find(proposal)
            self._validity.allowed(found)
            self._in_time(found)
            if found["state"] == "approved":
                self._validity.unchanged(found, context)
                self._validity.affordable(found)
            return self._move(found, "queued", who, reason, ("approved",))

    def unqueue(self, proposal: str, who: str, reason: str = "") -> dict[str, Any]:
        """Note that the item of a queued proposal is not in the queue (any more).

        Raises
        ------
        NotAllowed
            When it is not queued.
        LookupError
            See `find`.
        """
        with self._lock:
            return self._move(self.find(proposal), "approved", who, reason, ("queued",))

    def update(
        self,
        proposal: str,
        execution: str,
        state: str,
        runs: Sequence[str] = (),
        reason: str = "",
        context: Mapping[str, Any] | None = None,
        region: str | None = None,
        shift: Sequence[float] | None = None,
        attempt: int = 1,
    ) -> dict[str, Any]:
        """What a plan reports: `running` before each motion, `done`, `failed` or `refused` when it has ended.

        Parameters
        ----------
        execution : str
            One attempt at the proposal; only the one that began may end it, and asking twice does no harm.
        runs : sequence of str
            Uids of the fine runs so far.
        context : mapping or None
            State of the beamline as the plan knows it, dotted paths to values, and positions of the motors by their
            names; compared besides what later runs told.
        region : str or None
            Label of the region that is about to be measured. A plan that never names one is answered for all.
        shift : (float, float) or None
            Drift to be added to the region, slow and fast, in motor units.
        attempt : int
            How often this execution has begun the region, this time included.

        Returns
        -------
        dict
            `ok`; when False, `reason` says what stands against it, and nothing may be moved.
        """
        with self._lock:
            try:
                found = self.find(proposal)
                self._executions.update(
                    found,
                    str(execution),
                    state,
                    runs=runs,
                    reason=str(reason),
                    context=context,
                    region=None if region is None else str(region),
                    shift=shift,
                    attempt=attempt,
                )
            except (NotAllowed, LookupError) as error:
                self.expire()
                return {"ok": False, "reason": str(error.args[0])}
        return {"ok": True, "reason": ""}

    def expire(self) -> int:
        """Close the proposals that have waited too long, and those whose plan is silent; returns how many."""
        closed = 0
        with self._lock:
            for state in OPEN:
                for one in self._journal.proposals(state=state):
                    reason = self._validity.too_old(one)
                    if reason:
                        closed += self._journal.set_proposal(
                            one["id"], "expired", "inscan", reason, expected=(state,)
                        )
            for one in self._journal.proposals(state="running"):
                profile = self._profiles.get(str(one.get("profile")))
                if profile is not None and self._silent(one, profile.rescan.expires):
                    self._executions.silent(one, profile.rescan.expires)
                    closed += 1
        return closed

    def record(self, composite_uid: str) -> list[dict[str, Any]]:
        """Compare what a composite's fine runs gave with what was predicted, and keep it.

        Parameters
        ----------
        composite_uid : str
            Of a composite that is committed; asking twice does no harm.

        Returns
        -------
        list of dict
            See `rescan_record.records_of`.
        """
        layers: dict[str, list[Mapping[str, Any]]] = {}
        for job in self._journal.jobs("committed", composite_uid):
            told = self._journal.report(job["key"]).get("composite") or {}
            for layer in told.get("layers") or ():
                run = self._journal.run(str(layer.get("uid")))
                if run is not None and run["start"].get("rescan_proposal"):
                    layers.setdefault(str(run["start"]["rescan_proposal"]), []).append(
                        {**layer, "region": run["start"].get("region")}
                    )
        kept = []
        for name, theirs in layers.items():
            found = [one for one in self._journal.proposals(prefix=name) if one["id"] == name]
            profile = self._profiles.get(str(found[0].get("profile"))) if found else None
            if profile is None:
                continue
            for one in records_of(
                found[0], theirs, self._journal.timing, min_score=profile.rescan.min_score
            ):
                title = f"{one['region']}/{one['run_uid']}"
                self._journal.note_proposal(name, "measured", title, one, self._now())
                kept.append(one)
        return kept

    def past(self, profile: str | None = None) -> dict[str, Any]:
        """What past rescans of a profile (of all) say of predictions: request `rescan_record`."""
        return {"profile": profile, **summary(self._journal.records(profile))}

    def _silent(self, proposal: Mapping[str, Any], after: float) -> bool:
        """Neither a word of a plan nor a run of it for so many seconds."""
        if self._now() - float(proposal["heard"]) <= after:
            return False
        times = [
            run["updated"]
            for run in self._journal.runs()
            if run["start"].get("rescan_proposal") == proposal["id"]
        ]
        return self._now() - max(times, default=0.0) > after

    def _in_time(self, proposal: Mapping[str, Any]) -> None:
        old = self._validity.too_old(proposal)
        if old:
            self.expire()
            raise NotAllowed(old)

    def _move(
        self,
        proposal: Mapping[str, Any],
        state: str,
        who: str,
        reason: str,
        expected: tuple[str, ...],
    ) -> dict[str, Any]:
        if not self._journal.set_proposal(proposal["id"], state, who, reason, expected=expected):
            raise wrong_state(self.find(proposal["id"]), state, expected)
        return self.find(proposal["id"])
