"""The sections of a beamline profile for fluorescence microscopes; see `profile_sections`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from inscan.callbacks.lines import EmissionLine
from inscan.callbacks.profile_sections import NotNegative, Part, Positive

__all__ = ["XRF", "Axis", "Cube", "Elements", "XRFKeys", "XRFRows"]

Axis = Literal["pixel", "channel", "mcaroi", "bin"]


class XRFKeys(Part):
    """Data keys of one way of scanning. ``{channel}`` and ``{mcaroi}`` are numbers from 1.

    A key without ``{channel}`` is an array with the channel as its first axis; ``axes`` says
    otherwise. Where a beamline has renamed a key, give a list: the first that a run has is taken.
    """

    stream: str = "primary"
    """Event stream that holds the map. Other streams of the run are left alone."""
    mcaroi: str | tuple[str, ...] | None = None
    """Counts of a spectral window. With ``{mcaroi}``: one key each; without: the last axis of an
    array. null: this way of scanning has none."""
    spectrum: str | tuple[str, ...] | None = None
    """Full spectrum (counts per bin, last axis). null: none is recorded."""
    live_time: str | tuple[str, ...] | None = None
    """Live time of each channel, or one number for all of them. null: the dwell time of the run is
    taken, dead time is unknown."""
    live_time_s: Positive = 1.0
    """Seconds in one unit of ``live_time``, e.g. 2.0e-8 for the ticks of a 50 MHz clock."""
    i0: str | tuple[str, ...] | None = None
    """Incident beam monitor. null: the beam is taken as constant."""
    axes: Mapping[Literal["mcaroi", "spectrum", "live_time"], tuple[Axis, ...]] = {}
    """Order of the axes of an array where it is another than (pixel,) channel, mcaroi or bin, e.g.
    ``spectrum: [bin, channel]``. Axes that the key has not are left out."""

    @field_validator("mcaroi", "spectrum", "live_time")
    @classmethod
    def _fillable(cls, templates: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        for template in _each(templates):
            _check_template(template)
        return templates

    @field_validator("axes")
    @classmethod
    def _once(cls, axes: Mapping[str, tuple[Axis, ...]]) -> Mapping[str, tuple[Axis, ...]]:
        for key, names in axes.items():
            if len(set(names)) != len(names):
                raise ValueError(f"{key}: an axis is named twice in {list(names)}")
        return axes

    def names(self, role: str) -> tuple[str, ...]:
        """Return the names that the key of a role may have, the preferred one first."""
        return _each(getattr(self, role))


class XRFRows(XRFKeys):
    """Data keys when each event holds a whole row: every value has one more axis, the pixel."""

    stream: str = "stream0"
    """Event stream that holds the map, one event per row; its seq_num is the row, from 1."""
    order: Literal["time", "position"] = "time"
    """Order of the pixels in a row. ``time``: as they were taken, so that every second row of a
    snaking scan runs backwards. ``position``: always from the first to the last column."""
    positions: Mapping[str, str] = {}
    """Motor -> data key with its position per pixel, e.g. ``nano_stage_sx: enc1``. A motor that is
    not named here has none: its positions are computed from the plan, which the result says."""
    slow_stream: str | None = "primary"
    """Event stream with one event per row that holds the slow motor (the key named like it, or
    ``geometry.slow_readback``), for a slow motor without positions per pixel. null: there is
    none."""


def _each(names: str | tuple[str, ...] | None) -> tuple[str, ...]:
    if names is None:
        return ()
    return (names,) if isinstance(names, str) else names


def _check_template(template: str) -> None:
    try:
        template.format(channel=1, mcaroi=1)
    except (KeyError, IndexError) as error:
        raise ValueError(f"{template!r}: only {{channel}} and {{mcaroi}} are filled in") from error
    except ValueError as error:
        raise ValueError(f"{template!r} cannot be filled in: {error}") from error


class Elements(Part):
    """Which emission lines become maps, and from what."""

    source: Literal["mcaroi", "spectrum"] = "mcaroi"
    """``mcaroi``: the detector's window sums as they are. ``spectrum``: windows around the lines,
    with the background under each peak estimated from both sides."""
    lines: tuple[str, ...] = ()
    """Lines such as ``Fe_K`` or ``Pb_L``. Source spectrum: these are extracted. Source mcaroi:
    names of the windows 1, 2, ... where the detector does not name them, else a selection of them.
    Empty: every window that the detector names (source mcaroi only)."""
    mcaroi_name: str | None = None
    """Configuration key with the name of a window, e.g. ``xs_mcaroi{mcaroi:02d}_name``. null: named
    by ``lines``."""
    mcaroi_low_ev: str | None = None
    """Configuration key with the low edge of a window in eV. null: computed for the line."""
    mcaroi_high_ev: str | None = None
    """Configuration key with the high edge of a window in eV. null: computed for the line."""
    energy_per_bin_ev: str | Positive = 10.0
    """Width of a spectrum bin in eV, or the configuration key that holds it."""
    energy_offset_ev: str | float = 0.0
    """Energy of the centre of bin 0 in eV, or the configuration key that holds it."""
    resolution_ev: Positive = 150.0
    """Full width at half maximum of the detector at Mn Ka (5.9 keV), in eV."""
    window_fwhm: Positive = 1.0
    """Half width of a computed window in units of the full width at half maximum there."""
    background: Literal["linear", "none"] = "linear"
    """``linear``: a straight line under the peak from side windows clear of other lines.
    ``none``: window sums hold scatter too, and the background is unknown (source spectrum only)."""
    overlap_warning: Annotated[float, Field(gt=0, le=1)] = 0.02
    """Warn when this share of one element's counts falls into the window of another."""

    @field_validator("mcaroi_name", "mcaroi_low_ev", "mcaroi_high_ev")
    @classmethod
    def _fillable(cls, template: str | None) -> str | None:
        if template is not None:
            _check_template(template)
        return template

    @field_validator("lines")
    @classmethod
    def _known(cls, lines: tuple[str, ...]) -> tuple[str, ...]:
        names = tuple(EmissionLine.parse(name).name for name in lines)
        if len(set(names)) != len(names):
            raise ValueError(f"a line is named twice in {list(lines)}; name each once")
        return names


