"""Maps with boxes on them: one element of a result in motor units, and places outlined and named in it."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from inscan.service.figures import Extent, Map, common_limits

_MISSING = "0.75"
_DPI = 90


@dataclass(frozen=True)
class Box:
    """A place to outline.

    Attributes
    ----------
    slow, fast : (float, float)
        Outer edges, in the units of the map's axes.
    label : str
        Drawn beside it; empty for none.
    colour : str
    strong : bool
        A full line; else a thin dashed one.
    """

    slow: tuple[float, float]
    fast: tuple[float, float]
    label: str = ""
    colour: str = "white"
    strong: bool = True


@dataclass(frozen=True)
class Field:
    """Axes of a map: outer edges (left, right, bottom, top) and what they are called."""

    extent: Extent
    xlabel: str
    ylabel: str


def new_figure(width: float, height: float, title: Sequence[str]) -> Figure:
    """An empty figure with a title of several lines."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle("\n".join(line for line in title if line), fontsize=10)
    return figure


def limits_of(maps: Sequence[Map | None]) -> tuple[float, float]:
    """One colour scale for several maps; from zero where that hides nothing."""
    low, high = common_limits(maps)
    return (0.0, high) if low >= 0 and low < 0.5 * high else (low, high)


def draw_map(
    ax: Axes, values: Map, field: Field, limits: tuple[float, float], title: str
) -> AxesImage:
    """Draw one map; what was not measured is grey."""
    shown = ax.imshow(
        np.ma.masked_invalid(values),
        cmap=colormaps["viridis"].with_extremes(bad=_MISSING),
        vmin=limits[0],
        vmax=limits[1],
        extent=field.extent,
        interpolation="nearest",
        aspect="equal",
    )
    ax.set_title(title, fontsize=9)
    ax.set_xlabel(field.xlabel, fontsize=8)
    ax.set_ylabel(field.ylabel, fontsize=8)
    ax.tick_params(labelsize=8)
    return shown


def outline(ax: Axes, boxes: Iterable[Box]) -> None:
    """Draw boxes, each with its label at a corner, readable on any colour."""
    for box in boxes:
        width, height = box.fast[1] - box.fast[0], box.slow[1] - box.slow[0]
        edge = Rectangle(
            (box.fast[0], box.slow[0]),
            width,
            height,
            fill=False,
            edgecolor=box.colour,
            linewidth=1.8 if box.strong else 0.8,
            linestyle="-" if box.strong else "--",
        )
        edge.set_path_effects(
            [withStroke(linewidth=3.0 if box.strong else 1.6, foreground="black")]
        )
        ax.add_patch(edge)
        if not box.label:
            continue
        bottom, top = ax.get_ylim()
        above = box.slow[1] if top > bottom else box.slow[0]
        text = ax.annotate(
            box.label,
            (box.fast[0], above),
            xytext=(1, 2),
            textcoords="offset points",
            color=box.colour,
            fontsize=8 if box.strong else 6,
            annotation_clip=True,
        )
        text.set_path_effects([withStroke(linewidth=2, foreground="black")])


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG file, which is replaced in one step; folders are made.

    Raises
    ------
    ValueError
        For a name that does not end in .png.
    OSError
        When it cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: a picture is a .png file")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.png")
    try:
        figure.savefig(temporary, dpi=_DPI)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
