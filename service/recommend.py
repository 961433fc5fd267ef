"""More like these: objects of a survey's result, ranked by likeness to those a person pointed at.

The second and last recommender. What it finds becomes a proposal like any other: suggested, within the limits, to be
approved by somebody.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inscan.callbacks.geometry import ScanGeometry
from inscan.models.likeness import Like, cluster, more_like
from inscan.models.objects import Objects, segment
from inscan.service.results import Shown

__all__ = ["Survey", "alike", "example", "groups", "places", "survey_of"]

_MOST_PLACES = 100


@dataclass(frozen=True)
class Survey:
    """A result and the objects in it.

    Attributes
    ----------
    shown : Shown
    geometry : ScanGeometry
        Raster of the survey.
    objects : Objects
        In pixels of the result.
    outlined_by : tuple of str
        Lines whose sum was segmented.
    source : str
        `values`, or `raw` where the result is not to be trusted.
    finer : (int, int)
        Result pixels in one survey pixel, rows and columns.
    """

    shown: Shown
    geometry: ScanGeometry
    objects: Objects
    outlined_by: tuple[str, ...]
    source: str
    finer: tuple[int, int]

    @property
    def maps(self) -> NDArray[np.float64]:
        """What was segmented, shape (element, row, col); NaN where nothing was measured."""
        measured = self.shown.arrays.get("measured")
        maps = np.asarray(self.shown.arrays[self.source], dtype=np.float64)
        return maps if measured is None else np.where(measured, maps, np.nan)

    def outlined(self) -> NDArray[np.float64]:
        """The sum that was segmented, shape (row, col); NaN where nothing was measured."""
        which = [self.shown.labels.index(name) for name in self.outlined_by]
        return self.maps[which].sum(axis=0)

    def box(self, number: int) -> tuple[int, int, int, int]:
        """Survey pixels that an object touches: (row start, row stop, column start, column stop)."""
        r0, r1, c0, c1 = (int(edge) for edge in self.objects.boxes[number - 1])
        (rows, cols), (down, across) = self.geometry.shape, self.finer
        return (
            r0 // down,
            min(-(-r1 // down), rows),
            c0 // across,
            min(-(-c1 // across), cols),
        )

    def described(self, number: int) -> dict[str, Any]:
        """An object as JSON: its number, box, centre in pixels and motor units, and features."""
        box = self.box(number)
        slow, fast = self.geometry.ranges(box)
        row, col = (
            float((at + 0.5) / finer - 0.5)
            for at, finer in zip(self.objects.centres[number - 1], self.finer, strict=True)
        )
        return {
            "object": number,
            "row": round(row, 2),
            "col": round(col, 2),
            "slow": sum(slow) / 2,
            "fast": sum(fast) / 2,
            "box": list(box),
            "slow_range": list(slow),
            "fast_range": list(fast),
            "features": {
                name: float(value)
                for name, value in zip(
                    self.objects.names, self.objects.features[number - 1], strict=True
                )
            },
        }


def survey_of(
    shown: Shown, *, elements: Sequence[str] = (), min_pixels: int = 8, factor: float = 1.25
) -> Survey:
    """Find the objects of a map.

    Parameters
    ----------
    shown : Shown
        Result of an element map.
    elements : sequence of str
        Lines whose sum outlines the objects; none: all.
    min_pixels : int
        Smaller objects are left out, in pixels of the result.
    factor : float
        What objects exceed, in Otsu's thresholds.

    Raises
    ------
    ValueError
        For a result that is no element map, elements that it does not have, or a map without objects.
    """
    start = shown.start
    name = f"run {str(start.get('raw_uid', ''))[:8]}"
    geometry, values = start.get("geometry"), shown.arrays.get("values")
    if not geometry or values is None or start.get("technique") != "xrf":
        raise ValueError(f"{name} is no element map; objects are looked for in maps of elements")
    wanted = list(dict.fromkeys(elements)) or list(shown.labels)
    unknown = [one for one in wanted if one not in shown.labels]
    if unknown:
        raise ValueError(f"{name} has no {unknown[0]}: --element takes {', '.join(shown.labels)}")
    # A blocked result is no ground to stand on: its raw maps are.
    source = "raw" if start.get("verdict") == "block" and "raw" in shown.arrays else "values"
    maps = np.asarray(shown.arrays[source], dtype=np.float64)
    raster = ScanGeometry.from_dict(geometry)
    (rows, cols), (across, along) = maps.shape[1:], raster.shape
    if rows % across or cols % along:
        raise ValueError(
            f"{name}: its result has {rows} x {cols} pixels, the survey {raster.shape}"
        )
    objects = segment(
        maps,
        names=shown.labels,
        chosen=[shown.labels.index(one) for one in wanted],
        measured=shown.arrays.get("measured"),
        min_pixels=min_pixels,
        factor=factor,
    )
    if not len(objects):
        raise ValueError(
            f"{name}: nothing of {min_pixels} pixels or more stands out in {' + '.join(wanted)}; "
            "try other elements, or a smaller --min-pixels or --factor"
        )
    return Survey(shown, raster, objects, tuple(wanted), source, (rows // across, cols // along))


def example(survey: Survey, text: str) -> int:
    """Number of the object that somebody pointed at: its number, or `ROW,COL` in survey pixels.

    Raises
    ------
    ValueError
        For something else, or a place without an object.
    """
    row, comma, col = text.partition(",")
    try:
        if not comma:
            number = int(row)
            if not 1 <= number <= len(survey.objects):
                raise ValueError(f"no object {number}: there are 1 to {len(survey.objects)}")
            return number
        place = float(row), float(col)
    except ValueError as error:
        if str(error).startswith("no object"):
            raise
        raise ValueError(
            f"{text!r} is neither the number of an object nor ROW,COL; without --like "
            "`inscan recommend` numbers them"
        ) from error
    at = [(one + 0.5) * n - 0.5 for one, n in zip(place, survey.finer, strict=True)]
    try:
        return survey.objects.at(at[0], at[1], reach=2.0 * max(survey.finer))
    except LookupError as error:
        raise ValueError(str(error.args[0])) from error


def alike(
    survey: Survey, like: Sequence[int], unlike: Sequence[int] = (), *, top: int = 10
) -> list[dict[str, Any]]:
    """The objects most like the examples.

    Parameters
    ----------
    like, unlike : sequence of int
        Numbers of objects.
    top : int
        At most so many.

    Returns
    -------
    list of dict
        `Survey.described`, and `rank`, `score` (0 ... 1), `agrees`, `differs`, `reason`, `element_name`.

    Raises
    ------
    ValueError
        For examples that contradict each other, or where nothing but the examples is in the map.
    """
    features, names = survey.objects.compared()
    ranked = more_like(
        features, [one - 1 for one in like], [one - 1 for one in unlike], names=names
    )
    if not ranked:
        raise ValueError(
            f"all {len(survey.objects)} objects of the map are examples; there is no other"
        )
    return [
        {
            **survey.described(one.index + 1),
            "rank": rank,
            "score": round(one.score, 4),
            "agrees": list(one.agrees),
            "differs": list(one.differs),
            "reason": one.reason,
            "element_name": _line(survey, one),
        }
        for rank, one in enumerate(ranked[:top], 1)
    ]


def groups(survey: Survey, *, clusters: int | None = None, top: int = 5) -> list[dict[str, Any]]:
    """Groups of objects, the largest first.

    Returns
    -------
    list of dict
        `group` (1, 2, ...), `objects` (all its numbers), `reason`, `typical` (the most typical first) and `rarest` (the
        least typical first), each of at most `top` mappings of `object` and `membership` (0 ... 1).
    """
    features, names = survey.objects.compared()
    found = cluster(features, clusters=clusters, names=names)
    rows = []
    for group, reason in enumerate(found.reasons):
        members = [int(one) for one in found.members(group)]
        told = [
            {"object": one + 1, "membership": round(float(found.membership[one, group]), 4)}
            for one in members
        ]
        rows.append(
            {
                "group": group + 1,
                "objects": sorted(one + 1 for one in members),
                "reason": reason,
                "typical": told[:top],
                "rarest": told[::-1][:top],
            }
        )
    return rows


def places(
    survey: Survey, rows: Sequence[Mapping[str, Any]], like: Sequence[int]
) -> list[dict[str, Any]]:
    """Objects as places that can be proposed to be measured again.

    Parameters
    ----------
    rows : sequence of mapping
        Of `alike`.
    like : sequence of int
        The examples, for the reason.

    Returns
    -------
    list of dict
        `box` (survey pixels), `score`, `reason`, `element_name`, `relative_sigma`.
    """
    theirs = ", ".join(str(one) for one in like)
    return [
        {
            "box": list(row["box"]),
            "score": float(row["score"]),
            "reason": f"object {row['object']}, like {theirs} (score {row['score']:.2f}): {row['reason']}",
            "element_name": row["element_name"],
            "relative_sigma": _relative_sigma(survey, int(row["object"])),
        }
        for row in rows[:_MOST_PLACES]
    ]


def _line(survey: Survey, one: Like) -> str:
    """The line in which an object agrees with the examples most, or else is brightest beside the others."""
    for name in one.agrees:
        if name.startswith("mean "):
            return name.removeprefix("mean ")
    labels, objects = survey.shown.labels, survey.objects
    means = objects.features[:, [objects.names.index(f"mean {label}") for label in labels]]
    usual = np.maximum(np.median(means, axis=0), 1e-12)
    return labels[int((means[one.index] / usual).argmax())]


def _relative_sigma(survey: Survey, number: int) -> dict[str, float]:
    """Median of sigma over value inside an object, per line that is present there."""
    sigma = survey.shown.arrays.get("sigma")
    if sigma is None or sigma.shape != survey.shown.arrays["values"].shape:
        return {}
    inside = survey.objects.labels == number
    found = {}
    for label, value, error in zip(
        survey.shown.labels, survey.shown.arrays["values"], sigma, strict=True
    ):
        seen, doubt = value[inside].astype(float), error[inside].astype(float)
        present = np.isfinite(seen) & np.isfinite(doubt) & (doubt > 0) & (seen > doubt)
        if present.sum() * 2 > present.size:
            found[label] = float(np.median(doubt[present] / seen[present]))
    return found
