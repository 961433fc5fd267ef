"""What each method has to reach, and whether it does.

The bars were set before the methods were built, from published figures and from what simpler methods
reach; they are not moved to fit what was measured.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from inscan.models.scores import Figure, ScoreRow

__all__ = ["BARS", "Bar", "bar_table", "bars_for"]


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes
    ----------
    case : str
        Part of the name of the cases that it applies to; empty for all.
    row : str
        Name of the row, the method, that has to reach it; one that ends in ``*`` stands for all
        that begin so.
    figure : str
    must, aim : float
        At least so much, or at most where `most` is true; an aim that is NaN is none.
    most : bool
    either_sign : bool
        The size counts, not the sign, as for a bias.
    """

    case: str
    row: str
    figure: str
    must: float
    aim: float = math.nan
    most: bool = False
    either_sign: bool = False

    def met(self, found: Figure, level: float) -> bool:
        """Does the mean reach a level, the must or the aim?"""
        value = abs(found.mean) if self.either_sign else found.mean
        return value <= level if self.most else value >= level


_ZERO = "inscan n2n"
_TUNED = "inscan n2n, *"
_FAMILIES = "geometric mean over held-out families"

BARS: dict[str, tuple[Bar, ...]] = {
    "n2n": (
        Bar("cells, 16 channels, peak 10", _ZERO, "dwell", 10, 14),
        Bar("cells, 16 channels, peak 10", _TUNED, "dwell", 12, 14),
        Bar("siemens, 16 channels, peak 10", _ZERO, "dwell", 7, 9),
        Bar("siemens Ni_K alone", _ZERO, "dwell", 7, 9),
        Bar("cells, 2 channels, peak 50", _ZERO, "dwell", 5.5, 7),
        Bar(_FAMILIES, _ZERO, "over BM3D", 1.1, 1.5),
        Bar(_FAMILIES, _TUNED, "over BM3D", 1.2, 1.5),
        *(
            bar
            for row in (_ZERO, _TUNED)
            for bar in (
                Bar("channels, peak", row, "worst/mean", 0.6),
                Bar("channels, peak", row, "edge FWHM", 1.15, 1.05, most=True),
                Bar("channels, peak", row, "flux %", 0.5, most=True, either_sign=True),
                Bar("channels, peak", row, "bright flux %", 2, most=True, either_sign=True),
                Bar("channels, peak", row, "spot flux %", 2, most=True, either_sign=True),
                Bar("channels, peak", row, "coverage", 0.88),
                Bar("channels, peak", row, "coverage", 0.92, most=True),
                Bar("channels, peak", row, "worst bin", 0.85),
                Bar("channels, peak", row, "width", 0.6, most=True),
            )
        ),
    ),
}
"""By method; those of other methods stand in their own rows as limits."""


def bars_for(method: str, row: ScoreRow) -> list[Bar]:
    """The bars that a row has to reach."""
    return [
        bar
        for bar in BARS.get(method, ())
        if bar.case in row.case
        and bar.figure in row.figures
        and (
            row.method.startswith(bar.row[:-1]) if bar.row.endswith("*") else row.method == bar.row
        )
    ]


def bar_table(method: str, rows: Sequence[ScoreRow]) -> str:
    """Each bar beside what was measured, one line each; empty where the method has none."""
    lines = []
    for row in rows:
        for bar in bars_for(method, row):
            found = row.figures[bar.figure]
            if not math.isfinite(found.mean):
                continue
            sign = "<=" if bar.most else ">="
            aim = "" if math.isnan(bar.aim) else f", aim {bar.aim:g}"
            word = "met" if bar.met(found, bar.must) else "MISSED"
            if word == "met" and not math.isnan(bar.aim) and bar.met(found, bar.aim):
                word = "met, aim too"
            half = f" ±{found.half_width:.1g}" if math.isfinite(found.half_width) else ""
            lines.append(
                f"  {word:13} {row.case}, {row.method}: {bar.figure} {found.mean:.3g}{half} "
                f"(must {sign} {bar.must:g}{aim})"
            )
    return "\n".join(["bars", *lines]) if lines else ""
