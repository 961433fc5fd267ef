"""Readings of the stream `baseline`: the state of a beamline that start documents do not tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from inscan.callbacks.run_meta import plain

__all__ = ["STREAM", "Baseline"]

STREAM = "baseline"
"""Its name, as Bluesky's `SupplementalData` and `baseline_wrapper` write it."""
_LONGEST = 200  # characters of a text
_MOST = 100  # numbers of a list


class Baseline:
    """Keeps the latest reading of the keys that matter; small whatever a run sends.

    Bluesky reads the baseline when a run opens and when it closes: the latest is how the run left the beamline.

    Parameters
    ----------
    keys
        Data keys that are kept.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._keys = frozenset(keys)
        self._readings: dict[str, Any] = {}
        self._latest: dict[str, int] = {}

    @property
    def readings(self) -> dict[str, Any]:
        """Data key to number, text, or list of numbers; JSON-able."""
        return dict(self._readings)

    def event(self, doc: Mapping[str, Any]) -> None:
        """Take an event of the stream; KeyError or TypeError when it is none."""
        seq_num = int(doc["seq_num"])
        data = doc["data"]
        for key in self._keys & data.keys():
            if seq_num >= self._latest.get(key, seq_num) and _small(value := plain(data[key])):
                self._readings[key], self._latest[key] = value, seq_num


def _small(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= _LONGEST
    if isinstance(value, list):
        return len(value) <= _MOST and all(isinstance(one, int | float) for one in value)
    return isinstance(value, int | float)
