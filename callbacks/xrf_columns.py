"""Data keys of a fluorescence stream: what each of them holds, and in which order."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from inscan.callbacks.updates import NotUnderstood, from_stream
from inscan.callbacks.xrf_sections import Axis, XRFKeys

__all__ = [
    "MOST_BINS",
    "Column",
    "Role",
    "chosen_name",
    "fill",
    "find_channels",
    "make_column",
    "name_fields",
]

Role = Literal["mcaroi", "spectrum", "live_time", "i0", "slow", "fast"]
# More of either than any detector has: guards against endless descriptors.
MOST_CHANNELS, MOST_BINS = 128, 1 << 16
_AXES: dict[Role, tuple[Axis, ...]] = {
    "mcaroi": ("channel", "mcaroi"),
    "spectrum": ("channel", "bin"),
    "live_time": ("channel",),
    "i0": (),
    "slow": (),
    "fast": (),
}


@dataclass(frozen=True)
class Column:
    """One data key.

    Attributes
    ----------
    role
        What it holds.
    shape
        Shape of the values of one pixel: channel, then window or bin, as far as the key has them.
    declared
        The shape as it stands in the descriptor.
    external
        Read from files, not from events.
    channel, element
        Index that the key belongs to; None: it is an array over all of them, or has none.
    factor
        Factor to the geometry's units (positions) or to seconds (live times).
    pixels
        Each value holds a row: the pixel is one more axis.
    stored
        Declared shape without leading axes of length one.
    order
        Where the stored axes are, in the order pixel, channel, window or bin.
    """

    role: Role
    shape: tuple[int, ...]
    declared: tuple[int, ...]
    external: bool
    channel: int | None = None
    element: int | None = None
    factor: float = 1.0
    pixels: bool = False
    stored: tuple[int, ...] = ()
    order: tuple[int, ...] = ()

    def ordered(self, values: np.ndarray) -> np.ndarray:
        """Return (n, *stored) as (n, *shape), or (n, pixel, *shape) where a value holds a row."""
        if self.order == tuple(range(len(self.order))):
            return values
        return values.transpose(0, *(1 + axis for axis in self.order))

    def row(self, key: str, value: Any) -> np.ndarray:
        """Return the value of one event that holds a row, (pixel, *shape), however many there are.

        Raises
        ------
        ValueError
            Not numbers, or of another shape than declared, the number of pixels aside.
        """
        values = np.asarray(value)
        while values.ndim > len(self.stored) and values.shape[0] == 1:
            values = values[0]
        if values.dtype.kind in "buif" and values.ndim == len(self.order):
            values = self.ordered(values[None])[0]
            if values.shape[1:] == self.shape:
                return values
        raise ValueError(
            f"{key} has shape {np.shape(value)} of {np.asarray(value).dtype}, the descriptor"
            f" declares numbers of shape {self.declared}"
        )


def name_fields(template: str) -> set[str]:
    """Return what a template wants filled in: ``channel``, ``mcaroi``."""
    return {name for _, name, _, _ in string.Formatter().parse(template) if name}


def fill(template: str, *, channel: int = 1, mcaroi: int = 1) -> str:
    """Return the data key of a template."""
    return template.format(channel=channel, mcaroi=mcaroi)


def chosen_name(templates: Sequence[str], data_keys: Mapping[str, Any]) -> str | None:
    """Return the first template that has a key; None when none has."""
    for template in templates:
        if "channel" not in name_fields(template):
            if fill(template) in data_keys:
                return template
        elif any(fill(template, channel=n) in data_keys for n in range(1, MOST_CHANNELS + 1)):
            return template
    return None


def find_channels(
    template: str,
    role: Role,
    keys: XRFKeys,
    data_keys: Mapping[str, Any],
    wanted: Sequence[int],
    *,
    pixels: bool,
) -> tuple[int, ...]:
    """Return the numbers of the channels that are recorded and wanted.

    Raises
    ------
    NotUnderstood
        A wanted channel is not recorded, or an array has no axis of channels.
    """
    if "channel" in name_fields(template):
        numbers = range(1, MOST_CHANNELS + 1)
        found = [n for n in numbers if fill(template, channel=n) in data_keys]
    else:
        key = fill(template)
        axes = _stored_axes(key, role, name_fields(template), keys, pixels)
        stored = _stripped(key, role, data_keys[key], axes, pixels)
        count = stored[axes.index("channel")]
        if not 1 <= count <= MOST_CHANNELS:
            raise NotUnderstood(f"{key}: {count} channels; expected 1 to {MOST_CHANNELS}")
        found = list(range(1, count + 1))
    missing = [n for n in wanted if n not in found]
    if missing:
        raise NotUnderstood(f"channels {missing} are not recorded; there are {found}")
    return tuple(wanted) or tuple(found)


def make_column(
    key: str,
    role: Role,
    data_key: Mapping[str, Any],
    keys: XRFKeys,
    *,
    fields: set[str] | frozenset[str] = frozenset(),
    channel: int | None = None,
    element: int | None = None,
    factor: float = 1.0,
    pixels: bool = False,
) -> Column:
    """Understand one data key of a descriptor.

    Parameters
    ----------
    key, role
        Its name, and what it holds.
    data_key
        Its entry in the descriptor.
    keys
        Order of the axes.
    fields
        What was filled into its template.
    channel, element, factor, pixels
        See `Column`.

    Raises
    ------
    NotUnderstood
        It has other axes than such a key has.
    """
    axes = _stored_axes(key, role, fields, keys, pixels)
    declared = tuple(int(n) for n in data_key.get("shape") or ())
    shared = len(axes) - ("channel" in axes)
    if (
        role == "live_time"
        and _without_ones(declared, len(axes)) != len(axes)
        and (_without_ones(declared, shared) == shared)
    ):
        axes = ("pixel",) if pixels else ()
    stored = _stripped(key, role, data_key, axes, pixels)
    canonical = [axis for axis in ("pixel", "channel", "mcaroi", "bin") if axis in axes]
    order = tuple(axes.index(axis) for axis in canonical)
    shape = tuple(stored[at] for at, axis in zip(order, canonical, strict=True) if axis != "pixel")
    return Column(
        role,
        shape,
        declared,
        from_stream(data_key),
        channel if "channel" in fields else None,
        element if "mcaroi" in fields else None,
        factor,
        pixels,
        stored,
        order,
    )


def _stored_axes(
    key: str, role: Role, fields: set[str] | frozenset[str], keys: XRFKeys, pixels: bool
) -> tuple[Axis, ...]:
    """Axes of a key as they are stored."""
    own: list[Axis] = [axis for axis in _AXES[role] if axis not in fields]
    usual: tuple[Axis, ...] = ("pixel", *own) if pixels else tuple(own)
    given = keys.axes.get(role) if role in ("mcaroi", "spectrum", "live_time") else None
    if given is None:
        return usual
    if sorted(given) != sorted(usual):
        raise NotUnderstood(
            f"{key}: axes.{role} is {list(given)}, but the key has the axes {list(usual)}; name"
            " each of them once"
        )
    return given


def _without_ones(shape: tuple[int, ...], expected: int) -> int:
    """Number of axes once leading axes of length one have been dropped."""
    # Devices that fill files often declare one row as (1, ...).
    left = len(shape)
    while left > expected and shape[len(shape) - left] == 1:
        left -= 1
    return left


def _stripped(
    key: str,
    role: Role,
    data_key: Mapping[str, Any],
    axes: tuple[Axis, ...],
    pixels: bool,
) -> tuple[int, ...]:
    """Declared shape without leading axes of length one."""
    declared = tuple(int(n) for n in data_key.get("shape") or ())
    left = _without_ones(declared, len(axes))
    if left == len(axes):
        return declared[len(declared) - left :]
    hint = ": one value per row, not one per pixel" if pixels and not declared else ""
    raise NotUnderstood(
        f"{key}: a key for {role} declares shape {declared}{hint}; expected {len(axes)} axes"
        f" {list(axes)}"
    )
