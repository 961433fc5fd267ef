"""Darks and flats of a run: the beam and the camera at every energy of a stack."""

from __future__ import annotations

import numpy as np

from inscan.callbacks.frame_sets import (
    FrameSet,
    combine,
    frame_set,
    good_pixels,
    pooled,
    scatter_between,
)
from inscan.callbacks.transmission import Camera, Flat
from inscan.callbacks.updates import Allocate

__all__ = ["BEAM_REMARKS", "Beams"]

_F4 = np.dtype(np.float32)
_UNLIT = "pixels that dark or flat leave without light: masked"
_NO_ENERGY = "flats without an energy left out"
_NO_FLAT = "energies without a flat of their own: interpolated, or the nearest"
_NO_READ_NOISE = "no repeated dark frames: read noise is taken as zero"
_NO_GAIN = (
    "no repeated flat frames: the variance assumes one ADU per photon; set adu_per_photon in the"
    " profile"
)

BEAM_REMARKS = (_UNLIT, _NO_ENERGY, _NO_FLAT, _NO_READ_NOISE, _NO_GAIN)
"""What `Beams.remarks` may say."""

# Flats that are handed on to show how the beam drifts; of more, so many spread over all.
_MOST_FLATS = 24
# Fewest events of flats or darks that are kept, however few energies there are.
_LEAST_EVENTS = 16
# Mean frames that are allocated at a time.
_BLOCK = 8


