"""Where a fine map lies on a survey, and whether their counts say the same there.

A stage does not come back to the same place, a sample drifts, and what a beam has damaged is not what it was. Before
counts are added up the fine map is registered to the survey (`inscan.models.registration`), its rates are brought to
the survey's beam by one factor common to all elements, and what is then left between the two is held against counting
noise (`inscan.models.composite_agreement`).

A likelihood that leaves the rate of each element open takes an empty part of the survey for a fainter picture of what
the fine map shows, and a small map of few counts then has optima where nothing is. The sample moves little from one map
to the next: where an earlier one lies is looked at first, and stands unless the counts say otherwise there.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from inscan.models.composite_agreement import Agreement, agreement, worst_chi2
from inscan.models.composite_better import CLEAR, as_good, clearly_better, more_than_even
from inscan.models.composite_layer import Layer, Placement
from inscan.models.composite_shift import whole_pixel_shift
from inscan.models.registration import (
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
_FAR = 36.0  # in -2 log likelihood, for a place that is doubtful over one where an earlier map was found
_NEAR = 0.5  # survey pixels around an earlier map's place; `_BEYOND` more are searched
_FINER = 1.5  # from this ratio of steps on it matters how the survey samples
_SIDE = 48  # survey pixels of a large map that it is registered by
_MARGIN = 3  # survey pixels around what the fine map can cover


def place(
    survey: Layer,
    fine: Layer,
    *,
    max_shift: float,
    known: NDArray[np.float64] | None = None,
) -> Placement:
    """Find a fine map on the survey and compare the two.

    Parameters
    ----------
    survey, fine : Layer
        Of the same elements.
    max_shift : float
        Largest shift that is followed, in survey pixels.
    known : ndarray of float64, shape (2,), optional
        Shift of an earlier map of the same survey, motor units: what is added to positions of the stage, so wherever
        this one was sent.

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
            if tried is not None and tried.minus_two_log < found.minus_two_log - CLEAR / max(
                1, int(tried.inside.sum())
            ):
                found, sampling = tried, other
    doubt = _doubt(found, steps)
    if known is not None and (doubt or found is None or _away(found.shift, known, steps)):
        near = _near_known(near_low, near_high, sampling, known, fine, found, bool(doubt))
        if near is not None:
            found, doubt = near, ""
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
    expected = np.zeros(2) if known is None else np.asarray(known, dtype=np.float64)
    shift, error = expected, np.full(2, np.inf)
    if not doubt and found is not None:
        shift, error = np.asarray(found.shift), np.asarray(found.error)
        # What is not beyond its own error, or explains no more than no further drift does, is none.
        shift = np.where(np.abs(shift - expected) > 2 * error, shift, expected)
        if (shift != expected).any() and not clearly_better(low, high, sampling, shift, expected):
            shift, error = expected, np.hypot(error, shift - expected)
    both = compare(low, high, sampling, shift)
    if min(both.inside.any(axis=1).sum(), both.inside.any(axis=0).sum()) < 1:
        return _unused(survey, fine, doubt or "it covers no pixel of the survey", found)
    same = agreement(
        both.counts, both.expected, both.noise, both.inside, fine, [1 / r for r in fine.relative]
    )
    at_rim = known is None and found is not None and found.at_rim
    if doubt and (not same.agrees.all() or at_rim):
        reason = f"{doubt}, and its counts are not the survey's {_where(known)}"
        return _unused(survey, fine, reason, found)
    if not doubt and known is not None and not same.agrees.all() and _away(shift, known, steps):
        reason = "it seems to lie elsewhere than an earlier map, and its counts are not the survey's there"
        return _unused(survey, fine, reason, found)
    seen = not doubt or (
        more_than_even(both, same) and as_good(low, high, both, same, found, CLEAR)
    )
    return _placed(
        survey, fine, found, corner, sampling, shift, error, same, doubt, seen, _where(known)
    )


def _where(known: NDArray[np.float64] | None) -> str:
    return "where it was sent" if known is None else "where an earlier map lies"


def _away(
    shift: NDArray[np.float64], known: NDArray[np.float64], steps: NDArray[np.float64]
) -> bool:
    """Whether two shifts differ by more than the sample is taken to move from one map to the next."""
    return bool((np.abs((shift - known) / steps) > _NEAR + _BEYOND).any())


def _near_known(
    low: CountGrid,
    high: CountGrid,
    sampling: Sampling,
    known: NDArray[np.float64],
    fine: Layer,
    found: Registration | None,
    doubtful: bool,
) -> Registration | None:
    """The place near that of an earlier map, if the counts agree there and no other place is better.

    `found` is the best of all places, which has to be so much better where it is doubtful itself.
    """
    moved = CountGrid(high.counts, high.exposure, high.rows + known[0], high.cols + known[1])
    local = _registered(low, moved, sampling, _NEAR)
    if local is None or _doubt(local, np.array(low.steps)):
        return None
    local = replace(local, shift=local.shift + known)
    both = compare(low, high, sampling, local.shift)
    if not both.inside.any():
        return None
    same = agreement(
        both.counts, both.expected, both.noise, both.inside, fine, [1 / r for r in fine.relative]
    )
    if not same.agrees.all() or not more_than_even(both, same):
        return None
    best = as_good(low, high, both, same, found, _FAR if doubtful else CLEAR)
    return local if best else None


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
    if found.lead < CLEAR:
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
    where: str,
) -> Placement:
    differs = np.zeros((len(survey.elements), *np.shape(survey.exposure)), dtype=bool)
    differs[:, *corner] = same.differs
    told = []
    if doubt:
        what = (
            "what it shows is what the survey has" if seen else "its counts agree with the survey's"
        )
        told.append(f"{doubt}; {what} {where}")
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
