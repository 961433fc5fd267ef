"""From a result to a proposal, with all that the journal knows of its survey."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from inscan.callbacks.profile import BeamlineProfile
from inscan.service.journal import Journal
from inscan.service.messages import InferenceJob, InferenceResult, canonical_json
from inscan.service.proposal import Mode
from inscan.service.rescan import Known, propose
from inscan.service.rescan_context import context_of
from inscan.service.rescan_limits import COUNTED, spent_by
from inscan.service.rescan_record import pace_of
from inscan.service.rescan_validity import OPEN

_MOST_PLACES = 100


class Proposing:
    """Makes proposals, and keeps none of them.

    Parameters
    ----------
    journal : Journal
    profiles : mapping of str to BeamlineProfile
    mode : str or None
        Overrides the mode of every profile.
    now : callable
        Seconds since the epoch.
    """

    def __init__(
        self,
        journal: Journal,
        profiles: Mapping[str, BeamlineProfile],
        mode: Mode | None,
        now: Callable[[], float],
    ) -> None:
        self._journal = journal
        self._profiles = profiles
        self._mode: Mode | None = mode
        self._now = now

    def of_result(self, job: InferenceJob, result: InferenceResult) -> list[dict[str, Any]]:
        """Proposals for a result, at most one."""
        profile = self._profiles.get(str(job.meta.get("profile")))
        run = self._journal.run(job.run_uid)
        if profile is None or run is None:
            return []
        # A second result of the same run must not have the same places measured twice.
        taken = self._journal.proposals(run_uid=job.run_uid)
        if any(one["state"] != "refused" or one["who"] != "inscan" for one in taken):
            return []
        survey_uid = _survey_of(run["start"], job.run_uid)
        if survey_uid != job.run_uid:
            wanted = job.meta.get("rescan")
            # A composite of maps names no places but for a precision that was asked for.
            settled = profile.technique == "xrf" and wanted and not wanted.get("precision")
            if settled or self._unfinished(survey_uid, run["start"]):
                return []
        survey = self._journal.run(survey_uid)
        if survey is None:
            return []
        known = self._known(profile, survey, job.run_uid)
        proposal = propose(job, result, profile, survey["start"], self._mode, known)
        return [] if proposal is None else [self._described(proposal.to_dict(), profile)]

    def of_places(
        self, run_uid: str, places: Sequence[Mapping[str, Any]], who: str, reason: str
    ) -> dict[str, Any]:
        """A proposal of places that a person chose; see `Rescans.propose_places`."""
        boxes = _places(places)
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
        return proposal

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
            (
                float(region.get("worth") or 0.0),
                f"region {region.get('label')} of proposal {one['id'][:8]}",
            )
            for state in (*OPEN, "running")
            for one in self._journal.proposals(state=state)
            if one.get("profile") == profile.name
            for region in one["regions"]
            if str(region.get("label")) in one["left"]
        ]
        best_worth, best_waiting = max(waiting, default=(0.0, ""))
        paths = profile.rescan.context
        return Known(
            survey_uid=survey_uid,
            survey=meta,
            spent=spent_by(of_survey),
            round=1 + max(made, default=0),
            best_worth=best_worth,
            best_waiting=best_waiting,
            pace=pace_of(self._journal.records(profile.name)),
            context=context_of(paths, survey["start"], self._journal.baseline(survey_uid)),
        )

    def _unfinished(self, survey_uid: str, composite: Mapping[str, Any]) -> bool:
        """Whether more is still to be measured of a survey than its composite holds."""
        held = {str(uid) for uid in composite.get("raw_uids") or ()}
        for one in self._journal.proposals(survey_uid=survey_uid):
            # What a person only wondered about holds nothing up.
            if one["state"] in OPEN and (one["state"] != "suggested" or _ours(one)):
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


def _ours(proposal: Mapping[str, Any]) -> bool:
    return proposal["history"][0]["who"] == "inscan"


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
