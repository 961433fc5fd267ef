"""Simulated motors: where they are told to be they are, within soft limits."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from ophyd.positioner import SoftPositioner

__all__ = ["Stage"]


class Stage(SoftPositioner):
    """A motor with units and soft limits.

    Parameters
    ----------
    name
        Device name and data key.
    units
        Units, as they stand in descriptors.
    limits
        (low, high) in those units; a move outside raises ophyd's LimitError.
    position
        Where it begins.

    Raises
    ------
    ValueError
        Limits that are no range, or a position outside.
    """

    def __init__(
        self, name: str, units: str, limits: tuple[float, float], position: float = 0.0
    ) -> None:
        if not limits[0] < limits[1]:
            raise ValueError(f"{name}: limits {limits} {units}; expected low < high")
        super().__init__(
            name=name,
            egu=units,
            limits=limits,
            source=f"sim://{name}",
            init_pos=float(position),
            kind="hinted",
        )

    def _set_position(self, value: float, **kwargs: Any) -> None:
        # Plans hand in numpy scalars; documents should hold plain numbers.
        super()._set_position(float(value), **kwargs)

    @property
    def here(self) -> float:
        """Position in the motor's units."""
        position: Any = self.position
        return float(position)

    def describe(self) -> OrderedDict:
        """Describe the position, with units and limits."""
        keys = super().describe()
        keys[self.name]["dtype_numpy"] = "<f8"
        return keys
