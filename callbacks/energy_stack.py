"""The arrays of an energy stack: mean frames, and transmission with its variance."""

from __future__ import annotations

import numpy as np

from inscan.callbacks.frame_sets import good_pixels, mean_frame
from inscan.callbacks.transmission import transmission
from inscan.callbacks.txm_beams import Beams
from inscan.callbacks.updates import Allocate

__all__ = ["StackArrays"]

# Changes of dark or flat that are followed as they come; after that only when a result is due.
_EARLY_REBUILDS = 4


class StackArrays:
    """Frames by energy.

    Arrays of an update, float32 where not said otherwise: ``frames`` (energy, row, col) mean of the
    frames of an energy; ``dark`` (row, col); ``flat`` (row, col) when all flats were taken at one
    energy, else ``flat_per_energy`` (energy, row, col), interpolated between the energies that have
    one; ``transmission`` (energy, row, col) = (frame - dark) / (flat - dark); ``variance`` alike;
    ``measured`` (energy, row, col) bool: not saturated, finite, and lit by the flat. At the end of a
    run with several flats also ``flats`` (flat, row, col), each less the dark: how the beam drifts.

    Variance: with g ADU per photon and read noise r, a mean of n frames of level s above the dark
    has variance (g s + r^2) / n; it is propagated through the division for frame, dark and flat. g is
    the profile's, else the scatter between repeated flats over their level (photon transfer; Janesick,
    Photon Transfer, SPIE 2007), r^2 the scatter between repeated darks.

    Parameters
    ----------
    parts
        Images per energy, (energy,): those of an energy that was planned again are averaged.
    size
        (row, col).
    saturation
        Value from which on a pixel is saturated; None: never.
    allocate
        See `inscan.callbacks.assembly.open_assembler`.
    suffix
        Of the names of arrays, where a run has several stacks.
    """

    def __init__(
        self,
        parts: np.ndarray,
        size: tuple[int, int],
        saturation: float | None,
        allocate: Allocate,
        suffix: str = "",
    ) -> None:
        self.size = size
        self._saturation = saturation
        shape, f4 = (len(parts), *size), np.dtype(np.float32)
        self._frames = allocate(f"frames{suffix}", shape, f4)
        self._transmission = allocate(f"transmission{suffix}", shape, f4)
        self._variance = allocate(f"variance{suffix}", shape, f4)
        self._measured = allocate(f"measured{suffix}", shape, np.dtype(bool))
        # Images that share their energy with others are kept apart until all have come.
        self._parts = np.where(parts > 1, parts, 0)
        self._first = np.concatenate([[0], np.cumsum(self._parts)[:-1]])
        several = int(self._parts.sum())
        self._again = allocate(f"again{suffix}", (several, *size), f4) if several else None
        self._n_frames = [np.zeros(n, np.int64) for n in parts.tolist()]
        self._masks: dict[tuple[int, int], np.ndarray] = {}
        # What dark and flat were when an energy was last normalised; -1: never.
        self._normalised_with = np.full(len(parts), -1)
        self._beams: Beams | None = None
        # Energies with any measured pixel.
        self._any = np.zeros(len(parts), bool)

    @property
    def n_energies(self) -> int:
        """Energies of which an image has come."""
        return sum(bool(n.any()) for n in self._n_frames)

    @property
    def done(self) -> np.ndarray:
        """Energies with any measured pixel, (energy,) bool."""
        return self._any

    @property
    def bad(self) -> int:
        """Images with pixels that are not good."""
        return len(self._masks)

    def image(self, row: int, part: int) -> np.ndarray | None:
        """Return the mean frame of an image, (row, col), None where it has not come."""
        if not self._n_frames[row][part]:
            return None
        if self._again is None or not self._parts[row]:
            return self._frames[row]
        return self._again[self._first[row] + part]

    def place(self, row: int, part: int, frames: np.ndarray) -> None:
        """Place the frames (frame, row, col) of an image; a second time replaces the first."""
        good = good_pixels(frames, self._saturation)
        if self._again is None or not self._parts[row]:
            mean = self._frames[row]
        else:
            mean = self._again[self._first[row] + part]
        mean_frame(frames, mean)
        self._masks.pop((row, part), None)
        if good is not None:
            self._masks[row, part] = good
            mean[~good] = 0
        self._n_frames[row][part] = len(frames)
        self._normalised_with[row] = -1

    def normalise(self, beams: Beams, *, early: bool = False) -> None:
        """Compute the transmission of every energy that has none with the present dark and flat.

        ``early``: not yet needed; where flats alternate with frames, leave it for later, since each
        new flat changes all energies.
        """
        if beams is not self._beams:
            self._beams = beams
            self._normalised_with[:] = -1
        there = np.array([bool(n.any()) for n in self._n_frames])
        stale = np.flatnonzero(there & (self._normalised_with != beams.version))
        if not beams.ready or not stale.size:
            return
        if beams.stale:
            if early and beams.rebuilt >= _EARLY_REBUILDS:
                return
            beams.rebuild()
        if beams.camera is None:
            return
        for row in stale.tolist():
            good = self._combine(row)
            transmission(
                self._frames[row],
                int(self._n_frames[row].sum()),
                beams.camera,
                beams.beams[row if len(beams.beams) > 1 else 0],
                good,
                (self._transmission[row], self._variance[row], self._measured[row]),
            )
            self._any[row] = self._measured[row].any()
            self._normalised_with[row] = beams.version

    def take(self, beams: Beams, *, final: bool) -> dict[str, np.ndarray]:
        """Return the arrays of an update; ``final``: nothing will be placed any more."""
        self.normalise(beams)
        return {
            "frames": self._frames,
            "transmission": self._transmission,
            "variance": self._variance,
            "measured": self._measured,
            **beams.take(final=final),
        }

    def _combine(self, row: int) -> np.ndarray | None:
        """Average the images of an energy, in the order of the plan; return where all are good."""
        numbers = self._n_frames[row]
        if self._again is None or not self._parts[row]:
            return self._masks.get((row, 0))
        there = np.flatnonzero(numbers)
        total = np.zeros(self.size)
        for part in there.tolist():
            total += self._again[self._first[row] + part] * np.float64(numbers[part])
        self._frames[row] = total / numbers.sum()
        masks = [self._masks[row, part] for part in there.tolist() if (row, part) in self._masks]
        good = np.logical_and.reduce(masks) if masks else None
        if good is not None:
            self._frames[row][~good] = 0
        return good
