"""A rehearsal on an energy stack: few of its energies first, then those that inscan asks for."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from inscan.callbacks import Connection
from inscan.callbacks.plans import survey_then_energies
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
        The survey takes every so many of the stored energies; the first and the last always.
    timeout : float
        Seconds to wait for an outcome.
    taken : list of float
        Energies that were taken so far, eV.
    """

    stack: StoredStack
    factor: int = 4
    timeout: float = 900.0
    notes: list[str] = field(default_factory=list)
    taken: list[float] = field(default_factory=list)

    def plan(self, inscan: Connection, tell: Callable[[str], None]) -> Plan:
        """Survey, wait, add the proposed energies, until none are proposed."""
        done = yield from survey_then_energies(
            self.survey(tell), inscan, self.more, timeout=self.timeout, report=tell
        )
        stored = len(set(self.stack.energies_ev))
        self.notes.append(f"{len(set(self.taken))} of {stored} energies were taken")
        return done

    def survey(self, tell: Callable[[str], None] = lambda _: None) -> Plan:
        """Take some of the stored energies."""
        stored = sorted(self.stack.energies_ev)
        count = max(2, round(len(stored) / self.factor))
        chosen = np.unique(np.linspace(0, len(stored) - 1, count).round().astype(int))
        tell(f"{len(chosen)} of {len(stored)} energies")
        return (yield from self._scan([stored[index] for index in chosen], {"purpose": "survey"}))

    def more(self, energies_ev: Sequence[float], proposal: Mapping[str, Any]) -> Plan:
        """Take those stored energies that are nearest to the proposed ones and were not taken yet.

        The stored run has no longer exposures than its own, so that `exposure_factor` is not followed.
        """
        chosen: list[float] = []
        for wanted in energies_ev:
            left = [e for e in self.stack.energies_ev if e not in self.taken and e not in chosen]
            if left:
                chosen.append(min(left, key=lambda stored: (abs(stored - wanted), stored)))
        if float(proposal.get("exposure_factor") or 1.0) != 1.0:
            self.notes.append(
                "a stored frame has no other exposure: exposure_factor is not followed"
            )
        return (yield from self._scan(sorted(chosen), {}))

    def counted(self) -> dict[str, int]:
        """How many images lie between stored energies."""
        return {"interpolated": self.stack.camera.interpolated}

    def _scan(self, energies_ev: Sequence[float], md: Mapping[str, Any]) -> Plan:
        if not energies_ev:
            return None  # the stored run has no more: no run is opened
        self.taken.extend(energies_ev)
        return (yield from self.stack.scan(energies_ev, md))
