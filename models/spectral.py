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
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from inscan.models.autoencoder import fit_autoencoder
from inscan.models.estimate import Calibration, Estimate, gaussian_calibration
from inscan.models.infer import Denoiser, choose_device, load_denoiser
from inscan.models.spectral_calibration import TABLE
from inscan.models.spectral_subspace import bands, fit_subspace, grouped, write_back
from inscan.models.spectral_trust import compare, judge

__all__ = ["denoise"]

Recipe = Literal["best", "autoencoder", "paper"]

_PAPER_GROUPS = 128
_PAPER_STEPS = 400


def denoise(
    cube: ArrayLike,
    *,
    contrast: ArrayLike | None = None,
    fit_steps: int = 0,
    seed: int = 0,
    recipe: Recipe = "best",
    device: str | None = None,
    progress: Callable[[float], None] | None = None,
    denoiser: Denoiser | None = None,
    out: tuple[NDArray[np.floating], NDArray[np.floating]] | None = None,
) -> Estimate:
    """Denoise counts in (row, col, bin).

    Parameters
    ----------
    cube : array of shape (row, col, bin)
        Counts >= 0, of any integer or float type. A pixel with any bin not finite counts as not
        measured. May be a mapped file: the default recipe reads it in bands of rows.
    contrast : array of shape (row, col), optional
        Another, better image of the same place (HAADF, total current). It guides the
        denoising of each component only where the counts say that it helps.
    fit_steps : int
        For the recipes with an autoencoder: training steps on this cube, 0 for their own number
        (400). The default recipe fits nothing and takes 0 only.
    seed : int
        The same seed, device and number of threads give the same bytes.
    recipe : {"best", "autoencoder", "paper"}
        "paper": Noise2Self as published (hidden voxels set to zero, squared error).
        "autoencoder": the same network with what it needs where most voxels are zero (what is
        left is scaled up, likelihood of the hidden counts).
    device : str, optional
        "cpu", "cuda"; by default CUDA when present.
    progress : callable, optional
        Told the share done, 0 to 1.
    denoiser : Denoiser, optional
        Other weights than the shipped ones, for the default recipe.
    out : (values, sigma), optional
        Arrays of the cube's shape to write into, mapped result files for instance.

    Returns
    -------
    Estimate
        Expected counts, shape (row, col, bin), >= 0; NaN where nothing was measured. `doubtful`
        marks regions and bins where the counts contradict the result.

    Raises
    ------
    ValueError
        On wrong shapes, negative counts, an empty cube, or steps that the recipe does not take.
    """
    began = time.perf_counter()
    if recipe not in get_args(Recipe):
        raise ValueError(f"recipe must be one of {', '.join(get_args(Recipe))}, got {recipe!r}")
    if fit_steps < 0 or (recipe == "best" and fit_steps > 0):
        raise ValueError(
            f"fit_steps={fit_steps}: recipe 'best' fits nothing; use fit_steps=0, or "
            "recipe='autoencoder' or 'paper' with fit_steps >= 0"
        )
    counts, mask, total, whole = _checked(cube)
    if out is not None and any(o.shape != counts.shape for o in out):
        raise ValueError(f"out must be two arrays of shape {counts.shape}")
    guide = _guide(contrast, mask)
    values, sigma = out or tuple(np.empty(counts.shape, dtype=np.float32) for _ in range(2))
    report: dict[str, Any] = {
        "method": "spectral",
        "recipe": recipe,
        "seed": seed,
        "weights": None,
        "weights_sha256": None,
        "figures": {
            "counts_per_pixel": total / max(1, int(mask.sum())),
            "guided": guide is not None,
        },
        "verdict": "pass",
        "reasons": [],
    }
    if recipe == "best":
        denoiser = denoiser or load_denoiser(device)
        report["weights"] = denoiser.weights.name
        report["weights_sha256"] = denoiser.weights.sha256
        report["device"] = str(denoiser.device)
        fit = fit_subspace(counts, mask, guide, denoiser, seed, progress)
        made = write_back(fit, values, sigma, mask)
        # The total is what counting knows best; positivity and the network shift it a little.
        factor = total / made if made > 0 else 1.0
        for band in bands(counts.shape):
            values[band] *= factor
            sigma[band] *= factor
        report["figures"].update(fit.figures, flux_factor=round(factor, 5))
        calibration = _calibrated(values, sigma, total / max(1, mask.sum() * counts.shape[2]))
    else:
        _autoencoded(
            values, sigma, counts, mask, guide, recipe, fit_steps, seed, device, report, progress
        )
        report["reasons"].append("sigma of this recipe is the scatter between masks, uncalibrated")
        calibration = gaussian_calibration(floor=0.0)
    fit = compare(counts, mask, values)
    judge(report, fit, counts.shape, whole, report["figures"]["counts_per_pixel"])
    doubtful = fit.doubtful(counts.shape)
    if not mask.all():
        for z in (values, sigma):
            z[~mask] = np.nan
        doubtful = doubtful & mask[..., None]
        report["figures"]["pixels_not_measured"] = int((~mask).sum())
    if progress is not None:
        progress(1.0)
    report["wall_time_s"] = round(time.perf_counter() - began, 3)
    return Estimate(values, sigma, report, calibration, doubtful)


