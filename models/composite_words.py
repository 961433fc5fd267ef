"""What is said of a composite's layers, for plans and for people."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inscan.models.composite_layer import Layer, Placement

__all__ = ["layer_reports", "summary"]

_FALLING = 3.0  # standard deviations


def layer_reports(survey: Layer, placements: Sequence[Placement]) -> tuple[dict[str, Any], ...]:
    """One mapping for each fine map, JSON-able; see `inscan.models.composite.Composite`."""
    reports = []
    for one, dose in zip(placements, _doses(survey, placements), strict=True):
        # The stage is sent the other way: what the scan saw too far on lies nearer.
        followed = -one.shift if one.used else np.zeros(2)
        reports.append(
            {
                "uid": one.layer.uid,
                "region": one.layer.label,
                "found": one.found,
                "shift": [float(s) + 0.0 for s in followed],
                "shift_error": [float(s) if np.isfinite(s) else None for s in one.error],
                "agrees": bool(one.used and one.agrees.all()),
                "used": one.used,
                "reason": one.reason,
                "elements": {
                    name: bool(ok) for name, ok in zip(one.layer.elements, one.agrees, strict=True)
                },
                "dose": round(float(dose), 3),
                "beam": round(float(one.factor), 6),
                "figures": dict(one.figures),
            }
        )
    return tuple(reports)


def summary(survey: Layer, placements: Sequence[Placement], notes: Sequence[str]) -> str:
    """All of it in sentences."""
    used = sum(one.used for one in placements)
    told = [f"{used} of {len(placements)} fine maps are in the composite"]
    told += [f"{one.layer.name}: {one.reason}" for one in placements]
    told += _damage(survey, placements)
    return ". ".join([*told, *notes]) + "."


def _doses(survey: Layer, placements: Sequence[Placement]) -> list[float]:
    """Dose that a place had by the end of each fine map, the survey's as 1."""
    per_area = _light(survey, 1.0)
    doses = []
    for number, one in enumerate(placements):
        before = [other for other in placements[:number] if _meet(one, other)]
        doses.append(
            1.0 + sum(_light(each.layer, each.factor) for each in (*before, one)) / per_area
        )
    return doses


def _light(layer: Layer, factor: float) -> float:
    """Exposure on a square motor unit, in the survey's units."""
    seen = layer.seen()
    mean = float(np.asarray(layer.exposure, dtype=np.float64)[seen].mean()) if seen.any() else 0.0
    return max(mean * factor / float(np.abs(np.prod(layer.steps))), 1e-30)


def _meet(one: Placement, other: Placement) -> bool:
    def apart(a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
        return bool(a.max() < b.min() or b.max() < a.min())

    return not (apart(one.layer.rows, other.layer.rows) or apart(one.layer.cols, other.layer.cols))


def _damage(survey: Layer, placements: Sequence[Placement]) -> list[str]:
    """Elements that go down further with every scan of a place."""
    doses = _doses(survey, placements)
    found = []
    for k, name in enumerate(survey.elements):
        for number, last in enumerate(placements):
            if not last.used or last.agrees[k] or "ratio" not in last.figures:
                continue
            steps = [
                (dose, 1 / r, one.figures["ratio_error"][k] / r**2)
                for dose, one in zip(doses[: number + 1], placements[: number + 1], strict=True)
                if one.used
                and (r := one.figures.get("ratio", [0.0] * (k + 1))[k]) > 0
                and _meet(one, last)
            ]
            falls = all(
                a[1] - b[1] > _FALLING * np.hypot(a[2], b[2])
                for a, b in zip([(1.0, 1.0, 0.0), *steps], steps, strict=False)
            )
            if len(steps) > 1 and falls:
                course = ", ".join(f"{100 * (r - 1):+.1f} % after {d:.3g}" for d, r, _ in steps)
                found.append(f"{name} falls with the dose ({course} times the survey's): damage")
    return list(dict.fromkeys(found))
