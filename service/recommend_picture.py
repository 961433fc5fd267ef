"""The picture of a recommendation: objects numbered on the map, those that are wanted outlined."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from inscan.service.box_figures import Box, Field, draw_map, limits_of, new_figure, outline, save
from inscan.service.pictures import picture_of
from inscan.service.recommend import Survey

__all__ = ["draw_alike", "draw_groups"]

_GROUPS = ("white", "red", "cyan", "magenta", "yellow", "orange", "lime", "0.6")
_LIKE, _UNLIKE, _FOUND, _REST = "lime", "red", "white", "0.8"
_MOST_NUMBERS = 150
"""Objects of which all are numbered; with more of them only those that matter are."""


def draw_alike(
    survey: Survey,
    rows: Sequence[Mapping[str, Any]],
    like: Sequence[int],
    unlike: Sequence[int],
    path: Path,
) -> Path:
    """Draw what was recommended: examples green, what is not wanted red, what was found white with its rank.

    Parameters
    ----------
    rows : sequence of mapping
        Of `inscan.service.recommend.alike`.
    """
    found = {int(row["object"]): row for row in rows}
    boxes = []
    for number in range(1, len(survey.objects) + 1):
        slow, fast = _ranges(survey, number)
        if number in like or number in unlike:
            colour = _LIKE if number in like else _UNLIKE
            boxes.append(Box(slow, fast, str(number), colour))
        elif number in found:
            boxes.append(Box(slow, fast, f"#{found[number]['rank']} ({number})", _FOUND))
        else:
            boxes.append(Box(slow, fast, _number(survey, number), _REST, strong=False))
    theirs = ", ".join(str(one) for one in like)
    what = f"{len(rows)} objects like {theirs} (green)"
    what += f", unlike {', '.join(str(one) for one in unlike)} (red)" if unlike else ""
    lines = dict.fromkeys(str(row["element_name"]) for row in rows)
    return _draw(survey, boxes, what, next(iter(lines), None), path)


def draw_groups(survey: Survey, rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Draw the groups: every object in the colour of its group, numbered.

    Parameters
    ----------
    rows : sequence of mapping
        Of `inscan.service.recommend.groups`.
    """
    boxes, titles = [], []
    for row, colour in zip(rows, _GROUPS, strict=False):
        telling = {one["object"] for one in (*row["typical"], *row["rarest"])}
        titles.append(f"group {row['group']}: {len(row['objects'])}")
        for number in row["objects"]:
            label = str(number) if number in telling else _number(survey, number)
            boxes.append(Box(*_ranges(survey, number), label, colour))
    what = f"{len(survey.objects)} objects in {len(rows)} groups"
    return _draw(survey, boxes, what, None, path, legend=titles)


def _draw(
    survey: Survey,
    boxes: Sequence[Box],
    what: str,
    line: str | None,
    path: Path,
    legend: Sequence[str] = (),
) -> Path:
    picture = picture_of(survey.shown)
    field = _field(survey)
    maps = {" + ".join(survey.outlined_by): survey.outlined()}
    if line is not None and line not in maps:
        maps[line] = survey.maps[survey.shown.labels.index(line)]
    left, right, bottom, top = field.extent
    tall = abs((top - bottom) / (right - left))
    width = 7.5
    height = float(np.clip(width * tall, 2.5, 9.0)) + 1.0
    figure = new_figure(width * len(maps), height, [what, picture.title])
    axes = figure.subplots(1, len(maps), squeeze=False)[0]
    for ax, (name, values) in zip(axes, maps.items(), strict=True):
        source = "raw" if survey.source == "raw" else "result"
        image = draw_map(ax, values, field, limits_of([values]), f"{name}: {source}")
        outline(ax, boxes)
        figure.colorbar(image, ax=ax, label=survey.shown.units.get("values", ""), shrink=0.85)
    if legend:
        _legend(axes[0], legend, boxes)
    return save(figure, path)


def _field(survey: Survey) -> Field:
    """The survey's field in motor units, its first row at the top and its first column at the left."""
    geometry = survey.geometry
    (low, high), (near, far) = geometry.field()
    bottom, top = (high, low) if geometry.slow_step > 0 else (low, high)
    left, right = (near, far) if geometry.fast_step > 0 else (far, near)
    return Field(
        (left, right, bottom, top),
        f"{geometry.fast_motor} ({geometry.fast_units})",
        f"{geometry.slow_motor} ({geometry.slow_units})",
    )


def _legend(ax: Axes, titles: Sequence[str], boxes: Sequence[Box]) -> None:
    colours = dict.fromkeys(box.colour for box in boxes)
    for title, colour in zip(titles, colours, strict=True):
        ax.plot([], [], "s", color=colour, markeredgecolor="black", label=title)
    # Beneath the map: on it, it would hide objects.
    ax.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=4, frameon=False)


def _ranges(survey: Survey, number: int) -> tuple[tuple[float, float], tuple[float, float]]:
    return survey.geometry.ranges(survey.box(number))


def _number(survey: Survey, number: int) -> str:
    return str(number) if len(survey.objects) <= _MOST_NUMBERS else ""
