"""The demo's pictures: raw, result, sigma and truth on one colour scale, with the regions and their fine maps."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from inscan.service.demo_results import RunResult

Maps = NDArray[np.floating]
_MAP = "viridis"
_EDGE = "coolwarm"
_TOP = 99.7  # percentile that the colour scale ends at; single hot pixels must not hide the rest


def draw_maps(
    path: Path,
    survey: RunResult,
    truth: Maps,
    fines: Sequence[RunResult],
    fine_truths: Sequence[Maps],
    regions: Sequence[Mapping[str, object]],
    title: str,
) -> None:
    """Draw the survey, element by element, and below it every region measured again.

    Parameters
    ----------
    path : Path
        PNG to write.
    survey : RunResult
    truth : ndarray, shape (element, row, col)
        Expected count rate at the survey's pixels.
    fines : sequence of RunResult
        Fine runs; `fine_truths` are the truths at their pixels.
    regions : sequence of mapping
        Regions of the proposal (`slow_range`, `fast_range`, `label`, `reason`), in the order of the fine runs.
    title : str
    """
    names = survey.labels
    rows = len(names) + len(fines)
    figure = Figure(figsize=(15.5, 3.3 * rows + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12)
    axes = figure.subplots(rows, 4, squeeze=False)
    units = "counts/s"
    xlabel, ylabel = _axis_labels(survey)
    for row, name in enumerate(names):
        maps = [survey.arrays["raw"][row], survey.arrays["values"][row], truth[row]]
        low, high = 0.0, _top(maps[1:])
        sigma = survey.arrays["sigma"][row]
        panels = (
            (f"{name} survey, raw", maps[0], high, units),
            (f"{name} result", maps[1], high, units),
            (f"{name} sigma", sigma, _top([sigma]), units),
            (f"{name} truth", maps[2], high, units),
        )
        for column, (text, image, top, unit) in enumerate(panels):
            shown = _show(axes[row, column], image, survey.extent, low, top, _MAP)
            _finish(axes[row, column], text, xlabel, ylabel)
            figure.colorbar(shown, ax=axes[row, column], label=unit, shrink=0.85)
        for region in regions:
            _outline(axes[row, 1], region, _element_of(region, names) == row)
    for k, (fine, fine_truth) in enumerate(zip(fines, fine_truths, strict=True)):
        row = len(names) + k
        region = regions[k] if k < len(regions) else {}
        element = _element_of(region, names)
        name = names[element]
        fine_element = fine.labels.index(name) if name in fine.labels else 0
        high = _top([fine.arrays["values"][fine_element], fine_truth[fine_element]])
        label = region.get("label", k + 1)
        panels = (
            (f"region {label}, {name}: survey result", survey.arrays["values"][element], survey),
            (f"region {label}: fine, raw", fine.arrays["raw"][fine_element], fine),
            (f"region {label}: fine, result", fine.arrays["values"][fine_element], fine),
            (f"region {label}: truth", fine_truth[fine_element], fine),
        )
        for column, (text, image, run) in enumerate(panels):
            shown = _show(axes[row, column], image, run.extent, 0.0, high, _MAP)
            _finish(axes[row, column], text, xlabel, ylabel)
            figure.colorbar(shown, ax=axes[row, column], label=units, shrink=0.85)
        left, right, bottom, top = fine.extent
        axes[row, 0].set_xlim(left, right)
        axes[row, 0].set_ylim(bottom, top)
    figure.savefig(path, dpi=80)


def draw_stack(
    path: Path,
    stack: RunResult,
    truth_edge: Maps,
    truth_fractions: Maps,
    truth_transmission: Maps,
    names: Sequence[str],
    title: str,
) -> None:
    """Draw one energy of the stack, the edge-energy maps and the fractions of the references.

    Parameters
    ----------
    truth_edge : ndarray, shape (row, col)
        Edge energy in eV, NaN outside the sample.
    truth_fractions : ndarray, shape (reference, row, col)
    truth_transmission : ndarray, shape (row, col)
        At the energy in the middle of the stack.
    names : sequence of str
        Of the references.
    """
    arrays = stack.arrays
    fractions = arrays.get("fractions")
    references = 0 if fractions is None else len(fractions)
    rows = 2 + references
    figure = Figure(figsize=(15.5, 3.4 * rows + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12)
    axes = figure.subplots(rows, 4, squeeze=False)
    xlabel, ylabel = _axis_labels(stack)
    height, width = arrays["values"].shape[1:]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    energies = (stack.start.get("report") or {}).get("energies_ev") or []
    middle = arrays["values"].shape[0] // 2
    at = f"{energies[middle]:.1f} eV" if len(energies) > middle else f"energy {middle}"
    low, high = _limits([arrays["values"][middle], truth_transmission])
    sigma = arrays["sigma"][middle]
    panels = (
        (f"transmission at {at}, raw", arrays["raw"][middle], low, high),
        (f"transmission at {at}, result", arrays["values"][middle], low, high),
        (f"sigma at {at}", sigma, 0.0, _top([sigma])),
        (f"transmission at {at}, truth", truth_transmission, low, high),
    )
    for column, (text, image, bottom, top) in enumerate(panels):
        shown = _show(axes[0, column], image, extent, bottom, top, "gray")
        _finish(axes[0, column], text, xlabel, ylabel)
        figure.colorbar(shown, ax=axes[0, column], label="transmission", shrink=0.85)
    low, high = _limits([truth_edge])
    edge_sigma = arrays["edge_energy_sigma"]
    edges = (
        ("edge energy from raw frames", arrays["edge_energy_raw"], low, high, _EDGE),
        ("edge energy from the result", arrays["edge_energy"], low, high, _EDGE),
        ("its sigma", edge_sigma, 0.0, _top([edge_sigma]), _MAP),
        ("edge energy, truth", truth_edge, low, high, _EDGE),
    )
    for column, (text, image, bottom, top, colours) in enumerate(edges):
        shown = _show(axes[1, column], image, extent, bottom, top, colours)
        _finish(axes[1, column], text, xlabel, ylabel)
        figure.colorbar(shown, ax=axes[1, column], label="eV", shrink=0.85)
    for k in range(references):
        sigma = arrays["fractions_sigma"][k]
        panels = (
            (f"fraction of {names[k]}, raw", arrays["fractions_raw"][k], 1.0),
            (f"fraction of {names[k]}, result", arrays["fractions"][k], 1.0),
            ("its sigma", sigma, _top([sigma])),
            (f"fraction of {names[k]}, truth", truth_fractions[k], 1.0),
        )
        for column, (text, image, top) in enumerate(panels):
            shown = _show(axes[2 + k, column], image, extent, 0.0, top, _MAP)
            _finish(axes[2 + k, column], text, xlabel, ylabel)
            figure.colorbar(shown, ax=axes[2 + k, column], label="fraction", shrink=0.85)
    figure.savefig(path, dpi=80)


def _show(
    axes: Axes,
    image: Maps,
    extent: tuple[float, float, float, float],
    low: float,
    high: float,
    colours: str,
) -> AxesImage:
    axes.set_facecolor("0.85")  # what was not measured, or has no value, is grey and never zero
    return axes.imshow(
        np.ma.masked_invalid(image),
        extent=extent,
        vmin=low,
        vmax=high,
        cmap=colours,
        interpolation="nearest",
        aspect="equal",
    )


def _finish(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(xlabel, fontsize=8)
    axes.set_ylabel(ylabel, fontsize=8)
    axes.tick_params(labelsize=7)


def _axis_labels(run: RunResult) -> tuple[str, str]:
    if not run.start.get("geometry"):
        return "column (pixel)", "row (pixel)"
    g = run.geometry
    return f"{g.fast_motor} ({g.fast_units})", f"{g.slow_motor} ({g.slow_units})"


def _outline(axes: Axes, region: Mapping[str, object], strong: bool) -> None:
    slow, fast = region["slow_range"], region["fast_range"]
    assert isinstance(slow, Sequence) and isinstance(fast, Sequence)
    axes.add_patch(
        Rectangle(
            (float(fast[0]), float(slow[0])),
            float(fast[1]) - float(fast[0]),
            float(slow[1]) - float(slow[0]),
            fill=False,
            edgecolor="red" if strong else "white",
            linewidth=1.6 if strong else 0.7,
        )
    )


def _element_of(region: Mapping[str, object], names: Sequence[str]) -> int:
    """The element for which a region was chosen: the first word of its reason."""
    first = str(region.get("reason", "")).split(":")[0]
    return names.index(first) if first in names else 0


def _top(images: Sequence[Maps]) -> float:
    finite = np.concatenate([image[np.isfinite(image)].ravel() for image in images])
    top = float(np.percentile(finite, _TOP)) if finite.size else 1.0
    return top if top > 0 else 1.0


def _limits(images: Sequence[Maps]) -> tuple[float, float]:
    finite = np.concatenate([image[np.isfinite(image)].ravel() for image in images])
    if not finite.size:
        return 0.0, 1.0
    low, high = np.percentile(finite, [0.5, 99.5])
    return float(low), float(high) if high > low else float(low) + 1.0
