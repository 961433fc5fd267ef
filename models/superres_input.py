"""What the super-resolution network sees, the same in training and use, and its forward model.

The forward model says how a coarse scan sees a fine sample: blurred by the probe, then sampled.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import convolve, gaussian_filter, uniform_filter

__all__ = ["ForwardModel", "bicubic", "checked_maps", "map_scale", "network_input"]

Sampling = Literal["box", "point", "fly"]
_FWHM_PER_SIGMA = 2.354820045


def checked_maps(
    counts: ArrayLike, measured: ArrayLike | None
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Counts with 0 where nothing was measured, and where something was.

    Parameters
    ----------
    counts : array of shape (element, row, col)
        >= 0; a pixel that is not finite in any element was not measured.
    measured : array of bool, shape (row, col), optional

    Raises
    ------
    ValueError
        On another shape or negative counts.
    """
    maps = np.asarray(counts, dtype=np.float32)
    if maps.ndim != 3 or maps.size == 0:
        raise ValueError(f"counts must have shape (element, row, col), got {maps.shape}")
    mask = np.asarray(np.isfinite(maps).all(axis=0))
    if measured is not None:
        given = np.asarray(measured, dtype=bool)
        if given.shape != maps.shape[1:]:
            raise ValueError(f"measured has shape {given.shape}, the map {maps.shape[1:]}")
        mask &= given
    maps = np.where(mask, maps, np.float32(0))
    if maps.min() < 0:
        raise ValueError(f"counts must be >= 0, the least is {maps.min():g}")
    return maps, mask


def map_scale(counts: NDArray[np.floating]) -> NDArray[np.float32]:
    """The number each element's map is divided by: about its brightest 3 x 3 neighbourhood.

    Parameters
    ----------
    counts : ndarray of float, shape (..., row, col)

    Returns
    -------
    ndarray of float32, shape (...)
        At least 1 count, so that an empty map stays one.
    """
    smooth = uniform_filter(
        np.asarray(counts, dtype=np.float32), size=3, axes=(-2, -1), mode="nearest"
    )
    return np.maximum(smooth.max(axis=(-2, -1)), 1.0).astype(np.float32)


def bicubic(coarse: torch.Tensor, factor: int) -> torch.Tensor:
    """Bicubic interpolation with pixel areas aligned: corners meet corners, not centres centres.

    Parameters
    ----------
    coarse : Tensor of shape (batch, element, row, col)
    factor : int

    Returns
    -------
    Tensor of shape (batch, element, row * factor, col * factor)
    """
    return F.interpolate(coarse, scale_factor=factor, mode="bicubic", align_corners=False)


