"""Places on the sample, in motor units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["RegionOfInterest"]


@dataclass(frozen=True)
class RegionOfInterest:
    """A box on the sample that is worth measuring better.

    Attributes
    ----------
    slow_range, fast_range
        (low, high): outer edges in motor units.
    box
        (row0, row1, col0, col1) of the survey map, half open, before padding.
    score
        Log-likelihood ratio against background; larger is surer.
    reason
        Why it was chosen, in words.
    label
        Short name, unique within a run.
    """

    slow_range: tuple[float, float]
    fast_range: tuple[float, float]
    box: tuple[int, int, int, int]
    score: float
    reason: str
    label: str

    @property
    def area(self) -> float:
        """Area in products of the motor units."""
        return (self.slow_range[1] - self.slow_range[0]) * (self.fast_range[1] - self.fast_range[0])

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able mapping; `from_dict` reads it."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> RegionOfInterest:
        """Read what `to_dict` wrote; ValueError when it is something else."""
        try:
            row0, row1, col0, col1 = (int(edge) for edge in mapping["box"])
            slow_low, slow_high = (float(edge) for edge in mapping["slow_range"])
            fast_low, fast_high = (float(edge) for edge in mapping["fast_range"])
            return cls(
                slow_range=(slow_low, slow_high),
                fast_range=(fast_low, fast_high),
                box=(row0, row1, col0, col1),
                score=float(mapping["score"]),
                reason=str(mapping["reason"]),
                label=str(mapping["label"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a region of interest: {error!r}") from error
