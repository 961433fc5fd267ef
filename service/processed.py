"""What a recipe hands back: named arrays with their axes and units, a report, and boxes worth a
closer look."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ResultArray:
    """One array of a result.

    Attributes
    ----------
    name : str
        Its name in the result file and in Tiled, for example `values`.
    dims : tuple of str
        Names of the axes, slow axis first, for example `("element", "row", "col")`.
    units : str
        Units of the values; `""` for pure numbers and masks.
    values : ndarray
        C order; float32 for measured quantities, bool for masks. `dims` has one name for each axis.
    labels : list of str or None
        Names along the first axis, for example `["Fe_K", "Ca_K"]`.
    """

    name: str
    dims: tuple[str, ...]
    units: str
    values: np.ndarray
    labels: list[str] | None = None

    def __post_init__(self) -> None:
        if len(self.dims) != self.values.ndim:
            raise ValueError(
                f"result array {self.name!r}: dims {self.dims} name {len(self.dims)} axes, "
                f"the values have shape {self.values.shape}"
            )
        if self.labels is not None and len(self.labels) != self.values.shape[0]:
            raise ValueError(
                f"result array {self.name!r}: {len(self.labels)} labels for a first axis of "
                f"{self.values.shape[0]}"
            )


@dataclass(frozen=True)
class BornWeights:
    """Weights that were fitted to a run: the bytes of a safetensors file, and its model card."""

    blob: bytes
    card: dict[str, Any]


@dataclass(frozen=True)
class Processed:
    """A finished recipe: arrays, report, regions (pixel boxes as plain mappings), and the weights
    that were fitted on the way, if they are worth keeping."""

    arrays: list[ResultArray]
    report: dict[str, Any]
    regions: list[dict[str, Any]] = field(default_factory=list)
    weights: BornWeights | None = None
