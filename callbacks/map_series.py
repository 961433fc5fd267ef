"""Fluorescence maps of one place at several energies, put together as a stack over an edge.

A XANES map by fluorescence is recorded as independent runs, one map per energy, with nothing that
says which belong together but the energy itself. The maps are taken as they are: pixel (row, col) of
one is pixel (row, col) of the others. Small shifts are said, not regridded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from inscan.callbacks.geometry import GeometryError, ScanGeometry
from inscan.callbacks.lines import EmissionLine
from inscan.callbacks.profile import BeamlineProfile
from inscan.callbacks.run_meta import number_at
from inscan.callbacks.units import scale
from inscan.callbacks.updates import Notes, Update

__all__ = ["SeriesError", "incident_energy_ev", "series_profile", "stack_of_maps"]

# Maps nearer in energy than this (eV) are the same energy, and are added up.
_SAME_EV = 1e-3
# Shifts of a pixel that are said, and that are refused.
_SAID_SHIFT, _MOST_SHIFT = 0.1, 0.5
# A channel with less than this share of the others' counts is left out of all maps.
_LEAST_SHARE = 0.2
_ENOUGH_COUNTS = 100.0
_MOST_BYTES = 1 << 37


class SeriesError(ValueError):
    """Maps that make no series; the message names the runs and what they disagree in."""


def series_profile(profile: BeamlineProfile) -> BeamlineProfile:
    """Return a profile with which the runs of a series are assembled.

    A map below the edge has no line of it, and is refused that line where the incident energy is
    known; a series needs just these maps.

    Raises
    ------
    SeriesError
        The profile is not one of fluorescence maps.
    """
    if profile.xrf is None:
        raise SeriesError(f"profile {profile.name} has no section xrf: its runs are no maps")
    return profile.model_copy(
        update={"xrf": profile.xrf.model_copy(update={"incident_energy": None})}
    )


def incident_energy_ev(start: Mapping[str, Any], profile: BeamlineProfile) -> float | None:
    """Return the incident energy (eV) that a start document names, None where it names none."""
    if profile.xrf is None or profile.xrf.incident_energy is None:
        return None
    value = number_at(start, profile.xrf.incident_energy)
    return None if value is None else value * scale(profile.xrf.incident_energy_units, "eV")


def stack_of_maps(
    finals: Sequence[Update], line: str, energies_ev: Sequence[float | None] | None = None
) -> Update:
    """Put maps together as an energy stack.

    Parameters
    ----------
    finals
        Final updates of fluorescence maps in any order, assembled with `series_profile`.
    line
        The line whose counts are followed, e.g. ``Fe_K``; its edge is the one under study.
    energies_ev
        Incident energy of each, eV. None: as the updates know it.

    Returns
    -------
    Update
        A final in the name of the run at the lowest energy, its stream ``xanes.LINE.DIGEST`` with a
        digest of the uids of all runs. Arrays: ``signal`` (energy, row, col) float32, counts of the
        used channels (background removed) over their mean exposure at one I0 reference for all maps,
        in counts/s; ``variance`` alike, of counting; ``measured`` (energy, row, col) bool. ``meta``
        is that of an energy stack, with ``quantity`` ``fluorescence``: what is linear in the amount
        of an element, so that no logarithm is due.

    Raises
    ------
    SeriesError
        Fewer than two energies, or runs that disagree in geometry, sample, detector, channels,
        profile or I0, or lack the line.
    """
    name = _line(line)
    _check(finals, name)
    energies = _energies(finals, energies_ev)
    order = np.argsort(energies, kind="stable")
    maps, energies = [finals[k] for k in order], energies[order]
    notes = Notes()
    geometry = _geometry(maps, notes)
    new = np.diff(energies, prepend=-np.inf) > _SAME_EV
    rows, at = np.cumsum(new) - 1, energies[new]
    if at.size < 2:
        raise SeriesError(
            f"{_named(maps)}: all at {energies[0]:g} eV; a stack needs at least two energies"
        )
    notes.set("maps at the same energy are added up", len(maps) - at.size)
    shape = (at.size, *geometry.shape)
    if 30 * int(np.prod(shape, dtype=object)) > _MOST_BYTES:
        raise SeriesError(f"a stack of {shape} needs more than {_MOST_BYTES} bytes")
    channels = _channels(maps, name, notes)
    net, counted, exposure = (np.zeros(shape) for _ in range(3))
    for row, update in zip(rows.tolist(), maps, strict=True):
        part = _part(update, name, channels, _reference(maps))
        for total, values in zip((net, counted, exposure), part, strict=True):
            total[row] += values
    measured = exposure > 0
    light = np.where(measured, exposure, 1.0)
    # No counts are no certainty: a pixel has the variance of one count at least.
    variance = np.maximum(counted, 1.0) / light**2
    arrays = {
        "signal": np.where(measured, net / light, 0).astype(np.float32),
        "variance": np.where(measured, variance, 0).astype(np.float32),
        "measured": measured,
    }
    meta = _meta(maps, name, at, rows, measured, geometry, channels, notes)
    return Update("final", maps[0].run_uid, meta["stream"], meta, arrays)


def _line(line: str) -> str:
    try:
        return EmissionLine.parse(line).name
    except ValueError as error:
        raise SeriesError(str(error)) from error


def _check(finals: Sequence[Update], line: str) -> None:
    """Refuse what cannot belong together; geometry is looked at apart."""
    if len(finals) < 2:
        raise SeriesError(f"{len(finals)} runs; a series of maps needs at least two")
    uids = [update.run_uid for update in finals]
    again = sorted({uid[:8] for uid in uids if uids.count(uid) > 1})
    if again:
        raise SeriesError(f"run {', '.join(again)} is given more than once")
    for update in finals:
        missing = {"counts", "exposure", "measured"} - set(update.arrays)
        if update.kind != "final" or missing:
            raise SeriesError(
                f"run {_name(update)} is no finished fluorescence map:"
                f" {update.meta.get('reason') or f'{update.kind}, without {sorted(missing)}'}"
            )
        if line not in (update.meta.get("elements") or ()):
            why = (update.meta.get("refused") or {}).get(line)
            known = ", ".join(update.meta.get("elements") or ()) or "none"
            raise SeriesError(
                f"run {_name(update)} has no {line} (it has {known})"
                + (f": {why}; assemble it with series_profile" if why else "")
            )
    first = finals[0]
    for key in ("sample", "detector", "profile", "channels"):
        for update in finals[1:]:
            mine, its = first.meta.get(key), update.meta.get(key)
            if mine != its:
                raise SeriesError(
                    f"runs {_name(first)} and {_name(update)} disagree in {key}: {mine!r:.80} and"
                    f" {its!r:.80}"
                )


def _energies(finals: Sequence[Update], given: Sequence[float | None] | None) -> np.ndarray:
    found = []
    if given is not None and len(given) != len(finals):
        raise SeriesError(f"{len(given)} energies for {len(finals)} runs")
    for k, update in enumerate(finals):
        value = update.meta.get("incident_energy_ev") if given is None else given[k]
        if value is None or not np.isfinite(value) or not value > 0:
            raise SeriesError(
                f"run {_name(update)} has no incident energy (xrf.incident_energy in the profile"
                f" names the key of its start document)"
            )
        found.append(float(value))
    return np.array(found)


def _geometry(maps: Sequence[Update], notes: Notes) -> ScanGeometry:
    """The raster that all share."""
    try:
        rasters = [ScanGeometry.from_dict(update.meta["geometry"] or {}) for update in maps]
    except GeometryError as error:
        raise SeriesError(f"{_named(maps)}: {error}") from error
    first = rasters[0]
    steps = np.abs([first.slow_step, first.fast_step])
    steps = np.where(steps > 0, steps, 1.0)[:, None, None]
    for update, raster in zip(maps, rasters, strict=True):
        for key in ("shape", "slow_motor", "fast_motor", "slow_units", "fast_units"):
            mine, its = getattr(first, key), getattr(raster, key)
            if mine != its:
                raise SeriesError(
                    f"runs {_name(maps[0])} and {_name(update)} disagree in {key}: {mine} and {its}"
                )
        shift = float(np.abs((raster.positions() - first.positions()) / steps).max())
        drift = _drift(update, maps[0], steps)
        if shift > _MOST_SHIFT or drift > _MOST_SHIFT:
            raise SeriesError(
                f"runs {_name(maps[0])} and {_name(update)} are {max(shift, drift):.2g} pixels apart;"
                f" maps are not regridded"
            )
        if max(shift, drift) > _SAID_SHIFT:
            notes.add(
                "maps that lie a part of a pixel away from the first: they are not regridded",
                f"run {_name(update)}, {max(shift, drift):.2g} pixels",
            )
    return first


def _drift(update: Update, first: Update, steps: np.ndarray) -> float:
    """Median distance of the positions that were read, pixels; 0 where none were."""
    one, other = first.arrays.get("position"), update.arrays.get("position")
    if one is None or other is None or one.shape != other.shape:
        return 0.0
    apart = np.abs((np.asarray(other) - np.asarray(one)) / steps).reshape(2, -1)
    known = np.isfinite(apart).all(axis=0)
    return float(np.median(apart[:, known], axis=1).max()) if known.any() else 0.0


def _channels(maps: Sequence[Update], line: str, notes: Notes) -> np.ndarray:
    """Indices of the channels that work in every map: another number in some would be an edge."""
    used = np.ones(maps[0].arrays["counts"].shape[0], bool)
    for update in maps:
        element = list(update.meta["elements"]).index(line)
        measured = np.asarray(update.arrays["measured"], bool)
        counts = np.asarray(update.arrays["counts"])[:, element][:, measured].sum(axis=1)
        light = np.asarray(update.arrays["exposure"])[:, measured].sum(axis=1)
        rates = counts / np.where(light > 0, light, np.inf)
        used &= light > 0
        if np.median(counts) >= _ENOUGH_COUNTS:
            used &= rates >= _LEAST_SHARE * np.median(rates)
    left = [str(c) for c, good in zip(maps[0].meta["channels"], used, strict=True) if not good]
    if not used.any():
        raise SeriesError(f"{_named(maps)}: no channel measured in all of them")
    if left:
        notes.add(f"channels {', '.join(left)} saw little or nothing in some map: left out of all")
    return np.flatnonzero(used)


def _reference(maps: Sequence[Update]) -> float | None:
    """The I0 that all maps are brought to: the median of their own references."""
    known = [update.meta.get("i0_reference") for update in maps]
    if all(value is None for value in known):
        return None
    for update, value in zip(maps, known, strict=True):
        if value is None or not value > 0:
            raise SeriesError(
                f"run {_name(update)} has no I0, others have one: they do not compare"
            )
    return float(np.median(np.array(known, float)))


def _part(
    update: Update, line: str, channels: np.ndarray, reference: float | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Net counts, variance of the counts, and exposure at the common I0, each (row, col)."""
    element = list(update.meta["elements"]).index(line)
    arrays = update.arrays
    measured = np.asarray(arrays["measured"], bool)
    exposure = np.asarray(arrays["exposure"], np.float64)[channels]
    # What a channel did not measure has no exposure, and must not bring counts.
    on = measured & (exposure > 0)
    counts = np.where(on, np.asarray(arrays["counts"])[channels, element], 0).sum(
        axis=0, dtype=float
    )
    net, variance = counts, counts
    if "background" in arrays:
        under = np.asarray(arrays["background"])[channels, element]
        net = counts - np.where(on, under, 0).sum(axis=0, dtype=float)
    if "background_variance" in arrays:
        own = np.asarray(arrays["background_variance"])[channels, element]
        variance = counts + np.where(on, own, 0).sum(axis=0, dtype=float)
    light = np.where(on, exposure, 0).sum(axis=0) / len(channels)
    if reference is not None:
        light = light * (float(update.meta["i0_reference"]) / reference)
    return net, variance, light


