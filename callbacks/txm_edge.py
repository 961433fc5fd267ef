"""Which absorption edge an energy scan crosses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import xraydb

from inscan.callbacks.lines import EmissionLine
from inscan.callbacks.profile import start_value
from inscan.callbacks.profile_sections import TXM
from inscan.callbacks.updates import Notes

__all__ = ["find_edge"]


def find_edge(
    start: Mapping[str, Any], txm: TXM, low_ev: float, high_ev: float, notes: Notes
) -> EmissionLine | None:
    """Return the edge under study.

    That of the profile; with ``edge: auto`` the one of the element that the start document names,
    else the only K edge between the planned energies, else the only L3 edge.

    Parameters
    ----------
    start, txm
        Start document and section of the profile.
    low_ev, high_ev
        First and last planned energy, eV.
    notes
        Told what was assumed, and why nothing was.

    Returns
    -------
    EmissionLine or None
        None: not known; the notes say which profile key would tell.
    """
    if txm.edge != "auto":
        return EmissionLine.parse(txm.edge)
    within = [line for line in _known_edges() if low_ev < line.edge_ev < high_ev]
    element = None if txm.element is None else start_value(start, txm.element)
    if isinstance(element, str) and element:
        own = [line for line in within if line.element == element.strip()]
        if len(own) == 1:
            return own[0]
        notes.add(
            f"the element of the sample has {len(own) or 'no'} K or L3 edge within the planned"
            f" energies; the edge is sought among all elements (set txm.edge in the profile)",
            element[:20],
        )
    for family in ("K", "L"):
        found = [line for line in within if line.family == family]
        if len(found) == 1:
            others = ", ".join(line.name for line in within if line != found[0])
            notes.add(
                f"the edge is taken to be {found[0].name}, the only {_SHELL[family]} edge within the"
                f" planned energies{f' (there are also {others})' if others else ''}; txm.edge or"
                f" start.{txm.element} would say it"
            )
            return found[0]
        if found:
            break
    names = ", ".join(line.name for line in within) or "none"
    notes.add(
        f"the edge is not known: K and L3 edges within the planned energies are {names:.200}; set"
        f" txm.edge in the profile or start.{txm.element}"
    )
    return None


_SHELL = {"K": "K", "L": "L3"}


@cache
def _known_edges() -> Sequence[EmissionLine]:
    """K and L3 edges of the elements that have emission lines of them."""
    found = []
    for number in range(3, 96):
        element = xraydb.atomic_symbol(number)
        for family in _SHELL:
            try:
                line = EmissionLine.parse(f"{element}_{family}")
                known = line.edge_ev > 0
            except (ValueError, KeyError):
                continue  # light elements have no L lines, the heaviest no data
            if known:
                found.append(line)
    return tuple(found)
