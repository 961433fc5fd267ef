"""Rows of an evaluation: figures over seeds, with their 95 % intervals, and how to print them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Figure", "ScoreRow", "score_table", "summarise"]


@dataclass(frozen=True)
class Figure:
    """A mean over seeds and the half width of its 95 % interval (NaN for one seed)."""

    mean: float
    half_width: float


@dataclass(frozen=True)
class ScoreRow:
    """One method on one case.

    Attributes
    ----------
    case, method : str
    figures : mapping of str to Figure
    """

    case: str
    method: str
    figures: Mapping[str, Figure]


def summarise(case: str, method: str, scores: Sequence[Mapping[str, float]]) -> ScoreRow:
    """Mean and interval of every figure over the seeds; NaN scores are left out."""
    figures = {}
    for name in scores[0]:
        values = np.array([score[name] for score in scores], dtype=float)
        values = values[np.isfinite(values)]
        mean = float(values.mean()) if values.size else np.nan
        half = 1.96 * values.std(ddof=1) / np.sqrt(values.size) if values.size > 1 else np.nan
        figures[name] = Figure(mean, float(half))
    return ScoreRow(case, method, figures)


def score_table(rows: Sequence[ScoreRow]) -> str:
    """Rows as text, one line each, cases apart."""
    lines: list[str] = []
    for index, row in enumerate(rows):
        if index == 0 or rows[index - 1].case != row.case:
            lines += ["", row.case, f"{'':26}" + "".join(f"{name:>18}" for name in row.figures)]
        cells = "".join(
            f"{f.mean:11.4g} ±{f.half_width:5.2g}"
            if np.isfinite(f.half_width)
            else f"{f.mean:18.4g}"
            for f in row.figures.values()
        )
        lines.append(f"  {row.method:24}{cells}")
    return "\n".join(lines[1:])
