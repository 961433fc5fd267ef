"""Denoise an energy stack through the few spectra that its pixels are made of.

All pixels of a XANES stack are mixtures of a handful of spectra. The stack is projected onto
that subspace, the coefficient images are denoised by the shipped network, and the result is
projected back.

References
----------
SUM, subspace modelling for TXM-XANES (singular value decomposition, plug-and-play denoiser on
the coefficients, rank by Stein's unbiased risk): ``recipe="paper"``. The default differs in that
the basis is learned from smoothed halves of the pixels and smoothed along energy, noise may
differ between energies and pixels, each component is kept only if that lowers the risk, and the
rank is at least 2: chemistry lives in the second component, which the risk of the whole stack
hardly sees.
"""

import time
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter

from inscan.models.estimate import Estimate, gaussian_calibration
from inscan.models.flat_drift import Drift, divided, empty_pixels, find_drift
from inscan.models.gram import GramAccumulator
from inscan.models.infer import Denoiser, load_denoiser
from inscan.models.lowrank import (
    Basis,
    Coefficients,
    denoise_coefficients,
    plain_basis,
    split_basis,
    untouched,
)
from inscan.models.noise import tail_sigma
from inscan.models.stack_gaps import completed, filled
from inscan.models.stack_motion import detect_motion, find_motion
from inscan.models.stack_noise import known_noise, measured_noise, whiteness
from inscan.models.stack_resample import noise_kept, put_back
from inscan.models.subspace_report import Account, doubt, doubtful_pixels, stack_report

__all__ = ["denoise"]

Recipe = Literal["best", "paper"]
Choice = Literal["auto", "never"]

_CANDIDATES = {"best": 10, "paper": 6}
_SIGNAL = 6  # eigenvalues left out of the tail that the noise is read from
_BLOCK_BYTES = 32 * 2**20
_LEAST_FREEDOM = 8  # energies beyond the candidates that show the noise of single pixels
_NOISE_SMOOTHING = 3.0  # pixels
_TTA_PIXELS = {8: 200**2, 4: 300**2, 2: 400**2}


@dataclass(frozen=True)
class _Projection:
    """Coefficient images (component, row, col), whitened, and the sum of squares left over."""

    images: NDArray[np.float32]
    left: NDArray[np.float32]


