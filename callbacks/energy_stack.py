"""The arrays of an energy stack: mean frames, dark, flat, and transmission with its variance."""

from __future__ import annotations

from typing import Literal

import numpy as np

from inscan.callbacks.frame_sets import (
    FrameSet,
    combine,
    frame_set,
    good_pixels,
    mean_frame,
    pooled,
    scatter_between,
)
from inscan.callbacks.transmission import Camera, Flat, transmission
from inscan.callbacks.updates import Allocate, Notes

__all__ = ["StackArrays", "Stream"]

Stream = Literal["primary", "dark", "flat"]

# Flats that are handed on to show how the beam drifts; of more, so many spread over all.
_MOST_FLATS = 24

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
    n_energies, size
        Number of energies; (row, col).
    adu_per_photon
        None: found from the flats.
    saturation
        Value from which on a pixel is saturated; None: never.
    allocate, notes
        See `inscan.callbacks.assembly.open_assembler`.
    """

    def __init__(
        self,
        n_energies: int,
        size: tuple[int, int],
        adu_per_photon: float | None,
        saturation: float | None,
        allocate: Allocate,
        notes: Notes,
    ) -> None:
        self.size = size
        self.adu_per_photon = adu_per_photon
        self.read_noise_adu = 0.0
        self._given = adu_per_photon
        self._saturation = saturation
        self._allocate = allocate
        self._notes = notes
        shape, f4 = (n_energies, *size), np.dtype(np.float32)
        self._frames = allocate("frames", shape, f4)
        self._transmission = allocate("transmission", shape, f4)
        self._variance = allocate("variance", shape, f4)
        self._measured = allocate("measured", shape, np.dtype(bool))
        self._dark = allocate("dark", size, f4)
        self._flat: np.ndarray | None = None
        self._flat_per_energy: np.ndarray | None = None
        self._n_frames = np.zeros(n_energies, np.int64)
        self._masks: dict[int, np.ndarray] = {}
        self._darks: dict[int, FrameSet] = {}
        self._flats: dict[int, FrameSet] = {}
        self._flat_energies: dict[int, float] = {}
        # What dark and flat were when an energy was last normalised; -1: never.
        self._version = 0
        self._normalised_with = np.full(n_energies, -1)
        # One flat, or one per energy; and how often they changed.
        self._beams: list[Flat] = []
        self._beams_version = -1
        self._rebuilt = 0
        self._camera: Camera | None = None
        # Energies with any measured pixel.
        self._any = np.zeros(n_energies, bool)

    @property
    def n_primary(self) -> int:
        """Energies whose frames have come."""
        return int((self._n_frames > 0).sum())

    @property
    def done(self) -> np.ndarray:
        """Energies with any measured pixel, (energy,) bool."""
        return self._any

    @property
    def can_normalise(self) -> bool:
        """Whether there is a dark and a flat."""
        return bool(self._darks and self._flats)

    def missing(self) -> str:
        """Return which kinds of frames are not there, in words."""
        have = {"dark": self._darks, "flat": self._flats, "primary": self.n_primary}
        return " and ".join(kind for kind, there in have.items() if not there)

    def place(self, kind: Stream, seq_num: int, frames: np.ndarray) -> None:
        """Place the frames (frame, row, col) of one event; a second time replaces the first."""
        if kind != "primary":
            sets = self._darks if kind == "dark" else self._flats
            if kind == "dark" or len(sets) < len(self._n_frames) or seq_num in sets:
                sets[seq_num] = frame_set(frames, good_pixels(frames, self._saturation))
                self._version += 1
            else:
                self._notes.add("flats beyond the number of energies left out")
            return
        index = seq_num - 1
        good = good_pixels(frames, self._saturation)
        mean_frame(frames, self._frames[index])
        if good is None:
            self._masks.pop(index, None)
        else:
            self._masks[index] = good
            self._frames[index][~good] = 0
        self._n_frames[index] = len(frames)
        self._normalised_with[index] = -1

    def flat_energy(self, seq_num: int, energy_ev: float) -> None:
        """Say at which energy a flat was taken."""
        self._flat_energies[seq_num] = energy_ev
        self._version += 1

    def normalise(
        self, energies_ev: np.ndarray, tolerance_ev: float, *, early: bool = False
    ) -> None:
        """Compute the transmission of every energy that has none with the present dark and flat.

        ``early``: not yet needed; where flats alternate with frames, leave it for later, since each
        new flat changes all energies.
        """
        stale = np.flatnonzero((self._n_frames > 0) & (self._normalised_with != self._version))
        if not self.can_normalise or not stale.size:
            return
        if self._beams_version != self._version:
            if early and self._rebuilt >= _EARLY_REBUILDS:
                return
            self._rebuilt += 1
            self._update_beams(energies_ev, tolerance_ev)
        if self._camera is None:
            return
        for index in stale.tolist():
            transmission(
                self._frames[index],
                int(self._n_frames[index]),
                self._camera,
                self._beams[index if len(self._beams) > 1 else 0],
                self._masks.get(index),
                (self._transmission[index], self._variance[index], self._measured[index]),
            )
            self._any[index] = self._measured[index].any()
            self._normalised_with[index] = self._version

    def take(
        self, energies_ev: np.ndarray, tolerance_ev: float, *, final: bool = False
    ) -> dict[str, np.ndarray]:
        """Return the arrays of an update; ``final``: nothing will be placed any more."""
        self.normalise(energies_ev, tolerance_ev)
        sets = (*self._darks.values(), *self._flats.values())
        self._notes.set(_BAD, len(self._masks) + sum(not s.good.all() for s in sets))
        arrays = {
            "frames": self._frames,
            "dark": self._dark,
            "transmission": self._transmission,
            "variance": self._variance,
            "measured": self._measured,
        }
        if len(self._beams) > 1 and self._flat_per_energy is not None:
            arrays["flat_per_energy"] = self._flat_per_energy
        elif self._flat is not None:
            arrays["flat"] = self._flat
        if final and len(self._flats) > 1:
            arrays["flats"] = self._flats_apart()
        return arrays

    def _flats_apart(self) -> np.ndarray:
        """Mean frames of the flats in the order of their seq_num, dark subtracted."""
        chosen = np.linspace(0, len(self._flats) - 1, min(len(self._flats), _MOST_FLATS))
        seqs = np.array(sorted(self._flats))[chosen.round().astype(int)]
        apart = self._allocate("flats", (len(seqs), *self.size), np.dtype(np.float32))
        for k, seq in enumerate(seqs.tolist()):
            np.subtract(self._flats[seq].mean, self._dark, out=apart[k])
            apart[k][~self._flats[seq].good] = 0
        return apart

    def _update_beams(self, energies_ev: np.ndarray, tolerance_ev: float) -> None:
        """Combine darks and flats, always in the order of their seq_num."""
        for text in (_NO_ENERGY, _NO_FLAT, _UNLIT):
            self._notes.set(text, 0)
        darks = [self._darks[seq] for seq in sorted(self._darks)]
        flats = {seq: self._flats[seq] for seq in sorted(self._flats)}
        dark, dark_good, n_dark = combine(darks, self.size)
        self._dark[...] = dark
        self._noise(darks, list(flats.values()), dark)
        read = self.read_noise_adu**2
        camera = Camera(self._dark, read / n_dark, self.adu_per_photon or 1.0, read)
        self._camera = camera

        energies = self._energies_of_flats(flats, energies_ev)
        spread = max(energies.values(), default=0.0) - min(energies.values(), default=0.0)
        if not energies or spread <= tolerance_ev:
            flat, good, n = combine(list(flats.values()), self.size)
            if self._flat is None:
                self._flat = self._allocate("flat", self.size, np.dtype(np.float32))
            self._flat[...] = flat
            beams = [(self._flat, good, n)]
        else:
            beams = self._beams_per_energy(flats, energies, energies_ev, tolerance_ev)
        self._beams = [
            Flat(flat, good & dark_good & camera.lit(flat, n), n) for flat, good, n in beams
        ]
        if not all(beam.good.all() for beam in self._beams):
            self._notes.set(_UNLIT, 1)
        self._beams_version = self._version

    def _energies_of_flats(
        self, flats: dict[int, FrameSet], energies_ev: np.ndarray
    ) -> dict[int, float]:
        known = {seq: self._flat_energies[seq] for seq in flats if seq in self._flat_energies}
        if not known and len(flats) == len(energies_ev) > 1:
            # Nothing says when they were taken, but there is one for each energy.
            return {seq: float(energies_ev[seq - 1]) for seq in flats if seq <= len(energies_ev)}
        return known

    def _beams_per_energy(
        self,
        flats: dict[int, FrameSet],
        energies: dict[int, float],
        energies_ev: np.ndarray,
        tolerance_ev: float,
    ) -> list[tuple[np.ndarray, np.ndarray, int]]:
        self._notes.set(_NO_ENERGY, len(flats) - len(energies))
        if self._flat_per_energy is None:
            shape = (len(energies_ev), *self.size)
            self._flat_per_energy = self._allocate("flat_per_energy", shape, np.dtype(np.float32))
        # Flats of the same energy belong together.
        groups: list[tuple[float, list[FrameSet]]] = []
        for energy, seq in sorted((energy, seq) for seq, energy in energies.items()):
            if groups and energy - groups[-1][0] <= tolerance_ev:
                groups[-1][1].append(flats[seq])
            else:
                groups.append((energy, [flats[seq]]))
        at = np.array([energy for energy, _ in groups])
        combined = [combine(sets, self.size) for _, sets in groups]
        beams, between = [], 0
        for index, energy in enumerate(energies_ev):
            right = int(np.searchsorted(at, energy))
            left = max(right - 1, 0)
            right = min(right, len(at) - 1)
            nearest = left if abs(at[left] - energy) <= abs(at[right] - energy) else right
            flat, good, n = combined[nearest]
            if abs(at[nearest] - energy) > tolerance_ev:
                between += 1
                if left != right:
                    share = np.float32((energy - at[left]) / (at[right] - at[left]))
                    flat = (1 - share) * combined[left][0] + share * combined[right][0]
                    good = combined[left][1] & combined[right][1]
                    n = min(combined[left][2], combined[right][2])
            self._flat_per_energy[index] = flat
            beams.append((self._flat_per_energy[index], good, n))
        self._notes.set(_NO_FLAT, between)
        return beams

    def _noise(self, darks: list[FrameSet], flats: list[FrameSet], dark: np.ndarray) -> None:
        """Find read noise and ADU per photon from frames that were repeated."""
        self._notes.set(_NO_READ_NOISE, 0)
        self._notes.set(_NO_GAIN, 0)
        read = pooled([(s.scatter, s.n - 1) for s in darks])
        if read is None:
            self._notes.set(_NO_READ_NOISE, 1)
            read = 0.0
        self.read_noise_adu = float(np.sqrt(read))
        if self._given is not None:
            return
        level = [
            float((s.mean - dark)[s.good].mean(dtype=np.float64)) for s in flats if s.good.any()
        ]
        scatter = pooled([(s.scatter, s.n - 1) for s in flats])
        if scatter is None and len(flats) > 1:
            # One frame per flat: compare the flats with each other.
            good = np.logical_and.reduce([s.good for s in flats])
            if good.any():
                scatter = scatter_between([s.mean for s in flats], good)
        signal = float(np.mean(level)) if level else 0.0
        if scatter is None or signal <= 0 or scatter <= read:
            self._notes.set(_NO_GAIN, 1)
            self.adu_per_photon = 1.0
        else:
            self.adu_per_photon = (scatter - read) / signal


_BAD = "frames with pixels that are saturated, negative or not finite: masked"
_UNLIT = "pixels that dark or flat leave without light: masked"
_NO_ENERGY = "flats without an energy left out"
_NO_FLAT = "energies without a flat of their own: interpolated"
_NO_READ_NOISE = "no repeated dark frames: read noise is taken as zero"
_NO_GAIN = (
    "no repeated flat frames: the variance assumes one ADU per photon; set adu_per_photon in the"
    " profile"
)
