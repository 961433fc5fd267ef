"""Pictures of a result: raw, result, sigma and difference side by side, in motor units; what is missing is grey."""

import html
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

Map = NDArray[np.floating]
Extent = tuple[float, float, float, float]

MOST_PLANES = 8
_TAIL = 0.5
"""Percent of pixels at each end of a colour scale that are beyond it: one hot pixel must not hide the rest."""
_MISSING = "0.75"
_DOUBT = (1.0, 0.1, 0.1, 0.55)
_COLUMNS = ("raw", "result", "sigma", "difference (raw - result)")


@dataclass(frozen=True)
class Plane:
    """One map of a result.

    Attributes
    ----------
    title : str
        Element, or energy.
    raw, result, sigma : ndarray, shape (row, col)
        NaN where nothing was measured. `raw` or `sigma` may be None.
    units : str
    doubtful : ndarray of bool, shape (row, col), or None
        Where the result is not to be trusted: drawn red over it.
    """

    title: str
    raw: Map | None
    result: Map
    sigma: Map | None
    units: str
    doubtful: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Picture:
    """What is drawn.

    Attributes
    ----------
    title : str
        First line: scan, uid, verdict.
    notes : tuple of str
        Reasons and warnings, one a line.
    planes : tuple of Plane
    extent : (left, right, bottom, top)
        Outer edges of the field, in the units of the labels.
    xlabel, ylabel : str
    """

    title: str
    notes: tuple[str, ...]
    planes: tuple[Plane, ...]
    extent: Extent
    xlabel: str
    ylabel: str


def draw(picture: Picture) -> Figure:
    """Draw a picture: one row of four panels for each of its planes, at most `MOST_PLANES`.

    Raises
    ------
    ValueError
        When there is nothing to draw.
    """
    planes = picture.planes[:MOST_PLANES]
    if not planes:
        raise ValueError(f"nothing to draw in {picture.title!r}: the result holds no map")
    figure = Figure(figsize=(15, 3.3 * len(planes) + 1.0), layout="constrained")
    FigureCanvasAgg(figure)
    notes = list(picture.notes[:3])
    left_out = len(picture.planes) - len(planes)
    if left_out:
        notes.append(f"{left_out} more maps are in the result")
    figure.suptitle("\n".join([picture.title, *notes]), fontsize=11)
    axes = figure.subplots(len(planes), len(_COLUMNS), squeeze=False)
    for row, plane in zip(axes, planes, strict=True):
        _draw_plane(figure, row, plane, picture)
    return figure


def render_run(picture: Picture, path: Path) -> Path:
    """Draw a picture into a PNG file, which is replaced in one step.

    Raises
    ------
    ValueError
        When there is nothing to draw.
    OSError
        When the file cannot be written.
    """
    figure = draw(picture)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.png")
    try:
        figure.savefig(temporary, dpi=80)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_page(
    picture: Picture, image: Path, path: Path, *, refresh_s: float | None = None, stamp: str = ""
) -> Path:
    """Write an HTML page around a PNG beside it; with `refresh_s` the page loads itself again."""
    refresh = "" if refresh_s is None else f'<meta http-equiv="refresh" content="{refresh_s:g}">'
    # The stamp makes the address of the picture a new one: a browser would show the old from its cache.
    source = html.escape(image.name) + (f"?{html.escape(stamp)}" if stamp else "")
    lines = "".join(f"<li>{html.escape(note)}</li>" for note in picture.notes)
    text = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{refresh}'
        f"<title>{html.escape(picture.title)}</title>"
        "<style>body{font-family:sans-serif;margin:1.5em}img{max-width:100%}</style></head>"
        f"<body><h1>{html.escape(picture.title)}</h1><ul>{lines}</ul>"
        f'<img src="{source}" alt="raw, result, sigma and difference"></body></html>\n'
    )
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path


def common_limits(maps: Sequence[Map | None]) -> tuple[float, float]:
    """One colour scale for several maps; (0, 1) when they hold no finite value."""
    finite = [one[np.isfinite(one)] for one in maps if one is not None]
    values = np.concatenate(finite) if finite else np.empty(0)
    if not values.size:
        return 0.0, 1.0
    low, high = np.percentile(values, (_TAIL, 100 - _TAIL))
    if not low < high:
        low, high = float(values.min()), float(values.max())
    return (float(low), float(high)) if low < high else (float(low) - 0.5, float(low) + 0.5)


def _draw_plane(figure: Figure, axes: Sequence[Axes], plane: Plane, picture: Picture) -> None:
    low, high = common_limits([plane.result, plane.raw])
    # What cannot be below zero is shown from zero, so that two elements can be compared by eye.
    if low >= 0 and low < 0.5 * high:
        low = 0.0
    difference = None if plane.raw is None else plane.raw - plane.result
    widest = max(abs(edge) for edge in common_limits([difference]))
    spread = common_limits([plane.sigma])
    panels = (
        (plane.raw, low, high, "viridis"),
        (plane.result, low, high, "viridis"),
        (plane.sigma, 0.0, max(spread[1], 1e-30), "magma"),
        (difference, -widest, widest, "coolwarm"),
    )
    for ax, name, (values, bottom, top, colours) in zip(axes, _COLUMNS, panels, strict=True):
        ax.set_title(f"{plane.title}: {name}", fontsize=9)
        if values is None:
            ax.text(0.5, 0.5, "none", ha="center", va="center", transform=ax.transAxes)
            ax.set_axis_off()
            continue
        shown = ax.imshow(
            np.ma.masked_invalid(values),
            cmap=colormaps[colours].with_extremes(bad=_MISSING),
            vmin=bottom,
            vmax=top,
            extent=picture.extent,
            interpolation="nearest",
            aspect="equal",
        )
        if name == "result" and plane.doubtful is not None and plane.doubtful.any():
            cover = np.where(plane.doubtful[..., None], _DOUBT, 0.0)
            ax.imshow(cover, extent=picture.extent, interpolation="nearest", aspect="equal")
            share = f"{100 * plane.doubtful.mean():.3g} %"
            ax.set_title(f"{plane.title}: {name} (red: {share} in doubt)", fontsize=9)
        figure.colorbar(shown, ax=ax, label=plane.units, shrink=0.85)
        ax.set_xlabel(picture.xlabel, fontsize=8)
        ax.set_ylabel(picture.ylabel, fontsize=8)
        ax.tick_params(labelsize=8)
