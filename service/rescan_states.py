"""What becomes of a proposal: approved or refused by a person, taken by a plan, done, failed, too old.

All of it is in the journal, so that a restart changes nothing.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from inscan.callbacks.profile import BeamlineProfile
from inscan.service.journal import Journal
from inscan.service.messages import InferenceJob, InferenceResult, canonical_json
from inscan.service.proposal import Mode
from inscan.service.rescan import Known, propose
from inscan.service.rescan_context import context_of
from inscan.service.rescan_execution import Executions
from inscan.service.rescan_limits import COUNTED, spent_by
from inscan.service.rescan_validity import OPEN, NotAllowed, Validity

__all__ = ["OPEN", "NotAllowed", "Rescans"]

_MOST_PLACES = 100


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
        self._validity = Validity(journal, self._profiles, mode, now)
        self._executions = Executions(journal, self._validity, self._move, now)

    def propose(self, job: InferenceJob, result: InferenceResult) -> list[dict[str, Any]]:
        """Proposals for a result, at most one, as mappings for `Journal.committed`."""
        with self._lock:
            profile = self._profiles.get(str(job.meta.get("profile")))
            run = self._journal.run(job.run_uid)
            if profile is None or run is None:
                return []
            # A second result of the same run must not have the same places measured twice.
            taken = self._journal.proposals(run_uid=job.run_uid)
            if any(one["state"] != "refused" or one["who"] != "inscan" for one in taken):
                return []
            survey_uid = _survey_of(run["start"], job.run_uid)
            if survey_uid != job.run_uid and self._unfinished(survey_uid, run["start"]):
                return []
            survey = self._journal.run(survey_uid)
            if survey is None:
                return []
            known = self._known(profile, survey, job.run_uid)
            proposal = propose(job, result, profile, survey["start"], self._mode, known)
            return [] if proposal is None else [self._described(proposal.to_dict(), profile)]

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
        boxes = _places(places)
        with self._lock:
            run = self._journal.run(run_uid)
            done = self._journal.jobs("committed", run_uid)
            job = self._journal.request(done[0]["key"]) if done else None
            if run is None or job is None:
                raise LookupError(f"run {run_uid!r} has no result in this service")
            profile = self._profiles.get(str(job.meta.get("profile")))
            if profile is None:
                raise LookupError(f"run {run_uid!r}: no profile {job.meta.get('profile')!r}")
            survey = self._journal.run(_survey_of(run["start"], run_uid))
            if survey is None:
                raise LookupError(f"run {run_uid!r}: its survey is not known")
            wanted = job.model_copy(
                update={"key": f"{job.key}/{canonical_json([dict(box) for box in boxes])}"}
            )
            result = InferenceResult(
                key=job.key,
                fence=0,
                result_path="",
                digest="",
                report={"verdict": done[0]["verdict"]},
                regions=boxes,
                timings={},
            )
            known = self._known(profile, survey, run_uid)
            made = propose(wanted, result, profile, survey["start"], self._mode, known)
            if made is None:
                raise ValueError(f"run {run_uid!r}: it is no survey map, or rescan.mode is off")
            text = "; ".join(part for part in (reason, made.reason) if part)
            proposal = self._described({**made.to_dict(), "who": str(who), "reason": text}, profile)
            proposal["result_uid"] = done[0]["result_uid"] or ""
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

    def _silent(self, proposal: Mapping[str, Any], after: float) -> bool:
        """Neither a word of a plan nor a run of it for so many seconds."""
        if self._now() - float(proposal["heard"]) <= after:
            return False
        times = [
            run["updated"]
            for run in self._journal.runs()
            if run["start"].get("proposal") == proposal["id"]
        ]
        return self._now() - max(times, default=0.0) > after

    def _known(self, profile: BeamlineProfile, survey: Mapping[str, Any], run_uid: str) -> Known:
        survey_uid = survey["run_uid"]
        of_survey = self._journal.proposals(survey_uid=survey_uid)
        made = [
            int(one.get("round") or 1)
            for one in of_survey
            if one["begun"] or one["state"] in COUNTED or one["state"] == "done"
        ]
        meta = None
        if survey_uid != run_uid:
            jobs = self._journal.jobs(run_uid=survey_uid)
            first = self._journal.request(jobs[0]["key"]) if jobs else None
            meta = None if first is None else first.meta
        waiting = [
            float(region.get("worth") or 0.0)
            for state in (*OPEN, "running")
            for one in self._journal.proposals(state=state)
            if one.get("profile") == profile.name
            for region in one["regions"]
            if str(region.get("label")) in one["left"]
        ]
        paths = profile.rescan.context
        return Known(
            survey_uid=survey_uid,
            survey=meta,
            spent=spent_by(of_survey),
            round=1 + max(made, default=0),
            best_worth=max(waiting, default=0.0),
            context=context_of(paths, survey["start"], self._journal.baseline(survey_uid)),
        )

    def _unfinished(self, survey_uid: str, composite: Mapping[str, Any]) -> bool:
        """Whether more is still to be measured of a survey than its composite holds."""
        held = {str(uid) for uid in composite.get("raw_uids") or ()}
        for one in self._journal.proposals(survey_uid=survey_uid):
            if one["state"] in OPEN:
                return True
            if one["state"] == "running":
                runs = [self._journal.run(uid) for uid in one["fine_uids"] if uid in held]
                seen = {str(run["start"].get("region")) for run in runs if run is not None}
                if not {str(region["label"]) for region in one["regions"]} <= seen:
                    return True
        return False

    def _described(self, proposal: dict[str, Any], profile: BeamlineProfile) -> dict[str, Any]:
        return {
            **proposal,
            "profile": profile.name,
            "through": profile.rescan.through,
            "expires": self._now() + profile.rescan.expires,
        }

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
            now = self.find(proposal["id"])
            raise NotAllowed(
                f"state: proposal {proposal['id'][:13]} is {now['state']} "
                f"({now['who']}: {now['reason'] or 'no reason'}); "
                f"it would have to be {' or '.join(expected)} to become {state}"
            )
        return self.find(proposal["id"])


def _survey_of(start: Mapping[str, Any], run_uid: str) -> str:
    """The survey that a composite belongs to; of any other run, the run itself."""
    return str(start.get("parent_uid")) if start.get("purpose") == "composite" else run_uid


def _places(places: Any) -> list[dict[str, Any]]:
    if not isinstance(places, list | tuple) or not 0 < len(places) <= _MOST_PLACES:
        raise ValueError(f"places: expected 1 to {_MOST_PLACES} of them")
    boxes = []
    for place in places:
        box = place.get("box") if isinstance(place, Mapping) else None
        if not isinstance(box, list | tuple) or len(box) != 4:
            raise ValueError(f"a place needs a box (row0, row1, col0, col1), got {place!r:.80}")
        if not all(isinstance(edge, int) and not isinstance(edge, bool) for edge in box):
            raise ValueError(f"box {box!r:.80}: edges are whole survey pixels")
        boxes.append({**place, "box": list(box), "target": "like"})
    return boxes
