"""A device that reads what inscan says about a run, for plans of one's own."""

from typing import Any

import numpy as np
from ophyd import Component, Device, Signal
from ophyd.status import DeviceStatus

from inscan.callbacks.connection import Connection
from inscan.callbacks.plan_measure import APPROVED

_MAX_REGIONS = 16
# Widest text that an event may carry here; longer ones are cut.
_TEXT = 200


class RoiDevice(Device):
    """Regions of interest of a survey, as a detector.

    Set ``run_uid`` to the survey's uid, trigger it (this completes when the service has an
    outcome), read it. Used as a detector of the fine scan, it records the regions in its events.
    Whatever measures them gives ``proposals`` to `inscan.callbacks.plans.measure_proposal`, which
    asks the service before each region.

    Parameters
    ----------
    connection : Connection
        The one subscribed to this RunEngine.
    timeout : float
        Seconds that a trigger waits for the outcome before it fails.

    Attributes
    ----------
    run_uid : Signal
        Survey to ask about.
    result_uid, verdict : Signal
        Derived run, and its verdict (pass, warn, block).
    proposal : Signal
        Id of the (first) approved proposal, empty where there is none.
    count : Signal
        Number of regions proposed and approved.
    boxes : Signal
        float64, shape (16, 4): slow low, slow high, fast low, fast high in motor units; NaN in
        unused rows.
    scores : Signal
        float64, shape (16,); NaN where unused.
    """

    run_uid = Component(Signal, value="", kind="normal")
    result_uid = Component(Signal, value="", kind="normal")
    verdict = Component(Signal, value="", kind="normal")
    proposal = Component(Signal, value="", kind="normal")
    count = Component(Signal, value=0, kind="hinted")
    boxes = Component(Signal, value=np.full((_MAX_REGIONS, 4), np.nan), kind="normal")
    scores = Component(Signal, value=np.full(_MAX_REGIONS, np.nan), kind="normal")

    def __init__(self, connection: Connection, *, timeout: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.regions: list[dict[str, Any]] = []
        """Regions of the last trigger as mappings, with the reasons in words."""
        self.proposals: list[dict[str, Any]] = []
        """Approved proposals of the last trigger."""
        self._connection = connection
        self._timeout = timeout

    def trigger(self) -> DeviceStatus:
        """Complete when the outcome of ``run_uid`` is there and the signals hold it.

        The status fails if the run failed or was passed by, or after the timeout.
        """
        run_uid: Any = self.run_uid.get()
        status = DeviceStatus(self, timeout=self._timeout)
        if not isinstance(run_uid, str) or not run_uid:
            found = "empty" if run_uid == "" else repr(run_uid)
            status.set_exception(
                ValueError(f"{self.name}.run_uid is {found}; set it to the survey's uid first")
            )
            return status

        def finish(future: Any) -> None:
            if status.done:
                return
            try:
                self._take(run_uid, future.result())
            except Exception as error:  # noqa: BLE001 - whatever it is belongs to who triggered
                status.set_exception(error)
            else:
                status.set_finished()

        self._connection.future(run_uid).add_done_callback(finish)
        return status

    def _take(self, run_uid: str, outcome: dict[str, Any]) -> None:
        if outcome.get("status") != "done":
            raise RuntimeError(f"run {run_uid}: {outcome.get('status')}, {outcome.get('reason')}")
        self.proposals = [
            {"survey_uid": run_uid, **proposal}
            for proposal in outcome.get("proposals") or ()
            if proposal.get("state") in APPROVED
        ]
        regions = [one for proposal in self.proposals for one in proposal.get("regions") or ()]
        self.regions = regions[:_MAX_REGIONS]
        boxes = np.full((_MAX_REGIONS, 4), np.nan)
        scores = np.full(_MAX_REGIONS, np.nan)
        for row, region in enumerate(self.regions):
            boxes[row] = [*region["slow_range"], *region["fast_range"]]
            scores[row] = region["score"]
        self.result_uid.put(str(outcome.get("result_uid") or "")[:_TEXT])
        self.verdict.put(str(outcome.get("verdict") or "")[:_TEXT])
        self.proposal.put(str(self.proposals[0]["id"])[:_TEXT] if self.proposals else "")
        self.count.put(len(self.regions))
        self.boxes.put(boxes)
        self.scores.put(scores)
