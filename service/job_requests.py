"""What people may ask to be done with jobs: try a failed one again, take one out of the queue."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inscan.service.events import Submit, TakenOut
from inscan.service.journal import Journal
from inscan.service.mailbox import Mailbox, MailboxFullError
from inscan.service.spool import SpoolError, load

_SHORTEST = 4
_MOST_LISTED = 10
_MOST_TOLD = 200
_LONGEST = 1000
_OPEN = ("queued", "leased")


class JobRequests:
    """Finds the jobs that are meant and changes them in the journal, which is the truth; the broker is told.

    Parameters
    ----------
    journal : Journal
    broker : Mailbox
    """

    def __init__(self, journal: Journal, broker: Mailbox) -> None:
        self._journal = journal
        self._broker = broker

    def jobs(
        self,
        state: str | None = None,
        run_uid: str | None = None,
        code: str | None = None,
        limit: int = _MOST_TOLD,
    ) -> Mapping[str, Any]:
        """Jobs, oldest first, each with its `history`: what people did with it. The latest ones, where there are many
        (`limited`): the answer is given in ingest's thread."""
        history = self._journal.history()
        most = max(1, min(int(limit), _MOST_TOLD))
        found = self._journal.jobs(state, run_uid, code=code, limit=most)
        jobs = [one | {"history": history.get(one["key"], [])} for one in found]
        return {"jobs": jobs, "limited": len(found) == most}

    def retry(
        self, who: str, job: str = "", all_failed: bool = False, reason: str = ""
    ) -> Mapping[str, Any]:
        """Queue failed jobs again.

        Parameters
        ----------
        job : str
            Beginning of a job's key or of a run's uid, or a scan number.
        all_failed : bool
            Every failed job instead.

        Returns
        -------
        dict
            `retried` and `refused`: jobs as `key`, `run_uid`, `scan_id`, and why not.

        Raises
        ------
        LookupError
            When nothing is meant by it, or several things are.
        ValueError
            When it means jobs none of which has failed.
        """
        chosen = self._journal.jobs("failed") if all_failed else self._meant(job)
        failed = [one for one in chosen if one["state"] == "failed"]
        if chosen and not failed:
            raise ValueError(f"{_named(chosen)}: only a failed job can be tried again")
        answer: dict[str, Any] = {"retried": [], "refused": []}
        for one in failed:
            about = {name: one[name] for name in ("key", "run_uid", "scan_id")}
            why = self._missing(one["key"], one["run_uid"])
            if not why and not self._journal.retry(one["key"], who, reason[:_LONGEST]):
                why = "it has changed meanwhile; look at it again"
            if why:
                answer["refused"].append(about | {"reason": why})
                continue
            answer["retried"].append(about)
            request = self._journal.request(one["key"])
            if request is not None:
                self._post(Submit(request))
        return answer

    def quarantine(self, who: str, job: str, reason: str) -> Mapping[str, Any]:
        """End jobs that wait or are being worked on; the reason is their record.

        Raises
        ------
        LookupError
            When nothing is meant by it, or several things are.
        ValueError
            Without a reason, or when what is meant has its result or has ended.
        """
        if not reason.strip():
            raise ValueError("say why: the reason is what is kept of the job (--reason)")
        chosen = self._meant(job)
        waiting = [one for one in chosen if one["state"] in _OPEN]
        taken = []
        for one in waiting:
            if self._journal.quarantine(one["key"], who, reason[:_LONGEST]):
                taken.append({name: one[name] for name in ("key", "run_uid", "scan_id")})
                self._post(TakenOut(one["key"]))
        if not taken:
            raise ValueError(
                f"{_named(chosen)}: only one that waits or is at work can be taken out"
            )
        return {"quarantined": taken}

    def _missing(self, key: str, run_uid: str) -> str:
        """Why a job cannot be computed again; empty when it can."""
        request = None if self._journal.lacks_request(key) else self._journal.request(key)
        try:
            if request is None:
                raise SpoolError("the journal keeps no more than its end")
            load(Path(request.spool), request.arrays)
        except SpoolError as error:
            return (
                f"its input is gone ({error}); `inscan process {run_uid}` reads the stored raw run again, and puts its"
                " result into Tiled in the place of the failure"
            )
        return ""

    def _meant(self, wanted: str) -> list[dict[str, Any]]:
        text = wanted.strip()
        if not text or (len(text) < _SHORTEST and not text.isdigit()):
            raise LookupError(
                f"{wanted!r} is too little: give a scan number, or {_SHORTEST} or more characters of a job's key or"
                " a run's uid; `inscan jobs` lists them"
            )
        found = self._journal.find_jobs(text)
        if not found:
            raise LookupError(f"no job is meant by {wanted!r}; `inscan jobs` lists them")
        by_key = [one for one in found if one["key"].startswith(text)]
        runs = {one["run_uid"] for one in found}
        several_keys = len(by_key) > 1 and len(by_key) == len(found)
        if len(runs) > 1 or several_keys:
            names = ", ".join(
                f"{one['key'][:12]} (run {one['run_uid'][:8]}, scan {one['scan_id']}, {one['state']})"
                for one in found[:_MOST_LISTED]
            )
            more = f" and {len(found) - _MOST_LISTED} more" if len(found) > _MOST_LISTED else ""
            raise LookupError(f"{wanted!r} means several: {names}{more}; give more of one")
        return found

    def _post(self, item: object) -> None:
        try:
            self._broker.post(item)
        except MailboxFullError:
            return  # the broker looks into the journal by itself as well


def _named(jobs: list[dict[str, Any]]) -> str:
    return ", ".join(f"job {one['key'][:12]} is {one['state']}" for one in jobs[:_MOST_LISTED])
