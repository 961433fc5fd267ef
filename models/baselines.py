"""Simpler methods beside which n2n is shown, each at its best.

"Oracle" methods choose their parameter with the truth, for each element: nobody can do that at a
beamline, and it bounds from above what tuning them could give.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, median_filter
from scipy.optimize import fminbound
from skimage.restoration import denoise_tv_chambolle

from inscan.models.noise import anscombe, inverse_anscombe

__all__ = ["gaussian", "median", "oracle_gaussian", "oracle_tv", "oracle_widths"]

_WIDTHS = np.concatenate([np.arange(0.3, 4.0, 0.1), np.arange(4.0, 16.1, 1.0)])
_TV_STEPS = 200


def median(counts: NDArray[np.floating]) -> NDArray[np.float64]:
    """Median of 3 x 3 pixels; `counts` has shape (element, row, col)."""
    return median_filter(np.asarray(counts, dtype=np.float64), (1, 3, 3))


def oracle_widths(counts: NDArray[np.floating], truth: NDArray[np.floating]) -> NDArray[np.float64]:
    """Standard deviation in pixels, shape (element,), of the Gaussian with the least squared error.

    Parameters
    ----------
    counts, truth : ndarray of float, shape (element, row, col)
        Counts, and their mean.
    """
    best = []
    for noisy, true in zip(np.asarray(counts, dtype=np.float64), truth, strict=True):
        errors = [_error(gaussian_filter(noisy, width), true) for width in _WIDTHS]
        best.append(_WIDTHS[int(np.argmin(errors))])
    return np.array(best)


def gaussian(counts: NDArray[np.floating], widths: NDArray[np.floating]) -> NDArray[np.float64]:
    """Gaussian filter of a width for each element; `counts` has shape (element, row, col)."""
    maps = np.asarray(counts, dtype=np.float64)
    return np.stack([gaussian_filter(y, width) for y, width in zip(maps, widths, strict=True)])


def oracle_gaussian(
    counts: NDArray[np.floating], truth: NDArray[np.floating]
) -> NDArray[np.float64]:
    """`gaussian` with `oracle_widths`."""
    return gaussian(counts, oracle_widths(counts, truth))


def oracle_tv(counts: NDArray[np.floating], truth: NDArray[np.floating]) -> NDArray[np.float64]:
    """Total variation of the stabilised counts, of the weight with the least squared error.

    Chambolle, *J. Math. Imaging Vis.* 20 (2004) 89, as scikit-image has it, between the Anscombe
    transform and its unbiased inverse.

    Parameters
    ----------
    counts, truth : ndarray of float, shape (element, row, col)
        Counts, and their mean.
    """
    out = []
    for noisy, true in zip(np.asarray(counts, dtype=np.float64), truth, strict=True):
        stabilised = anscombe(noisy)

        def smooth(log_weight: float, stabilised: NDArray = stabilised) -> NDArray[np.float64]:
            weight = float(np.exp(log_weight))
            image = denoise_tv_chambolle(stabilised, weight, max_num_iter=_TV_STEPS)
            return inverse_anscombe(image)

        best = fminbound(
            lambda w, smooth=smooth, true=true: _error(smooth(w), true),
            np.log(0.2),
            np.log(20.0),
            xtol=0.05,
        )
        out.append(smooth(float(np.asarray(best))))
    return np.stack(out)


def _error(image: NDArray[np.floating], truth: NDArray[np.floating]) -> float:
    return float(np.square(image - truth).mean())
