"""From a result to what is drawn of it: rows of panels, titles with the verdict, axes in motor units."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inscan.service.figures import Extent, Map, Picture, Plane
from inscan.service.results import Shown

SOURCES = "1 survey, 2 fine map, 3 both"


def picture_of(shown: Shown) -> Picture:
    """Arrange a result for drawing.

    One row of panels for each element; for a stack one for each chosen energy, for the edge energy and for each
    reference.
    """
    arrays, units = shown.arrays, shown.units
    planes = [
        Plane(
            label,
            _plane(shown, "raw", index),
            _known(shown, "values", index),
            _plane(shown, "sigma", index),
            units.get("values", ""),
            _doubt(shown, index),
        )
        for index, label in enumerate(shown.labels)
    ]
    if "edge_energy" in arrays:
        planes.append(
            Plane(
                "edge energy",
                arrays.get("edge_energy_raw"),
                arrays["edge_energy"],
                arrays.get("edge_energy_sigma"),
                units.get("edge_energy", "eV"),
            )
        )
    if "fractions" in arrays:
        names = shown.start.get("reference_labels") or []
        for index, fraction in enumerate(arrays["fractions"]):
            name = names[index] if index < len(names) else str(index)
            raw, sigma = arrays.get("fractions_raw"), arrays.get("fractions_sigma")
            planes.append(
                Plane(
                    f"fraction of {name}",
                    None if raw is None else raw[index],
                    fraction,
                    None if sigma is None else sigma[index],
                    "fraction",
                )
            )
    if "source" in arrays:
        # Where a number came from, beside the numbers; what was not measured is grey.
        source = np.where(arrays["source"] > 0, arrays["source"].astype(float), np.nan)
        planes.append(Plane("where it is from", None, source, None, SOURCES))
    extent, xlabel, ylabel = _frame(shown)
    return Picture(_title(shown), _notes(shown.start), tuple(planes), extent, xlabel, ylabel)


def _plane(shown: Shown, name: str, index: int) -> Map | None:
    return _known(shown, name, index) if name in shown.arrays else None


def _known(shown: Shown, name: str, index: int) -> Map:
    """One plane, NaN where nothing was measured: an estimate made there is no measurement."""
    plane = np.asarray(shown.arrays[name][index], dtype=np.float64)
    measured = shown.arrays.get("measured")
    if measured is None or measured.ndim == 1:
        return plane
    mask = measured[index] if measured.ndim == 3 else measured
    return np.where(mask, plane, np.nan) if mask.shape == plane.shape else plane


def _doubt(shown: Shown, index: int) -> NDArray[np.bool_] | None:
    """What is not to be trusted, and in a composite what its runs do not agree in."""
    found = [
        np.nan_to_num(_known(shown, name, index)).astype(bool)
        for name in ("doubtful", "disagrees")
        if name in shown.arrays
    ]
    return np.logical_or.reduce(found) if found else None


def _title(shown: Shown) -> str:
    start = shown.start
    scan = start.get("scan_id")
    parts = [
        f"scan {scan}" if scan is not None else "",
        f"run {str(start.get('raw_uid', ''))[:8]}",
        f"result {start['uid'][:8]}" if start.get("uid") else "",
        f"so far ({shown.rows_done} rows)" if shown.rows_done is not None else "",
        f"verdict: {start.get('verdict') or 'none'}",
    ]
    return ", ".join(part for part in parts if part)


def _notes(start: Mapping[str, Any]) -> tuple[str, ...]:
    report = start.get("report") or {}
    found = [*report.get("reasons", []), *start.get("warnings", [])]
    if report.get("fine_tuned"):
        found.insert(0, str(report["fine_tuned"]["text"]))
    if report.get("composite"):
        found.insert(0, str(report["composite"].get("text", "")))
    doubt = report.get("doubt") or {}
    if doubt.get("share"):
        why = "; ".join(str(reason) for reason in doubt.get("reasons", []))
        found.append(f"{100 * doubt['share']:.3g} % of the values are in doubt: {why}")
    if start.get("quantity"):
        found.append(str(start["quantity"]))
    return tuple(str(note) for note in found)


def _frame(shown: Shown) -> tuple[Extent, str, str]:
    rows, cols = shown.arrays["values"].shape[-2:]
    bottom_top = _edges(shown, "y", rows)
    left_right = _edges(shown, "x", cols)
    extent = (*left_right, bottom_top[1], bottom_top[0])
    return extent, _label(shown, "x", "column (pixel)"), _label(shown, "y", "row (pixel)")


def _edges(shown: Shown, dim: str, count: int) -> tuple[float, float]:
    """Outer edges of the first and last pixel along an axis."""
    axis = shown.axes.get(dim)
    if axis is None or len(axis.values) != count:
        return -0.5, count - 0.5
    first, last = float(axis.values[0]), float(axis.values[-1])
    half = (last - first) / (count - 1) / 2 if count > 1 else 0.5
    return first - half, last + half


def _label(shown: Shown, dim: str, default: str) -> str:
    axis = shown.axes.get(dim)
    if axis is None:
        return default
    return f"{axis.motor or dim} ({axis.units})" if axis.units else axis.motor or dim
