"""Spectra pixel by pixel: the cube denoised whole, and the maps of the named lines taken from it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inscan.models import spectral
from inscan.models.channels import ChannelSum
from inscan.models.estimate import Estimate, gaussian_calibration
from inscan.models.infer import Denoiser
from inscan.service.processed import ResultArray

_BAND_BYTES = 32 << 20


@dataclass(frozen=True)
class LineMaps:
    """Maps of the named lines.

    Attributes
    ----------
    estimate : Estimate
        counts/s of the channel sum at the reference I0, shape (element, row, col), background removed.
    raw : ndarray of float32
        The same of the counts as they are.
    """

    estimate: Estimate
    raw: NDArray[np.float32]


def denoise_cube(
    arrays: Mapping[str, np.ndarray],
    summed: ChannelSum,
    denoiser: Denoiser,
    progress: Callable[[float], None],
    **parameters: Any,
) -> tuple[NDArray[np.float32], Estimate]:
    """Add up the healthy channels and denoise the cube.

    Parameters
    ----------
    arrays : mapping
        `cube` (channel, row, col, bin) and `measured` (row, col).
    summed : ChannelSum
        Which channels are healthy.

    Returns
    -------
    counts : ndarray of float32, shape (row, col, bin)
        NaN where nothing was measured.
    estimate : Estimate
        Of the same shape, in counts.
    """
    measured = np.asarray(arrays["measured"], dtype=bool) & (summed.exposure > 0).all(axis=0)
    cube, used = arrays["cube"], np.flatnonzero(summed.used)
    counts = np.zeros(cube.shape[1:], dtype=np.float32)
    for channel in used:
        counts += cube[channel]
    counts[~measured] = np.nan
    estimate = spectral.denoise(
        counts,
        denoiser=denoiser,
        progress=lambda share: progress(0.1 + 0.6 * share),
        **parameters,
    )
    return counts, estimate


def line_maps(
    counts: NDArray[np.float32],
    estimate: Estimate,
    weights: NDArray[np.float64],
    light: NDArray[np.float32],
) -> LineMaps:
    """Sum the lines' windows, background under the peak removed.

    The error of a map is at most that of its bins added up without regard to sign: a few spectra make up the cube, so
    that the errors of neighbouring bins go together and do not average out.

    Parameters
    ----------
    weights : ndarray of float64, shape (element, bin)
        `line_weights` of the assembler.
    light : ndarray of float32, shape (row, col)
        Exposure at the reference, 0 where nothing was measured.
    """
    rows, cols, _ = counts.shape
    shape = (len(weights), rows, cols)
    values, sigma, raw = (np.full(shape, np.nan, dtype=np.float32) for _ in range(3))
    doubtful = np.zeros(shape, dtype=bool)
    take, size = weights.T.astype(np.float32), np.abs(weights).T.astype(np.float32)
    peak = (weights > 0).T.astype(np.float32)
    at_once = max(1, _BAND_BYTES // (4 * cols * counts.shape[2]))
    for start in range(0, rows, at_once):
        band = slice(start, start + at_once)
        with np.errstate(divide="ignore", invalid="ignore"):
            per = np.where(light[band] > 0, 1 / light[band], np.nan)[None]
        values[:, band] = np.moveaxis(estimate.values[band] @ take, -1, 0) * per
        sigma[:, band] = np.moveaxis(estimate.sigma[band] @ size, -1, 0) * per
        raw[:, band] = np.moveaxis(counts[band] @ take, -1, 0) * per
        if estimate.doubtful is not None:
            doubt = estimate.doubtful[band].astype(np.float32) @ peak
            doubtful[:, band] = np.moveaxis(doubt > 0, -1, 0)
    report = dict(estimate.report)
    return LineMaps(Estimate(values, sigma, report, gaussian_calibration(), doubtful), raw)


def cube_arrays(counts: NDArray[np.float32], estimate: Estimate) -> list[ResultArray]:
    """The cube as result arrays: `spectra`, `spectra_sigma`, `spectra_doubtful` and `spectra_raw` (row, col, bin)."""
    dims = ("row", "col", "bin")
    found = [
        ResultArray("spectra", dims, "counts", estimate.values),
        ResultArray("spectra_sigma", dims, "counts", estimate.sigma),
        ResultArray("spectra_raw", dims, "counts", counts),
    ]
    if estimate.doubtful is not None:
        found.append(ResultArray("spectra_doubtful", dims, "", estimate.doubtful))
    return found
