"""Energy stacks with holes: pixels or energies that were not measured."""

import numpy as np
from numpy.typing import NDArray

from inscan.models.fill import nearest_measured

__all__ = ["completed", "filled"]


def filled(data: NDArray[np.floating], there: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Replace holes by the mean spectrum, scaled to what the pixel shows elsewhere.

    Parameters
    ----------
    data : ndarray of float, shape (energy, row, col)
    there : ndarray of bool, shape (energy, row, col)
        What was measured.

    Returns
    -------
    ndarray of float32, shape (energy, row, col)
        Good enough to learn spectra from.
    """
    known = np.where(there, data, 0).astype(np.float32)
    count = there.sum(axis=(1, 2))
    spectrum = known.sum(axis=(1, 2)) / np.maximum(count, 1)
    expected = np.tensordot(spectrum, there.astype(np.float32), axes=1)
    share = np.where(np.abs(expected) > 0, known.sum(axis=0) / np.where(expected, expected, 1), 1)
    share = nearest_measured(share.astype(np.float32)[None], np.asarray(~there.any(axis=0)))[0]
    return np.where(there, known, spectrum[:, None, None] * share).astype(np.float32)


def completed(
    images: NDArray[np.float32],
    data: NDArray[np.floating],
    there: NDArray[np.bool_],
    partial: NDArray[np.bool_],
    weights: NDArray[np.float64],
    vectors: NDArray[np.float64],
    level: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Put in the likeliest coefficients of pixels of which some energies are missing.

    The other pixels say how coefficients are distributed (a normal prior); the energies that are
    there say the rest.

    Parameters
    ----------
    images : ndarray of float32, shape (component, row, col)
        Coefficients of whitened data; changed in place where `partial`.
    data, there : ndarray, shape (energy, row, col)
    partial : ndarray of bool, shape (row, col)
    weights : ndarray of float64, shape (energy,)
        What whitens the data.
    vectors : ndarray of float64, shape (energy, component)
    level : ndarray of float32, shape (row, col)
        Noise of whitened data.

    Returns
    -------
    ndarray of float32, shape (component, row, col)
        Noise of every coefficient.
    """
    v = vectors
    whole = ~partial
    c = images[:, whole].astype(np.float64)
    noise = float(np.mean(level[whole].astype(np.float64) ** 2)) if whole.any() else 1.0
    values, axes = np.linalg.eigh(c @ c.T / max(1, c.shape[1]) - noise * np.eye(len(c)))
    prior = (axes / np.maximum(values, 1e-3 * noise)) @ axes.T
    own = level[partial].astype(np.float64) ** 2
    y = data[:, partial].astype(np.float64) * weights[:, None]  # (energy, pixel)
    seen = there[:, partial]
    normal = np.einsum("ek,ep,el->pkl", v, seen, v) / own[:, None, None] + prior
    moment = np.einsum("ek,ep->pk", v, np.where(seen, y, 0)) / own[:, None]
    covariance = np.linalg.inv(normal)
    images[:, partial] = np.einsum("pkl,pl->kp", covariance, moment)
    spread = np.broadcast_to(level, images.shape).copy()
    spread[:, partial] = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)).T
    return spread
