"""Which image of a run belongs to which energy of which stack, as the start document plans it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inscan.callbacks.profile import start_value
from inscan.callbacks.profile_sections import TXM
from inscan.callbacks.units import scale
from inscan.callbacks.updates import NotUnderstood

__all__ = ["StackPlan"]

_MOST_ENERGIES = 1 << 16
_MOST_IMAGES = 1 << 20
# Each stack is some open files in the service.
_MOST_STACKS = 128
# Energies that are nearer than any monochromator can tell are the same one.
_SAME_EV = 1e-3
# Photons of any synchrotron have less.
_MOST_EV = 1e9


@dataclass(frozen=True)
class StackPlan:
    """Images in the order: repeat, energy, position.

    Attributes
    ----------
    planned_ev
        (n,) energies in the order they are taken, eV.
    energies_ev
        (row,) the same, rising, each once: the energy axis of every stack.
    row_of, part_of
        (n,) row of each planned energy, and which of the images of that row it is, from 0.
    positions, repeats
        How many places of the sample, and how often all energies are taken.
    tolerance_ev
        What is further away than this is another energy: half the smallest step; 0.5 eV for one.
    """

    planned_ev: np.ndarray
    energies_ev: np.ndarray
    row_of: np.ndarray
    part_of: np.ndarray
    positions: int
    repeats: int
    tolerance_ev: float

    @classmethod
    def from_start(cls, start: Mapping[str, Any], txm: TXM) -> StackPlan:
        """Read a start document.

        Raises
        ------
        NotUnderstood
            No energies, no sensible number of positions, or several angles; says which key.
        """
        angles = None if txm.angles is None else start_value(start, txm.angles)
        if isinstance(angles, Sequence | np.ndarray) and not isinstance(angles, str):
            if len(angles) > 1:
                raise NotUnderstood(
                    f"run {start['uid'][:8]}: angle x energy (3D XANES) is not understood:"
                    f" start.{txm.angles} lists {len(angles)} angles"
                )
        planned = _energies(start, txm)
        rising = np.argsort(planned, kind="stable")
        new = np.diff(planned[rising], prepend=-np.inf) > _SAME_EV
        row_of = np.empty(planned.size, np.int64)
        row_of[rising] = np.cumsum(new) - 1
        first = np.flatnonzero(new)
        part_of = np.empty(planned.size, np.int64)
        part_of[rising] = np.arange(planned.size) - first[row_of[rising]]
        energies = planned[rising][first]
        steps = np.diff(energies)
        positions = _count(start, txm.positions.number, "txm.positions.number")
        repeats = _count(start, txm.positions.repeats, "txm.positions.repeats")
        stacks = positions * repeats
        if stacks > _MOST_STACKS or planned.size * stacks > _MOST_IMAGES:
            raise NotUnderstood(
                f"{planned.size} energies x {positions} positions x {repeats} repeats are more than"
                f" {_MOST_STACKS} stacks or {_MOST_IMAGES} images: check txm.positions.number and"
                f" txm.positions.repeats"
            )
        tolerance = 0.5 * float(steps.min()) if steps.size else 0.5
        return cls(planned, energies, row_of, part_of, positions, repeats, tolerance)

    @property
    def n_stacks(self) -> int:
        """One per repeat and position."""
        return self.positions * self.repeats

    @property
    def n_images(self) -> int:
        """Events of the primary stream."""
        return self.planned_ev.size * self.n_stacks

    @property
    def parts(self) -> np.ndarray:
        """Images per row of a stack, (row,): more than one where an energy is planned again."""
        return np.bincount(self.row_of, minlength=self.energies_ev.size)

    def image(self, seq_num: int) -> tuple[int, int]:
        """Return (stack, planned energy), both from 0, of an event of the primary stream."""
        repeat, rest = divmod(seq_num - 1, self.planned_ev.size * self.positions)
        energy, position = divmod(rest, self.positions)
        return repeat * self.positions + position, energy

    def flat(self, seq_num: int) -> tuple[int, int]:
        """Return (repeat, number within it from 1) of an event of the flat stream.

        Each repeat has a flat per energy; what comes beyond belongs to the last.
        """
        repeat = min((seq_num - 1) // self.planned_ev.size, self.repeats - 1)
        return repeat, seq_num - repeat * self.planned_ev.size

    def stream(self, primary: str, stack: int) -> str:
        """Return the name under which a stack is known: ``primary``, ``primary@2``, ..."""
        return primary if stack == 0 else f"{primary}@{stack + 1}"

    def words(self) -> str:
        """Return what is planned, for people."""
        return (
            f"{self.planned_ev.size} energies x {self.positions} positions x {self.repeats} repeats"
            f" = {self.n_images} images"
        )


def _energies(start: Mapping[str, Any], txm: TXM) -> np.ndarray:
    path = txm.energies
    planned = start_value(start, path)
    if isinstance(planned, str) or not isinstance(planned, Sequence | np.ndarray):
        raise NotUnderstood(
            f"run {start['uid'][:8]}: start.{path} = {planned!r:.60}; expected a list of energies"
            f" (txm.energies names the key)"
        )
    try:
        if any(isinstance(energy, str | bytes | bool) for energy in planned):
            raise TypeError("text among them")
        energies = np.array(planned, np.float64) * scale(txm.energies_units, "eV")
    except (TypeError, ValueError, OverflowError) as error:
        raise NotUnderstood(f"start.{path}: every energy must be a number: {error}") from error
    if energies.ndim != 1 or not 1 <= energies.size <= _MOST_ENERGIES:
        raise NotUnderstood(f"start.{path}: expected 1 to {_MOST_ENERGIES} energies in a list")
    if not ((energies > 0) & (energies < _MOST_EV)).all():
        raise NotUnderstood(
            f"start.{path}: every energy must be a number above zero and below {_MOST_EV:g} eV"
        )
    return energies


def _count(start: Mapping[str, Any], path: str | None, key: str) -> int:
    """A number from 1 in the start document; 1 where there is none."""
    value = None if path is None else start_value(start, path)
    if value is None:
        return 1
    whole = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not whole or not 1 <= value <= _MOST_IMAGES or int(value) != value:
        raise NotUnderstood(
            f"run {start['uid'][:8]}: start.{path} = {value!r:.60}; expected a number from 1"
            f" ({key} names the key)"
        )
    return int(value)
