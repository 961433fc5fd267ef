"""Small structures in images: found, missed and made up."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_laplace, maximum_filter

__all__ = ["blob_strengths", "false_share", "froc"]

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


def froc(
    image: NDArray[np.floating],
    truth: NDArray[np.floating],
    *,
    trusted: NDArray[np.bool_] | None = None,
    threshold: float = 0.03,
    reach: float = _REACH,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """True spots found and share of made-up ones, as weaker and weaker spots are taken as seen.

    Free-response operating characteristic: Bunch et al., J. Appl. Photogr. Eng. 4, 166 (1978).

    Parameters
    ----------
    image, truth : ndarray of float, shape (row, col)
        Brightest true value about 1.
    trusted : ndarray of bool, shape (row, col), optional
        Spots elsewhere are not taken as seen.
    threshold : float
        Least response of a true spot; one of half that still excuses a spot seen.
    reach : float
        Distance in pixels within which spots are the same.

    Returns
    -------
    found, false : ndarray of float, shape (spot seen,)
        Share of the true spots found, which never falls; share of those seen that are none. Both
        empty where the truth has no spots or none are seen.
    """
    at, strength = blob_strengths(truth)
    real, excused = at[strength > threshold], at[strength > threshold / 2]
    seen, force = blob_strengths(image)
    if trusted is not None:
        keep = trusted[tuple(seen.T)]
        seen, force = seen[keep], force[keep]
    if len(real) == 0 or len(seen) == 0:
        return np.empty(0), np.empty(0)
    seen = seen[np.argsort(-force)]
    wrong = np.cumsum(_distance(seen, excused) > reach)
    distance = np.hypot(*(real[:, None] - seen[None]).transpose(2, 0, 1))
    # A true spot counts as found once any spot near it is among those seen.
    first = np.where(distance <= reach, np.arange(len(seen)), len(seen)).min(axis=1)
    found = np.searchsorted(np.sort(first), np.arange(len(seen)), side="right") / len(real)
    return found, wrong / np.arange(1, len(seen) + 1)


def false_share(curve: tuple[NDArray[np.float64], NDArray[np.float64]], recall: float) -> float:
    """Share of made-up spots where so many of the true ones are found.

    Parameters
    ----------
    curve : tuple of ndarray
        From `froc`.
    recall : float

    Returns
    -------
    float
        NaN where the curve does not reach that recall.
    """
    found, false = curve
    if len(found) == 0 or found[-1] < recall:
        return np.nan
    return float(false[np.argmax(found >= recall)])


def _distance(points: NDArray[np.intp], to: NDArray[np.intp]) -> NDArray[np.float64]:
    if len(to) == 0:
        return np.full(len(points), np.inf)
    return np.hypot(*(points[:, None] - to[None]).transpose(2, 0, 1)).min(axis=1)