def _checked(
    cube: ArrayLike,
) -> tuple[NDArray[np.number], NDArray[np.bool_], float, bool]:
    """The cube as it is, where it was measured, its total, and if all counts are integers."""
    counts = np.asanyarray(cube)
    if counts.ndim != 3 or counts.size == 0:
        raise ValueError(f"cube must have shape (row, col, bin), none of them 0: {counts.shape}")
    if counts.dtype.kind not in "fiub":
        raise ValueError(f"cube must hold real numbers, got {counts.dtype}")
    mask = np.ones(counts.shape[:2], dtype=bool)
    total, least, whole = 0.0, 0.0, True
    for band in bands(counts.shape):
        block = counts[band]
        if counts.dtype.kind == "f":
            mask[band] = np.isfinite(block).all(axis=2)
            block = block[mask[band]]
            whole = whole and bool(np.array_equal(block, np.rint(block)))
        if block.size:
            total += float(block.sum(dtype=np.float64))
            least = min(least, float(block.min()))
    if least < 0:
        raise ValueError(f"counts must be >= 0, the least is {least:g}")
    if not total > 0:
        raise ValueError("the cube holds no counts")
    return counts, mask, total, whole


def _guide(contrast: ArrayLike | None, mask: NDArray[np.bool_]) -> NDArray[np.float32] | None:
    if contrast is None:
        return None
    image = np.asarray(contrast, dtype=np.float32)
    if image.shape != mask.shape:
        raise ValueError(f"contrast has shape {image.shape}, the cube's pixels {mask.shape}")
    if not np.isfinite(image).any():
        raise ValueError("contrast holds no finite value")
    return np.where(np.isfinite(image), image, np.nanmedian(image)).astype(np.float32)


def _calibrated(
    values: NDArray[np.floating], sigma: NDArray[np.floating], mean: float
) -> Calibration:
    """Bring sigma to its true size, in place; and the intervals that go with it."""
    bins = np.empty(values.shape, dtype=np.uint8)
    for band in bands(values.shape):
        bins[band] = TABLE.bins(values[band], sigma[band], mean)
        sigma[band] *= TABLE.scale[bins[band]]
    return TABLE.calibration(bins)


def _autoencoded(
    values: NDArray[np.floating],
    sigma: NDArray[np.floating],
    counts: NDArray[np.number],
    mask: NDArray[np.bool_],
    guide: NDArray[np.float32] | None,
    recipe: Recipe,
    fit_steps: int,
    seed: int,
    device: str | None,
    report: dict[str, Any],
    progress: Callable[[float], None] | None,
) -> None:
    """Fit the autoencoder to groups of bins and spread its answer over the bins."""
    groups = grouped(counts, mask, _PAPER_GROUPS)
    steps = fit_steps or _PAPER_STEPS
    fit = fit_autoencoder(
        groups,
        guide,
        steps=steps,
        seed=seed,
        device=choose_device(device),
        counting=recipe == "autoencoder",
        progress=progress,
    )
    report["figures"].update(fit_steps=steps, held_out_loss=fit.held_out, parameters=fit.parameters)
    # Within a group of bins, the shape of the mean spectrum: the network saw only their sum.
    width = -(-counts.shape[2] // _PAPER_GROUPS)
    of_bin = np.arange(counts.shape[2]) // width
    mean = np.where(mask[..., None], counts, 0).sum(axis=(0, 1), dtype=np.float64)
    whole = np.bincount(of_bin, mean)
    share = np.where(whole[of_bin] > 0, mean / np.maximum(whole[of_bin], 1e-30), 0)
    values[:] = fit.values.transpose(1, 2, 0)[..., of_bin] * share
    sigma[:] = fit.sigma.transpose(1, 2, 0)[..., of_bin] * share
