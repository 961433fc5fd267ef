"""Stand-ins for pixels that were not measured, for methods that need a whole picture."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

__all__ = ["nearest_measured"]


def nearest_measured(
    images: NDArray[np.float32], missing: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Give each missing pixel the value of the nearest one that was measured.

    Parameters
    ----------
    images : ndarray of float32, shape (n, row, col)
    missing : ndarray of bool, shape (row, col)

    Returns
    -------
    ndarray of float32, shape (n, row, col)
        `images` itself where nothing, or everything, is missing.
    """
    if not missing.any() or missing.all():
        return images
    near = np.zeros((2, *missing.shape), dtype=np.int32)
    distance_transform_edt(missing, return_distances=False, return_indices=True, indices=near)
    return images[:, near[0], near[1]]
