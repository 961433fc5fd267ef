"""What the camera's streams say of themselves: shapes, units, exposures; and the frames of an event."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from inscan.callbacks.profile import start_value
from inscan.callbacks.profile_sections import TXM
from inscan.callbacks.readings import reading
from inscan.callbacks.units import scale
from inscan.callbacks.updates import MALFORMED, Notes, NotUnderstood, from_stream

__all__ = ["CameraStreams", "Stream"]

Stream = Literal["primary", "dark", "flat"]

_MOST_FRAMES = 1 << 16
_MOST_PIXELS = 1 << 28
_MOST_EXPOSURE_S = 1e9


class CameraStreams:
    """Streams primary, dark and flat of one run.

    Parameters
    ----------
    start, txm
        Start document and section of the profile.
    planned_ev
        Planned energies, eV: energies that are read back must be of their size.
    notes
        What people should know.
    """

    def __init__(
        self, start: Mapping[str, Any], txm: TXM, planned_ev: np.ndarray, notes: Notes
    ) -> None:
        self._txm = txm
        self._notes = notes
        self._low, self._high = 0.5 * float(planned_ev.min()), 2.0 * float(planned_ev.max())
        self.kinds: dict[str, Stream] = {
            txm.streams.primary: "primary",
            txm.streams.dark: "dark",
            txm.streams.flat: "flat",
        }
        """Stream name -> which kind of frames it holds."""
        self._n_frames = None if txm.frames is None else start_value(start, txm.frames)
        self._size: tuple[int, int] | None = None
        self._declared: dict[str, tuple[int, ...]] = {}
        self._external: set[str] = set()
        self._factors: dict[str, float | None] = {}
        self._exposures: dict[str, set[float]] = {}

    def describe(self, stream: str, descriptor: Mapping[str, Any]) -> tuple[int, int]:
        """Learn a descriptor; return (row, col) of the frames.

        Raises
        ------
        NotUnderstood
            No camera in it, or frames of another shape than before.
        """
        image, data_keys = self._txm.image, descriptor["data_keys"]
        if image not in data_keys:
            raise NotUnderstood(
                f"stream {stream!r} has no {image!r} (txm.image in the profile); it has"
                f" {', '.join(sorted(map(str, data_keys)))[:300]}"
            )
        try:
            declared = tuple(int(n) for n in data_keys[image]["shape"])
        except MALFORMED as error:
            shape = data_keys[image].get("shape")
            raise NotUnderstood(
                f"{image} in stream {stream!r} declares shape {shape!r:.80}: {error}"
            ) from error
        bad = not 2 <= len(declared) <= 4 or min(declared) < 1
        if bad or len(declared) == 4 != declared[0] + 3:
            raise NotUnderstood(
                f"{image} in stream {stream!r} declares shape {declared}; expected (frame, y, x)"
            )
        size = (declared[-2], declared[-1])
        if size[0] * size[1] > _MOST_PIXELS:
            raise NotUnderstood(f"{image} in stream {stream!r} declares {size}: more than a camera")
        if self._size is None:
            self._size = size
        elif size != self._size:
            raise NotUnderstood(
                f"{image} in stream {stream!r} is {size}, in an earlier one {self._size}"
            )
        # The camera is staged anew during a run: every time with a descriptor of its own.
        self._declared.setdefault(stream, declared)
        if from_stream(data_keys[image]):
            self._external.add(stream)
        self._learn_units(stream, data_keys)
        self._learn_exposure(stream, descriptor)
        return size

    def external_shape(self, stream: str, data_key: str) -> tuple[int, ...] | None:
        """See `inscan.callbacks.target.Target`."""
        if data_key != self._txm.image or stream not in self._external:
            return None
        return self._declared[stream]

    def array_keys(self, stream: str) -> Mapping[str, tuple[int, ...]]:
        """See `inscan.callbacks.target.Target`."""
        if stream in self._external or stream not in self._declared:
            return {}
        return {self._txm.image: self._declared[stream]}

    def frames(self, stream: str, seq_num: int, data: Mapping[str, Any]) -> np.ndarray | None:
        """Return the frames (frame, row, col) that an event holds; None: they come by stream_datum.

        Any number of frames will do: descriptors of cameras are often out of date there.
        """
        if stream in self._external or self._size is None:
            return None
        image, declared = self._txm.image, self._declared[stream]
        frames = np.asarray(data[image])
        fits = 2 <= frames.ndim <= 4 and frames.shape[-2:] == self._size and frames.size > 0
        if not fits or frames.dtype.kind not in "uif" or frames.ndim > len(declared):
            raise ValueError(
                f"event {seq_num}: {image} has shape {frames.shape} of {frames.dtype},"
                f" the descriptor declares numbers of shape {declared}"
            )
        frames = frames.reshape(-1, *self._size)
        if len(frames) > _MOST_FRAMES:
            raise ValueError(f"event {seq_num}: {len(frames)} frames; at most {_MOST_FRAMES}")
        self._compare(stream, len(frames))
        return frames

    def energy(
        self, stream: str, data: Mapping[str, Any], planned_ev: float | None
    ) -> float | None:
        """Return the energy (eV) that was read back with an event; None: none, or none sensible.

        One that is 1000 times too large or too small is in eV or keV whatever its units say.
        """
        key, factor = self._txm.energy, self._factors.get(stream)
        if key is None or factor is None:
            return None
        value = reading(data[key]) * factor
        low, high = self._low, self._high
        if planned_ev is not None:
            low, high = 0.5 * planned_ev, 2.0 * planned_ev
        for times in (1.0, 1e3, 1e-3):
            if low <= value * times <= high:
                if times != 1.0:
                    self._notes.add(f"{key} is in {_UNITS[times]}, other than its units say")
                return value * times
        self._notes.add(f"{key} is not a sensible energy: the planned energy is believed")
        return None

    def flat_exposure(self) -> float:
        """Return how long flats were exposed relative to the images, 1 where nothing says so."""
        if self._txm.exposure is None:
            return 1.0
        of = {kind: self._exposures.get(kind, set()) for kind in ("primary", "flat", "dark")}
        self._notes.set(_MIXED_EXPOSURE, int(any(len(times) > 1 for times in of.values())))
        if len(of["primary"]) != 1 or len(of["flat"]) != 1:
            return 1.0
        (image,), (flat,) = of["primary"], of["flat"]
        dark = of["dark"] or {image}
        self._notes.set(_DARK_EXPOSURE, int(dark != {image} or flat != image))
        self._notes.set(f"flats were exposed {flat / image:g} times as long: scaled", flat != image)
        return flat / image

    def _learn_units(self, stream: str, data_keys: Mapping[str, Any]) -> None:
        key = self._txm.energy
        if key is None or key not in data_keys:
            return
        units = data_keys[key].get("units") or self._txm.energies_units
        try:
            self._factors[stream] = scale(units, "eV")
        except ValueError as error:
            self._factors.setdefault(stream, None)
            self._notes.add(f"{key} of stream {stream} is not used", str(error))

    def _learn_exposure(self, stream: str, descriptor: Mapping[str, Any]) -> None:
        for device in (descriptor.get("configuration") or {}).values():
            value = (device.get("data") or {}).get(self._txm.exposure)
            if isinstance(value, bool) or not isinstance(value, int | float | np.number):
                continue
            if 1 / _MOST_EXPOSURE_S < value < _MOST_EXPOSURE_S:
                self._exposures.setdefault(self.kinds[stream], set()).add(float(value))

    def _compare(self, stream: str, n: int) -> None:
        planned = self._n_frames
        if self.kinds[stream] == "primary" and planned is not None and planned != n:
            self._notes.add(
                f"images have another number of frames than start.{self._txm.frames} says; those that"
                f" came are averaged",
                f"{n} instead of {planned!r:.20}",
            )


_UNITS = {1e3: "keV", 1e-3: "eV"}
_MIXED_EXPOSURE = "the exposure of a stream changed during the run: it is not corrected"
_DARK_EXPOSURE = "dark, flats and images were not exposed alike: dark current is taken as nothing"
