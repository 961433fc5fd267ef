"""How far the sample has moved since the survey, as the service finds it by laying fine maps onto the survey."""

from collections.abc import Generator, Mapping
from typing import Any

from bluesky.utils import Msg

from inscan.callbacks.composite_uid import composite_uid
from inscan.callbacks.connection import Connection
from inscan.callbacks.plan_execution import Execution
from inscan.callbacks.plan_waiting import OutcomeTimeout, wait_for_outcome

__all__ = ["Drift"]


class Drift:
    """Drift of one proposal's regions.

    Parameters
    ----------
    connection : Connection
    proposal : mapping
        Its ``follow_drift``, ``max_shift`` and ``margin`` (slow, fast, in motor units) say how.
    timeout : float
        Seconds to wait for a composite.
    composite : bool
        The composite of all runs is wanted, whether or not the drift is followed.

    Attributes
    ----------
    survey_uid : str
        Run that all of it began with.
    shift : (float, float) or None
        To be added to the next region, in motor units; None: nothing is known of a drift.
    missed : bool
        The last region was off by more than its margin.
    remark : str
        What else the composite says of the last region.
    outcome : dict or None
        The newest composite's.
    """

    def __init__(
        self,
        connection: Connection,
        proposal: Mapping[str, Any],
        timeout: float,
        composite: bool,
    ) -> None:
        self.survey_uid = str(proposal.get("survey_uid") or proposal.get("run_uid") or "")
        self.shift: tuple[float, float] | None = None
        self.missed = False
        self.remark = ""
        self.outcome: dict[str, Any] | None = None
        self._connection = connection
        self._timeout = timeout
        self._follow = bool(proposal.get("follow_drift"))
        self._composite = composite
        self._max_shift = _pair(proposal.get("max_shift"))
        self._margin = _pair(proposal.get("margin"))

    def wanted(self, last: bool, *, may_repeat: bool) -> bool:
        """Whether the region just measured has to be looked at before the plan goes on."""
        return self._composite and last or self._follow and (not last or may_repeat)

    def look(self, execution: Execution, run_uid: str, label: Any) -> Generator[Msg, Any, str]:
        """Wait for the composite with the last fine run; return why the drift is not known, or nothing."""
        self.missed, self.remark = False, ""
        refusal = yield from execution.measured()
        if refusal:
            return f"the service has not taken note of region {label}: {refusal}"
        uid = composite_uid(self.survey_uid, [*execution.earlier, *execution.runs])
        try:
            outcome = yield from wait_for_outcome(self._connection, uid, self._timeout)
        except OutcomeTimeout as error:
            return f"where region {label} lies in the survey is not known: {error}"
        self.outcome = outcome
        if outcome.get("status") != "done":
            return f"the composite was not made: {outcome.get('status')}, {outcome.get('reason')}"
        layers = (outcome.get("composite") or {}).get("layers") or ()
        layer = next((one for one in layers if one.get("uid") == run_uid), None)
        if layer is None:
            return f"the composite does not have region {label}"
        return self._judge(layer) if self._follow else ""

    def _judge(self, layer: Mapping[str, Any]) -> str:
        off = _pair(layer.get("shift"))
        if not layer.get("found") and self._as_expected(layer, off):
            self.remark = (
                f"it is taken to lie where the regions before it do: {layer.get('reason') or ''}"
            )
            return ""
        if not layer.get("found") or off is None:
            return f"it was not found in the survey: {layer.get('reason') or 'no reason given'}"
        if not layer.get("agrees", True):
            self.remark = f"it does not agree with the survey: {layer.get('reason') or ''}"
        if self._max_shift is not None and _beyond(off, self._max_shift):
            return (
                f"the sample has moved by {off[0]:.4g}, {off[1]:.4g}; at most "
                f"{self._max_shift[0]:.4g}, {self._max_shift[1]:.4g} are followed (rescan.max_shift)"
            )
        # Against the survey, not against where this region was sent.
        sent = self.shift or (0.0, 0.0)
        self.shift = off
        beside = (off[0] - sent[0], off[1] - sent[1])
        self.missed = self._margin is not None and _beyond(beside, self._margin)
        if self.missed:
            self.remark = f"it was missed by {beside[0]:.4g}, {beside[1]:.4g}, more than its margin"
        return ""

    def _as_expected(self, layer: Mapping[str, Any], off: tuple[float, float] | None) -> bool:
        """Whether a region too faint to be found has the survey's counts where earlier ones say that it lies."""
        if self.shift is None or off is None or not layer.get("agrees", False):
            return False
        # The counts were compared where the composite put it: that must be where it was sent.
        beside = (off[0] - self.shift[0], off[1] - self.shift[1])
        return not _beyond(beside, self._margin or (0.0, 0.0))

    def moved(self, region: Mapping[str, Any]) -> dict[str, Any]:
        """The region where the sample is now."""
        if self.shift is None:
            return dict(region)
        slow, fast = self.shift
        moved = {**region, "shift": [slow, fast]}
        for key, off in (("slow_range", slow), ("fast_range", fast)):
            moved[key] = [edge + off for edge in region[key]]
        if region.get("extents"):
            moved["extents"] = [
                [edge + off for edge in axis]
                for axis, off in zip(region["extents"], self.shift, strict=True)
            ]
        return moved


def _pair(value: Any) -> tuple[float, float] | None:
    """(slow, fast) of what a document says; None where it says nothing."""
    if not isinstance(value, list | tuple) or len(value) != 2 or None in value:
        return None
    return float(value[0]), float(value[1])


def _beyond(shift: tuple[float, float], limit: tuple[float, float]) -> bool:
    return any(abs(one) > most for one, most in zip(shift, limit, strict=True))
