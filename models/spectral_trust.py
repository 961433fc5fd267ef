"""How far to believe a denoised spectrum image: verdict with reasons, doubt, calibrated intervals."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inscan.models.estimate import Calibration
from inscan.models.trust import LEVELS

__all__ = ["SpectralFit", "SpectralTable", "compare", "judge"]

_BLOCK = 8  # pixels on a side of the regions that are compared with the counts
_GROUPS = 96  # bins are compared in at most so many groups
_BAND_VALUES = 2**22
_FAR = 5.0  # standard deviations between a region's counts and the result's: chance is < 1e-6
_LEAST = 4.0  # expected counts below which a region says nothing
_FLUX_OFF = 0.02
_MUCH_DOUBT = 0.02
_TOO_MUCH_DOUBT = 0.25


@dataclass(frozen=True)
class SpectralTable:
    """Calibration of sigma by expected counts and by sigma relative to counting noise.

    Attributes
    ----------
    count_edges : ndarray of float, shape (a,)
        Expected counts of a voxel over those of the mean voxel, which part the bins.
    spread_edges : ndarray of float, shape (b,)
        Sigma over the value.
    scale : ndarray of float, shape ((a + 1) * (b + 1),)
        Root mean square of error over predicted sigma.
    below, above : ndarray of float, shape (level, (a + 1) * (b + 1))
        Ends of the intervals in calibrated sigmas, for `inscan.models.trust.LEVELS`.
    """

    count_edges: NDArray[np.float64]
    spread_edges: NDArray[np.float64]
    scale: NDArray[np.float64]
    below: NDArray[np.float64]
    above: NDArray[np.float64]

    def bins(
        self,
        values: NDArray[np.floating],
        sigma: NDArray[np.floating],
        mean: float | NDArray[np.floating],
    ) -> NDArray[np.uint8]:
        """Bin of each voxel; `mean` is that of the measured counts over all voxels."""
        height = np.searchsorted(self.count_edges, values / np.maximum(mean, 1e-12))
        spread = np.searchsorted(self.spread_edges, sigma / np.maximum(values, 1e-12))
        return (height * (len(self.spread_edges) + 1) + spread).astype(np.uint8)

    def calibration(self, bins: NDArray[np.uint8]) -> Calibration:
        """What an `Estimate` needs to give intervals."""
        return Calibration(np.asarray(LEVELS), self.below, self.above, bins, 0.0)


@dataclass(frozen=True)
class SpectralFit:
    """A result beside the counts.

    Attributes
    ----------
    flux : float
        Total of the result over that of the counts, less 1.
    pixel_chi2, spectrum_chi2, voxel_chi2 : float
        Reduced chi squares of pixel totals, of the summed spectrum, of single voxels.
    far : ndarray of bool, shape (block row, block col, group)
        Regions in which the counts say something else.
    width : int
        Bins in a group.
    """

    flux: float
    pixel_chi2: float
    spectrum_chi2: float
    voxel_chi2: float
    far: NDArray[np.bool_]
    width: int

    def doubtful(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """The regions in voxels, shape (row, col, bin)."""
        rows, cols, bins = shape
        spread = self.far.repeat(_BLOCK, axis=0)[:rows].repeat(_BLOCK, axis=1)[:, :cols]
        return spread.repeat(self.width, axis=2)[..., :bins]


def compare(
    counts: NDArray[np.number], mask: NDArray[np.bool_], values: NDArray[np.floating]
) -> SpectralFit:
    """Compare a result with the counts: totals, pixels, spectrum, and region by region.

    Parameters
    ----------
    counts, values : ndarray of numbers, shape (row, col, bin)
    mask : ndarray of bool, shape (row, col)
        Where it was measured.

    Returns
    -------
    SpectralFit
    """
    rows, cols, bins = counts.shape
    width = -(-bins // _GROUPS)
    starts = np.arange(0, bins, width)
    edges = np.arange(0, cols, _BLOCK)
    seen_spectrum, made_spectrum = np.zeros(bins), np.zeros(bins)
    pixel_square = voxel_square = 0.0
    far = []
    at_once = max(_BLOCK, _BAND_VALUES // max(1, cols * bins) // _BLOCK * _BLOCK)
    for first in range(0, rows, at_once):
        band = slice(first, first + at_once)
        inside = mask[band][..., None]
        y = np.where(inside, counts[band], 0).astype(np.float32)
        m = np.where(inside, values[band], 0).astype(np.float32)
        seen_spectrum += y.sum(axis=(0, 1), dtype=np.float64)
        made_spectrum += m.sum(axis=(0, 1), dtype=np.float64)
        pixel_square += float(((y.sum(axis=2) - m.sum(axis=2)) ** 2).sum())
        voxel_square += float(np.square(y - m).sum(dtype=np.float64))
        blocks = []
        for z in (y, m):
            z = np.add.reduceat(z, starts, axis=2, dtype=np.float64)
            z = np.add.reduceat(z, edges, axis=1)
            blocks.append(np.add.reduceat(z, np.arange(0, len(z), _BLOCK), axis=0))
        held, expected = blocks
        z = 2 * (np.sqrt(held + 3 / 8) - np.sqrt(expected + 3 / 8))
        far.append((np.abs(z) > _FAR) & (np.maximum(held, expected) >= _LEAST))
    seen, made = float(seen_spectrum.sum()), max(float(made_spectrum.sum()), 1e-9)
    spectrum = np.square(seen_spectrum - made_spectrum).sum() / made
    return SpectralFit(
        flux=made / seen - 1,
        pixel_chi2=pixel_square / made,
        spectrum_chi2=float(spectrum),
        voxel_chi2=voxel_square / made,
        far=np.concatenate(far),
        width=width,
    )


def judge(
    report: dict[str, Any], fit: SpectralFit, shape: tuple[int, ...], whole: bool, per_pixel: float
) -> None:
    """Write figures, doubt, verdict and reasons into the report."""
    rows, cols, bins = shape
    share = float(fit.doubtful(shape).mean())
    report["figures"].update(
        flux_bias=round(fit.flux, 6),
        pixel_chi2=round(fit.pixel_chi2, 4),
        spectrum_chi2=round(fit.spectrum_chi2, 4),
        voxel_chi2=round(fit.voxel_chi2, 4),
    )
    warn, block, doubt = [], [], []
    if not whole:
        warn.append(
            "counts are not whole numbers: they were corrected or scaled before, and their noise "
            "is not Poisson"
        )
    if fit.voxel_chi2 < 0.8:
        warn.append(
            f"the counts scatter less than Poisson counts would ({fit.voxel_chi2:.2f}): they were "
            "smoothed, averaged or scaled before; sigma is too large"
        )
    elif fit.voxel_chi2 > 1.3:
        warn.append(
            f"the counts scatter {fit.voxel_chi2:.2f} times as much around the result as Poisson "
            "counts would: they were scaled, or spectra are missing from the result"
        )
    if fit.pixel_chi2 > 1.3:
        warn.append(
            f"pixel totals differ from the counts by more than counting noise (reduced chi "
            f"square {fit.pixel_chi2:.2f}): structure was lost"
        )
    factor = report["figures"].get("flux_factor", 1 / (1 + fit.flux))
    if abs(factor - 1) > _FLUX_OFF:
        warn.append(
            f"before it was scaled, the result's total was off by {100 / factor - 100:+.1f} %"
        )
    if per_pixel < 1:
        warn.append(f"only {per_pixel:.2g} counts per pixel: fine detail cannot be told from noise")
    if share > 0:
        doubt.append(
            f"regions of {_BLOCK} x {_BLOCK} pixels and {fit.width} bins, {int(fit.far.sum())} of "
            f"{fit.far.size}, hold counts that differ from the result by more than {_FAR:g} "
            "standard deviations: a spectrum of a small place may be missing"
        )
    if share > _TOO_MUCH_DOUBT:
        block.append(f"{100 * share:.0f} % of the result contradict the counts")
    elif share > _MUCH_DOUBT:
        warn.append(f"{100 * share:.0f} % of the result contradict the counts")
    report["doubt"] = {"share": share, "reasons": doubt}
    report["reasons"] = block + warn + report["reasons"]
    report["verdict"] = "block" if block else "warn" if report["reasons"] else "pass"
