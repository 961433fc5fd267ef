"""What each method has to reach, and whether it does.

The bars were set before the methods were built, from published figures and from what simpler methods
reach; they are not moved to fit what was measured.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from inscan.models.scores import Figure, ScoreRow, in_words

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
        At least so much, or at most where `most` is true; NaN for none.
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


_NONE = math.nan
_ZERO = "inscan n2n"
_TUNED = "inscan n2n, *"
_FAMILIES = "geometric mean over held-out families"
_STACKS = "inscan subspace"
_SURVEYED = ("cells", "tissue", "star", "particles")


def _intervals(case: str, row: str, *, all_of_it: bool = True) -> tuple[Bar, ...]:
    """Of 90 % intervals: coverage between 0.88 and 0.92; in the worst bin, and their width."""
    both = (Bar(case, row, "coverage", 0.88), Bar(case, row, "coverage", 0.92, most=True))
    if not all_of_it:
        return both
    worst = Bar(case, row, "worst bin", 0.85)
    return (*both, worst, Bar(case, row, "width", 0.6, most=True))


def _maps(row: str) -> tuple[Bar, ...]:
    case = "channels, peak"
    return (
        Bar(case, row, "worst/mean", 0.6),
        Bar(case, row, "edge FWHM", 1.15, 1.05, most=True),
        Bar(case, row, "flux %", 0.5, most=True, either_sign=True),
        Bar(case, row, "bright flux %", 2, most=True, either_sign=True),
        Bar(case, row, "spot flux %", 2, most=True, either_sign=True),
        *_intervals(case, row),
    )


def _edge_map(case: str) -> tuple[Bar, ...]:
    return (
        Bar(case, _STACKS, "rmse eV", 0.3, 0.15, most=True),
        Bar(case, _STACKS, "slope", 0.95),
        Bar(case, _STACKS, "slope", 1.05, most=True),
    )


BARS: dict[str, tuple[Bar, ...]] = {
    "n2n": (
        Bar("cells, 16 channels, peak 10", _ZERO, "dwell", 10, 14),
        Bar("cells, 16 channels, peak 10", _TUNED, "dwell", 12, 14),
        Bar("siemens, 16 channels, peak 10", _ZERO, "dwell", 7, 9),
        Bar("siemens Ni_K alone", _ZERO, "dwell", 7, 9),
        Bar("cells, 2 channels, peak 50", _ZERO, "dwell", 5.5, 7),
        Bar(_FAMILIES, _ZERO, "over BM3D", 1.1, 1.5),
        Bar(_FAMILIES, _TUNED, "over BM3D", 1.2, 1.5),
        *_maps(_ZERO),
        *_maps(_TUNED),
    ),
    "superres": (
        Bar(", 2x, peak 200", "inscan", "gain dB", 2.2),
        Bar(", 4x, peak 200", "inscan", "gain dB", 0.9),
        Bar(", 2x, peak 200", "inscan", "over denoised dB", 0.7),
        Bar(", 4x, peak 200", "inscan", "over denoised dB", 0.3),
        Bar(", 2x, peak 5000", "inscan", "gain dB", _NONE, 3.8),
        Bar(", 4x, peak 5000", "inscan", "gain dB", _NONE, 5.2),
        *_intervals(", peak ", "inscan"),
    ),
    "subspace": (
        Bar("smooth chemistry, 120 energies, sigma 150 of 255", _STACKS, "r", 0.77),
        Bar("smooth chemistry, 120 energies, sigma 150 of 255", _STACKS, "FPSNR", 38.5, 40),
        Bar("smooth chemistry, 120 energies, sigma 150 of 255", _STACKS, "SPSNR", 38.5, 40),
        *_edge_map("fine chemistry, 120 energies, sigma 50 of 255"),
        *_edge_map("fine chemistry, transmission of 300 counts"),
        Bar("a share of 120 energies, sigma 10 of 255", "inscan*", "r at 15 %", 0.8),
        Bar("a share of 120 energies, sigma 10 of 255", "inscan*", "r at 10 %", _NONE, 0.8),
        Bar("a share of 120 energies, sigma 150 of 255", "inscan*", "r at 40 %", 0.8),
        Bar("a share of 120 energies, sigma 150 of 255", "inscan*", "r at 30 %", _NONE, 0.8),
        Bar("jitter", _STACKS, "r kept", 0.9),
        *_intervals("transmission", _STACKS, all_of_it=False),
    ),
    "spectral": (
        Bar("20 counts", "inscan", "gain dB", 14, 16),
        Bar("20 counts", "inscan", "dwell", 6.5, 8),
        *_intervals("", "inscan"),
    ),
    "regions": (
        *(
            Bar(case, row, "area for 90 %", 0.15, 0.06, most=True)
            for family in (*_SURVEYED, "all families")
            # Inclusions of 3 counts each, and of 1.5 to 3 where only the strongest have 3.
            for case in (f"{family}, 3 c", f"{family}, 1.5 to 3 c")
            for row in ("inscan", "inscan, default scale")
        ),
        *(
            Bar(f"rescans, {case}, ", "inscan, above the threshold", figure, must, aim, most=most)
            for case in (*_SURVEYED, "all families")
            for figure, must, aim, most in (
                ("time saved", 4, 10, False),
                ("recall", 0.9, _NONE, False),
                ("edge / raster", 1.05, _NONE, True),
                ("dB - raster", -0.5, _NONE, False),
            )
        ),
        *(
            Bar(f"rescans, {case}, 3 counts", "inscan, to 90 %", "time saved", 4, 10)
            for case in (*_SURVEYED, "all families")
        ),
    ),
}
"""By method. What is to be compared with another row, not with a number, is for the reader's eyes."""


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
            levels = (("must", bar.must), ("aim", bar.aim))
            asked = ", ".join(f"{k} {sign} {v:g}" for k, v in levels if math.isfinite(v))
            word = _verdict(bar, found)
            lines.append(
                f"  {word:13} {row.case}, {row.method}: {bar.figure} {in_words(found)} ({asked})"
            )
    return "\n".join(["bars", *lines]) if lines else ""


def _verdict(bar: Bar, found: Figure) -> str:
    if math.isfinite(bar.must) and not bar.met(found, bar.must):
        return "MISSED"
    if math.isnan(bar.aim):
        return "met"
    if bar.met(found, bar.aim):
        return "met, aim too" if math.isfinite(bar.must) else "aim met"
    return "met" if math.isfinite(bar.must) else "aim missed"
