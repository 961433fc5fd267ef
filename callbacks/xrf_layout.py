"""What the keys of a fluorescence stream are: channels, elements, windows."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from inscan.callbacks.cube import CubeAxis, cube_axis
from inscan.callbacks.lines import EmissionLine, excitable, line_window, overlaps
from inscan.callbacks.units import scale
from inscan.callbacks.updates import NotUnderstood, from_stream
from inscan.callbacks.windows import SpectrumWindows, spectrum_windows
from inscan.callbacks.xrf_sections import XRF, Elements, XRFKeys

__all__ = ["Column", "XRFLayout", "read_layout"]

Role = Literal["mcaroi", "spectrum", "live_time", "i0", "slow", "fast"]
# More of either than any detector has; a guard against endless configurations.
_MOST_CHANNELS, _MOST_MCAROIS = 128, 64


@dataclass(frozen=True)
class Column:
    """One data key.

    Attributes
    ----------
    role
        What it holds.
    shape
        Declared shape of one value, without leading axes of length one.
    declared
        The shape as it stands in the descriptor.
    external
        Read from files, not from events.
    channel, element
        Index that the key belongs to; None: it is an array over all of them, or has none.
    factor
        Factor to the geometry's units (positions).
    """

    role: Role
    shape: tuple[int, ...]
    declared: tuple[int, ...]
    external: bool
    channel: int | None = None
    element: int | None = None
    factor: float = 1.0


@dataclass(frozen=True)
class XRFLayout:
    """A stream, understood.

    Attributes
    ----------
    way
        Section of the profile that fits.
    channels
        Numbers of the detector channels, from 1.
    elements
        Line names, ``Fe_K``.
    mcarois
        Numbers of the elements' windows, from 1 (source mcaroi; else empty).
    windows_ev
        (low, high) per element.
    windows
        Windows in spectra (source spectrum; else None).
    columns
        Data key -> what it is.
    refused
        Line -> why it is not mapped.
    warnings
        What people should know.
    cube
        Energy axis of the spectra that are kept.
    """

    way: Literal["step", "fly"]
    channels: tuple[int, ...]
    elements: tuple[str, ...]
    mcarois: tuple[int, ...]
    windows_ev: tuple[tuple[float, float], ...]
    windows: SpectrumWindows | None
    columns: Mapping[str, Column]
    refused: Mapping[str, str]
    warnings: tuple[str, ...]
    cube: CubeAxis | None = None

    def same_data(self, other: XRFLayout) -> bool:
        """Return whether both fill the same arrays with the same meaning."""
        return (self.channels, self.elements, self.windows_ev) == (
            other.channels,
            other.elements,
            other.windows_ev,
        )


def read_layout(
    descriptor: Mapping[str, Any],
    profile: XRF,
    incident_energy_ev: float | None,
    positions: tuple[str, str],
    units: tuple[str, str],
) -> XRFLayout:
    """Understand a descriptor.

    Parameters
    ----------
    descriptor
        Event descriptor of the stream.
    profile
        Keys and elements.
    incident_energy_ev
        None: unknown.
    positions, units
        Data keys of the slow and fast position, and the units they are wanted in.

    Raises
    ------
    NotUnderstood
        Keys, channels or lines are missing.
    """
    data_keys = descriptor["data_keys"]
    source = profile.elements.source
    ways: tuple[Literal["fly", "step"], ...] = ("fly", "step")
    for way in ways:
        keys: XRFKeys | None = getattr(profile, way)
        if keys is None or keys.stream != descriptor["name"]:
            continue
        template = getattr(keys, source)
        channels = _channels(template, data_keys, profile.channels)
        if channels:
            return _layout(
                way, keys, channels, descriptor, profile, incident_energy_ev, positions, units
            )
    wanted = [getattr(keys, source) for keys in (profile.fly, profile.step) if keys is not None]
    raise NotUnderstood(
        f"stream {descriptor['name']!r} has none of the keys {wanted} for source {source}; it has"
        f" {', '.join(sorted(data_keys))[:300]}"
    )


def _layout(
    way: Literal["step", "fly"],
    keys: XRFKeys,
    channels: tuple[int, ...],
    descriptor: Mapping[str, Any],
    profile: XRF,
    incident_ev: float | None,
    positions: tuple[str, str],
    units: tuple[str, str],
) -> XRFLayout:
    data_keys = descriptor["data_keys"]
    settings = _configuration(descriptor)
    chosen = profile.elements
    template = getattr(keys, chosen.source)
    warnings: list[str] = []
    refused: dict[str, str] = {}
    columns: dict[str, Column] = {}

    named = _named_lines(chosen, settings, template, data_keys, channels[0], refused)
    lines: list[tuple[EmissionLine, int]] = []
    for line, number in named:
        reason = excitable(line, incident_ev)
        if reason is None:
            lines.append((line, number))
        else:
            refused[line.name] = reason
    if not lines:
        raise NotUnderstood(
            f"no line is left to map: {'; '.join(refused.values()) or 'none named'}"
        )

    windows = cube = None
    if chosen.source == "spectrum":
        key = _fill(template, channel=channels[0])
        axis: dict[str, Any] = {"n_bins": int(data_keys[key]["shape"][-1])}
        axis["ev_per_bin"] = _number(chosen.energy_per_bin_ev, settings)
        axis["offset_ev"] = _number(chosen.energy_offset_ev, settings)
        axis["incident_energy_ev"] = incident_ev
        try:
            windows = spectrum_windows(
                [line for line, _ in lines],
                **axis,
                resolution_ev=chosen.resolution_ev,
                half_width_fwhm=chosen.window_fwhm,
                background=chosen.background == "linear",
            )
            if profile.cube is not None:
                cube = cube_axis(profile.cube, windows, **axis)
        except ValueError as error:
            raise NotUnderstood(str(error)) from error
        windows_ev = windows.windows_ev
        for name in windows.without_background:
            warnings.append(f"{name}: no place beside the peak is free, its background is unknown")
    else:
        windows_ev = tuple(_mcaroi_window(chosen, settings, line, n) for line, n in lines)
    warnings += [
        str(overlap)
        for overlap in overlaps(
            [(line, *window) for (line, _), window in zip(lines, windows_ev, strict=True)],
            chosen.resolution_ev,
            threshold=chosen.overlap_warning,
            incident_energy_ev=incident_ev,
        )
    ]

    numbers = [number for _, number in lines] if chosen.source == "mcaroi" else [None]
    for index, channel in enumerate(channels):
        for element, number in enumerate(numbers):
            _add(columns, data_keys, template, chosen.source, index, channel, element, number)
        if keys.live_time is not None:
            _add(columns, data_keys, keys.live_time, "live_time", index, channel, None, None)
    if keys.live_time is not None and not any(c.role == "live_time" for c in columns.values()):
        warnings.append(f"no live time ({keys.live_time}): the dwell is taken, dead time unknown")
    if keys.i0 is not None:
        if keys.i0 in data_keys:
            columns[keys.i0] = _column("i0", data_keys[keys.i0])
        else:
            warnings.append(f"no beam monitor ({keys.i0}): the beam is taken as constant")
    for role, key, unit in zip(("slow", "fast"), positions, units, strict=True):
        if key not in data_keys:
            continue
        own = data_keys[key].get("units") or unit
        try:
            columns[key] = _column(role, data_keys[key], factor=scale(own, unit))
        except ValueError as error:
            warnings.append(f"readback {key} is not used: {error}")
    return XRFLayout(
        way,
        channels,
        tuple(line.name for line, _ in lines),
        tuple(number for _, number in lines) if chosen.source == "mcaroi" else (),
        tuple(windows_ev),
        windows,
        columns,
        refused,
        tuple(warnings),
        cube,
    )


def _fields(template: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(template) if name}


def _fill(template: str, *, channel: int = 1, mcaroi: int = 1) -> str:
    return template.format(channel=channel, mcaroi=mcaroi)


def _channels(
    template: str | None, data_keys: Mapping[str, Any], wanted: Sequence[int]
) -> tuple[int, ...]:
    """Numbers of the channels that are recorded and wanted; empty when the key is not there."""
    if template is None:
        return ()
    if "channel" in _fields(template):
        numbers = range(1, _MOST_CHANNELS + 1)
        found = [n for n in numbers if _fill(template, channel=n) in data_keys]
    else:
        key = _fill(template)
        shape = data_keys.get(key, {}).get("shape", ())
        # The channel is the first of the last two axes, or of the last one beside {mcaroi} keys.
        axis = -1 if "mcaroi" in _fields(template) else -2
        found = list(range(1, int(shape[axis]) + 1)) if len(shape) >= -axis else []
    if not found:
        return ()
    missing = [n for n in wanted if n not in found]
    if missing:
        raise NotUnderstood(f"channels {missing} are not recorded; there are {found}")
    return tuple(wanted) or tuple(found)


def _configuration(descriptor: Mapping[str, Any]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for device in (descriptor.get("configuration") or {}).values():
        merged.update(device.get("data") or {})
    return merged


def _number(value: str | float, settings: Mapping[str, Any]) -> float:
    if not isinstance(value, str):
        return float(value)
    if value not in settings:
        raise NotUnderstood(f"the descriptor's configuration has no {value!r} (energy axis)")
    return float(settings[value])


def _named_lines(
    chosen: Elements,
    settings: Mapping[str, Any],
    template: str,
    data_keys: Mapping[str, Any],
    channel: int,
    refused: dict[str, str],
) -> list[tuple[EmissionLine, int]]:
    """Lines to map with the number of their window (0 for spectra)."""
    wanted = [EmissionLine.parse(name) for name in chosen.lines]
    if chosen.source == "spectrum":
        return [(line, 0) for line in wanted]
    if "mcaroi" in _fields(template):
        count = 0
        while count < _MOST_MCAROIS and _fill(template, channel=channel, mcaroi=count + 1) in (
            data_keys
        ):
            count += 1
    else:
        count = int(data_keys[_fill(template, channel=channel)]["shape"][-1])
    named: list[tuple[EmissionLine, int]] = []
    found_names = False
    for number in range(1, count + 1):
        key = None if chosen.mcaroi_name is None else _fill(chosen.mcaroi_name, mcaroi=number)
        if key is None or key not in settings:
            continue
        found_names = True
        if not settings[key]:
            continue
        try:
            named.append((EmissionLine.parse(settings[key]), number))
        except ValueError as error:
            refused[str(settings[key])] = f"window {number} is left out: {error}"
    if not found_names:
        if len(wanted) > count:
            raise NotUnderstood(
                f"the profile names {len(wanted)} lines, the detector has {count} windows"
            )
        named = [(line, number) for number, line in enumerate(wanted, start=1)]
    elif wanted:
        have = dict(named)
        for line in wanted:
            if line not in have:
                refused[line.name] = (
                    f"{line.name}: no window of that name; the detector has"
                    f" {', '.join(other.name for other in have)}"
                )
        named = [(line, have[line]) for line in wanted if line in have]
    if len({line for line, _ in named}) != len(named):
        raise NotUnderstood(f"two windows have the same name: {[line.name for line, _ in named]}")
    return named


def _mcaroi_window(
    chosen: Elements, settings: Mapping[str, Any], line: EmissionLine, number: int
) -> tuple[float, float]:
    edges = []
    for template in (chosen.mcaroi_low_ev, chosen.mcaroi_high_ev):
        value = None if template is None else settings.get(_fill(template, mcaroi=number))
        if isinstance(value, int | float):
            edges.append(float(value))
    if len(edges) == 2 and edges[0] < edges[1]:
        return edges[0], edges[1]
    return line_window(line, chosen.resolution_ev, chosen.window_fwhm)


def _add(
    columns: dict[str, Column],
    data_keys: Mapping[str, Any],
    template: str,
    role: Role,
    index: int,
    channel: int,
    element: int | None,
    mcaroi: int | None,
) -> None:
    fields = _fields(template)
    key = _fill(template, channel=channel, mcaroi=mcaroi or 1)
    if key not in data_keys:
        if role == "live_time":
            return
        raise NotUnderstood(f"data key {key!r} is missing in the descriptor")
    if key not in columns:
        columns[key] = _column(
            role,
            data_keys[key],
            channel=index if "channel" in fields else None,
            element=element if "mcaroi" in fields else None,
        )


def _column(
    role: Any,
    data_key: Mapping[str, Any],
    *,
    channel: int | None = None,
    element: int | None = None,
    factor: float = 1.0,
) -> Column:
    declared = tuple(int(n) for n in data_key.get("shape") or ())
    shape = declared
    # Devices that fill files often declare one row as (1, ...).
    expected = {"mcaroi": 2, "spectrum": 2, "live_time": 1, "i0": 0, "slow": 0, "fast": 0}[role]
    expected -= (channel is not None) + (element is not None)
    while len(shape) > expected and shape[0] == 1:
        shape = shape[1:]
    if len(shape) != expected:
        raise NotUnderstood(f"a key for {role} declares shape {declared}; expected {expected} axes")
    return Column(role, shape, declared, from_stream(data_key), channel, element, factor)
