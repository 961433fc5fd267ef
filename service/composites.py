"""Composites of surveys and their fine runs: noticed in the journal, and made as jobs of runs that nobody measured.

What has to be made follows from the journal alone: a plan tells which fine runs it has taken, and survey and fine runs
together have one name (`inscan.callbacks.composite_uid`). Whatever dies in between, the same composite is made, once.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from inscan.callbacks.composite_uid import composite_uid
from inscan.callbacks.profile import BeamlineProfile
from inscan.service.composite_job import COMPOSITE, composite_job, composite_start, linked
from inscan.service.digest import digest_arrays
from inscan.service.events import Look, Submit
from inscan.service.journal import Journal, JournalError
from inscan.service.mailbox import Mailbox, MailboxFullError
from inscan.service.messages import InferenceJob
from inscan.service.settings import Settings
from inscan.service.spool import Spool, load, sync_arrays

__all__ = ["Composites"]

SILENT_S = 600.0
"""A fine run of which no document came for so long after a plan told of it is left out."""
_AGAIN_S = 5.0
"""Without a change in the journal: a disk may have room again, or a run be silent for too long."""
_LOOK_BACK_S = 7 * 86400.0
_ALIVE = ("suggested", "approved", "queued", "running")
_log = logging.getLogger(__name__)

Announce = Callable[[str], None]


class Composites:
    """Makes composites; its `look` is called again and again, from one thread.

    Parameters
    ----------
    settings : Settings
    profiles : sequence of BeamlineProfile
    journal : Journal
    spool : Spool
    broker, writer : Mailbox
        Told of new jobs, and of jobs whose arrays are on the disk.
    announce : callable
        Called with the uid of a composite that has an outcome.
    record : callable
        Called with the uid of one that is committed, at least once; must bear being called again.
    now : callable
        Seconds since the epoch.
    """

    def __init__(
        self,
        settings: Settings,
        profiles: Sequence[BeamlineProfile],
        journal: Journal,
        spool: Spool,
        *,
        broker: Mailbox,
        writer: Mailbox,
        announce: Announce,
        record: Callable[[str], object],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._profiles = {profile.name: profile for profile in profiles}
        self._journal = journal
        self._spool = spool
        self._broker = broker
        self._writer = writer
        self._announce = announce
        self._record = record
        self._now = now
        self._seen = -1
        self._again = 0.0
        self._settled: set[str] = set()
        self._names: dict[str, str] = {}
        self._named = False

    def look(self) -> None:
        """Make what is due, and record what was committed. What cannot be done now is tried again."""
        changes = self._journal.changes()
        if changes == self._seen and time.monotonic() < self._again:
            return
        self._seen, self._again = changes, time.monotonic() + _AGAIN_S
        for survey_uid, fine in self._journal.fine_runs(self._now() - _LOOK_BACK_S).items():
            uid = composite_uid(survey_uid, fine)
            if uid in self._settled:
                continue
            try:
                self._attend(uid, survey_uid, fine)
            except (OSError, JournalError) as error:
                _log.warning("the composite of survey %s waits: %s", survey_uid[:8], error)
            except (ValueError, LookupError, TypeError) as error:
                _log.exception("no composite of survey %s", survey_uid[:8])
                self._give_up(uid, survey_uid, fine, f"{type(error).__name__}: {error}")

    def main_uid(self, uid: str) -> str:
        """The composite that answers for a uid.

        A plan that goes on with a survey counts the fine runs that it took itself; the composite has those from before
        as well. Runs are counted from any one on: each such uid has the composite's outcome.
        """
        if not self._named:
            self._named = True
            for one in self._journal.composites():
                self._name(one["run_uid"], one["start"])
        return self._names.get(uid, uid)

    def outcome_of(self, run_uid: str) -> dict[str, Any] | None:
        """Outcome of a run or composite, as `Journal.outcome`."""
        found = self._journal.outcome(run_uid)
        if found is None and self._journal.run(run_uid) is None:
            main = self.main_uid(run_uid)
            found = None if main == run_uid else self._journal.outcome(main)
        return found

    def told(self, run_uid: str) -> list[str]:
        """All uids under which somebody may wait for this run."""
        run = self._journal.run(run_uid)
        if run is None or run["start"].get("purpose") != COMPOSITE:
            return [run_uid]
        return [run_uid, *self._name(run_uid, run["start"])]

    def keeps(self, run_uid: str) -> bool:
        """Whether the arrays of a finished run are still needed: it is a survey whose places may be measured (until its
        proposals expire: people choose places late), or a fine run of one, or their composite is not made yet."""
        run = self._journal.run(run_uid)
        start = {} if run is None else run["start"]
        if start.get("purpose") == COMPOSITE:
            return False
        fine = start.get("purpose") == "fine" and start.get("parent_uid")
        survey_uid = str(start["parent_uid"]) if fine else run_uid
        proposals = self._journal.proposals(survey_uid=survey_uid)
        if any(self._alive(one) for one in proposals):
            return True
        told = [uid for one in proposals for uid in one["fine_uids"]]
        if not told:
            return False
        known = self._journal.fine_runs(self._now() - _LOOK_BACK_S).get(survey_uid)
        return known is not None and composite_uid(survey_uid, known) not in self._settled

    def _alive(self, proposal: Mapping[str, Any]) -> bool:
        """Whether fine runs of the proposal's survey may come: by it, or by another that follows it in its time."""
        if (self._settings.rescan or proposal["mode"]) in ("off", "suggest"):
            return False
        return proposal["state"] in _ALIVE or self._now() < float(proposal.get("expires") or 0.0)

    def _attend(self, uid: str, survey_uid: str, fine: Sequence[str]) -> None:
        run = self._journal.run(uid)
        if run is None or run["state"] in ("open", "incomplete"):
            self._make(uid, survey_uid, fine)
            return
        outcome = self._journal.outcome(uid)
        if outcome is not None:
            if outcome["status"] == "done":
                self._record(uid)
            self._settled.add(uid)

    def _make(self, uid: str, survey_uid: str, fine: Sequence[str]) -> None:
        survey = self._journal.run(survey_uid)
        job = None if survey is None else self._job_of(survey_uid)
        if survey is None or job is None:
            self._give_up(uid, survey_uid, fine, f"its survey {survey_uid[:8]} has no map")
            return
        profile = self._profiles.get(str(job.meta.get("profile")))
        if profile is None:
            self._give_up(uid, survey_uid, fine, f"no profile {job.meta.get('profile')!r} is known")
            return
        layers: list[InferenceJob] = []
        missing: list[dict[str, Any]] = []
        for one in fine:
            ready = self._fine(one, survey_uid)
            if ready is None:
                return  # its documents are on their way
            if isinstance(ready, InferenceJob):
                layers.append(ready)
            else:
                missing.append(ready)
        if not layers:
            why = "; ".join(f"run {one['uid'][:8]}: {one['reason']}" for one in missing)
            self._give_up(uid, survey_uid, fine, f"none of its fine runs gave a map: {why}")
            return
        layers.sort(key=lambda one: (float(one.meta.get("start_time") or 0.0), one.run_uid))
        run = self._spool.run(uid)
        try:
            arrays = linked(run.folder, [job, *layers])
        except FileNotFoundError as error:
            self._give_up(uid, survey_uid, fine, f"the arrays of a run are gone: {error}")
            return
        made = composite_job(
            uid,
            job,
            layers,
            missing,
            profile,
            arrays,
            run.folder,
            self._settings.results_dir,
        )
        start = composite_start(uid, survey["start"], fine, self._proposal(fine))
        if self._journal.add_composite(uid, survey["scan_id"], survey["profile"], start, made):
            _log.info(
                "composite %s of survey %s and %d fine runs", uid[:8], survey_uid[:8], len(layers)
            )
            self._post(self._broker, Submit(made))
        sync_arrays(run.folder, made.arrays)
        self._journal.synced(made.key, digest_arrays(load(run.folder, made.arrays)))
        self._spool.forget(uid)
        self._post(self._writer, Look())

    def _fine(self, uid: str, survey_uid: str) -> InferenceJob | dict[str, Any] | None:
        """A fine run's job; why there is none; or None while there may still be one."""
        run = self._journal.run(uid)
        if run is None or not self._journal.released(uid):
            heard = max(
                (float(one["heard"]) for one in self._journal.proposals(survey_uid=survey_uid)),
                default=0.0,
            )
            if self._now() - heard <= SILENT_S:
                return None
            region = "" if run is None else run["start"].get("region")
            return {"uid": uid, "region": region or "", "reason": "its documents did not come"}
        job = self._job_of(uid)
        if job is not None and Path(job.spool).is_dir():
            return job
        reason = (
            run["reason"] or "its arrays are gone" if job else run["reason"] or "it gave no map"
        )
        return {"uid": uid, "region": run["start"].get("region") or "", "reason": reason}

    def _job_of(self, run_uid: str) -> InferenceJob | None:
        """First result of a run's first map or stack, as it was asked for."""
        jobs = self._journal.jobs(run_uid=run_uid)
        return self._journal.request(jobs[0]["key"]) if jobs else None

    def _proposal(self, fine: Sequence[str]) -> str:
        run = self._journal.run(fine[-1])
        return "" if run is None else str(run["start"].get("rescan_proposal") or "")

    def _give_up(self, uid: str, survey_uid: str, fine: Sequence[str], reason: str) -> None:
        """Whoever waits for it must hear that it will not come."""
        survey = self._journal.run(survey_uid)
        raw = {} if survey is None else survey["start"]
        start = composite_start(uid, {"uid": survey_uid, **raw}, fine, self._proposal(fine))
        scan_id = None if survey is None else survey["scan_id"]
        profile = "" if survey is None else survey["profile"]
        if self._journal.add_composite(uid, scan_id, profile, start, None, reason):
            _log.warning("no composite of survey %s: %s", survey_uid[:8], reason)
            self._announce(uid)

    def _name(self, uid: str, start: Mapping[str, Any]) -> list[str]:
        survey_uid, *fine = (str(one) for one in start.get("raw_uids") or [""])
        names = [composite_uid(survey_uid, fine[k:]) for k in range(1, len(fine))]
        self._names |= dict.fromkeys(names, uid)
        return names

    def _post(self, mailbox: Mailbox, item: object) -> None:
        try:
            mailbox.post(item)
        except MailboxFullError:
            # The journal has it, and both owners look there by themselves as well.
            _log.warning("a mailbox is full; %s is found in the journal", type(item).__name__)
