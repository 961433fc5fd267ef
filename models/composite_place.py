"""Where a fine map lies on a survey, and whether their counts say the same there.

A stage does not come back to the same place, a sample drifts, and what a beam has damaged is not what it was. Before
counts are added up the fine map is registered to the survey (`inscan.models.registration`), its rates are brought to
the survey's beam by one factor common to all elements, and what is then left between the two is held against counting
noise (`inscan.models.composite_agreement`).
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from inscan.models.composite_agreement import Agreement, agreement, misfit, worst_chi2
from inscan.models.composite_layer import Layer, Placement
from inscan.models.composite_shift import whole_pixel_shift
from inscan.models.registration import (
    Comparison,
    CountGrid,
    Registration,
    compare,
    likeliest_shift,
)
from inscan.models.superres_input import Sampling

__all__ = ["place"]

_LEAST_OVERLAP = 4  # survey pixels along a side
_BEYOND = 1.0  # survey pixels that are searched beyond the largest shift that is followed
_WORST_ERROR = 0.5  # of a survey pixel
_TOO_SURE = 1.5  # measured shifts scatter so much wider than their errors say
_SAME_STEP = 0.02
_LEAST_ERROR = (
    0.02,
    0.1,
)  # of a survey pixel; where both maps have its step, and what is finer is seen by neither
_CLEAR = 9.0  # in -2 log likelihood, over a second place
_FINER = 1.5  # from this ratio of steps on it matters how the survey samples
_SIDE = 48  # survey pixels of a large map that it is registered by
_MARGIN = 3  # survey pixels around what the fine map can cover


def place(survey: Layer, fine: Layer, *, max_shift: float) -> Placement:
    """Find a fine map on the survey and compare the two.

    Parameters
    ----------
    survey, fine : Layer
        Of the same elements.
    max_shift : float
        Largest shift that is followed, in survey pixels.

    Returns
    -------
    Placement

    Raises
    ------
    ValueError
        When their elements differ.
    """
    if survey.elements != fine.elements:
        raise ValueError(
            f"{fine.name} has {fine.elements}, {survey.name} has {survey.elements}: give the same elements"
        )
    steps = survey.steps
    ratio = np.abs(steps / fine.steps)
    if ratio.min() < 0.98:
        return _unused(
            survey,
            fine,
            f"its step is {1 / ratio.min():.2f} times the survey's: it is no finer map",
        )
    low, corner = _window(survey, fine, max_shift)
    if low is None:
        return _unused(survey, fine, "it does not lie on the survey")
    high = _grid(fine)
    sampling: Sampling = "box"
    near_low, near_high = _telling(low, high, max_shift)
    found = _registered(near_low, near_high, sampling, max_shift)
    if found is not None and ratio.max() >= _FINER and found.chi2.max() > _worst(found):
        # A survey whose beam is narrower than its step saw points, not the mean over its pixels.
        for other in ("point", "fly"):
            tried = _registered(near_low, near_high, other, max_shift)
            if tried is not None and tried.minus_two_log < found.minus_two_log - _CLEAR / max(
                1, int(tried.inside.sum())
            ):
                found, sampling = tried, other
    doubt = _doubt(found, steps)
    beyond = (
        not doubt and found is not None and bool((np.abs(found.shift / steps) > max_shift).any())
    )
    if beyond and found is not None:
        far = found.shift / steps
        reason = (
            f"the place lies {far[0]:.2f} rows and {far[1]:.2f} columns of the survey away, more than the"
            f" {max_shift:g} survey pixels that are followed"
        )
        return _unused(survey, fine, reason, found)
    shift, error = np.zeros(2), np.full(2, np.inf)
    if not doubt and found is not None:
        shift, error = np.asarray(found.shift), np.asarray(found.error)
        # What is not beyond its own error, or explains no more than no drift does, is none.
        shift = np.where(np.abs(shift) > 2 * error, shift, 0.0)
        if shift.any() and not _clearly_better(low, high, sampling, shift):
            shift, error = np.zeros(2), np.hypot(error, shift)
    both = compare(low, high, sampling, shift)
    if min(both.inside.any(axis=1).sum(), both.inside.any(axis=0).sum()) < 1:
        return _unused(survey, fine, doubt or "it covers no pixel of the survey", found)
    same = agreement(
        both.counts, both.expected, both.noise, both.inside, fine, [1 / r for r in fine.relative]
    )
    if doubt and (not same.agrees.all() or (found is not None and found.at_rim)):
        reason = f"{doubt}, and its counts are not the survey's where it was sent"
        return _unused(survey, fine, reason, found)
    seen = not doubt or _recognised(low, high, both, same, found)
    return _placed(survey, fine, found, corner, sampling, shift, error, same, doubt, seen)


def _worst(found: Registration) -> float:
    return worst_chi2(int(found.inside.sum()))


def _telling(low: CountGrid, high: CountGrid, max_shift: float) -> tuple[CountGrid, CountGrid]:
    """The part of a large fine map with most structure, and what it can lie on: enough to register it by."""
    steps = np.array(low.steps)
    sides = [max(8, round(_SIDE / abs(h / s))) for h, s in zip(high.steps, steps, strict=True)]
    shape = high.exposure.shape
    if all(length <= side for length, side in zip(shape, sides, strict=True)):
        return low, high
    stable = np.sqrt(uniform_filter(high.counts, 3, axes=(1, 2), mode="nearest") + 0.375)
    power = (np.gradient(stable, axis=1) ** 2 + np.gradient(stable, axis=2) ** 2).sum(axis=0)
    sides = [min(length, side) for length, side in zip(shape, sides, strict=True)]
    held = uniform_filter(power, tuple(sides), mode="constant")  # type: ignore[arg-type]
    half = [side // 2 for side in sides]
    inner = tuple(slice(h, n - s + h + 1) for h, n, s in zip(half, shape, sides, strict=True))
    best = np.unravel_index(int(np.argmax(held[inner])), held[inner].shape)
    cuts = [slice(int(at), int(at) + side) for at, side in zip(best, sides, strict=True)]
    rows, cols = cuts
    near = CountGrid(
        high.counts[:, rows, cols], high.exposure[rows, cols], high.rows[rows], high.cols[cols]
    )
    return _around(low, near.rows, near.cols, max_shift)[0] or low, near


def _registered(
    low: CountGrid, high: CountGrid, sampling: Sampling, max_shift: float
) -> Registration | None:
    steps = np.abs(np.array(low.steps))
    reach = max_shift + _BEYOND
    same = np.allclose(steps, np.abs(high.steps), rtol=_SAME_STEP)
    if same:
        found = whole_pixel_shift(low, high, reach, least_overlap=_LEAST_OVERLAP)
    else:
        found = likeliest_shift(low, high, sampling, reach, least_overlap=_LEAST_OVERLAP)
    if found is None:
        return None
    return replace(found, error=np.hypot(_TOO_SURE * found.error, _LEAST_ERROR[same] * steps))


def _clearly_better(
    low: CountGrid, high: CountGrid, sampling: Sampling, shift: NDArray[np.float64]
) -> bool:
    """Whether a place explains the survey's counts clearly better than the one where the scan was sent: on the pixels
    that both cover."""
    both = [compare(low, high, sampling, at) for at in (np.zeros(2), shift)]
    shared = both[0].inside & both[1].inside
    if not shared.any():
        return True
    fits = []
    for one in both:
        made = np.maximum(one.expected[:, shared].sum(axis=1), 1e-9)
        ratio = (one.counts[:, shared].sum(axis=1) / made)[:, None, None]
        fits.append(misfit(one.counts, ratio * one.expected, ratio**2 * one.noise)[shared].sum())
    return float(fits[0] - fits[1]) > _CLEAR


def _recognised(
    low: CountGrid, high: CountGrid, both: Comparison, same: Agreement, found: Registration | None
) -> bool:
    """Whether a fine map whose place cannot be measured still shows what the survey has where it was sent.

    It must say more of the survey's counts than that they are even, and no other place may say clearly more.
    """
    inside = both.inside
    even = np.where(inside, both.counts, 0).sum(axis=(1, 2), keepdims=True) / max(1, inside.sum())
    here = misfit(both.counts, same.common * both.expected, same.common**2 * both.noise)
    flat = misfit(both.counts, np.broadcast_to(even, both.counts.shape), np.zeros_like(both.noise))
    if not float((flat - here)[inside].sum()) > _CLEAR:
        return False
    if found is None:
        return True
    best = compare(low, high, "box", np.asarray(found.shift))
    shared = inside & best.inside
    there = misfit(best.counts, same.common * best.expected, same.common**2 * best.noise)
    return bool(shared.any()) and float((here - there)[shared].sum()) < _CLEAR


def _doubt(found: Registration | None, steps: NDArray[np.float64]) -> str:
    """Why a registration cannot be believed, or nothing."""
    if found is None:
        return f"it covers less than {_LEAST_OVERLAP} survey pixels along a side"
    error = float(np.max(np.abs(found.error / steps)))
    if not error <= _WORST_ERROR:
        known = f"to {error:.2f} survey pixels only" if np.isfinite(error) else "not at all"
        return f"its place is known {known}: too few counts or too little structure"
    if found.at_rim:
        return "its place lies at the end of the range searched"
    if found.lead < _CLEAR:
        return "a second place fits as well"
    return ""


def _unused(
    survey: Layer, fine: Layer, reason: str, found: Registration | None = None
) -> Placement:
    shape = (len(survey.elements), *np.shape(survey.exposure))
    return Placement(
        fine,
        False,
        False,
        np.zeros(2) if found is None else np.asarray(found.shift),
        np.full(2, np.inf) if found is None else np.asarray(found.error),
        "box",
        fine.relative[0],
        np.zeros(len(survey.elements), dtype=bool),
        np.zeros(shape, dtype=bool),
        reason,
        _figures(found, survey.steps),
    )


def _placed(
    survey: Layer,
    fine: Layer,
    found: Registration | None,
    corner: tuple[slice, slice],
    sampling: Sampling,
    shift: NDArray[np.float64],
    error: NDArray[np.float64],
    same: Agreement,
    doubt: str,
    seen: bool,
) -> Placement:
    differs = np.zeros((len(survey.elements), *np.shape(survey.exposure)), dtype=bool)
    differs[:, *corner] = same.differs
    told = []
    if doubt:
        what = (
            "what it shows is what the survey has" if seen else "its counts agree with the survey's"
        )
        told.append(f"{doubt}; {what} where it was sent")
    elif shift.any():
        px = shift / survey.steps
        told.append(
            f"it lies {px[0]:+.2f} rows and {px[1]:+.2f} columns of the survey from where it was sent"
        )
    else:
        told.append("it lies where it was sent")
    if sampling != "box":
        told.append(
            f"the survey's counts are explained by {sampling} sampling, not by the mean over its pixels"
        )
    told += same.reasons or ["its counts agree with the survey's within noise"]
    figures = dict(_figures(found, survey.steps)) | {
        "chi2": [round(float(c), 4) for c in same.chi2],
        "ratio": [round(float(r), 5) for r in same.ratio],
        "ratio_error": [round(float(r), 5) for r in same.ratio_error],
        "common": round(same.common, 5),
        "sampling": sampling,
    }
    return Placement(
        fine,
        seen,
        True,
        shift,
        error,
        sampling,
        1 / same.common,
        same.agrees,
        differs,
        "; ".join(told),
        figures,
    )


def _figures(found: Registration | None, steps: NDArray[np.float64]) -> dict[str, object]:
    if found is None:
        return {}
    return {
        "shift_px": [round(float(s), 4) for s in found.shift / steps],
        "shift_px_error": [
            round(float(s), 4) if np.isfinite(s) else None for s in np.abs(found.error / steps)
        ],
        "lead": round(float(found.lead), 2) if np.isfinite(found.lead) else None,
        "overlap_pixels": int(found.inside.sum()),
    }


def _grid(layer: Layer) -> CountGrid:
    seen = layer.seen()
    counts = np.where(seen, np.nan_to_num(np.asarray(layer.counts, dtype=np.float64)), 0.0)
    exposure = np.where(seen, np.nan_to_num(np.asarray(layer.exposure, dtype=np.float64)), 0.0)
    return CountGrid(counts, exposure, _spaced(layer.rows), _spaced(layer.cols))


def _spaced(at: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.linspace(at[0], at[-1], len(at))


def _window(
    survey: Layer, fine: Layer, max_shift: float
) -> tuple[CountGrid | None, tuple[slice, slice]]:
    """The part of the survey that the fine map can cover, with a margin."""
    return _around(_grid(survey), fine.rows, fine.cols, max_shift)


def _around(
    whole: CountGrid, rows_at: NDArray[np.float64], cols_at: NDArray[np.float64], max_shift: float
) -> tuple[CountGrid | None, tuple[slice, slice]]:
    cuts = []
    for at, own, step in zip(
        (whole.rows, whole.cols), (rows_at, cols_at), whole.steps, strict=True
    ):
        reach = (max_shift + _BEYOND + _MARGIN) * abs(step)
        near = np.flatnonzero((at >= own.min() - reach) & (at <= own.max() + reach))
        if near.size < 2:
            return None, (slice(0, 0), slice(0, 0))
        cuts.append(slice(int(near[0]), int(near[-1]) + 1))
    rows, cols = cuts
    part = CountGrid(
        whole.counts[:, rows, cols], whole.exposure[rows, cols], whole.rows[rows], whole.cols[cols]
    )
    return part, (rows, cols)
