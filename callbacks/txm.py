"""An energy stack of a transmission microscope, assembled frame by frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from inscan.callbacks.energy_stack import StackArrays, Stream
from inscan.callbacks.lines import EmissionLine
from inscan.callbacks.profile import BeamlineProfile, start_value
from inscan.callbacks.references import Reference
from inscan.callbacks.run_meta import run_meta
from inscan.callbacks.units import scale
from inscan.callbacks.updates import Allocate, Notes, NotUnderstood, Update, from_stream

__all__ = ["EnergyStack"]

_MOST_ENERGIES = 1 << 16


class EnergyStack:
    """The stack of one run; the target of a `RunAssembler`.

    See `StackArrays` for the arrays of its updates. Dark, flat and primary frames may come in any
    order; nothing is emitted before there is one of each, because without them there is no
    transmission.

    Parameters
    ----------
    start, profile, allocate, notes
        See `inscan.callbacks.assembly.open_assembler`.

    Raises
    ------
    NotUnderstood
        The start document lists no energies.
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
        self._energies = self._planned(start)
        spacing = np.diff(np.unique(self._energies))
        # Half a step apart is another energy; a single energy leaves 0.5 eV.
        self._tolerance = 0.5 * float(spacing.min()) if spacing.size else 0.5
        self._streams: dict[str, Stream] = {
            profile.txm.streams.primary: "primary",
            profile.txm.streams.dark: "dark",
            profile.txm.streams.flat: "flat",
        }
        self._declared: dict[str, tuple[int, ...]] = {}
        self._factors: dict[str, float] = {}
        self._external: set[str] = set()
        self._read = np.full(self._energies.size, np.nan)
        self._taken: dict[tuple[str, int], float] = {}
        self._arrays: StackArrays | None = None
        self._standards: list[Reference] | None = None
        self._snapshots = 0

    def wants(self, stream: str) -> bool:
        return stream in self._streams

    def describe(self, stream: str, descriptor: Mapping[str, Any]) -> None:
        txm, data_keys = self._txm, descriptor["data_keys"]
        if txm.image not in data_keys:
            raise NotUnderstood(
                f"stream {stream!r} has no {txm.image!r}; it has {', '.join(sorted(data_keys))}"
            )
        declared = tuple(int(n) for n in data_keys[txm.image]["shape"])
        size = declared[-2:]
        if (
            not 2 <= len(declared) <= 4
            or min(declared) < 1
            or len(declared) == 4 != declared[0] + 3
        ):
            raise NotUnderstood(
                f"{txm.image} in stream {stream!r} declares shape {declared}; expected"
                f" (frame, y, x)"
            )
        if self._arrays is None:
            self._arrays = StackArrays(
                self._energies.size,
                (size[0], size[1]),
                txm.adu_per_photon,
                txm.saturation,
                self._allocate,
                self._notes,
            )
        elif size != self._arrays.size:
            raise NotUnderstood(
                f"{txm.image} in stream {stream!r} is {size}, in an earlier one {self._arrays.size}"
            )
        self._declared[stream] = declared
        if from_stream(data_keys[txm.image]):
            self._external.add(stream)
        if txm.energy is not None and txm.energy in data_keys:
            units = data_keys[txm.energy].get("units") or txm.energies_units
            try:
                self._factors[stream] = scale(units, "eV")
            except ValueError as error:
                self._notes.add(f"{txm.energy} of stream {stream} is not used", str(error))

    def external_shape(self, stream: str, data_key: str) -> tuple[int, ...] | None:
        if data_key != self._txm.image or stream not in self._external:
            return None
        return self._declared[stream]

    def array_keys(self, stream: str) -> Mapping[str, tuple[int, ...]]:
        if stream in self._external or stream not in self._declared:
            return {}
        return {self._txm.image: self._declared[stream]}

    def event(self, stream: str, seq_num: int, taken: float, data: Mapping[str, Any]) -> None:
        if self._arrays is None:
            return
        if isinstance(seq_num, bool) or int(seq_num) != seq_num or seq_num < 1:
            raise ValueError(f"seq_num {seq_num!r}: expected 1 or more")
        seq_num = int(seq_num)
        kind = self._streams[stream]
        if kind == "primary" and seq_num > self._energies.size:
            self._notes.add(f"events beyond the {self._energies.size} planned energies left out")
            return
        if self._taken.get((kind, seq_num), -np.inf) >= taken:
            return
        if stream not in self._external:
            frames = np.asarray(data[self._txm.image])
            if frames.shape != self._declared[stream] or frames.dtype.kind not in "uif":
                raise ValueError(
                    f"event {seq_num}: {self._txm.image} has shape {frames.shape} of {frames.dtype},"
                    f" the descriptor declares numbers of shape {self._declared[stream]}"
                )
            self._arrays.place(kind, seq_num, frames.reshape(-1, *self._arrays.size))
        if stream in self._factors and self._txm.energy is not None:
            energy = float(data[self._txm.energy]) * self._factors[stream]
            if not np.isfinite(energy):
                self._notes.add(f"{self._txm.energy} is not finite: the planned energy is believed")
            elif kind == "primary":
                self._read[seq_num - 1] = energy
            elif kind == "flat":
                self._arrays.flat_energy(seq_num, energy)
        self._taken[kind, seq_num] = float(taken)

    def rows(self, stream: str, data_key: str, first_seq: int, block: np.ndarray) -> None:
        if self._arrays is None:
            return
        kind = self._streams[stream]
        for seq_num, frames in enumerate(block, start=first_seq):
            if kind == "primary" and not 1 <= seq_num <= self._energies.size:
                self._notes.add(f"rows beyond the {self._energies.size} planned energies left out")
                continue
            self._arrays.place(kind, seq_num, frames.reshape(-1, *self._arrays.size))
        if kind == "primary":
            self._arrays.normalise(self._energies, self._tolerance, early=True)

    def snapshot_due(self) -> bool:
        every = self._profile.method.snapshot_rows
        if self._arrays is None or not every or not self._arrays.can_normalise:
            return False
        done = self._arrays.n_primary
        # A snapshot of the last energy would be superseded by the final at once.
        if done // every <= self._snapshots or done >= self._energies.size:
            return False
        self._snapshots = done // every
        return True

    def updates(self, final: tuple[str, str] | None) -> list[Update]:
        return [self._update(final)]

    def _update(self, final: tuple[str, str] | None) -> Update:
        status, reason = final or ("running", "")
        if self._arrays is None or not self._arrays.can_normalise or not self._arrays.n_primary:
            missing = self._arrays.missing() if self._arrays else "dark, flat and primary"
            return self.rejected(
                f"the run ended ({status}{': ' + reason if reason else ''}) without {missing}"
                f" frames: there is no transmission"
            )
        energies = self._energies_ev()
        # Flats belong to planned energies: which, must not depend on what has been read back so far.
        arrays = self._arrays.take(self._energies, self._tolerance, final=final is not None)
        measured = self._arrays.done
        if final is not None and not measured.any():
            return self.rejected(f"the run ended ({status}) without a measured pixel")
        off = np.abs(energies - self._energies) > self._tolerance
        self._notes.set(
            "energies that were reached more than half a step from the plan; those read back are"
            " reported",
            int(off.sum()),
        )
        meta = self._meta() | {
            "energies_ev": energies.tolist(),
            "references": self._references(energies),
            "rows_done": int(measured.sum()),
            "complete": status == "success" and bool(measured.all()),
            "exit_status": status,
            "reason": reason,
            "adu_per_photon": self._arrays.adu_per_photon,
            "read_noise_adu": self._arrays.read_noise_adu,
            "warnings": self._notes.lines(),
        }
        kind = "snapshot" if final is None else "final"
        return Update(kind, self._start["uid"], self._txm.streams.primary, meta, arrays)

    def rejected(self, reason: str) -> Update:
        meta = self._meta() | {
            "energies_ev": self._energies.tolist(),
            "rows_done": 0,
            "complete": False,
            "exit_status": "rejected",
            "reason": reason,
            "warnings": self._notes.lines(),
        }
        return Update("rejected", self._start["uid"], self._txm.streams.primary, meta, {})

    def _planned(self, start: Mapping[str, Any]) -> np.ndarray:
        path = self._txm.energies
        planned = start_value(start, path)
        if isinstance(planned, str) or not isinstance(planned, Sequence | np.ndarray):
            raise NotUnderstood(
                f"run {start['uid'][:8]}: start.{path} = {planned!r:.60}; expected a list of energies"
            )
        try:
            energies = np.array(planned, np.float64) * scale(self._txm.energies_units, "eV")
        except (TypeError, ValueError) as error:
            raise NotUnderstood(f"start.{path}: every energy must be a number: {error}") from error
        if energies.ndim != 1 or not 1 <= energies.size <= _MOST_ENERGIES:
            raise NotUnderstood(f"start.{path}: expected 1 to {_MOST_ENERGIES} energies in a list")
        if not (np.isfinite(energies) & (energies > 0)).all():
            raise NotUnderstood(f"start.{path}: every energy must be finite and above zero")
        return energies

    def _energies_ev(self) -> np.ndarray:
        return np.where(np.isfinite(self._read), self._read, self._energies)

    def _references(self, energies: np.ndarray) -> list[dict[str, Any]]:
        found = []
        if self._standards is None:
            self._standards = self._read_standards()
        for reference in self._standards:
            try:
                values = reference.at(energies)
            except ValueError as error:
                self._notes.add("standards that do not cover the run are left out", str(error))
                continue
            found.append(
                {
                    "name": reference.name,
                    "energies_ev": energies.tolist(),
                    "absorption": values.tolist(),
                }
            )
        return found

    def _read_standards(self) -> list[Reference]:
        try:
            return self._profile.references()
        except (OSError, ValueError) as error:
            self._notes.add("no standards, no chemical map", str(error))
            return []

    def _meta(self) -> dict[str, Any]:
        size = self._arrays.size if self._arrays else None
        return run_meta(self._start, self._profile, self._txm.streams.primary) | {
            "units": "1",
            "quantity": "transmission",
            "source": self._txm.image,
            "geometry": None,
            "shape": None if size is None else [self._energies.size, *size],
            "pixel_size_um": self._txm.pixel_size_um,
            "edge": self._txm.edge,
            "edge_ev": EmissionLine.parse(self._txm.edge).edge_ev,
            "incident_energy_ev": None,
            "i0_reference": None,
        }
