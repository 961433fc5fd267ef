"""The picture of a proposal: its regions on the survey's map, and the fine maps once there are any.

Raw beside denoised on one colour scale, in motor units, of each element that decided. Of added energies: the survey's
spectrum with what is to be added.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from inscan.service.box_figures import (
    Box,
    Field,
    draw_map,
    limits_of,
    new_figure,
    outline,
    save,
)
from inscan.service.figures import Map, Picture, Plane
from inscan.service.pictures import picture_of
from inscan.service.proposal_text import brief
from inscan.service.results import NoResult, NoSuchRun, Results, Shown
from inscan.service.show import TiledAccess

__all__ = ["FineMap", "draw_proposal", "energies_figure", "regions_figure"]

_MOST_LINES = 3
_MOST_FINE = 6
_ACROSS = 48  # pixels of a stack's image that are read along each axis for its spectrum


@dataclass(frozen=True)
class FineMap:
    """What was measured of a region: its label and the result."""

    region: str
    shown: Shown


def draw_proposal(access: TiledAccess, proposal: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Draw a proposal's regions, or energies, on the survey's result.

    Parameters
    ----------
    access : TiledAccess
        Where results are read.
    proposal : mapping
        As the service describes it.
    path : Path
        PNG to write.

    Returns
    -------
    dict
        `png` (path) and `notes`: what could not be shown, in words.

    Raises
    ------
    NoSuchRun, NoResult
        Where the survey's result is not in Tiled.
    ConnectionError, PermissionError
        When Tiled does not answer, or refuses the key.
    ValueError
        For a path that is no PNG, or a result that holds nothing to draw.
    """
    with Results(access.uri, access.api_key) as results:
        run = results.latest(str(proposal.get("result_uid") or proposal["run_uid"]))
        survey = results.read(run)
        if proposal.get("kind") == "energies":
            figure, notes = energies_figure(proposal, survey, *_spectrum(run)), []
        else:
            fine, notes = _fine_maps(results, proposal)
            figure = regions_figure(proposal, survey, fine)
    return {"png": str(save(figure, path)), "notes": notes}


