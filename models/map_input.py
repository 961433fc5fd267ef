"""What `inscan.models.n2n` is given, checked and brought back to Poisson counts.

Counts that were multiplied by something before (dead time, averaging over frames, normalisation)
scatter more or less than counts do. Where the factor is known it is divided out and enters the
exposure; where it is one number it can be read off the data.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import uniform_filter

from inscan.models.channels import ChannelSum

__all__ = ["MapInput", "checked_input", "checked_like", "counting_unit", "read_off_scatter"]

_CLEAR = 0.15  # relative departure of variance over mean from 1 that is acted on
_SURE = 6.0  # standard errors
_NOISIEST = 8.0  # more than that between channels is no noise of counters: their views differ
_SMOOTH = 0.8  # variance over mean below this is never structure


@dataclass(frozen=True)
class MapInput:
    """Counts ready to be added up.

    Attributes
    ----------
    counts : ndarray of float32, shape (channel, element, row, col)
        0 where not measured.
    exposure : ndarray of float32, same shape
        0 where not measured.
    unit : float
        What was given is this times `counts`.
    whole : bool
        All counts are integers.
    correction : ndarray of float32, shape (channel, element, row, col), or None
        What the given counts had been multiplied by.
    notes : tuple of str
    """

    counts: NDArray[np.float32]
    exposure: NDArray[np.float32]
    unit: float
    whole: bool
    correction: NDArray[np.float32] | None
    notes: tuple[str, ...]


def checked_input(
    counts: ArrayLike,
    exposure: ArrayLike | None,
    measured: ArrayLike | None,
    correction: ArrayLike | None,
) -> MapInput:
    """Check shapes and values, undo corrections; arguments as `inscan.models.n2n.denoise` takes them.

    Raises
    ------
    ValueError
        For shapes that do not fit, negative or infinite counts, corrections that are not above 0.
    """
    y = np.array(counts, dtype=np.float32)
    if y.ndim != 4 or y.size == 0:
        raise ValueError(
            f"counts: expected shape (channel, element, row, col), none of them 0, got {y.shape}"
        )
    if np.isinf(y).any():
        raise ValueError("counts: infinite values; mark what was not measured with NaN")
    if np.nanmin(y, initial=0.0) < 0:
        raise ValueError(
            f"counts: negative values down to {np.nanmin(y):g}; give raw counts, with any "
            "background apart"
        )
    channels, _, rows, cols = y.shape
    light = np.ones((channels, rows, cols), dtype=np.float32)
    if exposure is not None:
        given = np.asarray(exposure, dtype=np.float32)
        try:
            light = np.array(np.broadcast_to(given, light.shape))
        except ValueError:
            raise ValueError(
                f"exposure: expected shape (channel, row, col) = {light.shape}, got {given.shape}"
            ) from None
        light[~np.isfinite(light)] = 0.0
        if light.min() < 0:
            raise ValueError(f"exposure: negative values down to {light.min():g}")
    if measured is not None:
        mask = np.asarray(measured, dtype=bool)
        if mask.shape != (rows, cols):
            raise ValueError(f"measured: expected shape {(rows, cols)}, got {mask.shape}")
        light = light * mask
    full = np.broadcast_to(light[:, None], y.shape)
    factor = _correction(correction, y.shape)
    if factor is not None:
        # A detector that lost one count in three saw the sample for two thirds of the time.
        y = y / factor
        full = full / factor
        # What was an integer before single precision multiplied and divided it is one again.
        near = np.rint(y)
        y = np.where(np.abs(y - near) < 2e-3 + 2e-6 * near, near, y)
    missing = np.isnan(y)
    if missing.any():
        full = np.where(missing, np.float32(0), full)
    y[full <= 0] = 0.0
    unit, notes = 1.0, ()
    whole = bool(np.array_equal(y, np.rint(y)))
    if not whole:
        step = counting_unit(y[full > 0])
        if step is not None:
            unit, whole = step, True
            y = np.rint(y / np.float32(step))
            notes = (
                f"counts are whole multiples of {step:.4g}: they were scaled, and are treated as "
                "counts of that unit",
            )
    return MapInput(y, full, unit, whole, factor, notes)


def _correction(correction: ArrayLike | None, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
    if correction is None:
        return None
    given = np.asarray(correction, dtype=np.float32)
    if given.ndim == 3:
        given = given[:, None]
    try:
        factor = np.array(np.broadcast_to(given, shape))
    except ValueError:
        raise ValueError(
            f"correction: expected shape (channel, row, col) or that of counts, {shape}; "
            f"got {np.shape(correction)}"
        ) from None
    bad = ~(factor > 0) | ~np.isfinite(factor)
    if bad.all():
        raise ValueError("correction: expected factors above 0")
    factor[bad] = 1.0
    return factor


def checked_like(name: str, given: ArrayLike | None, data: MapInput) -> NDArray[np.float32] | None:
    """Background or its variance: checked, and in the units of `data.counts`.

    Parameters
    ----------
    name : str
        "background" or "background_variance": a variance is divided by the factors twice.
    given : array of float, shape of the counts, or None
    data : MapInput

    Raises
    ------
    ValueError
        If the shape does not fit.
    """
    if given is None:
        return None
    array = np.asarray(given, dtype=np.float32)
    if array.shape != data.counts.shape:
        raise ValueError(f"{name}: expected shape {data.counts.shape}, got {array.shape}")
    factor = np.float32(data.unit)
    if data.correction is not None:
        factor = factor * data.correction
    array = array / (factor**2 if name.endswith("variance") else factor)
    return np.where((data.exposure > 0) & np.isfinite(array), array, np.float32(0))


def counting_unit(values: NDArray[np.floating]) -> float | None:
    """The step that all values are whole multiples of, if there is one.

    Parameters
    ----------
    values : ndarray of float, any shape
        0 or more.

    Returns
    -------
    float or None
        None when values come in no steps, or in too few to tell.
    """
    levels = np.unique(np.asarray(values, dtype=np.float64).ravel())
    levels = levels[levels > 0]
    if levels.size < 3 or levels.size > 20_000:
        return None
    # Single precision splits one level into several.
    apart = np.concatenate([[True], np.diff(levels) > 1e-4 * levels[1:]])
    levels = levels[apart]
    steps = np.diff(np.concatenate([[0.0], levels]))
    step = float(steps.min())
    # Each level refines the step that the ones below it suggest.
    for level in levels:
        multiple = round(level / step)
        if multiple > 2000:
            break
        if abs(level / step - multiple) > 0.05:
            return None
        step = level / multiple
    off = np.abs(levels / step - np.rint(levels / step))
    tolerance = 1e-3 + 1e-5 * levels / step
    if levels.size < 3 or (off > tolerance).mean() > 0.01:
        return None
    return step


def read_off_scatter(summed: ChannelSum, whole: bool) -> tuple[float, str | None]:
    """Variance over mean of the counts, where it is clearly not 1, and what to say of it.

    Between channels the sample cancels out, so that both more and less than 1 can be told. In a
    single map structure looks like more; only less than 1 is certain.

    Parameters
    ----------
    summed : ChannelSum
    whole : bool
        Counts are integers; then one channel's small scatter is trusted less.

    Returns
    -------
    float, str or None
        Factor by which the counts should be divided to be Poisson again, and why.
    """
    ratio, error = summed.scatter, summed.scatter_error
    if np.isfinite(error):
        clear = abs(ratio - 1) > _CLEAR and abs(ratio - 1) > _SURE * error
        if clear and 0.01 < ratio < _NOISIEST:
            return ratio, (
                f"between channels the counts scatter {ratio:.2f} times as wide as Poisson counts "
                "(in variance): they were scaled, averaged or are noisy; treated with that noise"
            )
        return 1.0, None
    ratio, error = _finest_scatter(summed.counts)
    if ratio < _SMOOTH and 1 - ratio > _SURE * error and not (whole and ratio > 0.5):
        return ratio, (
            f"the finest differences scatter only {ratio:.2f} times as wide as Poisson counts (in "
            "variance): they were scaled, averaged or smoothed; treated with that noise"
        )
    return 1.0, None


def _finest_scatter(counts: NDArray[np.float32]) -> tuple[float, float]:
    """Variance of diagonal differences over the mean, in the calmer half of the field."""
    if min(counts.shape[1:]) < 8:
        return 1.0, np.inf
    value, power = [], []
    for image in counts.astype(np.float64):
        detail = (image[1:, 1:] - image[1:, :-1] - image[:-1, 1:] + image[:-1, :-1]) / 2
        level = (image[1:, 1:] + image[1:, :-1] + image[:-1, 1:] + image[:-1, :-1]) / 4
        level, square = uniform_filter(level, 8), uniform_filter(detail**2, 8)
        seen = level > max(0.2, float(np.median(level)) / 4)
        if seen.sum() < 64:
            continue
        value.append(float(np.median(square[seen] / level[seen])))
        power.append(float(seen.sum()))
    if not value:
        return 1.0, np.inf
    return float(np.average(value, weights=power)), float(np.sqrt(20.0 / sum(power)))
