"""Which emission lines a descriptor and a profile name, and the windows of a detector for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inscan.callbacks.lines import EmissionLine, line_window
from inscan.callbacks.updates import NotUnderstood
from inscan.callbacks.xrf_columns import fill, name_fields
from inscan.callbacks.xrf_sections import Elements

__all__ = ["configuration", "energy_axis", "mcaroi_window", "named_lines"]

# More than any detector has; a guard against endless configurations.
_MOST_MCAROIS = 64
_BIN_EV, _FARTHEST_EV = (0.1, 1000.0), 1e5


def configuration(descriptor: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the devices of a descriptor are set to, all in one."""
    merged: dict[str, Any] = {}
    for device in (descriptor.get("configuration") or {}).values():
        merged.update(device.get("data") or {})
    return merged


def energy_axis(chosen: Elements, settings: Mapping[str, Any]) -> tuple[float, float]:
    """Return the width of a bin and the energy of the centre of bin 0, eV.

    Raises
    ------
    NotUnderstood
        The configuration lacks a key that the profile names, or holds what no detector has.
    """
    width = _number(chosen.energy_per_bin_ev, settings)
    offset = _number(chosen.energy_offset_ev, settings)
    # An axis without bounds would be looked through bin by bin.
    if not (_BIN_EV[0] <= width <= _BIN_EV[1] and abs(offset) <= _FARTHEST_EV):
        raise NotUnderstood(
            f"spectra of {width:g} eV per bin from {offset:g} eV: expected {_BIN_EV[0]:g} to"
            f" {_BIN_EV[1]:g} eV per bin (xrf.elements.energy_per_bin_ev, energy_offset_ev)"
        )
    return width, offset


def _number(value: str | float, settings: Mapping[str, Any]) -> float:
    if not isinstance(value, str):
        return float(value)
    if value not in settings:
        raise NotUnderstood(f"the descriptor's configuration has no {value!r} (energy axis)")
    try:
        return float(settings[value])
    except (TypeError, ValueError) as error:
        raise NotUnderstood(f"configuration {value!r} is no energy: {error}") from error


def named_lines(
    chosen: Elements,
    settings: Mapping[str, Any],
    template: str,
    data_keys: Mapping[str, Any],
    count: int | None,
    channel: int,
    refused: dict[str, str],
) -> list[tuple[EmissionLine, int]]:
    """Return the lines to map with the number of their window (0 for spectra).

    Parameters
    ----------
    chosen, settings
        What the profile wants, and the descriptor's configuration.
    template, data_keys
        Name of the counts' keys, and all there are.
    count
        Number of windows of an array; None: there is a key for each.
    channel
        A channel that is recorded.
    refused
        Is told why a line is not mapped.

    Raises
    ------
    NotUnderstood
        There are fewer windows than lines, or two windows of the same name.
    """
    wanted = [EmissionLine.parse(name) for name in chosen.lines]
    if chosen.source == "spectrum":
        return [(line, 0) for line in wanted]
    if "mcaroi" in name_fields(template):
        count = 0
        while count < _MOST_MCAROIS and fill(template, channel=channel, mcaroi=count + 1) in (
            data_keys
        ):
            count += 1
    count = count or 0
    named: list[tuple[EmissionLine, int]] = []
    found_names = False
    for index in range(1, min(count, _MOST_MCAROIS) + 1):
        key = None if chosen.mcaroi_name is None else fill(chosen.mcaroi_name, mcaroi=index)
        if key is None or key not in settings:
            continue
        found_names = True
        if not settings[key]:
            continue
        try:
            named.append((EmissionLine.parse(settings[key]), index))
        except ValueError as error:
            refused[str(settings[key])] = f"window {index} is left out: {error}"
    if not found_names:
        if len(wanted) > count:
            raise NotUnderstood(
                f"the profile names {len(wanted)} lines, the detector has {count} windows"
            )
        named = [(line, index) for index, line in enumerate(wanted, start=1)]
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


def mcaroi_window(
    chosen: Elements, settings: Mapping[str, Any], line: EmissionLine, index: int
) -> tuple[float, float]:
    """Return (low, high) in eV of a window of the detector; computed where it does not say."""
    edges = []
    for template in (chosen.mcaroi_low_ev, chosen.mcaroi_high_ev):
        value = None if template is None else settings.get(fill(template, mcaroi=index))
        if isinstance(value, int | float) and 0 <= value <= _FARTHEST_EV:
            edges.append(float(value))
    if len(edges) == 2 and edges[0] < edges[1]:
        return edges[0], edges[1]
    return line_window(line, chosen.resolution_ev, chosen.window_fwhm)