class Cube(Part):
    """Spectra that are kept pixel by pixel, for the method spectral."""

    bins: Annotated[int, Field(ge=8, le=1024)] = 256
    """Most energy bins that are kept: so many neighbouring bins of the detector are added up that
    they suffice."""
    low_ev: NotNegative = 0.0
    """Lowest energy kept, in eV."""
    high_ev: Positive | None = None
    """Highest energy kept, in eV. null: the incident energy, or the end of the spectrum."""
    max_bytes: Annotated[int, Field(gt=0)] = 1 << 32
    """Largest size of the spectra of one run, all channels together. A run that would need more is
    not understood, and says so: take fewer bins."""


class XRF(Part):
    """A fluorescence microscope."""

    step: XRFKeys | None = None
    """Keys when each pixel is an event. null: such runs are not understood."""
    fly: XRFKeys | None = None
    """Keys when rows come as stream_resource and stream_datum. null: not understood."""
    rows: XRFRows | None = None
    """Keys when each event holds a whole row. null: not understood."""
    channels: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Detector channels to use, from 1: leave a dead one out here. Empty: all that are recorded."""
    elements: Elements = Elements()
    """Which emission lines become maps."""
    cube: Cube | None = None
    """Spectra to keep beside the window sums; needs ``elements.source: spectrum``. null: none."""
    incident_energy: str | None = "scan.energy"
    """Path of the incident energy in the start document. null: unknown, no line is refused."""
    incident_energy_units: Literal["eV", "keV"] = "keV"
    """Units of that energy."""
    dwell: str | None = "scan.dwell"
    """Path of the dwell time per pixel (s) in the start document. null: unknown."""

    @model_validator(mode="after")
    def _has_keys(self) -> XRF:
        ways = {"step": self.step, "fly": self.fly, "rows": self.rows}
        if not any(ways.values()):
            raise ValueError("give the data keys of at least one of step, fly and rows")
        for way, keys in ways.items():
            if keys is not None and not keys.names(self.elements.source):
                raise ValueError(
                    f"elements.source is {self.elements.source}, but {way}.{self.elements.source}"
                    f" is not given; name the data key or choose the other source"
                )
        if self.cube is not None and self.elements.source != "spectrum":
            raise ValueError("cube keeps spectra: set elements.source to spectrum, or leave it out")
        if self.elements.source == "spectrum" and not self.elements.lines:
            raise ValueError(
                "elements.source is spectrum: name at least one line in elements.lines"
            )
        return self
