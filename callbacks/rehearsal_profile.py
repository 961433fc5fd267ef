"""The profile under which a rehearsal on a stored run is processed: the beamline's method and rules, the rebuilt
detector's keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from inscan.callbacks.profile import BeamlineProfile

__all__ = ["map_rehearsal_profile", "stack_rehearsal_profile"]

_SHARE = 0.25
"""Of the field and of the time for all of it, where the beamline's own limits say nothing."""
_MOST_STEPS = 1000


def map_rehearsal_profile(
    profile: BeamlineProfile, meta: Mapping[str, Any], full_time_s: float
) -> tuple[BeamlineProfile, list[str]]:
    """Make the profile of a rehearsal on a map.

    Parameters
    ----------
    profile
        Under which the stored run was assembled.
    meta
        Of its map: geometry, elements, run_uid.
    full_time_s
        Time that the stored run took for its whole field.

    Returns
    -------
    profile : BeamlineProfile
        Matches runs with ``rehearsal_of`` set to the stored run. Regions are taken without asking anybody, because
        nothing real moves; every limit of the beamline's profile holds, and where it has none the notes say what does.
    notes : list of str
        What differs from the beamline's rules.
    """
    geometry, notes = meta["geometry"], []
    rescan = profile.rescan.model_dump(mode="json")
    if rescan["mode"] != "auto":
        notes.append(f"rescan.mode is {rescan['mode']} at the beamline; a rehearsal takes regions")
        rescan["mode"] = "auto"
    spans = {}
    for axis in ("slow", "fast"):
        count = geometry["shape"][0 if axis == "slow" else 1]
        first, last = geometry[f"{axis}_first"], geometry[f"{axis}_last"]
        half = abs(last - first) / max(count - 1, 1) / 2
        low, high = min(first, last) - half, max(first, last) + half
        spans[axis] = high - low
        motor = geometry[f"{axis}_motor"]
        if motor not in rescan["soft_limits"]:
            notes.append(f"rescan.soft_limits has no {motor}: the field of the run is taken")
            limit = {"low": low, "high": high, "units": geometry[f"{axis}_units"] or "um"}
            rescan["soft_limits"] = {**rescan["soft_limits"], motor: limit}
    if not rescan["max_area"]:
        rescan["max_area"] = _SHARE * spans["slow"] * spans["fast"]
        notes.append(f"rescan.max_area is 0: {_SHARE:.0%} of the field is taken")
    if not rescan["max_time"]:
        rescan["max_time"] = _SHARE * full_time_s
        notes.append(f"rescan.max_time is 0: {_SHARE:.0%} of the run's own time is taken")
    method = profile.method.model_dump(mode="json")
    if method["name"] == "spectral":
        notes.append("the rebuilt detector has windows, not spectra: n2n instead of spectral")
        method = {"name": "n2n", "snapshot_rows": method["snapshot_rows"]}
    content = {
        "name": f"{profile.name}_rehearsal",
        "description": f"Rehearsals on run {meta['run_uid']}",
        "technique": "xrf",
        "match": {"rehearsal_of": meta["run_uid"]},
        "xrf": {
            "step": {
                "mcaroi": "xs_channel{channel:02d}_mcaroi{mcaroi:02d}_total_rbv",
                "live_time": "xs_channel{channel:02d}_live_time",
                "i0": "sclr_i0",
            },
            "elements": {
                "source": "mcaroi",
                "mcaroi_name": "xs_mcaroi{mcaroi:02d}_name",
                "mcaroi_low_ev": "xs_mcaroi{mcaroi:02d}_low_ev",
                "mcaroi_high_ev": "xs_mcaroi{mcaroi:02d}_high_ev",
            },
            "incident_energy": "scan.energy",
        },
        "method": method,
        "rescan": rescan,
    }
    return BeamlineProfile(**content, folder=profile.folder), notes


def stack_rehearsal_profile(
    profile: BeamlineProfile, meta: Mapping[str, Any], full_time_s: float
) -> tuple[BeamlineProfile, list[str]]:
    """Make the profile of a rehearsal on an energy stack; see `map_rehearsal_profile`.

    Energies are proposed on the beamline's grid within those of the run, or on a grid as fine as the run was.
    """
    assert profile.txm is not None
    rescan, notes = _energies(
        profile, sorted(float(one) for one in meta["energies_ev"]), full_time_s
    )
    txm: dict[str, Any] = {
        "image": "camera_image",
        "energy": "energy",
        "energies": "eng_list",
        "energies_units": "keV",
        "edge": meta.get("edge") or profile.txm.edge,
        # Stored frames are not repeated: their gain is that of the run.
        "adu_per_photon": meta.get("adu_per_photon") or 1.0,
    }
    if profile.txm.references is not None:
        txm["references"] = profile.txm.references.model_dump(mode="json")
    if meta.get("pixel_size_um"):
        txm["pixel_size_um"] = meta["pixel_size_um"]
    content = {
        "name": f"{profile.name}_rehearsal",
        "description": f"Rehearsals on run {meta['run_uid']}",
        "technique": "txm",
        "match": {"rehearsal_of": meta["run_uid"]},
        "txm": txm,
        "method": profile.method.model_dump(mode="json"),
        "rescan": rescan,
    }
    notes.append("noise of the stored frames stays in them: read noise is taken as part of it")
    return BeamlineProfile(**content, folder=profile.folder), notes


def _energies(
    profile: BeamlineProfile, stored_ev: Sequence[float], full_time_s: float
) -> tuple[dict[str, Any], list[str]]:
    """The section `rescan` of a rehearsal that may take what the run has, and what differs from the beamline's."""
    rules, notes = profile.rescan, []
    if rules.mode != "auto":
        notes.append(f"rescan.mode is {rules.mode} at the beamline; a rehearsal takes energies")
    low, high = stored_ev[0], stored_ev[-1]
    own = None if profile.txm is None else rules.soft_limits.get(profile.txm.energy or "")
    limit = {"low": low - 1e-3, "high": high + 1e-3, "units": "eV"}
    if own is None:
        notes.append("rescan.soft_limits has no monochromator: the energies of the run are taken")
    else:
        allowed = own.in_units("eV")
        limit |= {"low": max(limit["low"], allowed[0]), "high": min(limit["high"], allowed[1])}
    max_time = rules.max_time
    if not max_time:
        max_time = full_time_s
        notes.append("rescan.max_time is 0: the run's own time is taken")
    wanted = rules.energies
    if wanted is None:
        steps = [b - a for a, b in zip(stored_ev, stored_ev[1:], strict=False)]
        energies = {
            "low_ev": low,
            "high_ev": high,
            "step_ev": max(min(steps), (high - low) / _MOST_STEPS),
            "most": max(1, len(stored_ev) // 2),
        }
        notes.append("rescan.energies is not set: half of the run's energies may be added")
    else:
        energies = wanted.model_dump(mode="json")
        energies |= {"low_ev": max(low, wanted.low_ev), "high_ev": min(high, wanted.high_ev)}
    rescan = rules.model_dump(mode="json") | {
        "mode": "auto",
        "through": "plan",
        "soft_limits": {"energy": limit},
        "max_time": max_time,
        "energies": energies,
    }
    return rescan, notes
