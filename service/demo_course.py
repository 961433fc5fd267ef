"""How a demo went: its runs, what became of them, and what is missing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from inscan.service.demo_results import RunResult


@dataclass
class Course:
    """How a demo went, as far as it went.

    Attributes
    ----------
    starts, exits : dict
        Start documents and exit statuses by run uid, in the order of the runs.
    outcomes : dict
        What the service made of each run.
    composite : dict or None
        What the service made of the survey and its fine runs together.
    notes, problems : list of str
        What happened, and what is missing and why.
    """

    starts: dict[str, dict[str, Any]] = field(default_factory=dict)
    exits: dict[str, str] = field(default_factory=dict)
    outcomes: dict[str, dict[str, Any]] = field(default_factory=dict)
    composite: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    tiled: str = ""

    def record(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take note of a run; subscribed to the RunEngine."""
        if name == "start":
            self.starts[doc["uid"]] = dict(doc)
        elif name == "stop":
            self.exits[doc["run_start"]] = doc["exit_status"]

    def name(self, uid: str) -> str:
        """Call a run by its purpose, region and scan number."""
        start = self.starts[uid]
        region = f" of region {start['region']}" if "region" in start else ""
        return f"{start.get('purpose', 'scan')}{region} (scan {start.get('scan_id')}, run {uid})"

    @property
    def fines(self) -> list[str]:
        """Runs that name a survey, in their order."""
        return [uid for uid, start in self.starts.items() if start.get("parent_uid")]

    @property
    def regions(self) -> list[dict[str, Any]]:
        """Regions that were proposed: first those of the fine runs with a result, in their order, then the others."""
        proposed = {
            region.get("label"): region
            for outcome in self.outcomes.values()
            for proposal in outcome.get("proposals") or ()
            for region in proposal.get("regions") or ()
        }
        measured = [
            self.starts[uid]["region"]
            for uid, outcome in self.outcomes.items()
            if outcome.get("result_uid") and self.starts[uid].get("region") in proposed
        ]
        return [proposed.pop(label) for label in measured] + list(proposed.values())

    def missing(self) -> list[str]:
        """What Ctrl-C left undone, in words."""
        found = ["stopped by Ctrl-C: what had not been measured is missing"]
        if not self.starts:
            return [*found, "no scan had been started: there is neither a survey nor a result"]
        for uid in self.starts:
            status = self.exits.get(uid, "not closed")
            if status != "success":
                covered = self.outcomes.get(uid, {}).get("result_uid")
                rest = "its result covers what had been measured" if covered else "it has no result"
                found.append(f"{self.name(uid)} ended early ({status}); {rest}")
        taken = {start.get("region") for start in self.starts.values()}
        found += [
            f"region {region['label']} was proposed and not measured"
            for region in self.regions
            if region.get("label") not in taken
        ]
        return found if len(found) > 1 else ["stopped by Ctrl-C, after the last scan"]

    def entry(self, uid: str, results: list[RunResult]) -> dict[str, Any]:
        """A run in the demo's answer; `result_uid` is None when there is no result of it."""
        start = self.starts[uid]
        result = next((result for result in results if result.run_uid == uid), None)
        return {
            "uid": uid,
            "scan_id": start.get("scan_id"),
            "purpose": start.get("purpose", "survey"),
            "parent_uid": start.get("parent_uid"),
            "region": start.get("region"),
            "proposal": start.get("rescan_proposal"),
            "exit_status": self.exits.get(uid),
            "result_uid": None if result is None else result.result_uid,
            "verdict": None if result is None else result.verdict,
            "reasons": [] if result is None else result.reasons,
        }
