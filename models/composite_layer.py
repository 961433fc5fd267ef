"""What a composite is made of: the maps of one place as counts, and how one of them lies on another."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inscan.models.superres_input import Sampling

__all__ = ["Channels", "Layer", "Placement"]

_UNEVEN = 0.25  # of a step: how far a centre may lie from where even spacing puts it


@dataclass(frozen=True)
class Channels:
    """The counts of a layer apart by detector channel, for a denoiser that wants to know.

    Attributes
    ----------
    counts : ndarray of float, shape (channel, element, row, col)
    exposure : ndarray of float, shape (channel, row, col)
        0 where the channel did not measure.
    background, background_variance : ndarray of float, shape of `counts`, or None
        Counts that are not the element's, and their variance.
    """

    counts: NDArray[np.floating]
    exposure: NDArray[np.floating]
    background: NDArray[np.floating] | None = None
    background_variance: NDArray[np.floating] | None = None


@dataclass(frozen=True)
class Layer:
    """One scan as the beamline took it.

    Attributes
    ----------
    uid : str
        Of the run.
    elements : tuple of str
    counts : ndarray of float, shape (element, row, col)
        Raw counts of the channel sum, 0 or more.
    exposure : ndarray of float, shape (row, col)
        Seconds times I0 over the layer's own reference, of one channel on average.
    rows, cols : ndarray of float64, shape (row,) and (col,)
        Centres of the pixels in motor units, evenly spaced; they may fall.
    measured : ndarray of bool, shape (row, col), optional
    background : ndarray of float, shape of `counts`, optional
        Counts that are not the element's.
    channels : Channels or None
        The same apart by channel; None: the sum is taken for one channel.
    time : float
        When it was begun, seconds since 1970: what is newer wins where two do not agree.
    label : str
        What it is called in words, e.g. `region 2-Fe_K`.
    relative : tuple of float
        Candidates for the exposure of this layer in units of the survey's, as the intensity monitor tells it: one
        where it is known what the monitor counts, several where that is open. The counts choose.
    """

    uid: str
    elements: tuple[str, ...]
    counts: NDArray[np.floating]
    exposure: NDArray[np.floating]
    rows: NDArray[np.float64]
    cols: NDArray[np.float64]
    measured: NDArray[np.bool_] | None = None
    background: NDArray[np.floating] | None = None
    channels: Channels | None = None
    time: float = 0.0
    label: str = ""
    relative: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        counts = np.asarray(self.counts)
        shape = counts.shape
        if counts.ndim != 3 or len(self.elements) != len(counts) or min(shape) == 0:
            raise ValueError(
                f"{self.name}: counts of shape {shape} for {len(self.elements)} elements; expected"
                " (element, row, col)"
            )
        for name, wanted in (
            ("exposure", shape[1:]),
            ("measured", shape[1:]),
            ("background", shape),
        ):
            value = getattr(self, name)
            if value is not None and np.shape(value) != wanted:
                raise ValueError(f"{self.name}: {name} has shape {np.shape(value)}, not {wanted}")
        if self.channels is not None and np.shape(self.channels.counts)[1:] != shape:
            raise ValueError(
                f"{self.name}: channels of shape {np.shape(self.channels.counts)}, the sum is {shape}"
            )
        if np.nanmin(counts, initial=0.0) < 0:
            raise ValueError(f"{self.name}: counts must be >= 0")
        if not self.relative or min(self.relative) <= 0:
            raise ValueError(f"{self.name}: relative exposures {self.relative} must be > 0")
        for name, count in (("rows", shape[1]), ("cols", shape[2])):
            _even(self.name, name, np.asarray(getattr(self, name), dtype=np.float64), count)

    @property
    def name(self) -> str:
        """What it is called in words."""
        return self.label or f"run {self.uid[:8]}"

    @property
    def steps(self) -> NDArray[np.float64]:
        """Signed step along rows and columns, motor units, shape (2,)."""
        return np.array(
            [(at[-1] - at[0]) / (len(at) - 1) for at in (self.rows, self.cols)], dtype=np.float64
        )

    def seen(self) -> NDArray[np.bool_]:
        """Pixels with finite counts and exposure, shape (row, col)."""
        mask = np.isfinite(self.counts).all(axis=0) & (np.nan_to_num(self.exposure) > 0)
        return mask if self.measured is None else mask & np.asarray(self.measured, dtype=bool)

    def split(self) -> Channels:
        """Its channels; the sum as one channel where they are not known."""
        if self.channels is not None:
            return self.channels
        behind = None if self.background is None else np.asarray(self.background)[None]
        return Channels(np.asarray(self.counts)[None], np.asarray(self.exposure)[None], behind)


@dataclass(frozen=True)
class Placement:
    """Where a fine layer lies on the survey, and whether the two agree there.

    Attributes
    ----------
    layer : Layer
    found : bool
        Its place was recognised, and within the largest shift that is followed.
    used : bool
        It enters the composite: its place is known, or its counts agree where it was sent.
    shift, error : ndarray of float64, shape (2,)
        What is added to the positions where it was sent to have the survey's, and one standard deviation; motor
        units. Zero, and infinite, where there is nothing to tell it by.
    sampling : {"box", "point", "fly"}
        How the survey's pixels come from finer ones.
    factor : float
        Its exposure in units of the survey's, times `layer.exposure`.
    agrees : ndarray of bool, shape (element,)
        Counts of the element may be added to the survey's.
    differs : ndarray of bool, shape (element, survey row, survey col)
        Where they may not.
    reason : str
        All of that in words.
    figures : mapping
        JSON-able: shift in survey pixels, chi square and ratio of the rates per element.
    """

    layer: Layer
    found: bool
    used: bool
    shift: NDArray[np.float64]
    error: NDArray[np.float64]
    sampling: Sampling
    factor: float
    agrees: NDArray[np.bool_]
    differs: NDArray[np.bool_]
    reason: str
    figures: Mapping[str, Any] = field(default_factory=dict)


def _even(owner: str, name: str, at: NDArray[np.float64], count: int) -> None:
    if at.shape != (count,):
        raise ValueError(f"{owner}: {len(at)} {name} for {count} pixels")
    if count < 2:
        raise ValueError(f"{owner}: {count} {name} have no step; a map needs two at least")
    step = (at[-1] - at[0]) / (count - 1)
    if not np.isfinite(at).all() or step == 0:
        raise ValueError(f"{owner}: {name} run from {at[0]} to {at[-1]}")
    apart = np.abs(at - np.linspace(at[0], at[-1], count)).max() / abs(step)
    if apart > _UNEVEN:
        raise ValueError(
            f"{owner}: {name} are unevenly spaced, by up to {apart:.2g} of a step; such maps are not put together"
        )