def denoise(
    stack: ArrayLike,
    *,
    variance: ArrayLike | None = None,
    measured: ArrayLike | None = None,
    energies: ArrayLike | None = None,
    register: Choice = "auto",
    flats: ArrayLike | None = None,
    drift: Choice = "auto",
    seed: int = 0,
    recipe: Recipe = "best",
    device: str | None = None,
    gram: GramAccumulator | None = None,
    out: tuple[NDArray[np.floating], NDArray[np.floating]] | None = None,
    denoiser: Denoiser | None = None,
) -> Estimate:
    """Denoise a stack of frames of one place at many energies.

    Parameters
    ----------
    stack : array of float, shape (energy, row, col)
        Transmission (not optical density), or any quantity that is linear in the signal. May be
        a mapped file; it is read in blocks. NaN counts as not measured.
    variance : array of float, optional
        Variance of the noise, broadcastable to the stack: per energy (energy, 1, 1), per pixel
        (row, col), or both. Measured from the stack itself if not given.
    measured : array of bool, shape (energy,), (row, col) or that of the stack, optional
        What was measured.
    energies : array of float, shape (energy,), optional
        eV. Only for a change of magnification with energy: looked for when given.
    register : {"auto", "never"}
        "auto": frames that moved against each other are noticed, found (`models.stack_motion`)
        and put back; the result lies where the median frame does. Frames that did not move are
        not touched. "never": motion is noticed and said, no more. The published recipe has no
        registration.
    flats : array of float, shape (flat, row, col), optional
        Open beam, dark subtracted, several of them: how they differ is how the beam drifts.
    drift : {"auto", "never"}
        "auto": in transmission with empty pixels (those that pass all of the light), what
        multiplies them, flux, slopes and the ways in which the flats differ, is divided out
        where significant (`models.flat_drift`). The published recipe has none of this.
    seed : int
        For the Monte-Carlo estimate of the risk.
    recipe : {"best", "paper"}
        "paper": the published method, on the plain singular vectors, white noise, rank by risk.
    device : str, optional
        "cpu", "cuda"; by default CUDA when present.
    gram : GramAccumulator, optional
        Made from the same array while frames arrived, all of them taken in. Used where
        everything was measured and nothing moved.
    out : (values, sigma), optional
        Arrays of the stack's shape to write into, mapped result files for instance.
    denoiser : Denoiser, optional
        Other weights than the shipped ones, or one that can be told to stop (`Denoiser.check`).

    Returns
    -------
    Estimate
        Of the stack's shape and units. NaN at energies and pixels that were never measured; a
        pixel measured at some energies is predicted at the others when there are enough of them,
        which the report says. `doubtful` is True where more was taken away than noise explains,
        and where values were predicted.

    Raises
    ------
    ValueError
        On wrong shapes, a variance that is not positive, or nothing measured at all.
    """
    began = time.perf_counter()
    data, there = _checked(stack, measured)
    if recipe not in ("best", "paper"):
        raise ValueError(f"recipe must be 'best' or 'paper', got {recipe!r}")
    for name, choice in (("register", register), ("drift", drift)):
        if choice not in ("auto", "never"):
            raise ValueError(f"{name} must be 'auto' or 'never', got {choice!r}")
    if out is not None and any(o.shape != np.shape(stack) for o in out):
        raise ValueError(f"out must be two arrays of shape {np.shape(stack)}")
    grid = _grid(energies, len(data))
    rng = np.random.default_rng(seed)
    used = np.arange(len(data)) if there is None else np.flatnonzero(there.any(axis=(1, 2)))
    if used.size == 0:
        raise ValueError("nothing of the stack was measured")
    grid = None if grid is None else grid[used]
    if there is not None:
        there = there[used]
        data = filled(data[used], there)
    denoiser = denoiser or load_denoiser(device)
    beam = None
    if recipe == "best" and drift == "auto":
        beam = find_drift(data, empty_pixels(data), flats=flats, denoiser=denoiser)
        if beam is not None and beam.found:
            data, gram = divided(data, beam), None
    if gram is None or there is not None or gram.frames < len(data):
        gram = GramAccumulator(data)
        gram.advance(len(data))
    noise = (
        known_noise(variance, np.shape(stack), used)
        if variance is not None
        else measured_noise(data, gram, recipe)
    )
    weights = 1 / noise.energy
    motion, registered = None, False
    if recipe == "best" and noise.pixel.max() > 0:
        motion = detect_motion(data, gram, weights, grid)
        if motion is not None and motion.moving and register == "auto":
            motion = find_motion(data, weights, denoiser, grid)
            if motion.moving:
                registered = True
                data, there = put_back(data, there, motion.shift, motion.scale)
                data = filled(data, there)
                gram = GramAccumulator(data)
                gram.advance(len(data))
    partial: NDArray[np.bool_] | None = None
    missing: NDArray[np.bool_] | None = None
    if there is not None:
        missing = np.asarray(~there.any(axis=0))
        partial = np.asarray(~there.all(axis=0) & there.any(axis=0))
    plain = gram.plain() * weights[:, None] * weights[None, :]
    candidates = min(_CANDIDATES[recipe], len(data))
    levels = [level.scaled(weights) for level in gram.smoothed()]
    if recipe == "best" and levels:
        basis = split_basis(levels, candidates)
    else:
        basis = plain_basis(plain, candidates)
    flat = _project(data, weights, basis)
    ratio = _noise_ratio(plain, data.shape)
    account = Account(recipe, seed, candidates, noise, ratio, basis, motion, registered, beam)
    if variance is None:
        pixel = noise.pixel * ratio * _uneven(flat, missing, len(data) - candidates, recipe)
    else:
        pixel = noise.pixel * (ratio if account.given_wrong or registered else 1.0)
    level = np.broadcast_to(pixel, data.shape[1:]).astype(np.float32)
    spread = np.broadcast_to(level, flat.images.shape)
    if there is not None and partial is not None and partial.any():
        spread = completed(flat.images, data, there, partial, weights, basis.vectors, level)
    tta = next((t for t, most in _TTA_PIXELS.items() if data[0].size <= most), 1)
    if float(level.max()) <= 0:
        # No noise at all (constant or rank-deficient input): nothing to remove.
        kept = untouched(flat.images)
    else:
        kept = denoise_coefficients(
            flat.images,
            np.maximum(spread, 1e-6 * float(spread.max())),
            denoiser,
            rng=rng,
            least=min(2, candidates) if recipe == "best" else 1,
            contiguous=recipe == "paper",
            tta=tta if recipe == "best" else 1,
            real=basis.real,
            unshrink=recipe == "best",
        )
    if motion is not None and registered:
        kept = replace(kept, sigma=kept.sigma / np.float32(noise_kept(motion.shift)))
    white = whiteness(data, weights, basis.vectors[:, kept.kept], kept.images, level)
    values, sigma = out if out is not None else _empty(np.shape(stack))
    _back(values, sigma, used, missing, weights, basis, kept, beam)
    report = stack_report(account, kept, white)
    pixels = doubtful_pixels(kept, flat.images, level)
    # A view: a stack larger than memory has no room for another one.
    doubtful = np.broadcast_to(pixels, values.shape)
    if there is not None and partial is not None:
        doubtful = doubtful.copy()
        doubtful[used] |= ~there & partial
        report["figures"]["pixels_partly_measured"] = int(partial.sum())
        report["figures"]["pixels_not_measured"] = int((~partial & ~there.all(axis=0)).sum())
        report["figures"]["energies_not_measured"] = len(values) - int(used.size)
        if partial.any():
            report["reasons"].append(
                f"{int(partial.sum())} pixels were measured at some energies only; the others "
                "are predicted from the spectra of the whole stack"
            )
    report["doubt"] = doubt(pixels, doubtful, partial)
    report["weights"] = denoiser.weights.name
    report["weights_sha256"] = denoiser.weights.sha256
    report["device"] = str(denoiser.device)
    report["wall_time_s"] = round(time.perf_counter() - began, 3)
    return Estimate(values, sigma, report, gaussian_calibration(), doubtful)


