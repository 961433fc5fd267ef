"""What a guess about a run is, and how the values of a start document are told apart."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from inscan.callbacks.run_summary import RunSummary

__all__ = [
    "ENERGY",
    "KEV_BELOW",
    "LEAST_IMAGE",
    "ProfileGuess",
    "dwell_of",
    "first_path",
    "numbers",
    "ranges",
    "texts",
]

KEV_BELOW = 200.0
"""An energy below this number is in keV, one above in eV: no edge lies between."""
LEAST_IMAGE = 32
"""An array with both last axes as long as this is an image, not spectra of detector channels."""
ENERGY = re.compile(r"(^|[._])(energy|incident_energy|mono_energy|xeng|eng)$", re.IGNORECASE)
_DWELL = re.compile(
    r"(^|[._])(dwell|dwell_time|exposure_time|exposure|count_time|acquire_time)$", re.IGNORECASE
)


@dataclass
class ProfileGuess:
    """Values of a profile by dotted key.

    Attributes
    ----------
    values
        Dotted key -> value.
    why
        Dotted key -> where it comes from.
    questions
        What the run does not tell; each names its key.
    """

    values: dict[str, Any] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    questions: list[str] = field(default_factory=list)

    def put(self, key: str, value: Any, why: str = "") -> None:
        """Set a key, and say why."""
        self.values[key] = value
        if why:
            self.why[key] = why

    def nested(self) -> dict[str, Any]:
        """The values as a profile file holds them."""
        tree: dict[str, Any] = {}
        for key, value in self.values.items():
            *parents, last = key.split("|")
            place = tree
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = value
        return tree


def dwell_of(run: RunSummary, guess: ProfileGuess, key: str) -> None:
    for path, value in run.paths().items():
        if _DWELL.search(path) and isinstance(value, int | float):
            guess.put(key, path, f"here {value}")
            return
    guess.put(key, None)


def first_path(paths: Mapping[str, Any], name: str, fits: Any) -> str | None:
    """The shortest path that ends in a name and whose value fits."""
    found = [path for path, value in paths.items() if path.split(".")[-1] == name and fits(value)]
    return min(found, key=len, default=None)


def numbers(value: Any) -> bool:
    return _listed(value) and all(
        isinstance(one, int | float) and not isinstance(one, bool) for one in value
    )


def texts(value: Any) -> bool:
    return _listed(value) and all(isinstance(one, str) for one in value)


def ranges(value: Any) -> bool:
    return (
        _listed(value) and len(value) == 2 and all(numbers(one) and len(one) == 2 for one in value)
    )


def _listed(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