def _meta(
    maps: Sequence[Update],
    line: str,
    energies: np.ndarray,
    rows: np.ndarray,
    measured: np.ndarray,
    geometry: ScanGeometry,
    channels: np.ndarray,
    notes: Notes,
) -> dict[str, Any]:
    first, edge = maps[0].meta, EmissionLine.parse(line)
    if not energies[0] < edge.edge_ev < energies[-1]:
        notes.add(
            f"the edge of {line} at {edge.edge_ev:.0f} eV is not between {energies[0]:.0f} and"
            f" {energies[-1]:.0f} eV"
        )
    incomplete = [_name(update) for update in maps if not update.meta.get("complete")]
    if incomplete:
        notes.add(f"maps that are not complete: {', '.join(incomplete)[:200]}")
    uids = [update.run_uid for update in maps]
    digest = hashlib.sha256("\n".join(sorted(uids)).encode()).hexdigest()[:12]
    copied = {key: value for key, value in first.items() if key not in _NOT_COPIED}
    done = measured.any(axis=(1, 2))
    return copied | {
        "technique": "txm",
        "stream": f"xanes.{line}.{digest}",
        "quantity": "fluorescence",
        "units": "counts/s",
        "source": f"{line} of {len(maps)} maps",
        "geometry": geometry.to_dict(),
        "shape": list(measured.shape),
        "energies_ev": energies.tolist(),
        "edge": line,
        "edge_ev": edge.edge_ev,
        "references": [],
        "pixel_size_um": None,
        "incident_energy_ev": None,
        "i0_reference": _reference(maps),
        "channels": [first["channels"][k] for k in channels.tolist()],
        "series": [
            {
                "run_uid": update.run_uid,
                "scan_id": update.meta.get("scan_id"),
                "energy_ev": float(energies[row]),
            }
            for row, update in zip(rows.tolist(), maps, strict=True)
        ],
        "rows_done": int(done.sum()),
        "complete": not incomplete and bool(done.all()),
        "exit_status": "success" if not incomplete else "incomplete",
        "reason": "",
        "warnings": sorted(
            {*notes.lines(), *(text for u in maps for text in u.meta.get("warnings", ()))}
        ),
    }


# What one map says of itself that is not so of the series.
_NOT_COPIED = (
    "elements",
    "windows_ev",
    "refused",
    "rescan",
    "bin_energies_ev",
    "line_weights",
    "pixels_done",
)


def _name(update: Update) -> str:
    scan_id = update.meta.get("scan_id")
    return update.run_uid[:8] if scan_id is None else f"{scan_id} ({update.run_uid[:8]})"


def _named(maps: Sequence[Update]) -> str:
    return f"runs {', '.join(_name(update) for update in maps[:4])}" + (
        ", ..." if len(maps) > 4 else ""
    )