def _grid(energies: ArrayLike | None, count: int) -> NDArray[np.float64] | None:
    if energies is None:
        return None
    grid = np.asarray(energies, dtype=np.float64)
    if grid.shape != (count,) or not (np.isfinite(grid).all() and (grid > 0).all()):
        raise ValueError(f"energies must be {count} finite values above 0, got shape {grid.shape}")
    return grid if count > 1 and np.ptp(grid) > 0 else None


def _checked(
    stack: ArrayLike, measured: ArrayLike | None
) -> tuple[NDArray[np.floating], NDArray[np.bool_] | None]:
    """The stack as a float array, and what was measured where that is not everything."""
    data = np.asanyarray(stack)
    if data.ndim != 3 or data.size == 0:
        raise ValueError(f"stack must have shape (energy, row, col), got {data.shape}")
    if data.dtype.kind not in "fiu":
        raise ValueError(f"stack must hold real numbers, got {data.dtype}")
    there = None
    if measured is not None:
        given = np.asarray(measured, dtype=bool)
        if given.ndim == 1:
            given = given[:, None, None]
        try:
            there = np.broadcast_to(given, data.shape)
        except ValueError:
            raise ValueError(
                f"measured has shape {np.shape(measured)}, the stack {data.shape}"
            ) from None
        if there.all():
            there = None
    if data.dtype.kind == "f" and not all(np.isfinite(frame).all() for frame in data):
        finite = np.isfinite(data)
        there = finite if there is None else there & finite
    return data, there