def network_input(counts: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Linear map, variance-stabilised map and noise level.

    Parameters
    ----------
    counts : Tensor of shape (batch, element, row, col)
        Poisson counts, >= 0.
    scale : Tensor of shape (batch, element)
        From `map_scale`.

    Returns
    -------
    Tensor of shape (batch, element, 3, row, col)
        counts / scale; the Anscombe transform 2 sqrt(counts + 3/8), whose noise is about 1, over
        its value at the scale; and 1 over that value.
    """
    s = scale[..., None, None]
    top = 2.0 * torch.sqrt(s + 0.375)
    stabilised = 2.0 * torch.sqrt(counts + 0.375) / top
    return torch.stack([counts / s, stabilised, (1.0 / top).expand_as(counts)], dim=2)


@dataclass(frozen=True)
class ForwardModel:
    """How a coarse pixel comes from fine ones: y = (probe * x), then taken by `sampling`.

    Parameters
    ----------
    factor : int
        Fine pixels along the side of a coarse one.
    probe : float or ndarray of shape (row, col) or None
        Full width at half maximum of a gaussian probe in coarse pixels, or its intensity on the
        fine grid; None when the pixel itself is the probe (a beam as wide as the step).
    sampling : {"box", "point", "fly"}
        "box": averaged over the coarse pixel. "point": the value at its centre (step scan).
        "fly": averaged along the fast axis, at the centre of the slow one.
    """

    factor: int
    probe: float | NDArray[np.floating] | None = None
    sampling: Sampling = "box"

    def __post_init__(self) -> None:
        if self.sampling not in ("box", "point", "fly"):
            raise ValueError(f"sampling must be 'box', 'point' or 'fly', got {self.sampling!r}")
        if isinstance(self.probe, np.ndarray):
            if self.probe.ndim != 2 or not np.isfinite(self.probe).all() or self.probe.min() < 0:
                raise ValueError("probe must be a 2-D array of finite intensities >= 0")
            if self.probe.sum() <= 0:
                raise ValueError("probe has no intensity")
        elif self.probe is not None and not self.probe >= 0:
            raise ValueError(f"probe width must be >= 0 coarse pixels, got {self.probe}")

    def kernel(self) -> NDArray[np.float64] | None:
        """Probe on the fine grid, sum 1, or None where it does nothing."""
        if self.probe is None:
            return None
        if isinstance(self.probe, np.ndarray):
            return np.asarray(self.probe, dtype=np.float64) / float(self.probe.sum())
        sigma = self.probe * self.factor / _FWHM_PER_SIGMA
        if sigma == 0:
            return None
        half = max(1, int(np.ceil(3 * sigma)))
        x = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
        kernel = x[:, None] * x[None, :]
        return kernel / kernel.sum()

    def apply(self, fine: NDArray[np.floating]) -> NDArray[np.float64]:
        """Coarse maps that this forward model makes of fine ones.

        Parameters
        ----------
        fine : ndarray of float, shape (..., row * factor, col * factor)

        Returns
        -------
        ndarray of float64, shape (..., row, col)
        """
        x = self._blurred(np.asarray(fine, dtype=np.float64), flipped=False)
        along_rows, along_cols = self._taken(x.shape[-2], x.shape[-1])
        return along_rows @ x @ along_cols.T

    def adjoint(self, coarse: NDArray[np.floating]) -> NDArray[np.float64]:
        """Transpose of `apply`: each coarse value goes back to the fine pixels it came from.

        Parameters
        ----------
        coarse : ndarray of float, shape (..., row, col)

        Returns
        -------
        ndarray of float64, shape (..., row * factor, col * factor)
        """
        c = np.asarray(coarse, dtype=np.float64)
        shape = [n * self.factor for n in c.shape[-2:]]
        along_rows, along_cols = self._taken(*shape)
        return self._blurred(along_rows.T @ c @ along_cols, flipped=True)

    def _blurred(self, x: NDArray[np.float64], *, flipped: bool) -> NDArray[np.float64]:
        if self.probe is None:
            return x
        if not isinstance(self.probe, np.ndarray):
            # A gaussian is its own mirror image and works axis by axis.
            sigma = self.probe * self.factor / _FWHM_PER_SIGMA
            return gaussian_filter(x, sigma, mode="nearest", axes=(-2, -1)) if sigma > 0 else x
        kernel = self.kernel()
        assert kernel is not None
        kernel = kernel[::-1, ::-1] if flipped else kernel
        return convolve(x, kernel.reshape((1,) * (x.ndim - 2) + kernel.shape), mode="nearest")

    def _taken(self, rows: int, cols: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What each coarse row and column takes of the fine ones, (coarse, fine) each."""
        whole = self.sampling == "box"
        return (
            _sampled(rows, self.factor, whole=whole),
            _sampled(cols, self.factor, whole=whole or self.sampling == "fly"),
        )

    def width(self) -> float:
        """Full width at half maximum of the probe in coarse pixels; the pixel itself counts as 1
        when there is no probe and the sampling is a box, else 0."""
        if self.probe is None:
            return 1.0 if self.sampling == "box" else 0.0
        if not isinstance(self.probe, np.ndarray):
            return float(self.probe)
        p = np.asarray(self.probe, dtype=np.float64) / float(self.probe.sum())
        variances = []
        for axis in (0, 1):
            line = p.sum(axis=1 - axis)
            at = np.arange(line.size)
            centre = (line * at).sum()
            variances.append((line * (at - centre) ** 2).sum())
        return float(np.sqrt(np.mean(variances))) * _FWHM_PER_SIGMA / self.factor

    def undersampled(self) -> bool:
        """Whether the scan leaves gaps that the probe never saw: no method can fill them.

        A gaussian probe sampled at steps longer than its full width misses more than half of
        the frequencies that a step scan would need (Nyquist).
        """
        return self.sampling != "box" and self.width() < 1.0


def _sampled(fine: int, factor: int, *, whole: bool) -> NDArray[np.float64]:
    """Means over coarse pixels, or values at their centres, from means over fine ones."""
    coarse = fine // factor
    weights = np.zeros((coarse, fine))
    index = np.arange(coarse)
    if whole:
        taps = [(k, 1.0 / factor) for k in range(factor)]
    elif factor % 2:
        taps = [(factor // 2, 1.0)]
    else:
        # The centre lies between two fine pixels: the cubic through the means of four of them.
        first = factor // 2 - 2
        taps = [(first + k, w) for k, w in enumerate((-1 / 12, 7 / 12, 7 / 12, -1 / 12))]
    for offset, weight in taps:
        np.add.at(weights, (index, np.clip(index * factor + offset, 0, fine - 1)), weight)
    return weights
