"""A first profile for a fluorescence microscope: raster, detector keys, windows, beam monitor."""

from __future__ import annotations

import re
from collections.abc import Iterable

from inscan.callbacks.guess import (
    ENERGY,
    KEV_BELOW,
    LEAST_IMAGE,
    ProfileGuess,
    dwell_of,
    first_path,
    numbers,
    ranges,
    texts,
)
from inscan.callbacks.key_families import KeyFamily, families
from inscan.callbacks.lines import EmissionLine
from inscan.callbacks.run_summary import RunSummary, StreamSummary

__all__ = ["guess_xrf"]

_LEAST_BINS = 128
_I0 = re.compile(r"(^|[_:])(i0|io|ic0|ic1|us_?ic|i00|ion_?chamber|monitor)($|[_:])", re.IGNORECASE)
_WINDOW = re.compile(r"roi", re.IGNORECASE)
_LIVE = re.compile(r"live", re.IGNORECASE)


def guess_xrf(run: RunSummary, guess: ProfileGuess) -> None:
    rows_cols = _geometry(run, guess)
    ranked = sorted(run.streams.values(), key=_detector_score, reverse=True)
    if not ranked or not _detector_score(ranked[0]):
        guess.questions.append(
            "xrf: no stream of this run has spectra or spectral windows (streams:"
            f" {', '.join(run.streams) or 'none'}); is it a fluorescence map?"
        )
        return
    stream = ranked[0]
    way = _way(stream, rows_cols)
    prefix = f"xrf|{way[0]}"
    guess.put(f"{prefix}|stream", stream.name, way[1])
    spectra, windows = _spectra(stream), _windows(stream)
    source = "mcaroi" if windows and way[0] != "rows" else "spectrum"
    if windows and way[0] != "rows":
        guess.put(
            f"{prefix}|mcaroi", windows.template, _numbered(windows) or "over channels and windows"
        )
    if spectra:
        family, shape = spectra
        why = f"shape {list(shape)}; {_numbered(family)}"
        guess.put(f"{prefix}|spectrum", family.template, why.rstrip("; "))
    else:
        source = "mcaroi"
    live = [f for f in families(stream.keys) if _LIVE.search(f.template)]
    if live:
        guess.put(f"{prefix}|live_time", live[0].template, _numbered(live[0]) or "from its name")
    else:
        guess.questions.append(
            f"{prefix.replace('|', '.')}.live_time: none found; without it dead time is unknown"
        )
    # Beside i0 there may be i0_time, its clock.
    monitor = min((name for name in stream.keys if _I0.search(name)), key=len, default=None)
    if monitor:
        guess.put(f"{prefix}|i0", monitor, "from its name")
    else:
        guess.questions.append(
            f"{prefix.replace('|', '.')}.i0: no beam monitor found; without it the beam is taken as constant"
        )
    if way[0] == "rows" and rows_cols is not None:
        columns = [k.name for k in stream.keys.values() if k.shape == (rows_cols[1],)]
        guess.questions.append(
            "xrf.rows.positions: which motor is in which column, such as {sample_x: enc1}? Columns with a value per"
            f" pixel: {', '.join(columns) or 'none'}. And is one of them the live time (xrf.rows.live_time)?"
        )
        guess.questions.append(
            "xrf.rows.order: time if the arrays of a row are in the order they were taken, position if not"
        )
    guess.put("xrf|elements|source", source)
    _lines(stream, guess, source)
    _incident(run, guess)
    dwell_of(run, guess, "xrf|dwell")


def _detector_score(stream: StreamSummary) -> int:
    return 2 * (_spectra(stream) is not None) + (_windows(stream) is not None)


def _spectra(stream: StreamSummary) -> tuple[KeyFamily, tuple[int, ...]] | None:
    arrays = [
        key.name
        for key in stream.keys.values()
        if key.shape
        and key.shape[-1] >= _LEAST_BINS
        and (len(key.shape) == 1 or key.shape[-2] < LEAST_IMAGE)
    ]
    found = [
        (len(family.keys), len(stream.keys[family.keys[0]].shape), family)
        for family in families(arrays)
        if not family.mcarois
    ]
    if not found:
        return None
    family = max(found, key=lambda one: one[:2])[2]
    return family, stream.keys[family.keys[0]].shape


def _windows(stream: StreamSummary) -> KeyFamily | None:
    # One array over channels and windows, as detectors that write files have them.
    for key in stream.keys.values():
        inner = tuple(n for n in key.shape if n > 1)
        if _WINDOW.search(key.name) and 1 <= len(inner) <= 2 and max(inner) < _LEAST_BINS:
            return families([key.name])[0]
    names = [k.name for k in stream.keys.values() if k.scalar and _WINDOW.search(k.name)]
    found = [family for family in families(names) if family.mcarois]
    # A sum over each window is called total; limits and sizes of windows are numbers, too.
    return max(found, key=lambda f: ("total" in f.template, len(f.keys)), default=None)


