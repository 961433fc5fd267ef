"""A rehearsal on an energy stack: fewer energies, or less light, and what is left of the chemistry."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from inscan.callbacks import Connection
from inscan.profiles.stored_camera import StoredStack

__all__ = ["StackRehearsal"]

Plan = Generator[Any, Any, Any]


@dataclass
class StackRehearsal:
    """What a plan finds in its file's `plan(beamline, inscan)`, beside the connection.

    Attributes
    ----------
    stack : StoredStack
        Camera, monochromator, energies of the stored run; `stack.scan(energies_ev, md)` is a plan.
    factor : int
        Every so many of the stored energies are taken; the first and the last always.
    """

    stack: StoredStack
    factor: int = 4
    notes: list[str] = field(default_factory=list)

    def plan(self, inscan: Connection, tell: Callable[[str], None]) -> Plan:
        """Take some of the stored energies."""
        del inscan  # nothing is waited for: the result of the one scan is all there is
        stored = sorted(self.stack.energies_ev)
        count = max(2, round(len(stored) / self.factor))
        chosen = np.unique(np.linspace(0, len(stored) - 1, count).round().astype(int))
        tell(f"{len(chosen)} of {len(stored)} energies")
        energies = [stored[index] for index in chosen]
        return (yield from self.stack.scan(energies, {"purpose": "survey"}))

    def counted(self) -> dict[str, int]:
        """How many images lie between stored energies."""
        return {"interpolated": self.stack.camera.interpolated}
