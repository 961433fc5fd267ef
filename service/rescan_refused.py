"""Reasons for which neither regions nor energies are proposed, and a proposal that says so."""

from dataclasses import replace
from typing import Any

from inscan.service.messages import InferenceResult
from inscan.service.proposal import Refusal, RescanProposal

__all__ = ["REPLAYED", "blocked", "refused"]

REPLAYED = Refusal("replay", "this run is a replay: its sample is not there to be measured again")


def blocked(result: InferenceResult) -> Refusal | None:
    """Refuse to follow a result whose verdict is `block`."""
    if result.report.get("verdict") != "block":
        return None
    reasons = "; ".join(str(reason) for reason in result.report.get("reasons", [])) or "no reason"
    return Refusal("verdict", f"the result's verdict is block ({reasons})")


def refused(base: RescanProposal, refusal: Refusal, **described: Any) -> RescanProposal:
    """The proposal as one in state `refused`; `described` replaces what else it says."""
    dropped = described.pop("dropped", (refusal,))
    return replace(
        base,
        state="refused",
        reason=f"{refusal.rule}: {refusal.text}",
        dropped=dropped,
        **described,
    )
