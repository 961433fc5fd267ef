"""What a run's data become: the part of assembling that knows the technique."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from inscan.callbacks.updates import Update

__all__ = ["Target"]


class Target(Protocol):
    """An `inscan.callbacks.xrf.XRFMap` or `inscan.callbacks.txm.EnergyStack`."""

    def wants(self, stream: str) -> bool:
        """Return whether the stream holds any of the data."""
        ...

    def describe(self, stream: str, descriptor: Mapping[str, Any]) -> None:
        """Learn what the stream's keys are; NotUnderstood when they cannot be used."""
        ...

    def external_shape(self, stream: str, data_key: str) -> tuple[int, ...] | None:
        """Return the shape of one row of a key that is read from files, None when it is not."""
        ...

    def array_keys(self, stream: str) -> Mapping[str, tuple[int, ...]]:
        """Return the arrays that events of the stream carry, with their declared shapes."""
        ...

    def event(self, stream: str, seq_num: int, taken: float, data: Mapping[str, Any]) -> None:
        """Place one event; ValueError, KeyError or TypeError when it does not fit."""
        ...

    def rows(self, stream: str, data_key: str, first_seq: int, block: np.ndarray) -> None:
        """Place rows (n, *shape) of one data key."""
        ...

    def snapshot_due(self) -> bool:
        """Return, once, whether another step of rows is complete."""
        ...

    def updates(self, final: tuple[str, str] | None) -> list[Update]:
        """Return a snapshot, or with (exit_status, reason) the final: one of each map or stack that
        the run holds, told apart by their stream."""
        ...

    def rejected(self, reason: str) -> Update:
        """Return why nothing can be computed."""
        ...