def regions_figure(
    proposal: Mapping[str, Any], survey: Shown, fine: Sequence[FineMap] = ()
) -> Figure:
    """Raw and result of each line that decided, with the regions; below, what was measured of each.

    Raises
    ------
    ValueError
        When the result holds no map.
    """
    picture = picture_of(survey)
    planes = {plane.title: plane for plane in picture.planes}
    if not planes:
        raise ValueError(f"{picture.title}: the result holds no map")
    regions = list(proposal.get("all_regions") or proposal.get("regions") or ())
    lines = _lines(regions, list(planes))
    shown = fine[:_MOST_FINE]
    heights = (3.9 * len(lines), 3.2 * -(-len(shown) // 2))
    title = _title(proposal, picture, len(fine) - len(shown))
    figure = new_figure(11.0, sum(heights) + 0.7, title)
    count = 2 if shown else 1
    parts = figure.subfigures(count, 1, height_ratios=heights[:count], squeeze=False)[:, 0]
    above, below = parts[0], parts[1] if shown else None
    field = Field(picture.extent, picture.xlabel, picture.ylabel)
    for row, line in zip(above.subplots(len(lines), 2, squeeze=False), lines, strict=True):
        plane = _joined(planes, line)
        limits = limits_of([plane.result, plane.raw])
        boxes = [_box(region, _line_of(region, planes) == line) for region in regions]
        for ax, name, values in zip(row, ("raw", "result"), (plane.raw, plane.result), strict=True):
            if values is None:
                ax.text(0.5, 0.5, "none", ha="center", va="center", transform=ax.transAxes)
                ax.set_axis_off()
                continue
            image = draw_map(ax, values, field, limits, f"{line}: {name}")
            edges = ax.axis()
            if name == "result":
                for one in shown:
                    _inset(ax, one, line, limits)
            ax.axis(edges)
            outline(ax, boxes)
            above.colorbar(image, ax=ax, label=plane.units, shrink=0.85)
    if below is not None:
        axes = below.subplots(-(-len(shown) // 2), 4, squeeze=False).reshape(-1, 2)
        for pair, one in zip(axes, shown, strict=False):
            region = next((r for r in regions if str(r.get("label")) == one.region), None)
            line = lines[0] if region is None else _line_of(region, planes)
            _zoom(below, pair, _joined(planes, line), field, one)
        for ax in axes[len(shown) :].ravel():
            ax.set_axis_off()
    return figure


def energies_figure(
    proposal: Mapping[str, Any],
    survey: Shown,
    energies: NDArray[np.float64],
    spectrum: NDArray[np.float64],
) -> Figure:
    """The mean spectrum of a stack, the energies that were measured and those to be added.

    Parameters
    ----------
    energies : ndarray of float, shape (energy,)
        eV.
    spectrum : ndarray of float, shape (energy,)
        Mean of the field, in the units of the result's values.
    """
    absorbs = survey.units.get("values") == "transmission"
    values = -np.log(np.maximum(spectrum, 1e-6)) if absorbs else spectrum
    figure = new_figure(9.0, 4.8, _title(proposal, picture_of(survey), 0))
    ax = figure.subplots()
    ax.plot(energies, values, "o-", color="tab:blue", markersize=4, label="measured")
    added = [float(one) for one in proposal.get("energies_ev") or ()]
    for index, energy in enumerate(added):
        label = f"to be added ({len(added)})" if index == 0 else None
        ax.axvline(energy, color="tab:red", linewidth=1.0, alpha=0.8, label=label)
    ax.set_xlabel("energy (eV)")
    ax.set_ylabel(
        "optical density, mean of the field" if absorbs else survey.units.get("values", "")
    )
    ax.legend(fontsize=8)
    return figure


def _spectrum(run: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Energies and mean values of a stack, from pixels on a coarse grid: all of it may be too large to read."""
    stream = run["primary"]
    values, energies = stream["values"], np.asarray(stream["energy"].read(), dtype=np.float64)
    rows, cols = values.shape[1:]
    grid = (slice(None, None, -(-rows // _ACROSS)), slice(None, None, -(-cols // _ACROSS)))
    means = []
    for index in range(len(energies)):
        plane = np.asarray(values[(index, *grid)], dtype=np.float64)
        known = plane[np.isfinite(plane)]
        means.append(known.mean() if known.size else np.nan)
    return energies, np.asarray(means)


def _fine_maps(results: Results, proposal: Mapping[str, Any]) -> tuple[list[FineMap], list[str]]:
    found, notes = [], []
    for uid in proposal.get("fine_uids") or ():
        try:
            shown = results.read(results.latest(str(uid)))
        except (NoResult, NoSuchRun) as error:
            notes.append(f"fine run {str(uid)[:8]} is not drawn: {error}")
            continue
        found.append(FineMap(str(shown.start.get("region") or ""), shown))
    return found, notes


def _title(proposal: Mapping[str, Any], picture: Picture, left_out: int) -> list[str]:
    name = str(proposal.get("id", ""))[:8]
    lines = [
        f"proposal {name}, {proposal.get('state')}: {brief(proposal)}",
        picture.title,
    ]
    if left_out:
        lines.append(f"{left_out} more fine maps are in Tiled")
    return lines


def _lines(regions: Sequence[Mapping[str, Any]], known: list[str]) -> list[str]:
    """Lines that decided, in the order of the regions."""
    planes = dict.fromkeys(known)
    found = dict.fromkeys(_line_of(region, planes) for region in regions)
    return list(found)[:_MOST_LINES] or known[:1]


def _line_of(region: Mapping[str, Any], planes: Mapping[str, Any]) -> str:
    """Line, or several joined by +, that a region was chosen for; the first of the map where none is named."""
    predicted = region.get("predicted") or {}
    label = str(region.get("label") or "")
    for name in (str(predicted.get("line") or ""), label.partition("-")[2]):
        if name and all(part in planes for part in name.split("+")):
            return name
    return next(iter(planes))


def _joined(planes: Mapping[str, Plane], line: str) -> Plane:
    parts = [planes[name] for name in line.split("+")]
    if len(parts) == 1:
        return parts[0]
    raw = [part.raw for part in parts if part.raw is not None]
    return Plane(
        line,
        np.sum(raw, axis=0) if len(raw) == len(parts) else None,
        np.sum([part.result for part in parts], axis=0),
        None,
        parts[0].units,
    )


def _box(region: Mapping[str, Any], strong: bool) -> Box:
    slow, fast = region["slow_range"], region["fast_range"]
    return Box(
        (float(slow[0]), float(slow[1])),
        (float(fast[0]), float(fast[1])),
        str(region.get("label") or ""),
        "white" if strong else "0.8",
        strong,
    )


def _inset(ax: Any, fine: FineMap, line: str, limits: tuple[float, float]) -> None:
    """The fine map at its place on the survey's."""
    picture, values = _of_line(fine, line)
    if values is not None:
        draw_map(
            ax,
            values,
            Field(picture.extent, ax.get_xlabel(), ax.get_ylabel()),
            limits,
            ax.get_title(),
        )


def _zoom(part: Any, pair: Any, plane: Plane, field: Field, fine: FineMap) -> None:
    """A region in the survey, and as it was measured, on one colour scale."""
    picture, values = _of_line(fine, plane.title)
    if values is None:
        for ax in pair:
            ax.set_axis_off()
        return
    own = Field(picture.extent, picture.xlabel, picture.ylabel)
    limits = limits_of([values])
    draw_map(pair[0], plane.result, field, limits, f"{fine.region}: survey")
    pair[0].set_xlim(*picture.extent[:2])
    pair[0].set_ylim(*picture.extent[2:])
    image = draw_map(pair[1], values, own, limits, f"{fine.region}: measured again")
    part.colorbar(image, ax=pair[1], label=plane.units, shrink=0.8)


def _of_line(fine: FineMap, line: str) -> tuple[Picture, Map | None]:
    picture = picture_of(fine.shown)
    planes = {plane.title: plane for plane in picture.planes}
    if not all(name in planes for name in line.split("+")):
        return picture, None
    return picture, _joined(planes, line).result
