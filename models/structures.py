"""Small structures in images: found, missed and made up."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_laplace, maximum_filter

__all__ = ["blob_strengths", "false_share"]

_SIGMA = 1.2
_REACH = 1.5


def blob_strengths(
    image: NDArray[np.floating],
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Bright spots about three pixels wide, by the Laplacian of a gaussian.

    Parameters
    ----------
    image : ndarray of float, shape (row, col)

    Returns
    -------
    positions : ndarray of int, shape (n, 2)
        Rows and columns of local maxima of the response.
    strengths : ndarray of float, shape (n,)
        Response there, > 0.
    """
    response = -gaussian_laplace(np.asarray(image, dtype=np.float64), _SIGMA)
    peaks = (response == maximum_filter(response, 5)) & (response > 0)
    positions = np.argwhere(peaks)
    return positions, response[peaks]


def false_share(
    image: NDArray[np.floating],
    truth: NDArray[np.floating],
    recall: float,
    *,
    threshold: float = 0.03,
    reach: float = _REACH,
) -> tuple[float, float]:
    """Share of made-up spots among those seen when so many of the true ones are found.

    Parameters
    ----------
    image, truth : ndarray of float, shape (row, col)
        Brightest true value about 1.
    recall : float
        Share of the true spots to find; where the image never shows as many, the most it does.
    threshold : float
        Least response of a true spot; one of half that still excuses a spot seen.
    reach : float
        Distance in pixels within which spots are the same.

    Returns
    -------
    false, recall : float
        Share of spots seen that are none, at the recall reached. NaN without true spots.
    """
    at, strength = blob_strengths(truth)
    real, excused = at[strength > threshold], at[strength > threshold / 2]
    seen, force = blob_strengths(image)
    if len(real) == 0 or len(seen) == 0:
        return np.nan, np.nan
    order = np.argsort(-force)
    seen = seen[order]
    wrong = np.cumsum(_distance(seen, excused) > reach)
    distance = np.hypot(*(real[:, None] - seen[None]).transpose(2, 0, 1))
    # A true spot counts as found once any spot near it is among those seen.
    first = np.where(distance <= reach, np.arange(len(seen)), len(seen)).min(axis=1)
    found = np.array([(first <= k).mean() for k in range(len(seen))])
    k = int(np.argmax(found >= min(recall, found[-1])))
    return float(wrong[k] / (k + 1)), float(found[k])


def _distance(points: NDArray[np.intp], to: NDArray[np.intp]) -> NDArray[np.float64]:
    if len(to) == 0:
        return np.full(len(points), np.inf)
    return np.hypot(*(points[:, None] - to[None]).transpose(2, 0, 1)).min(axis=1)
