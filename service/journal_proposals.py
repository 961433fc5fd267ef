"""The journal's part on rescans: proposals, what became of their regions, and what runs tell of the beamline."""

import json
from typing import Any

from inscan.service import journal_rows
from inscan.service.journal_file import Database
from inscan.service.messages import InferenceResult


class ProposalJournal:
    """What the journal knows of rescans; a part of `inscan.service.journal.Journal`, safe to use from any thread.

    Parameters
    ----------
    file : Database
    """

    def __init__(self, file: Database) -> None:
        self._file = file

    def add_proposal(self, proposal: dict[str, Any]) -> bool:
        """Keep a rescan proposal (keys `id`, `run_uid`, `state` and what else it says); False when
        known."""
        with self._file.transaction() as c:
            return journal_rows.add_proposal(c, proposal)

    def set_proposal(
        self,
        proposal_id: str,
        state: str,
        who: str,
        reason: str = "",
        *,
        expected: tuple[str, ...] | None = None,
    ) -> bool:
        """Move a proposal to another state and remember who did it.

        Parameters
        ----------
        expected : tuple of str or None
            Only from one of these states, tested and set in one step: of two that start the same
            rescan, one is told False.

        Raises
        ------
        LookupError
            When there is no such proposal.
        """
        with self._file.transaction() as c:
            return journal_rows.set_proposal(c, proposal_id, state, who, reason, expected)

    def note_proposal(
        self, proposal_id: str, kind: str, name: str, body: dict[str, Any], at: float
    ) -> bool:
        """Keep a note on a proposal (`journal_rows.NOTES`, or `heard`); whether there was none of that kind and name.

        Raises
        ------
        LookupError
            When there is no such proposal.
        """
        with self._file.transaction() as c:
            return journal_rows.note_proposal(c, proposal_id, kind, name, body, at)

    def proposals(
        self,
        run_uid: str | None = None,
        state: str | None = None,
        *,
        survey_uid: str | None = None,
        prefix: str | None = None,
    ) -> list[dict[str, Any]]:
        """Proposals with their present `state`, `who`, `reason` and `history`, oldest first.

        Each has besides `attempts` (how often it was begun), `begun` and `covered` (regions that were about to be
        measured, and that were), `fine_uids`, `measured` (records of predicted and measured) and `heard` (time of the
        last note).

        Parameters
        ----------
        survey_uid : str or None
            Of one survey and its composites.
        prefix : str or None
            Whose ids begin so.
        """
        with self._file.transaction() as c:
            return journal_rows.proposals(
                c, run_uid=run_uid, state=state, survey_uid=survey_uid, prefix=prefix
            )

    def records(self, profile: str | None = None, limit: int = 200) -> list[dict[str, Any]]:
        """Records of predicted and measured rescans, of one profile or all, the latest first."""
        rows = self._file.rows(
            "SELECT body FROM proposal_notes WHERE kind = 'measured'"
            " AND (? IS NULL OR json_extract(body, '$.profile') = ?) ORDER BY at DESC LIMIT ?",
            (profile, profile, limit),
        )
        return [json.loads(row[0]) for row in rows]

    def timing(self, run_uid: str) -> tuple[float | None, float | None]:
        """Begin and end of a run, seconds since the epoch, as its documents say."""
        rows = self._file.rows(
            "SELECT json_extract(job, '$.meta.start_time'), json_extract(job, '$.meta.stop_time')"
            " FROM jobs WHERE run_uid = ? ORDER BY seq LIMIT 1",
            (run_uid,),
        )
        return (rows[0][0], rows[0][1]) if rows else (None, None)

    def baseline(self, run_uid: str) -> dict[str, Any]:
        """Readings of a run's stream `baseline` that its latest job carries; empty where there are none."""
        rows = self._file.rows(
            "SELECT json_extract(job, '$.meta.baseline') FROM jobs WHERE run_uid = ?"
            " ORDER BY seq DESC LIMIT 1",
            (run_uid,),
        )
        return json.loads(rows[0][0]) if rows and rows[0][0] else {}

    def report(self, key: str) -> dict[str, Any]:
        """Report of a job's result; empty while there is none."""
        rows = self._file.rows("SELECT result FROM jobs WHERE key = ?", (key,))
        if not rows or not rows[0][0]:
            return {}
        return InferenceResult.model_validate_json(rows[0][0]).report
