"""Places worth measuring again, as results carry them: what the models find, by the target it was looked for.

Each is `dataclasses.asdict` of a `PixelRegion` (a box of survey pixels, half-open) and `target`, `element_name`,
`light` and `background` (mean raw counts per survey pixel and line inside the box, and the same expected from its
surroundings), `relative_sigma` (median sigma over value per line inside the box, where the line is present) and, for
precision, `wanted`. Mappings are empty where nothing is known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inscan.models.chemistry_regions import edge_regions, spectrum_regions
from inscan.models.estimate import Estimate
from inscan.models.precision_regions import precision_regions, present_lines
from inscan.models.region_boxes import merged
from inscan.models.regions import PixelRegion, doubtful_regions, find_regions
from inscan.service.messages import InferenceJob

__all__ = ["binned", "map_regions", "stack_regions", "wanted_of"]

_FALSE_ALARM = 0.05  # probability that a map of noise alone names a place
_RING = 3  # pixels around a box that say what it would hold if nothing were there
_LEAST_RING = 8


def wanted_of(job: InferenceJob) -> Mapping[str, Any] | None:
    """What the profile looks for in this run.

    Returns
    -------
    mapping or None
        `job.meta["rescan"]`; None for snapshots, repeated results and rescans, which name no places.
    """
    wanted = job.meta.get("rescan")
    rescan = job.meta.get("purpose") == "fine" or job.meta.get("parent_uid")
    if job.kind != "final" or job.refines or rescan or not wanted:
        return None
    return wanted


def map_regions(
    wanted: Mapping[str, Any],
    counts: NDArray[np.floating],
    exposure: NDArray[np.floating] | None,
    measured: NDArray[np.bool_],
    values: NDArray[np.floating],
    sigma: NDArray[np.floating],
    doubtful: NDArray[np.bool_] | None,
    names: Sequence[str],
    *,
    background: NDArray[np.floating] | None = None,
    background_variance: NDArray[np.floating] | None = None,
) -> list[dict[str, Any]]:
    """Places of an element map: at most `max_regions` of each target, in the order of the targets.

    Parameters
    ----------
    wanted : mapping
        `looked_for` of the run: targets, elements, together, scale, max_regions, min_score, precision.
    counts : ndarray, shape (element, row, col)
        Raw counts of the channel sum on the survey's grid, background kept; 0 or NaN where not measured.
    exposure : ndarray, shape (row, col) or that of `counts`, or None
        Relative exposure of these counts. None: even.
    measured : ndarray of bool, shape (row, col)
    values, sigma : ndarray, shape (element, row, col)
        Estimate on the survey's grid, in any unit: only their ratio counts.
    doubtful : ndarray of bool, shape (element, row, col), or None
    names : sequence of str
        Lines, in the order of the elements.
    background, background_variance : ndarray, shape (element, row, col), optional
        Counts known not to come from the line, and their variance.

    Returns
    -------
    list of dict
    """
    if not measured.any():
        return []
    most, targets = int(wanted["max_regions"]), wanted.get("targets", ("spots",))
    counts = np.where(measured & np.isfinite(counts), np.maximum(counts, 0), 0).astype(np.float32)
    present = present_lines(
        values, sigma, counts=counts, exposure=exposure, background=background, measured=measured
    )
    found: list[tuple[PixelRegion, str, str, dict[str, Any]]] = []
    if "spots" in targets:
        chosen = [names.index(name) for name in wanted.get("elements") or () if name in names]
        scale = float(wanted["scale"])
        boxes = find_regions(
            counts,
            element=chosen or "unlike",
            together=[names.index(name) for name in wanted.get("together") or () if name in names],
            # A spot of a line that was asked for, not every bright nucleus that has a little of it.
            beside_others=bool(chosen),
            measured=measured,
            exposure=exposure,
            background=background,
            background_variance=background_variance,
            scale_px=(0.7 * scale, scale, 1.6 * scale),
            max_regions=most,
            min_score=wanted.get("min_score"),
            false_alarm=_FALSE_ALARM,
            pad_px=0,  # the profile's `margin` is added where boxes become regions of the sample
            names=names,
        )
        found += [(box, "spots", names[box.element], {}) for box in boxes]
    if "doubt" in targets and doubtful is not None:
        # A line without a single count is in doubt everywhere, and measuring again is no cure.
        seen = doubtful & (counts.sum(axis=(1, 2)) > 0)[:, None, None]
        boxes = doubtful_regions(seen, measured=measured, max_regions=most, pad_px=0, names=names)
        found += [(box, "doubt", "doubt", {}) for box in boxes]
    asked = {
        names.index(name): float(share)
        for name, share in (wanted.get("precision") or {}).items()
        if name in names
    }
    if "precision" in targets and asked:
        for one in precision_regions(
            values,
            sigma,
            asked,
            present=present,
            max_regions=most,
            pad_px=0,
            names=names,
        ):
            shares = {names[k]: share for k, share in one.wanted.items()}
            found.append((one.region, "precision", names[one.region.element], {"wanted": shares}))
    found.sort(key=lambda one: list(targets).index(one[1]))
    light = None if exposure is None else np.broadcast_to(exposure, counts.shape)
    return [
        asdict(box)
        | {"target": target, "element_name": name}
        | _lights(box, counts, light, measured, names)
        | {"relative_sigma": _relative_sigma(box, values, sigma, present, names)}
        | more
        for box, target, name, more in found
    ]


def binned(estimate: Estimate, factor: int) -> Estimate:
    """A finer map's estimate on the survey's grid, which its places are named on.

    Its errors are those of the survey pixel below it, shared by the parts: they do not average out. A survey pixel is
    in doubt when any of its parts is.
    """
    elements, rows, cols = estimate.values.shape
    split = (elements, rows // factor, factor, cols // factor, factor)
    values = estimate.values.reshape(split).mean(axis=(2, 4))
    sigma = np.sqrt(np.square(estimate.sigma).reshape(split).mean(axis=(2, 4)))
    doubtful = estimate.doubtful
    if doubtful is not None:
        doubtful = np.asarray(doubtful.reshape(split).any(axis=(2, 4)))
    return Estimate(values, sigma, estimate.report, estimate.calibration, doubtful)


def stack_regions(
    wanted: Mapping[str, Any],
    energies_ev: NDArray[np.floating],
    density: NDArray[np.floating],
    variance: NDArray[np.floating] | None,
    edge_energy: NDArray[np.floating],
    edge_sigma: NDArray[np.floating],
    quantity: str,
    values: NDArray[np.floating],
    sigma: NDArray[np.floating],
) -> list[dict[str, Any]]:
    """Places of an energy stack with another chemistry than the rest, at most `max_regions`, for target `chemistry`.

    Parameters
    ----------
    wanted : mapping
        `looked_for` of the run: targets, scale, max_regions, min_score.
    energies_ev : ndarray, shape (energy,)
    density : ndarray, shape (energy, row, col)
        Optical density or fluorescence as measured, frames on top of each other.
    variance : ndarray or None
        Of `density`.
    edge_energy, edge_sigma : ndarray, shape (row, col)
        Edge energies of `density` in eV; NaN where there is no sample. Those of a denoised stack would lack what it
        took for noise, few pixels of another chemistry first of all.
    quantity : str
        What `values` are: `transmission` or `signal`.
    values, sigma : ndarray, shape (energy, row, col)
        Denoised stack and its standard deviation.

    Returns
    -------
    list of dict
        `element_name` is ``edge`` or ``spectrum``.
    """
    if "chemistry" not in wanted.get("targets", ()):
        return []
    looked: dict[str, Any] = {
        "scale_px": tuple(factor * float(wanted["scale"]) for factor in (1, 2, 4)),
        "max_regions": int(wanted["max_regions"]),
        "false_alarm": _FALSE_ALARM,
        "pad_px": 0,
    }
    edges = edge_regions(edge_energy, edge_sigma, **looked)
    sample = np.isfinite(edge_energy)
    spectra = spectrum_regions(density, energies_ev, sample, variance=variance, **looked)
    least = float(wanted.get("min_score") or 0.0)
    found = [one for one in edges + spectra if one.score >= least]
    kept = [_with_words(one, found) for one in merged(found, (density.shape[1], density.shape[2]))]
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.abs(sigma / values)
    described = []
    for one in kept[: int(wanted["max_regions"])]:
        r0, r1, c0, c1 = one.box
        here = relative[:, r0:r1, c0:c1]
        here = here[np.isfinite(here)]
        described.append(
            asdict(one)
            | {"target": "chemistry", "element_name": ("edge", "spectrum")[one.element]}
            | {"light": {}, "background": {}}
            | {"relative_sigma": {quantity: float(np.median(here))} if here.size else {}}
        )
    return described


def _with_words(region: PixelRegion, found: Sequence[PixelRegion]) -> PixelRegion:
    """A region with what was found in it, edges and spectra alike, in words."""
    r0, r1, c0, c1 = region.box
    here = [one for one in found if r0 <= one.peak[0] < r1 and c0 <= one.peak[1] < c1]
    best = {one.element: one for one in sorted(here, key=lambda one: one.score)}
    ordered = sorted(best.values(), key=lambda one: -one.score)
    return replace(region, reason="; ".join(one.reason for one in ordered))


def _lights(
    region: PixelRegion,
    counts: NDArray[np.float32],
    exposure: NDArray[np.floating] | None,
    measured: NDArray[np.bool_],
    names: Sequence[str],
) -> dict[str, dict[str, float]]:
    """Mean counts per pixel inside the box, and what its surroundings would give at the same exposure."""
    inside = np.zeros(measured.shape, dtype=bool)
    around = np.zeros(measured.shape, dtype=bool)
    r0, r1, c0, c1 = region.box
    inside[r0:r1, c0:c1] = True
    around[max(0, r0 - _RING) : r1 + _RING, max(0, c0 - _RING) : c1 + _RING] = True
    inside, around = inside & measured, around & ~inside & measured
    if around.sum() < _LEAST_RING:
        around = measured & ~inside  # the box takes up nearly all of the field
    light: dict[str, float] = {}
    background: dict[str, float] = {}
    for k, name in enumerate(names):
        if not inside.any():
            continue
        light[name] = float(counts[k][inside].mean())
        if not around.any():
            continue
        level = float(counts[k][around].sum(dtype=np.float64))
        if exposure is None:
            background[name] = level / int(around.sum())
        elif (lit := float(exposure[k][around].sum())) > 0:
            background[name] = level / lit * float(exposure[k][inside].mean())
    return {"light": light, "background": background}


def _relative_sigma(
    region: PixelRegion,
    values: NDArray[np.floating],
    sigma: NDArray[np.floating],
    present: NDArray[np.bool_],
    names: Sequence[str],
) -> dict[str, float]:
    r0, r1, c0, c1 = region.box
    found: dict[str, float] = {}
    for k, name in enumerate(names):
        there = present[k, r0:r1, c0:c1]
        if there.any():
            value, spread = values[k, r0:r1, c0:c1][there], sigma[k, r0:r1, c0:c1][there]
            found[name] = float(np.median(spread / value))
    return found
