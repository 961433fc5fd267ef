"""Which places of an energy stack have another chemistry than the rest: another edge energy, other spectra.

Both searches look for compact places, inside the sample: its border, where frames that moved a
little and mixed pixels make edges wander, says nothing of chemistry.

Spectra are judged by their distance from the mean in units of the sample's own covariance, the
anomaly detector of Reed and Yu (1990), IEEE Trans. Acoustics, Speech and Signal Processing 38,
1760. Its chi-square distance is made normal as Wilson and Hilferty (1931), PNAS 17, 684, do.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import (
    binary_closing,
    binary_erosion,
    maximum_filter,
)

from inscan.models.matched_filter import (
    Integrals,
    ring,
    significance_threshold,
    template,
    templated,
)
from inscan.models.region_boxes import Box, PixelRegion, merged, padded

__all__ = ["edge_regions", "spectrum_regions"]

_SCALES = (1.5, 3.0, 6.0)
_BORDER = 2  # pixels from the sample's border
_LEAST_PIXELS = 50  # of sample: fewer say nothing of what is usual
_LEAST_SIDE = 8  # pixels of sample beside a place that it is held against
_COVERED = 0.3  # share of a template that must lie in the sample
_FLOOR_SIGMA = 0.25  # of the median: no pixel is believed more than so much better than others
_MOST_VALUES = 16_000_000  # energies times pixels; larger stacks are averaged over neighbours
_SIGNS = {1: "above", -1: "below"}


def edge_regions(
    energy: ArrayLike,
    sigma: ArrayLike,
    *,
    scale_px: float | Sequence[float] = _SCALES,
    max_regions: int = 8,
    false_alarm: float = 0.01,
    pad_px: int = 1,
) -> list[PixelRegion]:
    """Box compact places whose edge energy differs from the rest by more than its error explains.

    Parameters
    ----------
    energy, sigma : array of float, shape (row, col)
        Edge energy and its standard deviation, in eV; NaN where there is no edge.
    scale_px : float or sequence of float
        Sigma of the gaussian templates, pixels.
    max_regions : int
        At most so many, the most significant first.
    false_alarm : float
        Probability that noise alone gives any region.
    pad_px : int
        Pixels added around each box, clipped at the field's edge.

    Returns
    -------
    list of PixelRegion
        Boxes do not overlap; `element` is 0. A place must differ from the whole sample, whose
        own spread at the template's size counts as noise, and from what lies on each side of it
        within the sample: of two large halves of different chemistry neither is special.

    Raises
    ------
    ValueError
        On wrong shapes.
    """
    at, spread = np.asarray(energy, dtype=np.float64), np.asarray(sigma, dtype=np.float64)
    if at.ndim != 2 or at.size == 0:
        raise ValueError(f"energy must have shape (row, col), got {at.shape}")
    if spread.shape != at.shape:
        raise ValueError(f"sigma has shape {spread.shape}, the energies {at.shape}")
    core = _inside(np.asarray(np.isfinite(at) & np.isfinite(spread)))
    pixels = int(core.sum())
    if pixels < _LEAST_PIXELS:
        return []
    usual = float(np.median(at[core]))
    least = max(_FLOOR_SIGMA * float(np.median(spread[core])), 1e-9)
    weight = np.where(core, 1 / np.square(np.maximum(np.where(core, spread, 1.0), least)), 0.0)
    off = np.where(core, at - usual, 0.0) * weight
    sums = Integrals(np.stack([weight, off]).astype(np.float32), core[None].astype(np.float32))
    scales = _checked_scales(scale_px)
    threshold = significance_threshold(pixels, scales, 2, false_alarm, sum(at.shape))
    found: list[PixelRegion] = []
    for scale in scales:
        line = template(scale)
        covered = templated(core.astype(np.float64), line)
        possible = templated(np.ones(at.shape), line)
        usable = core & (covered >= _COVERED * possible)
        if usable.sum() < _LEAST_PIXELS:
            continue
        total = np.maximum(templated(weight, line), 1e-30)
        mean = templated(off, line) / total
        variance = templated(weight, line**2) / total**2
        plain = mean / np.sqrt(np.maximum(variance, 1e-30))
        centre = float(np.median(plain[usable]))
        # Errors of neighbours go together, and the sample has a spread of its own.
        wider = max(1.0, float(_robust(plain[usable])))
        inner = int(np.ceil(2.5 * scale))
        beside = ring(sums, inner, inner + max(3, inner))
        for sign, word in _SIGNS.items():
            z = np.where(usable, sign * (plain - centre) / wider, 0.0)
            for side in beside:
                there = np.maximum(side.counts[0], 1e-30)
                apart = (mean - side.counts[1] / there) / np.sqrt(
                    np.maximum(variance + 1 / there, 1e-30)
                )
                told = side.pixels[0] >= _LEAST_SIDE
                z = np.where(told, np.minimum(z, sign * apart / wider), z)
            for row, col in _peaks(z, scale, threshold):
                strength = float(z[row, col])
                reason = (
                    f"edge at {usual + mean[row, col]:.2f} eV within {2 * scale:.2g} pixels of row "
                    f"{row}, column {col}, {abs(float(mean[row, col])):.2g} eV {word} the "
                    f"{usual:.2f} eV of the rest ({strength:.1f} sigma; {threshold:.1f} needed)"
                )
                box = _box(row, col, scale, pad_px, at.shape)
                found.append(
                    PixelRegion(box, strength**2 / 2, strength, (row, col), 0, scale, reason)
                )
    return merged(_apart(found), (at.shape[0], at.shape[1]))[:max_regions]


def spectrum_regions(
    density: ArrayLike,
    energies: ArrayLike,
    sample: ArrayLike,
    *,
    variance: ArrayLike | None = None,
    scale_px: float | Sequence[float] = _SCALES,
    max_regions: int = 8,
    false_alarm: float = 0.01,
    pad_px: int = 1,
) -> list[PixelRegion]:
    """Box compact places whose spectra are unlike the rest of the sample.

    Parameters
    ----------
    density : array of float, shape (energy, row, col)
        Optical density or fluorescence, as measured rather than denoised: what few pixels have in
        common is what a denoiser leaves out first. Pixels with a value that is not finite take no
        part.
    energies : array of float, shape (energy,)
        In eV.
    sample : array of bool, shape (row, col)
        Where there is sample.
    variance : array of float, broadcastable to `density`, optional
        Variance of the noise: places with more of it are not taken for places with odd spectra.
    scale_px, max_regions, false_alarm, pad_px
        As for `edge_regions`.

    Returns
    -------
    list of PixelRegion
        Boxes do not overlap; `element` is 1. How much sample there is does not count, only how
        the spectrum goes: what is proportional to the mean spectrum is taken off first.

    Raises
    ------
    ValueError
        On wrong shapes.
    """
    stack, at = np.asarray(density), np.asarray(energies, dtype=np.float64)
    there = np.asarray(sample, dtype=bool)
    if stack.ndim != 3 or stack.size == 0:
        raise ValueError(f"density must have shape (energy, row, col), got {stack.shape}")
    if at.shape != (len(stack),):
        raise ValueError(f"{at.size} energies for {len(stack)} frames")
    if there.shape != stack.shape[1:]:
        raise ValueError(f"sample has shape {there.shape}, the frames {stack.shape[1:]}")
    field = (stack.shape[1], stack.shape[2])
    factor = int(np.ceil(np.sqrt(stack.size / _MOST_VALUES)))
    rough = None if variance is None else np.broadcast_to(np.asarray(variance), stack.shape)
    there = there & np.isfinite(stack).all(axis=0)
    stack = _averaged(stack, there, factor)
    rough = None if rough is None else _averaged(rough, there, factor)
    there = _whole(there, factor)
    core = _inside(there)
    pixels = int(core.sum())
    if pixels < max(_LEAST_PIXELS, 2 * len(stack)) or len(stack) < 3:
        return []
    # Proportional to the mean: more or less of the same.
    inside = stack[:, core].astype(np.float64)
    mean = inside.mean(axis=1)
    shape = mean / max(float(np.linalg.norm(mean)), 1e-30)
    left = inside - shape[:, None] * (shape @ inside)
    noise = _robust(left)
    noise = np.maximum(noise, 1e-3 * max(float(np.median(noise)), 1e-12))
    white = left / noise[:, None]
    if rough is not None:
        level = np.sqrt((rough[:, core] / np.square(noise)[:, None]).mean(axis=0))
        usual = float(np.median(level))
        if usual > 0:
            white /= np.clip(np.nan_to_num(level / usual, nan=1.0), 0.2, 5.0)
    # The first direction, the one that was taken off, holds nothing but rounding.
    axes = np.linalg.eigh(white @ white.T / pixels)[1][:, 1:]
    along = axes.T @ white
    along /= np.maximum(_robust(along), 1e-3)[:, None]
    along = np.clip(along, -1e6, 1e6).astype(np.float32)
    scales = [max(scale / factor, 0.7) for scale in _checked_scales(scale_px)]
    threshold = significance_threshold(pixels, scales, 1, false_alarm, sum(there.shape))
    found: list[PixelRegion] = []
    for scale in scales:
        line = template(scale)
        weight = templated(core.astype(np.float64), line)
        possible = templated(np.ones(core.shape), line)
        usable = core & (weight >= _COVERED * possible)
        if usable.sum() < _LEAST_PIXELS:
            continue
        # Noise keeps its size however much of the template lies in the sample.
        even = np.sqrt(np.maximum(templated(core.astype(np.float64), line**2), 1e-9))
        distance = np.zeros(core.shape)
        for one in along:
            image = np.zeros(core.shape, dtype=np.float32)
            image[core] = one
            smooth = templated(image, line) / even
            values = smooth[usable]
            # White noise keeps its size; what varies over the sample by nature does not.
            own = max(float(_robust(values)), 1.0)
            distance += np.square((smooth - float(np.median(values))) / own)
        normal = 2 / (9 * len(along))
        root = (np.cbrt(distance / len(along)) - (1 - normal)) / np.sqrt(normal)
        # Few templates fit into a small sample: their own scatter alone is no measure.
        values = root[usable]
        beyond = (root - float(np.median(values))) / max(float(_robust(values)), 1e-9)
        z = np.where(usable, np.minimum(root, beyond), 0.0)
        for row, col in _peaks(z, scale, threshold):
            strength = float(z[row, col])
            kernel = templated(_single(core.shape, row, col), line)[core]
            mostly = left @ kernel / max(float(kernel.sum()), 1e-30)
            k = int(np.argmax(np.abs(mostly) / noise))
            peak = (row * factor + factor // 2, col * factor + factor // 2)
            peak = (min(peak[0], field[0] - 1), min(peak[1], field[1] - 1))
            reason = (
                f"spectra within {2 * scale * factor:.2g} pixels of row {peak[0]}, column "
                f"{peak[1]} are unlike the rest ({strength:.1f} sigma; {threshold:.1f} needed), "
                f"most of all at {at[k]:.2f} eV: {abs(float(mostly[k])):.2g} "
                f"{_SIGNS[1 if mostly[k] > 0 else -1]} what as much of the mean has"
            )
            box = _box(*peak, scale * factor, pad_px, field)
            found.append(
                PixelRegion(box, strength**2 / 2, strength, peak, 1, scale * factor, reason)
            )
    return merged(_apart(found), field)[:max_regions]


def _inside(sample: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The sample without its border; the field's edge is none, nor are single missing pixels."""
    square = np.ones((3, 3), dtype=bool)
    wide = np.pad(sample, _BORDER, mode="edge")
    whole = np.asarray(binary_closing(wide, structure=square), dtype=bool) | wide
    eroded = binary_erosion(whole, structure=square, iterations=_BORDER, border_value=1)
    core = np.asarray(eroded, dtype=bool)
    return core[_BORDER:-_BORDER, _BORDER:-_BORDER] & sample


