"""Denoise a spectrum image: counts per pixel and energy bin, most of them zero.

The default takes the cube for what it is, Poisson mixtures of a few spectra: a subspace in units
in which counting noise is even, coefficient images denoised by the shipped network with the noise
each pixel really has, then the spectra fitted again at full resolution. Nothing is trained.

References
----------
Noise-weighted subspace: Keenan and Kotula, Surface and Interface Analysis 36, 203 (2004).
``recipe="paper"``: 3-D convolutional autoencoder trained on the cube itself with Bernoulli masks
(Taylor, Chen, Zheng, Browning, deep-learning-based blind denoising for EDS, after Noise2Self,
Batson and Royer, ICML 2019), see `inscan.models.autoencoder`.
"""

import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from inscan.models.autoencoder import fit_autoencoder
from inscan.models.estimate import Estimate, gaussian_calibration
from inscan.models.gram import GramAccumulator
from inscan.models.infer import Denoiser, choose_device, load_denoiser
from inscan.models.lowrank import Coefficients, denoise_coefficients, plain_basis, split_basis
from inscan.models.noise import anscombe, inverse_anscombe

__all__ = ["denoise"]

Recipe = Literal["best", "paper"]

_GROUPS = 192  # bins are summed to at most so many for the subspace; the spectra keep them all
_PAPER_GROUPS = 128
_PAPER_STEPS = 400
_CANDIDATES = 16
_LEAST_COUNTS = 20  # a group of bins with fewer counts in the whole cube takes no part
_ROUNDS = 2
_TTA_PIXELS = {8: 200**2, 4: 320**2, 2: 512**2}
_BAND_VALUES = 2**22


def denoise(
    cube: ArrayLike,
    *,
    contrast: ArrayLike | None = None,
    fit_steps: int = 0,
    seed: int = 0,
    recipe: Recipe = "best",
    device: str | None = None,
    progress: Callable[[float], None] | None = None,
) -> Estimate:
    """Denoise counts in (row, col, bin).

    Parameters
    ----------
    cube : array of shape (row, col, bin)
        Counts >= 0. A pixel with any bin not finite counts as not measured.
    contrast : array of shape (row, col), optional
        Another, better image of the same place (HAADF, total current): its edges guide those
        of the result.
    fit_steps : int
        For ``recipe="paper"``: training steps on this cube, 0 for that recipe's own number
        (400). The default recipe fits nothing and takes 0 only.
    seed : int
    recipe : {"best", "paper"}
    device : str, optional
    progress : callable, optional
        Told the share done, 0 to 1.

    Returns
    -------
    Estimate
        Expected counts, shape (row, col, bin), >= 0; NaN where nothing was measured.

    Raises
    ------
    ValueError
        On wrong shapes, negative counts, an empty cube, or steps that the recipe does not take.
    """
    began = time.perf_counter()
    counts, mask = _checked(cube)
    if recipe not in ("best", "paper"):
        raise ValueError(f"recipe must be 'best' or 'paper', got {recipe!r}")
    if fit_steps < 0 or (recipe == "best" and fit_steps > 0):
        raise ValueError(
            f"fit_steps={fit_steps}: recipe 'best' fits nothing; use fit_steps=0, or "
            "recipe='paper' with fit_steps >= 0"
        )
    guide = _guide(contrast, mask)
    report: dict[str, Any] = {
        "method": "spectral",
        "recipe": recipe,
        "seed": seed,
        "weights": None,
        "weights_sha256": None,
        "figures": {
            "counts_per_pixel": float(counts.sum(dtype=np.float64) / max(1, int(mask.sum()))),
            "zero_share": float(1 - np.count_nonzero(counts) / counts.size),
            "guided": guide is not None,
        },
        "verdict": "pass",
        "reasons": [],
    }
    if recipe == "paper":
        values, sigma = _paper(
            counts, guide, fit_steps or _PAPER_STEPS, seed, device, report, progress
        )
    else:
        denoiser = load_denoiser(device)
        report["weights"] = denoiser.weights.name
        report["weights_sha256"] = denoiser.weights.sha256
        report["device"] = str(denoiser.device)
        values, sigma = _best(counts, mask, guide, denoiser, seed, report, progress)
    _judge(report, counts, mask, values)
    if not mask.all():
        values[~mask] = np.nan
        sigma[~mask] = np.nan
        report["figures"]["pixels_not_measured"] = int((~mask).sum())
    report["wall_time_s"] = round(time.perf_counter() - began, 3)
    return Estimate(values, sigma, report, gaussian_calibration(floor=0.0))


