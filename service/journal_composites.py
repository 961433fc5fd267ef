"""The journal's part on composites: which fine runs of which surveys there are, and runs that were never measured."""

import json
import time
from collections.abc import Callable
from typing import Any

from inscan.service import journal_rows
from inscan.service.journal_file import Database
from inscan.service.messages import InferenceJob


class CompositeJournal:
    """What the journal knows of composites; a part of `inscan.service.journal.Journal`, safe to use from any thread.

    Parameters
    ----------
    file : Database
    boot : str
        Name of this boot.
    clock : callable
        Seconds since boot.
    """

    _file: Database
    _boot: str
    _clock: Callable[[], float]

    def changes(self) -> int:
        """A number that rises with every change made through this object."""
        return self._file.changes()

    def fine_runs(self, since: float) -> dict[str, list[str]]:
        """Fine runs that plans have told of, by survey, in the order in which they were told.

        Parameters
        ----------
        since : float
            Of surveys of which something was told later than this, seconds since the epoch.
        """
        rows = self._file.rows(
            "SELECT p.survey_uid, n.name, n.at FROM proposal_notes n JOIN proposals p ON p.id = n.id"
            " WHERE n.kind = 'run' ORDER BY n.at, n.rowid"
        )
        found: dict[str, list[str]] = {}
        latest: dict[str, float] = {}
        for survey, uid, at in rows:
            runs = found.setdefault(survey, [])
            if uid not in runs:
                runs.append(uid)
            latest[survey] = max(latest.get(survey, 0.0), at)
        return {survey: runs for survey, runs in found.items() if latest[survey] >= since}

    def composites(self, survey_uid: str | None = None) -> list[dict[str, Any]]:
        """Composites that were made, or could not be, oldest first: `run_uid`, `start`, `state` and `reason`."""
        rows = self._file.rows(
            "SELECT run_uid, start, state, reason FROM runs"
            " WHERE json_extract(start, '$.purpose') = 'composite'"
            " AND (? IS NULL OR json_extract(start, '$.parent_uid') = ?) ORDER BY created, rowid",
            (survey_uid, survey_uid),
        )
        names = ("run_uid", "start", "state", "reason")
        return [
            dict(zip(names, (uid, json.loads(start), state, reason), strict=True))
            for uid, start, state, reason in rows
        ]

    def add_composite(
        self,
        run_uid: str,
        scan_id: int | None,
        profile: str,
        start: dict[str, Any],
        job: InferenceJob | None,
        reason: str = "",
    ) -> bool:
        """Note a composite as a run that has ended, and queue its job, in one step; False when it is known.

        Parameters
        ----------
        job : InferenceJob or None
            None where it cannot be made: `reason` says why, and its outcome is that.
        """
        now = time.time()
        state = "failed" if job is None else "complete"
        with self._file.transaction() as c:
            # Open again: a power cut came between the job and the sync of its arrays, and took the job away.
            if not c.execute(
                "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (run_uid) DO UPDATE"
                " SET state = excluded.state, reason = excluded.reason, updated = excluded.updated"
                " WHERE runs.state IN ('open', 'incomplete')",
                (
                    run_uid,
                    scan_id,
                    profile,
                    json.dumps(start, default=str),
                    state,
                    reason,
                    now,
                    now,
                ),
            ).rowcount:
                return False
            if job is not None:
                journal_rows.add_job(c, job, self._boot, self._clock())
        return True