def _project(data: NDArray[np.floating], weights: NDArray[np.float64], basis: Basis) -> _Projection:
    energies, rows, cols = data.shape
    matrix = (basis.vectors.T * weights).astype(np.float32)
    images = np.empty((matrix.shape[0], rows, cols), dtype=np.float32)
    left = np.empty((rows, cols), dtype=np.float32)
    w = weights.astype(np.float32)
    for band in _bands(rows, energies * cols):
        block = np.asarray(data[:, band], dtype=np.float32).reshape(energies, -1)
        c = matrix @ block
        total = np.einsum("ep,ep,e->p", block, block, w**2)
        images[:, band] = c.reshape(matrix.shape[0], -1, cols)
        left[band] = np.maximum(total - (c**2).sum(axis=0), 0).reshape(-1, cols)
    return _Projection(images, left)


def _uneven(
    flat: _Projection, missing: NDArray[np.bool_] | None, freedom: int, recipe: Recipe
) -> NDArray[np.float64]:
    """Relative noise of the pixels from what the candidates leave, mean square 1."""
    if recipe == "paper" or freedom < _LEAST_FREEDOM or min(flat.left.shape) < 8:
        return np.ones((1, 1))
    left = flat.left.astype(np.float64)
    if missing is not None:
        left[missing] = left[~missing].mean()
    # Smoothed over about a hundred pixels, to a few percent; real structure of the noise (beam
    # profile, thickness, counts) is smoother than that.
    smooth = gaussian_filter(left, _NOISE_SMOOTHING, mode="nearest")
    return np.sqrt(smooth / smooth.mean()) if smooth.mean() > 0 else np.ones((1, 1))


def _noise_ratio(plain: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """Noise seen in the tail of the whitened spectrum over the noise expected there, 1."""
    pixels = shape[1] * shape[2]
    if min(len(plain), pixels) <= 2 * _SIGNAL:
        return 1.0
    return tail_sigma(np.linalg.eigvalsh(plain), pixels, _SIGNAL)


def _back(
    values: NDArray[np.floating],
    sigma: NDArray[np.floating],
    used: NDArray[np.intp],
    missing: NDArray[np.bool_] | None,
    weights: NDArray[np.float64],
    basis: Basis,
    kept: Coefficients,
    beam: Drift | None,
) -> None:
    """From denoised coefficients to the stack and its sigma, in blocks of rows."""
    v = (basis.vectors[:, kept.kept] / weights[:, None]).astype(np.float32)
    # Two sources of error: the coefficients, and the noise of the spectra they multiply.
    square = v**2
    spectra = np.outer(1 / weights**2, basis.noise[kept.kept] ** 2).astype(np.float32)
    rank, rows, cols = kept.images.shape
    # A third where the beam drifted: all pixels share it, and only the spectra average it.
    shared, through = np.zeros((rows, cols), dtype=np.float32), np.zeros(len(used))
    if beam is not None and beam.found:
        shared = beam.relative_variance()
        through = ((v @ (basis.vectors[:, kept.kept].T * weights)) ** 2).sum(axis=1)
    rest = np.setdiff1d(np.arange(len(values)), used)
    for band in _bands(rows, len(values) * cols):
        images = kept.images[:, band].reshape(rank, -1)
        variance = square @ kept.sigma[:, band].reshape(rank, -1) ** 2 + spectra @ images**2
        block = (v @ images).reshape(len(used), -1, cols)
        if through.any():
            variance += (
                through[:, None].astype(np.float32) * shared[band].reshape(-1) * (v @ images) ** 2
            )
        spread = np.sqrt(variance).reshape(len(used), -1, cols)
        if missing is not None:
            block[:, missing[band]] = np.nan
            spread[:, missing[band]] = np.nan
        if rest.size == 0:
            values[:, band], sigma[:, band] = block, spread
        else:
            values[used, band], sigma[used, band] = block, spread
            values[rest, band] = sigma[rest, band] = np.nan


def _empty(shape: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.float32)


def _bands(rows: int, row_size: int) -> list[slice]:
    """Slices of rows that hold a few million values each."""
    at_once = max(1, _BLOCK_BYTES // (4 * max(1, row_size)))
    return [slice(r, min(rows, r + at_once)) for r in range(0, rows, at_once)]
