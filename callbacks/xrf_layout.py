"""What the keys of a fluorescence stream are: channels, elements, windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from inscan.callbacks.cube import CubeAxis, cube_axis
from inscan.callbacks.lines import EmissionLine, excitable, overlaps
from inscan.callbacks.units import scale
from inscan.callbacks.updates import NotUnderstood
from inscan.callbacks.windows import SpectrumWindows, outside_spectrum, spectrum_windows
from inscan.callbacks.xrf_columns import (
    MOST_BINS,
    Column,
    Role,
    chosen_name,
    fill,
    find_channels,
    make_column,
    name_fields,
)
from inscan.callbacks.xrf_lines import configuration, energy_axis, mcaroi_window, named_lines
from inscan.callbacks.xrf_sections import XRF, XRFKeys, XRFRows

__all__ = ["XRFLayout", "detector_name", "has_counts", "read_layout"]

Way = Literal["rows", "fly", "step"]


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
    bins
        Length of a spectrum (source spectrum; else 0).
    cube
        Energy axis of the spectra that are kept.
    """

    way: Way
    channels: tuple[int, ...]
    elements: tuple[str, ...]
    mcarois: tuple[int, ...]
    windows_ev: tuple[tuple[float, float], ...]
    windows: SpectrumWindows | None
    columns: Mapping[str, Column]
    refused: Mapping[str, str]
    warnings: tuple[str, ...]
    bins: int = 0
    cube: CubeAxis | None = None

    def same_data(self, other: XRFLayout) -> bool:
        """Return whether both fill the same arrays with the same meaning."""
        return (self.channels, self.elements, self.windows_ev) == (
            other.channels,
            other.elements,
            other.windows_ev,
        )

    def counts_key(self) -> str:
        """Return the first data key of the counts."""
        return next(k for k, c in self.columns.items() if c.role in ("spectrum", "mcaroi"))


def has_counts(descriptor: Mapping[str, Any], profile: XRF) -> bool:
    """Return whether a descriptor has the counts of any way of scanning that its stream is for."""
    return _way(descriptor, profile) is not None


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
    found = _way(descriptor, profile)
    if found is None:
        source = profile.elements.source
        ways = (profile.rows, profile.fly, profile.step)
        wanted = [name for keys in ways if keys is not None for name in keys.names(source)]
        raise NotUnderstood(
            f"stream {descriptor['name']!r} has none of the keys {wanted} for source {source}; it"
            f" has {', '.join(sorted(map(str, descriptor['data_keys'])))[:300]}"
        )
    return _Reader(*found, descriptor, profile, incident_energy_ev).layout(positions, units)


def _way(descriptor: Mapping[str, Any], profile: XRF) -> tuple[Way, XRFKeys, str] | None:
    """Way of scanning, its keys, and the name that its counts have here."""
    ways: tuple[Way, ...] = ("rows", "fly", "step")
    for way in ways:
        keys: XRFKeys | None = getattr(profile, way)
        if keys is None or keys.stream != descriptor["name"]:
            continue
        name = chosen_name(keys.names(profile.elements.source), descriptor["data_keys"])
        if name is not None:
            return way, keys, name
    return None


def detector_name(descriptor: Mapping[str, Any], layout: XRFLayout) -> str:
    """Return the device whose counts these are; the first key where documents name no device."""
    keys = [key for key, c in layout.columns.items() if c.role in ("mcaroi", "spectrum")]
    owners = {
        str(name)
        for name, owned in (descriptor.get("object_keys") or {}).items()
        if set(owned) & set(keys)
    }
    return " ".join(sorted(owners)) or min(keys)


