"""What an assembler emits, and what it may say about a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

__all__ = [
    "MALFORMED",
    "Allocate",
    "NotUnderstood",
    "Notes",
    "Update",
    "from_stream",
    "in_memory",
    "shortened",
]

_LONGEST = 2000  # characters of a reason
_LONGEST_NOTE = 500
_MOST_NOTES = 200

Allocate = Callable[[str, tuple[int, ...], np.dtype], np.ndarray]
"""(name, shape, dtype) -> zero-initialised array: a mapped file in the service, memory offline."""


# What documents of the wrong make raise; anything else is a defect of ours and must be heard.
MALFORMED = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError)


def in_memory(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Allocate in memory: what offline processing hands to `open_assembler`."""
    del name
    return np.zeros(shape, dtype)


def shortened(text: str, most: int = _LONGEST) -> str:
    """Return a text as it fits a record: documents may name things of any length."""
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def from_stream(data_key: Mapping[str, Any]) -> bool:
    """Return whether a data key's values come by stream_datum, not in events."""
    return str(data_key.get("external") or "").upper().startswith("STREAM")


class NotUnderstood(ValueError):
    """A run that no profile matches, or that its profile cannot read; the message says why."""


@dataclass(frozen=True)
class Update:
    """State of a run's map or stack.

    Attributes
    ----------
    kind
        ``snapshot``: so far; ``final``: at the end, also of an aborted run; ``rejected``: nothing
        can be computed, ``meta["reason"]`` says why.
    run_uid, stream
        Where the data come from.
    meta
        JSON-able description.
    arrays
        Name -> array. These are the arrays that the assembler writes into: those of a snapshot
        go on growing (pixels appear, measured ones stay as they are), those of a final are still.
    """

    kind: Literal["snapshot", "final", "rejected"]
    run_uid: str
    stream: str
    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]


@dataclass
class Notes:
    """Counted warnings: each kind once, with the number of times and the first example."""

    _counts: dict[str, int] = field(default_factory=dict)
    _examples: dict[str, str] = field(default_factory=dict)

    def add(self, text: str, example: str = "", times: int = 1) -> None:
        """Count a warning. ``text`` identifies it, ``example`` is kept from the first time."""
        text = shortened(text, _LONGEST_NOTE)
        if text not in self._counts and len(self._counts) >= _MOST_NOTES:
            text, example = "more kinds of warnings than are kept", ""
        self._counts[text] = self._counts.get(text, 0) + times
        if example:
            self._examples.setdefault(text, shortened(example, _LONGEST_NOTE))

    def set(self, text: str, times: int) -> None:
        """State a count that is computed anew each time; 0 withdraws the warning."""
        self._counts.pop(text, None)
        if times:
            self._counts[text] = times

    def lines(self) -> list[str]:
        """Return the warnings as sentences, in the order of the alphabet."""
        found = []
        for text, count in sorted(self._counts.items()):
            example = f" ({self._examples[text]})" if text in self._examples else ""
            found.append(text + example + (f" [{count} times]" if count > 1 else ""))
        return found
