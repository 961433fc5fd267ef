"""Draw an evaluation: bars with their intervals, and maps to look at."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from numpy.typing import NDArray

from inscan.models.scores import ScoreRow
from inscan.service.evaluation_bars import bars_for

__all__ = ["Example", "draw_bars", "draw_curves", "draw_example"]

_PANELS = 6
_FEW = ", on these"
_TWO = 2


@dataclass(frozen=True)
class Example:
    """One map of a case, to look at.

    Attributes
    ----------
    title : str
    raw, result, sigma, truth : ndarray of float, shape (row, col)
    """

    title: str
    raw: NDArray[np.floating]
    result: NDArray[np.floating]
    sigma: NDArray[np.floating]
    truth: NDArray[np.floating]


def draw_bars(
    method: str, rows: Sequence[ScoreRow], path: Path, figures: Sequence[str] = ()
) -> None:
    """A panel for each figure: cases side by side, a bar for each method, whiskers of 95 %.

    Musts are drawn as full lines over the cases they apply to, aims as broken ones.

    Parameters
    ----------
    method : str
        Whose bars to draw.
    rows : sequence of ScoreRow
    path : Path
        PNG file to write.
    figures : sequence of str, optional
        Names of the figures to draw, at most six; by default those that most rows have.

    Raises
    ------
    ValueError
        If there is nothing to draw.
    """
    names = [name for name in figures or _common(rows) if _drawable(rows, name)][:_PANELS]
    if not names:
        raise ValueError("no figure of the rows has a value: nothing to draw")
    methods = list(dict.fromkeys(row.method for row in rows))
    colours = dict(zip(methods, colormaps["tab20"](np.arange(len(methods)) % 20), strict=True))
    across = min(2, len(names))
    down = math.ceil(len(names) / across)
    figure = Figure(figsize=(7.2 * across, 3.4 * down + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    handles = {}
    for index, name in enumerate(names):
        axes = figure.add_subplot(down, across, index + 1)
        handles |= _panel(axes, method, rows, name, colours)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=7)
    figure.savefig(path, dpi=90)


def draw_curves(
    areas: Sequence[float], curves: Mapping[str, Mapping[str, Sequence[float]]], path: Path
) -> None:
    """Recall against the share of the field that is measured: a panel for each case, a line for each method.

    Parameters
    ----------
    areas : sequence of float
        Where the curves are known.
    curves : mapping of str to mapping of str to sequence of float
        By case and method.
    path : Path
        PNG file to write.

    Raises
    ------
    ValueError
        If there is nothing to draw.
    """
    if not curves:
        raise ValueError("no curves: nothing to draw")
    # Peers on a few maps only look like themselves.
    methods = list(dict.fromkeys(m.removesuffix(_FEW) for case in curves.values() for m in case))
    colours = dict(zip(methods, colormaps["tab20"](np.arange(len(methods)) % 20), strict=True))
    down = math.ceil(len(curves) / 2)
    figure = Figure(figsize=(11.0, 3.6 * down + 1.0), layout="constrained")
    FigureCanvasAgg(figure)
    lines = {}
    for index, (case, of) in enumerate(curves.items()):
        axes = figure.add_subplot(down, 2, index + 1)
        for name, recalls in of.items():
            method = name.removesuffix(_FEW)
            bold = method.startswith(("inscan", "oracle"))
            style = "-" if bold else "--" if method.startswith(("limit", "n2n", "super")) else "-."
            (lines[method],) = axes.plot(
                areas, recalls, style, color=colours[method], linewidth=1.6 if bold else 1.0
            )
        axes.axhline(0.9, color="0.7", linewidth=0.6)
        axes.set(xlim=(0, 0.5), ylim=(0, 1.02))
        axes.set_title(case, fontsize=9)
        axes.set_xlabel("share of the field measured again", fontsize=7)
        axes.set_ylabel("recall", fontsize=7)
        axes.tick_params(labelsize=7)
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=4, fontsize=7)
    figure.savefig(path, dpi=90)


def draw_example(examples: Sequence[Example], path: Path) -> None:
    """A row of four pictures for each example: raw, result, sigma, truth, on common scales.

    Raises
    ------
    ValueError
        If there is nothing to draw.
    """
    if not examples:
        raise ValueError("no examples: nothing to draw")
    figure = Figure(figsize=(9.2, 2.35 * len(examples)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(examples), 4, squeeze=False)
    for line, example in zip(grid, examples, strict=True):
        top = float(example.truth.max())
        for axes, image, title, high in zip(
            line,
            (example.raw, example.result, example.sigma, example.truth),
            ("raw", "inscan", "sigma", "truth"),
            (top, top, float(np.nanquantile(example.sigma, 0.995)), top),
            strict=True,
        ):
            shown = axes.imshow(image, vmin=0, vmax=high, cmap="viridis", interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(title, fontsize=8)
            bar = figure.colorbar(shown, ax=axes, shrink=0.85)
            bar.ax.tick_params(labelsize=6)
        line[0].set_ylabel(example.title, fontsize=7)
    figure.savefig(path, dpi=80)


def _panel(
    axes: Axes, method: str, rows: Sequence[ScoreRow], name: str, colours: Mapping[str, NDArray]
) -> dict[str, BarContainer]:
    shown = [row for row in rows if name in row.figures and math.isfinite(row.figures[name].mean)]
    cases = list(dict.fromkeys(row.case for row in shown))
    handles = {}
    for at, case in enumerate(cases):
        block = [row for row in shown if row.case == case]
        wide = 0.84 / len(block)
        for k, row in enumerate(block):
            found = row.figures[name]
            x = at - 0.42 + wide * (k + 0.5)
            # The interval of two seeds is wider than the page: it stands in the table.
            shown_error = math.isfinite(found.half_width) and row.seeds != _TWO
            error = found.half_width if shown_error else 0.0
            bar = axes.bar(
                x,
                found.mean,
                wide,
                yerr=error or None,
                color=colours[row.method],
                capsize=1.5,
                error_kw={"elinewidth": 0.8},
            )
            handles[row.method] = bar
            for target in bars_for(method, row):
                if target.figure != name:
                    continue
                for level, style in ((target.must, "-"), (target.aim, "--")):
                    for sign in (1, -1) if target.either_sign else (1,):
                        if math.isfinite(level):
                            axes.plot(
                                (at - 0.46, at + 0.46),
                                [sign * level] * 2,
                                style,
                                color="black",
                                linewidth=0.9,
                            )
    axes.set_title(name, fontsize=9)
    axes.set_xticks(range(len(cases)), [_broken(case) for case in cases], fontsize=6)
    axes.tick_params(axis="y", labelsize=7)
    axes.axhline(0, color="0.6", linewidth=0.5)
    return handles


def _common(rows: Sequence[ScoreRow]) -> list[str]:
    names = dict.fromkeys(name for row in rows for name in row.figures)
    count = {name: sum(name in row.figures for row in rows) for name in names}
    return sorted(names, key=lambda name: -count[name])


def _drawable(rows: Sequence[ScoreRow], name: str) -> bool:
    return any(name in row.figures and math.isfinite(row.figures[name].mean) for row in rows)


def _broken(text: str) -> str:
    """Break a long name at its commas."""
    return text.replace(", ", ",\n") if len(text) > 12 else text
