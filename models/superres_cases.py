"""Fine truths of the held-out families, and the baseline that every gain is measured over."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from inscan.models.superres_input import bicubic
from inscan.profiles.samples import battery_particles, cells, siemens_star

__all__ = ["aligned_bicubic", "fine_truth"]

_SAMPLES: Mapping[str, Callable] = {
    "cells": cells,
    "siemens": siemens_star,
    "particles": battery_particles,
}
_BIN = 5  # of the sample's own grid to a fine pixel
_SIDE = 128


def aligned_bicubic(coarse: NDArray, factor: int) -> NDArray[np.float32]:
    """Bicubic interpolation with pixel areas aligned, the fair baseline.

    Parameters
    ----------
    coarse : ndarray, shape (element, row, col)
    factor : int

    Returns
    -------
    ndarray of float32, shape (element, row * factor, col * factor)
    """
    return bicubic(torch.from_numpy(np.asarray(coarse, dtype=np.float32))[None], factor)[0].numpy()


def fine_truth(name: str, seed: int) -> NDArray[np.float32]:
    """Element maps on the fine grid, each with maximum 1, shape (element, 128, 128) at most.

    Parameters
    ----------
    name : {"cells", "siemens", "particles"}
    seed : int
    """
    maps = np.asarray(_SAMPLES[name](seed).maps)
    side = min(_SIDE, maps.shape[1] // _BIN, maps.shape[2] // _BIN) // 4 * 4
    cut = maps[:, : side * _BIN, : side * _BIN]
    fine = cut.reshape(len(maps), side, _BIN, side, _BIN).mean(axis=(2, 4))
    return (fine / fine.max(axis=(1, 2), keepdims=True)).astype(np.float32)
