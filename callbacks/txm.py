"""Energy stacks of a transmission microscope, assembled frame by frame."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from inscan.callbacks.energy_stack import StackArrays
from inscan.callbacks.profile import BeamlineProfile
from inscan.callbacks.readings import moment
from inscan.callbacks.references import Reference
from inscan.callbacks.run_meta import run_meta
from inscan.callbacks.txm_beams import BEAM_REMARKS, Beams
from inscan.callbacks.txm_edge import find_edge
from inscan.callbacks.txm_optics import PixelSize
from inscan.callbacks.txm_plan import StackPlan
from inscan.callbacks.txm_readback import Readback
from inscan.callbacks.txm_streams import CameraStreams
from inscan.callbacks.updates import Allocate, Notes, NotUnderstood, Update

__all__ = ["EnergyStack"]

# Bytes per energy and pixel of a stack: frames, transmission, variance and the mask; and per flat.
_BYTES, _FLAT_BYTES = 13, 8
# Darks and flats that are compared with images: frames with noise are never the same twice.
_COMPARED = 3


class EnergyStack:
    """The stack of one run, or one of each position and repeat; the target of a `RunAssembler`.

    See `StackArrays` for the arrays of its updates. Dark, flat and primary frames may come in any
    order; nothing is emitted before there is one of each, because without them there is no
    transmission. Rows of a stack are the planned energies in rising order, each once.

    Parameters
    ----------
    start, profile, allocate, notes
        See `inscan.callbacks.assembly.open_assembler`.

    Raises
    ------
    NotUnderstood
        The start document lists no energies, or several angles.
    """

    def __init__(
        self, start: Mapping[str, Any], profile: BeamlineProfile, allocate: Allocate, notes: Notes
    ) -> None:
        if profile.txm is None:
            raise ValueError(f"profile {profile.name} has no section txm")
        self._start = start
        self._profile = profile
        self._txm = profile.txm
        self._allocate = allocate
        self._notes = notes
        self._plan = StackPlan.from_start(start, profile.txm)
        planned = self._plan.planned_ev
        self._edge = find_edge(start, profile.txm, planned.min(), planned.max(), notes)
        again = planned.size - self._plan.energies_ev.size
        notes.set("energies that are planned again: their images are averaged", again)
        self._streams = CameraStreams(start, profile.txm, planned, notes)
        self._pixel = PixelSize(profile.txm, notes)
        self._readback = Readback(self._plan, profile.txm, notes)
        self._taken: dict[tuple[str, int], float] = {}
        self._stacks: list[StackArrays] = []
        self._beams: list[Beams] = []
        self._standards: list[Reference] | None = None
        self._placed: set[int] = set()
        self._snapshots = 0
        self._shown: dict[int, int] = {}

    def wants(self, stream: str) -> bool:
        return stream in self._streams.kinds or self._pixel.wants(stream)

    def describe(self, stream: str, descriptor: Mapping[str, Any]) -> None:
        if self._pixel.wants(stream):
            self._pixel.describe(descriptor)
        if stream in self._streams.kinds:
            size = self._streams.describe(stream, descriptor)
            if not self._stacks:
                self._begin(size)

    def external_shape(self, stream: str, data_key: str) -> tuple[int, ...] | None:
        return self._streams.external_shape(stream, data_key)

    def array_keys(self, stream: str) -> Mapping[str, tuple[int, ...]]:
        return self._streams.array_keys(stream)

    def event(self, stream: str, seq_num: int, taken: float, data: Mapping[str, Any]) -> None:
        if isinstance(seq_num, bool) or int(seq_num) != seq_num or seq_num < 1:
            raise ValueError(f"seq_num {seq_num!r}: expected 1 or more")
        seq_num = int(seq_num)
        if self._pixel.wants(stream):
            self._pixel.event(seq_num, data)
        kind = self._streams.kinds.get(stream)
        if kind is None or not self._stacks:
            return
        if kind == "primary" and self._beyond(seq_num, "events"):
            return
        taken = moment(taken)
        if self._taken.get((kind, seq_num), -np.inf) >= taken:
            return
        # All is read before anything is placed.
        frames = self._streams.frames(stream, seq_num, data)
        energy = self._streams.energy(stream, data, self._planned_at(kind, seq_num))
        if kind == "primary":
            self._readback.places(seq_num, data)
        if frames is not None:
            self._place(kind, seq_num, frames)
        if kind == "primary" and energy is not None:
            self._readback.energy(seq_num, energy)
        elif kind == "flat" and energy is not None:
            repeat, own = self._plan.flat(seq_num)
            self._beams[repeat].flat_energy(own, energy)
        self._taken[kind, seq_num] = taken

    def rows(self, stream: str, data_key: str, first_seq: int, block: np.ndarray) -> None:
        kind = self._streams.kinds.get(stream)
        if kind is None or not self._stacks:
            return
        for seq_num, frames in enumerate(block, start=first_seq):
            if seq_num < 1 or (kind == "primary" and self._beyond(seq_num, "rows")):
                continue
            self._place(kind, seq_num, frames.reshape(-1, *frames.shape[-2:]))
        if kind == "primary":
            for stack in {self._plan.image(seq)[0] for seq in self._placed_in(first_seq, block)}:
                self._stacks[stack].normalise(self._beams_of(stack), early=True)

    def snapshot_due(self) -> bool:
        every = self._profile.method.snapshot_rows
        if not every or not any(beams.ready for beams in self._beams):
            return False
        done = len(self._placed) // self._plan.positions
        planned = self._plan.planned_ev.size * self._plan.repeats
        # A snapshot of the last energy would be superseded by the final at once.
        if done // every <= self._snapshots or done >= planned:
            return False
        self._snapshots = done // every
        return True

    def updates(self, final: tuple[str, str] | None) -> list[Update]:
        status, reason = final or ("running", "")
        misfit = self._readback.misfit() or self._misread()
        if misfit is not None:
            return [] if final is None else [self.rejected(misfit)]
        for beams in self._beams:
            beams.expose(self._streams.flat_exposure())
        stacks = [
            k
            for k, stack in enumerate(self._stacks)
            if stack.n_energies and self._beams_of(k).ready
        ]
        if final is not None and not stacks:
            end = f"{status}{': ' + reason if reason else ''}"
            return [
                self.rejected(
                    f"the run ended ({end}) without {self._missing()} frames: there is no"
                    f" transmission"
                )
            ]
        if final is None:
            changed = [k for k in stacks if self._stacks[k].n_energies != self._shown.get(k)]
            self._shown |= {k: self._stacks[k].n_energies for k in changed}
            stacks = changed
        # Warnings are of the run: all of it is computed before the first update is made.
        arrays = {
            k: self._stacks[k].take(self._beams_of(k), final=final is not None) for k in stacks
        }
        stacks = [k for k in stacks if self._stacks[k].done.any()] if final else stacks
        if final is not None and not stacks:
            return [self.rejected(f"the run ended ({status}) without a measured pixel")]
        self._remark(len(stacks) if final else None)
        return [self._update(k, arrays[k], final) for k in stacks]

    def rejected(self, reason: str) -> Update:
        meta = self._meta(0) | {
            "energies_ev": self._plan.energies_ev.tolist(),
            "rows_done": 0,
            "complete": False,
            "exit_status": "rejected",
            "reason": reason,
            "warnings": self._notes.lines(),
        }
        return Update("rejected", self._start["uid"], self._txm.streams.primary, meta, {})

    def _begin(self, size: tuple[int, int]) -> None:
        plan, txm = self._plan, self._txm
        pixels = plan.energies_ev.size * math.prod(size)
        needed = _BYTES * pixels * plan.n_stacks + _FLAT_BYTES * pixels * plan.repeats
        if needed > txm.max_bytes:
            raise NotUnderstood(
                f"{plan.words()} of {size[0]} x {size[1]} pixels take {needed} bytes,"
                f" {txm.max_bytes} are allowed: raise txm.max_bytes"
            )
        self._beams = [
            Beams(
                plan.planned_ev,
                plan.energies_ev,
                plan.tolerance_ev,
                size,
                txm.adu_per_photon,
                txm.saturation,
                self._allocate,
                _suffix(repeat),
            )
            for repeat in range(plan.repeats)
        ]
        self._stacks = [
            StackArrays(plan.parts, size, txm.saturation, self._allocate, _suffix(stack))
            for stack in range(plan.n_stacks)
        ]

    def _beyond(self, seq_num: int, what: str) -> bool:
        """Note how many images came; return whether this one is none of the plan's."""
        self._readback.beyond = max(self._readback.beyond, seq_num)
        if seq_num <= self._plan.n_images:
            return False
        self._notes.add(f"{what} beyond the {self._plan.n_images} planned images left out")
        return True

    def _planned_at(self, kind: str, seq_num: int) -> float | None:
        """The planned energy of an image, None where the plan does not say."""
        if kind != "primary":
            return None
        return float(self._plan.planned_ev[self._plan.image(seq_num)[1]])

    def _place(self, kind: str, seq_num: int, frames: np.ndarray) -> None:
        plan, kept = self._plan, True
        if kind == "primary":
            stack, energy = plan.image(seq_num)
            self._stacks[stack].place(int(plan.row_of[energy]), int(plan.part_of[energy]), frames)
            self._placed.add(seq_num)
        elif kind == "dark":
            kept = all(beams.place_dark(seq_num, frames) for beams in self._beams)
        else:
            repeat, own = plan.flat(seq_num)
            kept = self._beams[repeat].place_flat(own, frames)
        if not kept:
            self._notes.add(f"{kind}s beyond the number of energies left out")

    def _placed_in(self, first_seq: int, block: np.ndarray) -> list[int]:
        return [s for s in range(first_seq, first_seq + len(block)) if s in self._placed]

    def _beams_of(self, stack: int) -> Beams:
        """Darks and flats of a stack's repeat; where it has no flats, of the nearest that has."""
        own = stack // self._plan.positions
        lit = [repeat for repeat, beams in enumerate(self._beams) if beams.has_flats]
        return self._beams[min(lit, key=lambda repeat: abs(repeat - own), default=own)]

    def _misread(self) -> str | None:
        """Return that darks or flats are the frames of the images; None when they are not.

        Streams may share a file; a catalog may have forgotten who has which rows of it.
        """
        for kind in ("dark", "flat"):
            alike = []
            for seq_num, mean in self._beams[0].means(kind).items() if self._beams else ():
                image = self._image(seq_num)
                if image is not None:
                    alike.append(bool(np.array_equal(image, mean)))
                if alike and (not all(alike) or len(alike) == _COMPARED):
                    break
            if alike and all(alike):
                return (
                    f"the {kind} frames are the very frames of the images: their documents point to"
                    f" the same rows of one file (a Tiled catalog loses which stream of a shared file"
                    f" has which rows; take the run from its own documents)"
                )
        return None

    def _image(self, seq_num: int) -> np.ndarray | None:
        plan = self._plan
        if seq_num > plan.n_images:
            return None
        stack, energy = plan.image(seq_num)
        return self._stacks[stack].image(int(plan.row_of[energy]), int(plan.part_of[energy]))

    def _missing(self) -> str:
        """Return which kinds of frames are not there, in words."""
        have = {
            "dark": any(beams.has_darks for beams in self._beams),
            "flat": any(beams.has_flats for beams in self._beams),
            "primary": bool(self._placed),
        }
        return " and ".join(kind for kind, there in have.items() if not there)

    def _remark(self, n_final: int | None) -> None:
        """State what is to be said of all stacks together."""
        notes, plan = self._notes, self._plan
        bad = sum(stack.bad for stack in self._stacks)
        # Darks are the same in all repeats.
        bad += sum(b.bad_flats for b in self._beams) + self._beams[0].bad_darks
        notes.set(_BAD, bad)
        for text in BEAM_REMARKS:
            notes.set(text, max(beams.remarks.get(text, 0) for beams in self._beams))
        notes.set(_STRAY, self._readback.strays())
        alone = sum(not beams.has_flats for beams in self._beams) if n_final is not None else 0
        notes.set("repeats without flats of their own: those of the nearest are used", alone)
        left = plan.n_stacks - n_final if n_final is not None else 0
        notes.set("positions or repeats of which nothing was measured have no stack", left)

    def _update(
        self, stack: int, arrays: dict[str, np.ndarray], final: tuple[str, str] | None
    ) -> Update:
        status, reason = final or ("running", "")
        energies, measured = self._readback.energies(stack), self._stacks[stack].done
        beams = self._beams_of(stack)
        meta = self._meta(stack) | {
            "energies_ev": energies.tolist(),
            "references": self._references(energies),
            "rows_done": int(measured.sum()),
            "complete": status == "success" and bool(measured.all()),
            "exit_status": status,
            "reason": reason,
            "adu_per_photon": beams.adu_per_photon,
            "read_noise_adu": beams.read_noise_adu,
        }
        meta["warnings"] = self._notes.lines()
        kind = "snapshot" if final is None else "final"
        return Update(kind, self._start["uid"], meta["stream"], meta, arrays)

    def _references(self, energies: np.ndarray) -> list[dict[str, Any]]:
        found = []
        if self._standards is None:
            self._standards = self._read_standards()
        for reference in self._standards:
            try:
                at = self._described_at(reference, energies)
                values = reference.at(at)
            except ValueError as error:
                self._notes.set(f"standards that do not cover the run are left out ({error})", 1)
                continue
            found.append(
                {
                    "name": reference.name,
                    "energies_ev": at.tolist(),
                    "absorption": values.tolist(),
                }
            )
        return found

    def _described_at(self, reference: Reference, energies: np.ndarray) -> np.ndarray:
        """The run's energies; where more may be added, all that the standard has in their range besides."""
        more = self._profile.rescan.energies
        if more is None:
            return energies
        low, high = reference.energies_ev[[0, -1]]
        ends = np.clip([more.low_ev, more.high_ev], low, high)
        own = reference.energies_ev
        return np.union1d(energies, [*ends, *own[(own > ends[0]) & (own < ends[1])]])

    def _read_standards(self) -> list[Reference]:
        try:
            return self._profile.references()
        except (OSError, ValueError) as error:
            self._notes.add("no standards, no chemical map", str(error))
            return []

    def _meta(self, stack: int) -> dict[str, Any]:
        plan = self._plan
        size = self._stacks[0].size if self._stacks else None
        repeat, position = divmod(stack, plan.positions)
        stream = plan.stream(self._txm.streams.primary, stack)
        return (
            run_meta(self._start, self._profile, stream)
            | {
                "units": "1",
                "quantity": "transmission",
                "source": self._txm.image,
                "geometry": None,
                "shape": None if size is None else [plan.energies_ev.size, *size],
                "edge": None if self._edge is None else self._edge.name,
                "edge_ev": None if self._edge is None else self._edge.edge_ev,
                "incident_energy_ev": None,
                "i0_reference": None,
                "position": {
                    "number": position + 1,
                    "of": plan.positions,
                    "repeat": repeat + 1,
                    "repeats": plan.repeats,
                    "motors": self._readback.position(stack),
                },
            }
            | self._pixel.meta()
        )


def _suffix(index: int) -> str:
    """Of the names of arrays: none for the first, so that one stack has plain names."""
    return f".{index + 1}" if index else ""


_BAD = "frames with pixels that are saturated, negative or not finite: masked"
_STRAY = (
    "energies that were reached more than half a step from the plan; those read back are reported"
)