class _Reader:
    """Makes the layout of one descriptor."""

    def __init__(
        self,
        way: Way,
        keys: XRFKeys,
        template: str,
        descriptor: Mapping[str, Any],
        profile: XRF,
        incident_ev: float | None,
    ) -> None:
        self._way: Way = way
        self._keys = keys
        self._template = template
        self._profile = profile
        self._incident_ev = incident_ev
        self._data_keys = descriptor["data_keys"]
        self._settings = configuration(descriptor)
        self._rows = isinstance(keys, XRFRows)
        self._warnings: list[str] = []
        self._refused: dict[str, str] = {}
        self._columns: dict[str, Column] = {}
        self._channels = find_channels(
            template,
            profile.elements.source,
            keys,
            self._data_keys,
            profile.channels,
            pixels=self._rows,
        )

    def layout(self, positions: tuple[str, str], units: tuple[str, str]) -> XRFLayout:
        chosen = self._profile.elements
        lines = self._lines()
        numbers = [index for _, index in lines] if chosen.source == "mcaroi" else [None]
        for channel_index, channel in enumerate(self._channels):
            for element, mcaroi in enumerate(numbers):
                self._counts(channel_index, channel, element, mcaroi)
        windows, cube, bins = None, None, 0
        if chosen.source == "spectrum":
            bins = self._bins()
            lines = [(line, 0) for line in self._inside([line for line, _ in lines], bins)]
            windows, cube = self._spectrum_windows([line for line, _ in lines], bins)
            windows_ev = windows.windows_ev
        else:
            windows_ev = tuple(mcaroi_window(chosen, self._settings, *line) for line in lines)
        self._warnings += [
            str(overlap)
            for overlap in overlaps(
                [(line, *window) for (line, _), window in zip(lines, windows_ev, strict=True)],
                chosen.resolution_ev,
                threshold=chosen.overlap_warning,
                incident_energy_ev=self._incident_ev,
            )
        ]
        self._live_times()
        self._monitor()
        self._positions(positions, units)
        return XRFLayout(
            self._way,
            self._channels,
            tuple(line.name for line, _ in lines),
            tuple(index for _, index in lines) if chosen.source == "mcaroi" else (),
            windows_ev,
            windows,
            self._columns,
            self._refused,
            tuple(self._warnings),
            bins,
            cube,
        )

    def _lines(self) -> list[tuple[EmissionLine, int]]:
        chosen, count = self._profile.elements, None
        if chosen.source == "mcaroi" and "mcaroi" not in name_fields(self._template):
            # The windows are an axis: the last of the canonical ones.
            count = self._column(self._template, "mcaroi", self._channels[0]).shape[-1]
        named = named_lines(
            chosen,
            self._settings,
            self._template,
            self._data_keys,
            count,
            self._channels[0],
            self._refused,
        )
        lines: list[tuple[EmissionLine, int]] = []
        for line, index in named:
            reason = excitable(line, self._incident_ev)
            if reason is None:
                lines.append((line, index))
            else:
                self._refused[line.name] = reason
        self._need(lines)
        return lines

    def _need(self, lines: Sequence[object]) -> None:
        if not lines:
            raise NotUnderstood(
                f"no line is left to map: {'; '.join(self._refused.values()) or 'none named'}"
            )

    def _inside(self, lines: list[EmissionLine], bins: int) -> list[EmissionLine]:
        """The lines that a spectrum of this length holds; the others are refused."""
        chosen, kept = self._profile.elements, []
        ev_per_bin, offset_ev = energy_axis(chosen, self._settings)
        for line in lines:
            reason = outside_spectrum(
                line,
                n_bins=bins,
                ev_per_bin=ev_per_bin,
                offset_ev=offset_ev,
                resolution_ev=chosen.resolution_ev,
                half_width_fwhm=chosen.window_fwhm,
            )
            if reason is None:
                kept.append(line)
            else:
                self._refused[line.name] = reason
        self._need(kept)
        return kept

    def _spectrum_windows(
        self, lines: list[EmissionLine], bins: int
    ) -> tuple[SpectrumWindows, CubeAxis | None]:
        chosen = self._profile.elements
        ev_per_bin, offset_ev = energy_axis(chosen, self._settings)
        axis: dict[str, Any] = {
            "n_bins": bins,
            "ev_per_bin": ev_per_bin,
            "offset_ev": offset_ev,
            "incident_energy_ev": self._incident_ev,
        }
        try:
            windows = spectrum_windows(
                lines,
                **axis,
                resolution_ev=chosen.resolution_ev,
                half_width_fwhm=chosen.window_fwhm,
                background=chosen.background == "linear",
            )
            wanted = self._profile.cube
            cube = None if wanted is None else cube_axis(wanted, windows, **axis)
        except ValueError as error:
            raise NotUnderstood(str(error)) from error
        self._warnings += [
            f"{name}: no place beside the peak is free, its background is unknown"
            for name in windows.without_background
        ]
        return windows, cube

    def _bins(self) -> int:
        """Length of the spectra, which all channels must share."""
        found = {key: c.shape[-1] for key, c in self._columns.items() if c.role == "spectrum"}
        first = next(iter(found.values()))
        for key, bins in found.items():
            if bins != first:
                raise NotUnderstood(f"{key} has {bins} bins, {next(iter(found))} has {first}")
            if not 1 <= bins <= MOST_BINS:
                raise NotUnderstood(f"{key} has {bins} bins; expected 1 to {MOST_BINS}")
        return first

    def _counts(self, index: int, channel: int, element: int, mcaroi: int | None) -> None:
        source = self._profile.elements.source
        key = fill(self._template, channel=channel, mcaroi=mcaroi or 1)
        if key not in self._data_keys:
            raise NotUnderstood(f"data key {key!r} is missing in the descriptor")
        if key not in self._columns:
            self._columns[key] = self._column(
                self._template, source, channel, mcaroi, index=index, element=element
            )

    def _live_times(self) -> None:
        names = self._keys.names("live_time")
        template = chosen_name(names, self._data_keys)
        for index, channel in enumerate(self._channels if template is not None else ()):
            key = fill(str(template), channel=channel)
            if key in self._data_keys and key not in self._columns:
                self._add_aside(str(template), "live_time", channel, index)
        if names and not any(c.role == "live_time" for c in self._columns.values()):
            self._warnings.append(
                f"no live time ({', '.join(names)}): the dwell is taken, dead time unknown"
            )

    def _monitor(self) -> None:
        names = self._keys.names("i0")
        template = chosen_name(names, self._data_keys)
        if template is not None:
            self._add_aside(template, "i0", 1, None)
        if names and not any(c.role == "i0" for c in self._columns.values()):
            self._warnings.append(
                f"no beam monitor ({', '.join(names)}): the beam is taken as constant"
            )

    def _add_aside(self, template: str, role: Role, channel: int, index: int | None) -> None:
        """Add a key that a map can do without."""
        key = fill(template, channel=channel)
        if self._rows and not self._data_keys[key].get("shape"):
            self._warnings.append(f"{key} is not used: one value per row, not one per pixel")
            return
        factor = self._keys.live_time_s if role == "live_time" else 1.0
        self._columns[key] = self._column(template, role, channel, index=index, factor=factor)

    def _positions(self, positions: tuple[str, str], units: tuple[str, str]) -> None:
        roles: tuple[Role, ...] = ("slow", "fast")
        for role, key, unit in zip(roles, positions, units, strict=True):
            data_key = self._data_keys.get(key)
            if data_key is None:
                continue
            # A row has one slow position, or one for each pixel.
            pixels = self._rows and (role == "fast" or bool(data_key.get("shape")))
            own = data_key.get("units") or unit
            try:
                self._columns[key] = make_column(
                    key, role, data_key, self._keys, factor=scale(own, unit), pixels=pixels
                )
            except ValueError as error:
                self._warnings.append(f"readback {key} is not used: {error}")

    def _column(
        self,
        template: str,
        role: Role,
        channel: int,
        mcaroi: int | None = None,
        *,
        index: int | None = None,
        element: int | None = None,
        factor: float = 1.0,
    ) -> Column:
        key = fill(template, channel=channel, mcaroi=mcaroi or 1)
        return make_column(
            key,
            role,
            self._data_keys[key],
            self._keys,
            fields=name_fields(template),
            channel=index,
            element=element,
            factor=factor,
            pixels=self._rows,
        )
