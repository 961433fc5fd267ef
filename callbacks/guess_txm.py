"""A first profile for a transmission microscope: camera, energies, dark and flat frames."""

from __future__ import annotations

import math
import re

from inscan.callbacks.guess import ENERGY, KEV_BELOW, LEAST_IMAGE, ProfileGuess, dwell_of, numbers
from inscan.callbacks.run_summary import KeySummary, RunSummary, StreamSummary

__all__ = ["camera_image", "guess_txm", "listed_energies"]

_LEAST_ENERGIES = 3
_ENERGIES = re.compile(r"eng|energ", re.IGNORECASE)


def camera_image(run: RunSummary) -> tuple[StreamSummary, KeySummary] | None:
    """The largest camera frame of the run."""
    found = [
        (math.prod(key.shape[-2:]), stream.name == "primary", stream, key)
        for stream in run.streams.values()
        for key in stream.keys.values()
        if len(key.shape) in (2, 3, 4) and min(key.shape[-2:]) >= LEAST_IMAGE
    ]
    return max(found, key=lambda one: one[:2])[2:] if found else None


def listed_energies(run: RunSummary) -> tuple[str, list[float]] | None:
    """The longest list of energies in the start document."""
    found = []
    for path, value in run.paths().items():
        if not _ENERGIES.search(path) or not numbers(value) or len(value) < _LEAST_ENERGIES:
            continue
        if min(value) > 0:
            found.append((len(value), path, [float(one) for one in value]))
    return max(found)[1:] if found else None


def guess_txm(
    run: RunSummary,
    guess: ProfileGuess,
    image: tuple[StreamSummary, KeySummary],
    energies: tuple[str, list[float]],
) -> None:
    stream, key = image
    path, values = energies
    guess.put("txm|image", key.name, f"shape {list(key.shape)} in stream {stream.name}")
    guess.put("txm|energies", path, f"{len(values)} values, {min(values):g} ... {max(values):g}")
    units = "keV" if max(values) < KEV_BELOW else "eV"
    guess.put("txm|energies_units", units, "from their size")
    readback = next((k for k in stream.keys.values() if k.scalar and ENERGY.search(k.name)), None)
    if readback is not None:
        guess.put("txm|energy", readback.name, f"in stream {stream.name}")
    guess.put("txm|streams|primary", stream.name, f"{stream.events or stream.last} events")
    for role in ("dark", "flat"):
        named = [s for s in run.streams if role in s.lower() or (role == "flat" and "bkg" in s)]
        if named:
            guess.put(f"txm|streams|{role}", named[0], "from its name")
        else:
            guess.questions.append(
                f"txm.streams.{role}: no stream of this run is named like {role} frames (streams:"
                f" {', '.join(run.streams)})"
            )
    guess.put("txm|edge", "auto", "the absorption edge inside the energies")
    dwell_of(run, guess, "txm|dwell")
    guess.questions.append("txm.pixel_size_um: size of a pixel on the sample; null shows pixels")
