"""Coarse and fine scans of the same place, made fit to train super-resolution with.

A fine scan taken inside a survey is a pair, once the two are put on top of each other: stages do
not come back to the same place to a fraction of a pixel. The shift is the one under which the fine
counts, averaged over the survey's pixels, are most likely to have given the survey's counts. Fine
counts stay counts: nothing is resampled, the network's answer is carried to the fine pixels
instead (`Pair.to_fine`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inscan.models.fill import nearest_measured
from inscan.models.registration import CountGrid, Registration, axis_weights, likeliest_shift
from inscan.models.superres_input import Sampling

__all__ = ["MeasuredMap", "Pair", "Preparation", "prepare"]

_MARGIN = 8  # survey pixels kept around the fine map, for context
_CROP = 12  # survey pixels along a side of a training crop
_LEAST_COUNTS = 200.0  # of an element over the overlap, in the survey
_WORST_SHIFT_ERROR = 0.15  # of a survey pixel
_WORST_CHI2 = 1.5
_WORST_RATIO = 0.05  # of one element against the others, apart from what counting explains
_COMMON_RATIO = 1.5  # of all elements
_FINE_STEP = (0.67, 1.25)  # fine step over the network's step
_CLEAR = 9.0  # in -2 log likelihood, over a second shift more than a pixel away


@dataclass(frozen=True)
class MeasuredMap:
    """One scan as the beamline took it.

    Attributes
    ----------
    uid : str
        Of the run.
    elements : tuple of str
    counts : ndarray of float, shape (element, row, col)
        Raw counts, channels added, >= 0.
    exposure : ndarray of float, shape (row, col)
        Live time x I0 over a reference that both maps share.
    rows, cols : tuple of float
        Centres of the first and the last pixel along each axis, in motor units; they may fall.
    measured : ndarray of bool, shape (row, col), optional
    """

    uid: str
    elements: tuple[str, ...]
    counts: NDArray[np.floating]
    exposure: NDArray[np.floating]
    rows: tuple[float, float]
    cols: tuple[float, float]
    measured: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        counts = np.asarray(self.counts)
        if counts.ndim != 3 or len(self.elements) != len(counts) or min(counts.shape) == 0:
            raise ValueError(
                f"map {self.uid}: counts of shape {counts.shape} for {len(self.elements)} elements;"
                " expected (element, row, col)"
            )
        if min(counts.shape[1:]) < 2:
            raise ValueError(f"map {self.uid}: {counts.shape[1:]} pixels have no step")
        for name in ("exposure", "measured"):
            value = getattr(self, name)
            if value is not None and np.shape(value) != counts.shape[1:]:
                raise ValueError(
                    f"map {self.uid}: {name} has shape {np.shape(value)}, not {counts.shape[1:]}"
                )
        if np.nanmin(counts, initial=0.0) < 0:
            raise ValueError(f"map {self.uid}: counts must be >= 0")
        for name in ("rows", "cols"):
            first, last = getattr(self, name)
            if not (np.isfinite([first, last]).all() and first != last):
                raise ValueError(f"map {self.uid}: {name} run from {first} to {last}")

    def seen(self) -> NDArray[np.bool_]:
        """Pixels with finite counts and exposure, shape (row, col)."""
        mask = np.isfinite(self.counts).all(axis=0) & (np.nan_to_num(self.exposure) > 0)
        return mask if self.measured is None else mask & np.asarray(self.measured, dtype=bool)

    def centres(self, axis: int) -> NDArray[np.float64]:
        """Pixel centres along rows (0) or columns (1) in motor units."""
        first, last = (self.rows, self.cols)[axis]
        return np.linspace(first, last, self.counts.shape[1 + axis])


@dataclass(frozen=True)
class Pair:
    """A survey's cut-out, the fine counts over it, and how to get from one to the other.

    Attributes
    ----------
    runs : tuple of str
        uids of the coarse and the fine run.
    elements : tuple of str
    factor : int
    sampling : str
        How the survey sampled.
    coarse : ndarray of float32, shape (element, row, col)
        Raw counts of the survey where the fine map lies, with a margin for context.
    fine : ndarray of float32, shape (element, row, col)
        Raw fine counts.
    gain : ndarray of float32, shape (element, row, col)
        Fine counts expected for each count of a survey pixel; 0 where either was not measured.
    rows, cols : ndarray of float32, shape (fine pixel, coarse row * factor)
        Interpolation from the network's pixels to the fine ones along each axis; all 0 for a fine
        pixel that lies outside.
    """

    runs: tuple[str, str]
    elements: tuple[str, ...]
    factor: int
    sampling: str
    coarse: NDArray[np.float32]
    fine: NDArray[np.float32]
    gain: NDArray[np.float32]
    rows: NDArray[np.float32]
    cols: NDArray[np.float32]

    def to_fine(self, values: NDArray[np.floating]) -> NDArray[np.floating]:
        """Fine counts expected of super-resolved values.

        Parameters
        ----------
        values : ndarray of float, shape (element, coarse row * factor, coarse col * factor)
            In counts of a survey pixel.

        Returns
        -------
        ndarray of float, shape of `fine`
        """
        return np.maximum(self.rows @ values @ self.cols.T, 0) * self.gain


@dataclass(frozen=True)
class Preparation:
    """Whether two runs make a pair, and why or why not.

    Attributes
    ----------
    pair : Pair or None
        None when they do not.
    reasons : tuple of str
        Why not; for a pair, what to bear in mind.
    figures : mapping
        JSON-able: uids, factor, elements, shift and its error in motor units ([row, col]), shift in
        survey pixels, survey pixels covered, and for each element reduced chi square and ratio of
        the rates.
    """

    pair: Pair | None
    reasons: tuple[str, ...]
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fit(self) -> bool:
        """Whether the pair can be trained with."""
        return self.pair is not None

    def to_dict(self) -> dict[str, Any]:
        """All but the arrays, JSON-able."""
        return {"fit": self.fit, "reasons": list(self.reasons), **self.figures}


def prepare(
    coarse: MeasuredMap,
    fine: MeasuredMap,
    *,
    factor: int,
    sampling: Sampling = "box",
    max_shift: float = 2.0,
) -> Preparation:
    """Register a fine map to the survey it lies in and check that they agree.

    Parameters
    ----------
    coarse, fine : MeasuredMap
    factor : int
        2 or 4: the step to train for is the survey's over this.
    sampling : {"box", "point", "fly"}
        How the survey sampled, as in `superres.upscale`. "point" and "fly" mean that both scans
        had the same probe; "box" that the survey's probe was as wide as its step.
    max_shift : float
        Largest shift looked for, in survey pixels.

    Returns
    -------
    Preparation

    Raises
    ------
    ValueError
        Another factor or sampling, or a shift that is not positive.
    """
    if factor not in (2, 4):
        raise ValueError(f"factor must be 2 or 4, got {factor}")
    if sampling not in ("box", "point", "fly"):
        raise ValueError(f"sampling must be 'box', 'point' or 'fly', got {sampling!r}")
    if not max_shift > 0:
        raise ValueError(f"max_shift must be > 0 survey pixels, got {max_shift}")
    names = tuple(name for name in coarse.elements if name in fine.elements)
    figures: dict[str, Any] = {
        "coarse": coarse.uid,
        "fine": fine.uid,
        "factor": factor,
        "sampling": sampling,
        "elements": list(names),
    }
    if not names:
        return Preparation(None, ("the two maps have no element in common",), figures)
    low = _grid(coarse, names)
    high = _grid(fine, names, tuple(abs(step) / factor for step in low.steps))
    for axis, name in enumerate(("row", "column")):
        share = abs(high.steps[axis] / low.steps[axis]) * factor
        if not share <= _FINE_STEP[1]:
            reason = (
                f"the fine {name} step is {share:.2f} of the step that {factor}x asks for; at most "
                f"{_FINE_STEP[1]} can teach it"
            )
            return Preparation(None, (reason,), figures)
    found = likeliest_shift(low, high, sampling, max_shift)
    if found is None:
        return Preparation(
            None, ("they overlap by less than 8 survey pixels along a side",), figures
        )
    steps = np.array(low.steps)
    crops = max(1, int(found.inside.sum()) // _CROP**2)
    figures |= {
        "shift": [round(float(s), 6) for s in found.shift],
        "shift_error": [round(float(s), 6) for s in np.minimum(found.error, 1e9)],
        "shift_px": [round(float(s), 4) for s in found.shift / steps],
        "overlap_pixels": int(found.inside.sum()),
        "crops": crops,
        "chi2": [round(float(c), 4) for c in found.chi2],
        "ratio": [round(float(r), 5) for r in found.ratio],
    }
    against = _unusable(found, steps)
    use, cautions = _usable_elements(found, low, names)
    if not use.any():
        against.append("no element is fit")
    reasons = tuple(against + cautions)
    figures["elements_used"] = [name for name, ok in zip(names, use, strict=True) if ok]
    if against:
        return Preparation(None, reasons, figures)
    return Preparation(
        _cut(low, high, found, use, (coarse.uid, fine.uid), names, factor, sampling),
        reasons,
        figures,
    )


def _grid(
    scan: MeasuredMap, names: tuple[str, ...], wanted: tuple[float, ...] | None = None
) -> CountGrid:
    """Counts of these elements; pixels much smaller than `wanted` are added up to about that."""
    seen = scan.seen()
    which = [scan.elements.index(name) for name in names]
    counts = np.where(seen, np.nan_to_num(np.asarray(scan.counts, dtype=np.float64)[which]), 0.0)
    exposure = np.where(seen, np.nan_to_num(np.asarray(scan.exposure, dtype=np.float64)), 0.0)
    centres = [scan.centres(0), scan.centres(1)]
    for axis in (0, 1):
        at = centres[axis]
        share = 0.0 if wanted is None else abs(at[1] - at[0]) / wanted[axis]
        together = max(1, round(1 / share)) if 0 < share < _FINE_STEP[0] else 1
        kept = len(at) // together
        if together == 1 or kept < 2:
            continue
        cut = slice(0, kept * together)
        centres[axis] = at[cut].reshape(kept, together).mean(axis=1)
        counts = _added(counts, 1 + axis, kept, together)
        # A pixel of which a part was not measured is not measured.
        whole = _added((exposure > 0).astype(float), axis, kept, together) == together
        exposure = np.where(whole, _added(exposure, axis, kept, together), 0.0)
        counts = np.where(whole, counts, 0.0)
    return CountGrid(counts, exposure, centres[0], centres[1])


def _added(values: NDArray, axis: int, kept: int, together: int) -> NDArray:
    moved = np.moveaxis(values, axis, -1)[..., : kept * together]
    summed = moved.reshape(*moved.shape[:-1], kept, together).sum(axis=-1)
    return np.moveaxis(summed, -1, axis)


def _unusable(found: Registration, steps: NDArray[np.float64]) -> list[str]:
    """Why the registration cannot be believed."""
    against = []
    error = np.max(np.abs(found.error / steps))
    if found.at_rim:
        against.append("the best shift lies at the end of the range searched")
    if not error <= _WORST_SHIFT_ERROR:
        against.append(
            f"the shift is known to {error:.2f} survey pixels only ({_WORST_SHIFT_ERROR} at most): "
            "too few counts or too little structure"
        )
    if found.lead < _CLEAR:
        against.append("a second shift more than a survey pixel away fits as well")
    common = float(np.median(found.ratio))
    if not 1 / _COMMON_RATIO < common < _COMMON_RATIO:
        against.append(
            f"the survey's rates are {common:.2f} times the fine ones: exposure, drift or damage"
        )
    return against


def _usable_elements(
    found: Registration, low: CountGrid, names: tuple[str, ...]
) -> tuple[NDArray[np.bool_], list[str]]:
    """Elements whose two maps agree within noise, and why the others do not."""
    use = np.ones(len(names), dtype=bool)
    reasons = []
    counts = low.counts[:, found.inside].sum(axis=1)
    common = float(np.median(found.ratio))
    # Reduced chi square of n pixels scatters by the root of 2 / n.
    most = max(_WORST_CHI2, 1 + 5 * np.sqrt(2 / max(int(found.inside.sum()), 1)))
    for k, name in enumerate(names):
        apart = abs(found.ratio[k] / common - 1)
        if counts[k] < _LEAST_COUNTS:
            why = f"{counts[k]:.0f} counts in the survey"
        elif found.chi2[k] > most:
            why = (
                f"the maps differ by more than noise (reduced chi square {found.chi2[k]:.2f}): "
                "drift within a scan, damage, or another probe"
            )
        elif apart > _WORST_RATIO + 4 * found.ratio_error[k] / common:
            why = (
                f"its rate changed by {100 * (found.ratio[k] / common - 1):+.1f} % against the "
                "other elements: dose damage or drift"
            )
        else:
            continue
        use[k] = False
        reasons.append(f"{name} left out: {why}")
    return use, reasons


def _cut(
    low: CountGrid,
    high: CountGrid,
    found: Registration,
    use: NDArray[np.bool_],
    runs: tuple[str, str],
    names: tuple[str, ...],
    factor: int,
    sampling: str,
) -> Pair:
    """The survey around the fine map, with weights from the network's pixels to the fine ones."""
    windows, weights, nearest = [], [], []
    for axis, (at, fine_at) in enumerate(((low.rows, high.rows), (low.cols, high.cols))):
        covered = np.flatnonzero(found.inside.any(axis=1 - axis))
        window = slice(max(0, covered[0] - _MARGIN), covered[-1] + 1 + _MARGIN)
        part, step = at[window], at[1] - at[0]
        own = part[0] - step / 2 + (np.arange(len(part) * factor) + 0.5) * step / factor
        moved = fine_at + found.shift[axis]
        windows.append(window)
        weights.append(axis_weights(moved, own, integrated=False).astype(np.float32))
        nearest.append(np.clip(np.rint((moved - part[0]) / step), 0, len(part) - 1).astype(int))
    light = low.exposure[windows[0], windows[1]]
    measured = light > 0
    coarse = low.counts[use][:, windows[0], windows[1]].astype(np.float32)
    local = light[np.ix_(nearest[0], nearest[1])]
    inside = np.outer(weights[0].any(axis=1), weights[1].any(axis=1))
    ok = inside & (local > 0) & (high.exposure > 0)
    per_count = np.where(ok, high.exposure / np.where(local > 0, local, 1.0), 0.0)
    gain = per_count / found.ratio[use][:, None, None]
    return Pair(
        runs,
        tuple(name for name, ok in zip(names, use, strict=True) if ok),
        factor,
        sampling,
        nearest_measured(coarse, ~measured),
        high.counts[use].astype(np.float32),
        gain.astype(np.float32),
        weights[0],
        weights[1],
    )