def _robust(x: NDArray[np.floating]) -> NDArray[np.float64]:
    """Standard deviation over the last axis, by the median distance from the median."""
    apart = np.abs(x - np.median(x, axis=-1, keepdims=True))
    return np.asarray(1.4826 * np.median(apart, axis=-1), dtype=np.float64)


def _averaged(stack: NDArray, there: NDArray[np.bool_], factor: int) -> NDArray[np.float32]:
    """Means over squares of pixels, shape (energy, row, col)."""
    rows, cols = (side // factor for side in there.shape)
    frames = np.empty((len(stack), rows, cols), dtype=np.float32)
    for frame, out in zip(stack, frames, strict=True):
        cut = np.where(there, frame, 0.0)[: rows * factor, : cols * factor]
        out[...] = cut.reshape(rows, factor, cols, factor).mean(axis=(1, 3))
    return frames


def _whole(there: NDArray[np.bool_], factor: int) -> NDArray[np.bool_]:
    """Squares of pixels all of which are there."""
    rows, cols = (side // factor for side in there.shape)
    cut = there[: rows * factor, : cols * factor]
    return np.asarray(cut.reshape(rows, factor, cols, factor).all(axis=(1, 3)))


def _single(shape: tuple[int, ...], row: int, col: int) -> NDArray[np.float64]:
    one = np.zeros(shape)
    one[row, col] = 1.0
    return one


def _peaks(z: NDArray[np.floating], scale: float, threshold: float) -> list[tuple[int, int]]:
    width = 2 * int(np.ceil(2 * scale)) + 1
    highest = (z >= threshold) & (z == maximum_filter(z, size=width))
    return [(int(row), int(col)) for row, col in np.argwhere(highest)]


def _apart(found: Sequence[PixelRegion]) -> list[PixelRegion]:
    """Of what templates of several sizes say of one place, the strongest."""
    kept: list[PixelRegion] = []
    for one in sorted(found, key=lambda one: (-one.score, one.peak)):
        reach = [2 * max(one.scale, other.scale) for other in kept]
        away = [np.hypot(*np.subtract(one.peak, other.peak)) for other in kept]
        if all(far > near for far, near in zip(away, reach, strict=True)):
            kept.append(one)
    return kept


def _box(row: int, col: int, scale: float, pad_px: int, field: tuple[int, ...]) -> Box:
    half = int(np.ceil(2 * scale))
    around = (row - half, row + half + 1, col - half, col + half + 1)
    return padded(around, pad_px, (field[0], field[1]))


def _checked_scales(scale_px: float | Sequence[float]) -> list[float]:
    scales = sorted(float(s) for s in np.atleast_1d(np.asarray(scale_px, dtype=float)))
    if not scales or not all(0 < s < np.inf for s in scales):
        raise ValueError(f"scale_px must be > 0, got {scale_px}")
    return scales
