"""Rows of an evaluation: figures over seeds with their 95 % intervals; printing and keeping them."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

__all__ = [
    "Figure",
    "ScoreRow",
    "figure",
    "in_words",
    "read_rows",
    "rows_from_json",
    "score_table",
    "summarise",
    "to_json",
]


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
    seeds : int
        Number of seeds behind the figures; 0 where it was not said.
    """

    case: str
    method: str
    figures: Mapping[str, Figure]
    seeds: int = 0


def figure(values: Sequence[float], *, geometric: bool = False) -> Figure:
    """Mean and 95 % interval of the mean (Student's t); values that are not finite are left out.

    Parameters
    ----------
    values : sequence of float
        One for each seed.
    geometric : bool
        Average logarithms, for factors; the half width is then that of the logarithm times the
        mean, which for small intervals is the same as one on either side. Needs values above 0.
    """
    finite = np.array([value for value in values if math.isfinite(value)], dtype=float)
    if finite.size == 0:
        return Figure(math.nan, math.nan)
    if geometric:
        finite = np.log(finite)
    mean = float(finite.mean())
    half = math.nan
    if finite.size > 1:
        reach = float(student.ppf(0.975, finite.size - 1))
        half = reach * float(finite.std(ddof=1)) / math.sqrt(finite.size)
    return Figure(math.exp(mean), math.exp(mean) * half) if geometric else Figure(mean, half)


def summarise(
    case: str,
    method: str,
    scores: Sequence[Mapping[str, float]],
    *,
    geometric: Collection[str] = (),
) -> ScoreRow:
    """Mean and interval of every figure over the seeds; NaN scores are left out.

    Parameters
    ----------
    case, method : str
    scores : sequence of mapping
        One for each seed; a figure may be missing in some.
    geometric : collection of str
        Names of figures that are factors: see `figure`.
    """
    names = dict.fromkeys(name for score in scores for name in score)
    figures = {
        name: figure([score.get(name, math.nan) for score in scores], geometric=name in geometric)
        for name in names
    }
    return ScoreRow(case, method, figures, len(scores))


def score_table(rows: Sequence[ScoreRow], columns: Sequence[str] | None = None) -> str:
    """Rows as text, one line each, cases apart.

    Parameters
    ----------
    rows : sequence of ScoreRow
    columns : sequence of str, optional
        The figures to print, in this order; all of them by default.
    """
    lines: list[str] = []
    margin = max((len(row.method) for row in rows), default=0) + 2
    blocks = [
        [row for row in rows if row.case == case] for case in dict.fromkeys(r.case for r in rows)
    ]
    for block in blocks:
        every = dict.fromkeys(name for row in block for name in row.figures)
        shown = [name for name in (columns or every) if name in every]
        texts = [[in_words(row.figures.get(name)) for name in shown] for row in block]
        sizes = [
            max(map(len, (name, *column))) + 2
            for name, column in zip(shown, zip(*texts, strict=True), strict=True)
        ]
        lines += ["", block[0].case, " " * margin + _line(shown, sizes)]
        for row, cells in zip(block, texts, strict=True):
            lines.append(f"  {row.method:{margin - 2}}" + _line(cells, sizes))
    return "\n".join(lines[1:])


def to_json(rows: Sequence[ScoreRow]) -> list[dict[str, Any]]:
    """Rows as plain lists and mappings; figures that are not finite become None."""
    return [
        {
            "case": row.case,
            "method": row.method,
            "seeds": row.seeds,
            "figures": {
                name: {"mean": _finite(f.mean), "half_width": _finite(f.half_width)}
                for name, f in row.figures.items()
            },
        }
        for row in rows
    ]


def rows_from_json(stored: Sequence[Mapping[str, Any]]) -> list[ScoreRow]:
    """What `to_json` made, as rows again.

    Raises
    ------
    ValueError
        Where a row lacks its case, method or figures.
    """
    rows = []
    for index, row in enumerate(stored):
        try:
            figures = {
                str(name): Figure(_number(f["mean"]), _number(f.get("half_width")))
                for name, f in row["figures"].items()
            }
            rows.append(
                ScoreRow(str(row["case"]), str(row["method"]), figures, int(row.get("seeds", 0)))
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"row {index}: expected case, method and figures with a mean each: {error!r}"
            ) from error
    return rows


def read_rows(path: Path) -> list[ScoreRow]:
    """Rows from a JSON file: a list of them, or a mapping with such a list under "rows".

    Raises
    ------
    ValueError
        If the file holds something else.
    """
    stored = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(stored, dict):
        stored = stored.get("rows")
    if not isinstance(stored, list):
        raise ValueError(f'{path}: expected a list of rows, or a mapping with one under "rows"')
    return rows_from_json(stored)


def _line(texts: Sequence[str], sizes: Sequence[int]) -> str:
    return "".join(f"{text:>{size}}" for text, size in zip(texts, sizes, strict=True))


def in_words(f: Figure | None) -> str:
    """A figure as text, with its interval where it has one; "-" for none."""
    if f is None or not math.isfinite(f.mean):
        return "-"
    # Rounding noise of a figure that is the same by construction would read as a figure.
    mean, half = (0.0 if abs(x) < 1e-6 else x for x in (f.mean, f.half_width))
    return f"{mean:.3g} ±{half:.1g}" if math.isfinite(half) else f"{mean:.3g}"


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