def _way(stream: StreamSummary, rows_cols: tuple[int, int] | None) -> tuple[str, str]:
    external = {key.where for key in stream.keys.values() if len(key.shape)}
    if "stream" in external:
        return "fly", "its arrays come by stream_datum"
    count = max(stream.events, stream.last)
    if rows_cols and rows_cols[0] != 1 and count <= rows_cols[0] < rows_cols[0] * rows_cols[1]:
        leading = {key.shape[0] for key in stream.keys.values() if key.shape}
        if rows_cols[1] in leading:
            return "rows", f"{count} events, arrays of {rows_cols[1]} pixels each"
    return "step", f"{count} events"


def _geometry(run: RunSummary, guess: ProfileGuess) -> tuple[int, int] | None:
    """Put what says where the pixels lie; return (rows, columns) where that is known."""
    paths = run.paths()
    motors = first_path(paths, "motors", lambda v: texts(v) and len(v) == 2)
    shape = first_path(paths, "shape", lambda v: numbers(v) and len(v) == 2)
    extents = first_path(paths, "extents", ranges)
    fast = next((p for p, v in paths.items() if "fast" in p and isinstance(v, str)), None)
    for role, found in (("motors", motors), ("shape", shape), ("extents", extents)):
        if found is not None:
            guess.put(f"geometry|{role}", found, f"here {paths[found]!r}")
    if motors is None and fast is not None:
        # Beamlines that name a fast axis: its motor, and that of the slow one beside it.
        slow = fast.replace("fast", "slow")
        if slow in paths:
            guess.put("geometry|fast_motor", fast, f"here {paths[fast]!r}")
            guess.put("geometry|slow_motor", slow, f"here {paths[slow]!r}")
    order = "fast_slow" if fast is not None else "slow_fast"
    guess.put(
        "geometry|order",
        order,
        "the run names a fast axis: check which comes first in shape"
        if fast is not None
        else "as Bluesky's plans write it",
    )
    snaking = next((p for p in paths if p.split(".")[-1] in ("snaking", "snake")), None)
    if snaking is not None:
        guess.put("geometry|snaking", snaking, f"here {paths[snaking]!r}")
    flat = next(
        (p for p, v in paths.items() if p.split(".")[-1] in ("scan_input", "scaninfo.params")), None
    )
    if extents is None and flat is not None:
        guess.put("geometry|scan_input", flat, f"here {paths[flat]!r}")
        guess.put(
            "geometry|scan_input_form",
            "fast_slow",
            "a number of points or a step, whichever agrees with shape",
        )
    elif extents is None:
        guess.questions.append(
            "geometry.extents: nothing in the start document says where the map begins and ends; known paths are"
            f" {', '.join(sorted(paths))[:400]}"
        )
    if shape is None:
        return None
    counts = [int(n) for n in paths[shape]]
    return (counts[1], counts[0]) if order == "fast_slow" else (counts[0], counts[1])


def _lines(stream: StreamSummary, guess: ProfileGuess, source: str) -> None:
    for family in families(k for k, v in stream.configuration.items() if isinstance(v, str)):
        names = [stream.configuration[key] for key in family.keys]
        if family.mcarois and source == "mcaroi" and any(_is_line(name) for name in names):
            guess.put(
                "xrf|elements|mcaroi_name", family.template, f"here {', '.join(map(repr, names))}"
            )
            return
    guess.put("xrf|elements|lines", ["Fe_K"])
    guess.questions.append(
        "xrf.elements.lines: which emission lines become maps? (source mcaroi: the names of windows 1, 2, ... in"
        " order)"
    )


def _is_line(text: str) -> bool:
    try:
        EmissionLine.parse(text)
    except ValueError:
        return False
    return True


def _incident(run: RunSummary, guess: ProfileGuess) -> None:
    for path, value in run.paths().items():
        if ENERGY.search(path) and isinstance(value, int | float) and value > 0:
            guess.put("xrf|incident_energy", path, f"here {value}")
            guess.put("xrf|incident_energy_units", "keV" if value < KEV_BELOW else "eV")
            return
    guess.put("xrf|incident_energy", None)
    guess.questions.append(
        "xrf.incident_energy: the start document has none; lines that it could not excite are not refused"
    )


def _numbered(family: KeyFamily) -> str:
    parts = []
    for name, found in (("channel", family.channels), ("mcaroi", family.mcarois)):
        if found:
            parts.append(f"{name} {_span(found)}")
    return ", ".join(parts)


def _span(found: Iterable[int]) -> str:
    known = list(found)
    return f"{known[0]} to {known[-1]}" if len(known) > 1 else str(known[0])
