"""The demo's word on survey and fine maps together."""

from collections.abc import Mapping
from typing import Any

from inscan.service.demo_report import Block

__all__ = ["composite_answer", "composite_block"]


def composite_block(outcome: Mapping[str, Any]) -> Block:
    """Say how each fine map was found in the survey, and what became of the uncertainty.

    Parameters
    ----------
    outcome : mapping
        Of the composite, `status` done.
    """
    told = outcome.get("composite") or {}
    rows = [
        (
            str(layer.get("region") or layer["uid"][:8]),
            "yes" if layer.get("found") else "no",
            _shift(layer),
            "yes" if layer.get("agrees") else "no",
        )
        for layer in told.get("layers") or ()
    ]
    headings = ("fine map of region", "found again", "drift, slow and fast (um)", "counts agree")
    return Block("Survey and fine maps in one estimate", headings, rows, str(told.get("text", "")))


def composite_answer(outcome: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What the demo's JSON has of it; None without one."""
    if outcome is None or outcome.get("status") != "done":
        return None
    told = outcome.get("composite") or {}
    return {
        "uid": outcome["run"],
        "result_uid": outcome["result_uid"],
        "verdict": outcome["verdict"],
        "layers": list(told.get("layers") or ()),
        "sigma": dict(told.get("sigma") or {}),
        "text": told.get("text", ""),
    }


def _shift(layer: Mapping[str, Any]) -> str:
    if not layer.get("found"):
        return ""
    # A place without structure may be recognised by its counts and still not tell where it lies.
    return ", ".join(
        "not measurable" if error is None else f"{shift:+.2f} ± {error:.2f}"
        for shift, error in zip(layer["shift"], layer["shift_error"], strict=True)
    )