def _checked(cube: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    counts = np.asarray(cube)
    if counts.ndim != 3 or counts.size == 0:
        raise ValueError(f"cube must have shape (row, col, bin), got {counts.shape}")
    counts = counts.astype(np.float32, copy=False)
    mask = np.asarray(np.isfinite(counts).all(axis=2))
    if not mask.all():
        counts = np.where(mask[..., None], counts, 0)
    if counts.min() < 0:
        raise ValueError(f"counts must be >= 0, the least is {counts.min():g}")
    if not counts.any():
        raise ValueError("the cube holds no counts")
    return counts, mask


def _guide(contrast: ArrayLike | None, mask: NDArray[np.bool_]) -> NDArray[np.float32] | None:
    if contrast is None:
        return None
    image = np.asarray(contrast, dtype=np.float32)
    if image.shape != mask.shape:
        raise ValueError(f"contrast has shape {image.shape}, the cube's pixels {mask.shape}")
    if not np.isfinite(image).any():
        raise ValueError("contrast holds no finite value")
    return np.where(np.isfinite(image), image, np.nanmedian(image)).astype(np.float32)


def _grouped(
    counts: NDArray[np.float32], most: int
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Neighbouring bins summed; (group, row, col), and the group of every bin."""
    bins = counts.shape[2]
    width = -(-bins // most)
    starts = np.arange(0, bins, width)
    return (
        np.ascontiguousarray(np.add.reduceat(counts, starts, axis=2).transpose(2, 0, 1)),
        np.arange(bins) // width,
    )


def _best(
    counts: NDArray[np.float32],
    mask: NDArray[np.bool_],
    guide: NDArray[np.float32] | None,
    denoiser: Denoiser,
    seed: int,
    report: dict[str, Any],
    progress: Callable[[float], None] | None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    groups, _ = _grouped(counts, _GROUPS)
    total = groups.sum(axis=(1, 2), dtype=np.float64)
    groups, total = groups[total >= _LEAST_COUNTS], total[total >= _LEAST_COUNTS]
    if len(groups) == 0:
        groups = counts.sum(axis=2)[None]
        total = groups.sum(axis=(1, 2), dtype=np.float64)
    tta = next((t for t, most in _TTA_PIXELS.items() if mask.size <= most), 1)
    amount = _amount(groups.sum(axis=0), denoiser, guide)
    # In these units every group has unit noise in an average pixel.
    weights = 1 / np.sqrt(total / mask.sum())
    relative = np.maximum(amount / max(float(amount[mask].mean()), 1e-9), 0.02)
    even = groups * weights[:, None, None].astype(np.float32) / np.sqrt(relative)
    gram = GramAccumulator(even)
    gram.advance(len(even))
    candidates = min(_CANDIDATES, len(even))
    levels = gram.smoothed()
    basis = split_basis(levels, candidates) if levels else plain_basis(gram.plain(), candidates)
    if progress is not None:
        progress(0.3)
    v = basis.vectors
    images = np.tensordot((v.T * weights).astype(np.float32), groups, axes=1)
    square = v**2 * weights[:, None] ** 2  # counts of each group to variance of each image
    level = np.broadcast_to(np.sqrt(relative), images.shape).astype(np.float32)
    kept = None
    for turn in range(_ROUNDS):
        kept = denoise_coefficients(
            images,
            level,
            denoiser,
            rng=np.random.default_rng([seed, turn]),
            least=1,
            contiguous=False,
            tta=tta if turn == _ROUNDS - 1 else 1,
            real=basis.real,
            guide=guide,
        )
        if progress is not None:
            progress(0.3 + 0.5 * (turn + 1) / _ROUNDS)
        if turn + 1 < _ROUNDS:
            # The noise of each image at each pixel follows from the spectrum expected there.
            expected = np.tensordot(v[:, kept.kept] / weights[:, None], kept.images, axes=1)
            variance = np.tensordot(square.T, np.maximum(expected, 0), axes=1)
            floor = 0.02 * variance.mean(axis=(1, 2), keepdims=True)
            level = np.sqrt(np.maximum(variance, floor)).astype(np.float32)
    assert kept is not None
    spectra, spectra_noise = _spectra(counts, mask, kept.images, relative)
    report["figures"].update(
        rank=len(kept.images),
        components=[int(k) for k in kept.kept],
        basis_smoothing_px=round(basis.smoothing, 3),
        components_tried=[int(k) for k in kept.tried],
        risk_gain=[round(float(g), 5) for g in kept.gain],
    )
    return _back(counts.shape, spectra, spectra_noise, kept)


def _amount(
    total: NDArray[np.float32], denoiser: Denoiser, guide: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """Expected counts of each pixel over all bins, denoised."""
    stable = anscombe(total)[None]
    clean = denoiser.denoise_gaussian(stable, 1.0, guide=guide)
    return inverse_anscombe(clean)[0].astype(np.float32)


def _spectra(
    counts: NDArray[np.float32],
    mask: NDArray[np.bool_],
    images: NDArray[np.float32],
    relative: NDArray[np.floating],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weighted least squares of every bin on the denoised images.

    Returns
    -------
    spectra : ndarray of float64, shape (bin, component)
    noise : ndarray of float64, shape (bin, component)
        Their standard deviations.
    """
    weight = (mask / relative).reshape(-1)
    d = images.reshape(len(images), -1).astype(np.float64)
    normal = (d * weight) @ d.T
    normal += 1e-9 * np.trace(normal) * np.eye(len(normal))
    inverse = np.linalg.inv(normal)
    y = counts.reshape(-1, counts.shape[2])
    moment = (d * weight).astype(np.float32) @ y
    spectra = (inverse @ moment).T
    # Poisson: variance of the counts is about relative * mean of the bin, which the weights undo.
    mean = y.sum(axis=0, dtype=np.float64) / max(1, int(mask.sum()))
    noise = np.sqrt(np.outer(mean, np.diagonal(inverse)))
    return spectra, noise


def _back(
    shape: tuple[int, ...],
    spectra: NDArray[np.float64],
    noise: NDArray[np.float64],
    kept: Coefficients,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Expected counts and sigma, shape (row, col, bin), in bands of rows."""
    rows, cols, bins = shape
    values, sigma = np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.float32)
    s = spectra.astype(np.float32).T
    square, own = s**2, noise.astype(np.float32).T ** 2
    at_once = max(1, _BAND_VALUES // (cols * bins))
    for r in range(0, rows, at_once):
        band = slice(r, r + at_once)
        d = kept.images[:, band].reshape(len(s), -1).T
        e = kept.sigma[:, band].reshape(len(s), -1).T
        values[band] = np.maximum(d @ s, 0).reshape(-1, cols, bins)
        sigma[band] = np.sqrt(e**2 @ square + d**2 @ own).reshape(-1, cols, bins)
    return values, sigma


def _paper(
    counts: NDArray[np.float32],
    guide: NDArray[np.float32] | None,
    steps: int,
    seed: int,
    device: str | None,
    report: dict[str, Any],
    progress: Callable[[float], None] | None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    groups, of_bin = _grouped(counts, _PAPER_GROUPS)
    fit = fit_autoencoder(
        groups, guide, steps=steps, seed=seed, device=choose_device(device), progress=progress
    )
    report["figures"].update(fit_steps=steps, held_out_nll=fit.held_out, parameters=fit.parameters)
    # Within a group of bins, the shape of the mean spectrum: the network saw only their sum.
    mean = counts.sum(axis=(0, 1), dtype=np.float64)
    whole = np.bincount(of_bin, mean)
    share = np.where(whole[of_bin] > 0, mean / np.maximum(whole[of_bin], 1e-30), 0)
    values = (fit.values.transpose(1, 2, 0)[..., of_bin] * share).astype(np.float32)
    sigma = (fit.sigma.transpose(1, 2, 0)[..., of_bin] * share).astype(np.float32)
    return values, sigma


def _judge(
    report: dict[str, Any],
    counts: NDArray[np.float32],
    mask: NDArray[np.bool_],
    values: NDArray[np.float32],
) -> None:
    """Compare the totals of pixels and bins with the counts."""
    seen, made = counts.sum(axis=2)[mask], values.sum(axis=2)[mask]
    flux = float(made.sum(dtype=np.float64) / seen.sum(dtype=np.float64) - 1)
    chi2 = float(((seen - made) ** 2).sum() / max(float(made.sum()), 1e-9))
    by_bin = counts.sum(axis=(0, 1), dtype=np.float64)
    by_bin_made = values[mask].sum(axis=0, dtype=np.float64)
    spectrum = float(((by_bin - by_bin_made) ** 2).sum() / max(by_bin_made.sum(), 1e-9))
    report["figures"].update(
        flux_bias=round(flux, 6), pixel_chi2=round(chi2, 4), spectrum_chi2=round(spectrum, 4)
    )
    if abs(flux) > 0.01:
        report["verdict"] = "warn"
        report["reasons"].append(
            f"the result holds {100 * (1 + flux):.1f} % of the counts measured"
        )
    if chi2 > 1.3:
        report["verdict"] = "warn"
        report["reasons"].append(
            f"pixel totals differ from the counts by more than counting noise (reduced chi "
            f"square {chi2:.2f}): structure was lost"
        )