class Beams:
    """Darks and flats by event, and what follows from them.

    Parameters
    ----------
    planned_ev, energies_ev
        Energies in the order of the flats, and those of the rows of a stack (rising), eV.
    tolerance_ev
        What is nearer is the same energy.
    size
        (row, col) of the frames.
    adu_per_photon
        None: found from the flats.
    saturation
        Value from which on a pixel is saturated; None: never.
    allocate
        Where arrays live; see `inscan.callbacks.assembly.open_assembler`.
    suffix
        Of the names of arrays, where a run has several.
    """

    def __init__(
        self,
        planned_ev: np.ndarray,
        energies_ev: np.ndarray,
        tolerance_ev: float,
        size: tuple[int, int],
        adu_per_photon: float | None,
        saturation: float | None,
        allocate: Allocate,
        suffix: str = "",
    ) -> None:
        self.size = size
        self.adu_per_photon = adu_per_photon
        self.read_noise_adu = 0.0
        self.version = 0
        """Rises with every dark and flat."""
        self.rebuilt = 0
        """How often beams were computed from them."""
        self.remarks: dict[str, int] = {}
        """What people should know of the beams as they are."""
        self.beams: list[Flat] = []
        """One flat, or one per row."""
        self.camera: Camera | None = None
        self._planned = planned_ev
        self._energies = energies_ev
        self._tolerance = tolerance_ev
        self._given = adu_per_photon
        self._saturation = saturation
        self._allocate = allocate
        self._suffix = suffix
        self._most = max(len(planned_ev), _LEAST_EVENTS)
        self._dark = allocate(f"dark{suffix}", size, _F4)
        self._flat: np.ndarray | None = None
        self._flat_per_energy: np.ndarray | None = None
        self._drift: np.ndarray | None = None
        self._darks: dict[int, FrameSet] = {}
        self._flats: dict[int, FrameSet] = {}
        self._flat_energies: dict[int, float] = {}
        self._blocks: dict[tuple[str, int], np.ndarray] = {}
        self._exposure = 1.0
        self._built = -1

    @property
    def ready(self) -> bool:
        """Whether there is a dark and a flat."""
        return bool(self._darks and self._flats)

    @property
    def has_flats(self) -> bool:
        return bool(self._flats)

    @property
    def has_darks(self) -> bool:
        return bool(self._darks)

    @property
    def stale(self) -> bool:
        """Whether darks or flats have come since the beams were computed."""
        return self._built != self.version

    @property
    def bad_darks(self) -> int:
        """Darks with pixels that are not good."""
        return sum(not s.clean for s in self._darks.values())

    @property
    def bad_flats(self) -> int:
        """Flats with pixels that are not good."""
        return sum(not s.clean for s in self._flats.values())

    def place_dark(self, seq_num: int, frames: np.ndarray) -> bool:
        """Place the frames (frame, row, col) of a dark event; False when there are too many."""
        return self._place(self._darks, "dark", seq_num, frames)

    def place_flat(self, seq_num: int, frames: np.ndarray) -> bool:
        """Place the frames of a flat event, counted from 1; False when there are too many."""
        return self._place(self._flats, "flat", seq_num, frames)

    def means(self, kind: str) -> dict[int, np.ndarray]:
        """Return the mean frames of ``dark`` or ``flat`` by event, (row, col) each."""
        sets = self._darks if kind == "dark" else self._flats
        return {seq: one.mean for seq, one in sets.items()}

    def flat_energy(self, seq_num: int, energy_ev: float) -> None:
        """Say at which energy a flat was taken."""
        if seq_num <= self._most:
            self._flat_energies[seq_num] = energy_ev
            self.version += 1

    def expose(self, relative: float) -> None:
        """Say how long flats were exposed relative to the images."""
        if relative != self._exposure:
            self._exposure = relative
            self.version += 1

    def rebuild(self) -> None:
        """Combine darks and flats, always in the order of their seq_num."""
        self.remarks = {}
        self.rebuilt += 1
        darks = [self._darks[seq] for seq in sorted(self._darks)]
        flats = {seq: self._flats[seq] for seq in sorted(self._flats)}
        dark, dark_good, n_dark = combine(darks, self.size)
        self._dark[...] = dark
        self._noise(darks, list(flats.values()), dark)
        read = self.read_noise_adu**2
        camera = Camera(self._dark, read / n_dark, self.adu_per_photon or 1.0, read)
        self.camera = camera
        energies = self._energies_of(flats)
        spread = max(energies.values(), default=0.0) - min(energies.values(), default=0.0)
        if not energies or spread <= self._tolerance:
            if self._flat is None:
                self._flat = self._allocate(f"flat{self._suffix}", self.size, _F4)
            flat, good, n = self._combined(list(flats.values()))
            self._flat[...] = flat
            beams = [(self._flat, good, n)]
        else:
            beams = self._per_energy(flats, energies)
        self.beams = [
            Flat(flat, good & dark_good & camera.lit(flat, n), n) for flat, good, n in beams
        ]
        if not all(beam.good.all() for beam in self.beams):
            self.remarks[_UNLIT] = 1
        self._built = self.version

    def take(self, *, final: bool) -> dict[str, np.ndarray]:
        """Return ``dark``, and ``flat`` or ``flat_per_energy``; at the end of a run with several
        flats also ``flats``, each less the dark."""
        arrays = {"dark": self._dark}
        if len(self.beams) > 1 and self._flat_per_energy is not None:
            arrays["flat_per_energy"] = self._flat_per_energy
        elif self._flat is not None:
            arrays["flat"] = self._flat
        if final and len(self._flats) > 1:
            if self._drift is None:
                self._drift = self._apart()
            arrays["flats"] = self._drift
        return arrays

    def _place(
        self, sets: dict[int, FrameSet], kind: str, seq_num: int, frames: np.ndarray
    ) -> bool:
        if seq_num > self._most:
            return False
        block, index = divmod(seq_num - 1, _BLOCK)
        if (kind, block) not in self._blocks:
            # Files in the service: as many flats as energies would fill the memory.
            name = f"{kind}_events{self._suffix}.{block}"
            self._blocks[kind, block] = self._allocate(name, (_BLOCK, *self.size), _F4)
        mean = self._blocks[kind, block][index]
        sets[seq_num] = frame_set(frames, good_pixels(frames, self._saturation), mean)
        self.version += 1
        return True

    def _combined(self, sets: list[FrameSet]) -> tuple[np.ndarray, np.ndarray, float]:
        """Mean flat, scaled to the exposure of the images."""
        flat, good, n = combine(sets, self.size)
        if self._exposure == 1.0:
            return flat, good, float(n)
        scaled = self._dark + (flat - self._dark) / np.float32(self._exposure)
        # More light in a flat is worth more of its frames.
        return scaled, good, n * self._exposure

    def _energies_of(self, flats: dict[int, FrameSet]) -> dict[int, float]:
        known = {seq: self._flat_energies[seq] for seq in flats if seq in self._flat_energies}
        if not known and len(flats) == len(self._planned) > 1:
            # Nothing says when they were taken, but there is one for each energy.
            return {seq: float(self._planned[seq - 1]) for seq in flats if seq <= len(flats)}
        return known

    def _per_energy(
        self, flats: dict[int, FrameSet], energies: dict[int, float]
    ) -> list[tuple[np.ndarray, np.ndarray, float]]:
        if len(flats) > len(energies):
            self.remarks[_NO_ENERGY] = len(flats) - len(energies)
        if self._flat_per_energy is None:
            shape = (len(self._energies), *self.size)
            self._flat_per_energy = self._allocate(f"flat_per_energy{self._suffix}", shape, _F4)
        # Flats of the same energy belong together.
        groups: list[tuple[float, list[FrameSet]]] = []
        for energy, seq in sorted((energy, seq) for seq, energy in energies.items()):
            if groups and energy - groups[-1][0] <= self._tolerance:
                groups[-1][1].append(flats[seq])
            else:
                groups.append((energy, [flats[seq]]))
        at = np.array([energy for energy, _ in groups])
        beams, between = [], 0
        for index, energy in enumerate(self._energies):
            right = int(np.searchsorted(at, energy))
            left = max(right - 1, 0)
            right = min(right, len(at) - 1)
            nearest = left if abs(at[left] - energy) <= abs(at[right] - energy) else right
            flat, good, n = self._combined(groups[nearest][1])
            if abs(at[nearest] - energy) > self._tolerance:
                between += 1
                if left != right:
                    share = np.float32((energy - at[left]) / (at[right] - at[left]))
                    one, other = self._combined(groups[left][1]), self._combined(groups[right][1])
                    flat = (1 - share) * one[0] + share * other[0]
                    good, n = one[1] & other[1], min(one[2], other[2])
            self._flat_per_energy[index] = flat
            beams.append((self._flat_per_energy[index], good, n))
        if between:
            self.remarks[_NO_FLAT] = between
        return beams

    def _apart(self) -> np.ndarray:
        """Mean frames of the flats in the order of their seq_num, dark subtracted."""
        chosen = np.linspace(0, len(self._flats) - 1, min(len(self._flats), _MOST_FLATS))
        seqs = np.array(sorted(self._flats))[chosen.round().astype(int)]
        apart = self._allocate(f"flats{self._suffix}", (len(seqs), *self.size), _F4)
        for k, seq in enumerate(seqs.tolist()):
            np.subtract(self._flats[seq].mean, self._dark, out=apart[k])
            apart[k][~self._flats[seq].good] = 0
        return apart

    def _noise(self, darks: list[FrameSet], flats: list[FrameSet], dark: np.ndarray) -> None:
        """Find read noise and ADU per photon from frames that were repeated."""
        read = pooled([(s.scatter, s.n - 1) for s in darks])
        if read is None:
            self.remarks[_NO_READ_NOISE] = 1
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
            self.remarks[_NO_GAIN] = 1
            self.adu_per_photon = 1.0
        else:
            self.adu_per_photon = (scatter - read) / signal
