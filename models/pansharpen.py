"""Let a contrast image guide the denoising of coefficient images, where the counts say it helps.

An unrelated contrast image must leave no trace. Each coefficient image is therefore denoised
with and without it, and the guided one is taken only where its unbiased risk (Monte-Carlo SURE)
is lower by more than that estimate's own error.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from inscan.models.infer import Denoiser
from inscan.models.lowrank import Coefficients, denoise_coefficients

__all__ = ["denoise_guided"]

_BETTER = 0.97  # of the risk without guide: a tie goes to the counts alone


def denoise_guided(
    images: NDArray[np.float32],
    noise: NDArray[np.float32],
    denoiser: Denoiser,
    guide: NDArray[np.float32] | None,
    *,
    seed: Sequence[int],
    tta: int,
) -> tuple[Coefficients, NDArray[np.bool_]]:
    """Denoise coefficient images, each with the guide or without, whichever has the lower risk.

    Parameters
    ----------
    images, noise : ndarray of float32, shape (component, row, col)
        Coefficients and the standard deviation of their noise. All are kept.
    denoiser : Denoiser
    guide : ndarray of float32, shape (row, col), optional
    seed : sequence of int
        Both ways use the same Monte-Carlo probe, so that their risks differ by the guide alone.
    tta : int
        Symmetries to average.

    Returns
    -------
    coefficients : Coefficients
    guided : ndarray of bool, shape (component,)
        For which components the guide was used.
    """
    plain = _denoised(images, noise, denoiser, None, seed, tta)
    if guide is None or float(guide.std()) <= 1e-6 * float(np.abs(guide).max()):
        return plain, np.zeros(len(images), dtype=bool)
    led = _denoised(images, noise, denoiser, guide, seed, tta)
    guided = led.risk < _BETTER * plain.risk
    which = guided[:, None, None]
    values, sigma = (
        np.where(which, a, b) for a, b in ((led.images, plain.images), (led.sigma, plain.sigma))
    )
    return replace(plain, images=values, sigma=sigma), guided


def _denoised(
    images: NDArray[np.float32],
    noise: NDArray[np.float32],
    denoiser: Denoiser,
    guide: NDArray[np.float32] | None,
    seed: Sequence[int],
    tta: int,
) -> Coefficients:
    return denoise_coefficients(
        images,
        noise,
        denoiser,
        rng=np.random.default_rng(list(seed)),
        least=len(images),
        contiguous=False,
        tta=tta,
        guide=guide,
    )
