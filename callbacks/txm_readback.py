"""What was read back with each image: energies, positions, rotation; and whether it fits the plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from inscan.callbacks.profile_sections import TXM
from inscan.callbacks.readings import MOST, reading
from inscan.callbacks.txm_plan import StackPlan
from inscan.callbacks.updates import Notes

__all__ = ["Readback"]

# A stack in which the sample turns by more is tomography.
_MOST_DEGREES = 0.5
# Images at another energy than planned, by more than this share of the scan: so many may be slips of
# the monochromator. An offset that all share is none.
_MOST_STRAY = 0.05
_STRAY_SHARE = 0.02
# Images of one position lie within this share of the extent of all.
_SPREAD = 0.05


class Readback:
    """Readings of the events of the primary stream, by seq_num.

    Parameters
    ----------
    plan
        What is where.
    txm
        Section of the profile.
    notes
        What people should know.
    """

    def __init__(self, plan: StackPlan, txm: TXM, notes: Notes) -> None:
        self._plan = plan
        self._txm = txm
        self._notes = notes
        self._energies = np.full(plan.n_images, np.nan)
        self._rotation = np.full(plan.n_images, np.nan)
        self._motors = {key: np.full(plan.n_images, np.nan) for key in txm.positions.motors}
        self.beyond = 0
        """Highest seq_num that came; beyond the plan's images, too many were taken."""

    def energy(self, seq_num: int, value_ev: float) -> None:
        """Take the energy (eV) of an image."""
        self._energies[seq_num - 1] = value_ev

    def places(self, seq_num: int, data: Mapping[str, Any]) -> None:
        """Take the positions of an event."""
        for key, values in (*self._motors.items(), (self._txm.positions.rotation, self._rotation)):
            if key is not None and key in data:
                at = reading(data[key])
                values[seq_num - 1] = at if abs(at) < MOST else np.nan

    def energies(self, stack: int) -> np.ndarray:
        """Return the energies of a stack's rows, (row,) eV: mean of what was read, else planned."""
        plan = self._plan
        read = self._of(self._energies)[stack]
        known = np.isfinite(read)
        count = np.bincount(plan.row_of[known], minlength=plan.energies_ev.size)
        total = np.bincount(plan.row_of[known], read[known], minlength=plan.energies_ev.size)
        return np.where(count > 0, total / np.maximum(count, 1), plan.energies_ev)

    def position(self, stack: int) -> dict[str, float]:
        """Return the median position of a stack's images, by motor."""
        found = {}
        for key, values in self._motors.items():
            own = self._of(values)[stack]
            if np.isfinite(own).any():
                found[key] = float(np.nanmedian(own))
        return found

    def misfit(self) -> str | None:
        """Return why images cannot have been sorted as planned; None when nothing speaks against it.

        Energies that were read back are the proof; where there are none, positions of the sample.
        """
        plan = self._plan
        turned = self._turned()
        if turned is not None:
            return turned
        several, over = plan.n_stacks > 1, self.beyond > plan.n_images
        planned = np.repeat(plan.planned_ev, plan.positions)
        planned = np.tile(planned, plan.repeats)
        read = np.isfinite(self._energies)
        away = self._energies - planned
        limit = max(plan.tolerance_ev, _STRAY_SHARE * float(np.ptp(plan.energies_ev)))
        # An offset is one that images really have: between two of them lies no third.
        offset = np.percentile(away[read], 50, method="lower") if read.any() else 0.0
        stray = np.abs(away - offset) > limit
        many = stray.sum() > _MOST_STRAY * read.sum()
        keys = "check txm.positions.number and txm.positions.repeats in the profile"
        if (several or over) and many:
            return (
                f"images do not follow the plan of {plan.words()}: {int(stray.sum())} of"
                f" {int(read.sum())} energies that were read back belong elsewhere, {self.beyond}"
                f" images came; {keys}"
            )
        mixed = self._mixed()
        if mixed is not None:
            return f"{mixed} (planned: {plan.words()}); {keys}"
        proof = read.any() or any(np.isfinite(values).any() for values in self._motors.values())
        if over and not read.any():
            return (
                f"{self.beyond} images came instead of {plan.n_images}, and no energy was read back"
                f" that would tell which is which; {keys}, or name txm.energy"
            )
        if several and not proof and self.beyond:
            self._notes.set(
                "neither energies nor positions were read back: the order of images is believed", 1
            )
        return None

    def strays(self) -> int:
        """Return how many rows of all stacks are more than half a step from the plan."""
        plan = self._plan
        rows = np.stack([self.energies(stack) for stack in range(plan.n_stacks)])
        return int((np.abs(rows - plan.energies_ev) > plan.tolerance_ev).sum())

    def _of(self, values: np.ndarray) -> np.ndarray:
        """Values by stack and planned energy, (stack, n)."""
        plan = self._plan
        shape = (plan.repeats, plan.planned_ev.size, plan.positions)
        return values.reshape(shape).transpose(0, 2, 1).reshape(plan.n_stacks, -1)

    def _turned(self) -> str | None:
        for stack, angles in enumerate(self._of(self._rotation)):
            known = angles[np.isfinite(angles)]
            if known.size and np.ptp(known) > _MOST_DEGREES:
                return (
                    f"angle x energy (3D XANES) is not understood: {self._txm.positions.rotation}"
                    f" goes from {known.min():g} to {known.max():g} degrees in stack {stack + 1}"
                )
        return None

    def _mixed(self) -> str | None:
        """Whether images of one position were taken at several places."""
        plan = self._plan
        if plan.positions < 2 or not self._motors:
            return None
        for repeat in range(plan.repeats):
            own = slice(repeat * plan.positions, (repeat + 1) * plan.positions)
            # (position, energy, motor); places of an image whose motors were not all read are nan.
            at = np.stack([self._of(values)[own] for values in self._motors.values()], axis=-1)
            known = np.asarray(np.isfinite(at).all(axis=2))
            there = np.flatnonzero(np.asarray(known.any(axis=1)))
            if len(there) < 2:
                continue
            centres = np.stack([np.median(at[k][known[k]], axis=0) for k in there])
            apart = np.linalg.norm(centres[:, None] - centres[None], axis=2)
            least = apart[~np.eye(len(there), dtype=bool)].min()
            # Positions may be listed twice; then images of one must not spread like all do.
            extent = np.linalg.norm(np.ptp(at[known], axis=0))
            limit = max(0.5 * least, _SPREAD * extent)
            for centre, k in zip(centres, there, strict=True):
                far = np.linalg.norm(at[k][known[k]] - centre, axis=1) > limit
                if far.any():
                    return (
                        f"{int(far.sum())} images of position {k + 1} were taken nearer to another"
                        f" one, by {', '.join(self._motors)}"
                    )
        return None
